//! The scrub: all packs of this site read again and again at a set rate, resumed where it stood.
//!
//! The store reads and judges; here is when: at `storage.scrub_mb_s`, behind whoever waits for the store, one
//! pass in seven days. What a pass finds is brought back by [`repair`](crate::repair), which also hears
//! of what readers find. `scrub.json` says where the pass stands and whether it is paused:
//!
//! ```text
//! {"format":1,"paused":false,"under_way":{…}|null,"last":{…}|null}
//! ```
//! It is no promise to anybody: one that is lost or cannot be read costs a pass from the beginning.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use maillage_host::{Clock, Disk, UnixMillis};
use maillage_store::{ScrubPosition, Scrubbed, Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::node::Node;

/// Its name in the data directory.
const FILE: &str = "scrub.json";
/// The format that this version writes and the only one it reads.
const FORMAT: u32 = 1;
/// Between the beginnings of two passes. At the default of 20 MB/s, 12 TB are read in it; a disk that takes
/// longer is read all the time. Rot is rare, and a month is what others allow.
const PASS_EVERY_MS: u64 = 7 * 24 * 3_600_000;
/// A node that has just started has better to do.
const START_AFTER: Duration = Duration::from_secs(60);
/// Read in one step, before the rate is looked at: a sixth of a second of a hard disk.
const STEP_BYTES: u64 = 4 << 20;
/// How often it is looked whether others still wait for the store, …
const YIELD_LOOK: Duration = Duration::from_millis(20);
/// … and how long they go first: a site that is never idle is scrubbed all the same, at 4 MiB/s or less.
const YIELD_MAX: Duration = Duration::from_secs(1);
/// What is read twice after a crash, at most.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// After an error that is not damage.
const RETRY: Duration = Duration::from_secs(60);
/// The longest sleep until the next pass: the wall clock may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// In the setting, a megabyte is what disk vendors mean.
const MB: u64 = 1_000_000;

/// One pass. Times by this node's clock, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pass {
    pub(crate) began_at: u64,
    /// None while it is under way.
    pub(crate) ended_at: Option<u64>,
    position: ScrubPosition,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Chunks and manifests found damaged.
    pub(crate) found: u64,
    /// Records written anew.
    pub(crate) rewritten: u64,
    /// Packs of which the file was gone.
    pub(crate) lost_packs: u64,
}

/// What is kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    paused: bool,
    under_way: Option<Pass>,
    last: Option<Pass>,
}

impl Default for Record {
    fn default() -> Self {
        Self { format: FORMAT, paused: false, under_way: None, last: None }
    }
}

impl Record {
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.format == FORMAT { Ok(record) } else { Err(format!("format {} is not known", record.format)) }
    }

    fn encode(&self) -> io::Result<Bytes> {
        Ok(serde_json::to_vec(self).map_err(io::Error::other)?.into())
    }

    /// How long until the next pass begins; zero while one is under way or due.
    fn due_in(&self, now: u64) -> Duration {
        let Some(last) = self.last.filter(|_| self.under_way.is_none()) else { return Duration::ZERO };
        // A clock that was set back since says nothing of how long ago it was.
        match now.checked_sub(last.began_at) {
            Some(ago) => Duration::from_millis(PASS_EVERY_MS.saturating_sub(ago)),
            None => Duration::ZERO,
        }
    }
}

/// What it does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// `storage.scrub_mb_s` is 0.
    Off,
    /// Somebody said so.
    Paused,
    /// Reading, or about to.
    Running,
    /// Until the next pass is due.
    Resting,
}

impl Doing {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Resting => "resting",
        }
    }
}

/// The scrub as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScrubStatus {
    pub(crate) doing: Doing,
    /// Bytes a second.
    pub(crate) rate: u64,
    pub(crate) under_way: Option<Pass>,
    pub(crate) last: Option<Pass>,
    /// Damaged chunks that no site has that could be asked.
    pub(crate) unrepaired: u64,
}

impl ScrubStatus {
    /// Since the last pass that read everything ended; `None` for never.
    pub(crate) fn age(&self, now: UnixMillis) -> Option<Duration> {
        let ended_at = self.last.and_then(|pass| pass.ended_at)?;
        Some(Duration::from_millis(now.0.saturating_sub(ended_at)))
    }
}

/// The handle by which the scrub is told what to do. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Scrub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    disk: Disk,
    clock: Clock,
    /// Bytes a second; 0 for off.
    rate: u64,
    state: Mutex<State>,
    /// One writer of the file at a time.
    saving: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    record: Record,
    unrepaired: u64,
    /// Somebody asked for it: it does not wait for the node to settle.
    asked: bool,
}

