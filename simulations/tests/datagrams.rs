//! Production endpoints (QUIC, mutual TLS, membership, chunk exchange) over the simulated datagrams.
//!
//! Most of it runs with the process's own randomness and checks behaviour. Bit for bit equality is
//! checked between two processes, this very test started again, whose randomness is seeded below libc
//! by the same file as in the `simulate` binary.

use std::process::Command;
use std::time::Duration;

use maillage_simulations::datagrams::{Flaws, PORT, Scene};
use maillage_transport::{Alpn, LinkError, Plane};

#[path = "datagrams/node.rs"]
mod node;
#[path = "datagrams/rates.rs"]
mod rates;
#[path = "../src/bin/simulate/shim.rs"]
mod shim;
#[path = "datagrams/wire.rs"]
mod wire;

use node::{Life, Node, acquaint, chunks};

const LATENCY: Duration = Duration::from_millis(20);
const JITTER: Duration = Duration::from_millis(1);
/// 100 Mb/s.
const RATE: u64 = 12_500_000;
/// The endpoint's idle time-out, after which a silent peer counts as gone.
const IDLE: Duration = Duration::from_secs(3);

/// Nodes at slots 1 … that know and reach each other.
fn nodes<const COUNT: usize>(scene: &Scene) -> [Node; COUNT] {
    let slots: [u32; COUNT] = std::array::from_fn(|at| u32::try_from(at + 1).expect("few"));
    scene.join(&slots, LATENCY, JITTER, RATE);
    let nodes = slots.map(|slot| Node::new(scene, slot));
    acquaint(scene, &nodes.each_ref());
    nodes
}

fn lossy(scene: &Scene, flaws: Flaws) {
    scene.set_flaws(1, 2, flaws);
    scene.set_flaws(2, 1, flaws);
}

#[tokio::test(start_paused = true)]
async fn chunks_arrive_whole_over_a_link_that_loses_one_datagram_in_a_hundred() {
    let scene = Scene::open(1, 0.01).expect("scene");
    let [a, b] = nodes(&scene);
    let wanted = chunks(4);
    let (near, _far) = (a.begin(&scene, &[]).await, b.begin(&scene, &wanted).await);
    lossy(&scene, Flaws { loss: 0.01, ..Flaws::default() });
    let link = near.link(&scene, b.peer(), Plane::Chunk).await.expect("link");
    let started = scene.now();
    assert!(near.get_all(&scene, &link, &wanted).await == wanted, "the bytes are those that were asked for");
    let (took, traffic) = (scene.now() - started, scene.traffic());
    assert!(traffic.lost >= 10, "{traffic:?}");
    assert!(traffic.bytes > 4 << 20, "{traffic:?}");
    let line_rate = Duration::from_secs((4 << 20) / RATE) + LATENCY;
    assert!(took > line_rate && took < Duration::from_secs(60), "took {took:?}");
    assert!(traffic.batches * 3 < traffic.datagrams, "bulk travels in batches: {traffic:?}");
}

