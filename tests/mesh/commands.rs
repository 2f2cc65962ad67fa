//! Commands: any site takes them, a repeat gives the first answer, a fresh read shows them.

use hyper::Method;
use maillage_tests::exams::ready;
use serde_json::json;
use uuid::Uuid;

use crate::mesh;

#[tokio::test]
async fn a_repeated_command_gets_the_first_answer_at_another_site() {
    let mesh = mesh(3).await;
    let [paris, lyon, nantes] = &mesh.sites[..] else { panic!("three sites") };
    for accession in ["A1", "A2", "A3"] {
        paris.http().post("/api/v1/exams", &ready(accession)).await.expect(201);
    }
    let (key, body) = (Uuid::new_v4().to_string(), json!({ "user": "dr-a" }));
    let claim = async |site: &maillage_tests::Site| {
        let answer = site.http().try_post("/api/v1/claims/next", &body, Some(&key)).await.expect("an answer");
        answer.expect(200).json()
    };
    let first = claim(lyon).await;
    assert_eq!(first["granted"], json!(true));
    for site in [nantes, paris, lyon] {
        let again = claim(site).await;
        for field in ["token", "workitem", "claim"] {
            assert_eq!(again[field], first[field], "{field} at {}", site.name());
        }
        assert_eq!(again["exam"]["id"], first["exam"]["id"]);
    }
    let status = paris.http().json("/api/v1/status?fresh=true").await;
    assert_eq!(status["queue"]["claimed"], json!(1), "four answers, one claim");

    // Also what was refused, and also on the command line.
    let id = first["exam"]["id"].to_string();
    let command_id = Uuid::new_v4().to_string();
    let line = [
        "claim",
        "release",
        &id,
        "--token",
        &first["token"].to_string(),
        "--command-id",
        &command_id,
        "--user",
        "dr-a",
    ];
    lyon.run(&line).await.ended(0);
    nantes.run(&line).await.ended(0);
    let without: Vec<&str> =
        line.iter().copied().filter(|word| *word != "--command-id" && *word != command_id).collect();
    nantes.run(&without).await.ended(6);
}

#[tokio::test]
async fn one_command_id_does_not_serve_for_two_commands() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    let key = Uuid::new_v4().to_string();
    let added = http.try_post("/api/v1/exams", &ready("A1"), Some(&key)).await.expect("an answer").expect(201).json();
    let claim = http.try_post("/api/v1/claims/next", &json!({ "user": "dr-a" }), Some(&key)).await;
    let claim = claim.expect("an answer");
    assert!((400..500).contains(&claim.status), "{}: {}", claim.status, claim.text());
    let exam = http.json(&format!("/api/v1/exams/{}?fresh=true", added["id"])).await;
    assert_eq!(exam["state"], json!("waiting"));
    let nonsense = http.try_post("/api/v1/exams", &ready("A2"), Some("not-a-uuid")).await.expect("an answer");
    nonsense.expect(400);
}

#[tokio::test]
async fn a_fresh_read_shows_what_another_site_just_wrote() {
    let mesh = mesh(3).await;
    for round in 0..30 {
        let (writer, reader) = (&mesh.sites[round % 3], &mesh.sites[(round + 1) % 3]);
        let added = writer.http().post("/api/v1/exams", &ready(&format!("A{round}"))).await.expect(201).json();
        let read = reader.http().get(&format!("/api/v1/exams/{}?fresh=true", added["id"])).await.expect(200);
        let exam = read.json();
        assert_eq!(exam["fresh"], json!(true));
        assert_eq!(exam["accession"], json!(format!("A{round}")), "{} after {}", reader.name(), writer.name());
        let age: u64 = read.header("x-maillage-age-ms").parse().expect("a number of milliseconds");
        assert_eq!(exam["age_ms"], json!(age));
        assert!(age < 2_000, "a mesh that is well confirms its state often: {age} ms");
        let listed = reader.run_json(&["exams", "list", "--fresh"]).await;
        assert_eq!(listed["exams"].as_array().map(Vec::len), Some(round + 1));
    }
}

#[tokio::test]
async fn what_makes_no_sense_changes_nothing() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    for (path, body, status) in [
        ("/api/v1/exams", json!({ "accession": "A1" }), 400),
        ("/api/v1/exams", json!({ "accession": "A1", "patient": { "id": "P" }, "colour": 1 }), 400),
        ("/api/v1/exams", json!({ "accession": "A".repeat(300), "patient": { "id": "P" } }), 400),
        ("/api/v1/claims/next", json!({ "user": "" }), 400),
        ("/api/v1/exams/77777/claim", json!({ "user": "dr-a" }), 404),
        ("/api/v1/exams/minus-one/claim", json!({ "user": "dr-a" }), 400),
        ("/api/v1/nothing", json!({}), 404),
        ("/admin/v1/tokens", json!({ "lifetime_s": 600 }), 404),
    ] {
        http.post(path, &body).await.expect(status);
    }
    http.send(&Method::POST, "/api/v1/exams", &[("content-type", "application/json")], "{")
        .await
        .expect("an answer")
        .expect(400);
    http.send(&Method::POST, "/api/v1/exams", &[("content-type", "text/plain")], ready("A1").to_string())
        .await
        .expect("an answer")
        .expect(415);
    http.send(&Method::DELETE, "/api/v1/exams", &[], "").await.expect("an answer").expect(405);
    let status = http.json("/api/v1/status?fresh=true").await;
    assert_eq!((&status["queue"]["waiting"], &status["queue"]["requested"]), (&json!(0), &json!(0)));
}
