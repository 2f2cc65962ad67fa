//! Who sent wrong bytes, and for how long others are asked first. No clock of its own: time is an argument.
//!
//! Nothing that a holder sends is used before its hash was compared, so that a penalty protects time, not
//! images: one that lies, or whose disk or memory does, costs every fetch an answer that is thrown away. It is
//! only ever a last resort: what nobody else has is asked of it all the same, since the bytes may be right.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::Instant;

/// The first penalty: a fetch or two, and time for a bad cable or a failing disk to be noticed.
const FIRST: Duration = Duration::from_secs(300);
/// The longest: a site that was mended is trusted again within a day, whatever it did before.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Faults of one burst are one offence: several requests are under way to a holder at once.
const BURST: Duration = Duration::from_secs(30);
/// Well for so long after a penalty, and the next one is a first one again.
const FORGIVEN_AFTER: Duration = LONGEST;
/// Peers remembered: far more than a mesh has members.
const PEERS_MAX: usize = 1024;

/// What is held against one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Penalty {
    /// Wrong or malformed answers since this node started.
    pub faults: u64,
    /// For how long others are still asked first; zero when it is over.
    pub left: Duration,
}

/// The offences of peers.
#[derive(Debug, Clone, Default)]
pub struct Penalties(BTreeMap<PeerId, Offences>);

#[derive(Debug, Clone, Copy)]
struct Offences {
    faults: u64,
    /// Offences in a row.
    in_a_row: u32,
    last: Instant,
    until: Instant,
}

impl Penalties {
    /// Notes a fault of `peer`. Each further offence doubles the penalty, up to a day.
    pub fn note(&mut self, peer: PeerId, now: Instant) {
        if self.0.len() >= PEERS_MAX && !self.0.contains_key(&peer) {
            let oldest = self.0.iter().min_by_key(|(_, offences)| offences.until).map(|(peer, _)| *peer);
            oldest.and_then(|peer| self.0.remove(&peer));
        }
        let fresh = Offences { faults: 0, in_a_row: 0, last: now, until: now };
        let offences = self.0.entry(peer).or_insert(fresh);
        offences.faults = offences.faults.saturating_add(1);
        if offences.in_a_row > 0 && now.saturating_duration_since(offences.last) < BURST {
            return;
        }
        let is_forgiven = now.saturating_duration_since(offences.until) >= FORGIVEN_AFTER;
        offences.in_a_row = if is_forgiven { 1 } else { offences.in_a_row.saturating_add(1) };
        let doubled = 1u32.checked_shl(offences.in_a_row - 1).unwrap_or(u32::MAX);
        offences.last = now;
        offences.until = now + FIRST.saturating_mul(doubled).min(LONGEST);
    }

    /// Whether others are to be asked first.
    pub fn is_penalised(&self, peer: &PeerId, now: Instant) -> bool {
        self.0.get(peer).is_some_and(|offences| now < offences.until)
    }

    /// What is held against `peer`; `None` when it never sent anything wrong.
    pub fn of(&self, peer: &PeerId, now: Instant) -> Option<Penalty> {
        let offences = self.0.get(peer)?;
        Some(Penalty { faults: offences.faults, left: offences.until.saturating_duration_since(now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(penalties: &Penalties, peer: &PeerId, now: Instant) -> Duration {
        penalties.of(peer, now).map_or(Duration::ZERO, |penalty| penalty.left)
    }

    #[tokio::test(start_paused = true)]
    async fn each_offence_doubles_the_penalty_up_to_a_day_and_a_burst_is_one() {
        let (mut penalties, peer, other) = (Penalties::default(), PeerId::random(), PeerId::random());
        let mut now = Instant::now();
        assert_eq!(penalties.of(&peer, now), None);
        let mut expected = FIRST;
        for offence in 1..=12u64 {
            for _ in 0..8 {
                penalties.note(peer, now);
                now += Duration::from_secs(1);
            }
            assert_eq!(left(&penalties, &peer, now), expected - Duration::from_secs(8), "offence {offence}");
            assert!(penalties.is_penalised(&peer, now) && !penalties.is_penalised(&other, now));
            assert_eq!(penalties.of(&peer, now).map(|penalty| penalty.faults), Some(8 * offence));
            now += expected;
            assert!(!penalties.is_penalised(&peer, now), "it ends by itself");
            expected = (expected * 2).min(LONGEST);
        }
        assert_eq!(expected, LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn an_offence_during_a_penalty_makes_it_longer_and_a_day_without_one_is_forgiven() {
        let (mut penalties, peer) = (Penalties::default(), PeerId::random());
        let now = Instant::now();
        penalties.note(peer, now);
        penalties.note(peer, now + BURST);
        assert_eq!(left(&penalties, &peer, now + BURST), FIRST * 2);
        let well = now + BURST + FIRST * 2 + FORGIVEN_AFTER;
        penalties.note(peer, well);
        assert_eq!(left(&penalties, &peer, well), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_the_oldest_go_first() {
        let (mut penalties, first) = (Penalties::default(), PeerId::random());
        let now = Instant::now();
        penalties.note(first, now);
        for n in 0..PEERS_MAX as u64 {
            penalties.note(PeerId::random(), now + Duration::from_secs(1 + n));
        }
        assert_eq!(penalties.0.len(), PEERS_MAX);
        assert_eq!(penalties.of(&first, now), None);
    }
}
