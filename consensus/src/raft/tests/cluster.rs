//! What a group promises while nodes come, go and are cut off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use maillage_host::EngineHome;
use maillage_host::engine::{FjallHome, MemoryHome};
use tokio::time::{Instant, sleep};

use crate::raft::testing::{Mesh, Site, commit, eventually, linearize, real_disk, toy_command};
use crate::raft::{Group, MembershipError, ProposeError, ReadError, Role};

const LONG: Duration = Duration::from_secs(10);

fn memory() -> Arc<dyn EngineHome> {
    Arc::new(MemoryHome::default())
}

/// A mesh of `count` voters on real disks, with states in memory.
async fn mesh(count: usize) -> (Mesh, Vec<Group>, Vec<tempfile::TempDir>) {
    let mesh = Mesh::default();
    let (directories, disks): (Vec<_>, Vec<_>) = (0..count).map(|_| real_disk()).unzip();
    let groups = mesh.found(disks.into_iter().map(|disk| Site::new(disk, memory())).collect()).await;
    (mesh, groups, directories)
}

/// Proposes a command that was not proposed before; returns its place in the order.
async fn propose(group: &Group, id: u64) -> u64 {
    let committed = commit(group, toy_command(id, b"value")).await;
    u64::from_be_bytes(committed.outcome.as_ref().try_into().expect("eight bytes"))
}

fn count(group: &Group) -> u64 {
    group.reader().get(b"n").expect("get").map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
}

fn leader_of(groups: &[Group]) -> Option<usize> {
    let leaders: Vec<usize> = (0..groups.len()).filter(|at| groups[*at].leads().is_some()).collect();
    leaders.into_iter().max_by_key(|at| groups[*at].leads())
}

