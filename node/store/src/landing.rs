//! The landing: whole data sets that were acknowledged and are still to be cut and coded.
//!
//! ```text
//! received ─ seal ─ append, one fsync a group ─ acknowledged
//!                      '- later: read, open ─ cut, code, prove ─ packs ─ done
//! ```
//! A sender that has its images one by one waits for a write and an fsync, and not for the coder, which takes
//! several times as long. What lies here is sealed under its study's key, as everything is; it is read back from the
//! file, so that waiting costs disk and no memory. Files have the form of packs, whose rules tell a torn
//! tail from rot. A file goes when all in it is done; what a crash leaves is taken up again, and is a duplicate
//! where it was done. What cannot be done stays in its file for whoever can mend it, and is said at each start.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use maillage_host::{Clock, Disk, DiskFile, offload, offload_behind, spawn};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};

mod files;
mod writer;

use files::read_all;
use writer::{Put, Request, Writer};

use crate::config::StoreConfig;
use crate::error::{OpenError, StoreError};
use crate::hash::Hash;
use crate::keys::{InUse, Keys};
use crate::seal::{KeyId, Place, StudyKey};

/// The longest data set that lands, in bytes. A longer one is cut into enough pieces to keep all processors at
/// coding while its sender waits once.
pub const LANDED_BYTES_MAX: usize = 8 << 20;

/// A file that reached this size gets no more. As much again may stay on the disk as is waiting.
const FILE_BYTES: u64 = 64 << 20;
/// Puts that wait for the writer.
const QUEUE_LEN: usize = 256;
/// How long a purge waits until nothing of its study is in any file.
const CLEAR_WITHIN: Duration = Duration::from_secs(2);
/// The directory, beside that of the packs.
const DIRECTORY: &str = "landing";

/// What is said of a data set that lands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landed {
    /// Study Instance UID.
    pub study_uid: String,
    /// SOP Instance UID.
    pub sop_instance: String,
    /// SOP Class UID, as announced.
    pub sop_class: String,
    /// Transfer Syntax UID.
    pub transfer_syntax: String,
    /// Of the data set.
    pub dataset_hash: Hash,
    /// When it came, in milliseconds since 1970-01-01, UTC.
    pub received_at: u64,
    /// Whom it came from.
    pub source: String,
    /// The key of the study under which it is sealed.
    pub key: KeyId,
}

impl Landed {
    fn place(&self) -> Place<'_> {
        Place::Landed { sop_instance: &self.sop_instance, dataset_hash: self.dataset_hash }
    }
}

/// A data set that is to be cut and coded, first come first. One that is dropped stays for the next start.
#[derive(Debug)]
pub struct Arrived {
    /// What is said of it.
    pub landed: Landed,
    at: At,
    /// Whether it came before the start.
    is_earlier: bool,
}

/// Where its sealed bytes lie.
#[derive(Debug, Clone, Copy)]
struct At {
    file: u64,
    offset: u64,
    len: usize,
    /// Whether a crash may have cut it short: it was then never acknowledged.
    may_be_torn: bool,
}

impl At {
    fn key(&self) -> (u64, u64) {
        (self.file, self.offset)
    }
}

/// Why the bytes of an arrived data set cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ArrivedError {
    /// It was being written when the machine stopped: its sender was told nothing.
    #[error("it was not written to its end")]
    Torn,
    /// What was acknowledged is not what was written.
    #[error("the bytes in {0} are damaged")]
    Damaged(String),
    /// Its key, or the machine.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store's landing. Clones share it; its writer ends after the last.
