//! How fast the simulated network runs, by command:
//! `cargo test --release -p maillage-simulations --test datagrams rate -- --ignored --nocapture --test-threads 1`

use std::time::Duration;

use maillage_simulations::datagrams::Scene;
use maillage_transport::Plane;

use super::node::{Life, Node, acquaint, chunks};
use super::shim::real_now;

const LATENCY: Duration = Duration::from_millis(10);
/// 1 Gb/s.
const RATE: u64 = 125_000_000;

async fn mesh(scene: &Scene, count: u32, shelf: &[bytes::Bytes]) -> (Vec<Node>, Vec<Life>) {
    let slots: Vec<u32> = (1..=count).collect();
    scene.join(&slots, LATENCY, LATENCY / 10, RATE);
    let nodes: Vec<Node> = slots.iter().map(|slot| Node::new(scene, *slot)).collect();
    acquaint(scene, &nodes.iter().collect::<Vec<_>>());
    let mut lives = Vec::new();
    for node in &nodes {
        lives.push(node.begin(scene, shelf).await);
    }
    (nodes, lives)
}

/// What a stretch of a scene cost.
struct Cost {
    simulated: f64,
    wall: f64,
    polls: u64,
    datagrams: u64,
    batches: u64,
    pumped: u64,
}

async fn measure(scene: &Scene, work: impl Future<Output = ()>) -> Cost {
    let (from, simulated, wall, polls) = (scene.traffic(), scene.now(), real_now(), scene.account().2);
    work.await;
    let to = scene.traffic();
    Cost {
        simulated: (scene.now() - simulated).as_secs_f64(),
        wall: (real_now() - wall).as_secs_f64(),
        polls: scene.account().2 - polls,
        datagrams: to.datagrams - from.datagrams,
        batches: to.batches - from.batches,
        pumped: to.pumped - from.pumped,
    }
}

#[tokio::test(start_paused = true)]
#[ignore = "measures; by command, in release"]
async fn rate_of_five_idle_nodes_linked_on_two_planes() {
    let scene = Scene::open(1, 0.0).expect("scene");
    let (nodes, lives) = mesh(&scene, 5, &[]).await;
    let mut links = Vec::new();
    let linking = measure(&scene, async {
        for life in &lives {
            for peer in nodes.iter().filter(|node| node.slot != life.slot) {
                for plane in [Plane::Raft, Plane::Chunk] {
                    links.push(life.link(&scene, peer.peer(), plane).await.expect("link"));
                }
            }
        }
    })
    .await;
    println!("{} links made: {:.1} ms of wall time each", links.len(), linking.wall * 1000.0 / links.len() as f64);
    let cost = measure(&scene, tokio::time::sleep(Duration::from_secs(600))).await;
    assert!(links.iter().all(|link| link.close_reason().is_none()), "all links stay");
    println!(
        "idle: {:.0} simulated seconds a wall second; a simulated second: {:.0} datagrams, {:.0} polls, {:.0} pumps",
        cost.simulated / cost.wall,
        cost.datagrams as f64 / cost.simulated,
        cost.polls as f64 / cost.simulated,
        cost.pumped as f64 / cost.simulated,
    );
}

#[tokio::test(start_paused = true)]
#[ignore = "measures; by command, in release"]
async fn rate_of_bulk() {
    let scene = Scene::open(1, 0.0).expect("scene");
    let wanted = chunks(256);
    let (nodes, lives) = mesh(&scene, 2, &wanted).await;
    let link = lives[0].link(&scene, nodes[1].peer(), Plane::Chunk).await.expect("link");
    let cost = measure(&scene, async {
        assert!(lives[0].get_all(&scene, &link, &wanted).await == wanted);
    })
    .await;
    println!(
        "bulk: {:.0} MiB a wall second ({:.0} a simulated one); a MiB: {:.0} datagrams, {:.0} batches, {:.0} polls, {:.0} pumps",
        256.0 / cost.wall,
        256.0 / cost.simulated,
        cost.datagrams as f64 / 256.0,
        cost.batches as f64 / 256.0,
        cost.polls as f64 / 256.0,
        cost.pumped as f64 / 256.0,
    );
}
