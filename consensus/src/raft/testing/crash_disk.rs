//! A disk in memory that forgets, at a crash, what was not synced: bytes by sectors, at random and in
//! any order; names of files whose directory was not synced.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use maillage_host::Disk;
use maillage_host::disk::{DiskBackend, FileBackend, IoFuture, Space};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// What reaches the platter whole, or not at all.
const SECTOR: usize = 512;

#[derive(Clone)]
pub(crate) struct CrashDisk(Arc<Mutex<Platter>>);

struct Platter {
    rng: StdRng,
    names: BTreeMap<String, Arc<Mutex<Inode>>>,
    durable_names: BTreeMap<String, Arc<Mutex<Inode>>>,
    /// Handles of an earlier life are dead.
    life: u64,
    /// Operations until the power fails, if it is going to.
    fuse: Option<u64>,
    /// Whether fsync says yes and does nothing: to show that the tests notice.
    lies: bool,
    fail_syncs: bool,
    /// Whether writes are never answered.
    stalled: bool,
    syncs: u64,
}

#[derive(Default, Clone)]
struct Inode {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Bytes),
    Len(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Len(len) => content.resize(*len, 0),
            Self::Write(at, bytes) => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
        }
    }

    /// Applies what of this change a crash happened to leave.
    fn apply_partly(&self, content: &mut Vec<u8>, rng: &mut StdRng) {
        match self {
            Self::Len(_) => {
                if rng.random_bool(0.5) {
                    self.apply(content);
                }
            }
            Self::Write(at, bytes) => {
                let mut done = 0;
                while done < bytes.len() {
                    let to = (SECTOR - (at + done) % SECTOR).min(bytes.len() - done);
                    if rng.random_bool(0.5) {
                        Self::Write(at + done, bytes.slice(done..done + to)).apply(content);
                    }
                    done += to;
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CrashDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            rng: StdRng::seed_from_u64(seed),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            life: 0,
            fuse: None,
            lies: false,
            fail_syncs: false,
            stalled: false,
            syncs: 0,
        })))
    }

    /// The disk as the node of this life sees it.
    pub(crate) fn handle(&self) -> Disk {
        let life = lock(&self.0).life;
        Disk::from_backend(Arc::new(Handle { platter: Arc::clone(&self.0), life }))
    }

    /// Power fails after `operations` more; everything then fails until [`CrashDisk::crash`].
    pub(crate) fn fail_after(&self, operations: u64) {
        lock(&self.0).fuse = Some(operations);
    }

    pub(crate) fn lie_about_syncs(&self) {
        lock(&self.0).lies = true;
    }

    pub(crate) fn fail_syncs(&self, fail: bool) {
        lock(&self.0).fail_syncs = fail;
    }

    pub(crate) fn stall(&self) {
        lock(&self.0).stalled = true;
    }

    pub(crate) fn syncs(&self) -> u64 {
        lock(&self.0).syncs
    }

    /// The power failed and is back: what was not synced is gone, or half there.
    pub(crate) fn crash(&self) {
        let platter = &mut *lock(&self.0);
        platter.life += 1;
        platter.fuse = None;
        platter.fail_syncs = false;
        platter.stalled = false;
        // A name that was not synced may have survived all the same.
        let mut names = platter.durable_names.clone();
        for (name, inode) in &platter.names {
            if !names.contains_key(name) && platter.rng.random_bool(0.5) {
                names.insert(name.clone(), Arc::clone(inode));
            }
        }
        for inode in names.values() {
            let mut inode = lock(inode);
            let mut content = std::mem::take(&mut inode.durable);
            for change in std::mem::take(&mut inode.pending) {
                change.apply_partly(&mut content, &mut platter.rng);
            }
            *inode = Inode { volatile: content.clone(), durable: content, pending: Vec::new() };
        }
        platter.durable_names.clone_from(&names);
        platter.names = names;
    }
}

struct Handle {
    platter: Arc<Mutex<Platter>>,
    life: u64,
}

impl Handle {
    /// The platter, if it still turns for this life.
    fn turn(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = lock(&self.platter);
        if platter.life != self.life {
            return Err(io::Error::other("this life is over"));
        }
        if let Some(fuse) = &mut platter.fuse {
            if *fuse == 0 {
                return Err(io::Error::other("no power"));
            }
            *fuse -= 1;
        }
        Ok(platter)
    }

    fn ready<T: Send + 'static>(result: io::Result<T>) -> IoFuture<'static, T> {
        Box::pin(std::future::ready(result))
    }
}

