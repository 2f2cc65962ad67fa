//! A measurement, not a check: proposals a second over three nodes of this process on the real disk.
//!
//! `cargo test --release -p maillage-consensus --lib throughput -- --ignored --nocapture`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maillage_host::engine::FjallHome;
use tokio::time::Instant;

use crate::raft::testing::{Mesh, Site, real_disk, toy_command};

const ROUND: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, meaningful only in release on an idle machine"]
async fn throughput_of_proposals() {
    let mesh = Mesh::default();
    let (directories, disks): (Vec<_>, Vec<_>) = (0..3).map(|_| real_disk()).unzip();
    let site = |at: usize| {
        Site::new(disks[at].clone(), Arc::new(FjallHome::new(directories[at].path().join("state"), 32 << 20)))
    };
    let groups = mesh.found((0..3).map(site).collect()).await;
    let next = Arc::new(AtomicU64::new(1));
    for (place, group) in [("leader", &groups[0]), ("follower", &groups[1])] {
        for clients in [1, 16, 256] {
            let done = Arc::new(AtomicU64::new(0));
            let end = Instant::now() + ROUND;
            let tasks: Vec<_> = (0..clients)
                .map(|_| {
                    let (group, next, done) = (group.clone(), Arc::clone(&next), Arc::clone(&done));
                    maillage_host::spawn(async move {
                        while Instant::now() < end {
                            let id = next.fetch_add(1, Ordering::Relaxed);
                            let command = toy_command(id, &[7; 1000]);
                            group.propose(command, Duration::from_secs(10)).await.expect("committed");
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
            let rate = done.load(Ordering::Relaxed) as f64 / ROUND.as_secs_f64();
            println!("{place}, {clients} clients: {rate:.0} proposals/s");
        }
    }
    for group in &groups {
        group.shutdown().await;
    }
}
