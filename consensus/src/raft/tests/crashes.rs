//! Power failures: of one node after another, and of all at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maillage_host::engine::MemoryHome;

use crate::raft::testing::{CrashDisk, Mesh, Site, commit, eventually, linearize, toy_command};
use crate::raft::{Group, ProposeError};

const LONG: Duration = Duration::from_secs(15);

fn site(disk: &CrashDisk) -> Site {
    Site { snapshot_every: 60, keep_log: 10, ..Site::new(disk.handle(), Arc::new(MemoryHome::default())) }
}

/// Every command acknowledged so far, with the place it was given.
#[derive(Default)]
struct Acknowledged(BTreeMap<u64, u64>);

impl Acknowledged {
    /// Proposes `commands` new commands, some at a time, through `group`.
    async fn propose(&mut self, group: &Group, commands: u64) {
        let first = self.0.keys().next_back().map_or(1, |last| last + 1);
        let proposals = (first..first + commands)
            .map(|id| async move { (id, group.propose(toy_command(id, &id.to_be_bytes()), LONG).await) });
        for (id, result) in futures::future::join_all(proposals).await {
            match result {
                Ok(committed) => {
                    let place = u64::from_be_bytes(committed.outcome.as_ref().try_into().expect("eight bytes"));
                    self.0.insert(id, place);
                }
                Err(ProposeError::Unknown | ProposeError::Halted(_) | ProposeError::NoQuorum) => {}
                Err(error) => panic!("command {id}: {error}"),
            }
        }
    }

    /// Each acknowledged command is in the state, at the place that was acknowledged.
    async fn check(&self, group: &Group) {
        linearize(group).await;
        let reader = group.reader();
        for (id, place) in &self.0 {
            let found = reader.get(&[b"d".as_slice(), &id.to_be_bytes()].concat()).expect("get");
            assert_eq!(found, Some(place.to_be_bytes().to_vec()), "acknowledged command {id} is lost or moved");
        }
    }
}

async fn crash(mesh: &Mesh, node_id: u64, disk: &CrashDisk) {
    let group = mesh.forget(node_id).expect("it ran");
    disk.crash();
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_all_nodes_lose_power_again_and_again() {
    let mesh = Mesh::default();
    let disks: Vec<CrashDisk> = (0..3).map(CrashDisk::new).collect();
    let mut groups = mesh.found(disks.iter().map(site).collect()).await;
    let mut acknowledged = Acknowledged::default();
    for round in 0..8 {
        acknowledged.propose(&groups[round % 3], 40).await;
        for (node_id, disk) in (1..).zip(&disks) {
            crash(&mesh, node_id, disk).await;
        }
        groups.clear();
        for (node_id, disk) in (1..).zip(&disks) {
            groups.push(mesh.start(node_id, site(disk)).await);
        }
        acknowledged.check(&groups[(round + 1) % 3]).await;
    }
    assert_eq!(acknowledged.0.len(), 320);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_nodes_lose_power_in_turn_under_load() {
    let mesh = Mesh::default();
    let disks: Vec<CrashDisk> = (10..13).map(CrashDisk::new).collect();
    let mut groups = mesh.found(disks.iter().map(site).collect()).await;
    let mut acknowledged = Acknowledged::default();
    for round in 0..9 {
        let (victim, witness) = (round % 3, (round + 1) % 3);
        let asked = groups[witness].clone();
        let load = acknowledged.propose(&asked, 60);
        let fault = async {
            tokio::time::sleep(Duration::from_millis(15)).await;
            crash(&mesh, victim as u64 + 1, &disks[victim]).await;
            mesh.start(victim as u64 + 1, site(&disks[victim])).await
        };
        let ((), restarted) = tokio::join!(load, fault);
        groups[victim] = restarted;
        acknowledged.check(&groups[victim]).await;
    }
    assert!(acknowledged.0.len() > 400, "{} acknowledged", acknowledged.0.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_is_noticed_by_these_tests() {
    let mesh = Mesh::default();
    let disk = CrashDisk::new(5);
    let group = mesh.found(vec![site(&disk)]).await.remove(0);
    disk.lie_about_syncs();
    let mut acknowledged = Acknowledged::default();
    acknowledged.propose(&group, 40).await;
    crash(&mesh, 1, &disk).await;
    let lost = match mesh.try_start(1, site(&disk)).await {
        Err(_) => true,
        Ok(group) => {
            linearize(&group).await;
            let reader = group.reader();
            let found = |id: &u64| reader.get(&[b"d".as_slice(), &id.to_be_bytes()].concat()).expect("get").is_some();
            !acknowledged.0.keys().all(found)
        }
    };
    assert!(lost, "forty unsynced commands survived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_stalls_hands_over_and_writes_go_on() {
    let mesh = Mesh::default();
    let disks: Vec<CrashDisk> = (20..23).map(CrashDisk::new).collect();
    let groups = mesh.found(disks.iter().map(site).collect()).await;
    commit(&groups[1], toy_command(1, b"")).await;
    assert!(groups[0].leads().is_some());
    disks[0].stall();
    commit(&groups[1], toy_command(2, b"")).await;
    eventually("another node leads", || groups[1].leads().is_some() || groups[2].leads().is_some()).await;
    commit(&groups[1], toy_command(3, b"")).await;
    for group in &groups[1..] {
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_has_nothing_to_write_notices_that_its_disk_stalls() {
    let mesh = Mesh::default();
    let disks: Vec<CrashDisk> = (23..26).map(CrashDisk::new).collect();
    let groups = mesh.found(disks.iter().map(site).collect()).await;
    assert!(groups[0].leads().is_some());
    // Until the voters are known, and what is committed is noted in the log, which waits a while for company.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let written = groups[0].watch().borrow().last_log;
    disks[0].stall();
    eventually("another node leads", || {
        let is_idle = groups[0].watch().borrow().last_log == written;
        assert!(is_idle || groups[0].leads().is_none(), "only its heartbeat asks the disk of the leader");
        groups[1].leads().is_some() || groups[2].leads().is_some()
    })
    .await;
    commit(&groups[1], toy_command(1, b"")).await;
    for group in &groups[1..] {
        group.shutdown().await;
    }
}