async fn stop(groups: &[Group]) {
    for group in groups {
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_proposed_anywhere_is_applied_everywhere() {
    let (_mesh, groups, _directories) = mesh(3).await;
    for (at, group) in (1..).zip(&groups) {
        assert_eq!(propose(group, at).await, at);
    }
    for group in &groups {
        let index = linearize(group).await;
        assert!(group.applied() >= index);
        assert_eq!(count(group), 3, "a linearizable read sees every acknowledged command");
        assert!(group.freshness().age.is_some_and(|age| age < Duration::from_secs(1)));
    }
    eventually("equal chains", || groups.iter().all(|group| group.chain() == groups[0].chain())).await;
    let voters = BTreeSet::from([1, 2, 3]);
    eventually("one leads, two follow, all say so", || {
        let statuses: Vec<_> = groups.iter().map(|group| group.watch().borrow().clone()).collect();
        let leader = statuses.iter().position(|status| status.role == Role::Leader).map(|at| at as u64 + 1);
        let followers = statuses.iter().filter(|status| status.role == Role::Follower).count();
        let agree = statuses.iter().all(|status| status.leader == leader && *status.voters == voters);
        leader.is_some() && followers == 2 && agree
    })
    .await;
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_proposed_twice_is_applied_once() {
    let (_mesh, groups, _directories) = mesh(3).await;
    assert_eq!(propose(&groups[1], 77).await, 1);
    assert_eq!(propose(&groups[2], 77).await, 1);
    assert_eq!(propose(&groups[0], 78).await, 2);
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_leads_when_the_leader_stops_and_nothing_is_lost() {
    let (mesh, mut groups, _directories) = mesh(3).await;
    for id in 1..=20 {
        propose(&groups[1], id).await;
    }
    let leader = leader_of(&groups).expect("a leader");
    let term = groups[leader].leads().expect("it leads");
    mesh.forget(leader as u64 + 1);
    groups.remove(leader).shutdown().await;
    assert_eq!(propose(&groups[0], 21).await, 21);
    let leader = leader_of(&groups).expect("a leader");
    assert!(groups[leader].leads().expect("it leads") > term);
    linearize(&groups[1]).await;
    assert_eq!(count(&groups[1]), 21);
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_serves_no_stale_linearizable_read_and_commits_nothing() {
    let (mesh, groups, _directories) = mesh(3).await;
    propose(&groups[0], 1).await;
    let old = leader_of(&groups).expect("a leader");
    let term = groups[old].leads().expect("it leads");
    mesh.cut(old as u64 + 1, true);
    let others: Vec<&Group> = groups.iter().enumerate().filter(|(at, _)| *at != old).map(|(_, group)| group).collect();
    // Proposed while the lease may still hold: never acknowledged, and its fate is not known.
    let refused = groups[old].propose_in_term(term, toy_command(99, b"lost"), Duration::from_millis(300)).await;
    assert!(matches!(refused, Err(ProposeError::Unknown | ProposeError::NotLeader)), "{refused:?}");
    assert_eq!(propose(others[0], 2).await, 2);
    let started = Instant::now();
    assert_eq!(groups[old].linearize(LONG).await, Err(ReadError::NoQuorum));
    assert!(started.elapsed() < Duration::from_secs(5), "refused after {:?}", started.elapsed());
    mesh.cut(old as u64 + 1, false);
    linearize(&groups[old]).await;
    assert_eq!(count(&groups[old]), 2);
    let refused = groups[old].propose_in_term(term, toy_command(98, b""), LONG).await;
    assert_eq!(refused, Err(ProposeError::NotLeader));
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_writes_are_refused_within_two_seconds() {
    let (mesh, groups, _directories) = mesh(3).await;
    propose(&groups[0], 1).await;
    eventually("it is applied everywhere", || groups.iter().all(|group| count(group) == 1)).await;
    for node_id in [2, 3] {
        mesh.cut(node_id, true);
    }
    // Longer than any of them believes in its leader, itself included: two seconds in these tests.
    let silence = |group: &Group| group.freshness().age.unwrap_or_default();
    eventually("silence", || groups.iter().all(|group| silence(group) > Duration::from_millis(2500))).await;
    for group in &groups {
        let started = Instant::now();
        assert_eq!(group.propose(toy_command(5, b""), LONG).await, Err(ProposeError::NoQuorum));
        // Two seconds, and what a busy machine adds.
        assert!(started.elapsed() < Duration::from_secs(4), "refused after {:?}", started.elapsed());
        assert!(silence(group) > Duration::from_millis(2500), "reads are marked with age");
        assert_eq!(count(group), 1, "reads go on");
    }
    for node_id in [2, 3] {
        mesh.cut(node_id, false);
    }
    assert_eq!(propose(&groups[2], 6).await, 2, "what was refused as never proposed is in no log");
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_comes_after_the_purge_gets_a_snapshot() {
    let mesh = Mesh::default();
    let (_directory, disk) = real_disk();
    let site = Site { snapshot_every: 50, keep_log: 5, ..Site::new(disk, memory()) };
    let founder = mesh.found(vec![site]).await.remove(0);
    for id in 1..=200 {
        propose(&founder, id).await;
    }
    let status = founder.watch();
    eventually("the log is purged", || status.borrow().purged.is_some_and(|purged| purged > 50)).await;
    let (_other, disk) = real_disk();
    let learner = mesh.start(2, Site::new(disk, memory())).await;
    assert!(!learner.is_initialized().await);
    founder.add_learner(2).await.expect("added");
    propose(&founder, 201).await;
    linearize(&learner).await;
    assert_eq!(count(&learner), 201);
    assert_eq!(learner.chain(), founder.chain());
    let status = learner.watch();
    eventually("it has the snapshot", || status.borrow().snapshot.is_some()).await;
    assert_eq!(learner.watch().borrow().role, Role::Learner);
    stop(&[founder, learner]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_comes_back_from_its_disks_with_either_engine() {
    for on_disk in [true, false] {
        let mesh = Mesh::default();
        let (directories, disks): (Vec<_>, Vec<_>) = (0..3).map(|_| real_disk()).unzip();
        let site = |at: usize| {
            let home: Arc<dyn EngineHome> = if on_disk {
                Arc::new(FjallHome::new(directories[at].path().join("state"), 1 << 20))
            } else {
                memory()
            };
            Site { snapshot_every: 40, keep_log: 5, ..Site::new(disks[at].clone(), home) }
        };
        let groups = mesh.found((0..3).map(site).collect()).await;
        for id in 1..=100 {
            propose(&groups[0], id).await;
        }
        let chain = groups[0].chain();
        stop(&groups).await;
        drop(groups);
        for node_id in 1..=3 {
            mesh.forget(node_id);
        }
        let mut groups = Vec::new();
        for at in 0..3 {
            let group = mesh.start(at as u64 + 1, site(at)).await;
            assert!(group.is_initialized().await);
            groups.push(group);
        }
        assert_eq!(groups[0].chain(), chain, "applied as far as was known to be committed (on disk: {on_disk})");
        assert_eq!(propose(&groups[1], 101).await, 101);
        linearize(&groups[2]).await;
        assert_eq!(count(&groups[2]), 101);
        stop(&groups).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_command_halts_every_node_that_applies_it() {
    let mesh = Mesh::default();
    let (_directory, disk) = real_disk();
    let group = mesh.found(vec![Site::new(disk, memory())]).await.remove(0);
    propose(&group, 1).await;
    let unknown = toy_command(2, &[crate::raft::testing::UNKNOWN]);
    let refused = group.propose(unknown, Duration::from_secs(3)).await;
    assert!(matches!(&refused, Err(ProposeError::Halted(reason)) if reason.contains("unknown command")), "{refused:?}");
    let status = group.watch();
    eventually("the status says so", || status.borrow().fatal.is_some()).await;
    assert!(matches!(group.propose(toy_command(3, b""), LONG).await, Err(ProposeError::Halted(_))));
    assert!(matches!(group.linearize(LONG).await, Err(ReadError::Halted(_))));
    assert_eq!(count(&group), 1);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_are_no_good_are_refused_before_the_log() {
    let (_mesh, groups, _directories) = mesh(3).await;
    for group in &groups {
        let refused = group.propose("short".into(), LONG).await;
        assert_eq!(refused, Err(ProposeError::Invalid("no id".to_owned())), "told to whoever asked");
        let long = toy_command(1, &vec![0; crate::raft::MAX_COMMAND]);
        assert!(matches!(group.propose(long, LONG).await, Err(ProposeError::TooLarge(_))));
    }
    let longest = toy_command(1, &vec![0; crate::raft::MAX_COMMAND - 8]);
    commit(&groups[2], longest).await;
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_one_change_at_a_time() {
    let (mesh, mut groups, _directories) = mesh(3).await;
    let (_directory, disk) = real_disk();
    groups.push(mesh.start(4, Site::new(disk, memory())).await);
    let leader = &groups[0];
    assert!(matches!(groups[1].add_learner(4).await, Err(MembershipError::NotLeader { leader: Some(1) })));
    assert!(matches!(leader.set_voters([1, 2, 4].into()).await, Err(MembershipError::Refused(_))), "4 is no learner");
    leader.add_learner(4).await.expect("added");
    leader.add_learner(4).await.expect("added already");
    let (one, two) = tokio::join!(leader.set_voters([1, 2, 4].into()), leader.set_voters([1, 3, 4].into()));
    assert_eq!(two, Err(MembershipError::InProgress));
    one.expect("changed");
    assert!(matches!(leader.set_voters_if([1, 2, 3].into(), [1, 2].into()).await, Err(MembershipError::Refused(_))));
    leader.remove(3).await.expect("removed");
    leader.remove(2).await.expect("a voter is removed");
    assert!(matches!(leader.remove(1).await, Err(MembershipError::Refused(_))), "the leader");
    propose(&groups[3], 1).await;
    let status = groups[3].watch();
    eventually("the members are known", || {
        let status = status.borrow();
        *status.voters == BTreeSet::from([1, 4]) && status.learners.is_empty() && !status.joint
    })
    .await;
    leader.transfer_leader(4).await.expect("handed over");
    eventually("the successor leads", || groups[3].leads().is_some()).await;
    groups[3].remove(1).await.expect("the old leader is removed");
    assert_eq!(propose(&groups[3], 2).await, 2);
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_voters_whose_caller_went_away_is_finished_all_the_same() {
    let (_mesh, groups, _directories) = mesh(3).await;
    let abandoned = groups[0].set_voters([1, 2].into()).now_or_never();
    assert!(abandoned.is_none(), "the caller went away");
    let status = groups[0].watch();
    eventually("the change is complete", || {
        let status = status.borrow();
        *status.voters == BTreeSet::from([1, 2]) && !status.joint
    })
    .await;
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_hears_everybody_and_a_new_one_begins_anew() {
    let (mesh, groups, _directories) = mesh(3).await;
    eventually("everybody is heard", || groups[0].heard().is_some_and(|heard| heard.len() == 3)).await;
    assert!(groups[1].heard().is_none(), "a follower hears nobody");
    mesh.cut(3, true);
    eventually("the silent one falls behind those that are heard", || {
        groups[0].heard().is_some_and(|heard| heard[&2] > heard[&3] + Duration::from_millis(500))
    })
    .await;
    let before = Instant::now();
    groups[0].transfer_leader(2).await.expect("handed over");
    // The old leader knows of its successor before the successor's own readers do.
    eventually("the successor leads", || groups[1].heard().is_some()).await;
    let heard = groups[1].heard().expect("it leads");
    assert!(heard[&3] > before, "a new leader gives everybody a full term");
    assert!(groups[0].heard().is_none());
    stop(&groups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_covers_the_purged_log_is_needed_to_start() {
    let mesh = Mesh::default();
    let (_directory, disk) = real_disk();
    let site = || Site { snapshot_every: 50, keep_log: 5, ..Site::new(disk.clone(), memory()) };
    let group = mesh.found(vec![site()]).await.remove(0);
    for id in 1..=120 {
        propose(&group, id).await;
    }
    let status = group.watch();
    eventually("the log is purged", || status.borrow().purged.is_some()).await;
    group.shutdown().await;
    mesh.forget(1);
    for name in disk.list("raft/snapshots").await.expect("list") {
        disk.remove(&format!("raft/snapshots/{name}")).await.expect("remove");
    }
    let refused = mesh.try_start(1, site()).await.expect_err("refused");
    assert!(matches!(refused, crate::raft::StartError::Gap { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_that_comes_back_under_its_old_id_is_kept_out_and_hurts_nobody() {
    let (mesh, groups, _directories) = mesh(3).await;
    for id in 1..=20 {
        propose(&groups[0], id).await;
    }
    eventually("node 3 is level", || groups[0].watch().borrow().lag.get(&3) == Some(&Some(0))).await;
    let term = groups[0].leads();
    mesh.forget(3).expect("it ran").shutdown().await;
    let (_directory, disk) = real_disk();
    let wiped = mesh.start(3, Site::new(disk, memory())).await;
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(propose(&groups[1], 21).await, 21, "the others go on");
    assert_eq!((groups[0].leads(), wiped.applied()), (term, 0), "the leader stands, and feeds it nothing");
    assert!(groups[0].watch().borrow().fatal.is_none());
    mesh.cut(2, true);
    let refused = groups[0].propose(toy_command(22, b""), Duration::from_secs(3)).await;
    assert!(
        matches!(refused, Err(ProposeError::NoQuorum | ProposeError::Unknown)),
        "it counts for no quorum: {refused:?}"
    );
    stop(&[groups[0].clone(), groups[1].clone(), wiped]).await;
}
