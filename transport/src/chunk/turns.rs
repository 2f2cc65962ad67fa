//! When a class may begin a request while a higher one is at work: the same rule for who asks and for who answers.
//!
//! It stands back as long as the higher one has requests under way, and a moment longer, since a reader
//! comes back with the next. A small share of the time remains to it: copies that are never made because
//! somebody always reads would be a danger of their own.

use std::time::Duration;

use super::Class;

/// A higher class counts as at work for so long after its last answer: a viewer's time between two slices, and more
/// than the round trip after which the next request comes.
const LINGER: Duration = Duration::from_millis(250);

/// While a higher class is at work, each lower one has one request under way at most one part in so many of the
/// time: three of them cost a reader at most 8 % even where each request takes the whole link.
const SHARE_ONE_IN: u32 = 40;

/// The longest time between two shares. What took so long that it would be more was slow for another reason than the
/// link that a reader needs, and hours without a copy would be no share.
const REST_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Until when each class counts as at work, though it has nothing under way.
    lingers_until: [Duration; Class::ALL.len()],
    /// When each class may have its share again.
    share_at: [Duration; Class::ALL.len()],
}

impl Turns {
    /// The highest of the classes that this one stands back for, if any. `is_busy`: whether a class has requests under
    /// way.
    pub(crate) fn ahead_of(&self, now: Duration, class: Class, is_busy: impl Fn(Class) -> bool) -> Option<Class> {
        let mut higher = Class::ALL.into_iter().take_while(|higher| *higher < class);
        higher.find(|higher| now < self.lingers_until[higher.rank()] || is_busy(*higher))
    }

    /// Whether a class that stands back may have its share.
    pub(crate) fn has_share(&self, now: Duration, class: Class) -> bool {
        now >= self.share_at[class.rank()]
    }

    /// A request ended, which took so long.
    pub(crate) fn ended(&mut self, now: Duration, class: Class, took: Duration) {
        self.lingers_until[class.rank()] = now + LINGER;
        self.share_at[class.rank()] = now + (took * (SHARE_ONE_IN - 1)).min(REST_MAX);
    }

    /// The times at which a class may begin though nothing happened.
    pub(crate) fn wakes(&self) -> impl Iterator<Item = Duration> {
        self.lingers_until.into_iter().chain(self.share_at)
    }
}
