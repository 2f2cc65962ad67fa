//! How this node's wall clock stands to the leader's, measured by its keep-alives.
//!
//! Followers measure against the leader alone, and tell it what they found: the leader so has the offset
//! of every clock, its own being zero, and can see when it is itself the one that is wrong. Nothing that
//! is applied reads any of this.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use maillage_host::UnixMillis;
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::Instant;

use super::Inner;
use crate::raft::client::is_refusal;
use crate::raft::status::ClockOffset;
use crate::raft::wire::{Frame, Greeting};

/// Exchanges remembered: with a keep-alive each 3 s, a clock that was set is seen after 24 s at the
/// latest, and one of eight round trips is rarely held up by the line (RFC 5905 keeps as many).
const SAMPLES: usize = 8;

/// A leader in a term.
type Leading = (u64, u64);

/// What this node measured against the leader of now.
#[derive(Debug, Default)]
pub(crate) struct Offset(Mutex<Against>);

#[derive(Debug, Default)]
struct Against {
    leader: Leading,
    /// Whether it refused a keep-alive with a body: it is of the first version.
    is_plain: bool,
    samples: VecDeque<ClockOffset>,
}

impl Against {
    fn best(&self) -> Option<ClockOffset> {
        // The newest of those with the shortest round trip.
        self.samples.iter().rev().min_by_key(|sample| sample.round_trip).copied()
    }
}

impl Offset {
    /// What is known of `leader`, forgotten when it is another than before.
    fn with<T>(&self, leader: Leading, look: impl FnOnce(&mut Against) -> T) -> T {
        let mut against = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if against.leader != leader {
            *against = Against { leader, ..Against::default() };
        }
        look(&mut against)
    }

    fn add(&self, leader: Leading, sample: ClockOffset) {
        self.with(leader, |against| {
            against.samples.push_back(sample);
            if against.samples.len() > SAMPLES {
                against.samples.pop_front();
            }
        });
    }
}

/// How far a clock that said `sent` and then, a round trip later, `received` is ahead of one that said
/// `there` in between.
fn ahead_ms(sent: UnixMillis, there: UnixMillis, received: UnixMillis) -> i64 {
    let signed = |at: UnixMillis| i128::from(at.0);
    let ahead = (signed(sent) + signed(received)) / 2 - signed(there);
    i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX })
}

impl Inner {
    fn leading(&self, leader: u64) -> Leading {
        (self.raft.metrics().borrow_watched().current_term, leader)
    }

    pub(super) fn clock_offset(&self) -> Option<ClockOffset> {
        let leader = self.leader()?;
        if leader == self.node_id() {
            return Some(ClockOffset::default());
        }
        self.offset.with(self.leading(leader), |against| against.best())
    }

    /// One keep-alive. One that fails is its own message.
    pub(super) async fn greet(&self, leader: u64, limit: Duration) {
        let leading = self.leading(leader);
        let (is_plain, measured) = self.offset.with(leading, |against| (against.is_plain, against.best()));
        if !is_plain {
            let greeting = Frame::KeepAlive(Some(Greeting { format: self.format, measured }));
            let (began, sent) = (Instant::now(), self.clock.now());
            match self.dialer.call(leader, &greeting, limit).await {
                Ok(Frame::Heard(Some(there))) => {
                    let ahead_ms = ahead_ms(sent, there, self.clock.now());
                    self.offset.add(leading, ClockOffset { ahead_ms, round_trip: began.elapsed() });
                    return;
                }
                Err(error) if is_refusal(&error) => {}
                _ => return,
            }
        }
        // A leader of the first version reads no body. One that refused for another reason refuses this too.
        if let Ok(Frame::Heard(_)) = self.dialer.call(leader, &Frame::KeepAlive(None), limit).await {
            self.offset.with(leading, |against| against.is_plain = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_half_way_through_the_round_trip() {
        let ahead = |sent, there, received| ahead_ms(UnixMillis(sent), UnixMillis(there), UnixMillis(received));
        assert_eq!(ahead(1000, 1020, 1040), 0);
        assert_eq!(ahead(7000, 1020, 7040), 6000);
        assert_eq!(ahead(1000, 7020, 1040), -6000);
        assert_eq!(ahead(0, u64::MAX, 0), i64::MIN, "nonsense does not overflow");
    }

    #[test]
    fn the_shortest_of_the_last_round_trips_counts_and_another_leader_begins_anew() {
        let (offset, leader) = (Offset::default(), (3, 1));
        let sample = |ahead_ms, round_trip| ClockOffset { ahead_ms, round_trip: Duration::from_millis(round_trip) };
        let best = |leader| offset.with(leader, |against| against.best().map(|best| best.ahead_ms));
        assert_eq!(best(leader), None);
        for (ahead_ms, round_trip) in [(5, 10), (90, 200), (6, 10), (70, 150)] {
            offset.add(leader, sample(ahead_ms, round_trip));
        }
        assert_eq!(best(leader), Some(6), "the newer of two that are as short");
        for _ in 0..SAMPLES {
            offset.add(leader, sample(-9000, 40));
        }
        assert_eq!(best(leader), Some(-9000), "a clock that was set is believed before long");
        assert_eq!(best((4, 1)), None, "the same node in another term may have another clock");
    }
}
