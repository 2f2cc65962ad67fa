//! The landing's writer: one task that appends what waits as one group, with one fsync, and answers then.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maillage_host::{Clock, DiskFile};
use tokio::sync::{mpsc, oneshot};

use super::files::{encode, id, path};
use super::{Arrived, At, Claimed, FILE_BYTES, File, Inner, Landed};
use crate::config::StoreConfig;
use crate::error::StoreError;
use crate::hash::Hash;
use crate::keys::InUse;
use crate::pack::{HEADER_BYTES, Kind, PackHeader, RECORD_HEADER_BYTES, RecordHeader};

/// Data sets that may wait at most: what is known of each is in memory.
const ENTRIES_MAX: usize = 65_536;
/// How long nothing comes before a file of which all is done goes, though it has room.
const IDLE: Duration = Duration::from_secs(5);

/// A sealed data set that is to be made durable.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) claimed: Claimed,
    pub(super) landed: Landed,
    pub(super) in_use: InUse,
    pub(super) sealed: Bytes,
    /// The claim and the sealed bytes come back when there was no room.
    pub(super) reply: oneshot::Sender<Result<Option<(Claimed, Bytes)>, StoreError>>,
}

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Request {
    Put(Box<Put>),
    /// To append no more to the file that it has open.
    End,
}

pub(super) struct Writer {
    inner: Arc<Inner>,
    clock: Clock,
    config: StoreConfig,
    next_number: u64,
    open: Option<Open>,
    failed: Option<Arc<str>>,
}

/// The file that is appended to.
struct Open {
    number: u64,
    handle: DiskFile,
    salt: [u8; 8],
    /// Where the next record goes: all before is durable.
    end: u64,
}

