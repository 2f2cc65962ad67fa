//! The disk as a node sees it: one small handle over one directory.
//!
//! The verbs are those whose durability a simulator must be able to break: write, sync, truncate,
//! rename, remove, and the sync of a directory, without which a new file's *name* may vanish at a
//! power cut though its bytes were synced. Paths are relative to the root, use `/`, and are built
//! from hashes and numbers, never from what a stranger sent.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

mod real;

/// A boxed future of an I/O result.
pub type IoFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// What implements a disk: the machine's, or a simulator's.
pub trait DiskBackend: Send + Sync + 'static {
    /// Opens a file for reading and writing; `create` makes it when absent, else `NotFound`.
    fn open(&self, path: &str, create: bool) -> IoFuture<'_, Arc<dyn FileBackend>>;
    /// Renames a file, replacing the target.
    fn rename(&self, from: &str, to: &str) -> IoFuture<'_, ()>;
    /// Removes a file. A missing file is no error.
    fn remove(&self, path: &str) -> IoFuture<'_, ()>;
    /// Removes a directory and all under it. A missing directory is no error.
    fn remove_dir(&self, path: &str) -> IoFuture<'_, ()>;
    /// Creates a directory and its parents, each parent synced.
    fn create_dir(&self, path: &str) -> IoFuture<'_, ()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, path: &str) -> IoFuture<'_, ()>;
    /// Names in a directory, sorted; empty when it does not exist.
    fn list(&self, path: &str) -> IoFuture<'_, Vec<String>>;
    /// Free and total bytes of the volume.
    fn space(&self) -> IoFuture<'_, Space>;
    /// The root directory on the machine, for engines that keep files of their own.
    fn root(&self) -> Option<&Path>;
}

/// What implements one open file.
#[expect(clippy::len_without_is_empty, reason = "a file's length is an I/O operation, not a collection's")]
pub trait FileBackend: Send + Sync + 'static {
    /// Reads up to `len` bytes at `offset`; shorter only at the end of the file.
    fn read_at(&self, offset: u64, len: usize) -> IoFuture<'_, Bytes>;
    /// Writes all of `parts`, one after another, from `offset` on; with `sync` also makes them, and
    /// the file's length, durable before it returns.
    fn write_at(&self, offset: u64, parts: Vec<Bytes>, sync: bool) -> IoFuture<'_, ()>;
    /// Makes everything written durable. After an error nothing may be assumed of what was written.
    fn sync(&self) -> IoFuture<'_, ()>;
    /// Cuts or extends the file with zeroes.
    fn set_len(&self, len: u64) -> IoFuture<'_, ()>;
    /// The file's length in bytes.
    fn len(&self) -> IoFuture<'_, u64>;
}

/// Free and total bytes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A directory that a node owns.
#[derive(Clone)]
pub struct Disk(Arc<dyn DiskBackend>);

impl Disk {
    /// The machine's file system under `root`, which must exist.
    pub fn real(root: impl Into<PathBuf>) -> Self {
        Self(Arc::new(real::RealDisk::new(root.into())))
    }

    /// A disk over another backend.
    pub fn from_backend(backend: Arc<dyn DiskBackend>) -> Self {
        Self(backend)
    }

    /// Opens an existing file. `NotFound` when there is none.
    pub async fn open(&self, path: &str) -> io::Result<DiskFile> {
        Ok(DiskFile(self.0.open(path, false).await?))
    }

    /// Opens a file, creating it when absent. The name is durable only after [`Disk::sync_dir`].
    pub async fn create(&self, path: &str) -> io::Result<DiskFile> {
        Ok(DiskFile(self.0.open(path, true).await?))
    }

    /// The whole content of a file.
    pub async fn read(&self, path: &str) -> io::Result<Bytes> {
        let file = self.open(path).await?;
        let len = usize::try_from(file.len().await?).map_err(io::Error::other)?;
        file.read_at(0, len).await
    }

    /// Replaces a file's content so that after a crash it is either the old or the new, whole.
    pub async fn replace(&self, path: &str, content: Bytes) -> io::Result<()> {
        let temporary = format!("{path}.new");
        self.0.remove(&temporary).await?;
        let file = self.create(&temporary).await?;
        file.write_at(0, vec![content], true).await?;
        self.0.rename(&temporary, path).await?;
        self.0.sync_dir(parent(path)).await
    }

    /// Renames a file, replacing the target; durable after [`Disk::sync_dir`].
    pub async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to).await
    }

    /// Removes a file; a missing file is no error.
    pub async fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path).await
    }

    /// Removes a directory and all under it; a missing one is no error.
    pub async fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.0.remove_dir(path).await
    }

    /// Creates a directory and its parents, durably.
    pub async fn create_dir(&self, path: &str) -> io::Result<()> {
        self.0.create_dir(path).await
    }

    /// Makes a directory's entries durable.
    pub async fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.0.sync_dir(path).await
    }

    /// Names in a directory, sorted; empty when it does not exist.
    pub async fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.0.list(path).await
    }

    /// Free and total bytes of the volume.
    pub async fn space(&self) -> io::Result<Space> {
        self.0.space().await
    }

    /// The root on the machine's file system; `None` under simulation.
    pub fn root(&self) -> Option<&Path> {
        self.0.root()
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disk").field(&self.0.root()).finish()
    }
}

/// An open file. Cheap to clone; closed with the last clone.
#[derive(Clone)]
pub struct DiskFile(Arc<dyn FileBackend>);

impl DiskFile {
    /// Reads up to `len` bytes at `offset`; shorter only at the end of the file.
    pub async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.0.read_at(offset, len).await
    }

    /// Writes all of `parts` from `offset` on; with `sync`, durably.
    pub async fn write_at(&self, offset: u64, parts: Vec<Bytes>, sync: bool) -> io::Result<()> {
        self.0.write_at(offset, parts, sync).await
    }

    /// Makes everything written durable.
    pub async fn sync(&self) -> io::Result<()> {
        self.0.sync().await
    }

    /// Cuts the file, or extends it with zeroes.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len).await
    }

    /// The file's length in bytes.
    pub async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }
}

impl fmt::Debug for DiskFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskFile")
    }
}

/// The directory part of a relative path, `"."` at the root.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(directory, _)| directory)
}
