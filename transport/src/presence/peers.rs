//! Which members are connected, and when to dial those that are not.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::Instant;

/// The first wait after a failed dial; doubled with each, up to the longest. A member that comes back
/// dials by itself, so waiting costs little.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a dial is left to itself before it counts as failed though nothing was heard of it.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);

/// Members, other than this node.
#[derive(Debug, Default)]
pub(super) struct Peers(BTreeMap<PeerId, Peer>);

#[derive(Debug, Clone, Copy)]
struct Peer {
    is_connected: bool,
    /// Whether the peer has said anything on its connections. In TLS 1.3 a dialler believes itself
    /// connected before the other side has looked at its certificate.
    is_proven: bool,
    failures: u32,
    dial_at: Instant,
}

impl Peers {
    /// Follows the membership. New members are dialled at once.
    pub(super) fn set(&mut self, now: Instant, members: impl IntoIterator<Item = PeerId>) {
        let mut old = std::mem::take(&mut self.0);
        let fresh = Peer { is_connected: false, is_proven: false, failures: 0, dial_at: now };
        self.0 = members.into_iter().map(|peer| (peer, old.remove(&peer).unwrap_or(fresh))).collect();
    }

    pub(super) fn connected(&mut self, peer: &PeerId) {
        if let Some(peer) = self.0.get_mut(peer) {
            peer.is_connected = true;
        }
    }

    /// The peer said something. True the first time since it was connected.
    pub(super) fn heard(&mut self, peer: &PeerId) -> bool {
        let Some(peer) = self.0.get_mut(peer).filter(|peer| peer.is_connected) else { return false };
        peer.failures = 0;
        !std::mem::replace(&mut peer.is_proven, true)
    }

    /// The last connection ended. One on which nothing was heard was a failed dial.
    pub(super) fn disconnected(&mut self, now: Instant, peer: &PeerId, jitter: f64) {
        let Some(found) = self.0.get_mut(peer) else { return };
        found.is_connected = false;
        if std::mem::replace(&mut found.is_proven, false) {
            found.dial_at = now + WAIT_FIRST;
        } else {
            self.dial_failed(now, peer, jitter);
        }
    }

    /// A dial failed; `jitter`, in [0, 1), keeps members from dialling in step.
    pub(super) fn dial_failed(&mut self, now: Instant, peer: &PeerId, jitter: f64) {
        if let Some(peer) = self.0.get_mut(peer).filter(|peer| !peer.is_connected) {
            let wait = WAIT_FIRST.saturating_mul(2u32.saturating_pow(peer.failures)).min(WAIT_MAX);
            peer.failures = peer.failures.saturating_add(1);
            peer.dial_at = now + wait.mul_f64(0.5 + jitter / 2.0);
        }
    }

    /// An address of the peer became known: it is dialled soon.
    pub(super) fn address_learned(&mut self, now: Instant, peer: &PeerId) {
        if let Some(peer) = self.0.get_mut(peer) {
            peer.dial_at = peer.dial_at.min(now);
        }
    }

    /// The members to dial now. Each is not due again until its dial has had time.
    pub(super) fn due(&mut self, now: Instant) -> Vec<PeerId> {
        let due = self.0.iter_mut().filter(|(_, peer)| !peer.is_connected && peer.dial_at <= now);
        due.map(|(id, peer)| {
            peer.dial_at = now + DIAL_PATIENCE;
            *id
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_a_connection() {
        let (mut peers, start) = (Peers::default(), Instant::now());
        let peer = Identity::generate().peer_id();
        peers.set(start, [peer]);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert_eq!(peers.due(now), [peer]);
            assert!(peers.due(now).is_empty(), "its dial has just begun");
            peers.dial_failed(now, &peer, 1.0);
            let mut wait = Duration::ZERO;
            while peers.due(now + wait).is_empty() {
                wait += Duration::from_millis(500);
            }
            waits.push(wait.as_secs());
            peers.address_learned(now, &peer);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        peers.connected(&peer);
        now += Duration::from_secs(3600);
        assert!(peers.due(now).is_empty());
        peers.disconnected(now, &peer, 1.0);
        assert!(peers.due(now + WAIT_FIRST).is_empty(), "nothing was heard: it refused us");
        peers.connected(&peer);
        assert!(peers.heard(&peer) && !peers.heard(&peer));
        peers.disconnected(now, &peer, 1.0);
        assert_eq!(peers.due(now + WAIT_FIRST), [peer]);
        peers.set(now, []);
        assert!(peers.due(now + WAIT_MAX).is_empty());
    }
}
