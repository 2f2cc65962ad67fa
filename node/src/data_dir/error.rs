//! Why a data directory is not used, with the exit code and the remedy for each.

use std::io;
use std::path::{Path, PathBuf};

use crate::exit::ExitCode;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    /// Nothing is there, or an empty directory.
    #[error("there is no node in {}", .0.display())]
    Missing(PathBuf),
    /// Something is there, and it is not ours.
    #[error("{} is not a maillage data directory", .0.display())]
    NotOurs(PathBuf),
    /// A new node was to be made among somebody's files.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// A new node was to be made where there is one.
    #[error("there is already a node in {}", .0.display())]
    Exists(PathBuf),
    /// A crash or a refusal before the last step.
    #[error("an earlier init or join did not finish in {}", .0.display())]
    Unfinished(PathBuf),
    /// Another process has it.
    #[error("{} is in use by another process{}", .root.display(), .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The directory.
        root: PathBuf,
        /// The process, if it said so.
        pid: Option<u32>,
    },
    /// Written by a later version.
    #[error("{} was written by a newer maillage (format {found}; this one knows {known})", .path.display())]
    Newer {
        /// The file that says so.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Others may read the secret key.
    #[error("{} can be read by others (mode {mode:o}): whoever has it can pose as this site", .path.display())]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what was written.
    #[error("{} is damaged: {reason}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system's limit on socket paths.
    #[error("the socket path {} has {len} bytes, the system allows {len_max}: choose a shorter data directory", .path.display())]
    SocketPathTooLong {
        /// The socket.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The greatest.
        len_max: usize,
    },
    /// The file system said no.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl DataDirError {
    /// What the process ends with.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Missing(_) | Self::NotOurs(_) | Self::Io { .. } => ExitCode::Error,
            Self::SocketPathTooLong { .. } => ExitCode::Usage,
            Self::Unreadable { .. } => ExitCode::Corrupt,
            Self::NotEmpty(_)
            | Self::Exists(_)
            | Self::Unfinished(_)
            | Self::InUse { .. }
            | Self::Newer { .. }
            | Self::Exposed { .. } => ExitCode::Refused,
        }
    }

    /// What helps.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing(_) => "`maillage init` makes a new mesh, `maillage join TOKEN` joins one".to_owned(),
            Self::NotOurs(_) | Self::NotEmpty(_) => {
                "set node.data_dir to a directory of its own, empty or not yet there".to_owned()
            }
            Self::Exists(_) => "`maillage serve` runs it".to_owned(),
            Self::Unfinished(root) => {
                format!("run the same command again, or start over: `rm -r {}`", root.display())
            }
            Self::InUse { .. } => "`maillage status` asks the running node".to_owned(),
            Self::Newer { .. } => "run the version that wrote it, or a later one".to_owned(),
            Self::Exposed { path, .. } => format!("`chmod 600 {}`, if nobody has taken it", path.display()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as the user that owns the data directory".to_owned()
            }
            Self::Unreadable { .. } | Self::SocketPathTooLong { .. } | Self::Io { .. } => return None,
        })
    }

    /// Wraps what the file system said of `path` while we tried to `action` it.
    pub(super) fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path: path.clone(), source }
    }
}
