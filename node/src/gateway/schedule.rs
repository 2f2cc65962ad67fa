//! Which instance goes to which centre, and when: rules without I/O or a clock of their own.
//!
//! First come, first sent, several at once, all to one centre while it answers: the home centre if the
//! configuration names one, and never one that it leaves out. An instance whose centre does not answer goes to
//! another at once, and in the end so does one whose centre has it and does not make it safe; one that a centre
//! cannot take now waits on its own and holds up nobody; one that no centre takes is set apart.
//! An outcome that is not known is no outcome: the instance is sent again, which costs the mesh nothing.
//!
//! ```text
//!            ┌── lost, not now ──┐                     ┌─ its centre is gone before it is safe ─┐
//! waiting ───┴──> in flight ─────┴──> pushed ──> safe ─┼─> dropped from the spool               │
//!    ^              │                   └──────────────┼────────────────────────────────────────┤
//!    │              └──> rejected (kept, shown)        └─ not safe any more, when asked again ──┘
//!    └───────────────────────────────────────────────────────────────────────────────────────────
//! ```
//! What the mesh has purged is dropped wherever it stands: it is rejected until it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maillage_host::UnixMillis;
use maillage_store::Hash;
use tokio::time::Instant;

mod choice;
mod safety;

use choice::Centre;
use safety::ASK;

/// Instances under way at once: a CT's slices of half a megabyte then fill 100 Mb/s over 40 ms of round trip.
const IN_FLIGHT_MAX: usize = 8;
/// … and their bytes, for memory: what is larger goes alone.
const IN_FLIGHT_BYTES: u64 = 64 << 20;
/// An instance that could not be taken is offered again after this long, twice as long each time …
const AGAIN: Duration = Duration::from_secs(1);
/// … but no longer than this.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// The centre of what the last process left: any may have it, or none.
const UNKNOWN: u64 = 0;

/// Why that is rejected which the mesh has purged.
const PURGED: &str = "purged";

/// An instance by its UID and the bytes of its data set: another data set under the UID is another instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// SOP Instance UID.
    pub(crate) sop_instance: String,
    /// BLAKE3 of its data set.
    pub(crate) dataset: Hash,
}

impl Key {
    /// None under the UID comes before it.
    fn least(sop_instance: &str) -> Self {
        Self { sop_instance: sop_instance.to_owned(), dataset: Hash([0; 32]) }
    }
}

/// What the spool knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spooled {
    /// Study Instance UID.
    pub(crate) study: String,
    /// Series Instance UID.
    pub(crate) series: String,
    /// Address of its manifest.
    pub(crate) manifest: Hash,
    /// Bytes of its data set.
    pub(crate) bytes: u64,
    /// When it came.
    pub(crate) received_at: UnixMillis,
    /// Who sent it.
    pub(crate) source: String,
    /// Whether other bytes had its UID before.
    pub(crate) apart: bool,
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// To be sent, from then on.
    Waiting(Instant),
    /// Under way to this centre.
    InFlight(u64),
    /// A centre has it.
    Pushed {
        /// Which.
        centre: u64,
        /// Since when.
        at: Instant,
        /// When to ask whether it is safe.
        ask_at: Instant,
        /// How often that was asked.
        asked: u32,
    },
    /// Two zones have it, said a quorum then.
    Safe(Instant),
    /// No centre takes it.
    Rejected,
}

#[derive(Debug)]
struct Entry {
    spooled: Spooled,
    state: State,
    order: u64,
    failures: u32,
    /// The centre that has had it for very long and has not made it safe: another is preferred.
    stale_at: Option<u64>,
    /// Why it is rejected.
    reason: String,
    /// Other bytes were seen under its UID.
    contested: bool,
    /// When a centre last said, of what is safe or rejected, whether it was purged.
    asked_again: Option<Instant>,
}