#[derive(Debug, Clone)]
pub struct Landing {
    inner: Arc<Inner>,
    queue: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Inner {
    disk: Disk,
    directory: String,
    keys: Keys,
    /// Of all files together.
    bytes_max: u64,
    state: Mutex<State>,
    /// Something came, or is done.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, File>,
    todo: VecDeque<Arrived>,
    /// The keys of what is not done, by file and offset: whoever works on it may be cancelled.
    in_use: BTreeMap<(u64, u64), InUse>,
    /// SOP instances that are on their way in or are not done.
    under_way: BTreeMap<String, Way>,
    /// How many of a study's are from before the start and not done.
    earlier: BTreeMap<String, usize>,
    /// Studies of which nothing lands, see [`Landing::hold_off`].
    held_off: BTreeSet<String>,
    /// Bytes of all files.
    bytes: u64,
    /// What cannot be done.
    stuck: u64,
    /// … by study, as far as that is known.
    stuck_of: BTreeMap<String, u64>,
    /// Why nothing is done for now.
    blocked: Option<StoreError>,
    is_failed: bool,
}

/// How far a SOP instance has come.
#[derive(Debug)]
struct Way {
    study_uid: String,
    has_landed: bool,
}

#[derive(Debug)]
struct File {
    handle: DiskFile,
    bytes: u64,
    /// Data sets in it that are not done.
    left: usize,
    /// The studies of all data sets in it, done or not.
    studies: BTreeSet<String>,
    /// More is being appended.
    is_open: bool,
    /// Something in it cannot be done: it stays.
    is_stuck: bool,
    /// It is being removed.
    is_going: bool,
}

/// A SOP instance that nobody else brings in meanwhile, until dropped or landed.
#[derive(Debug)]
pub struct Claimed {
    inner: Arc<Inner>,
    sop_instance: Option<String>,
}

/// A study of which nothing lands, until dropped.
#[derive(Debug)]
pub struct HeldOff {
    inner: Arc<Inner>,
    study_uid: String,
}

impl Landing {
    pub(crate) async fn open(
        disk: Disk,
        prefix: &str,
        keys: Keys,
        clock: Clock,
        config: &StoreConfig,
    ) -> Result<Self, OpenError> {
        let directory = if prefix.is_empty() { DIRECTORY.to_owned() } else { format!("{prefix}/{DIRECTORY}") };
        let bytes_max = config.landing_bytes;
        let inner = Inner { disk, directory, keys, bytes_max, state: Mutex::default(), changed: Notify::new() };
        if bytes_max > 0 {
            inner.disk.create_dir(&inner.directory).await.map_err(OpenError::Directory)?;
        }
        let next_number = read_all(&inner).await?;
        let inner = Arc::new(inner);
        let (queue, puts) = mpsc::channel(QUEUE_LEN);
        let writer = Writer::new(Arc::clone(&inner), clock, config.clone(), next_number);
        drop(spawn(writer.run(puts)));
        Ok(Self { inner, queue })
    }

    /// Claims a SOP instance, for whoever brings it in; none while it is on its way in or not done.
    pub fn claim(&self, study_uid: &str, sop_instance: &str) -> Option<Claimed> {
        let under_way = &mut self.inner.state().under_way;
        if under_way.contains_key(sop_instance) {
            return None;
        }
        let way = Way { study_uid: study_uid.to_owned(), has_landed: false };
        under_way.insert(sop_instance.to_owned(), way);
        Some(Claimed { inner: Arc::clone(&self.inner), sop_instance: Some(sop_instance.to_owned()) })
    }

    /// Waits while a SOP instance is on its way in or not done.
    ///
    /// # Errors
    /// Why nothing is done for now, see [`Landing::set_blocked`].
    pub async fn until_done(&self, sop_instance: &str) -> Result<(), StoreError> {
        self.until(|state| !state.under_way.contains_key(sop_instance)).await
    }

    /// Waits, at most so long, until all of a study is done that has landed by now.
    pub async fn until_coded(&self, study_uid: &str, at_most: Duration) {
        let landed = |(_, way): &(&String, &Way)| way.has_landed && way.study_uid == study_uid;
        let now: Vec<String> =
            self.inner.state().under_way.iter().filter(landed).map(|(sop_instance, _)| sop_instance.clone()).collect();
        let all = async {
            for sop_instance in now {
                self.until_done(&sop_instance).await?;
            }
            Ok::<_, StoreError>(())
        };
        // What takes longer is shown when it is there.
        let _ = tokio::time::timeout(at_most, all).await;
    }

    /// Waits while something of a study is not done that came before the start.
    ///
    /// # Errors
    /// As [`Landing::until_done`].
    pub async fn until_earlier_done(&self, study_uid: &str) -> Result<(), StoreError> {
        self.until(|state| !state.earlier.contains_key(study_uid)).await
    }

    async fn until(&self, is_so: impl Fn(&State) -> bool) -> Result<(), StoreError> {
        loop {
            let mut changed = std::pin::pin!(self.inner.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.inner.state();
                if is_so(&state) {
                    return Ok(());
                }
                if let Some(why) = &state.blocked {
                    return Err(why.clone());
                }
            }
            changed.await;
        }
    }

    /// Says why what is here cannot be done for now, or that it can: nothing more lands meanwhile.
    pub fn set_blocked(&self, why: Option<StoreError>) {
        self.inner.state().blocked = why;
        self.inner.changed.notify_waiters();
    }

    /// Whether a SOP instance is on its way in or not done.
    pub fn is_under_way(&self, sop_instance: &str) -> bool {
        self.inner.state().under_way.contains_key(sop_instance)
    }

    /// Whether something of a study is on its way in or not done.
    pub fn is_any_under_way(&self, study_uid: &str) -> bool {
        self.inner.state().under_way.values().any(|way| way.study_uid == study_uid)
    }

