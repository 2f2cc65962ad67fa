//! The data directory: all state of one node, held by one process.
//!
//! ```text
//! VERSION       maillage data format 1
//! LOCK          locked while a process has the directory; holds its pid
//! identity      the secret key: 64 hexadecimal digits, mode 0600
//! mesh.json     the mesh and its last known members; written last by init and join
//! control.sock  where the command line reaches the running node
//! packs/ state/ index/ raft/ outbox/   what the store, the consensus and the outbox own
//! ```
//! Every refusal here is on purpose: opening a directory twice, or one of another version, or one
//! whose key others could read, loses or exposes more than not starting.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "runs before there is a node: the lock and the identity decide whether there may be one"
)]

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

mod error;
mod mesh_file;

pub(crate) use error::DataDirError;
pub(crate) use mesh_file::MESH_FILE_FORMAT;
pub use mesh_file::{MeshFile, MeshFileMember};

/// The format of the directory as a whole. It rises when an older version could not use it.
const FORMAT: u32 = 1;
/// What `VERSION` says before the number.
const FORMAT_PREFIX: &str = "maillage data format ";
/// Longest path of a unix socket, in bytes: `sun_path` has 108 with its end on Linux, 104 elsewhere.
const SOCKET_PATH_LEN_MAX: usize = 100;
/// Most that is read of any of the small files here; `mesh.json` of 1,000 members has 200 kB.
const FILE_LEN_MAX: u64 = 4 << 20;

const VERSION: &str = "VERSION";
const LOCK: &str = "LOCK";
const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
const MESH: &str = mesh_file::FILE;
const MESH_NEW: &str = "mesh.json.new";