/// How many are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// To be sent.
    pub(crate) waiting: u64,
    /// Under way.
    pub(crate) in_flight: u64,
    /// At a centre, not known to be safe.
    pub(crate) pushed: u64,
    /// Safe.
    pub(crate) safe: u64,
    /// Taken by no centre.
    pub(crate) rejected: u64,
    /// Bytes of the data sets of all.
    pub(crate) bytes: u64,
    /// When the oldest of those came that are not safe, rejected ones left out.
    pub(crate) oldest: Option<UnixMillis>,
}

impl Counts {
    /// Instances by state, as metrics call them.
    pub(crate) fn by_state(&self) -> [(&'static str, u64); 5] {
        [
            ("waiting", self.waiting),
            ("in-flight", self.in_flight),
            ("pushed", self.pushed),
            ("safe", self.safe),
            ("rejected", self.rejected),
        ]
    }
}

/// The schedule.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    home: Option<u64>,
    /// The only centres that instances may go to, where not all are.
    only: Option<BTreeSet<u64>>,
    entries: BTreeMap<Key, Entry>,
    /// What waits, by when it may go, then by when it came.
    queue: BTreeSet<(Instant, u64, Key)>,
    centres: BTreeMap<u64, Centre>,
    current: Option<u64>,
    next_order: u64,
    in_flight: usize,
    in_flight_bytes: u64,
    bytes: u64,
    /// When the latest came of all that has been here.
    latest: Option<UnixMillis>,
    /// When a centre last said what is safe.
    judged_at: Option<Instant>,
}

impl Schedule {
    /// The centre that is preferred, if the mesh knows it.
    pub(crate) fn set_home(&mut self, home: Option<u64>) {
        self.home = home;
    }

    /// The only centres that instances may go to from now on; none for all.
    pub(crate) fn set_only(&mut self, only: Option<BTreeSet<u64>>) {
        self.only = only;
    }

    /// An instance in the spool; false when it is known. One that came again is as good as new: the mesh may have purged what
    /// came before, and have it no more.
    pub(crate) fn add(&mut self, key: Key, spooled: Spooled, now: Instant) -> bool {
        if let Some(known) = self.entries.get_mut(&key) {
            if spooled.received_at <= known.spooled.received_at {
                return false;
            }
            if matches!(known.state, State::InFlight(_)) {
                self.latest = self.latest.max(Some(spooled.received_at));
                known.spooled = spooled;
                return false;
            }
            self.remove(&key);
        }
        let order = self.next_order;
        self.next_order += 1;
        self.bytes += spooled.bytes;
        self.latest = self.latest.max(Some(spooled.received_at));
        self.queue.insert((now, order, key.clone()));
        let entry = Entry {
            spooled,
            state: State::Waiting(now),
            order,
            failures: 0,
            stale_at: None,
            reason: String::new(),
            contested: false,
            asked_again: None,
        };
        self.entries.insert(key, entry);
        true
    }

    /// An instance that the last process left. It is sent unless it is found to be safe: the most of them are.
    pub(crate) fn add_left(&mut self, key: Key, spooled: Spooled, now: Instant) {
        if self.add(key.clone(), spooled, now)
            && let Some(entry) = self.entries.get_mut(&key)
        {
            self.queue.remove(&(now, entry.order, key));
            entry.state = State::Pushed { centre: UNKNOWN, at: now, ask_at: now, asked: 0 };
        }
    }

