//! Sites alone: exams read by break glass, reports and images that wait for the quorum, and what the mesh
//! makes of them when it is back.

use maillage_tests::exams::{ready, requested};
use maillage_tests::{Http, Mesh, Settings, Slices, until};
use serde_json::{Value, json};

use crate::{binary, mesh};

/// An exam with images, once every site holds them: its number.
async fn exam_with_images(mesh: &Mesh, accession: &str, patient: &str) -> (u64, Slices) {
    let http = mesh.sites[0].http();
    let added = http.post("/api/v1/exams", &requested(accession, patient)).await.expect(201).json();
    let id = added["id"].as_u64().expect("a number");
    let study = Slices::new(accession, patient, 6);
    study.send(mesh.sites[0].dicom()).await;
    until(&format!("{accession} is on every site"), async || {
        for site in &mesh.sites {
            let exam = site.http().json(&format!("/api/v1/exams/{id}")).await;
            if exam["state"] != json!("waiting") || exam["images_here"] != json!(true) {
                return None;
            }
        }
        Some(())
    })
    .await;
    (id, study)
}

/// Kills all sites but one, and waits until that one knows.
async fn leave_alone(mesh: &mut Mesh, alone: usize) {
    for n in (0..mesh.sites.len()).filter(|n| *n != alone) {
        if mesh.sites[n].runs() {
            mesh.sites[n].kill();
        }
    }
    let http = mesh.sites[alone].http();
    until("the site knows that it is alone", async || {
        (http.json("/api/v1/status").await["quorum"]["reached"] == json!(false)).then_some(())
    })
    .await;
}

/// Starts every site that does not run.
async fn heal(mesh: &mut Mesh) {
    for site in &mut mesh.sites {
        if !site.runs() {
            site.start();
        }
    }
    for site in &mut mesh.sites {
        site.ready().await;
    }
}

async fn take(http: Http, exam: u64, user: &str) -> maillage_tests::Answer {
    let body = json!({ "user": user, "reason": "cut off, stroke" });
    http.post(&format!("/api/v1/exams/{exam}/break-glass"), &body).await
}

/// An exam is taken by break glass: the token.
async fn taken(http: Http, exam: u64, user: &str) -> String {
    let taken = take(http, exam, user).await.expect(201).json();
    taken["token"].as_str().expect("a token").to_owned()
}

async fn report(http: Http, exam: u64, user: &str, token: impl Into<Value>, text: &str) -> maillage_tests::Answer {
    let body = json!({ "user": user, "token": token.into(), "text": text });
    http.post(&format!("/api/v1/exams/{exam}/report"), &body).await
}

/// The outbox's entry of an exam, once it is in this state.
async fn entry(http: Http, exam: u64, state: &str) -> Value {
    until(&format!("exam {exam} is {state} in the outbox"), async || {
        let outbox = http.json("/api/v1/outbox").await;
        let entries = outbox["entries"].as_array().expect("entries").clone();
        entries.into_iter().find(|entry| entry["exam"] == json!(exam) && entry["state"] == json!(state))
    })
    .await
}

/// The texts of an exam's reports, each of which its site has signed.
fn texts(exam: &Value) -> Vec<&str> {
    let reports = exam["report_list"].as_array().expect("reports");
    assert!(reports.iter().all(|report| report["signature"] == json!("valid")), "{reports:?}");
    reports.iter().map(|report| report["text"].as_str().expect("a text")).collect()
}

async fn fresh(http: Http, exam: u64) -> Value {
    http.json(&format!("/api/v1/exams/{exam}?fresh=true")).await
}

