//! What nodes say of themselves in keep-alives, and what the leader makes of it.

use std::sync::Arc;

use maillage_host::engine::MemoryHome;
use maillage_host::{Clock, UnixMillis};

use crate::raft::testing::{Mesh, Site, eventually, real_disk};

/// A clock that is this far ahead.
fn ahead(milliseconds: u64) -> Clock {
    let clock = Clock::system();
    Clock::from_fn(move || UnixMillis(clock.now().0 + milliseconds))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_knows_every_format_and_every_clock() {
    let mesh = Mesh::default();
    let (directories, disks): (Vec<_>, Vec<_>) = (0..3).map(|_| real_disk()).unzip();
    let site = |at: usize| Site::new(disks[at].clone(), Arc::new(MemoryHome::default()));
    let groups =
        mesh.found(vec![site(0), Site { clock: ahead(3_600_000), ..site(1) }, Site { format: 1, ..site(2) }]).await;
    let said = || groups[0].said().unwrap_or_default();
    eventually("every clock is measured", || said().values().filter(|said| said.clock.is_some()).count() == 3).await;
    let formats: Vec<u8> = said().values().map(|said| said.format).collect();
    assert_eq!(formats, [2, 2, 1]);
    let near = |node: u64, expected: i64| {
        let clock = said()[&node].clock.expect("measured");
        let error = i64::try_from(clock.round_trip.as_millis()).expect("short") + 2;
        assert!((clock.ahead_ms - expected).abs() <= error, "node {node}: {clock:?}, not {expected}");
    };
    near(1, 0);
    near(2, 3_600_000);
    near(3, 0);
    let own = groups[1].clock_offset().expect("measured");
    assert!((3_500_000..3_700_000).contains(&own.ahead_ms), "{own:?}");
    assert!(groups[1].said().is_none(), "a follower is told nothing");
    groups[0].transfer_leader(2).await.expect("handed over");
    eventually("the new leader measures anew", || {
        let said = groups[1].said().unwrap_or_default();
        said.get(&1).is_some_and(|said| said.clock.is_some_and(|clock| clock.ahead_ms < -3_500_000))
    })
    .await;
    for group in &groups {
        group.shutdown().await;
    }
    drop(directories);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_the_first_version_hears_us_all_the_same() {
    let mesh = Mesh::default();
    let (directories, disks): (Vec<_>, Vec<_>) = (0..2).map(|_| real_disk()).unzip();
    let sites = disks.into_iter().map(|disk| Site::new(disk, Arc::new(MemoryHome::default())));
    mesh.make_first_version(1);
    let groups = mesh.found(sites.collect()).await;
    eventually("the follower is heard", || groups[0].said().is_some_and(|said| said.contains_key(&2))).await;
    assert_eq!(groups[0].said().expect("it leads")[&2].format, 1, "no more than that it is there");
    assert!(groups[1].clock_offset().is_none(), "such a leader tells no time");
    for group in &groups {
        group.shutdown().await;
    }
    drop(directories);
}
