//! What a plan knows of one holder: what it may be asked for, its room, its pace, its failures.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{ItemIndex, Want};
use crate::chunk::Class;

/// First rest after a failure; doubled with each, up to the third, when the holder drops out. A
/// restarted process is back within the sum.
const REST: Duration = Duration::from_millis(250);
const FAILURES_MAX: u32 = 4;

/// The newest answer's share in the running means of answer times and rates: one in.
const MEAN_ONE_IN: u32 = 4;

/// How long what a holder was asked for may wait at it: more than a round trip and a read of a disk, so that the
/// path is never idle; little enough that what is wanted at once does not wait a second behind it.
const QUEUED: Duration = Duration::from_millis(100);

/// Each class below a reader's has a part of the room: one in …
const LOWER_ONE_IN: usize = 2;

/// How much one holder is asked for at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Requests.
    pub requests: usize,
    /// Bytes, while nothing is known of the holder's pace, and at least.
    pub bytes_min: u64,
    /// Bytes, for the fastest.
    pub bytes_max: u64,
}

/// Where an object stands among those that are wanted: by class; what somebody waits for before what is part of
/// something larger; then in the order in which they were wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) class: Class,
    is_part: bool,
    pub(super) item: ItemIndex,
}

impl Place {
    pub(super) fn of(want: Want, item: ItemIndex) -> Self {
        Self { class: want.class, is_part: !want.is_awaited, item }
    }

    /// Where the objects of a class begin.
    pub(super) fn first_of(class: Class) -> Self {
        Self { class, is_part: false, item: ItemIndex(0) }
    }
}

/// What is known of a class at a holder, apart from the others: what is asked for in a lower one may wait there for
/// long, behind readers elsewhere.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    /// Requests under way, and the bytes they are for.
    requests: usize,
    bytes: u64,
    /// Running mean of the time of an answer, with as many under way as usual.
    mean: Option<Duration>,
    /// Running mean of the bytes that come in a second.
    rate: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Holder {
    /// What it may give and nobody is asked for.
    pub(super) queue: BTreeSet<Place>,
    /// It gave wrong bytes: until then it is asked only for what no other can give.
    pub(super) distrusted_until: Option<Duration>,
    room: Room,
    lanes: [Lane; Class::ALL.len()],
    /// The shortest answer since it last failed: little more than a round trip.
    shortest: Option<Duration>,
    failures: u32,
    /// When the last failure was counted: requests from before it fail for the same reason.
    failed_at: Option<Duration>,
    rests_until: Option<Duration>,
}

impl Holder {
    pub(super) fn new(room: Room) -> Self {
        Self {
            queue: BTreeSet::new(),
            distrusted_until: None,
            room,
            lanes: Default::default(),
            shortest: None,
            failures: 0,
            failed_at: None,
            rests_until: None,
        }
    }

    /// Whether it may be asked for one thing more in a class.
    pub(super) fn has_room(&self, now: Duration, class: Class) -> bool {
        self.rests_until.is_none_or(|until| until <= now) && !self.is_full_for(class)
    }

    /// Each class has its room, whatever the others have: whether it may begin beside them at all is not decided by
    /// room. Even when all the lower ones wait at the holder, a reader has streams of the connection left.
    pub(super) fn is_full_for(&self, class: Class) -> bool {
        let lane = self.lanes[class.rank()];
        let one_in = if class == Class::Reader { 1 } else { LOWER_ONE_IN };
        let bytes = (self.window(class) / one_in as u64).max(self.room.bytes_min);
        lane.requests >= (self.room.requests / one_in).max(1) || lane.bytes >= bytes
    }

    /// Bytes that may be under way: what comes in a round trip, and as much again as may be queued.
    fn window(&self, class: Class) -> u64 {
        let (Some(rate), Some(round)) = (self.lanes[class.rank()].rate, self.shortest) else {
            return self.room.bytes_min;
        };
        let time = QUEUED + 2 * round;
        let bytes = u128::from(rate).saturating_mul(time.as_micros()) / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).clamp(self.room.bytes_min, self.room.bytes_max)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.requests).sum()
    }

    /// It is asked. Returns the bytes under way that come with or before this.
    pub(super) fn begin(&mut self, class: Class, len: u64) -> u64 {
        let lane = &mut self.lanes[class.rank()];
        lane.requests += 1;
        lane.bytes += len;
        self.lanes.iter().take(class.rank() + 1).map(|lane| lane.bytes).sum()
    }

    /// A request to it is over that began in this class.
    pub(super) fn end(&mut self, class: Class, len: u64) {
        let lane = &mut self.lanes[class.rank()];
        lane.requests = lane.requests.saturating_sub(1);
        lane.bytes = lane.bytes.saturating_sub(len);
    }

    /// How long an answer in a class is likely to take, once one came.
    pub(super) fn expects(&self, class: Class) -> Option<Duration> {
        self.lanes[class.rank()].mean
    }

    pub(super) fn is_distrusted(&self, now: Duration) -> bool {
        self.distrusted_until.is_some_and(|until| now < until)
    }

    /// An answer came to a request that began in this class, with `behind` bytes under way when it was asked for.
    pub(super) fn on_answer(&mut self, class: Class, took: Duration, behind: u64) {
        self.failures = 0;
        self.rests_until = None;
        self.shortest = Some(self.shortest.map_or(took, |shortest| took.min(shortest)));
        let lane = &mut self.lanes[class.rank()];
        lane.mean = Some(match lane.mean {
            Some(mean) => mean - mean / MEAN_ONE_IN + took / MEAN_ONE_IN,
            None => took,
        });
        let rate = u128::from(behind) * 1_000_000 / took.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let one_in = u64::from(MEAN_ONE_IN);
        lane.rate = Some(lane.rate.map_or(rate, |mean| mean - mean / one_in + rate / one_in));
    }

    /// Another holder answered sooner, after this one had been asked for `at_least`.
    pub(super) fn on_outrun(&mut self, class: Class, at_least: Duration) {
        let lane = &mut self.lanes[class.rank()];
        if lane.mean.is_none_or(|mean| mean < at_least) {
            lane.mean = Some(at_least);
        }
    }

    /// A request made at `since` failed. One broken connection fails all that were under way: it counts
    /// once. Whether it has failed too often in a row: what is wanted now is not wanted of it any more. What is
    /// wanted later finds it rested, with as many chances.
    pub(super) fn on_unavailable(&mut self, now: Duration, since: Duration) -> bool {
        if self.failed_at.is_some_and(|at| since <= at) {
            return false;
        }
        self.failed_at = Some(now);
        // It may come back by another path.
        self.shortest = None;
        self.rests_until = Some(now + REST * 2u32.saturating_pow(self.failures));
        self.failures += 1;
        let drops_out = self.failures >= FAILURES_MAX;
        if drops_out {
            self.failures = 0;
            self.rests_until = Some(now + REST);
        }
        drops_out
    }

    /// When it may be asked again, if it rests.
    pub(super) fn rests_until(&self) -> Option<Duration> {
        self.rests_until
    }
}
