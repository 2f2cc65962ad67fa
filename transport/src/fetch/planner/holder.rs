//! What a fetch knows of one holder: its room, its pace, its failures.

use std::time::Duration;

/// First rest after a failure; doubled with each, up to the third, when the holder is given up. A
/// restarted process is back within the sum.
const REST: Duration = Duration::from_millis(250);
const FAILURES_MAX: u32 = 4;

/// The newest answer's share in the running mean of answer times: one in.
const MEAN_ONE_IN: u32 = 4;

#[derive(Debug)]
pub(super) struct Holder {
    /// It gave wrong bytes before: asked only for what no other can give.
    pub(super) is_last_resort: bool,
    /// Requests under way.
    pub(super) in_flight: usize,
    window: usize,
    /// Running mean of the time of an answer, with as many under way as usual.
    mean: Option<Duration>,
    failures: u32,
    /// When the last failure was counted: requests from before it fail for the same reason.
    failed_at: Option<Duration>,
    rests_until: Option<Duration>,
    given_up: bool,
}

impl Holder {
    pub(super) fn new(is_last_resort: bool, window: usize) -> Self {
        Self {
            is_last_resort,
            in_flight: 0,
            window,
            mean: None,
            failures: 0,
            failed_at: None,
            rests_until: None,
            given_up: false,
        }
    }

    pub(super) fn has_room(&self, now: Duration) -> bool {
        !self.given_up && !self.is_full() && self.rests_until.is_none_or(|until| until <= now)
    }

    pub(super) fn is_full(&self) -> bool {
        self.in_flight >= self.window
    }

    /// How long an answer is likely to take, once one came.
    pub(super) fn expects(&self) -> Option<Duration> {
        self.mean
    }

    pub(super) fn on_answer(&mut self, took: Duration) {
        self.failures = 0;
        self.rests_until = None;
        self.mean = Some(match self.mean {
            Some(mean) => mean - mean / MEAN_ONE_IN + took / MEAN_ONE_IN,
            None => took,
        });
    }

    /// Another holder answered sooner, after this one had been asked for `at_least`.
    pub(super) fn on_outrun(&mut self, at_least: Duration) {
        if self.mean.is_none_or(|mean| mean < at_least) {
            self.mean = Some(at_least);
        }
    }

    /// A request made at `since` failed. One broken connection fails all that were under way: it counts
    /// once.
    pub(super) fn on_unavailable(&mut self, now: Duration, since: Duration) {
        if self.failed_at.is_some_and(|at| since <= at) {
            return;
        }
        self.failed_at = Some(now);
        self.rests_until = Some(now + REST * 2u32.saturating_pow(self.failures));
        self.failures += 1;
        self.given_up |= self.failures >= FAILURES_MAX;
    }

    pub(super) fn give_up(&mut self) {
        self.given_up = true;
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// When it may be asked again, if it rests.
    pub(super) fn rests_until(&self) -> Option<Duration> {
        self.rests_until.filter(|_| !self.given_up)
    }
}