#[tokio::test(start_paused = true)]
async fn a_one_way_cut_ends_a_link_after_the_idle_time_and_mending_lets_it_be_made_anew() {
    let scene = Scene::open(2, 0.01).expect("scene");
    let [a, b] = nodes(&scene);
    let (near, _far) = (a.begin(&scene, &[]).await, b.begin(&scene, &[]).await);
    let link = near.link(&scene, b.peer(), Plane::Raft).await.expect("link");
    tokio::time::sleep(10 * IDLE).await;
    assert!(link.close_reason().is_none(), "keep-alives keep it open");
    scene.cut(1, 2);
    let cut_at = scene.now();
    let why = near.ended(&scene, &link).await;
    let took = scene.now() - cut_at;
    assert_eq!(why, "timed out");
    // The far end falls silent after the idle time, the near one may hear of it only so much later.
    assert!(took >= IDLE && took < 3 * IDLE, "took {took:?}");
    let refused = near.link(&scene, b.peer(), Plane::Raft).await.expect_err("still cut");
    assert!(matches!(refused, LinkError::Unreachable { .. } | LinkError::Timeout(_)), "{refused:?}");
    scene.mend(1, 2);
    let again = near.link_at_last(&scene, b.peer(), Plane::Raft).await;
    assert_ne!(again.stable_id(), link.stable_id());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_died_and_came_back_is_reached_again_under_its_address() {
    let scene = Scene::open(3, 0.01).expect("scene");
    let [a, b] = nodes(&scene);
    let wanted = chunks(1);
    let (near, far) = (a.begin(&scene, &[]).await, b.begin(&scene, &wanted).await);
    let link = near.link(&scene, b.peer(), Plane::Chunk).await.expect("link");
    scene.end(2);
    drop(far);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(link.close_reason().is_none(), "the dead say nothing");
    let _far = b.begin(&scene, &wanted).await;
    let back_at = scene.now();
    assert_eq!(near.ended(&scene, &link).await, "reset by peer");
    assert!(scene.now() - back_at < IDLE, "a probe finds out before the silence does");
    let link = near.link_at_last(&scene, b.peer(), Plane::Chunk).await;
    assert!(near.get_all(&scene, &link, &wanted).await == wanted);
}

#[tokio::test(start_paused = true)]
async fn a_link_to_a_life_that_is_over_ends_within_a_round_trip_once_the_next_one_has_begun() {
    let scene = Scene::open(7, 0.01).expect("scene");
    let [a, b] = nodes(&scene);
    let (near, far) = (a.begin(&scene, &[]).await, b.begin(&scene, &[]).await);
    // The dialler has a token from the handshake, the dialled one only from a later frame.
    let dialled = near.link(&scene, b.peer(), Plane::Raft).await.expect("link");
    far.link(&scene, a.peer(), Plane::Raft).await.expect("link");
    let accepted = near.accepted_from(b.peer()).expect("it came");
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.end(2);
    drop(far);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(dialled.close_reason().is_none() && accepted.close_reason().is_none(), "the dead say nothing");
    let _far = b.begin(&scene, &[]).await;
    for link in [dialled, accepted] {
        let speaks_at = scene.now();
        near.speak(&scene, &link).await;
        assert_eq!(near.ended(&scene, &link).await, "reset by peer");
        let took = scene.now() - speaks_at;
        // There and back, each with jitter, and two ticks of the timers.
        assert!(took <= 2 * (LATENCY + 4 * JITTER) + Duration::from_millis(2), "took {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_node_goes_on_where_it_was_if_it_is_let_go_on_in_time() {
    let scene = Scene::open(4, 0.01).expect("scene");
    let [a, b] = nodes(&scene);
    let (near, _far) = (a.begin(&scene, &[]).await, b.begin(&scene, &[]).await);
    let link = near.link(&scene, b.peer(), Plane::Raft).await.expect("link");
    scene.pause(2);
    tokio::time::sleep(IDLE / 2).await;
    scene.resume(2);
    tokio::time::sleep(2 * IDLE).await;
    assert!(link.close_reason().is_none());
    scene.pause(2);
    assert_eq!(near.ended(&scene, &link).await, "timed out");
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_refused_and_a_guest_joins_from_a_second_socket() {
    let scene = Scene::open(5, 0.01).expect("scene");
    let [a, b, stranger] = nodes(&scene);
    let (_near, far) = (a.begin(&scene, &[]).await, b.begin(&scene, &[]).await);
    acquaint(&scene, &[&a, &b]);
    let outside = stranger.begin(&scene, &[]).await;
    for plane in [Plane::Raft, Plane::Chunk] {
        let refused = outside.link(&scene, b.peer(), plane).await.expect_err("no member");
        assert!(refused.to_string().contains("refused us"), "{refused}");
    }
    assert!(far.endpoint.connections().is_empty());
    let guest = Node::new(&scene, stranger.slot);
    b.membership.set_guests([(guest.peer(), maillage_host::UnixMillis(u64::MAX))].into());
    let mut joins = far.endpoint.accept(Alpn::Join);
    let second = guest.open(&scene, 0).await;
    let (endpoint, peer, address) = (second.endpoint.clone(), b.peer(), scene.address(2, PORT));
    let dialled = scene.run(guest.slot, async move { endpoint.dial(peer, address, Alpn::Join).await });
    dialled.await.expect("run").expect("a guest is admitted to join");
    let joined = joins.recv().await.expect("it arrived");
    assert_eq!(joined.peer, guest.peer());
    assert_eq!(Some(joined.connection.remote_address()), second.endpoint.local_addr().ok());
    assert_ne!(joined.connection.remote_address(), scene.address(3, PORT));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_loses_its_links_and_the_others_keep_theirs() {
    let scene = Scene::open(6, 0.01).expect("scene");
    let [a, b, c] = nodes(&scene);
    let mut lives = Vec::new();
    for node in [&a, &b, &c] {
        lives.push(node.begin(&scene, &[]).await);
    }
    let kept = lives[0].link(&scene, b.peer(), Plane::Raft).await.expect("link");
    let lost = lives[0].link(&scene, c.peer(), Plane::Raft).await.expect("link");
    let broken = lives[1].link(&scene, c.peer(), Plane::Raft).await.expect("link");
    for slot in [1, 2] {
        scene.cut(slot, 3);
        scene.cut(3, slot);
    }
    for (life, link) in [(&lives[0], &lost), (&lives[1], &broken)] {
        assert_eq!(life.ended(&scene, link).await, "timed out");
    }
    scene.heal();
    assert!(kept.close_reason().is_none());
    lives[2].link_at_last(&scene, a.peer(), Plane::Raft).await;
    scene.break_connection(1, 2);
    assert_eq!(lives[0].ended(&scene, &kept).await, "timed out");
    lives[0].link_at_last(&scene, b.peer(), Plane::Raft).await;
}

/// Set, to a seed, in a copy of this process that is to run one scene and print its digest.
const SEED: &str = "MAILLAGE_DATAGRAMS_SEED";

#[test]
fn the_same_seed_gives_the_same_datagrams_in_two_processes() {
    const NAME: &str = "the_same_seed_gives_the_same_datagrams_in_two_processes";
    if let Some(seed) = std::env::var_os(SEED) {
        shim::fix_addresses();
        let seed = seed.to_str().expect("a number").parse().expect("a number");
        shim::enable(seed);
        println!("account: {:?}", eventful(seed));
        return;
    }
    let account = |seed: &str| {
        let program = std::env::current_exe().expect("this program");
        let output =
            Command::new(program).args(["--exact", NAME, "--nocapture"]).env(SEED, seed).output().expect("start");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.split_once("account: ")).map(|(_, account)| account.to_owned());
        line.unwrap_or_else(|| panic!("no account:\n{text}\n{}", String::from_utf8_lossy(&output.stderr)))
    };
    let (first, second, other) = (account("7"), account("7"), account("8"));
    assert_eq!(first, second);
    assert_ne!(first, other, "seeds differ");
}

/// Three nodes on a poor network, one of which dies and returns; the scene's account.
fn eventful(seed: u64) -> (String, u64, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("runtime").block_on(async {
        let scene = Scene::open(seed, 0.05).expect("scene");
        let nodes: [Node; 3] = nodes(&scene);
        let wanted = chunks(2);
        let mut lives: Vec<Life> = Vec::new();
        for node in &nodes {
            lives.push(node.begin(&scene, &wanted).await);
        }
        lossy(&scene, Flaws { loss: 0.01, duplication: 0.01, reordering: 0.02, ..Flaws::default() });
        for life in &lives {
            for peer in nodes.iter().filter(|node| node.slot != life.slot) {
                life.link(&scene, peer.peer(), Plane::Raft).await.expect("link");
                let link = life.link(&scene, peer.peer(), Plane::Chunk).await.expect("link");
                assert!(life.get_all(&scene, &link, &wanted).await == wanted);
            }
        }
        scene.end(2);
        scene.cut(3, 1);
        tokio::time::sleep(Duration::from_millis(700)).await;
        lives[1] = nodes[1].begin(&scene, &wanted).await;
        scene.mend(3, 1);
        let link = lives[1].link_at_last(&scene, nodes[2].peer(), Plane::Chunk).await;
        assert!(lives[1].get_all(&scene, &link, &wanted).await == wanted);
        tokio::time::sleep(10 * IDLE).await;
        scene.account()
    })
}
