//! The worklist page: right, live, and deaf to other sites.

use std::time::Duration;

use hyper::Method;
use maillage_tests::exams::ready;
use maillage_tests::{Answer, Http, Ran};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::interop::{python, script};
use crate::mesh;

/// For a browser that starts on a busy machine.
const BROWSER_DEADLINE: Duration = Duration::from_secs(150);
const READER: (&str, &str) = ("cookie", "reader=dr-page");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

async fn ask(http: Http, method: &Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    http.send(method, path, headers, body.to_owned()).await.expect("an answer")
}

/// The value of the first such attribute after `from`.
fn value_after<'a>(page: &'a str, from: &str, attribute: &str) -> &'a str {
    let rest = &page[page.find(from).unwrap_or_else(|| panic!("{from} in {page}"))..];
    let begin = rest.find(attribute).expect("the attribute") + attribute.len();
    rest[begin..].split('"').next().expect("a value")
}

#[tokio::test]
async fn the_page_shows_the_exam_and_escapes_what_hospitals_write() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    let mut exam = ready("A1");
    exam["patient"]["name"] = json!("<script>alert(1)</script>^EVE");
    exam["description"] = json!("\"><img src=x onerror=alert(2)>");
    exam["hospital"] = json!("Fish & Chips' \u{202e}latipsoh");
    http.post("/api/v1/exams", &exam).await.expect(201);
    let answer = http.get("/").await.expect(200);
    let page = answer.text();
    assert!(answer.header("content-type").starts_with("text/html"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{page}");
    assert!(page.contains("&lt;img src=x"), "{page}");
    assert!(!page.contains("<script>") && !page.contains("<img"), "{page}");
    assert!(!page.contains('\u{202e}'), "nothing reorders the page's text");
    assert!(page.contains("Fish &amp; Chips"));
    let policy = answer.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"fr\">"), "French first");
    let english = ask(http, &Method::GET, "/", &[("accept-language", "en-GB,en;q=0.9")], "").await.expect(200);
    assert!(english.text().contains("lang=\"en\""));
    for part in ["/static/room.js", "/static/room.css", "/fragments/room"] {
        http.get(part).await.expect(200);
    }
}

#[tokio::test]
async fn other_names_and_other_sites_are_refused() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    let own = http.0.to_string();
    for path in ["/", "/api/v1/exams", "/api/v1/status", "/dicom-web/studies/1.2", "/metrics", "/fragments/room"] {
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
            let refused = ask(http, &Method::GET, path, &[("host", host)], "").await.expect(421);
            assert!(!refused.text().contains("<main"), "nothing is shown under another name");
        }
    }
    let json_body = [("content-type", "application/json")];
    let sites = [
        vec![("origin", "http://evil.example")],
        vec![("origin", "null")],
        vec![("origin", "http://127.0.0.1:9")],
        vec![("sec-fetch-site", "cross-site")],
        vec![("sec-fetch-site", "same-site")],
    ];
    for mut headers in sites {
        headers.extend(json_body);
        let exam = ready("FORGED").to_string();
        ask(http, &Method::POST, "/api/v1/exams", &headers, &exam).await.expect(403);
        headers.pop();
        headers.extend([FORM, READER]);
        ask(http, &Method::POST, "/ui/next", &headers, "key=00000000-0000-4000-8000-000000000000").await.expect(403);
    }
    // A form that any page can send without asking is not taken for JSON either.
    ask(http, &Method::POST, "/api/v1/exams", &[("content-type", "text/plain")], &ready("FORGED").to_string())
        .await
        .expect(415);
    assert_eq!(http.json("/api/v1/exams?fresh=true").await["exams"], json!([]), "nothing was done");
    let origin = format!("http://{own}");
    let headers = [json_body[0], ("origin", origin.as_str()), ("sec-fetch-site", "same-origin")];
    ask(http, &Method::POST, "/api/v1/exams", &headers, &ready("A1").to_string()).await.expect(201);
}

#[tokio::test]
async fn an_exam_is_claimed_released_and_reported_by_forms() {
    let mesh = mesh(3).await;
    let (here, there) = (mesh.sites[1].http(), mesh.sites[2].http());
    let id = here.post("/api/v1/exams", &ready("A1")).await.expect(201).json()["id"].to_string();
    let set = ask(here, &Method::POST, "/ui/reader", &[FORM], "reader=dr-page&lang=en").await.expect(303);
    let cookie = set.header("set-cookie");
    assert!(cookie.starts_with("reader=dr-page;") && cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));

    here.json("/api/v1/exams?fresh=true").await;
    let page = ask(here, &Method::GET, "/?lang=en", &[READER], "").await.expect(200).text();
    let action = format!("/ui/exams/{id}/claim");
    let claim = format!("key={}&lang=en", value_after(&page, &action, "name=\"key\" value=\""));
    for _ in 0..2 {
        // Pressed twice: the same claim.
        let done = ask(here, &Method::POST, &action, &[FORM, READER], &claim).await.expect(303);
        assert!(done.header("location").contains("done=claimed"), "{}", done.header("location"));
    }
    let page = ask(here, &Method::GET, "/?lang=en&done=claimed", &[READER], "").await.expect(200).text();
    let report = format!("/ui/exams/{id}/report");
    let token = value_after(&page, &report, "name=\"token\" value=\"").to_owned();

    let other = [FORM, ("cookie", "reader=dr-other")];
    let key = uuid::Uuid::new_v4();
    let refused = ask(there, &Method::POST, &action, &other, &format!("key={key}&lang=en")).await.expect(409).text();
    assert!(refused.contains("dr-page") && refused.contains("lyon"), "who holds it is shown: {refused}");
    let elsewhere = ask(there, &Method::GET, "/?lang=en", &[other[1]], "").await.expect(200).text();
    assert!(!elsewhere.contains(&format!("action=\"{report}\"")), "only its reader is offered to report");

    let body = format!("key={}&lang=en&token={token}&text=All+is+well.%0D%0ATruly.", uuid::Uuid::new_v4());
    let done = ask(here, &Method::POST, &report, &[FORM, READER], &body).await.expect(303);
    assert!(done.header("location").contains("done=reported"));
    let exam: Value = there.json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!((&exam["state"], &exam["report_list"][0]["text"]), (&json!("reported"), &json!("All is well.\nTruly.")));

    let late = format!("key={}&lang=en&token={token}&text=Once+more%3Cb%3E", uuid::Uuid::new_v4());
    let refused = ask(here, &Method::POST, &report, &[FORM, READER], &late).await.expect(409).text();
    assert!(refused.contains("Once more&lt;b&gt;"), "what was typed is not lost: {refused}");
}

