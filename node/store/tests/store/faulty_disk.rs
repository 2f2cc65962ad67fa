//! A disk in memory that forgets at a power cut what was not synced, and fails on demand.
//!
//! Each file keeps its durable bytes beside what a reader sees, and the writes in between. A power
//! cut keeps of those, by a seed: nothing, everything, or each 512-byte sector by lot, as real disks
//! do. New names vanish unless their directory was synced.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use maillage_host::Disk;
use maillage_host::disk::{DiskBackend, FileBackend, IoFuture, Space};

const SECTOR: usize = 512;
/// Of Linux: the medium failed.
const EIO: i32 = 5;

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) durable: Vec<u8>,
    pub(crate) seen: Vec<u8>,
    unsynced: Vec<Change>,
    name_is_durable: bool,
}

pub(crate) enum Change {
    Write(usize, Bytes),
    SetLen(usize),
}

/// What to break, and counters.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The n-th sync from now fails (1 is the next); 0 is never.
    pub(crate) fail_sync_in: u64,
    /// The n-th write from now fails.
    pub(crate) fail_write_in: u64,
    /// What a write beyond these bytes in all gets: no space.
    pub(crate) capacity: Option<u64>,
    /// The volume says that there is room when there is none, as with quotas and thin volumes.
    pub(crate) hides_its_space: bool,
    /// How long a sync takes.
    pub(crate) sync_takes: std::time::Duration,
    /// A file that the medium does not give: opening it fails.
    pub(crate) unreadable: Option<String>,
}

/// The state of the disk, shared with the test.
#[derive(Default)]
pub(crate) struct FaultyDisk {
    pub(crate) files: Mutex<BTreeMap<String, Arc<Mutex<Content>>>>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) syncs: AtomicU64,
    /// Rises at a power cut: handles of before do nothing any more.
    epoch: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics with a lock held")
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::SetLen(len) => bytes.resize(*len, 0),
        Change::Write(at, data) => {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
    }
}

impl FaultyDisk {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn disk(self: &Arc<Self>) -> Disk {
        Disk::from_backend(Arc::new(Handle { disk: Arc::clone(self), epoch: self.epoch.load(Ordering::SeqCst) }))
    }

    /// What a process leaves that was killed between making its files and syncing their directory.
    pub(crate) fn forget_that_names_are_durable(&self) {
        for content in lock(&self.files).values() {
            lock(content).name_is_durable = false;
        }
    }

    /// Cuts the power: `seed` decides what of the unsynced survives. Open handles are dead after it.
    pub(crate) fn cut_power(&self, mut seed: u64) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        *lock(&self.faults) = Faults::default();
        lock(&self.files).retain(|_, content| {
            let content = &mut *lock(content);
            let mode = next(&mut seed) % 4;
            for change in content.unsynced.drain(..) {
                match (mode, &change) {
                    (0, _) => {}
                    (1, _) => apply(&mut content.durable, &change),
                    (_, Change::SetLen(_)) => {
                        if next(&mut seed).is_multiple_of(2) {
                            apply(&mut content.durable, &change);
                        }
                    }
                    (_, Change::Write(at, data)) => {
                        let mut from = 0;
                        while from < data.len() {
                            let to = (from + SECTOR - (at + from) % SECTOR).min(data.len());
                            if next(&mut seed).is_multiple_of(2) {
                                apply(&mut content.durable, &Change::Write(at + from, data.slice(from..to)));
                            }
                            from = to;
                        }
                    }
                }
            }
            content.seen.clone_from(&content.durable);
            content.name_is_durable
        });
    }

    pub(crate) fn used(&self) -> u64 {
        lock(&self.files).values().map(|content| lock(content).seen.len() as u64).sum()
    }

    fn fail(&self, count: impl Fn(&mut Faults) -> &mut u64) -> bool {
        let faults = &mut *lock(&self.faults);
        let left = count(faults);
        let fails = *left == 1;
        *left = left.saturating_sub(1);
        fails
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Handle {
    disk: Arc<FaultyDisk>,
    epoch: u64,
}

impl Handle {
    fn alive(&self) -> io::Result<()> {
        let alive = self.epoch == self.disk.epoch.load(Ordering::SeqCst);
        if alive { Ok(()) } else { Err(io::Error::other("the power is cut")) }
    }
}

fn ready<'a, T: Send + 'a>(result: io::Result<T>) -> IoFuture<'a, T> {
    Box::pin(std::future::ready(result))
}

