//! Which instance goes to which centre, and when: rules without I/O or a clock of their own.
//!
//! First come, first sent, several at once, all to one centre while it answers: the home centre if the
//! configuration names one. An instance whose centre does not answer goes to another at once; one that a
//! centre cannot take now waits on its own and holds up nobody; one that no centre takes is set apart.
//! An outcome that is not known is no outcome: the instance is sent again, which costs the mesh nothing.
//!
//! ```text
//!            ┌── lost, not now ──┐                     ┌─ its centre is gone before it is safe ─┐
//! waiting ───┴──> in flight ─────┴──> pushed ──> safe ─┼─> dropped from the spool               │
//!    ^              │                   └──────────────┼────────────────────────────────────────┤
//!    │              └──> rejected (kept, shown)        └─ not safe any more, when asked again ──┘
//!    └───────────────────────────────────────────────────────────────────────────────────────────
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maillage_host::UnixMillis;
use maillage_store::Hash;
use tokio::time::Instant;

/// Instances under way at once: a CT's slices of half a megabyte then fill 100 Mb/s over 40 ms of round trip.
const IN_FLIGHT_MAX: usize = 8;
/// … and their bytes, for memory: what is larger goes alone.
const IN_FLIGHT_BYTES: u64 = 64 << 20;
/// A centre that failed is left alone for so long, twice as long each time in a row …
const PENALTY: Duration = Duration::from_secs(1);
/// … but no longer than this: it may be the only one.
const PENALTY_MAX: Duration = Duration::from_secs(15);
/// An instance that could not be taken is offered again after this long, twice as long each time …
const AGAIN: Duration = Duration::from_secs(1);
/// … but no longer than this.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// A centre that cannot take so many in a row, by its own word, is like one that does not answer: full.
const NOT_NOW_MAX: u32 = 3;
/// A better centre is gone back to once it has answered for so long: one that comes and goes is not followed.
const STEADY: Duration = Duration::from_secs(10);
/// What was sent to a centre that is gone since, and is not safe, is sent to another after this long: a reader
/// waits for it. A restart is shorter.
const RESEND: Duration = Duration::from_secs(4);
/// The same where the centre is there, and should have seen to it.
const RESEND_PRESENT: Duration = Duration::from_secs(600);
/// The centre of what the last process left: any may have it, or none.
const UNKNOWN: u64 = 0;
/// The first question whether an instance is safe comes after this long, each next after twice as long …
const ASK: Duration = Duration::from_secs(1);
/// … but no longer than this.
const ASK_MAX: Duration = Duration::from_secs(30);

/// An instance by its UID and the bytes of its data set: another data set under the UID is another instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// SOP Instance UID.
    pub(crate) sop_instance: String,
    /// BLAKE3 of its data set.
    pub(crate) dataset: Hash,
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
    /// Why it is rejected.
    reason: String,
}

#[derive(Debug, Default)]
struct Centre {
    up_since: Option<Instant>,
    /// When it was last seen to go.
    down_since: Option<Instant>,
    in_touch: bool,
    not_before: Option<Instant>,
    failures: u32,
    not_now: u32,
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

/// The schedule.
#[derive(Debug)]
pub(crate) struct Schedule {
    home: Option<u64>,
    entries: BTreeMap<Key, Entry>,
    /// What waits, by when it may go, then by when it came.
    queue: BTreeSet<(Instant, u64, Key)>,
    centres: BTreeMap<u64, Centre>,
    current: Option<u64>,
    next_order: u64,
    in_flight: usize,
    in_flight_bytes: u64,
    bytes: u64,
    /// When a centre last said what is safe.
    judged_at: Option<Instant>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            home: None,
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
            centres: BTreeMap::new(),
            current: None,
            next_order: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            bytes: 0,
            judged_at: None,
        }
    }
}

impl Schedule {
    /// The centre that is preferred, if the mesh knows it.
    pub(crate) fn set_home(&mut self, home: Option<u64>) {
        self.home = home;
    }

    /// A new instance in the spool; false when it is known.
    pub(crate) fn add(&mut self, key: Key, spooled: Spooled, now: Instant) -> bool {
        if self.entries.contains_key(&key) {
            return false;
        }
        let order = self.next_order;
        self.next_order += 1;
        self.bytes += spooled.bytes;
        self.queue.insert((now, order, key.clone()));
        let entry = Entry { spooled, state: State::Waiting(now), order, failures: 0, reason: String::new() };
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

    /// Forgets an instance that left the spool.
    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.bytes -= entry.spooled.bytes;
        match entry.state {
            State::Waiting(at) => {
                self.queue.remove(&(at, entry.order, key.clone()));
            }
            State::InFlight(_) => self.landed(entry.spooled.bytes),
            State::Pushed { .. } | State::Safe(_) | State::Rejected => {}
        }
    }

