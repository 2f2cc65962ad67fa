//! A site that was away for longer than the log is kept gets a snapshot, and is like the others.

use futures::future::join_all;
use maillage_tests::exams::{ready, replicated};
use maillage_tests::{Http, Mesh, Settings, until};
use serde_json::{Value, json};

use crate::binary;

const COMMANDS: usize = 1_000;
const AT_ONCE: usize = 16;

/// Every exam as a site has it now.
async fn all_exams(http: Http) -> Vec<Value> {
    let (mut exams, mut after) = (Vec::new(), 0);
    loop {
        let page = http.json(&format!("/api/v1/exams?limit=500&after={after}")).await;
        exams.extend(page["exams"].as_array().expect("exams").iter().map(replicated));
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return exams,
        }
    }
}

#[tokio::test]
async fn a_site_that_missed_a_thousand_commands_and_a_snapshot_catches_up() {
    let settings = Settings { snapshot_every: 300, keep_log: 50, ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 3, |_| settings.clone()).await;
    let leader = mesh.leader().await;
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    mesh.sites[away].http().post("/api/v1/exams", &ready("BEFORE")).await.expect(201);
    until("the site is where the leader is", async || {
        (mesh.sites[away].http().json("/api/v1/exams").await["exams"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let left_at = mesh.sites[away].http().json("/api/v1/status").await["applied"].as_u64().expect("an index");
    mesh.sites[away].kill();

    let mesh_ref = &mesh;
    join_all((0..AT_ONCE).map(|lane| async move {
        for n in (lane..COMMANDS).step_by(AT_ONCE) {
            let http = mesh_ref.sites[if n % 2 == 0 { leader } else { other }].http();
            http.post("/api/v1/exams", &ready(&format!("A{n:04}"))).await.expect(201);
        }
    }))
    .await;
    let status = mesh.sites[leader].http().json("/api/v1/status").await;
    let snapshot = status["snapshot"].as_u64().expect("a snapshot was made");
    assert!(
        snapshot > left_at + 50,
        "the log that the site would need is gone: snapshot at {snapshot}, left at {left_at}"
    );

    mesh.sites[away].start();
    mesh.sites[away].ready().await;
    let expected = all_exams(mesh.sites[leader].http()).await;
    assert_eq!(expected.len(), COMMANDS + 1);
    until("the site has every exam", async || {
        (all_exams(mesh.sites[away].http()).await.len() == expected.len()).then_some(())
    })
    .await;
    assert!(all_exams(mesh.sites[away].http()).await == expected, "the same exams, field by field");
    assert!(all_exams(mesh.sites[other].http()).await == expected, "at the site that was never away too");

    // It takes part again, as one that can be trusted with the truth.
    let granted = mesh.sites[away].http().post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await.expect(200);
    assert_eq!(granted.json()["exam"]["accession"], json!("BEFORE"));
    mesh.sites[other].kill();
    until("it makes a quorum with the leader", async || {
        let next = mesh.sites[away].http().post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await;
        (next.status == 200 && next.json()["granted"] == json!(true)).then_some(())
    })
    .await;
    // And what it installed survives a crash of its own.
    mesh.sites[away].kill();
    mesh.sites[away].start();
    mesh.sites[away].ready().await;
    assert_eq!(all_exams(mesh.sites[away].http()).await.len(), COMMANDS + 1);
}
