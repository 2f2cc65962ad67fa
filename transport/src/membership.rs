//! Who may talk to this node, and where they are.
//!
//! The node feeds this from replicated state; the TLS verifiers, the endpoint and the swarm read it.
//! There is no way to say "anyone": an empty membership admits nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use libp2p::PeerId;
use maillage_host::{Clock, UnixMillis};
use tokio::sync::watch;

use crate::Alpn;

/// Addresses remembered for a peer beyond the configured ones: a host rarely has more interfaces, and
/// discovery is driven by the network's neighbours.
const LEARNED_ADDRESSES_MAX: usize = 8;

/// The members and guests of the mesh. Clones share one state.
#[derive(Clone)]
pub struct Membership(Arc<Shared>);

struct Shared {
    state: RwLock<State>,
    changes: watch::Sender<u64>,
    clock: Clock,
}

#[derive(Default)]
struct State {
    members: BTreeMap<PeerId, Vec<SocketAddr>>,
    learned: BTreeMap<PeerId, Vec<SocketAddr>>,
    guests: BTreeMap<PeerId, UnixMillis>,
    gateways: BTreeSet<PeerId>,
}

impl Membership {
    /// A membership of nobody. `clock` decides when a guest's time is over.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Shared { state: RwLock::default(), changes: watch::Sender::new(0), clock }))
    }

    /// Replaces the members and their configured addresses. Open connections of a peer that is no
    /// longer among them are closed by the endpoint.
    pub fn set_members(&self, members: BTreeMap<PeerId, Vec<SocketAddr>>) {
        let mut state = self.write();
        state.learned.retain(|peer, _| members.contains_key(peer));
        state.members = members;
        drop(state);
        self.0.changes.send_modify(|version| *version += 1);
    }

    /// Replaces the guests: keys that lie in join tokens, each with the time at which its token
    /// expires. A guest may open [`Alpn::Join`] and nothing else.
    pub fn set_guests(&self, guests: BTreeMap<PeerId, UnixMillis>) {
        self.write().guests = guests;
        self.0.changes.send_modify(|version| *version += 1);
    }

    /// Replaces the hospitals' gateways. A gateway may open [`Alpn::Gate`] and nothing else, and is never
    /// dialled.
    pub fn set_gateways(&self, gateways: BTreeSet<PeerId>) {
        self.write().gateways = gateways;
        self.0.changes.send_modify(|version| *version += 1);
    }

    /// Whether the peer is a hospital's gateway.
    pub fn is_gateway(&self, peer: &PeerId) -> bool {
        self.read().gateways.contains(peer)
    }

    /// Whether the peer is a member.
    pub fn is_member(&self, peer: &PeerId) -> bool {
        self.read().members.contains_key(peer)
    }

    /// Whether the peer is a guest whose token has not expired.
    pub fn is_guest(&self, peer: &PeerId) -> bool {
        self.read().guests.get(peer).is_some_and(|expires| self.0.clock.now() < *expires)
    }

    /// Whether the peer may open a connection of this protocol to us.
    pub fn admits(&self, peer: &PeerId, alpn: Alpn) -> bool {
        match alpn {
            Alpn::Join => self.is_member(peer) || self.is_guest(peer),
            // Centres have nothing to say there to each other.
            Alpn::Gate => self.is_gateway(peer),
            Alpn::Libp2p | Alpn::Raft | Alpn::Chunk => self.is_member(peer),
        }
    }

    /// The members, in order.
    pub fn members(&self) -> Vec<PeerId> {
        self.read().members.keys().copied().collect()
    }

    /// Where a member may be found: the configured addresses, then those learned. Empty for others.
    pub fn addresses(&self, peer: &PeerId) -> Vec<SocketAddr> {
        let state = self.read();
        let Some(configured) = state.members.get(peer) else { return Vec::new() };
        let learned = state.learned.get(peer).into_iter().flatten();
        let mut addresses: Vec<SocketAddr> = Vec::with_capacity(configured.len());
        for address in configured.iter().chain(learned) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses
    }

    /// Remembers an address at which a member was discovered; the newest few are kept. The address is
    /// only ever tried: who answers there must still prove to be that member. Returns whether it was new.
    pub fn learn(&self, peer: &PeerId, address: SocketAddr) -> bool {
        let mut state = self.write();
        let State { members, learned, .. } = &mut *state;
        let Some(configured) = members.get(peer) else { return false };
        let learned = learned.entry(*peer).or_default();
        if configured.contains(&address) || learned.contains(&address) {
            return false;
        }
        learned.insert(0, address);
        learned.truncate(LEARNED_ADDRESSES_MAX);
        true
    }

    /// A receiver that is notified of every change of members or guests.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.read();
        f.debug_struct("Membership")
            .field("members", &state.members.len())
            .field("guests", &state.guests.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::Identity;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn nobody_is_admitted_by_default() {
        let membership = Membership::new(Clock::system());
        let peer = Identity::generate().peer_id();
        assert!(Alpn::ALL.into_iter().all(|alpn| !membership.admits(&peer, alpn)));
    }

    #[test]
    fn a_guest_is_admitted_to_join_only_and_until_its_token_expires() {
        let now = Arc::new(AtomicU64::new(100));
        let clock = Arc::clone(&now);
        let membership = Membership::new(Clock::from_fn(move || UnixMillis(clock.load(Ordering::Relaxed))));
        let guest = Identity::generate().peer_id();
        membership.set_guests(BTreeMap::from([(guest, UnixMillis(200))]));
        let admitted: Vec<Alpn> = Alpn::ALL.into_iter().filter(|alpn| membership.admits(&guest, *alpn)).collect();
        assert_eq!(admitted, [Alpn::Join]);
        now.store(200, Ordering::Relaxed);
        assert!(!membership.admits(&guest, Alpn::Join));
    }

    #[test]
    fn a_gateway_is_admitted_to_its_own_protocol_only_and_a_member_to_all_others() {
        let membership = Membership::new(Clock::system());
        let (gateway, member) = (Identity::generate().peer_id(), Identity::generate().peer_id());
        membership.set_members(BTreeMap::from([(member, vec![address(1)])]));
        membership.set_gateways(BTreeSet::from([gateway]));
        let admitted = |peer| Alpn::ALL.into_iter().filter(|alpn| membership.admits(peer, *alpn)).collect::<Vec<_>>();
        assert_eq!(admitted(&gateway), [Alpn::Gate]);
        assert_eq!(admitted(&member), [Alpn::Libp2p, Alpn::Raft, Alpn::Chunk, Alpn::Join]);
        membership.set_gateways(BTreeSet::new());
        assert_eq!(admitted(&gateway), []);
    }

    #[test]
    fn learned_addresses_are_bounded_and_only_for_members() {
        let membership = Membership::new(Clock::system());
        let (member, stranger) = (Identity::generate().peer_id(), Identity::generate().peer_id());
        membership.set_members(BTreeMap::from([(member, vec![address(1)])]));
        assert!(!membership.learn(&stranger, address(9)));
        assert!(!membership.learn(&member, address(1)), "configured already");
        for port in 2..100 {
            assert!(membership.learn(&member, address(port)));
        }
        let addresses = membership.addresses(&member);
        assert_eq!(addresses.len(), 1 + LEARNED_ADDRESSES_MAX);
        assert_eq!(addresses[..2], [address(1), address(99)], "configured first, then the newest");
        membership.set_members(BTreeMap::new());
        assert!(membership.addresses(&member).is_empty());
    }
}
