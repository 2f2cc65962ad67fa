//! Five sites of which two, then three, are killed.

use std::time::Duration;

use maillage_tests::exams::ready;
use maillage_tests::{Mesh, until};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::mesh;

/// How soon a write without a quorum is refused; the rest is the test machine's slack.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);
/// What may have reached a leader that died is waited for until the next could have answered.
const UNKNOWN_WITHIN: Duration = Duration::from_secs(8);

/// Kills the leader and, of the others, as many as it takes to be `count`.
async fn kill_with_leader(mesh: &mut Mesh, count: usize) {
    let leader = mesh.leader().await;
    let others = (0..mesh.sites.len()).filter(|&n| n != leader && mesh.sites[n].runs());
    let killed: Vec<usize> = std::iter::once(leader).chain(others.take(count - 1)).collect();
    for n in killed {
        mesh.sites[n].kill();
    }
}

#[tokio::test]
async fn five_sites_work_with_two_killed_and_only_read_with_three_killed() {
    let mut mesh = mesh(5).await;
    for n in 0..4 {
        mesh.sites[n].http().post("/api/v1/exams", &ready(&format!("A{n}"))).await.expect(201);
    }
    kill_with_leader(&mut mesh, 2).await;
    let living: Vec<usize> = (0..5).filter(|&n| mesh.sites[n].runs()).collect();
    let since = Instant::now();
    let claimed = until("a claim with two of five killed", async || {
        let answer = mesh.sites[living[0]].http().post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert_eq!(claimed["granted"], json!(true));
    assert!(since.elapsed() < Duration::from_secs(15), "a new leader is found in seconds: {:?}", since.elapsed());
    for &n in &living {
        let granted = mesh.sites[n].http().post("/api/v1/claims/next", &json!({ "user": "dr-b" })).await.expect(200);
        assert_eq!(granted.json()["granted"], json!(true), "{}", mesh.sites[n].name());
    }

    kill_with_leader(&mut mesh, 1).await;
    let living: Vec<usize> = (0..5).filter(|&n| mesh.sites[n].runs()).collect();
    assert_eq!(living.len(), 2);
    until("the survivors know that nobody leads", async || {
        for &n in &living {
            if mesh.sites[n].http().json("/api/v1/status").await["quorum"]["reached"] == json!(true) {
                return None;
            }
        }
        Some(())
    })
    .await;
    for &n in &living {
        refuses_writes_and_answers_reads(&mesh, n).await;
    }

    // One more back is a quorum again: nothing needs to be told to anybody.
    let dead = (0..5).find(|&n| !mesh.sites[n].runs()).expect("a killed site");
    mesh.sites[dead].start();
    mesh.sites[dead].ready().await;
    until("writes work again", async || {
        let added = mesh.sites[living[0]].http().post("/api/v1/exams", &ready("AFTER")).await;
        matches!(added.status, 200 | 201).then_some(())
    })
    .await;
    until("the site that came back has it", async || {
        let all = mesh.sites[dead].http().json("/api/v1/exams").await;
        all["exams"].as_array()?.iter().any(|exam| exam["accession"] == json!("AFTER")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_write_without_a_quorum_is_refused_within_3_seconds() {
    let mut mesh = mesh(3).await;
    kill_with_leader(&mut mesh, 2).await;
    let survivor = mesh.sites.iter().find(|site| site.runs()).expect("a survivor");
    until("the survivor knows that it is alone", async || {
        (survivor.http().json("/api/v1/status").await["quorum"]["reached"] == json!(false)).then_some(())
    })
    .await;
    let since = Instant::now();
    survivor.http().post("/api/v1/exams", &ready("NEVER")).await.expect(503);
    assert!(since.elapsed() < REFUSED_WITHIN, "by HTTP after {:?}", since.elapsed());
    let since = Instant::now();
    survivor.run(&["claim", "next", "--user", "dr-a"]).await.ended(4);
    assert!(since.elapsed() < REFUSED_WITHIN, "on the command line after {:?}", since.elapsed());
}

#[tokio::test]
async fn a_write_in_the_moment_in_which_the_quorum_is_lost_is_answered_in_seconds() {
    let mut mesh = mesh(3).await;
    kill_with_leader(&mut mesh, 2).await;
    let survivor = mesh.sites.iter().find(|site| site.runs()).expect("a survivor");
    let since = Instant::now();
    let refused = survivor.http().post("/api/v1/exams", &ready("NEVER")).await;
    let took = since.elapsed();
    // It may have reached the leader that died: then its fate is unknown, and is said to be.
    assert!([503, 504].contains(&refused.status), "{}: {}", refused.status, refused.text());
    let within = if refused.status == 503 { REFUSED_WITHIN } else { UNKNOWN_WITHIN };
    assert!(took < within, "{} after {took:?}", refused.status);
}

async fn refuses_writes_and_answers_reads(mesh: &Mesh, n: usize) {
    let site = &mesh.sites[n];
    let refused = site.http().post("/api/v1/exams", &ready("NEVER")).await;
    assert_eq!(refused.clone().expect(503).json()["code"], json!("no-quorum"));
    assert!(!refused.header("retry-after").is_empty());

    let add = ["exams", "add", "--patient-id", "P1", "--accession", "NEVER"];
    site.run(&add).await.ended(4).complains_of(&["error:"]);
    site.http().get("/api/v1/exams?fresh=true").await.expect(503);
    site.run(&["exams", "list", "--fresh"]).await.ended(4);

    let read = async || {
        let exams = site.http().json("/api/v1/exams").await;
        assert_eq!(exams["exams"].as_array().map(Vec::len), Some(4), "what was committed is still read");
        exams["age_ms"].as_u64().expect("an age")
    };
    let before = read().await;
    sleep(Duration::from_millis(700)).await;
    let after = read().await;
    assert!(after >= before + 600, "the age grows: {before} then {after} ms");
    degrades_and_says_so(site).await;
}

async fn degrades_and_says_so(site: &maillage_tests::Site) {
    until("the site says that it is cut off", async || {
        let ready = site.http().get("/readyz?verbose").await.expect(200);
        ready.text().contains("quorum degraded").then_some(())
    })
    .await;
    site.http().get("/livez").await.expect(200);
    site.run(&["health"]).await.ended(3);
    let status: Value = site.run_json(&["status"]).await;
    assert_eq!(status["quorum"]["reached"], json!(false));
    let page = site.http().get("/?lang=en").await.expect(200).text();
    assert!(page.contains("banner bad"), "the page warns its reader");
}
