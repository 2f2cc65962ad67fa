//! The endpoint over real sockets on loopback: who gets in, on what, and who is cut off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use maillage_host::{Clock, UnixMillis};

use super::*;
use crate::testing::{Node, acquaint, within};

const FOREVER: UnixMillis = UnixMillis(u64::MAX);

/// Echoes one stream on each connection.
fn echo(mut incoming: Accepted) {
    drop(maillage_host::spawn(async move {
        while let Some(Incoming { connection, .. }) = incoming.recv().await {
            drop(maillage_host::spawn(async move {
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    let bytes = recv.read_to_end(1024).await.expect("read");
                    send.write_all(&bytes).await.expect("write");
                    send.finish().expect("finish");
                }
            }));
        }
    }));
}

async fn ask(connection: &quinn::Connection) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.expect("open a stream");
    send.write_all(b"ping").await.expect("write");
    send.finish().expect("finish");
    recv.read_to_end(1024).await.expect("read")
}

fn rejected(node: &Node, reason: Rejection) -> u64 {
    node.endpoint.rejections().into_iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| n)
}

/// Dials and waits until the server has had its say: with libp2p there is no greeting.
async fn outcome(from: &Node, to: &Node, alpn: Alpn) -> Result<(), String> {
    let connection = from.endpoint.dial(to.peer(), to.address(), alpn).await.map_err(|error| error.to_string())?;
    match timeout(Duration::from_millis(500), connection.closed()).await {
        Ok(error) => Err(error.to_string()),
        Err(_) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_linked_on_each_plane_by_connections_of_their_own() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    for plane in [Plane::Raft, Plane::Chunk] {
        echo(b.endpoint.accept(plane.alpn()));
    }
    let raft = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    let chunk = a.endpoint.link(b.peer(), Plane::Chunk).await.expect("link");
    assert_eq!((ask(&raft).await, ask(&chunk).await), (b"ping".to_vec(), b"ping".to_vec()));
    assert_ne!(raft.stable_id(), chunk.stable_id());
    let again = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    assert_eq!(again.stable_id(), raft.stable_id(), "pooled");
    let seen: Vec<(PeerId, Alpn, Direction)> =
        b.endpoint.connections().into_iter().map(|c| (c.peer, c.alpn, c.direction)).collect();
    assert_eq!(seen, [(a.peer(), Alpn::Raft, Direction::Inbound), (a.peer(), Alpn::Chunk, Direction::Inbound)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_of_connections_for_images_are_told_on_both_sides_and_no_others() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    for (plane, carries_images) in [(Plane::Raft, false), (Plane::Chunk, true)] {
        let mut accepted = b.endpoint.accept(plane.alpn());
        let dialled = a.endpoint.link(b.peer(), plane).await.expect("link");
        let incoming = within("the other side", accepted.recv()).await.expect("accepted");
        assert_eq!(congestion::is_told(dialled.congestion_state()), carries_images, "{plane}, dialled");
        assert_eq!(congestion::is_told(incoming.connection.congestion_state()), carries_images, "{plane}, accepted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_for_a_link_share_one_dial() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    echo(b.endpoint.accept(Alpn::Raft));
    let links = futures::future::join_all((0..50).map(|_| a.endpoint.link(b.peer(), Plane::Raft))).await;
    let ids: std::collections::BTreeSet<usize> =
        links.into_iter().map(|link| link.expect("link").stable_id()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(b.endpoint.connections().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_dialled_anew_after_it_closed() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    let mut accepted = b.endpoint.accept(Alpn::Raft);
    let first = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    within("accept", accepted.recv()).await.expect("accepted").connection.close(9u32.into(), b"");
    within("close", first.closed()).await;
    let second = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link again");
    assert_ne!(second.stable_id(), first.stable_id());
    assert!(second.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_addresses_do_not_keep_a_link_from_the_live_one() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    echo(b.endpoint.accept(Alpn::Raft));
    let silent: Vec<std::net::UdpSocket> = (0..3)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).expect("socket");
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
            socket.into()
        })
        .collect();
    let mut addresses: Vec<SocketAddr> = silent.iter().map(|s| s.local_addr().expect("address")).collect();
    addresses.push(b.address());
    a.membership.set_members(BTreeMap::from([(b.peer(), addresses)]));
    let started = tokio::time::Instant::now();
    let link = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    assert_eq!(link.remote_address(), b.address());
    assert!(started.elapsed() < Duration::from_secs(2), "took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_in_the_handshake_on_every_protocol() {
    let (member, stranger) = (Node::new(), Node::new());
    stranger.membership.set_members(BTreeMap::from([member.entry()]));
    let mut accepted: Vec<_> = Alpn::ALL.into_iter().map(|alpn| member.endpoint.accept(alpn)).collect();
    for (n, alpn) in Alpn::ALL.into_iter().enumerate() {
        let error = within("refusal", outcome(&stranger, &member, alpn)).await.expect_err("refused");
        assert!(error.contains("alert") || error.contains("aborted"), "{alpn}: {error}");
        let expected = u64::try_from(n).expect("few") + 1;
        within("count", async {
            while rejected(&member, Rejection::Handshake) < expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    assert!(accepted.iter_mut().all(|queue| queue.try_recv().is_none()), "nobody was let in");
    assert!(member.endpoint.connections().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_to_join_and_to_nothing_else() {
    let (member, guest) = (Node::new(), Node::new());
    guest.membership.set_members(BTreeMap::from([member.entry()]));
    member.membership.set_guests(BTreeMap::from([(guest.peer(), FOREVER)]));
    let _queues: Vec<_> = [Alpn::Libp2p, Alpn::Raft, Alpn::Chunk].map(|alpn| member.endpoint.accept(alpn)).into();
    let mut joins = member.endpoint.accept(Alpn::Join);
    for alpn in [Alpn::Libp2p, Alpn::Raft, Alpn::Chunk] {
        within("refusal", outcome(&guest, &member, alpn)).await.expect_err("refused");
    }
    within("join", outcome(&guest, &member, Alpn::Join)).await.expect("admitted");
    assert_eq!(within("accept", joins.recv()).await.expect("accepted").peer, guest.peer());
    member.membership.set_guests(BTreeMap::from([(guest.peer(), UnixMillis(1))]));
    within("refusal", outcome(&guest, &member, Alpn::Join)).await.expect_err("its token expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_dials_with_the_tokens_key_before_it_knows_any_member() {
    let (member, joiner) = (Node::new(), Node::new());
    member.membership.set_guests(BTreeMap::from([(joiner.peer(), FOREVER)]));
    echo(member.endpoint.accept(Alpn::Join));
    let connection = joiner.endpoint.dial(member.peer(), member.address(), Alpn::Join).await.expect("admitted");
    assert_eq!(ask(&connection).await, b"ping");
    joiner.membership.set_members(BTreeMap::new());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(connection.close_reason().is_none(), "the joiner's own view does not end it");
    member.membership.set_guests(BTreeMap::new());
    within("close", connection.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_peer_at_the_address_is_refused_by_the_dialler() {
    let (a, b, c) = (Node::new(), Node::new(), Node::new());
    acquaint(&[&a, &b, &c]);
    let mut accepted = c.endpoint.accept(Alpn::Raft);
    let error = a.endpoint.dial(b.peer(), c.address(), Alpn::Raft).await.expect_err("c is not b");
    assert!(matches!(error, DialError::Handshake(_)), "{error:?}");
    a.membership.set_members(BTreeMap::from([(b.peer(), vec![c.address()])]));
    let error = a.endpoint.link(b.peer(), Plane::Raft).await.expect_err("c is not b");
    assert!(matches!(error, LinkError::Unreachable { tried: 1, .. }), "{error:?}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(accepted.try_recv().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_members_connections_are_closed_and_it_cannot_come_back() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    let mut accepted = b.endpoint.accept(Alpn::Raft);
    let link = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    let inbound = within("accept", accepted.recv()).await.expect("accepted").connection;
    b.membership.set_members(BTreeMap::from([b.entry()]));
    within("close", inbound.closed()).await;
    let reason = within("close", link.closed()).await;
    assert!(reason.to_string().contains("no longer a member"), "{reason}");
    let error = a.endpoint.link(b.peer(), Plane::Raft).await.expect_err("refused");
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error:?}");
    a.membership.set_members(BTreeMap::new());
    let error = a.endpoint.link(b.peer(), Plane::Raft).await.expect_err("not a member here either");
    assert!(matches!(error, LinkError::NotAMember(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_that_nobody_serves_is_refused_before_it_counts_as_a_link() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    let error = a.endpoint.dial(b.peer(), b.address(), Alpn::Raft).await.expect_err("nobody serves it");
    assert!(matches!(error, DialError::Refused(_)), "{error:?}");
    assert_eq!(rejected(&b, Rejection::NotServed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_nobody_took_are_closed_with_their_queue() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    let queue = b.endpoint.accept(Alpn::Raft);
    let link = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    drop(queue);
    within("close", link.closed()).await;
    a.endpoint.link(b.peer(), Plane::Raft).await.expect_err("nobody serves it now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_opens_too_many_connections_loses_its_oldest() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    echo(b.endpoint.accept(Alpn::Raft));
    let mut opened = Vec::new();
    for _ in 0..registry::CONNECTIONS_PER_PEER_MAX + 3 {
        opened.push(a.endpoint.dial(b.peer(), b.address(), Alpn::Raft).await.expect("admitted"));
    }
    for old in &opened[..3] {
        within("close", old.closed()).await;
    }
    for new in &opened[3..] {
        assert_eq!(ask(new).await, b"ping");
    }
    assert_eq!(rejected(&b, Rejection::TooManyConnections), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_the_port_changes_nothing() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    echo(b.endpoint.accept(Alpn::Raft));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).expect("socket");
    for n in 0..2000u32 {
        let mut noise = [0; 1200];
        blake3::Hasher::new().update(&n.to_be_bytes()).finalize_xof().fill(&mut noise);
        // Every second looks like a first packet of QUIC version 1.
        if n % 2 == 0 {
            noise[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        socket.send_to(&noise, &b.address().into()).expect("send");
    }
    let link = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    assert_eq!(ask(&link).await, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_in_numbers_do_not_keep_a_member_out() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    echo(b.endpoint.accept(Alpn::Raft));
    let strangers: Vec<Node> = (0..8).map(|_| Node::new()).collect();
    let flood = futures::future::join_all(strangers.iter().flat_map(|stranger| {
        stranger.membership.set_members(BTreeMap::from([b.entry()]));
        (0..40).map(|_| stranger.endpoint.dial(b.peer(), b.address(), Alpn::Raft))
    }));
    let (dialled, link) = within("flood", futures::future::join(flood, a.endpoint.link(b.peer(), Plane::Raft))).await;
    assert!(dialled.iter().all(Result::is_err), "no stranger got in");
    // The flood may have cost the member its first try, as any packet loss would.
    let link = match link {
        Ok(link) => link,
        Err(_) => a.endpoint.link(b.peer(), Plane::Raft).await.expect("link after the flood"),
    };
    assert_eq!(ask(&link).await, b"ping");
    assert_eq!(b.endpoint.connections().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_tells_the_peers_and_frees_the_port() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    echo(b.endpoint.accept(Alpn::Raft));
    let link = a.endpoint.link(b.peer(), Plane::Raft).await.expect("link");
    let address = b.address();
    b.endpoint.close().await;
    let reason = within("close", link.closed()).await;
    assert!(reason.to_string().contains("the node is stopping"), "{reason}");
    drop(b);
    within("rebind", async {
        let config = || {
            let membership = Membership::new(Clock::system());
            EndpointConfig::new(Identity::generate(), membership, Socket::Udp(address), Clock::system())
        };
        while Endpoint::bind(config()).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
