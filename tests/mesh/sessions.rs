//! A site that dies gives back what its readers had claimed, and keeps what they wrote.

use std::time::Duration;

use maillage_tests::exams::ready;
use maillage_tests::{Mesh, Settings, until_within};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::binary;

const TTL_S: u64 = 3;
/// The time to live, one election, and the slack of a slow machine.
const FREE_WITHIN: Duration = Duration::from_secs(TTL_S + 10);

async fn short_sessions() -> Mesh {
    Mesh::start(binary(), 3, |_| Settings { session_ttl_s: TTL_S, ..Settings::default() }).await
}

#[tokio::test]
async fn a_killed_sites_claim_is_free_after_its_session_and_its_late_report_is_kept() {
    let mut mesh = short_sessions().await;
    let leader = mesh.leader().await;
    let (lost, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = mesh.sites[other].http().post("/api/v1/exams", &ready("A1")).await.expect(201).json()["id"].to_string();
    let granted = mesh.sites[lost].run_json(&["claim", "next", "--user", "dr-lost"]).await;
    let stale = granted["token"].as_u64().expect("a token");

    mesh.sites[lost].kill();
    let since = Instant::now();
    let early = mesh.sites[other].http().post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-b" })).await;
    assert_eq!(early.expect(409).json()["holder"]["user"], json!("dr-lost"), "not free at once");
    until_within(FREE_WITHIN, "the claim is free", async || {
        let exam = mesh.sites[other].http().json(&format!("/api/v1/exams/{id}")).await;
        (exam["state"] == json!("waiting")).then_some(())
    })
    .await;
    let least = Duration::from_secs(TTL_S - 1);
    assert!(since.elapsed() > least, "a session lives as long as it may: {:?}", since.elapsed());
    let second = mesh.sites[other].http().post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-b" })).await;
    let second = second.expect(200).json()["token"].as_u64().expect("a token");
    assert!(second > stale);

    mesh.sites[lost].start();
    mesh.sites[lost].ready().await;
    let report = json!({ "user": "dr-lost", "token": stale, "text": "Written while cut off." });
    let refused = until_within(FREE_WITHIN, "the late report is answered", async || {
        let answer = mesh.sites[lost].http().post(&format!("/api/v1/exams/{id}/report"), &report).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    let problem = refused.expect(409).json();
    assert_eq!((&problem["code"], &problem["kept_as"]), (&json!("stale-token"), &json!(1)));
    let exam = mesh.sites[other].http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!((&exam["state"], &exam["claim"]["user"]), (&json!("claimed"), &json!("dr-b")));
    assert_eq!(exam["report_list"][0]["text"], json!("Written while cut off."));
    assert_eq!(exam["report_list"][0]["stale"], json!(true));
    let history = exam["workitems"].as_array().expect("workitems");
    assert!(history[0]["reason"].as_str().expect("a reason").contains("session"), "why it was taken back: {exam}");
}

#[tokio::test]
async fn a_frozen_site_loses_its_claim_and_its_readers_learn_it_when_it_thaws() {
    let mesh = short_sessions().await;
    let leader = mesh.leader().await;
    let (frozen, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = mesh.sites[other].http().post("/api/v1/exams", &ready("A1")).await.expect(201).json()["id"].to_string();
    let token = mesh.sites[frozen].run_json(&["claim", "next", "--user", "dr-cold"]).await["token"].to_string();
    until_within(FREE_WITHIN, "the claim is known at the other site", async || {
        let exam = mesh.sites[other].http().json(&format!("/api/v1/exams/{id}")).await;
        (exam["state"] == json!("claimed")).then_some(())
    })
    .await;
    mesh.sites[frozen].signal(Signal::STOP);
    let since = Instant::now();
    until_within(FREE_WITHIN, "the claim is free", async || {
        let exam = mesh.sites[other].http().json(&format!("/api/v1/exams/{id}")).await;
        (exam["state"] == json!("waiting")).then_some(())
    })
    .await;
    assert!(since.elapsed() > Duration::from_secs(TTL_S - 1), "not before its time: {:?}", since.elapsed());
    mesh.sites[frozen].signal(Signal::CONT);
    // Whatever the thawed site still believes, the mesh decides.
    let line = ["claim", "complete", &id, "--token", &token, "--text", "Thawed.", "--user", "dr-cold"];
    let ended = until_within(FREE_WITHIN, "the thawed site's report is answered", async || {
        let ended = mesh.sites[frozen].run(&line).await;
        (ended.code != 4).then_some(ended)
    })
    .await;
    ended.ended(6);
    until_within(FREE_WITHIN, "the thawed site knows that the exam waits", async || {
        let exam = mesh.sites[frozen].http().json(&format!("/api/v1/exams/{id}")).await;
        (exam["state"] == json!("waiting")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_quick_restart_keeps_the_sites_claims() {
    let mut mesh = Mesh::start(binary(), 3, |_| Settings { session_ttl_s: 30, ..Settings::default() }).await;
    let leader = mesh.leader().await;
    let site = (leader + 1) % 3;
    let id = mesh.sites[site].http().post("/api/v1/exams", &ready("A1")).await.expect(201).json()["id"].to_string();
    let token = mesh.sites[site].run_json(&["claim", "next", "--user", "dr-a"]).await["token"].to_string();
    mesh.sites[site].kill();
    mesh.sites[site].start();
    mesh.sites[site].ready().await;
    let line = ["claim", "complete", &id, "--token", &token, "--text", "As if nothing had been.", "--user", "dr-a"];
    until_within(FREE_WITHIN, "the report is taken", async || {
        (mesh.sites[site].run(&line).await.code == 0).then_some(())
    })
    .await;
}