    /// Whether something of a study has landed and is not done.
    pub fn has_of(&self, study_uid: &str) -> bool {
        self.inner.state().under_way.values().any(|way| way.has_landed && way.study_uid == study_uid)
    }

    /// How many data sets of a study have landed and are not done, and how many of it cannot be.
    pub fn count_of(&self, study_uid: &str) -> (u64, u64) {
        let state = self.inner.state();
        let landed = state.under_way.values().filter(|way| way.has_landed && way.study_uid == study_uid);
        (landed.count() as u64, state.stuck_of.get(study_uid).copied().unwrap_or_default())
    }

    /// Whether nothing is on its way in or left to do.
    pub fn is_empty(&self) -> bool {
        self.inner.state().under_way.is_empty()
    }

    /// Whether it fills up: more comes than is done.
    pub fn is_pressed(&self) -> bool {
        self.inner.state().bytes > self.inner.bytes_max / 2
    }

    /// Whether nothing lands any more, after an error of the disk.
    pub(crate) fn is_failed(&self) -> bool {
        self.inner.state().is_failed
    }

    /// Bytes of its files, and the data sets in them that cannot be done.
    pub fn size(&self) -> (u64, u64) {
        let state = self.inner.state();
        (state.bytes, state.stuck)
    }

    /// Has nothing more of a study land until what is returned is dropped: its senders wait for the coder, so that a
    /// moment comes at which all of it is done. None while another holds it off.
    pub fn hold_off(&self, study_uid: &str) -> Option<HeldOff> {
        let is_first = self.inner.state().held_off.insert(study_uid.to_owned());
        is_first.then(|| HeldOff { inner: Arc::clone(&self.inner), study_uid: study_uid.to_owned() })
    }

    /// Whether a data set of a study, of so many bytes, may land at all; whether there is room, [`Landing::put`] says.
    pub fn may_take(&self, study_uid: &str, len: usize) -> bool {
        if self.inner.bytes_max == 0 || len > LANDED_BYTES_MAX {
            return false;
        }
        let state = self.inner.state();
        state.blocked.is_none() && !state.held_off.contains(study_uid)
    }

    /// Seals a data set and makes it durable. Claim and data set come back when there is no room: nothing of it was kept.
    /// While it waits it is in memory in its sealed form alone.
    ///
    /// # Errors
    /// `Failed` after an error of the disk, for good; `Keys`; `Closed`.
    pub async fn put(
        &self,
        claimed: Claimed,
        landed: Landed,
        key: (Arc<StudyKey>, InUse),
        dataset: Bytes,
    ) -> Result<Option<(Claimed, Bytes)>, StoreError> {
        if !self.may_take(&landed.study_uid, dataset.len()) {
            return Ok(Some((claimed, dataset)));
        }
        let (key, in_use) = key;
        let (of, sealing) = (landed.clone(), Arc::clone(&key));
        let sealed = offload(move || sealing.seal(of.place(), &dataset).map_err(io::Error::other)).await;
        let sealed = sealed.map_err(|error| StoreError::Keys(Arc::new(error)))?.into();
        let (reply, done) = oneshot::channel();
        let of = landed.clone();
        let put = Put { claimed, landed, in_use, sealed, reply };
        self.queue.send(Request::Put(Box::new(put))).await.map_err(|_| StoreError::Closed)?;
        let Some((claimed, sealed)) = done.await.map_err(|_| StoreError::Closed)?? else { return Ok(None) };
        let opened = offload(move || key.open(of.place(), sealed).map_err(io::Error::other)).await;
        Ok(Some((claimed, opened.map_err(|error| StoreError::Keys(Arc::new(error)))?)))
    }

    /// Waits until no file has anything of a study, durably: what is done of it there would come again after a crash,
    /// and be stored anew once its study is purged. Files that stay for whoever can mend them are not waited for: what
    /// they have of it opens with no key any more.
    ///
    /// # Errors
    /// `Landed` when it takes too long; why nothing is done for now; `Read` when the disk fails.
    pub(crate) async fn until_clear_of(&self, study_uid: &str) -> Result<(), StoreError> {
        let in_the_way = |file: &File| file.studies.contains(study_uid) && !file.is_stuck;
        if self.inner.bytes_max == 0 && self.inner.state().files.is_empty() {
            return Ok(());
        }
        if self.inner.state().files.values().any(|file| file.is_open && in_the_way(file)) {
            self.queue.send(Request::End).await.map_err(|_| StoreError::Closed)?;
        }
        let clear = self.until(|state| !state.files.values().any(in_the_way));
        tokio::time::timeout(CLEAR_WITHIN, clear).await.map_err(|_| StoreError::Landed)??;
        // Their names are gone for good, too.
        self.inner.disk.sync_dir(&self.inner.directory).await.map_err(|error| StoreError::Read(Arc::new(error)))
    }