impl DiskBackend for Handle {
    fn open(&self, path: &str, create: bool) -> IoFuture<'_, Arc<dyn FileBackend>> {
        Self::ready(self.turn().and_then(|mut platter| {
            let inode = match platter.names.get(path) {
                Some(inode) => Arc::clone(inode),
                None if create => Arc::clone(platter.names.entry(path.to_owned()).or_default()),
                None => return Err(io::ErrorKind::NotFound.into()),
            };
            let file = File { handle: Self { platter: Arc::clone(&self.platter), life: self.life }, inode };
            Ok(Arc::new(file) as Arc<dyn FileBackend>)
        }))
    }

    fn rename(&self, from: &str, to: &str) -> IoFuture<'_, ()> {
        Self::ready(self.turn().and_then(|mut platter| {
            let inode = platter.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            platter.names.insert(to.to_owned(), inode);
            Ok(())
        }))
    }

    fn remove(&self, path: &str) -> IoFuture<'_, ()> {
        Self::ready(self.turn().map(|mut platter| drop(platter.names.remove(path))))
    }

    fn remove_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let prefix = format!("{path}/");
        Self::ready(self.turn().map(|mut platter| platter.names.retain(|name, _| !name.starts_with(&prefix))))
    }

    fn create_dir(&self, _path: &str) -> IoFuture<'_, ()> {
        Self::ready(self.turn().map(drop))
    }

    fn sync_dir(&self, path: &str) -> IoFuture<'_, ()> {
        let prefix = format!("{path}/");
        Self::ready(self.turn().map(|mut platter| {
            if platter.lies {
                return;
            }
            let platter = &mut *platter;
            platter.durable_names.retain(|name, _| !name.starts_with(&prefix));
            for (name, inode) in platter.names.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix))
            {
                platter.durable_names.insert(name.clone(), Arc::clone(inode));
            }
        }))
    }

    fn list(&self, path: &str) -> IoFuture<'_, Vec<String>> {
        let prefix = format!("{path}/");
        Self::ready(self.turn().map(|platter| {
            let names = platter.names.keys().filter_map(|name| name.strip_prefix(&prefix));
            names.filter(|name| !name.contains('/')).map(str::to_owned).collect()
        }))
    }

    fn space(&self) -> IoFuture<'_, Space> {
        Self::ready(Ok(Space { free: 1 << 40, total: 1 << 40 }))
    }

    fn root(&self) -> Option<&Path> {
        None
    }
}

struct File {
    handle: Handle,
    inode: Arc<Mutex<Inode>>,
}

impl File {
    fn change(&self, changes: Vec<Change>, sync: bool) -> io::Result<()> {
        let turn = self.handle.turn();
        let mut platter = match turn {
            Ok(platter) => platter,
            Err(error) => {
                // The write that the power failure interrupts is half done.
                if lock(&self.handle.platter).life == self.handle.life {
                    lock(&self.inode).pending.extend(changes);
                }
                return Err(error);
            }
        };
        let mut inode = lock(&self.inode);
        for change in &changes {
            change.apply(&mut inode.volatile);
        }
        inode.pending.extend(changes);
        if sync {
            platter.syncs += 1;
            if platter.fail_syncs {
                return Err(io::Error::other("fsync failed"));
            }
            if !platter.lies {
                let inode = &mut *inode;
                for change in inode.pending.drain(..) {
                    change.apply(&mut inode.durable);
                }
            }
        }
        Ok(())
    }
}

impl FileBackend for File {
    fn read_at(&self, offset: u64, len: usize) -> IoFuture<'_, Bytes> {
        Handle::ready(self.handle.turn().map(|_| {
            let inode = lock(&self.inode);
            let from = usize::try_from(offset).expect("fits").min(inode.volatile.len());
            let to = from.saturating_add(len).min(inode.volatile.len());
            Bytes::copy_from_slice(&inode.volatile[from..to])
        }))
    }

    fn write_at(&self, offset: u64, parts: Vec<Bytes>, sync: bool) -> IoFuture<'_, ()> {
        if lock(&self.handle.platter).stalled {
            return Box::pin(std::future::pending());
        }
        let mut at = usize::try_from(offset).expect("fits");
        let mut changes = Vec::new();
        for part in parts {
            let len = part.len();
            changes.push(Change::Write(at, part));
            at += len;
        }
        Handle::ready(self.change(changes, sync))
    }

    fn sync(&self) -> IoFuture<'_, ()> {
        Handle::ready(self.change(Vec::new(), true))
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Handle::ready(self.change(vec![Change::Len(usize::try_from(len).expect("fits"))], false))
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Handle::ready(self.handle.turn().map(|_| lock(&self.inode).volatile.len() as u64))
    }
}