    /// Forgets an instance that left the spool. What was known of it.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Spooled> {
        self.stand_aside(key);
        let entry = self.entries.remove(key)?;
        self.bytes -= entry.spooled.bytes;
        // Whether others contest what is left under its UID is to be seen anew.
        let left = self.entries.range_mut(Key::least(&key.sop_instance)..);
        for (_, other) in left.take_while(|(other, _)| other.sop_instance == key.sop_instance) {
            other.contested = false;
        }
        Some(entry.spooled)
    }

    /// Takes an instance out of what waits and what is under way.
    fn stand_aside(&mut self, key: &Key) {
        let Some(entry) = self.entries.get(key) else { return };
        let (state, order, bytes) = (entry.state, entry.order, entry.spooled.bytes);
        match state {
            State::Waiting(at) => {
                self.queue.remove(&(at, order, key.clone()));
            }
            State::InFlight(_) => self.landed(bytes),
            State::Pushed { .. } | State::Safe(_) | State::Rejected => {}
        }
    }

    /// What is known of an instance.
    pub(crate) fn get(&self, key: &Key) -> Option<(&Spooled, State)> {
        self.entries.get(key).map(|entry| (&entry.spooled, entry.state))
    }

    /// The instance that a SOP Instance UID stands for, and where it is.
    pub(crate) fn named(&self, sop_instance: &str) -> Option<(&Key, &Spooled, State)> {
        let from = Key::least(sop_instance);
        let of_it = self.entries.range(from..).take_while(|(key, _)| key.sop_instance == sop_instance);
        of_it.filter(|(_, entry)| !entry.spooled.apart).map(|(key, entry)| (key, &entry.spooled, entry.state)).next()
    }

    /// The next instance to send, and to which centre. It counts as under way from now on.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Key, u64)> {
        let (at, _, key) = self.queue.first()?;
        if *at > now || self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        let Entry { spooled: Spooled { bytes, .. }, stale_at, .. } = self.entries.get(key)?;
        let (bytes, stale_at) = (*bytes, *stale_at);
        if self.in_flight > 0 && self.in_flight_bytes.saturating_add(bytes) > IN_FLIGHT_BYTES {
            return None;
        }
        let centre = self.choose(now, stale_at)?;
        let (_, _, key) = self.queue.pop_first()?;
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
        if stale_at.is_none() {
            self.current = Some(centre);
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = State::InFlight(centre);
        }
        Some((key, centre))
    }

    /// When [`Schedule::next`] may give something that it does not give now, if nothing else happens.
    pub(crate) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let (first, _, _) = self.queue.first()?;
        let of_centres = self.centres.values().filter(|known| known.up_since.is_some());
        let of_centres = of_centres.filter_map(|known| known.not_before).filter(|at| *at > now).min();
        if *first > now { Some(*first) } else { of_centres }
    }

    /// A centre has an instance.
    pub(crate) fn stored(&mut self, key: &Key, centre: u64, now: Instant) {
        self.answered(centre);
        if let Some(entry) = self.land(key) {
            entry.state = State::Pushed { centre, at: now, ask_at: now + ASK, asked: 0 };
            entry.failures = 0;
            entry.stale_at = None;
        }
    }

    /// No centre will take an instance.
    pub(crate) fn rejected(&mut self, key: &Key, centre: Option<u64>, reason: &str) {
        if let Some(centre) = centre {
            self.answered(centre);
        }
        if let Some(entry) = self.land(key) {
            entry.state = State::Rejected;
            reason.clone_into(&mut entry.reason);
        }
    }

    /// A centre cannot take an instance now.
    pub(crate) fn not_now(&mut self, key: &Key, centre: u64, now: Instant) {
        if let Some(known) = self.centres.get_mut(&centre) {
            known.cannot_now(now);
        }
        self.wait(key, now, later);
    }

    /// An instance cannot be read here just now, for which no centre is to blame.
    pub(crate) fn unread(&mut self, key: &Key, now: Instant) {
        self.wait(key, now, later);
    }

    /// A centre said of what came before that it was purged, and it came again meanwhile.
    pub(crate) fn came_again(&mut self, key: &Key, centre: u64, now: Instant) {
        self.answered(centre);
        self.wait(key, now, |_| Duration::ZERO);
    }

    /// A centre did not answer for an instance, which may or may not be there.
    pub(crate) fn lost(&mut self, key: &Key, centre: u64, now: Instant) {
        if let Some(known) = self.centres.get_mut(&centre) {
            known.penalise(now);
            // Until it answers a greeting again; another centre gets the instance at once.
            self.down(centre, now);
        }
        self.wait(key, now, |_| Duration::ZERO);
    }

    fn wait(&mut self, key: &Key, now: Instant, pause: impl Fn(u32) -> Duration) {
        let Some(entry) = self.land(key) else { return };
        let at = now + pause(entry.failures);
        entry.failures += 1;
        entry.state = State::Waiting(at);
        let order = entry.order;
        self.queue.insert((at, order, key.clone()));
    }

    /// Takes an instance out of those under way.
    fn land(&mut self, key: &Key) -> Option<&mut Entry> {
        let bytes = match self.entries.get(key) {
            Some(Entry { state: State::InFlight(_), spooled, .. }) => spooled.bytes,
            _ => return None,
        };
        self.landed(bytes);
        self.entries.get_mut(key)
    }

    fn landed(&mut self, bytes: u64) {
        self.in_flight -= 1;
        self.in_flight_bytes -= bytes;
    }

    /// Tries anew what was rejected. How many.
    pub(crate) fn retry(&mut self, now: Instant) -> usize {
        let mut again = 0;
        for (key, entry) in &mut self.entries {
            if entry.state == State::Rejected {
                entry.state = State::Waiting(now);
                self.queue.insert((now, entry.order, key.clone()));
                again += 1;
            }
        }
        again
    }

    /// Those of some studies of which something is still to be sent.
    pub(crate) fn open_of(&self, studies: &BTreeSet<String>) -> BTreeSet<String> {
        if studies.is_empty() {
            return BTreeSet::new();
        }
        let open = self.entries.values().filter(|entry| matches!(entry.state, State::Waiting(_) | State::InFlight(_)));
        let open: BTreeSet<&String> = open.filter_map(|entry| studies.get(&entry.spooled.study)).collect();
        open.into_iter().cloned().collect()
    }

    /// Bytes of all data sets here.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many are where.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts { bytes: self.bytes, ..Counts::default() };
        for entry in self.entries.values() {
            let count = match entry.state {
                State::Waiting(_) => &mut counts.waiting,
                State::InFlight(_) => &mut counts.in_flight,
                State::Pushed { centre: UNKNOWN, .. } => &mut counts.waiting,
                State::Pushed { .. } => &mut counts.pushed,
                State::Safe(_) => &mut counts.safe,
                State::Rejected => &mut counts.rejected,
            };
            *count += 1;
            if !matches!(entry.state, State::Safe(_) | State::Rejected) {
                let at = entry.spooled.received_at;
                counts.oldest = Some(counts.oldest.map_or(at, |oldest: UnixMillis| UnixMillis(oldest.0.min(at.0))));
            }
        }
        counts
    }

    /// When the latest came of all that has been here.
    pub(crate) fn latest(&self) -> Option<UnixMillis> {
        self.latest
    }

    /// Whether an instance is to be dropped: `Some(true)` since it was purged, `Some(false)` since it is safe.
    pub(crate) fn goes(&self, key: &Key) -> Option<bool> {
        let entry = self.entries.get(key)?;
        match entry.state {
            State::Safe(_) => Some(false),
            State::Rejected if entry.reason == PURGED => Some(true),
            _ => None,
        }
    }

    /// When each came that is here.
    pub(crate) fn received(&self) -> impl Iterator<Item = UnixMillis> {
        self.entries.values().map(|entry| entry.spooled.received_at)
    }

    /// Up to `limit` rejected instances, and why.
    pub(crate) fn rejects(&self, limit: usize) -> Vec<(Key, Spooled, String)> {
        let rejected = self.entries.iter().filter(|(_, entry)| entry.state == State::Rejected).take(limit);
        rejected.map(|(key, entry)| (key.clone(), entry.spooled.clone(), entry.reason.clone())).collect()
    }
}

/// How long what failed so often waits.
fn later(failures: u32) -> Duration {
    AGAIN.saturating_mul(1 << failures.min(10)).min(AGAIN_MAX)
}

#[cfg(test)]
mod tests;