    /// The next data set that is to be cut and coded.
    pub async fn next(&self) -> Arrived {
        loop {
            let mut changed = std::pin::pin!(self.inner.changed.notified());
            changed.as_mut().enable();
            if let Some(arrived) = self.inner.state().todo.pop_front() {
                return arrived;
            }
            changed.await;
        }
    }

    /// The data set, as it came.
    ///
    /// # Errors
    /// [`ArrivedError`].
    pub async fn read(&self, arrived: &Arrived) -> Result<(Arc<StudyKey>, Bytes), ArrivedError> {
        let (at, landed) = (arrived.at, arrived.landed.clone());
        let handle = self.inner.state().files.get(&at.file).map(|file| file.handle.clone());
        let path = files::path(&self.inner.directory, at.file);
        let Some(handle) = handle else { return Err(ArrivedError::Damaged(path)) };
        let key = self.inner.keys.find(landed.key)?;
        let sealed = match handle.read_at(at.offset, at.len).await {
            Ok(sealed) => sealed,
            Err(error) if crate::store::is_damage(&error) => return Err(ArrivedError::Damaged(path)),
            Err(error) => return Err(StoreError::Read(Arc::new(error)).into()),
        };
        let opening = Arc::clone(&key);
        let opened = offload_behind(move || {
            let opened = opening.open(landed.place(), sealed).ok();
            Ok(opened.filter(|dataset| Hash::of(dataset) == landed.dataset_hash))
        });
        match opened.await.map_err(|error| StoreError::Read(Arc::new(error)))? {
            Some(dataset) => Ok((key, dataset)),
            None if at.may_be_torn => Err(ArrivedError::Torn),
            None => Err(ArrivedError::Damaged(path)),
        }
    }

    /// It is in the packs, durably, or is to go.
    pub async fn done(&self, arrived: Arrived) {
        let spent = {
            let mut state = self.inner.state();
            state.leaves(&arrived);
            state.one_less_in(arrived.at.file)
        };
        drop(arrived);
        self.inner.changed.notify_waiters();
        if let Some(number) = spent {
            self.inner.remove(number).await;
        }
    }

    /// It cannot be done: it stays in its file, and nobody waits for it any more.
    pub fn stuck(&self, arrived: Arrived) {
        {
            let mut state = self.inner.state();
            state.leaves(&arrived);
            state.stuck += 1;
            *state.stuck_of.entry(arrived.landed.study_uid.clone()).or_default() += 1;
            if let Some(file) = state.files.get_mut(&arrived.at.file) {
                file.is_stuck = true;
            }
        }
        drop(arrived);
        self.inner.changed.notify_waiters();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a file of which all is done. One that comes back after a power cut holds duplicates.
    async fn remove(&self, number: u64) {
        match self.disk.remove(&files::path(&self.directory, number)).await {
            Ok(()) => self.state().forget(number),
            Err(error) => tracing::warn!(%error, number, "a file of the landing was not removed"),
        }
        self.changed.notify_waiters();
    }
}

impl State {
    /// Nobody waits for a data set any more.
    fn leaves(&mut self, arrived: &Arrived) {
        let Landed { study_uid, sop_instance, .. } = &arrived.landed;
        self.under_way.remove(sop_instance);
        self.in_use.remove(&arrived.at.key());
        if arrived.is_earlier
            && let Some(left) = self.earlier.get_mut(study_uid)
        {
            *left -= 1;
            if *left == 0 {
                self.earlier.remove(study_uid);
            }
        }
    }

    /// One data set in a file is done. The file's number when it is to be removed.
    fn one_less_in(&mut self, number: u64) -> Option<u64> {
        let file = self.files.get_mut(&number)?;
        file.left = file.left.saturating_sub(1);
        self.goes_if_spent(number)
    }

    /// A file that is not appended to any more and of which all is done is to be removed.
    fn goes_if_spent(&mut self, number: u64) -> Option<u64> {
        let file = self.files.get_mut(&number)?;
        if file.left > 0 || file.is_open || file.is_going {
            return None;
        }
        file.is_going = true;
        Some(number)
    }

    /// A file is gone.
    fn forget(&mut self, number: u64) {
        if let Some(file) = self.files.remove(&number) {
            self.bytes = self.bytes.saturating_sub(file.bytes);
        }
    }
}

impl Claimed {
    /// What it claims is written: whoever does it gives the claim back.
    fn landed(mut self) {
        self.sop_instance = None;
    }
}

impl Drop for HeldOff {
    fn drop(&mut self) {
        self.inner.state().held_off.remove(&self.study_uid);
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(sop_instance) = self.sop_instance.take() {
            self.inner.state().under_way.remove(&sop_instance);
            self.inner.changed.notify_waiters();
        }
    }
}
