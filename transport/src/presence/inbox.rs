//! What is taken of the payloads that come in: rising, not too often, not too long, from members.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::Instant;

use super::PAYLOAD_LEN_MAX;

/// A member publishes once an interval; gossip delays some. Twice as often is taken, more is a flood.
const FASTEST_PART_OF_INTERVAL: u32 = 2;

/// What to do with a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Take it and pass it on.
    Take,
    /// Drop it: old, or too soon.
    Ignore,
    /// Drop it: it could never be right.
    Reject,
}

#[derive(Debug)]
pub(super) struct Inbox {
    gap: Duration,
    last: BTreeMap<PeerId, Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    sequence: u64,
    at: Instant,
}

impl Inbox {
    /// For members that publish each `interval`.
    pub(super) fn new(interval: Duration) -> Self {
        Self { gap: interval / FASTEST_PART_OF_INTERVAL, last: BTreeMap::new() }
    }

    pub(super) fn judge(
        &mut self,
        now: Instant,
        author: PeerId,
        is_member: bool,
        sequence: Option<u64>,
        len: usize,
    ) -> Judgement {
        let Some(sequence) = sequence.filter(|_| is_member && len <= PAYLOAD_LEN_MAX) else {
            return Judgement::Reject;
        };
        if let Some(last) = self.last.get(&author)
            && (sequence <= last.sequence || now.duration_since(last.at) < self.gap)
        {
            return Judgement::Ignore;
        }
        self.last.insert(author, Last { sequence, at: now });
        Judgement::Take
    }

    /// A member connected anew: it may have restarted with a clock set back, from which sequences start.
    pub(super) fn restart(&mut self, peer: &PeerId) {
        self.last.remove(peer);
    }

    pub(super) fn retain(&mut self, is_member: impl Fn(&PeerId) -> bool) {
        self.last.retain(|peer, _| is_member(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    const INTERVAL: Duration = Duration::from_secs(2);

    #[test]
    fn a_flood_is_thinned_and_a_replay_is_ignored() {
        let mut inbox = Inbox::new(INTERVAL);
        let (peer, start) = (Identity::generate().peer_id(), Instant::now());
        let mut taken = 0;
        for n in 0..1000u32 {
            let now = start + Duration::from_millis(10) * n;
            if inbox.judge(now, peer, true, Some(u64::from(n)), 10) == Judgement::Take {
                taken += 1;
            }
        }
        assert_eq!(taken, 10, "one a second over ten seconds");
        let later = start + Duration::from_secs(60);
        assert_eq!(inbox.judge(later, peer, true, Some(500), 10), Judgement::Ignore, "an old one, sent again");
        assert_eq!(inbox.judge(later, peer, true, Some(1000), 10), Judgement::Take);
        inbox.restart(&peer);
        assert_eq!(inbox.judge(later, peer, true, Some(1), 10), Judgement::Take, "after it connected anew");
    }

    #[test]
    fn strangers_and_long_payloads_are_rejected_and_not_remembered() {
        let mut inbox = Inbox::new(INTERVAL);
        let (peer, now) = (Identity::generate().peer_id(), Instant::now());
        assert_eq!(inbox.judge(now, peer, false, Some(1), 10), Judgement::Reject);
        assert_eq!(inbox.judge(now, peer, true, None, 10), Judgement::Reject);
        assert_eq!(inbox.judge(now, peer, true, Some(1), PAYLOAD_LEN_MAX + 1), Judgement::Reject);
        assert!(inbox.last.is_empty());
    }
}
