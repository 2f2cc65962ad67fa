//! When a class may begin a request while a higher one is at work.
//!
//! It stands back as long as the higher one has requests under way, and a moment longer, since a reader
//! comes back with the next. A small share of the time remains to it: copies that are never made because
//! somebody always reads would be a danger of their own.

use std::time::Duration;

use crate::chunk::Class;

/// A higher class counts as at work for so long after its last answer: a viewer's time between two slices.
const LINGER: Duration = Duration::from_millis(250);

/// While a higher class is at work, each lower one has one request under way at most one part in so many of the
/// time: three of them cost a reader at most 8 % even where each request takes the whole link.
const SHARE_ONE_IN: u32 = 40;

#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Until when each class stands back for one that was just at work.
    back_until: [Duration; Class::ALL.len()],
    /// When each class may have its share again.
    share_at: [Duration; Class::ALL.len()],
}

impl Turns {
    /// `is_below`: whether a higher class has a request under way. `is_alone`: whether this one has none.
    pub(super) fn may_begin(&self, now: Duration, class: Class, is_below: bool, is_alone: impl Fn() -> bool) -> bool {
        let stands_back = is_below || now < self.back_until[class.rank()];
        !stands_back || (now >= self.share_at[class.rank()] && is_alone())
    }

    /// A request ended, which took so long.
    pub(super) fn ended(&mut self, now: Duration, class: Class, took: Duration) {
        for lower in Class::ALL.into_iter().filter(|lower| class < *lower) {
            self.back_until[lower.rank()] = now + LINGER;
        }
        self.share_at[class.rank()] = now + took * (SHARE_ONE_IN - 1);
    }

    /// The times at which a class may begin though nothing happened.
    pub(super) fn wakes(&self) -> impl Iterator<Item = Duration> {
        self.back_until.into_iter().chain(self.share_at)
    }
}
