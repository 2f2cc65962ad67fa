//! Which centre images go to: one that they may go to and that answers, hears a quorum, is home, or is in use already.

use std::time::Duration;

use tokio::time::Instant;

use super::Schedule;

/// A centre that failed is left alone for so long, twice as long each time in a row …
pub(super) const PENALTY: Duration = Duration::from_secs(1);
/// … but no longer than this: it may be the only one.
const PENALTY_MAX: Duration = Duration::from_secs(15);
/// A centre that cannot take so many in a row, by its own word, is like one that does not answer: full.
const NOT_NOW_MAX: u32 = 3;
/// A better centre is gone back to once it has answered for so long: one that comes and goes is not followed.
pub(super) const STEADY: Duration = Duration::from_secs(10);

/// A centre, as far as it decides where images go.
#[derive(Debug, Default)]
pub(super) struct Centre {
    pub(super) up_since: Option<Instant>,
    /// When it was last seen to go.
    pub(super) down_since: Option<Instant>,
    in_touch: bool,
    pub(super) not_before: Option<Instant>,
    failures: u32,
    not_now: u32,
}

impl Centre {
    /// It failed.
    pub(super) fn penalise(&mut self, now: Instant) {
        let pause = PENALTY.saturating_mul(1 << self.failures.min(10)).min(PENALTY_MAX);
        // Several under way at once fail at once: that is one failure.
        if self.not_before.is_none_or(|at| at <= now) {
            self.failures += 1;
            self.not_before = Some(now + pause);
        }
        self.not_now = 0;
    }

    /// It cannot take an instance now, by its own word.
    pub(super) fn cannot_now(&mut self, now: Instant) {
        self.not_now += 1;
        if self.not_now >= NOT_NOW_MAX {
            self.penalise(now);
        }
    }
}

impl Schedule {
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

    /// A centre is no member any more.
    pub(crate) fn gone(&mut self, centre: u64) {
        self.centres.remove(&centre);
    }

    /// Whether a centre answers.
    pub(crate) fn is_up(&self, centre: u64) -> bool {
        self.centres.get(&centre).is_some_and(|known| known.up_since.is_some())
    }

    /// Whether a centre answers and hears a quorum.
    pub(crate) fn is_in_touch(&self, centre: u64) -> bool {
        self.centres.get(&centre).is_some_and(|known| known.up_since.is_some() && known.in_touch)
    }

    /// The centres that answer: those first that hear a quorum, and of them the one in use.
    pub(crate) fn answering(&self) -> Vec<u64> {
        let up = self.centres.iter().filter(|(_, known)| known.up_since.is_some()).map(|(site, _)| *site);
        let mut up: Vec<u64> = up.collect();
        up.sort_by_key(|site| (!self.is_in_touch(*site), Some(*site) != self.current, *site));
        up
    }

    /// How many centres the mesh has, as far as is known here.
    pub(crate) fn centre_count(&self) -> usize {
        self.centres.len()
    }

    /// Whether instances may go to a centre, whether it answers or not.
    pub(crate) fn may_have(&self, centre: u64) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&centre))
    }

    /// Whether instances may go to a centre, and it answers.
    fn takes(&self, centre: u64) -> bool {
        self.may_have(centre) && self.is_up(centre)
    }

    /// How many such centres there are.
    pub(crate) fn taker_count(&self) -> usize {
        self.centres.keys().filter(|site| self.takes(**site)).count()
    }

    /// The centre in use.
    pub(crate) fn current(&self) -> Option<u64> {
        self.current.filter(|site| self.takes(*site))
    }

    /// The best centre that instances may go to, that answers and is not left alone: any but `last`, then one that hears
    /// a quorum, then home, then the one in use, then any. A better one than the one in use must have answered for a
    /// while.
    pub(super) fn choose(&self, now: Instant, last: Option<u64>) -> Option<u64> {
        let able = |site: u64, known: &Centre| {
            known.up_since.is_some_and(|since| {
                Some(site) == self.current || self.current.is_none_or(|other| !self.is_able(other, now)) || {
                    now.duration_since(since) >= STEADY
                }
            }) && known.not_before.is_none_or(|at| at <= now)
        };
        let rank = |site: u64, known: &Centre| {
            (Some(site) == last, !known.in_touch, Some(site) != self.home, Some(site) != self.current, site)
        };
        let able = self.centres.iter().filter(|(site, known)| self.may_have(**site) && able(**site, known));
        able.min_by_key(|(site, known)| rank(**site, known)).map(|(site, _)| *site)
    }

    fn is_able(&self, site: u64, now: Instant) -> bool {
        let able = |known: &Centre| known.up_since.is_some() && known.not_before.is_none_or(|at| at <= now);
        self.may_have(site) && self.centres.get(&site).is_some_and(able)
    }

    pub(super) fn answered(&mut self, centre: u64) {
        if let Some(known) = self.centres.get_mut(&centre) {
            (known.failures, known.not_now, known.not_before) = (0, 0, None);
        }
    }
}