enum Trouble {
    NoRoom,
    Fatal(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom,
            _ => Self::Fatal(error),
        }
    }
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, clock: Clock, config: StoreConfig, next_number: u64) -> Self {
        Self { inner, clock, config, next_number, open: None, failed: None }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        loop {
            let first = if self.open.is_some() {
                match tokio::time::timeout(IDLE, queue.recv()).await {
                    Ok(first) => first,
                    Err(_) => {
                        self.end_if_spent().await;
                        continue;
                    }
                }
            } else {
                queue.recv().await
            };
            let Some(first) = first else { return self.end().await };
            let mut next = Some(first);
            let (mut bytes, mut puts, mut ends) = (0, Vec::new(), false);
            while let Some(request) = next.take() {
                match request {
                    Request::Put(put) => {
                        bytes += put.sealed.len() as u64;
                        puts.push(*put);
                    }
                    Request::End => ends = true,
                }
                if bytes < self.config.group_bytes && !ends {
                    next = queue.try_recv().ok();
                }
            }
            if !puts.is_empty() {
                self.serve(puts).await;
            }
            if ends {
                self.end().await;
            }
        }
    }

    async fn serve(&mut self, puts: Vec<Put>) {
        if let Some(failed) = &self.failed {
            let error = StoreError::Failed(Arc::clone(failed));
            puts.into_iter().for_each(|put| drop(put.reply.send(Err(error.clone()))));
            return;
        }
        match self.append(&puts).await {
            Ok(places) => self.landed(puts, places),
            Err(Trouble::NoRoom) => {
                // What of the group is in the file now is never read: its senders are told nothing of it.
                self.end().await;
                puts.into_iter().for_each(|put| drop(put.reply.send(Ok(Some((put.claimed, put.sealed))))));
            }
            Err(Trouble::Fatal(error)) => {
                let failed: Arc<str> = format!("landing: {error}").into();
                tracing::error!(%error, "nothing lands any more");
                let error = StoreError::Failed(Arc::clone(&failed));
                self.failed = Some(failed);
                self.inner.state().is_failed = true;
                self.end().await;
                puts.into_iter().for_each(|put| drop(put.reply.send(Err(error.clone()))));
            }
        }
    }

    /// Appends a group, durably. Returns where the sealed bytes lie, and how long each record is.
    async fn append(&mut self, puts: &[Put]) -> Result<Vec<(At, u64)>, Trouble> {
        let said = puts.iter().map(|put| encode(&put.landed)).collect::<io::Result<Vec<_>>>()?;
        let sizes = puts.iter().zip(&said).map(|(put, (said, _))| said.len() + put.sealed.len());
        let bytes = sizes.map(|size| RECORD_HEADER_BYTES + size as u64).sum::<u64>();
        if self.open.as_ref().is_some_and(|open| open.end + bytes > FILE_BYTES) {
            self.end().await;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.create(bytes).await?,
        };
        let begin = open.end;
        let (mut places, mut parts) = (Vec::with_capacity(puts.len()), Vec::with_capacity(3 * puts.len()));
        for (put, (said, hash)) in puts.iter().zip(said) {
            let len = said.len() + put.sealed.len();
            let header = RecordHeader {
                kind: Kind::Landed,
                synced_before: begin,
                hash,
                len: u32::try_from(len).map_err(io::Error::other)?,
            };
            let offset = open.end + RECORD_HEADER_BYTES + said.len() as u64;
            let record_bytes = header.record_len();
            places.push((At { file: open.number, offset, len: put.sealed.len(), may_be_torn: false }, record_bytes));
            parts.extend([Bytes::copy_from_slice(&header.encode(open.salt, open.end)), said, put.sealed.clone()]);
            open.end += header.record_len();
        }
        let written = self.write(&open, begin, parts).await;
        if written.is_err() {
            // Or a seal would say that the group was durable once.
            open.end = begin;
        }
        self.open = Some(open);
        written.map(|()| places)
    }

    /// Writes what is from `begin` to the end.
    async fn write(&self, open: &Open, begin: u64, parts: Vec<Bytes>) -> Result<(), Trouble> {
        // Each time: what has landed must find room once more, which what is in the packs need not.
        self.ask_for_room(open.end - begin).await?;
        open.handle.write_at(begin, parts, false).await?;
        // Apart, since want of room is known before; after a failed sync nothing is known.
        open.handle.sync().await.map_err(Trouble::Fatal)
    }

    /// What lands is to be stored once more, so that twice the room is asked for.
    async fn ask_for_room(&self, bytes: u64) -> Result<(), Trouble> {
        let (waiting, entries) = {
            let state = self.inner.state();
            (state.bytes, state.in_use.len())
        };
        if waiting.saturating_add(bytes) > self.config.landing_bytes || entries > ENTRIES_MAX {
            return Err(Trouble::NoRoom);
        }
        // Nothing was written: what is wrong is seen by whoever writes.
        let space = self.inner.disk.space().await.map_err(|_| Trouble::NoRoom)?;
        let wanted = self.config.reserve_bytes.saturating_add(waiting).saturating_add(2 * bytes);
        if space.free >= wanted { Ok(()) } else { Err(Trouble::NoRoom) }
    }

    /// Makes a file: its header synced, then the directory.
    async fn create(&mut self, bytes: u64) -> Result<Open, Trouble> {
        self.ask_for_room(bytes).await?;
        let number = self.next_number;
        // The name is not used again, whatever becomes of this one.
        self.next_number += 1;
        let header = PackHeader { id: id(number), day: 0, created_at: self.clock.now(), salt: rand::random() };
        let created = self.inner.disk.create(&path(&self.inner.directory, number)).await;
        let handle = created.map_err(|error| {
            tracing::warn!(%error, "make a file of the landing");
            Trouble::NoRoom
        })?;
        handle.write_at(0, vec![header.encode()], false).await?;
        handle.sync().await.map_err(Trouble::Fatal)?;
        self.inner.disk.sync_dir(&self.inner.directory).await.map_err(Trouble::Fatal)?;
        let file = File {
            handle: handle.clone(),
            bytes: HEADER_BYTES,
            left: 0,
            studies: BTreeSet::new(),
            is_open: true,
            is_stuck: false,
            is_going: false,
        };
        let mut state = self.inner.state();
        state.bytes += HEADER_BYTES;
        state.files.insert(number, file);
        drop(state);
        Ok(Open { number, handle, salt: header.salt, end: HEADER_BYTES })
    }

    /// A group is durable: it is to be done, and its senders are told.
    fn landed(&self, puts: Vec<Put>, places: Vec<(At, u64)>) {
        let mut state = self.inner.state();
        let mut told = Vec::with_capacity(puts.len());
        for (Put { claimed, landed, in_use, sealed: _, reply }, (at, bytes)) in puts.into_iter().zip(places) {
            if let Some(file) = state.files.get_mut(&at.file) {
                file.left += 1;
                file.bytes += bytes;
                if !file.studies.contains(&landed.study_uid) {
                    file.studies.insert(landed.study_uid.clone());
                }
            }
            state.bytes += bytes;
            state.in_use.insert(at.key(), in_use);
            if let Some(way) = state.under_way.get_mut(&landed.sop_instance) {
                way.has_landed = true;
            }
            state.todo.push_back(Arrived { landed, at, is_earlier: false });
            told.push((claimed, reply));
        }
        drop(state);
        self.inner.changed.notify_waiters();
        for (claimed, reply) in told {
            claimed.landed();
            let _ = reply.send(Ok(None));
        }
    }

    /// Appends no more to the file; removes it if all in it is done, else says at its end that all before it was
    /// durable once, so that what rots there is never taken for torn.
    async fn end(&mut self) {
        let Some(open) = self.open.take() else { return };
        if self.failed.is_none() && self.inner.state().files.get(&open.number).is_some_and(|file| file.left > 0) {
            let seal = RecordHeader { kind: Kind::Seal, synced_before: open.end, hash: Hash::of(&[]), len: 0 };
            let seal = Bytes::copy_from_slice(&seal.encode(open.salt, open.end));
            if let Err(error) = open.handle.write_at(open.end, vec![seal], true).await {
                tracing::debug!(%error, number = open.number, "a file of the landing has no seal");
            }
        }
        let spent = {
            let mut state = self.inner.state();
            if let Some(file) = state.files.get_mut(&open.number) {
                file.is_open = false;
            }
            state.goes_if_spent(open.number)
        };
        if let Some(number) = spent {
            self.inner.remove(number).await;
        }
    }

    async fn end_if_spent(&mut self) {
        let is_spent = self
            .open
            .as_ref()
            .is_some_and(|open| self.inner.state().files.get(&open.number).is_some_and(|file| file.left == 0));
        if is_spent {
            self.end().await;
        }
    }
}
