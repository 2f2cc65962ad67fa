//! What the tests of this module share: a disk that loses what was not synced, a network in memory,
//! a machine that counts.

mod crash_disk;
mod mesh;
mod toy;

pub(crate) use crash_disk::CrashDisk;
pub(crate) use mesh::{Mesh, Site, commit, eventually, linearize};
pub(crate) use toy::{Toy, UNKNOWN, toy_command};

use maillage_host::Disk;

/// A directory on the real disk, and its handle.
pub(crate) fn real_disk() -> (tempfile::TempDir, Disk) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = Disk::real(directory.path());
    (directory, disk)
}
