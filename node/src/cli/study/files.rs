//! The files that a person names: found, looked at, read in pieces, and written.
//!
//! They lie anywhere on the machine, not in the node's data directory, and their names may be no
//! UTF-8 (discs from scanners rarely are), so this is beside `maillage_host::Disk`. All of it blocks,
//! and runs on the blocking pool.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "files that a person names on the command line are not the node's, and no simulation runs this"
)]

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use maillage_host::offload;

/// What marks a DICOM file (PS3.10 section 7.1), after a preamble of 128 bytes.
const MAGIC: &[u8] = b"DICM";
const MAGIC_AT: usize = 128;

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Regular files with their lengths, sorted by path.
    pub(super) files: Vec<(PathBuf, u64)>,
    /// What could not be looked into, and why.
    pub(super) unreadable: Vec<(PathBuf, String)>,
    /// Links and devices, left alone: a link may lead out of what was named, or round in a circle.
    pub(super) special: usize,
}

/// All files under the paths; folders are searched to their depths.
///
/// # Errors
/// When the runtime is shutting down; what cannot be read is in the result.
pub(super) async fn find(paths: Vec<PathBuf>) -> io::Result<Found> {
    offload(move || {
        let mut found = Found::default();
        let mut left = VecDeque::from(paths);
        while let Some(path) = left.pop_front() {
            if let Err(error) = look(&path, &mut found, &mut left) {
                found.unreadable.push((path, error.to_string()));
            }
        }
        // Named twice, or inside a folder that was named too: sent once.
        found.files.sort_unstable();
        found.files.dedup();
        Ok(found)
    })
    .await
}

fn look(path: &Path, found: &mut Found, left: &mut VecDeque<PathBuf>) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_file() {
        found.files.push((path.to_owned(), metadata.len()));
    } else if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            left.push_back(entry?.path());
        }
    } else {
        found.special += 1;
    }
    Ok(())
}

/// An open file to be sent.
#[derive(Debug, Clone)]
pub(super) struct Source {
    file: Arc<File>,
    /// Its length when it was opened, in bytes.
    pub(super) len: u64,
}

impl Source {
    /// Opens a file, if it looks like DICOM: by its mark, or else by its name, as old files have no
    /// mark. A DICOMDIR has the mark but is a table of contents, not an instance.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn open(path: PathBuf) -> io::Result<Option<Self>> {
        offload(move || {
            let name = path.file_name().unwrap_or_default();
            if name.eq_ignore_ascii_case("DICOMDIR") {
                return Ok(None);
            }
            let file = File::open(&path)?;
            let mut head = Vec::with_capacity(MAGIC_AT + MAGIC.len());
            (&file).take((MAGIC_AT + MAGIC.len()) as u64).read_to_end(&mut head)?;
            let marked = head.get(MAGIC_AT..) == Some(MAGIC);
            let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("dcm"));
            let len = file.metadata()?.len();
            Ok((marked || named).then(|| Self { file: Arc::new(file), len }))
        })
        .await
    }

    /// The bytes from `offset` on, at most `len`, never beyond the length at opening.
    ///
    /// # Errors
    /// When it cannot be read, or became shorter.
    pub(super) async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        offload(move || {
            let mut buffer = BytesMut::zeroed(len.min(left));
            file.read_exact_at(&mut buffer, offset)?;
            Ok(buffer.freeze())
        })
        .await
    }
}

/// A file that appears under its name only when it is whole.
#[derive(Debug)]
pub(super) struct Target {
    file: Arc<File>,
    temporary: PathBuf,
}

impl Target {
    /// A new file in `folder`, which is made when it does not exist. `number` tells the files of one
    /// run apart, the process id runs.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) async fn create(folder: PathBuf, number: u64) -> io::Result<Self> {
        offload(move || {
            fs::create_dir_all(&folder)?;
            let temporary = folder.join(format!(".{}-{number}.part", std::process::id()));
            let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
            Ok(Self { file: Arc::new(file), temporary })
        })
        .await
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) async fn append(&self, bytes: Bytes) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        offload(move || (&*file).write_all(&bytes)).await
    }

    /// Gives the file its name beside where it was made, replacing what has it.
    ///
    /// # Errors
    /// When it cannot be synced or renamed.
    pub(super) async fn finish(self, name: String) -> io::Result<()> {
        let (file, temporary) = (Arc::clone(&self.file), self.temporary.clone());
        offload(move || {
            file.sync_all()?;
            fs::rename(&temporary, temporary.with_file_name(name))
        })
        .await
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Gone already when it was finished; a part of a file is of no use otherwise.
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn marked() -> Vec<u8> {
        [&[0; MAGIC_AT][..], MAGIC, b"rest"].concat()
    }

    #[tokio::test]
    async fn folders_are_searched_and_links_are_not_followed() {
        let outside = tempfile::tempdir().expect("temporary directory");
        fs::write(outside.path().join("secret.dcm"), marked()).expect("write");
        let directory = tempfile::tempdir().expect("temporary directory");
        let root = directory.path();
        fs::create_dir_all(root.join("a/b")).expect("create");
        fs::write(root.join("a/b/1"), "x").expect("write");
        fs::write(root.join("a/2"), "xyz").expect("write");
        symlink(outside.path(), root.join("a/out")).expect("link");
        symlink(root, root.join("a/round")).expect("link");
        let named = vec![root.to_owned(), root.join("a/2"), root.join("none")];
        let found = find(named).await.expect("find");
        assert_eq!(found.files, [(root.join("a/2"), 3), (root.join("a/b/1"), 1)]);
        assert_eq!(found.special, 2);
        assert_eq!(found.unreadable.len(), 1);
    }

    #[tokio::test]
    async fn dicom_is_known_by_its_mark_or_its_name() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let dicom = async |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, content).expect("write");
            Source::open(path).await.expect("open").is_some()
        };
        assert!(dicom("IM0001", &marked()).await);
        assert!(dicom("old.DCM", b"no mark").await);
        assert!(!dicom("notes.txt", b"hello").await);
        assert!(!dicom("short", b"").await);
        assert!(!dicom("DICOMDIR", &marked()).await);
        assert!(!dicom("dicomdir", &marked()).await);
    }

    #[tokio::test]
    async fn a_file_is_read_in_pieces_and_shrinking_is_an_error() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("x.dcm");
        fs::write(&path, "0123456789").expect("write");
        let source = Source::open(path.clone()).await.expect("open").expect("dicom");
        assert_eq!(source.len, 10);
        assert_eq!(source.read(4, 3).await.expect("read"), "456");
        assert_eq!(source.read(8, 100).await.expect("read"), "89");
        fs::write(&path, "0").expect("write");
        source.read(4, 3).await.expect_err("shorter now");
    }

    #[tokio::test]
    async fn a_written_file_is_whole_or_not_there() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let folder = directory.path().join("out/deep");
        let target = Target::create(folder.clone(), 1).await.expect("create");
        target.append(Bytes::from_static(b"ab")).await.expect("append");
        target.append(Bytes::from_static(b"cd")).await.expect("append");
        target.finish("x.dcm".to_owned()).await.expect("finish");
        assert_eq!(fs::read(folder.join("x.dcm")).expect("read"), b"abcd");
        let target = Target::create(folder.clone(), 2).await.expect("create");
        target.append(Bytes::from_static(b"half")).await.expect("append");
        drop(target);
        assert_eq!(fs::read_dir(&folder).expect("list").count(), 1);
    }
}
