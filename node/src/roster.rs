//! Who is who: the replicated sites as the transport, Raft and a restart need them.
//!
//! Fed from replicated state at every change; saved to `mesh.json`, so that a node that restarts
//! finds its peers before Raft tells it anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::ids::{PeerKey, SiteId};
use maillage_consensus::mesh::{JoinToken, Site};
use maillage_host::UnixMillis;
use maillage_transport::{Membership, PeerId};

use crate::data_dir::MeshFileMember;

/// How long the holder of an expired or used token is still answered, so that it learns why it is
/// refused. It can join no more: the state machine decides that.
const EXPLAIN_FOR_MS: u64 = 24 * 3_600_000;

/// Site numbers and peer identities, both ways. Clones share one table.
#[derive(Debug, Clone)]
pub(crate) struct Roster {
    own: SiteId,
    membership: Membership,
    table: Arc<RwLock<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    peers: BTreeMap<SiteId, PeerId>,
    sites: BTreeMap<PeerId, SiteId>,
    /// Hospitals' gateways, which are in neither of the two: nobody dials them, and they speak one protocol.
    gateways: BTreeMap<PeerId, SiteId>,
}

impl Roster {
    /// A roster of the members remembered at the last stop.
    pub(crate) fn remembered(own: SiteId, membership: Membership, members: &[MeshFileMember]) -> Self {
        let roster = Self { own, membership, table: Arc::default() };
        let known = members.iter().filter_map(|member| {
            let peer = member.peer_id.parse().ok()?;
            Some((SiteId(member.site_id), peer, member.addresses.clone()))
        });
        roster.replace(known.collect());
        roster
    }

    /// Takes over the replicated sites and tokens. Not from a state that does not know this site: it is of
    /// before the site joined, and who leads now may have joined since. A site that forgot those whom it was
    /// told of when it joined would refuse them, and with them all that the state lacks.
    pub(crate) fn update(&self, sites: &[Site], tokens: &[JoinToken]) -> bool {
        if sites.iter().all(|site| site.id != self.own) {
            return false;
        }
        let (gateways, centres): (Vec<&Site>, Vec<&Site>) = sites.iter().partition(|site| site.is_gateway());
        let known = centres
            .into_iter()
            .filter_map(|site| Some((site.id, peer_of(&site.description.key)?, site.description.addresses.clone())));
        self.replace(known.collect());
        let gateways = gateways.into_iter().filter_map(|site| Some((peer_of(&site.description.key)?, site.id)));
        self.replace_gateways(gateways.collect());
        let guests = tokens.iter().filter_map(|token| {
            let UnixMillisField(ends) = token.expires_at;
            Some((peer_of(&token.key)?, UnixMillis(ends.saturating_add(EXPLAIN_FOR_MS))))
        });
        self.membership.set_guests(guests.collect());
        true
    }

    fn replace(&self, known: Vec<(SiteId, PeerId, Vec<std::net::SocketAddr>)>) {
        let mut table = Table::default();
        let mut members = BTreeMap::new();
        for (site, peer, addresses) in known {
            table.peers.insert(site, peer);
            table.sites.insert(peer, site);
            if site != self.own {
                members.insert(peer, addresses);
            }
        }
        table.gateways = std::mem::take(&mut self.write().gateways);
        *self.write() = table;
        self.membership.set_members(members);
    }

    fn replace_gateways(&self, gateways: BTreeMap<PeerId, SiteId>) {
        let peers: BTreeSet<PeerId> = gateways.keys().copied().collect();
        self.write().gateways = gateways;
        self.membership.set_gateways(peers);
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gateway whose node has this identity.
    pub(crate) fn gateway(&self, peer: &PeerId) -> Option<SiteId> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).gateways.get(peer).copied()
    }

    /// The identity of a site's node.
    pub(crate) fn peer(&self, site: SiteId) -> Option<PeerId> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).peers.get(&site).copied()
    }

    /// The site whose node has this identity.
    pub(crate) fn site(&self, peer: &PeerId) -> Option<SiteId> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).sites.get(peer).copied()
    }
}