#[tokio::test]
async fn what_a_site_alone_reads_by_break_glass_is_in_the_mesh_once_after_the_heal() {
    let mut mesh = mesh(3).await;
    let (read, study) = exam_with_images(&mesh, "A1", "P1").await;
    let (given_back, _) = exam_with_images(&mesh, "A2", "P2").await;
    let (going_on, _) = exam_with_images(&mesh, "A3", "P3").await;
    let alone = (mesh.leader().await + 1) % 3;
    let http = mesh.sites[alone].http();
    let elsewhere = http.post("/api/v1/exams", &ready("A4")).await.expect(201).json()["id"].as_u64().expect("a number");
    let over = http.post("/api/v1/exams", &ready("A5")).await.expect(201).json()["id"].as_u64().expect("a number");
    http.post(&format!("/api/v1/exams/{over}/cancel"), &json!({ "reason": "double" })).await.expect(200);
    let refused = take(http, read, "dr-a").await.expect(409);
    assert_eq!(refused.json()["code"], json!("quorum-reached"), "with a quorum nobody breaks glass");

    leave_alone(&mut mesh, alone).await;
    for (exam, status, code) in
        [(elsewhere, 409, "images-incomplete"), (over, 409, "wrong-state"), (9999, 404, "no-such-exam")]
    {
        let refused = take(http, exam, "dr-a").await.expect(status);
        assert_eq!(refused.json()["code"], json!(code));
    }
    for body in [json!({ "user": "dr-a" }), json!({ "user": "dr-a", "reason": " " }), json!({ "reason": "cut off" })] {
        http.post(&format!("/api/v1/exams/{read}/break-glass"), &body).await.expect(400);
    }
    let token = taken(http, read, "dr-a").await;
    assert!(token.starts_with("glass-"));
    assert_eq!(take(http, read, "dr-a").await.expect(200).json()["token"], json!(token), "the same user has it");
    let refused = take(http, read, "dr-b").await.expect(409).json();
    assert_eq!((&refused["code"], &refused["holder"]["user"]), (&json!("conflict"), &json!("dr-a")));
    study.is_whole_at(http).await;
    let shown = http.json(&format!("/api/v1/exams/{read}")).await;
    assert_eq!((&shown["state"], &shown["break_glass"]["state"]), (&json!("waiting"), &json!("held")));

    // The command line does it too.
    let site = &mesh.sites[alone];
    let (id, reason) = (given_back.to_string(), "cut off");
    let by_command = site.run_json(&["--yes", "exams", "break-glass", &id, "--reason", reason, "--user", "dr-a"]).await;
    let back = by_command["token"].as_str().expect("a token");
    site.run(&["claim", "release", &id, "--token", back, "--user", "dr-a", "--reason", "shift ended"]).await.ended(0);
    let kept = taken(http, going_on, "dr-b").await;
    let written = report(http, read, "dr-a", token.as_str(), "No bleeding.").await.expect(202).json();
    assert_eq!((&written["queued"], &written["report"]), (&json!(true), &json!(null)));
    report(http, read, "dr-a", token.as_str(), "No bleeding.").await.expect(202);
    report(http, read, "dr-a", token.as_str(), "A bleeding.").await.expect(409);
    let listed = site.run(&["outbox", "list"]).await.ended(0);
    assert!(listed.stdout.contains("queued"), "{}", listed.stdout);

    // What was acknowledged survives the process.
    mesh.sites[alone].kill();
    mesh.sites[alone].start();
    mesh.sites[alone].ready().await;
    let claims = http.json("/api/v1/break-glass").await;
    let states: Vec<&str> = claims["claims"]
        .as_array()
        .expect("claims")
        .iter()
        .map(|claim| claim["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(states, ["queued", "queued", "held"]);

    heal(&mut mesh).await;
    let sent = entry(http, read, "accepted").await;
    assert_eq!((&sent["number"], &sent["text"]), (&json!(1), &json!(null)));
    entry(http, given_back, "given-back").await;
    let goes_on = entry(http, going_on, "continues").await;
    mesh.sites[alone].kill();
    mesh.sites[alone].start();
    mesh.sites[alone].ready().await;
    mesh.settled().await;
    for site in &mesh.sites {
        let exam = fresh(site.http(), read).await;
        assert_eq!((&exam["state"], texts(&exam)), (&json!("reported"), vec!["No bleeding."]), "{}", site.name());
        assert_eq!(fresh(site.http(), given_back).await["state"], json!("waiting"));
        let exam = fresh(site.http(), going_on).await;
        assert_eq!((&exam["claim"]["user"], &goes_on["claim_token"]), (&json!("dr-b"), &json!(null)));
        let shown = site.run_json(&["exams", "show", &going_on.to_string()]).await;
        assert!(shown["claim"]["token"].is_u64(), "whoever administers the node sees it: {shown}");
    }
    // The reader goes on with the token that the site gave.
    report(http, going_on, "dr-b", kept.as_str(), "Fracture.").await.expect(200);
    assert_eq!(texts(&fresh(http, going_on).await), ["Fracture."]);
    let metrics = http.get("/metrics").await.expect(200).text();
    assert!(metrics.contains("maillage_outbox_entries{state=\"waiting\"} 0"), "{metrics}");
}

#[tokio::test]
async fn an_exam_that_was_read_elsewhere_meanwhile_has_a_second_read_beside_its_report() {
    let mut mesh = mesh(3).await;
    let (exam, _) = exam_with_images(&mesh, "A1", "P1").await;
    let alone = (mesh.leader().await + 1) % 3;
    leave_alone(&mut mesh, alone).await;
    let http = mesh.sites[alone].http();
    let token = taken(http, exam, "dr-a").await;
    report(http, exam, "dr-a", token.as_str(), "Read alone.").await.expect(202);
    mesh.sites[alone].kill();

    let others: Vec<usize> = (0..3).filter(|n| *n != alone).collect();
    for &n in &others {
        mesh.sites[n].start();
    }
    for &n in &others {
        mesh.sites[n].ready().await;
    }
    let other = mesh.sites[others[0]].http();
    let claimed = until("the majority grants it", async || {
        let answer = other.post(&format!("/api/v1/exams/{exam}/claim"), &json!({ "user": "dr-b" })).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    report(other, exam, "dr-b", claimed["token"].clone(), "Read together.").await.expect(200);

    heal(&mut mesh).await;
    let ended = entry(http, exam, "second-read").await;
    assert_eq!(ended["number"], json!(2));
    for site in &mesh.sites {
        let shown = fresh(site.http(), exam).await;
        assert_eq!((&shown["state"], texts(&shown)), (&json!("reported"), vec!["Read together.", "Read alone."]));
    }
}

#[tokio::test]
async fn reports_under_ordinary_claims_are_sent_once_and_one_whose_claim_was_lost_stays_to_be_seen() {
    let mut mesh = Mesh::start(binary(), 3, |_| Settings { session_ttl_s: 5, ..Settings::default() }).await;
    let alone = (mesh.leader().await + 1) % 3;
    let http = mesh.sites[alone].http();
    let mut claims = Vec::new();
    for accession in ["A1", "A2", "A3"] {
        let id =
            http.post("/api/v1/exams", &ready(accession)).await.expect(201).json()["id"].as_u64().expect("a number");
        let claim = http.post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-a" })).await.expect(200);
        claims.push((id, claim.json()["token"].as_u64().expect("a token")));
    }
    let [(kept, kept_token), (lost, lost_token), (wrong, _)] = claims[..] else { panic!("three claims") };

    leave_alone(&mut mesh, alone).await;
    let (path, key) = (format!("/api/v1/exams/{kept}/report"), "67e55044-10b1-426f-9247-bb680e5fe0c8");
    let body = json!({ "user": "dr-a", "token": kept_token, "text": "Kept." });
    for _ in 0..2 {
        http.try_post(&path, &body, Some(key)).await.expect("an answer").expect(202);
    }
    let other = json!({ "user": "dr-a", "token": kept_token, "text": "Another." });
    http.try_post(&path, &other, Some(key)).await.expect("an answer").expect(422);
    let refused =
        http.send(&hyper::Method::DELETE, &format!("/api/v1/outbox/{key}"), &[], "").await.expect("an answer");
    assert_eq!(refused.expect(409).json()["code"], json!("not-sent"));
    // What decides something for others is still refused.
    http.post(&format!("/api/v1/exams/{wrong}/release"), &json!({ "user": "dr-a", "token": 1 })).await.expect(503);
    report(http, wrong, "dr-a", 1, "Under a token that never was.").await.expect(202);
    let status: Value = http.json("/api/v1/status").await;
    assert_eq!(status["outbox"]["waiting"], json!(2));
    heal(&mut mesh).await;
    entry(http, kept, "accepted").await;
    let failed = entry(http, wrong, "failed").await;
    assert_eq!((&failed["text"], &failed["needs_a_person"]), (&json!("Under a token that never was."), &json!(true)));
    mesh.settled().await;
    for site in &mesh.sites {
        assert_eq!(texts(&fresh(site.http(), kept).await), ["Kept."], "{}", site.name());
    }
    let repeated = http.try_post(&path, &body, Some(key)).await.expect("an answer").expect(200).json();
    assert_eq!(repeated["report"], json!(1), "a repeat is answered with what came of it");

    // The session may have ended in the meantime; then the claim is lost already, which is the next case.
    leave_alone(&mut mesh, alone).await;
    report(http, lost, "dr-a", lost_token, "Late.").await.expect(202);
    mesh.sites[alone].kill();
    let others: Vec<usize> = (0..3).filter(|n| *n != alone).collect();
    for &n in &others {
        mesh.sites[n].start();
    }
    for &n in &others {
        mesh.sites[n].ready().await;
    }
    let there = mesh.sites[others[0]].http();
    let claimed = until("the lost claim's exam is granted to another", async || {
        let answer = there.post(&format!("/api/v1/exams/{lost}/claim"), &json!({ "user": "dr-b" })).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    heal(&mut mesh).await;
    let draft = entry(http, lost, "draft").await;
    assert_eq!(draft["text"], json!("Late."));
    report(there, lost, "dr-b", claimed["token"].clone(), "In time.").await.expect(200);
    let shown = fresh(http, lost).await;
    let stale: Vec<&Value> = shown["report_list"].as_array().expect("reports").iter().map(|r| &r["stale"]).collect();
    assert_eq!((texts(&shown), stale), (vec!["Late.", "In time."], vec![&json!(true), &json!(false)]));
    let ready = http.get("/readyz?verbose").await.expect(200).text();
    assert!(ready.contains("outbox degraded: 0 entries wait to be sent, 2 await a person"), "{ready}");
    for id in [&failed["id"], &draft["id"]] {
        let id = id.as_str().expect("an id");
        mesh.sites[alone].run(&["outbox", "drop", id]).await.ended(0);
    }
    let ready = http.get("/readyz?verbose").await.expect(200).text();
    assert!(ready.contains("outbox ok: 0 entries wait to be sent"), "{ready}");
}

#[tokio::test]
async fn images_that_came_to_a_site_alone_are_read_there_and_are_everywhere_after_the_heal() {
    let mut mesh = mesh(3).await;
    let alone = (mesh.leader().await + 1) % 3;
    let http = mesh.sites[alone].http();
    let added = http.post("/api/v1/exams", &requested("A1", "P1")).await.expect(201).json();
    let exam = added["id"].as_u64().expect("a number");
    until("the request is here", async || {
        (http.get(&format!("/api/v1/exams/{exam}")).await.status == 200).then_some(())
    })
    .await;
    leave_alone(&mut mesh, alone).await;
    assert_eq!(take(http, exam, "dr-a").await.expect(409).json()["code"], json!("images-incomplete"));
    let study = Slices::new("A1", "P1", 8);
    study.send(mesh.sites[alone].dicom()).await;
    // Of another patient under the same number: never to be read as this one's.
    Slices::named("A1", "P2", "OTHER^NOBODY", 2).send(mesh.sites[alone].dicom()).await;
    let taken = take(http, exam, "dr-a").await.expect(201).json();
    assert_eq!(taken["studies"], json!([study.study]));
    study.is_whole_at(http).await;
    report(http, exam, "dr-a", taken["token"].clone(), "Read where it came.").await.expect(202);
    mesh.sites[alone].kill();
    mesh.sites[alone].start();
    heal(&mut mesh).await;
    entry(http, exam, "accepted").await;
    for site in &mesh.sites {
        until(&format!("{} holds the images", site.name()), async || {
            let shown = fresh(site.http(), exam).await;
            (shown["studies"] == json!([study.study]) && shown["images_here"] == json!(true)).then_some(())
        })
        .await;
        let shown = fresh(site.http(), exam).await;
        assert_eq!((&shown["state"], texts(&shown)), (&json!("reported"), vec!["Read where it came."]));
        study.is_whole_at(site.http()).await;
    }
}

/// How many entries of the outbox wait to be sent.
async fn waiting(http: Http) -> usize {
    let outbox = http.json("/api/v1/outbox").await;
    let entries = outbox["entries"].as_array().expect("entries");
    entries.iter().filter(|entry| entry["settled_at"].is_null()).count()
}

#[tokio::test]
async fn kill_9_while_the_outbox_is_sent_neither_loses_nor_doubles() {
    // The claims must outlast the kills: what is looked for are reports lost or sent twice.
    let mut mesh = Mesh::start(binary(), 3, |_| Settings { session_ttl_s: 600, ..Settings::default() }).await;
    let alone = (mesh.leader().await + 1) % 3;
    let http = mesh.sites[alone].http();
    let mut claims = Vec::new();
    for n in 0..24 {
        let added = http.post("/api/v1/exams", &ready(&format!("A{n}"))).await.expect(201).json();
        let id = added["id"].as_u64().expect("a number");
        let claim = http.post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-a" })).await.expect(200);
        claims.push((id, claim.json()["token"].clone()));
    }
    leave_alone(&mut mesh, alone).await;
    for (id, token) in &claims {
        report(http, *id, "dr-a", token.clone(), &format!("Report of {id}.")).await.expect(202);
    }
    mesh.sites[alone].kill();
    heal(&mut mesh).await;
    let mut unsent = vec![claims.len()];
    for kill in 0..6 {
        // In the middle of sending: some are gone, others are not, one is on its way.
        let before = unsent[unsent.len() - 1];
        let now = until("one more is sent", async || {
            for _ in 0..50 {
                let left = waiting(http).await;
                if left < before || left == 0 {
                    return Some(left);
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            None
        })
        .await;
        tokio::time::sleep(std::time::Duration::from_millis(kill)).await;
        mesh.sites[alone].kill();
        mesh.sites[alone].start();
        mesh.sites[alone].ready().await;
        unsent.push(waiting(http).await.min(now));
    }
    assert!(unsent[1] > 0, "at least the first kill came while reports were being sent: {unsent:?}");
    until("everything is sent", async || (waiting(http).await == 0).then_some(())).await;
    for (id, _) in &claims {
        let exam = fresh(http, *id).await;
        assert_eq!(texts(&exam), [format!("Report of {id}.")], "unsent before each kill: {unsent:?}");
        assert_eq!(exam["state"], json!("reported"));
    }
}
