//! The simulated disks: what `maillage_host::Disk` stands on in the simulator.
//!
//! Writes land in a page cache; only a sync makes them durable, and only a directory's sync makes a
//! name durable. What a crash leaves of the rest is drawn (see `volume`). Latencies, a full disk, a
//! failing fsync and a power cut in the middle of a write are faults that can be set per slot.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use maillage_host::Disk;
use maillage_host::disk::{DiskBackend, FileBackend, IoFuture, Space};
use maillage_host::engine::MemoryHome;

mod marks;
mod pages;
mod volume;

pub(crate) use volume::Ending;
use volume::{Change, Volume};

use crate::mutant::Mutant;
use crate::rng::Rng;
use crate::world::{Owner, World, lock};

/// ENOSPC and EIO, the same numbers on every Unix.
const ENOSPC: i32 = 28;
const EIO: i32 = 5;
/// The bytes of a volume without faults.
const CAPACITY: u64 = 1 << 34;
/// How long a lying disk keeps what it called durable in its cache.
const LIE_LASTS: Duration = Duration::from_secs(5);

/// Between two looks of who waits for a stalled disk.
const STALL_LOOK: Duration = Duration::from_millis(100);

/// What is wrong with a disk now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskFaults {
    /// Latencies are multiplied by it.
    pub(crate) slowness: u32,
    /// Nothing is answered while it lasts.
    pub(crate) is_stalled: bool,
    /// … as it was before.
    pub(crate) has_stalled: bool,
    /// Bytes beyond what is used that can still be written.
    pub(crate) room: Option<u64>,
    /// Probability that an fsync fails.
    pub(crate) sync_fails: f64,
    /// Probability that a write is the node's last act.
    pub(crate) dies_writing: f64,
}

impl Default for DiskFaults {
    fn default() -> Self {
        Self { slowness: 1, is_stalled: false, has_stalled: false, room: None, sync_fails: 0.0, dies_writing: 0.0 }
    }
}

impl DiskFaults {
    /// Nothing is wrong any more.
    pub(crate) fn end(&mut self) {
        *self = Self { has_stalled: self.has_stalled || self.is_stalled, ..Self::default() };
    }
}

/// The engines of one node, that of the replicated state and that of the images' index.
#[derive(Default, Clone)]
pub(crate) struct Engines {
    pub(crate) state: Arc<MemoryHome>,
    pub(crate) index: Arc<MemoryHome>,
}

struct Drive {
    volume: Volume,
    engines: Engines,
    faults: DiskFaults,
    rng: Rng,
}

/// The site whose disk overwrites nothing that was purged.
const FORGETS_PURGES: u32 = 2;

/// The disks of all slots; they outlive the incarnations.
pub(crate) struct Disks {
    world: Arc<World>,
    seed: u64,
    mutant: Option<Mutant>,
    /// Where a mutant's disk is that overwrites nothing.
    forgetful: Option<u32>,
    drives: Mutex<BTreeMap<u32, Drive>>,
    /// Files that each life has open.
    open: Mutex<BTreeMap<Owner, usize>>,
}

/// Tasks that never end, of a mutant, for each write.
const TASKS_LEFT: usize = 4;

impl Disks {
    /// `gateway` is where the hospital's gateway is, if there is one.
    pub(crate) fn new(world: Arc<World>, seed: u64, mutant: Option<Mutant>, gateway: Option<u32>) -> Arc<Self> {
        let forgetful = match mutant {
            Some(Mutant::PurgeForgotten) => Some(FORGETS_PURGES),
            Some(Mutant::SpoolForgotten) => gateway,
            _ => None,
        };
        Arc::new(Self { world, seed, mutant, forgetful, drives: Mutex::default(), open: Mutex::default() })
    }

    /// The disk as one incarnation sees it.
    pub(crate) fn disk(self: &Arc<Self>, owner: Owner) -> Disk {
        Disk::from_backend(Arc::new(SimDisk { disks: Arc::clone(self), owner }))
    }

    /// What an incarnation finds of the engines of those before it.
    pub(crate) fn engines(&self, slot: u32) -> Engines {
        self.with(slot, |drive| {
            let Engines { state, index } = &drive.engines;
            drive.engines = Engines { state: Arc::new(state.crashed()), index: Arc::new(index.crashed()) };
            drive.engines.clone()
        })
    }

    /// Damages the index of a slot's images.
    pub(crate) fn spoil_index(&self, slot: u32) {
        self.with(slot, |drive| drive.engines.index.spoil());
    }