/// The paths of a data directory. Knows nothing of what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// The directory at `root`, whether it exists or not.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes a new directory (mode 0700), or takes an empty one, and locks it.
    ///
    /// # Errors
    /// [`DataDirError::NotEmpty`], [`DataDirError::Unfinished`] or [`DataDirError::Exists`] when
    /// something is there; [`DataDirError::InUse`]; [`DataDirError::Io`].
    pub(crate) fn create(root: &Path) -> Result<Locked, DataDirError> {
        let dir = Self::at(root);
        dir.refuse_content()?;
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(DataDirError::io("create", root))?;
        fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(DataDirError::io("protect", root))?;
        let locked = dir.lock()?;
        // Between the look and the lock another process may have made the directory its own.
        if locked.path(VERSION).exists() {
            return Err(DataDirError::Exists(root.to_owned()));
        }
        locked.write_new(VERSION, format!("{FORMAT_PREFIX}{FORMAT}\n").as_bytes())?;
        sync_directory(root)?;
        Ok(locked)
    }

    /// As [`DataDir::create`], or takes up the directory of an `init` or `join` that did not finish.
    ///
    /// # Errors
    /// As [`DataDir::create`], but for [`DataDirError::Unfinished`].
    pub(crate) fn create_or_resume(root: &Path) -> Result<Locked, DataDirError> {
        match Self::create(root) {
            Err(DataDirError::Unfinished(_)) => {}
            other => return other,
        }
        let dir = Self::at(root);
        dir.check_version()?;
        let locked = dir.lock()?;
        // Between the look and the lock the other attempt may have finished.
        if locked.path(MESH).exists() { Err(DataDirError::Exists(root.to_owned())) } else { Ok(locked) }
    }

    /// Opens a directory that `init` or `join` made, and locks it until the result is dropped.
    ///
    /// # Errors
    /// [`DataDirError`]'s variants say each what is wrong.
    pub(crate) fn open(root: &Path) -> Result<Locked, DataDirError> {
        let dir = Self::at(root);
        match fs::metadata(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataDirError::Missing(root.to_owned()));
            }
            Err(error) => return Err(DataDirError::io("open", root)(error)),
            Ok(metadata) if !metadata.is_dir() => return Err(DataDirError::NotOurs(root.to_owned())),
            Ok(_) => {}
        }
        dir.check_version()?;
        let locked = dir.lock()?;
        locked.check_identity_mode()?;
        if !locked.path(MESH).exists() {
            return Err(DataDirError::Unfinished(root.to_owned()));
        }
        Ok(locked)
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The consensus: log and state.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The index of chunks and studies.
    pub(crate) fn index(&self) -> PathBuf {
        self.path("index")
    }

    /// Where the command line reaches the node.
    ///
    /// # Errors
    /// [`DataDirError::SocketPathTooLong`]: the system could not bind it.
    pub(crate) fn control_socket(&self) -> Result<PathBuf, DataDirError> {
        let path = self.path("control.sock");
        let len = path.as_os_str().as_bytes().len();
        if len > SOCKET_PATH_LEN_MAX {
            return Err(DataDirError::SocketPathTooLong { path, len, len_max: SOCKET_PATH_LEN_MAX });
        }
        Ok(path)
    }

    /// Whether a hospital's gateway joined in it, as far as can be read.
    pub(crate) fn is_a_gateways(&self) -> bool {
        let path = self.path(MESH);
        read_text(&path).is_ok_and(|text| MeshFile::parse(&text, &path).is_ok_and(|mesh| !mesh.role.is_centre()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Refuses a directory with anything in it, and says what that looks like.
    fn refuse_content(&self) -> Result<(), DataDirError> {
        let root = self.root.clone();
        if self.path(VERSION).exists() {
            let finished = self.path(MESH).exists();
            return Err(if finished { DataDirError::Exists(root) } else { DataDirError::Unfinished(root) });
        }
        let entries = match fs::read_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(DataDirError::io("look into", &root))?,
        };
        for entry in entries {
            let name = entry.map_err(DataDirError::io("look into", &root))?.file_name();
            // A file system of its own comes with `lost+found`; a crash before `VERSION` leaves a lock.
            if name != "lost+found" && name != LOCK {
                return Err(DataDirError::NotEmpty(root));
            }
        }
        Ok(())
    }

    fn check_version(&self) -> Result<(), DataDirError> {
        let path = self.path(VERSION);
        let text = match read_text(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let empty = self.refuse_content().is_ok();
                let root = self.root.clone();
                return Err(if empty { DataDirError::Missing(root) } else { DataDirError::NotOurs(root) });
            }
            Err(error) => return Err(DataDirError::io("read", &path)(error)),
            Ok(text) => text,
        };
        match text.strip_prefix(FORMAT_PREFIX).and_then(|number| number.trim_end().parse::<u32>().ok()) {
            Some(FORMAT) => Ok(()),
            Some(found) if found > FORMAT => Err(DataDirError::Newer { path, found, known: FORMAT }),
            // There has been no format before 1.
            Some(_) | None => Err(DataDirError::Unreadable { path, reason: "it names no known format".to_owned() }),
        }
    }

    fn lock(self) -> Result<Locked, DataDirError> {
        let path = self.path(LOCK);
        let at = DataDirError::io("lock", &path);
        let mut options = OpenOptions::new();
        // Not truncated before the lock is ours: the pid in it is another process's until then.
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = match options.open(&path) {
            Ok(file) => file,
            Err(error) => return Err(at(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Best effort: the refusal stands without the pid.
                let _ = (&file).take(64).read_to_string(&mut text);
                let pid = text.trim().parse::<u32>().ok();
                return Err(DataDirError::InUse { root: self.root, pid });
            }
            Err(TryLockError::Error(error)) => return Err(at(error)),
        }
        let pid = format!("{}\n", std::process::id());
        file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).map_err(at)?;
        Ok(Locked { dir: self, _lock: file, turn: Mutex::new(()) })
    }

    /// Writes a file that must not exist (mode 0600), durably but for its name.
    fn write_new(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        let path = self.path(name);
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        written.map_err(DataDirError::io("write", &path))
    }
}

/// A data directory that this process holds, until this is dropped.
#[derive(Debug)]
pub(crate) struct Locked {
    dir: DataDir,
    /// The lock lasts as long as the file is open.
    _lock: File,
    /// Serialises writers: two would share one temporary name.
    turn: Mutex<()>,
}