impl DiskBackend for Handle {
    fn open(&self, path: &str, create: bool) -> IoFuture<'_, Arc<dyn FileBackend>> {
        ready(self.alive().and_then(|()| {
            let files = &mut *lock(&self.disk.files);
            if !create && !files.contains_key(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if lock(&self.disk.faults).unreadable.as_deref() == Some(path) {
                return Err(io::Error::from_raw_os_error(EIO));
            }
            let content = Arc::clone(files.entry(path.to_owned()).or_default());
            let handle = Handle { disk: Arc::clone(&self.disk), epoch: self.epoch };
            Ok(Arc::new(OpenFile { handle, content }) as Arc<dyn FileBackend>)
        }))
    }

    fn rename(&self, from: &str, to: &str) -> IoFuture<'_, ()> {
        ready(self.alive().and_then(|()| {
            let files = &mut *lock(&self.disk.files);
            let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            files.insert(to.to_owned(), content);
            Ok(())
        }))
    }

    fn remove(&self, path: &str) -> IoFuture<'_, ()> {
        ready(self.alive().map(|()| drop(lock(&self.disk.files).remove(path))))
    }

    fn remove_dir(&self, path: &str) -> IoFuture<'_, ()> {
        ready(self.alive().map(|()| lock(&self.disk.files).retain(|name, _| !name.starts_with(path))))
    }

    fn create_dir(&self, _: &str) -> IoFuture<'_, ()> {
        ready(self.alive())
    }

    fn sync_dir(&self, path: &str) -> IoFuture<'_, ()> {
        ready(self.alive().map(|()| {
            for (name, content) in &*lock(&self.disk.files) {
                if name.starts_with(path) {
                    lock(content).name_is_durable = true;
                }
            }
        }))
    }

    fn list(&self, path: &str) -> IoFuture<'_, Vec<String>> {
        ready(self.alive().map(|()| {
            let files = lock(&self.disk.files);
            let names = files.keys().filter_map(|name| name.strip_prefix(path)?.strip_prefix('/'));
            names.map(str::to_owned).collect()
        }))
    }

    fn space(&self) -> IoFuture<'_, Space> {
        let faults = lock(&self.disk.faults);
        let total = faults.capacity.filter(|_| !faults.hides_its_space).unwrap_or(1 << 40);
        drop(faults);
        ready(Ok(Space { free: total.saturating_sub(self.disk.used()), total }))
    }

    fn root(&self) -> Option<&Path> {
        None
    }
}

struct OpenFile {
    handle: Handle,
    content: Arc<Mutex<Content>>,
}

impl OpenFile {
    fn change(&self, change: Change) -> io::Result<()> {
        self.handle.alive()?;
        if self.handle.disk.fail(|faults| &mut faults.fail_write_in) {
            return Err(io::Error::other("injected write error"));
        }
        let end = match &change {
            Change::Write(at, data) => at + data.len(),
            Change::SetLen(len) => *len,
        };
        let used = self.handle.disk.used();
        let capacity = lock(&self.handle.disk.faults).capacity;
        let content = &mut *lock(&self.content);
        let growth = end.saturating_sub(content.seen.len()) as u64;
        if growth > 0 && capacity.is_some_and(|capacity| used + growth > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        apply(&mut content.seen, &change);
        content.unsynced.push(change);
        Ok(())
    }
}

impl FileBackend for OpenFile {
    fn read_at(&self, offset: u64, len: usize) -> IoFuture<'_, Bytes> {
        ready(self.handle.alive().map(|()| {
            let seen = &lock(&self.content).seen;
            let from = usize::try_from(offset).expect("small files").min(seen.len());
            Bytes::copy_from_slice(&seen[from..from.saturating_add(len).min(seen.len())])
        }))
    }

    fn write_at(&self, offset: u64, parts: Vec<Bytes>, sync: bool) -> IoFuture<'_, ()> {
        Box::pin(async move {
            let mut at = usize::try_from(offset).expect("small files");
            for part in parts {
                let len = part.len();
                self.change(Change::Write(at, part))?;
                at += len;
            }
            if sync { self.sync().await } else { Ok(()) }
        })
    }

    fn sync(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            let takes = lock(&self.handle.disk.faults).sync_takes;
            if takes.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(takes).await;
            }
            self.handle.alive()?;
            self.handle.disk.syncs.fetch_add(1, Ordering::SeqCst);
            let content = &mut *lock(&self.content);
            let unsynced = std::mem::take(&mut content.unsynced);
            if self.handle.disk.fail(|faults| &mut faults.fail_sync_in) {
                // As Linux does: reported once, and what was dirty counts as clean from now on.
                return Err(io::Error::other("injected sync error"));
            }
            unsynced.iter().for_each(|change| apply(&mut content.durable, change));
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        ready(self.change(Change::SetLen(usize::try_from(len).expect("small files"))))
    }

    fn len(&self) -> IoFuture<'_, u64> {
        ready(self.handle.alive().map(|()| lock(&self.content).seen.len() as u64))
    }
}
