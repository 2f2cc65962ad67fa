//! What the process takes of the machine: memory, and the disk's room.

use std::path::Path;

/// Memory of this process, in MiB, `proc(5)`. The system's page cache is no part of it: the engine reads files, it
/// maps none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// The most that was resident since [`forget_peak`].
    pub(super) peak: f64,
    /// Of what is resident now, what stands for no file.
    pub(super) anonymous: f64,
}

impl Memory {
    pub(super) fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let of = |name: &str| {
            let kib = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok());
            kib.map_or(f64::NAN, |kib: f64| kib / 1024.0)
        };
        Self { peak: of("VmHWM:"), anonymous: of("RssAnon:") }
    }
}

/// Begins a new peak. Where the kernel does not allow it the peak is that of the whole process.
pub(super) fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes that may still be written to the disk of `path`.
pub(super) fn room(path: &Path) -> anyhow::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail * found.f_frsize)
}

/// Bytes of all files in a directory.
pub(super) fn directory_bytes(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut open = vec![path.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => open.push(entry.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}
