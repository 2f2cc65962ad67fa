//! The queue: added anywhere, claimed once, released, reported.

use maillage_tests::exams::{ready, requested};
use maillage_tests::until;
use serde_json::json;

use crate::mesh;

#[tokio::test]
async fn an_exam_goes_from_request_to_report_through_three_sites() {
    let mesh = mesh(3).await;
    let [paris, lyon, nantes] = &mesh.sites[..] else { panic!("three sites") };
    let added = lyon.http().post("/api/v1/exams", &ready("A1")).await.expect(201).json();
    assert_eq!(added["existed"], json!(false));
    let id = added["id"].as_u64().expect("a number");
    let again = nantes.http().post("/api/v1/exams", &ready("A1")).await.expect(200).json();
    assert_eq!(again, json!({ "id": id, "existed": true }), "same accession number and patient: the same exam");

    let granted = nantes.http().post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await.expect(200).json();
    assert_eq!((&granted["exam"]["id"], &granted["exam"]["state"]), (&json!(id), &json!("claimed")));
    let token = granted["token"].as_u64().expect("a token");
    let release = json!({ "token": token, "user": "dr-a", "reason": "called away" });
    paris.http().post(&format!("/api/v1/exams/{id}/release"), &release).await.expect(200);

    let taken = lyon.http().post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-b" })).await;
    let second = taken.expect(200).json()["token"].as_u64().expect("a token");
    assert!(second > token, "fencing tokens rise: {second} after {token}");
    let report = json!({ "user": "dr-b", "token": second, "text": "Nothing to see." });
    lyon.http().post(&format!("/api/v1/exams/{id}/report"), &report).await.expect(200);

    let exam = paris.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!((&exam["state"], &exam["claim"]), (&json!("reported"), &json!(null)));
    assert_eq!(exam["report_list"][0]["text"], json!("Nothing to see."));
    let states: Vec<&str> = exam["workitems"]
        .as_array()
        .expect("workitems")
        .iter()
        .filter(|item| item["kind"] == json!("read"))
        .map(|item| item["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(states.len(), 2, "a released claim leaves its workitem canceled behind: {states:?}");
    let none = paris.http().post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await.expect(200).json();
    assert_eq!((&none["granted"], &none["exam"]), (&json!(false), &json!(null)));
}

#[tokio::test]
async fn the_most_urgent_exam_is_next_and_modalities_are_kept_apart() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    for (accession, priority, modality) in
        [("A1", "scheduled", "CT"), ("A2", "vital", "MR"), ("A3", "urgent", "CT"), ("A4", "vital", "CT")]
    {
        let mut exam = ready(accession);
        (exam["priority"], exam["modality"]) = (json!(priority), json!(modality));
        http.post("/api/v1/exams", &exam).await.expect(201);
    }
    let mut order = Vec::new();
    for _ in 0..3 {
        let body = json!({ "user": "dr-a", "modalities": ["CT"] });
        let granted = http.post("/api/v1/claims/next", &body).await.expect(200).json();
        order.push(granted["exam"]["accession"].as_str().expect("an exam").to_owned());
    }
    assert_eq!(order, ["A4", "A3", "A1"]);
    let body = json!({ "user": "dr-a", "modalities": ["CT"] });
    assert_eq!(http.post("/api/v1/claims/next", &body).await.expect(200).json()["granted"], json!(false));
    let any = http.post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await.expect(200).json();
    assert_eq!(any["exam"]["accession"], json!("A2"));
}

#[tokio::test]
async fn an_exam_that_awaits_images_is_not_claimed() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    let added = http.post("/api/v1/exams", &requested("A1", "P1")).await.expect(201).json();
    let next = http.post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await.expect(200).json();
    assert_eq!(next["granted"], json!(false));
    let taken = http.post(&format!("/api/v1/exams/{}/claim", added["id"]), &json!({ "user": "dr-a" })).await;
    assert_eq!(taken.expect(409).json()["code"], json!("wrong-state"));
}

#[tokio::test]
async fn the_second_claimant_is_told_who_holds_the_exam() {
    let mesh = mesh(3).await;
    let [paris, lyon, _] = &mesh.sites[..] else { panic!("three sites") };
    let id = paris.http().post("/api/v1/exams", &ready("A1")).await.expect(201).json()["id"].to_string();
    lyon.run_json(&["claim", "take", &id, "--user", "dr-first"]).await;

    let refused = paris.http().post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-second" })).await;
    assert_eq!(refused.header("content-type"), "application/problem+json");
    let problem = refused.expect(409).json();
    assert_eq!(problem["code"], json!("conflict"));
    assert_eq!((&problem["holder"]["user"], &problem["holder"]["site_name"]), (&json!("dr-first"), &json!("lyon")));

    let refused = paris.run(&["claim", "take", &id, "--user", "dr-second"]).await.ended(6);
    refused.complains_of(&["dr-first", "lyon"]);
    assert_eq!(refused.stdout, "");
    let exam = paris.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!(exam["claim"]["user"], json!("dr-first"), "refusals change nothing");
}