    fn with<T>(&self, slot: u32, act: impl FnOnce(&mut Drive) -> T) -> T {
        let mut drives = lock(&self.drives);
        let drive = drives.entry(slot).or_insert_with(|| Drive {
            volume: Volume::default(),
            engines: Engines::default(),
            faults: DiskFaults::default(),
            rng: Rng::stream(self.seed, &format!("disk {slot}")),
        });
        act(drive)
    }

    pub(crate) fn set_faults(&self, slot: u32, change: impl FnOnce(&mut DiskFaults)) {
        self.with(slot, |drive| change(&mut drive.faults));
    }

    /// Whether it stalls now, or did since the faults began.
    pub(crate) fn has_stalled(&self, slot: u32) -> bool {
        self.with(slot, |drive| drive.faults.is_stalled || drive.faults.has_stalled)
    }

    /// The disk is lost; an empty one takes its place.
    pub(crate) fn forget(&self, slot: u32) {
        self.with(slot, |drive| (drive.volume, drive.engines) = (Volume::default(), Engines::default()));
    }

    /// Flips one bit of the durable bytes `what` among the images of `slot`; `false` when they are nowhere.
    pub(crate) fn rot(&self, slot: u32, what: &[u8], bit: usize) -> bool {
        self.with(slot, |drive| drive.volume.rot("packs/", what, bit))
    }

    /// A file of `slot`, whatever it is for, in which one of `marks` can be read, as the process or after a power cut.
    pub(crate) fn find(&self, slot: u32, marks: &BTreeSet<Bytes>) -> Option<String> {
        self.with(slot, |drive| drive.volume.find(marks))
    }

    /// Whether the images of `slot` have each of `marks`, durably.
    pub(crate) fn keeps(&self, slot: u32, marks: &[Bytes]) -> bool {
        self.with(slot, |drive| drive.volume.keeps("packs/", marks))
    }

    /// Whether the file of `slot` at `path` has each of `marks`, durably.
    pub(crate) fn keeps_in(&self, slot: u32, path: &str, marks: &[Bytes]) -> bool {
        self.with(slot, |drive| drive.volume.keeps(path, marks))
    }

    /// How many files the node of `slot` has open.
    pub(crate) fn open_files(&self, slot: u32) -> usize {
        let open = lock(&self.open);
        open.iter().filter(|(owner, _)| owner.slot == slot).map(|(_, count)| *count).sum()
    }

    /// Bytes of the files of `slot` under a directory.
    pub(crate) fn bytes_under(&self, slot: u32, directory: &str) -> u64 {
        self.with(slot, |drive| drive.volume.bytes_under(directory))
    }

    /// What is left when the node's life ends.
    pub(crate) fn end(&self, slot: u32, ending: Ending) {
        // With the process go all its descriptors.
        lock(&self.open).retain(|owner, _| owner.slot != slot);
        let told = self.with(slot, |drive| drive.volume.end(ending, &mut drive.rng));
        self.world.event(slot, format_args!("disk after {ending:?}: {told:?}"));
        if told.torn > 0 {
            self.world.sometimes("an unsynced write was torn");
        }
        if told.names_lost > 0 {
            self.world.sometimes("an unsynced name was lost");
        }
        if told.lost > 0 {
            self.world.sometimes("an unsynced write was lost");
        }
    }

    /// Dead incarnations change nothing.
    fn guard(&self, owner: Owner) -> io::Result<()> {
        if self.world.is_alive(owner) { Ok(()) } else { Err(io::Error::other("this node is dead")) }
    }

    async fn wait(&self, owner: Owner, micros_max: u64) -> io::Result<()> {
        let wait = self.with(owner.slot, |drive| {
            let micros = drive.rng.between(micros_max / 4, micros_max);
            Duration::from_micros(micros) * drive.faults.slowness
        });
        tokio::time::sleep(wait).await;
        while self.world.is_alive(owner) && self.with(owner.slot, |drive| drive.faults.is_stalled) {
            tokio::time::sleep(STALL_LOOK).await;
        }
        self.guard(owner)
    }

    /// Whether a disk keeps what it is told to overwrite with zeroes, as one does for a mutant.
    fn keeps_purged(&self, owner: Owner, path: &str, parts: &[Bytes]) -> bool {
        self.forgetful == Some(owner.slot)
            && path.contains("packs/")
            && matches!(parts, [_, body] if !body.is_empty() && body.iter().all(|byte| *byte == 0))
    }

    /// Whether a disk keeps a pack that it is told to remove, as a gateway's does for a mutant.
    fn keeps_removed(&self, owner: Owner, path: &str) -> bool {
        self.mutant == Some(Mutant::SpoolForgotten)
            && self.forgetful == Some(owner.slot)
            && path.contains("packs/")
            && !path.ends_with(".purge")
    }