    /// What is known of an instance.
    pub(crate) fn get(&self, key: &Key) -> Option<(&Spooled, State)> {
        self.entries.get(key).map(|entry| (&entry.spooled, entry.state))
    }

    /// The instance that a SOP Instance UID stands for, and where it is.
    pub(crate) fn named(&self, sop_instance: &str) -> Option<(&Key, &Spooled, State)> {
        let from = Key { sop_instance: sop_instance.to_owned(), dataset: Hash([0; 32]) };
        let of_it = self.entries.range(from..).take_while(|(key, _)| key.sop_instance == sop_instance);
        of_it.filter(|(_, entry)| !entry.spooled.apart).map(|(key, entry)| (key, &entry.spooled, entry.state)).next()
    }

    /// A centre answers.
    pub(crate) fn up(&mut self, centre: u64, in_touch: bool, now: Instant) {
        let known = self.centres.entry(centre).or_default();
        known.in_touch = in_touch;
        if known.up_since.is_none() {
            known.up_since = Some(now);
            known.down_since = None;
        }
    }

    /// A centre does not answer.
    pub(crate) fn down(&mut self, centre: u64, now: Instant) {
        let known = self.centres.entry(centre).or_default();
        if known.up_since.take().is_some() || known.down_since.is_none() {
            known.down_since = Some(now);
        }
    }

    /// Whether a centre answers.
    pub(crate) fn is_up(&self, centre: u64) -> bool {
        self.centres.get(&centre).is_some_and(|known| known.up_since.is_some())
    }

    /// The centres that answer, the one in use first.
    pub(crate) fn answering(&self) -> Vec<u64> {
        let up = self.centres.iter().filter(|(_, known)| known.up_since.is_some()).map(|(site, _)| *site);
        let mut up: Vec<u64> = up.collect();
        up.sort_by_key(|site| (Some(*site) != self.current, *site));
        up
    }

    /// The centre in use.
    pub(crate) fn current(&self) -> Option<u64> {
        self.current.filter(|site| self.is_up(*site))
    }

