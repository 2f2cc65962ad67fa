//! Where the measurements are made: a directory on the disk to be measured, and the programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::time::sleep;

/// How long the machine is left alone before a measurement.
const SETTLE: Duration = Duration::from_millis(300);
/// `f_type` of tmpfs, `statfs(2)`: memory, on which an fsync costs nothing.
const TMPFS: u64 = 0x0102_1994;

/// The directory, removed at the end, and the binary under test.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The `maillage` binary, beside this one.
    pub(crate) binary: PathBuf,
    /// How often each figure is measured.
    pub(crate) rounds: usize,
    root: TempDir,
}

impl Lab {
    /// A laboratory under `parent`, which must be on a disk.
    pub(crate) fn new(parent: &Path, rounds: usize) -> anyhow::Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("maillage");
        ensure!(binary.is_file(), "{} is not built: cargo build --release -p maillage", binary.display());
        let kind = rustix::fs::statfs(parent).context("look at the directory")?.f_type;
        let is_memory = u64::try_from(kind).is_ok_and(|kind| kind == TMPFS);
        ensure!(!is_memory, "{} is in memory, where fsync costs nothing: give --dir", parent.display());
        let root = tempfile::Builder::new().prefix("bench-").tempdir_in(parent)?;
        Ok(Self { binary, rounds, root })
    }

    /// An empty directory of this measurement's own.
    pub(crate) fn dir(&self, name: &str) -> anyhow::Result<TempDir> {
        Ok(tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(self.root.path())?)
    }

    /// Waits until what others wrote is on the disk, so that nobody pays for another.
    pub(crate) async fn quiet(&self) -> anyhow::Result<()> {
        maillage_host::offload(|| {
            rustix::fs::sync();
            Ok(())
        })
        .await?;
        sleep(SETTLE).await;
        Ok(())
    }
}

/// A program of the system, or `None` when this machine lacks it.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// What this machine is, as far as figures depend on it.
pub(crate) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores ({}), Linux {}", model.unwrap_or("unknown"), kernel.trim())
}

/// Processor time since a moment: the machine's, and what this program and its ended children took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticks {
    busy: u64,
    all: u64,
    own: u64,
}

impl Ticks {
    /// Since the start of each; `None` where there is no `/proc`.
    pub(crate) fn now() -> Option<Self> {
        let machine = fs::read_to_string("/proc/stat").ok()?;
        let times: Vec<u64> =
            machine.lines().next()?.split_whitespace().skip(1).take(8).map_while(|t| t.parse().ok()).collect();
        let [_, _, _, idle, waiting, _, _, _] = times[..] else { return None };
        let all: u64 = times.iter().sum();
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        // The name before it may contain anything but is in brackets; utime is the 12th after it.
        let (_, fields) = own.rsplit_once(')')?;
        let own = fields.split_whitespace().skip(11).take(4).map_while(|t| t.parse::<u64>().ok()).sum();
        // Time stolen by the host is in `all` but neither idle nor waiting: it counts as other work.
        Some(Self { busy: all - idle - waiting, all, own })
    }

    /// The part of the machine that other work had since `earlier`, in percent. The kernel's own
    /// threads count as other work.
    pub(crate) fn others_since(self, earlier: Self) -> u64 {
        let busy = self.busy.saturating_sub(earlier.busy);
        let own = self.own.saturating_sub(earlier.own);
        busy.saturating_sub(own) * 100 / self.all.saturating_sub(earlier.all).max(1)
    }
}
