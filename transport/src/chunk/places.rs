//! What a node answers at once, on each connection and on all of them together, and who comes next.
//!
//! All who ask stand in one line, by class and then in the order in which they came, and hold nothing until they
//! are let in. A class stands back while a higher one is at work, on whichever connection, but for its share
//! ([`Turns`]); of those that stand back one answer is under way at a time, all of them together. Who is let in
//! holds its places until its [`Place`] is dropped.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::turns::Turns;
use super::{CHUNK_LEN_MAX, Class, IN_FLIGHT_BYTES_MAX};

#[cfg(test)]
mod tests;

/// What an answer takes at least of what is served at once, in bytes: bounds how many small ones read the disk.
const PLACE_BYTES: usize = 64 << 10;

/// Something for each class, the highest first.
type ByClass = [usize; Class::ALL.len()];

/// How much is served at once, in bytes of answers in flight. A class has what stands at its rank in
/// [`Class::ALL`] together with all lower ones: so a lower class never holds places that a higher one needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// On a connection.
    pub per_connection: [usize; Class::ALL.len()],
    /// In the node; memory is at most the first of them.
    pub total: [usize; Class::ALL.len()],
    /// Answers that may be longer than a chunk, in the node; each may hold 64 MiB.
    pub large_total: [usize; Class::ALL.len()],
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            per_connection: [IN_FLIGHT_BYTES_MAX, 4 * MIB, 3 * MIB, 2 * MIB],
            total: [64 * MIB, 32 * MIB, 24 * MIB, 16 * MIB],
            large_total: [4, 3, 2, 1],
        }
    }
}