    /// The next instance to send, and to which centre. It counts as under way from now on.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(Key, u64)> {
        let (at, _, key) = self.queue.first()?;
        if *at > now || self.in_flight >= IN_FLIGHT_MAX {
            return None;
        }
        let bytes = self.entries.get(key)?.spooled.bytes;
        if self.in_flight > 0 && self.in_flight_bytes.saturating_add(bytes) > IN_FLIGHT_BYTES {
            return None;
        }
        let centre = self.choose(now)?;
        let (_, _, key) = self.queue.pop_first()?;
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
        self.current = Some(centre);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = State::InFlight(centre);
        }
        Some((key, centre))
    }

    /// The best centre that answers and is not left alone: one that hears a quorum, then home, then the one in
    /// use, then any. A better one than the one in use must have answered for a while.
    fn choose(&self, now: Instant) -> Option<u64> {
        let able = |site: u64, known: &Centre| {
            known.up_since.is_some_and(|since| {
                Some(site) == self.current || self.current.is_none_or(|other| !self.is_able(other, now)) || {
                    now.duration_since(since) >= STEADY
                }
            }) && known.not_before.is_none_or(|at| at <= now)
        };
        let rank = |site: u64, known: &Centre| {
            (!known.in_touch, Some(site) != self.home, Some(site) != self.current, site)
        };
        let able = self.centres.iter().filter(|(site, known)| able(**site, known));
        able.min_by_key(|(site, known)| rank(**site, known)).map(|(site, _)| *site)
    }

    fn is_able(&self, site: u64, now: Instant) -> bool {
        let able = |known: &Centre| known.up_since.is_some() && known.not_before.is_none_or(|at| at <= now);
        self.centres.get(&site).is_some_and(able)
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
            known.not_now += 1;
            if known.not_now >= NOT_NOW_MAX {
                penalise(known, now);
            }
        }
        self.wait(key, now, |failures| AGAIN.saturating_mul(1 << failures.min(10)).min(AGAIN_MAX));
    }

    /// A centre did not answer for an instance, which may or may not be there.
    pub(crate) fn lost(&mut self, key: &Key, centre: u64, now: Instant) {
        if let Some(known) = self.centres.get_mut(&centre) {
            penalise(known, now);
        }
        // Until it answers a greeting again; another centre gets the instance at once.
        self.down(centre, now);
        self.wait(key, now, |_| Duration::ZERO);
    }

    fn answered(&mut self, centre: u64) {
        if let Some(known) = self.centres.get_mut(&centre) {
            (known.failures, known.not_now, known.not_before) = (0, 0, None);
        }
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

    /// Up to `limit` instances of which to ask whether they are safe, with the centre that has each, first sent
    /// first.
    pub(crate) fn to_ask(&self, now: Instant, limit: usize) -> Vec<(Key, u64)> {
        let due = self.entries.iter().filter_map(|(key, entry)| match entry.state {
            State::Pushed { centre, ask_at, .. } if ask_at <= now => Some((entry.order, key, centre)),
            _ => None,
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        due.into_iter().take(limit).map(|(_, key, centre)| (key.clone(), centre)).collect()
    }

    /// An instance is safe.
    pub(crate) fn safe(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key)
            && matches!(entry.state, State::Pushed { .. })
        {
            entry.state = State::Safe(now);
        }
    }

    /// An instance is not safe. It is sent again when whoever took it is gone, or should have seen to it.
    pub(crate) fn not_safe(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match &mut entry.state {
            State::Pushed { centre: UNKNOWN, .. } => {
                entry.state = State::Waiting(now);
                self.queue.insert((now, entry.order, key.clone()));
            }
            State::Pushed { ask_at, asked, .. } => {
                *ask_at = now + ASK.saturating_mul(1 << (*asked).min(10)).min(ASK_MAX);
                *asked += 1;
            }
            // It was, and is no more: the mesh has lost a copy, and may have to be given it again.
            State::Safe(_) => {
                entry.state = State::Waiting(now);
                self.queue.insert((now, entry.order, key.clone()));
            }
            State::Waiting(_) | State::InFlight(_) | State::Rejected => {}
        }
    }

    /// A centre said what is safe.
    pub(crate) fn judged(&mut self, now: Instant) {
        self.judged_at = Some(now);
    }

    /// Sends again what is not safe and whose centre is gone, or has had it for very long. How many.
    pub(crate) fn resend(&mut self, now: Instant) -> usize {
        let mut again = Vec::new();
        for (key, entry) in &self.entries {
            let State::Pushed { centre, at, .. } = entry.state else { continue };
            let gone_since = match self.centres.get(&centre) {
                // Not while it is being asked: most of what was left is safe.
                _ if centre == UNKNOWN => Some(self.judged_at.map_or(at, |judged_at| judged_at.max(at))),
                Some(known) if known.up_since.is_some() => None,
                Some(known) => known.down_since.map(|since| since.max(at)),
                None => Some(at),
            };
            let is_due = match gone_since {
                Some(since) => now.duration_since(since) >= RESEND && self.centres.keys().any(|site| self.is_up(*site)),
                None => now.duration_since(at) >= RESEND_PRESENT,
            };
            if is_due {
                again.push(key.clone());
            }
        }
        for key in &again {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.state = State::Waiting(now);
                self.queue.insert((now, entry.order, key.clone()));
            }
        }
        again.len()
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

    /// Up to `limit` safe instances, those that have been so for longest first, that may go: since `keep`, or,
    /// while more than `bytes_max` bytes are here, all.
    pub(crate) fn to_drop(&self, now: Instant, keep: Duration, bytes_max: u64, limit: usize) -> Vec<Key> {
        let safe = self.entries.iter().filter_map(|(key, entry)| match entry.state {
            State::Safe(since) => Some((since, entry.order, key, entry.spooled.bytes)),
            _ => None,
        });
        let mut safe: Vec<_> = safe.collect();
        safe.sort_unstable();
        let (mut bytes, mut going) = (self.bytes, Vec::new());
        for (since, _, key, len) in safe {
            if going.len() == limit || (now.duration_since(since) < keep && bytes <= bytes_max) {
                break;
            }
            bytes -= len;
            going.push(key.clone());
        }
        going
    }

    /// Whether something of a study is still to be sent.
    pub(crate) fn is_open(&self, study: &str) -> bool {
        let mut entries = self.entries.values();
        entries.any(|entry| {
            matches!(entry.state, State::Waiting(_) | State::InFlight(_)) && entry.spooled.study == study
        })
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

    /// Up to `limit` rejected instances, and why.
    pub(crate) fn rejects(&self, limit: usize) -> Vec<(Key, Spooled, String)> {
        let rejected = self.entries.iter().filter(|(_, entry)| entry.state == State::Rejected).take(limit);
        rejected.map(|(key, entry)| (key.clone(), entry.spooled.clone(), entry.reason.clone())).collect()
    }
}

fn penalise(known: &mut Centre, now: Instant) {
    let pause = PENALTY.saturating_mul(1 << known.failures.min(10)).min(PENALTY_MAX);
    // Several under way at once fail at once: that is one failure.
    if known.not_before.is_none_or(|at| at <= now) {
        known.failures += 1;
        known.not_before = Some(now + pause);
    }
    known.not_now = 0;
}

#[cfg(test)]
mod tests;
