//! Snapshots of the state on disk: building, keeping, receiving.
//!
//! A snapshot is written to `raft/snapshots/<index>-<unique>.part`, synced, renamed to `.snap`, and its
//! directory synced; only then does it count, and only then may the log below it be purged. The
//! newest is kept, and any other as long as somebody still reads it.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use maillage_host::engine::Reader;
use maillage_host::{Disk, DiskFile, Engine, offload};
use openraft::RaftSnapshotBuilder;

mod format;

pub(crate) use format::{Head, Parser};

use super::types::{Snapshot, TypeConfig, index_or_zero};

const DIRECTORY: &str = "raft/snapshots";
/// Bytes read or written at a time.
pub(crate) const PIECE: usize = 1 << 20;

/// One snapshot file.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) head: Head,
    pub(crate) path: String,
    /// Bytes of the file.
    pub(crate) len: u64,
}

/// A snapshot in use: its file stays as long as a clone of this.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile(pub(crate) Arc<Stored>);

impl SnapshotFile {
    pub(crate) fn into_snapshot(self) -> Snapshot {
        Snapshot { meta: self.0.head.meta.clone(), snapshot: self }
    }
}

/// The snapshots of one node.
pub(crate) struct SnapshotStore {
    disk: Disk,
    mesh_id: [u8; 32],
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    current: Option<Arc<Stored>>,
    /// Replaced, and perhaps still read.
    old: Vec<Arc<Stored>>,
}

impl SnapshotStore {
    /// Finds the newest snapshot; removes what is older, and what was not finished.
    pub(crate) async fn open(disk: Disk, mesh_id: [u8; 32]) -> io::Result<Self> {
        disk.create_dir(DIRECTORY).await?;
        let mut names = disk.list(DIRECTORY).await?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        let mut current = None;
        for name in names {
            let path = format!("{DIRECTORY}/{name}");
            if name.ends_with(".snap") && current.is_none() {
                match read_head(&disk, &path, &mesh_id).await {
                    Ok(stored) => current = Some(Arc::new(stored)),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        tracing::error!(%path, %error, "a snapshot cannot be read and is left aside");
                    }
                    Err(error) => return Err(error),
                }
            } else if name.ends_with(".snap") || name.ends_with(".part") {
                disk.remove(&path).await?;
            }
        }
        disk.sync_dir(DIRECTORY).await?;
        Ok(Self { disk, mesh_id, files: Mutex::new(Files { current, old: Vec::new() }) })
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn mesh_id(&self) -> [u8; 32] {
        self.mesh_id
    }

    pub(crate) fn current(&self) -> Option<SnapshotFile> {
        self.files().current.clone().map(SnapshotFile)
    }

    pub(crate) async fn open_file(&self, stored: &Stored) -> io::Result<DiskFile> {
        self.disk.open(&stored.path).await
    }

    /// A new file for a snapshot, and its path without the extension.
    async fn create(&self, index: u64) -> io::Result<(DiskFile, String)> {
        let stem = format!("{DIRECTORY}/{index:016x}-{:016x}", rand::random::<u64>());
        Ok((self.disk.create(&format!("{stem}.part")).await?, stem))
    }

    /// Gives a finished, synced file its name, durably, and makes it the current snapshot unless a
    /// newer one is.
    pub(crate) async fn adopt(&self, stored: &Stored) -> io::Result<SnapshotFile> {
        let path = match stored.path.strip_suffix(".part") {
            Some(stem) => {
                let path = format!("{stem}.snap");
                self.disk.rename(&stored.path, &path).await?;
                self.disk.sync_dir(DIRECTORY).await?;
                path
            }
            None => stored.path.clone(),
        };
        let adopted = {
            let mut files = self.files();
            if let Some(current) = files.current.as_ref().filter(|current| current.path == path) {
                return Ok(SnapshotFile(Arc::clone(current)));
            }
            let adopted = Arc::new(Stored { head: stored.head.clone(), path, len: stored.len });
            let newest = files
                .current
                .as_ref()
                .is_none_or(|current| current.head.meta.last_log_id <= adopted.head.meta.last_log_id);
            let replaced =
                if newest { files.current.replace(Arc::clone(&adopted)) } else { Some(Arc::clone(&adopted)) };
            files.old.extend(replaced);
            SnapshotFile(adopted)
        };
        self.sweep().await;
        Ok(adopted)
    }

    /// Removes replaced snapshots that nobody reads any more.
    pub(crate) async fn sweep(&self) {
        let unused: Vec<Arc<Stored>> = {
            let mut files = self.files();
            let (unused, used) = files.old.drain(..).partition(|stored| Arc::strong_count(stored) == 1);
            files.old = used;
            unused
        };
        for stored in unused {
            self.discard(&stored.path).await;
        }
    }

    async fn discard(&self, path: &str) {
        if let Err(error) = self.disk.remove(path).await {
            tracing::warn!(%path, %error, "a snapshot was not removed");
        }
    }
}

