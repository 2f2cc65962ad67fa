//! Which packs are here, how far each is readable, and their open files.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use maillage_host::{Disk, DiskFile};

use super::PackId;

/// The packs of a store, for reading. Every method is short; no lock is held across I/O.
#[derive(Debug)]
pub(crate) struct PackFiles {
    disk: Disk,
    directory: String,
    open_limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of each pack that are durable and may be read.
    readable: BTreeMap<PackId, u64>,
    /// Open files with the tick of their last use.
    open: BTreeMap<PackId, (DiskFile, u64)>,
    tick: u64,
}

impl PackFiles {
    pub(crate) fn new(disk: Disk, directory: String, open_limit: usize) -> Self {
        Self { disk, directory, open_limit: open_limit.max(1), state: Mutex::default() }
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn directory(&self) -> &str {
        &self.directory
    }

    pub(crate) fn path(&self, pack: PackId) -> String {
        format!("{}/{pack}", self.directory)
    }

    /// Declares the first `end` bytes of a pack durable and readable.
    pub(crate) fn set_readable(&self, pack: PackId, end: u64) {
        self.state().readable.insert(pack, end);
    }

    /// Up to where the bytes of a pack are known to be durable; 0 of one that nobody has looked at yet.
    pub(crate) fn readable_end(&self, pack: PackId) -> u64 {
        self.state().readable.get(&pack).copied().unwrap_or_default()
    }

    /// Whether the bytes up to `end` of a pack are here, as far as is known without reading.
    pub(crate) fn is_readable(&self, pack: PackId, end: u64) -> bool {
        self.state().readable.get(&pack).is_some_and(|readable| end <= *readable)
    }

    /// Lets go of a pack that is about to be removed.
    pub(crate) fn forget(&self, pack: PackId) {
        let state = &mut *self.state();
        state.readable.remove(&pack);
        state.open.remove(&pack);
    }

    /// How many packs are here.
    pub(crate) fn count(&self) -> u64 {
        self.state().readable.len() as u64
    }

    /// Reads `len` bytes; fewer only when the file ends before.
    pub(crate) async fn read(&self, pack: PackId, offset: u64, len: usize) -> io::Result<Bytes> {
        let cached = self.cached(pack);
        let file = match cached {
            Some(file) => file,
            None => {
                let file = self.disk.open(&self.path(pack)).await?;
                self.remember(pack, file.clone());
                file
            }
        };
        file.read_at(offset, len).await
    }

    fn cached(&self, pack: PackId) -> Option<DiskFile> {
        let state = &mut *self.state();
        state.tick += 1;
        let (file, used) = state.open.get_mut(&pack)?;
        *used = state.tick;
        Some(file.clone())
    }

    fn remember(&self, pack: PackId, file: DiskFile) {
        let state = &mut *self.state();
        let oldest = state.open.iter().min_by_key(|(_, (_, used))| *used).map(|(pack, _)| *pack);
        if state.open.len() >= self.open_limit
            && let Some(oldest) = oldest
        {
            state.open.remove(&oldest);
        }
        state.open.insert(pack, (file, state.tick));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
