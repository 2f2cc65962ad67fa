//! Two swarms, each on its node's port.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::Plane;
use crate::testing::{Node, acquaint, within};

fn config() -> PresenceConfig {
    PresenceConfig { interval: Duration::from_millis(100), ..PresenceConfig::new("test") }
}

fn start(node: &Node) -> (Presence, mpsc::Receiver<PresenceEvent>) {
    Presence::start(&node.endpoint, &config()).expect("start presence")
}

async fn until(events: &mut mpsc::Receiver<PresenceEvent>, what: &str, is: impl Fn(&PresenceEvent) -> bool) {
    within(what, async { while !is(&events.recv().await.expect("presence runs")) {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_see_each_others_presence() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    let ((presence_a, mut events_a), (presence_b, mut events_b)) = (start(&a), start(&b));
    presence_a.publish(Bytes::from_static(b"a is well")).expect("short");
    presence_b.publish(Bytes::from_static(b"b is well")).expect("short");
    assert_eq!(presence_a.publish(Bytes::from(vec![0; 5000])), Err(PayloadTooLong(5000)));
    let (peer_a, peer_b, address_a) = (a.peer(), b.peer(), a.address());
    until(&mut events_a, "connection", |e| *e == PresenceEvent::Connected { peer: peer_b }).await;
    let payload = Bytes::from_static(b"a is well");
    until(&mut events_b, "payload", |e| *e == PresenceEvent::Payload { peer: peer_a, payload: payload.clone() }).await;
    let payload = Bytes::from_static(b"b is well");
    until(&mut events_a, "payload", |e| *e == PresenceEvent::Payload { peer: peer_b, payload: payload.clone() }).await;
    until(&mut events_a, "round trip", |e| matches!(e, PresenceEvent::Rtt { peer, .. } if *peer == peer_b)).await;
    // The other planes go on beside it, on the same port.
    let mut raft = a.endpoint.accept(crate::Alpn::Raft);
    let link = b.endpoint.link(peer_a, Plane::Raft).await.expect("link");
    assert_eq!(link.remote_address(), address_a);
    assert!(raft.recv().await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_disconnected_and_found_again_when_it_returns() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    let ((_presence_a, mut events_a), (_presence_b, _events_b)) = (start(&a), start(&b));
    let peer = b.peer();
    until(&mut events_a, "connection", |e| *e == PresenceEvent::Connected { peer }).await;
    a.membership.set_members(BTreeMap::from([a.entry()]));
    until(&mut events_a, "disconnection", |e| *e == PresenceEvent::Disconnected { peer }).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!a.endpoint.connections().iter().any(|c| c.peer == peer), "it is kept out");
    acquaint(&[&a, &b]);
    until(&mut events_a, "connection", |e| *e == PresenceEvent::Connected { peer }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_is_noticed() {
    let (a, b) = (Node::new(), Node::new());
    acquaint(&[&a, &b]);
    let ((_presence_a, mut events_a), (presence_b, events_b)) = (start(&a), start(&b));
    let peer = b.peer();
    until(&mut events_a, "connection", |e| *e == PresenceEvent::Connected { peer }).await;
    drop((presence_b, events_b));
    until(&mut events_a, "disconnection", |e| *e == PresenceEvent::Disconnected { peer }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_refuses_us_never_counts_as_connected() {
    let (a, b) = (Node::new(), Node::new());
    a.membership.set_members(BTreeMap::from([a.entry(), b.entry()]));
    let ((_presence_a, mut events_a), _b) = (start(&a), start(&b));
    let quiet = tokio::time::timeout(Duration::from_secs(3), events_a.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
