//! The leader is killed while two sites claim: nothing is claimed twice, nothing is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use maillage_tests::exams::ready;
use maillage_tests::{Http, Mesh};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::mesh;

const EXAMS: usize = 200;
/// Claims after which the leader is killed.
const KILLED_AFTER: usize = 60;
/// Readers at each of the two sites.
const READERS: usize = 4;
/// A claim whose outcome is unknown for so long will not become known.
const RESOLVED_WITHIN: Duration = Duration::from_secs(40);

/// A grant that a client knows of.
#[derive(Debug, Clone, Copy)]
struct Grant {
    exam: u64,
    token: u64,
}

/// A reader that claims until nothing waits. Whatever goes wrong, it repeats the same command, at its
/// own site and then at the others, until it has a certain answer.
async fn read(user: String, sites: Vec<Http>, claimed: &AtomicUsize) -> (Vec<Grant>, usize) {
    let (mut grants, mut repeats) = (Vec::new(), 0);
    let body = json!({ "user": user });
    loop {
        let (key, since) = (Uuid::new_v4().to_string(), Instant::now());
        let mut at = sites.iter().cycle();
        let answer = loop {
            let site = at.next().expect("a cycle");
            match site.try_post("/api/v1/claims/next", &body, Some(&key)).await {
                Ok(answer) if answer.status == 200 => break answer.json(),
                Ok(answer) if !matches!(answer.status, 503 | 504) => panic!("{}: {}", answer.status, answer.text()),
                Ok(_) | Err(_) => {}
            }
            repeats += 1;
            assert!(since.elapsed() < RESOLVED_WITHIN, "{user}: a claim's outcome stays unknown");
            sleep(Duration::from_millis(50)).await;
        };
        let Some(exam) = answer["exam"]["id"].as_u64() else { return (grants, repeats) };
        grants.push(Grant { exam, token: answer["token"].as_u64().expect("a token") });
        claimed.fetch_add(1, Ordering::Relaxed);
    }
}

async fn add_exams(mesh: &Mesh) -> BTreeSet<u64> {
    let at_once = 8;
    let added = join_all((0..at_once).map(|lane| async move {
        let mut ids = Vec::new();
        for n in (lane..EXAMS).step_by(at_once) {
            let http = mesh.sites[n % 3].http();
            let added = http.post("/api/v1/exams", &ready(&format!("A{n:03}"))).await.expect(201).json();
            ids.push(added["id"].as_u64().expect("a number"));
        }
        ids
    }));
    added.await.into_iter().flatten().collect()
}

#[tokio::test]
async fn killing_the_leader_during_200_claims_loses_none_and_doubles_none() {
    let mut mesh = mesh(3).await;
    let leader = mesh.leader().await;
    // Each reader repeats at its own site: that the leader changes is not a reader's business.
    claim_all(&mut mesh, leader, [vec![(leader + 1) % 3], vec![(leader + 2) % 3]]).await;
}

#[tokio::test]
async fn readers_at_the_killed_leader_learn_at_another_site_what_they_were_granted() {
    let mut mesh = mesh(3).await;
    let leader = mesh.leader().await;
    let (second, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let repeats = claim_all(&mut mesh, leader, [vec![leader, third], vec![second]]).await;
    assert!(repeats > 0, "some claims met the kill");
}

/// Readers claim every exam, each at the first of its sites and, without an answer there, at the next;
/// the leader is killed meanwhile. Returns how many claims had to be repeated.
async fn claim_all(mesh: &mut Mesh, leader: usize, homes: [Vec<usize>; 2]) -> usize {
    let exams = add_exams(mesh).await;
    assert_eq!(exams.len(), EXAMS);
    let all: Vec<Http> = mesh.sites.iter().map(maillage_tests::Site::http).collect();
    let claimed = AtomicUsize::new(0);
    let readers = join_all((0..2 * READERS).map(|n| {
        let sites = homes[n % 2].iter().map(|&site| all[site]).collect();
        read(format!("dr-{n}"), sites, &claimed)
    }));
    let killer = async {
        while claimed.load(Ordering::Relaxed) < KILLED_AFTER {
            sleep(Duration::from_millis(2)).await;
        }
        mesh.sites[leader].kill();
        claimed.load(Ordering::Relaxed)
    };
    let (read, at_kill) = tokio::join!(readers, killer);
    assert!(at_kill < EXAMS, "the leader was killed in the midst");
    let repeats = read.iter().map(|(_, repeats)| repeats).sum();
    let grants: Vec<(usize, Vec<Grant>)> = read.into_iter().map(|(grants, _)| grants).enumerate().collect();
    each_exam_was_granted_once(&grants, &exams);
    the_mesh_agrees(mesh, (leader + 1) % 3, &grants).await;
    repeats
}

fn each_exam_was_granted_once(grants: &[(usize, Vec<Grant>)], exams: &BTreeSet<u64>) {
    let mut holders = BTreeMap::new();
    let mut tokens = BTreeSet::new();
    for (reader, grants) in grants {
        for grant in grants {
            let other = holders.insert(grant.exam, *reader);
            assert_eq!(other, None, "exam {} was granted twice, also to reader {reader}", grant.exam);
            assert!(tokens.insert(grant.token), "token {} was given twice", grant.token);
        }
        assert!(grants.is_sorted_by(|a, b| a.token < b.token), "tokens rise for reader {reader}: {grants:?}");
    }
    assert_eq!(holders.keys().copied().collect::<BTreeSet<_>>(), *exams, "every exam is some reader's");
}

/// The replicated state says of every exam what its one client knows.
async fn the_mesh_agrees(mesh: &Mesh, at: usize, grants: &[(usize, Vec<Grant>)]) {
    let list = mesh.sites[at].http().json("/api/v1/exams?limit=1000&fresh=true").await;
    let list = list["exams"].as_array().expect("exams");
    let known: BTreeMap<u64, &Value> = list.iter().map(|exam| (exam["id"].as_u64().expect("a number"), exam)).collect();
    assert_eq!(known.len(), EXAMS);
    for (reader, grants) in grants {
        for grant in grants {
            let exam = known[&grant.exam];
            assert_eq!(exam["claim"]["token"], json!(null), "a proof is for whom it was granted: {exam}");
            assert_eq!(exam["claim"]["user"], json!(format!("dr-{reader}")), "{exam}");
            assert_eq!(exam["workitem"], json!(1), "claimed once: {exam}");
        }
    }
}