#[tokio::test]
async fn a_report_under_a_stale_token_is_refused_and_kept_as_a_draft() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let id = site.http().post("/api/v1/exams", &ready("A1")).await.expect(201).json()["id"].to_string();
    let stale = site.run_json(&["claim", "next", "--user", "dr-a"]).await["token"].to_string();
    site.run_json(&["claim", "release", &id, "--token", &stale, "--user", "dr-a"]).await;
    let current = site.run_json(&["claim", "take", &id, "--user", "dr-b"]).await["token"].to_string();
    assert_ne!(current, stale);

    let report = json!({ "user": "dr-a", "token": stale.parse::<u64>().expect("a token"), "text": "Too late." });
    let problem = site.http().post(&format!("/api/v1/exams/{id}/report"), &report).await.expect(409).json();
    assert_eq!(problem["code"], json!("stale-token"));
    assert_eq!(problem["kept_as"], json!(1), "{problem}");
    let late = ["claim", "complete", &id, "--token", &stale, "--text", "Again.", "--user", "dr-a"];
    site.run(&late).await.ended(6);
    site.run(&["claim", "release", &id, "--token", &stale, "--user", "dr-a"]).await.ended(6);

    let exam = site.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!((&exam["state"], &exam["claim"]["user"]), (&json!("claimed"), &json!("dr-b")));
    site.run_json(&["claim", "complete", &id, "--token", &current, "--text", "In time.", "--user", "dr-b"]).await;
    let exam = site.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    let reports: Vec<_> =
        exam["report_list"].as_array().expect("reports").iter().map(|r| (&r["text"], &r["stale"])).collect();
    let expected =
        [(json!("Too late."), json!(true)), (json!("Again."), json!(true)), (json!("In time."), json!(false))];
    assert_eq!(reports, expected.each_ref().map(|(text, stale)| (text, stale)), "both versions are visible");

    let invented = json!({ "user": "dr-x", "token": 999_999, "text": "Never held it." });
    let problem = site.http().post(&format!("/api/v1/exams/{id}/report"), &invented).await.expect(409).json();
    assert_eq!(problem["kept_as"], json!(null), "a token that was never granted earns no place");
}

#[tokio::test]
async fn the_proofs_of_a_claim_are_shown_to_whom_it_was_granted_and_to_nobody_else() {
    const UID: &str = "1.2.826.0.1.99.4711";
    let mesh = mesh(3).await;
    let [paris, lyon, nantes] = &mesh.sites[..] else { panic!("three sites") };
    let id = lyon.http().post("/api/v1/exams", &ready("A1")).await.expect(201).json()["id"].to_string();
    let claim = json!({ "user": "dr-a", "transaction_uid": UID });
    let granted = lyon.http().post(&format!("/api/v1/exams/{id}/claim"), &claim).await.expect(200).json();
    assert_eq!(granted["claim"]["transaction_uid"], json!(UID));
    assert_eq!(
        (&granted["claim"]["token"], &granted["exam"]["claim"]["token"]),
        (&granted["token"], &granted["token"])
    );
    let preliminary = json!({ "user": "dr-a", "token": granted["token"], "text": "So far.", "kind": "preliminary" });
    lyon.http().post(&format!("/api/v1/exams/{id}/report"), &preliminary).await.expect(200);
    let sheet = format!("/api/v1/exams/{id}?fresh=true");
    for site in [paris, lyon, nantes] {
        let shown = site.http().json(&sheet).await;
        assert_eq!(shown["claim"]["user"], json!("dr-a"), "{shown}");
        assert_eq!(shown["workitems"][0]["performer"]["user"], json!("dr-a"), "{shown}");
        for path in [sheet.as_str(), "/api/v1/exams?fresh=true", "/api/v1/exams?state=reading", "/fragments/room", "/"]
        {
            let text = site.http().get(path).await.expect(200).text();
            assert!(!text.contains(UID) && !text.contains("token"), "{path}: {text}");
        }
        let accept = [("accept", "application/dicom+json")];
        for path in [
            "/dicom-web/workitems",
            "/api/v1/audit?limit=1000",
            "/api/v1/audit/export?format=fhir",
            "/api/v1/audit/export?format=dicom",
        ] {
            let answer = site.http().send(&hyper::Method::GET, path, &accept, "").await.expect("an answer").expect(200);
            assert!(!answer.text().contains(UID) && !answer.text().contains("00081195"), "{path}: {}", answer.text());
        }
        let mut events = site.http().events("/api/v1/events?after=1").await;
        until("the claim's events are told", async || {
            let event = events.next(std::time::Duration::from_secs(5)).await;
            assert!(!event.contains(UID), "{event}");
            event.contains("\"reading\"").then_some(())
        })
        .await;
    }
    // At its own site the command line finds it; another user, or another site, has to know it.
    nantes
        .run(&["claim", "release", &id, "--user", "dr-a"])
        .await
        .ended(6)
        .complains_of(&["dr-a has no claim", "--token"]);
    lyon.run(&["claim", "release", &id, "--user", "dr-b"]).await.ended(6);
    lyon.run_json(&["claim", "open", &id, "--user", "dr-a"]).await;
    lyon.run_json(&["claim", "release", &id, "--user", "dr-a"]).await;
    assert_eq!(paris.http().json(&sheet).await["state"], json!("waiting"));
    let again = lyon.run_json(&["claim", "take", &id, "--user", "dr-a"]).await;
    assert_ne!(again["token"], granted["token"]);
    lyon.run_json(&["claim", "complete", &id, "--user", "dr-a", "--text", "Normal."]).await;
    assert_eq!(paris.http().json(&sheet).await["state"], json!("reported"));
}