/// The transport's identity from the replicated bytes.
pub(crate) fn peer_of(key: &PeerKey) -> Option<PeerId> {
    PeerId::from_bytes(key.as_bytes()).ok()
}

/// The replicated bytes of a transport identity.
pub(crate) fn key_of(peer: &PeerId) -> PeerKey {
    #[expect(clippy::expect_used, reason = "an ed25519 peer id has 38 bytes, and only such are made here")]
    PeerKey::new(peer.to_bytes()).expect("a peer id fits")
}

#[cfg(test)]
mod tests {
    use maillage_transport::Identity;

    use super::testing::site;
    use super::*;

    #[test]
    fn a_state_of_before_the_site_joined_hides_no_member_from_it() {
        let peers: Vec<PeerId> = (0..3).map(|_| Identity::generate().peer_id()).collect();
        let member = |id: u64, peer: &PeerId| MeshFileMember {
            site_id: id,
            peer_id: peer.to_string(),
            name: format!("site-{id}"),
            addresses: Vec::new(),
        };
        let members = [member(1, &peers[0]), member(8, &peers[1])];
        let roster = Roster::remembered(SiteId(9), Membership::new(maillage_host::Clock::system()), &members);
        let known = |id: u64, peer: &PeerId| {
            let mut site = site(id, "a");
            site.description.key = key_of(peer);
            site
        };
        assert!(!roster.update(&[known(1, &peers[0])], &[]));
        assert_eq!(roster.site(&peers[1]), Some(SiteId(8)), "the leader of now is still answered");
        assert!(roster.update(&[known(1, &peers[0]), known(9, &peers[2])], &[]));
        assert_eq!(roster.site(&peers[1]), None, "a state that knows the site says who is a member");
    }

    #[test]
    fn a_gateway_is_no_member_to_anything_but_its_own_door() {
        let peers: Vec<PeerId> = (0..2).map(|_| Identity::generate().peer_id()).collect();
        let membership = Membership::new(maillage_host::Clock::system());
        let roster = Roster::remembered(SiteId(1), membership.clone(), &[]);
        let known = |id: u64, peer: &PeerId| {
            let mut site = site(id, "a");
            site.description.key = key_of(peer);
            site
        };
        let mut gateway = known(7, &peers[1]);
        gateway.role = maillage_consensus::mesh::SiteRole::Gateway { hospitals: Vec::new() };
        assert!(roster.update(&[known(1, &peers[0]), gateway.clone()], &[]));
        assert_eq!((roster.gateway(&peers[1]), roster.site(&peers[1])), (Some(SiteId(7)), None));
        assert_eq!((roster.gateway(&peers[0]), roster.peer(SiteId(7))), (None, None));
        assert!(membership.is_gateway(&peers[1]) && !membership.is_member(&peers[1]));
        roster.update(&[known(1, &peers[0])], &[]);
        assert_eq!((roster.gateway(&peers[1]), membership.is_gateway(&peers[1])), (None, false));
    }
}

/// Sites for tests of what is decided by them.
#[cfg(test)]
pub(crate) mod testing {
    use maillage_consensus::command::{SiteDescription, UnixMillisField};
    use maillage_consensus::ids::{Name, PeerKey, SiteId};
    use maillage_consensus::mesh::{Site, SiteRole};

    /// A site in session.
    pub(crate) fn site(id: u64, zone: &str) -> Site {
        Site {
            id: SiteId(id),
            description: SiteDescription {
                key: PeerKey::new(vec![1; 38]).expect("a key"),
                name: Name::fitted(&format!("site-{id}")),
                zone: Name::fitted(zone),
                addresses: Vec::new(),
                weight: 100,
            },
            joined_at: UnixMillisField(0),
            sessions: 1,
            session_open: true,
            away_since: None,
            role: SiteRole::Centre,
        }
    }
}
