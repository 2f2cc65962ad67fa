//! Replacing the whole state by a snapshot's.
//!
//! The engine that replaces the old one is filled, and the snapshot's hash checked, before the engine
//! becomes the current one: a snapshot that turns out wrong at its last byte changes nothing.

use std::io;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use maillage_host::{Batch, DiskFile, Engine, offload};
use tokio::runtime::Handle;

use super::{Applied, State};
use crate::raft::snapshot::{PIECE, Parser, SnapshotFile};
use crate::raft::types::SnapshotMeta;

/// A snapshot up to this size is read into memory before the engine is filled; beyond it, the
/// filling thread waits for the disk, piece by piece. (Under a simulator nothing may wait inside
/// blocking work, and its states are small.)
const IN_MEMORY: u64 = 64 << 20;

impl State {
    pub(super) async fn install(&mut self, meta: &SnapshotMeta, snapshot: &SnapshotFile) -> io::Result<()> {
        if snapshot.0.head.meta != *meta {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is not the one announced"));
        }
        // First the file, durably: the log below it will be purged.
        let stored = self.snapshots.adopt(&snapshot.0).await?;
        let file = self.snapshots.open_file(&stored.0).await?;
        let mut pieces = Pieces { file, at: 0, len: stored.0.len, read: Vec::new() };
        if pieces.len <= IN_MEMORY {
            pieces.preload().await?;
        }
        let applied = Applied::from_head(&stored.0.head);
        let (home, mesh_id, target) = (Arc::clone(&self.home), self.snapshots.mesh_id(), applied.clone());
        let engine = offload(move || home.replace(&mut |engine| fill(engine, mesh_id, &mut pieces, &target))).await?;
        let old = {
            let mut current = self.view.engine.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, engine)
        };
        // Closing an engine may wait for its threads.
        let home = Arc::clone(&self.home);
        offload(move || {
            drop(old);
            if let Err(error) = home.tidy() {
                tracing::warn!(%error, "files of the state before the snapshot are still here");
            }
            Ok(())
        })
        .await?;
        self.applied = applied;
        self.view.publish(&self.applied);
        Ok(())
    }
}

/// The bytes of a snapshot file, in order.
struct Pieces {
    file: DiskFile,
    at: u64,
    len: u64,
    /// Read ahead, last first.
    read: Vec<Bytes>,
}

impl Pieces {
    async fn preload(&mut self) -> io::Result<()> {
        while self.at < self.len {
            let piece = self.file.read_at(self.at, PIECE).await?;
            self.advance(&piece)?;
            self.read.push(piece);
        }
        self.read.reverse();
        Ok(())
    }

    fn advance(&mut self, piece: &Bytes) -> io::Result<()> {
        if piece.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the snapshot is shorter than it was"));
        }
        self.at += piece.len() as u64;
        Ok(())
    }

    /// The next piece; blocks.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(piece) = self.read.pop() {
            return Ok(Some(piece));
        }
        if self.at >= self.len {
            return Ok(None);
        }
        let piece = Handle::current().block_on(self.file.read_at(self.at, PIECE))?;
        self.advance(&piece)?;
        Ok(Some(piece))
    }
}

fn fill(engine: &dyn Engine, mesh_id: [u8; 32], pieces: &mut Pieces, applied: &Applied) -> io::Result<()> {
    engine.ingest(&mut |take| {
        let mut parser = Parser::new(mesh_id);
        while let Some(piece) = pieces.next()? {
            parser.push(&piece, &mut *take)?;
        }
        if Applied::from_head(&parser.finish()?) != *applied {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot's head changed"));
        }
        Ok(())
    })?;
    let mut batch = Batch::default();
    applied.write(&mut batch, true);
    engine.commit(batch)
}
