//! Socket addresses as libp2p writes them: `/ip4/…/udp/…/quic-v1`.

use std::net::{IpAddr, SocketAddr};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

pub(super) fn to_multiaddr(address: SocketAddr) -> Multiaddr {
    // A dual-stack socket shows IPv4 peers as mapped addresses, which nobody could dial as such.
    Multiaddr::empty()
        .with(address.ip().to_canonical().into())
        .with(Protocol::Udp(address.port()))
        .with(Protocol::QuicV1)
}

/// The socket address, and the peer if it is named. `None` for anything else than QUIC over UDP: relay
/// circuits and names among it.
pub(super) fn from_multiaddr(address: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>)> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else { return None };
    let peer = match (parts.next(), parts.next()) {
        (None, _) => None,
        (Some(Protocol::P2p(peer)), None) => Some(peer),
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_there_and_back_and_others_are_refused() {
        let address: SocketAddr = "[2001:db8::1]:4001".parse().expect("address");
        assert_eq!(from_multiaddr(&to_multiaddr(address)), Some((address, None)));
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:4001".parse().expect("address");
        assert_eq!(to_multiaddr(mapped).to_string(), "/ip4/10.0.0.1/udp/4001/quic-v1");
        let peer = crate::Identity::generate().peer_id();
        let named = to_multiaddr(address).with(Protocol::P2p(peer));
        assert_eq!(from_multiaddr(&named), Some((address, Some(peer))));
        for other in [
            "/ip4/10.0.0.1/tcp/1",
            "/dns/x/udp/1/quic-v1",
            "/ip4/10.0.0.1/udp/1",
            "/ip4/10.0.0.1/udp/1/quic-v1/p2p-circuit",
        ] {
            assert_eq!(from_multiaddr(&other.parse().expect("a multiaddr")), None, "{other}");
        }
    }
}
