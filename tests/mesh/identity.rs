//! Only members are answered, on every plane.

#![expect(clippy::disallowed_methods, reason = "tests read a site's key to pose as it")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use maillage_host::Clock;
use maillage_tests::{Site, until};
use maillage_transport::endpoint::DialError;
use maillage_transport::{Alpn, Endpoint, EndpointConfig, Identity, Membership, PeerId, Socket};
use tokio::time::{Instant, timeout};

use crate::mesh;

fn identity_of(site: &Site) -> Identity {
    let secret = fs::read_to_string(site.data_dir().join("identity")).expect("read");
    let secret = data_encoding::HEXLOWER_PERMISSIVE.decode(secret.trim().as_bytes()).expect("hexadecimal digits");
    Identity::from_secret(&secret.try_into().expect("32 bytes"))
}

/// An endpoint with this identity that takes `peer` for a member.
fn endpoint(identity: Identity, peer: PeerId, address: SocketAddr) -> Endpoint {
    let membership = Membership::new(Clock::system());
    membership.set_members(BTreeMap::from([(peer, vec![address])]));
    let socket = Socket::Udp(SocketAddr::from(([127, 0, 0, 1], 0)));
    Endpoint::bind(EndpointConfig::new(identity, membership, socket, Clock::system())).expect("an endpoint")
}

/// Whether the site keeps a connection of this protocol. In TLS 1.3 a refused client may believe for a
/// moment that it is connected.
async fn is_kept(endpoint: &Endpoint, peer: PeerId, address: SocketAddr, alpn: Alpn) -> bool {
    let since = Instant::now();
    let kept = match endpoint.dial(peer, address, alpn).await {
        Err(error @ (DialError::Timeout | DialError::Local(_))) => panic!("{alpn}: nobody answered: {error}"),
        Err(_) => return false,
        Ok(connection) => timeout(Duration::from_secs(2), connection.closed()).await.is_err(),
    };
    assert!(kept || since.elapsed() < Duration::from_secs(2), "refused at once, not by a time-out");
    kept
}

#[tokio::test]
async fn a_stranger_is_refused_on_every_protocol_and_a_member_is_not() {
    let mut mesh = mesh(3).await;
    let leader = mesh.leader().await;
    let (target, absent) = (leader, (leader + 1) % 3);
    let (peer, address) = (identity_of(&mesh.sites[target]).peer_id(), mesh.sites[target].mesh());
    let stranger = endpoint(Identity::generate(), peer, address);
    for alpn in Alpn::ALL {
        assert!(!is_kept(&stranger, peer, address, alpn).await, "{alpn} is open to strangers");
    }
    stranger.close().await;

    // The same client with a member's key is let in, but for the protocol of guests: so it was the key.
    mesh.sites[absent].terminate().await;
    let member = endpoint(identity_of(&mesh.sites[absent]), peer, address);
    for alpn in [Alpn::Raft, Alpn::Chunk] {
        assert!(is_kept(&member, peer, address, alpn).await, "{alpn} is closed to members");
    }
    member.close().await;
    mesh.sites[target].http().get("/readyz").await.expect(200);
}

#[tokio::test]
async fn a_site_does_not_talk_to_a_stranger_at_a_members_address() {
    let mut mesh = mesh(3).await;
    let leader = mesh.leader().await;
    let absent = (leader + 1) % 3;
    let (address, member) = (mesh.sites[absent].mesh(), identity_of(&mesh.sites[absent]).peer_id());
    mesh.sites[absent].kill();
    let membership = Membership::new(Clock::system());
    let others = (0..3).filter(|&n| n != absent).map(|n| &mesh.sites[n]);
    membership.set_members(others.map(|site| (identity_of(site).peer_id(), vec![site.mesh()])).collect());
    let socket = Socket::Udp(address);
    let config = EndpointConfig::new(Identity::generate(), membership, socket, Clock::system());
    let impostor = Endpoint::bind(config).expect("an endpoint");
    let mut asked = [impostor.accept(Alpn::Raft), impostor.accept(Alpn::Chunk)];
    assert_ne!(impostor.peer_id(), member);
    // The leader dials its lost follower again and again meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for accepted in &mut asked {
        assert!(accepted.try_recv().is_none(), "a site spoke to an impostor");
    }
    impostor.close().await;
    drop((impostor, asked));
    // The port is free once the endpoint's last task has ended.
    until("the port is free", async || tokio::net::UdpSocket::bind(address).await.ok()).await;
    mesh.sites[absent].start();
    mesh.sites[absent].ready().await;
    until("the true one is connected again", async || {
        let status = mesh.sites[leader].http().json("/api/v1/status").await;
        let connected = |peer: &serde_json::Value| peer["state"] == "connected";
        (status["peers"].as_array()?.iter().filter(|peer| connected(peer)).count() == 2).then_some(())
    })
    .await;
}