impl Locked {
    /// Reads the node's secret key.
    ///
    /// # Errors
    /// [`DataDirError::Exposed`] when others may read it, [`DataDirError::Unreadable`] when it is no
    /// key, [`DataDirError::Unfinished`] when there is none.
    pub(crate) fn identity(&self) -> Result<IdentitySecret, DataDirError> {
        self.check_identity_mode()?;
        let path = self.path(IDENTITY);
        let text = Zeroizing::new(read_text(&path).map_err(DataDirError::io("read", &path))?);
        match blake3::Hash::from_hex(text.trim_end()) {
            Ok(secret) => Ok(IdentitySecret(*secret.as_bytes())),
            Err(_) => Err(DataDirError::Unreadable { path, reason: "it is not 64 hexadecimal digits".to_owned() }),
        }
    }

    /// Writes the node's secret key, once: it is there whole or not at all.
    ///
    /// # Errors
    /// [`DataDirError::Exists`] when there is one: an identity is never replaced.
    /// [`DataDirError::Io`].
    pub(crate) fn store_identity(&self, secret: &IdentitySecret) -> Result<(), DataDirError> {
        if self.path(IDENTITY).exists() {
            return Err(DataDirError::Exists(self.root.clone()));
        }
        let hex = Zeroizing::new(format!("{}\n", blake3::Hash::from_bytes(secret.0).to_hex()));
        self.replace(IDENTITY, IDENTITY_NEW, hex.as_bytes())
    }

    /// Reads `mesh.json`.
    ///
    /// # Errors
    /// [`DataDirError::Unfinished`] when there is none, [`DataDirError::Newer`],
    /// [`DataDirError::Unreadable`], [`DataDirError::Io`].
    pub(crate) fn mesh(&self) -> Result<MeshFile, DataDirError> {
        let path = self.path(MESH);
        let text = match read_text(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataDirError::Unfinished(self.root.clone()));
            }
            other => other.map_err(DataDirError::io("read", &path))?,
        };
        MeshFile::parse(&text, &path)
    }

    /// Replaces `mesh.json`: after a crash it is the old or the new, whole.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub(crate) fn store_mesh(&self, mesh: &MeshFile) -> Result<(), DataDirError> {
        self.replace(MESH, MESH_NEW, mesh.to_json().as_bytes())
    }

    /// Removes what `create` and `store_identity` made, so that a refused join leaves nothing. Does
    /// nothing once there is a `mesh.json`; what else is in the directory stays.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub(crate) fn discard(self) -> Result<(), DataDirError> {
        if self.path(MESH).exists() {
            return Ok(());
        }
        // VERSION last but for the lock: a crash on the way leaves a directory that says it is unfinished.
        for name in [MESH_NEW, IDENTITY_NEW, IDENTITY, VERSION, LOCK] {
            remove_if_there(&self.path(name))?;
        }
        sync_directory(&self.root)
    }

    fn replace(&self, name: &str, temporary: &str, content: &[u8]) -> Result<(), DataDirError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, leftover) = (self.path(name), self.path(temporary));
        // Left by a crash between the write and the rename.
        remove_if_there(&leftover)?;
        self.write_new(temporary, content)?;
        fs::rename(&leftover, &path).map_err(DataDirError::io("replace", &path))?;
        sync_directory(&self.root)
    }

    fn check_identity_mode(&self) -> Result<(), DataDirError> {
        let path = self.path(IDENTITY);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DataDirError::Unfinished(self.root.clone())),
            Err(error) => Err(DataDirError::io("look at", &path)(error)),
            Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
                Err(DataDirError::Exposed { path, mode: metadata.permissions().mode() & 0o777 })
            }
            Ok(_) => Ok(()),
        }
    }
}

impl Deref for Locked {
    type Target = DataDir;

    fn deref(&self) -> &DataDir {
        &self.dir
    }
}

/// The 32 bytes of an ed25519 secret key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct IdentitySecret(pub(crate) [u8; 32]);

impl fmt::Debug for IdentitySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentitySecret(…)")
    }
}

fn remove_if_there(path: &Path) -> Result<(), DataDirError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DataDirError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Makes the names in a directory durable.
fn sync_directory(path: &Path) -> Result<(), DataDirError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(DataDirError::io("sync", path))
}

#[cfg(test)]
mod tests;
