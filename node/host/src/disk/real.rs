//! The machine's file system behind the [`Disk`](super::Disk) handle.
//!
//! Each verb is one hop to the blocking pool. Writes go by `pwritev`-like loops at an explicit
//! offset; `sync` is `fdatasync`, which on Linux also makes a changed length durable.

#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the seam that the lint points to")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};

use super::{DiskBackend, FileBackend, IoFuture, Space};
use crate::task::offload;

pub(super) struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn at(&self, path: &str) -> PathBuf {
        debug_assert!(!path.starts_with('/') && !path.contains(".."), "paths stay under the root");
        self.root.join(path)
    }
}

impl DiskBackend for RealDisk {
    fn open(&self, path: &str, create: bool) -> IoFuture<'_, Arc<dyn FileBackend>> {
        let path = self.at(path);
        Box::pin(offload(move || {
            // Whatever the process's mask says: some of these name patients.
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(create).truncate(false).mode(0o600).open(path)?;
            Ok(Arc::new(RealFile(Arc::new(file))) as Arc<dyn FileBackend>)
        }))
    }

    fn rename(&self, from: &str, to: &str) -> IoFuture<'_, ()> {
        let (from, to) = (self.at(from), self.at(to));
        Box::pin(offload(move || fs::rename(from, to)))
    }

    fn remove(&self, path: &str) -> IoFuture<'_, ()> {
        let path = self.at(path);
        Box::pin(offload(move || missing_is_fine(fs::remove_file(path))))
    }

    fn remove_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let path = self.at(path);
        Box::pin(offload(move || missing_is_fine(fs::remove_dir_all(path))))
    }

    fn create_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let (root, path) = (self.root.clone(), path.to_owned());
        Box::pin(offload(move || {
            let mut at = root;
            for part in Path::new(&path).components() {
                let above = at.clone();
                at.push(part);
                match fs::create_dir(&at) {
                    Ok(()) => File::open(above)?.sync_all()?,
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        }))
    }

    fn sync_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let path = self.at(path);
        Box::pin(offload(move || File::open(path)?.sync_all()))
    }

    fn list(&self, path: &str) -> IoFuture<'_, Vec<String>> {
        let path = self.at(path);
        Box::pin(offload(move || {
            let entries = match fs::read_dir(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            };
            let mut names = Vec::new();
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort_unstable();
            Ok(names)
        }))
    }

    fn space(&self) -> IoFuture<'_, Space> {
        let root = self.root.clone();
        Box::pin(offload(move || {
            let stat = rustix::fs::statvfs(&root)?;
            Ok(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
        }))
    }

    fn root(&self) -> Option<&Path> {
        Some(&self.root)
    }
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a file's bytes durable. One that has no name any more, since somebody removed it, is gone with this process:
/// what is written to it is not durable.
fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()?;
    if file.metadata()?.nlink() == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the file was removed while it was written"));
    }
    Ok(())
}

/// Reads exactly `len` bytes at `offset`, into memory that nobody has filled with zeroes first.
fn read_exact_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(len);
    while buffer.len() < len {
        let at = offset + buffer.len() as u64;
        match pread(file, spare_capacity(&mut buffer), at) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before what is read")),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocator may have given more than was asked for.
    buffer.truncate(len);
    Ok(buffer)
}

struct RealFile(Arc<File>);

impl FileBackend for RealFile {
    fn read_at(&self, offset: u64, len: usize) -> IoFuture<'_, Bytes> {
        let file = Arc::clone(&self.0);
        Box::pin(offload(move || {
            // Never allocate by a length that the file cannot back.
            let available = file.metadata()?.len().saturating_sub(offset);
            let len = len.min(usize::try_from(available).unwrap_or(usize::MAX));
            read_exact_at(&file, offset, len).map(Bytes::from)
        }))
    }

    fn write_at(&self, mut offset: u64, parts: Vec<Bytes>, sync: bool) -> IoFuture<'_, ()> {
        let file = Arc::clone(&self.0);
        Box::pin(offload(move || {
            for part in parts {
                file.write_all_at(&part, offset)?;
                offset += part.len() as u64;
            }
            if sync { sync_data(&file) } else { Ok(()) }
        }))
    }

    fn sync(&self) -> IoFuture<'_, ()> {
        let file = Arc::clone(&self.0);
        Box::pin(offload(move || sync_data(&file)))
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        let file = Arc::clone(&self.0);
        Box::pin(offload(move || file.set_len(len)))
    }

    fn len(&self) -> IoFuture<'_, u64> {
        let file = Arc::clone(&self.0);
        Box::pin(offload(move || Ok(file.metadata()?.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Disk;
    use super::*;

    #[tokio::test]
    async fn what_was_replaced_is_read_back_and_reads_stop_at_the_end() {
        let root = std::env::temp_dir().join(format!("maillage-disk-{}", std::process::id()));
        fs::create_dir_all(&root).expect("temporary directory");
        let disk = Disk::real(&root);
        disk.create_dir("a/b").await.expect("create a directory");
        disk.replace("a/b/c", Bytes::from_static(b"first")).await.expect("write");
        disk.replace("a/b/c", Bytes::from_static(b"second")).await.expect("write again");
        assert_eq!(disk.read("a/b/c").await.expect("read"), "second");
        let file = disk.open("a/b/c").await.expect("open");
        assert_eq!(file.read_at(3, usize::MAX).await.expect("read the tail"), "ond");
        assert_eq!(file.read_at(1, 3).await.expect("read a part"), "eco");
        assert_eq!(file.read_at(6, 1).await.expect("read behind the end"), "");
        assert_eq!(file.read_at(u64::MAX, 1).await.expect("read far behind it"), "");
        let large: Bytes = (0..3_000_001_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
        disk.replace("a/b/large", large.clone()).await.expect("write much");
        assert!(disk.read("a/b/large").await.expect("read much") == large);
        let part = disk.open("a/b/large").await.expect("open").read_at(1_234_567, 1_500_000).await.expect("read");
        assert!(part == large.slice(1_234_567..2_734_567));
        disk.remove("a/b/large").await.expect("remove");
        assert_eq!(disk.list("a/b").await.expect("list"), ["c"]);
        assert_eq!(disk.open("a/none").await.expect_err("absent").kind(), io::ErrorKind::NotFound);
        file.write_at(0, vec![Bytes::from_static(b"third")], true).await.expect("write durably");
        disk.remove_dir("a").await.expect("remove");
        let gone = file.write_at(0, vec![Bytes::from_static(b"lost")], true).await.expect_err("nothing durable");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(file.sync().await.expect_err("nor so").kind(), io::ErrorKind::NotFound);
        assert!(disk.list("a/b").await.expect("list nothing").is_empty());
        fs::remove_dir_all(&root).expect("clean up");
    }
}