impl Scrub {
    /// Takes up where the last process stood.
    pub(crate) async fn open(disk: Disk, clock: Clock, mb_s: u64) -> Self {
        let record = match disk.read(FILE).await {
            Ok(bytes) => Record::decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error.to_string()),
        };
        let record = record.unwrap_or_else(|error| {
            tracing::warn!(error, "scrub.json cannot be read: the scrub begins anew");
            Record::default()
        });
        let state = Mutex::new(State { record, unrepaired: 0, asked: false });
        let (saving, changed) = (tokio::sync::Mutex::default(), Notify::new());
        Self(Arc::new(Shared { disk, clock, rate: mb_s.saturating_mul(MB), state, saving, changed }))
    }

    /// What it does, and what it found.
    pub(crate) fn status(&self) -> ScrubStatus {
        let state = self.state();
        let record = &state.record;
        let doing = match (self.0.rate, record.paused) {
            (0, _) => Doing::Off,
            (_, true) => Doing::Paused,
            _ if record.due_in(self.0.clock.now().0).is_zero() => Doing::Running,
            _ => Doing::Resting,
        };
        let (under_way, last, unrepaired) = (record.under_way, record.last, state.unrepaired);
        ScrubStatus { doing, rate: self.0.rate, under_way, last, unrepaired }
    }

    /// Goes on, or begins a pass now if none is under way. Kept over a restart.
    ///
    /// # Errors
    /// When that cannot be written down; it goes on all the same.
    pub(crate) async fn start(&self) -> io::Result<()> {
        {
            let (now, mut state) = (self.0.clock.now().0, self.state());
            (state.record.paused, state.asked) = (false, true);
            state.record.under_way.get_or_insert(Pass { began_at: now, ..Pass::default() });
        }
        self.0.changed.notify_one();
        self.save().await
    }

    /// Stops until [`Scrub::start`], over restarts too.
    ///
    /// # Errors
    /// When that cannot be written down; it stops all the same.
    pub(crate) async fn pause(&self) -> io::Result<()> {
        self.state().record.paused = true;
        self.0.changed.notify_one();
        self.save().await
    }

    /// Notes how many damaged chunks nobody had that could be asked.
    pub(crate) fn set_unrepaired(&self, chunks: u64) {
        self.state().unrepaired = chunks;
    }

    /// Reads packs until `shutdown`.
    pub(crate) async fn run(self, node: Node, shutdown: CancellationToken) {
        if self.0.rate == 0 {
            return;
        }
        let settling = async {
            while !self.state().asked {
                self.0.changed.notified().await
            }
        };
        if shutdown.run_until_cancelled(timeout(START_AFTER, settling)).await.is_none() {
            return;
        }
        let mut saved_at = Instant::now();
        loop {
            let turn = self.turn(&node, &mut saved_at);
            match shutdown.run_until_cancelled(turn).await {
                Some(true) => {}
                _ => break,
            }
        }
        // Where it stands: what was read need not be read again.
        if let Err(error) = self.save().await {
            tracing::debug!(%error, "the scrub's position was not written");
        }
    }

    /// One step, or the wait for the next. False when the store is closed.
    async fn turn(&self, node: &Node, saved_at: &mut Instant) -> bool {
        let Some(position) = self.next_position() else {
            let due_in = self.state().record.due_in(self.0.clock.now().0);
            // Nothing but a word from somebody ends a pause.
            let wait = if self.state().record.paused { LOOK_AGAIN } else { due_in.min(LOOK_AGAIN) };
            let _ = timeout(wait, self.0.changed.notified()).await;
            return true;
        };
        give_way(node.store()).await;
        let began = Instant::now();
        match node.store().scrub(position, STEP_BYTES).await {
            Ok(step) => {
                let ended = step.next.is_none();
                self.note(node.metrics(), &step);
                if ended || saved_at.elapsed() >= SAVE_EVERY {
                    *saved_at = Instant::now();
                    if let Err(error) = self.save().await {
                        tracing::debug!(%error, "the scrub's position was not written");
                    }
                }
                sleep(self.time_of(step.bytes).saturating_sub(began.elapsed())).await;
            }
            Err(StoreError::Closed) => return false,
            Err(error) => {
                tracing::warn!(%error, "the scrub could not go on; it is tried again");
                sleep(RETRY).await;
            }
        }
        true
    }

    /// Where to read next; begins a pass that is due.
    fn next_position(&self) -> Option<ScrubPosition> {
        let (now, mut state) = (self.0.clock.now().0, self.state());
        if state.record.paused || !state.record.due_in(now).is_zero() {
            return None;
        }
        Some(state.record.under_way.get_or_insert(Pass { began_at: now, ..Pass::default() }).position)
    }

    fn note(&self, metrics: &Metrics, step: &Scrubbed) {
        let (bytes, found, rewritten) = (step.bytes, step.damaged.len() as u64, step.rewritten);
        metrics.scrubbed(bytes, found, rewritten);
        let (now, mut state) = (self.0.clock.now().0, self.state());
        let Some(pass) = &mut state.record.under_way else { return };
        pass.bytes += bytes;
        pass.found += found;
        pass.rewritten += rewritten;
        pass.lost_packs += u64::from(step.lost.is_some());
        match step.next {
            Some(next) => pass.position = next,
            None => {
                let done = Pass { ended_at: Some(now), ..*pass };
                let seconds = now.saturating_sub(done.began_at) / 1000;
                tracing::info!(done.bytes, seconds, done.found, done.rewritten, done.lost_packs, "all packs were read");
                (state.record.last, state.record.under_way) = (Some(done), None);
            }
        }
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_micros(bytes.saturating_mul(1_000_000) / self.0.rate.max(1))
    }

    async fn save(&self) -> io::Result<()> {
        let _turn = self.0.saving.lock().await;
        let record = self.state().record.encode()?;
        self.0.disk.replace(FILE, record).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits while others wait for the store, but not for ever.
async fn give_way(store: &Store) {
    let since = Instant::now();
    while store.is_waited_for() && since.elapsed() < YIELD_MAX {
        sleep(YIELD_LOOK).await;
    }
}

#[cfg(test)]
mod tests;