#[tokio::test]
async fn a_change_through_another_site_reaches_the_page_as_an_event() {
    let mesh = mesh(3).await;
    let (watching, acting) = (mesh.sites[1].http(), mesh.sites[2].http());
    let mut events = watching.events("/api/v1/events").await;
    let first = events.next(Duration::from_secs(5)).await;
    assert!(first.contains("event: queue"), "{first}");
    for n in 0..3 {
        let accession = format!("SSE{n}");
        acting.post("/api/v1/exams", &ready(&accession)).await.expect(201);
        // An event for something else may come first; the page then shows what is there.
        let mut shown = false;
        for _ in 0..5 {
            let event = events.next(Duration::from_secs(5)).await;
            let id: u64 = event
                .lines()
                .find_map(|line| line.strip_prefix("id: "))
                .and_then(|id| id.parse().ok())
                .unwrap_or_else(|| panic!("an index in {event}"));
            assert!(id > 0);
            let list = watching.json("/api/v1/exams").await;
            if list["exams"].as_array().expect("exams").iter().any(|exam| exam["accession"] == json!(accession)) {
                shown = true;
                break;
            }
        }
        assert!(shown, "{accession} is shown after an event");
    }
    let room = watching.get("/fragments/room").await.expect(200).text();
    assert!(room.starts_with("<main"), "{room}");
}

#[tokio::test]
async fn a_reader_whose_exam_is_taken_over_is_told_by_the_page_until_they_have_seen_it() {
    let Some(python) = python("subprocess").await else { return };
    if !std::path::Path::new("/usr/bin/chromium").exists() {
        assert!(std::env::var("MAILLAGE_REQUIRE_INTEROP").is_err(), "chromium is missing");
        eprintln!("skipped: chromium is missing");
        return;
    }
    let mesh = mesh(3).await;
    let urls = [1, 2].map(|site| format!("http://{}", mesh.sites[site].http().0));
    for accession in ["B1", "B2"] {
        mesh.sites[0].http().post("/api/v1/exams", &ready(accession)).await.expect(201);
    }
    let mut command = Command::new(&python);
    command.arg(script("page.py")).args(&urls);
    let ran = Ran::to_end_within(BROWSER_DEADLINE, &mut command).await.ended(0);
    eprint!("{}", ran.stdout);
    assert_eq!(ran.stdout.lines().filter(|line| line.starts_with("ok ")).count(), 6, "every check was made");
}

#[tokio::test]
async fn a_lost_claim_comes_before_the_change_of_the_queue_and_again_to_who_was_cut_off() {
    let mesh = mesh(3).await;
    let (watching, acting) = (mesh.sites[1].http(), mesh.sites[2].http());
    let id = acting.post("/api/v1/exams", &ready("L1")).await.expect(201).json()["id"].to_string();
    watching.post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-a" })).await.expect(200);
    let seen = watching.json("/api/v1/status").await["applied"].as_u64().expect("an index");
    let body = json!({ "user": "dr-b", "reason": "dr-a is away" });
    acting.post(&format!("/api/v1/exams/{id}/take-over"), &body).await.expect(200);
    let path = format!("/api/v1/events?seen={seen}");
    let resumed = [("last-event-id", seen.to_string())];
    let resumed: Vec<(&str, &str)> = resumed.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for mut events in [watching.events(&path).await, watching.events_with("/api/v1/events", &resumed).await] {
        let mut told = None;
        for _ in 0..5 {
            let event = events.next(Duration::from_secs(10)).await;
            if event.contains("event: claim-lost") {
                told = Some(event);
                break;
            }
        }
        let told = told.expect("a lost claim");
        let said = told.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
        let said: Value = serde_json::from_str(said).expect("JSON");
        let details = &said["details"];
        assert_eq!((said["exam"].to_string(), &said["user"]), (id.clone(), &json!("dr-b")), "{said}");
        assert_eq!(
            (&details["user"], &details["reason"]),
            (&json!("dr-a"), &json!("taken over by dr-b: dr-a is away")),
            "{said}"
        );
        assert!(events.next(Duration::from_secs(10)).await.contains("event: queue"), "and then the queue's change");
    }
    // Who saw the present is told nothing of the past.
    let mut events = watching.events("/api/v1/events").await;
    let first = events.next(Duration::from_secs(5)).await;
    assert!(first.contains("event: queue"), "{first}");
}