    /// Whether this disk lies about the durability of `path`, whose last write had `len` bytes.
    fn lies(&self, path: &str, len: usize) -> bool {
        /// Log writes of a vote, by their length: a mark (17 bytes), the vote (26), perhaps what is committed (33).
        const VOTE_WRITES: [usize; 2] = [17 + 26, 17 + 26 + 33];
        match self.mutant {
            Some(Mutant::LogFsyncLies) => path.starts_with("raft/log/"),
            Some(Mutant::VoteFsyncLies) => path.starts_with("raft/log/") && VOTE_WRITES.contains(&len),
            Some(Mutant::PackFsyncLies) => path.contains("packs/"),
            Some(Mutant::LandingFsyncLies) => path.contains("landing/"),
            Some(Mutant::InboxFsyncLies) => path.starts_with("feed/") || path.starts_with("inbox"),
            _ => false,
        }
    }
}

struct SimDisk {
    disks: Arc<Disks>,
    owner: Owner,
}

impl SimDisk {
    fn change<T>(&self, act: impl FnOnce(&mut Volume) -> io::Result<T>) -> io::Result<T> {
        self.disks.guard(self.owner)?;
        self.disks.with(self.owner.slot, |drive| act(&mut drive.volume))
    }
}

impl DiskBackend for SimDisk {
    fn open(&self, path: &str, create: bool) -> IoFuture<'_, Arc<dyn FileBackend>> {
        let path = path.to_owned();
        Box::pin(async move {
            let inode = self.change(|volume| volume.open(&path, create))?;
            let file = SimFile::new(Arc::clone(&self.disks), self.owner, inode, path);
            Ok(Arc::new(file) as Arc<dyn FileBackend>)
        })
    }

    fn rename(&self, from: &str, to: &str) -> IoFuture<'_, ()> {
        let result = self.change(|volume| volume.rename(from, to));
        Box::pin(std::future::ready(result))
    }

    fn remove(&self, path: &str) -> IoFuture<'_, ()> {
        let result = self.change(|volume| {
            if !self.disks.keeps_removed(self.owner, path) {
                volume.remove(path);
            }
            Ok(())
        });
        Box::pin(std::future::ready(result))
    }

    fn remove_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let result = self.change(|volume| {
            volume.remove_dir(path);
            Ok(())
        });
        Box::pin(std::future::ready(result))
    }

    fn create_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let path = path.to_owned();
        Box::pin(async move {
            self.disks.wait(self.owner, 1_000).await?;
            self.change(|volume| {
                volume.create_dir(&path);
                Ok(())
            })
        })
    }

    fn sync_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let path = path.to_owned();
        Box::pin(async move {
            let upto = self.change(|volume| Ok(volume.directory_ops()))?;
            self.disks.wait(self.owner, 2_000).await?;
            if self.disks.mutant != Some(Mutant::DirectorySyncDropped) {
                self.change(|volume| {
                    volume.sync_dir(&path, upto);
                    Ok(())
                })?;
            }
            self.disks.world.event(self.owner.slot, format_args!("sync_dir {path}"));
            Ok(())
        })
    }

    fn list(&self, path: &str) -> IoFuture<'_, Vec<String>> {
        let result = self.change(|volume| Ok(volume.list(path)));
        Box::pin(std::future::ready(result))
    }

    fn space(&self) -> IoFuture<'_, Space> {
        let space = self.disks.with(self.owner.slot, |drive| {
            let free = drive.faults.room.unwrap_or_else(|| CAPACITY.saturating_sub(drive.volume.used()));
            Space { free, total: CAPACITY }
        });
        Box::pin(std::future::ready(Ok(space)))
    }

    fn root(&self) -> Option<&Path> {
        None
    }
}

struct SimFile {
    disks: Arc<Disks>,
    owner: Owner,
    inode: u64,
    path: String,
}

impl SimFile {
    /// One that counts as open until it is dropped.
    fn new(disks: Arc<Disks>, owner: Owner, inode: u64, path: String) -> Self {
        *lock(&disks.open).entry(owner).or_default() += 1;
        Self { disks, owner, inode, path }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.disks.mutant == Some(Mutant::FilesStayOpen) {
            return;
        }
        if let Some(count) = lock(&self.disks.open).get_mut(&self.owner) {
            *count = count.saturating_sub(1);
        }
    }
}

/// What the drive makes of a write.
enum Fate {
    Done,
    Full,
    Dies,
}