/// The places of a node.
pub(super) struct Places {
    started: Instant,
    line: Mutex<Line>,
    /// Told when those who wait may have another time to wait for.
    changed: Notify,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        let places = |bytes: ByClass| bytes.map(|bytes| (bytes / PLACE_BYTES).max(1));
        let line = Line {
            own_most: places(limits.per_connection),
            all_most: places(limits.total),
            large_most: limits.large_total.map(|answers| answers.max(1)),
            turns: Turns::default(),
            arrivals: 0,
            waiting: BTreeMap::new(),
            own: BTreeMap::new(),
            all: ByClass::default(),
            large: ByClass::default(),
        };
        Self { started: Instant::now(), line: Mutex::new(line), changed: Notify::new() }
    }

    /// Waits for the places of an answer of at most `len_max` bytes on a connection, which has a number of its own.
    /// Dropping the future leaves the line.
    pub(super) async fn take(&self, connection: u64, class: Class, len_max: usize) -> Place<'_> {
        let places = len_max.min(CHUNK_LEN_MAX).div_ceil(PLACE_BYTES).max(1);
        let asked = Asked { connection, class, places, is_large: len_max > CHUNK_LEN_MAX };
        let (let_in, begins) = oneshot::channel();
        let number = self.change(|line, _| line.line_up(asked, let_in));
        let mut place = Place { of: self, asked, number, begins, began: None };
        let began = (&mut place.begins).await;
        place.began = began.ok();
        place
    }

    /// Lets in those whose time has come, for ever: all else happens as others come and go.
    pub(super) async fn keep_time(&self) -> Infallible {
        loop {
            match self.look() {
                Some(wake) => tokio::select! {
                    biased;
                    () = self.changed.notified() => {}
                    () = sleep_until(wake) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Lets in who may begin now. Returns when somebody may though nothing changes.
    fn look(&self) -> Option<Instant> {
        let mut line = self.lock();
        let now = self.started.elapsed();
        line.let_in(now);
        line.wake(now).map(|wake| self.started + wake)
    }

    /// Changes the line, and lets in who may begin then.
    fn change<T>(&self, change: impl FnOnce(&mut Line, Duration) -> T) -> T {
        let mut line = self.lock();
        let now = self.started.elapsed();
        let changed = change(&mut line, now);
        line.let_in(now);
        if !line.waiting.is_empty() {
            self.changed.notify_one();
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of one answer, from when it was let in until this is dropped.
pub(super) struct Place<'a> {
    of: &'a Places,
    asked: Asked,
    number: u64,
    begins: oneshot::Receiver<Duration>,
    began: Option<Duration>,
}

impl Place<'_> {
    /// The answer is of a higher class from here on.
    pub(super) fn rise(&mut self, class: Class) {
        let was = self.asked;
        self.asked.class = class;
        let is = self.asked;
        self.of.change(|line, _| {
            line.release(was);
            line.hold(is);
        });
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Self { of, asked, number, begins, began } = self;
        of.change(|line, now| {
            if line.waiting.remove(&(asked.class, *number)).is_none() {
                // It was let in, whether or not it came to see it.
                let began = began.or_else(|| begins.try_recv().ok()).unwrap_or(now);
                line.release(*asked);
                line.turns.ended(now, asked.class, now.saturating_sub(began));
            }
        });
    }
}

/// What an answer needs.
#[derive(Debug, Clone, Copy)]
struct Asked {
    connection: u64,
    class: Class,
    places: usize,
    is_large: bool,
}

struct Waiting {
    asked: Asked,
    let_in: oneshot::Sender<Duration>,
}

/// Who waits, and who was let in. Time is since the places were made.
struct Line {
    /// The most that may be held: on a connection, in all, and of answers longer than a chunk.
    own_most: ByClass,
    all_most: ByClass,
    large_most: ByClass,
    turns: Turns,
    arrivals: u64,
    waiting: BTreeMap<(Class, u64), Waiting>,
    /// What is held: on each connection that holds any, in all, and of answers longer than a chunk.
    own: BTreeMap<u64, ByClass>,
    all: ByClass,
    large: ByClass,
}

impl Line {
    fn line_up(&mut self, asked: Asked, let_in: oneshot::Sender<Duration>) -> u64 {
        self.arrivals += 1;
        self.waiting.insert((asked.class, self.arrivals), Waiting { asked, let_in });
        self.arrivals
    }

    fn let_in(&mut self, now: Duration) {
        while let Some(next) = self.next(now) {
            let Some(Waiting { asked, let_in }) = self.waiting.remove(&next) else { return };
            self.hold(asked);
            // Who gives up leaves the line first, so it is heard.
            let _ = let_in.send(now);
        }
    }

    /// Who is let in next, if anybody.
    fn next(&self, now: Duration) -> Option<(Class, u64)> {
        let mut behind = BTreeSet::new();
        // A class that may begin below one that is at work does so by its share, and then goes first: higher ones that
        // always fill all places would leave it none.
        for class in Class::ALL.into_iter().rev().filter(|class| self.may_begin(now, *class)) {
            for (next, Waiting { asked, .. }) in self.waiting_in(class) {
                // Those longer than a chunk wait for each other, for long maybe: they hold up nobody else.
                if asked.is_large && !fits(&self.large, &self.large_most, class, 1) {
                    continue;
                }
                // Who comes first on a connection is not overtaken there, nor in the node, by who needs less.
                let own = self.own.get(&asked.connection).copied().unwrap_or_default();
                if behind.contains(&asked.connection) || !fits(&own, &self.own_most, class, asked.places) {
                    behind.insert(asked.connection);
                    continue;
                }
                return fits(&self.all, &self.all_most, class, asked.places).then_some(*next);
            }
        }
        None
    }

    /// Whether a class may begin an answer, as far as the others go.
    fn may_begin(&self, now: Duration, class: Class) -> bool {
        let is_busy = |class: Class| self.all[class.rank()] > 0 || self.waiting_in(class).next().is_some();
        self.turns.ahead_of(now, class, is_busy).is_none_or(|higher| {
            let is_alone = self.all.iter().skip(higher.rank() + 1).all(|held| *held == 0);
            is_alone && self.turns.has_share(now, class)
        })
    }

    fn waiting_in(&self, class: Class) -> impl Iterator<Item = (&(Class, u64), &Waiting)> {
        self.waiting.range((class, 0)..=(class, u64::MAX))
    }

    /// When somebody may begin though nobody comes or goes.
    fn wake(&self, now: Duration) -> Option<Duration> {
        if self.waiting.is_empty() { None } else { self.turns.wakes().filter(|at| *at > now).min() }
    }

    fn hold(&mut self, asked: Asked) {
        let rank = asked.class.rank();
        self.all[rank] += asked.places;
        self.large[rank] += usize::from(asked.is_large);
        self.own.entry(asked.connection).or_default()[rank] += asked.places;
    }

    fn release(&mut self, asked: Asked) {
        let rank = asked.class.rank();
        self.all[rank] -= asked.places;
        self.large[rank] -= usize::from(asked.is_large);
        if let Entry::Occupied(mut own) = self.own.entry(asked.connection) {
            own.get_mut()[rank] -= asked.places;
            if own.get().iter().all(|held| *held == 0) {
                own.remove();
            }
        }
    }
}

/// Whether a class may hold `more` beside what is held, or all there is.
fn fits(held: &ByClass, most: &ByClass, class: Class, more: usize) -> bool {
    (0..=class.rank()).all(|rank| {
        let here_and_below: usize = held.iter().skip(rank).sum();
        here_and_below + more.min(most[rank]) <= most[rank]
    })
}