impl fmt::Debug for SnapshotStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotStore").field("current", &self.files().current).finish_non_exhaustive()
    }
}

async fn read_head(disk: &Disk, path: &str, mesh_id: &[u8; 32]) -> io::Result<Stored> {
    let file = disk.open(path).await?;
    let bytes = file.read_at(0, format::MAX_HEAD).await?;
    let Some((head, _)) = format::read_head(&bytes, mesh_id)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is cut short"));
    };
    Ok(Stored { head, path: path.to_owned(), len: file.len().await? })
}

/// A snapshot being received. What arrives is checked as it is written.
pub(crate) struct Incoming {
    store: Arc<SnapshotStore>,
    parser: Parser,
    file: DiskFile,
    path: String,
    len: u64,
}

impl Incoming {
    pub(crate) async fn begin(store: Arc<SnapshotStore>) -> io::Result<Self> {
        let (file, stem) = store.create(0).await?;
        let parser = Parser::new(store.mesh_id);
        Ok(Self { store, parser, file, path: format!("{stem}.part"), len: 0 })
    }

    pub(crate) async fn push(&mut self, piece: Bytes) -> io::Result<()> {
        self.parser.push(&piece, |_, _| Ok(()))?;
        let at = self.len;
        self.len += piece.len() as u64;
        self.file.write_at(at, vec![piece], false).await
    }

    /// The snapshot, complete, right, and synced.
    pub(crate) async fn finish(self) -> io::Result<SnapshotFile> {
        let head = self.parser.finish()?;
        self.file.sync().await?;
        // The name carries the index, by which the newest is found after a restart.
        let index = index_or_zero(head.meta.last_log_id.as_ref());
        let path = format!("{DIRECTORY}/{index:016x}-{:016x}.part", rand::random::<u64>());
        self.store.disk.rename(&self.path, &path).await?;
        Ok(SnapshotFile(Arc::new(Stored { head, path, len: self.len })))
    }

    /// Removes what was received.
    pub(crate) async fn abandon(store: &SnapshotStore, path: &str) {
        store.discard(path).await;
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// Writes one snapshot from a view of the state that later commits do not change.
pub(crate) struct Builder {
    pub(crate) store: Arc<SnapshotStore>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) view: Arc<dyn Reader>,
    pub(crate) head: Head,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (file, stem) = self.store.create(index_or_zero(self.head.meta.last_log_id.as_ref())).await?;
        let path = format!("{stem}.part");
        let built = self.write(&file).await;
        let len = match built {
            Ok(len) => len,
            Err(error) => {
                self.store.discard(&path).await;
                return Err(error);
            }
        };
        // The state must not be behind its own snapshot after a crash, or it would be rebuilt from it.
        let engine = Arc::clone(&self.engine);
        offload(move || engine.persist()).await?;
        let stored = Stored { head: self.head.clone(), path, len };
        Ok(self.store.adopt(&stored).await?.into_snapshot())
    }
}

impl Builder {
    async fn write(&self, file: &DiskFile) -> io::Result<u64> {
        let mut bytes = format::write_head(&self.head, &self.store.mesh_id);
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        let mut after: Option<Vec<u8>> = Some(vec![0]);
        while let Some(last) = after {
            let view = Arc::clone(&self.view);
            let page = offload(move || read_page(&*view, last, bytes, hasher)).await?;
            (after, hasher) = (page.last_key, page.hasher);
            let len = page.bytes.len() as u64;
            file.write_at(at, vec![page.bytes], false).await?;
            at += len;
            bytes = BytesMut::with_capacity(PIECE + PIECE / 4);
        }
        let trailer = Bytes::copy_from_slice(hasher.finalize().as_bytes());
        file.write_at(at, vec![trailer], true).await?;
        Ok(at + format::TRAILER as u64)
    }
}

struct Page {
    bytes: Bytes,
    hasher: blake3::Hasher,
    /// Where to go on; `None` when this was the last page.
    last_key: Option<Vec<u8>>,
}

/// Encodes the next pairs after the key `last` behind what `bytes` holds already, and hashes all.
fn read_page(view: &dyn Reader, last: Vec<u8>, mut bytes: BytesMut, mut hasher: blake3::Hasher) -> io::Result<Page> {
    let mut last_key = None;
    let mut written = Ok(());
    // Keys that begin with 0 are the raft layer's: they follow from the head.
    let from = if last == [0] { Bound::Included(&[1][..]) } else { Bound::Excluded(last.as_slice()) };
    view.scan(from, Bound::Unbounded, &mut |key, value| {
        written = format::write_pair(&mut bytes, key, value);
        if written.is_ok() && bytes.len() < PIECE {
            return true;
        }
        last_key = Some(key.to_vec());
        false
    })?;
    written?;
    if last_key.is_none() {
        format::write_end(&mut bytes);
    }
    hasher.update(&bytes);
    Ok(Page { bytes: bytes.freeze(), hasher, last_key })
}