impl SimFile {
    fn write(&self, offset: u64, bytes: Bytes) -> io::Result<Fate> {
        self.disks.guard(self.owner)?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let now = self.disks.world.now();
        self.disks.with(self.owner.slot, |drive| {
            let grows = drive.volume.growth(self.inode, at + bytes.len());
            if let Some(room) = &mut drive.faults.room {
                if grows > *room {
                    return Ok(Fate::Full);
                }
                *room -= grows;
            }
            drive.volume.change(self.inode, Change::Write { at, bytes }, now);
            Ok(if drive.rng.chance(drive.faults.dies_writing) { Fate::Dies } else { Fate::Done })
        })
    }

    async fn sync(&self, last_write: usize) -> io::Result<()> {
        self.disks.guard(self.owner)?;
        let slot = self.owner.slot;
        // What an fsync covers is fixed when it is called.
        let upto = self.disks.with(slot, |drive| drive.volume.changes());
        self.disks.wait(self.owner, 4_000).await?;
        let now = self.disks.world.now();
        if self.disks.lies(&self.path, last_write) {
            self.disks.with(slot, |drive| {
                drive.volume.write_back(self.inode, now.saturating_sub(LIE_LASTS));
            });
            return Ok(());
        }
        let failed = self.disks.with(slot, |drive| {
            let fails = drive.rng.chance(drive.faults.sync_fails);
            if fails {
                drive.volume.fail_sync(self.inode, upto, &mut drive.rng);
            } else {
                drive.volume.sync(self.inode, upto);
            }
            fails
        });
        let what = if failed { "sync failed" } else { "sync" };
        self.disks.world.event(slot, format_args!("{what} {}", self.path));
        if failed {
            self.disks.world.sometimes("an fsync failed");
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }
}

impl FileBackend for SimFile {
    fn read_at(&self, offset: u64, len: usize) -> IoFuture<'_, Bytes> {
        Box::pin(async move {
            self.disks.guard(self.owner)?;
            let faults = self.disks.with(self.owner.slot, |drive| drive.faults);
            if faults.slowness > 1 || faults.is_stalled {
                self.disks.wait(self.owner, 100).await?;
            }
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            Ok(self.disks.with(self.owner.slot, |drive| drive.volume.read(self.inode, at, len)))
        })
    }

    fn write_at(&self, offset: u64, parts: Vec<Bytes>, sync: bool) -> IoFuture<'_, ()> {
        Box::pin(async move {
            if self.disks.keeps_purged(self.owner, &self.path, &parts) {
                return Ok(());
            }
            if self.disks.mutant == Some(Mutant::TasksPileUp) {
                (0..TASKS_LEFT).for_each(|_| drop(maillage_host::spawn(std::future::pending::<()>())));
            }
            let bytes = match parts.as_slice() {
                [only] => only.clone(),
                several => several.concat().into(),
            };
            let len = bytes.len();
            match self.write(offset, bytes)? {
                Fate::Done => {}
                Fate::Full => {
                    self.disks.world.sometimes("a write met a full disk");
                    self.disks.world.event(self.owner.slot, format_args!("no room for {}", self.path));
                    return Err(io::Error::from_raw_os_error(ENOSPC));
                }
                Fate::Dies => {
                    self.disks.world.request_crash(self.owner.slot, "inside a write");
                    return std::future::pending().await;
                }
            }
            if sync { self.sync(len).await } else { Ok(()) }
        })
    }

    fn sync(&self) -> IoFuture<'_, ()> {
        Box::pin(self.sync(usize::MAX))
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.disks.guard(self.owner)?;
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let now = self.disks.world.now();
            self.disks.with(self.owner.slot, |drive| drive.volume.change(self.inode, Change::Length(len), now));
            Ok(())
        })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        let result = self.disks.guard(self.owner);
        let len = self.disks.with(self.owner.slot, |drive| drive.volume.len(self.inode));
        Box::pin(std::future::ready(result.map(|()| len)))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::trace::Trace;

    #[test]
    fn a_file_is_open_until_its_last_handle_is_dropped_or_its_node_ends() {
        let world = World::new(1, Trace::new(None).expect("a trace"), 0.0);
        let disks = Disks::new(Arc::clone(&world), 1, None, None);
        let disk = disks.disk(world.boot(1));
        let open = |path: &str| disk.create(path).now_or_never().expect("at once").expect("a file");
        let (first, second) = (open("a"), open("a"));
        let again = first.clone();
        assert_eq!((disks.open_files(1), disks.open_files(2)), (2, 0));
        drop((first, second));
        assert_eq!(disks.open_files(1), 1, "a clone is the same file");
        world.end(1);
        disks.end(1, Ending::Killed);
        assert_eq!(disks.open_files(1), 0);
        drop(again);
        let disk = disks.disk(world.boot(1));
        let next = disk.create("b").now_or_never().expect("at once").expect("a file");
        assert_eq!(disks.open_files(1), 1, "those of an earlier life are no more");
        drop(next);
    }
}
