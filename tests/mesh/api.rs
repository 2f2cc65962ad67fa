//! The API as programs use it: exact statistics, stable pages, and a document that tells the truth.

use std::time::Duration;

use hyper::Method;
use maillage_tests::exams::ready;
use serde_json::{Value, json};

use crate::life::{add, done, exam, list, refused};
use crate::mesh;

#[tokio::test]
async fn statistics_are_exact() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let http = site.http();
    let mut totals: Vec<u64> = Vec::new();
    for (accession, modality, user) in
        [("A1", "CT", "dr-a"), ("A2", "MR", "dr-a"), ("A3", "CT", "dr-b"), ("A4", "CT", "dr-b"), ("A5", "CR", "dr-a")]
    {
        let mut new = ready(accession);
        new["modality"] = json!(modality);
        let id = add(http, &new).await;
        let granted = done(http, "/api/v1/claims/next", json!({ "user": user })).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        let report = json!({ "user": user, "token": granted["token"], "text": "Normal." });
        done(http, &format!("/api/v1/exams/{id}/report"), report).await;
        let shown = exam(http, &id).await;
        totals.push(milliseconds(&shown["ended_at"]) - milliseconds(&shown["ready_at"]));
    }
    totals.sort_unstable();
    let all = http.json("/api/v1/statistics?from=1h&fresh=true").await;
    let total = &all["total"];
    assert_eq!(total["reports"], json!(5));
    assert_eq!(
        (&total["p50_ms"], &total["p90_ms"], &total["max_ms"]),
        (&json!(totals[2]), &json!(totals[4]), &json!(totals[4]))
    );
    let mean = total["mean_ms"].as_f64().expect("a mean");
    let expected = totals.iter().sum::<u64>() as f64 / 5.0;
    assert!((mean - expected).abs() < 1e-6, "{mean} {expected}");
    assert_eq!((&total["within_target"], &total["within_target_percent"]), (&json!(5), &json!(100.0)));

    let groups = |by: &str| {
        let path = format!("/api/v1/statistics?by={by}&from=1h");
        async move {
            let shown = http.json(&path).await;
            let pairs = list(&shown, "groups").iter().map(|group| {
                (group["group"].as_str().unwrap_or_default().to_owned(), group["reports"].as_u64().unwrap_or_default())
            });
            pairs.collect::<Vec<_>>()
        }
    };
    let named =
        |pairs: &[(&str, u64)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<Vec<_>>();
    assert_eq!(groups("modality").await, named(&[("CR", 1), ("CT", 3), ("MR", 1)]));
    assert_eq!(groups("reader").await, named(&[("dr-a", 3), ("dr-b", 2)]));
    assert_eq!(groups("centre").await, named(&[("paris", 5)]));
    assert_eq!(groups("urgency").await, named(&[("urgent", 5)]));
    assert_eq!(groups("hospital").await, named(&[("Test hospital", 5)]));
    assert_eq!(groups("hour").await.iter().map(|(_, count)| count).sum::<u64>(), 5);

    let before = http.json("/api/v1/statistics?from=2020-01-01T00:00:00Z&to=2021-01-01T00:00:00Z").await;
    assert_eq!((&before["total"], &before["groups"]), (&json!(null), &json!([])));
    refused(&http.get("/api/v1/statistics?from=yesterday").await, 400, "invalid");
    refused(&http.get("/api/v1/statistics?by=weekday").await, 400, "invalid");
    let printed = site.run(&["stats", "--from", "1h", "--by", "modality"]).await.ended(0).stdout;
    assert!(printed.contains("MODALITY") && printed.contains("100.0 %") && printed.contains("(all)"), "{printed}");
}

/// An RFC 3339 time of this day in milliseconds; only differences are asked for.
fn milliseconds(time: &Value) -> u64 {
    let text = time.as_str().expect("a time");
    let (day, clock) = text.split_once('T').expect("a day and a clock");
    let day: u64 = day.rsplit('-').next().and_then(|day| day.parse().ok()).expect("a day");
    let clock = clock.trim_end_matches('Z');
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let seconds = clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<u64>().expect("a number"));
    let fraction: u64 = format!("{fraction:0<3}")[..3].parse().expect("milliseconds");
    (day * 86_400 + seconds) * 1000 + fraction
}

#[tokio::test]
async fn a_list_is_filtered_and_its_pages_are_stable() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let http = site.http();
    let mut ids = Vec::new();
    for number in 0..7 {
        let mut new = ready(&format!("A{number}"));
        new["modality"] = json!(if number % 2 == 0 { "CT" } else { "MR" });
        new["hospital"] = json!(if number < 3 { "Nord & Sud" } else { "Est" });
        new["patient"]["id"] = json!(format!("P{}", number / 2));
        ids.push(add(http, &new).await.parse::<u64>().expect("a number"));
    }
    let numbers = |shown: &Value| {
        list(shown, "exams").iter().map(|exam| exam["id"].as_u64().expect("a number")).collect::<Vec<_>>()
    };
    let (mut seen, mut next) = (Vec::new(), json!(0));
    while !next.is_null() {
        let page = http.json(&format!("/api/v1/exams?limit=2&modality=CT&after={next}")).await;
        seen.extend(numbers(&page));
        next = page["next"].clone();
        // What comes meanwhile comes last.
        if seen.len() == 2 {
            let mut late = ready("LATE");
            late["modality"] = json!("CT");
            ids.push(add(http, &late).await.parse().expect("a number"));
        }
    }
    assert_eq!(seen, [ids[0], ids[2], ids[4], ids[6], ids[7]]);
    for (query, found) in [
        ("accession=A3", vec![ids[3]]),
        ("accession=A", vec![]),
        ("patient=P1", vec![ids[2], ids[3]]),
        ("hospital=Nord%20%26%20Sud&modality=MR", vec![ids[1]]),
        ("state=waiting&patient=P0", vec![ids[0], ids[1]]),
        ("state=reported", vec![]),
        ("to-regulate=true", vec![]),
    ] {
        assert_eq!(numbers(&http.json(&format!("/api/v1/exams?fresh=true&{query}")).await), found, "{query}");
    }
    refused(&http.get("/api/v1/exams?state=lost").await, 400, "invalid");
    refused(&http.get("/api/v1/exams?colour=red").await, 400, "invalid");
    let listed =
        site.run_json(&["exams", "list", "--hospital", "Nord & Sud", "--modality", "CT", "--limit", "1"]).await;
    assert_eq!(numbers(&listed), [ids[0]]);
}

#[tokio::test]
async fn every_route_of_the_document_is_served_and_answers_as_it_says() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    let id = add(http, &ready("A1")).await;
    let document = http.json("/api/v1/openapi.json").await;
    assert_eq!(document["openapi"], json!("3.1.0"));
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() > 30, "{}", paths.len());
    for (path, item) in paths {
        let there = path.replace("{id}", &id).replace("{remark}", "1").replace("{name}", "X").replace("{uid}", "1.2");
        for method in item.as_object().expect("methods").keys() {
            if path == "/events" {
                http.events(&format!("/api/v1{there}")).await.next(Duration::from_secs(30)).await;
                continue;
            }
            let method: Method = method.to_uppercase().parse().expect("a method");
            let headers = [("content-type", "application/json")];
            let answer = http.send(&method, &format!("/api/v1{there}"), &headers, "{\"nothing\":1}").await;
            let answer = answer.unwrap_or_else(|error| panic!("{}", error.0));
            let said = if answer.status < 300 { json!({}) } else { answer.json() };
            assert_ne!(answer.status, 405, "{method} {path}");
            assert_ne!(said["detail"], json!("no such address"), "{method} {path}");
            if method == Method::GET && answer.status == 200 {
                conforms(&document, path, &answer.json());
            }
        }
    }
}

/// Whether an answer has every member that its schema requires, and none that it does not know.
fn conforms(document: &Value, path: &str, answer: &Value) {
    let schema = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
    let Some(reference) = schema["$ref"].as_str() else { return };
    let schema = document.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference}"));
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(answer.get(name).is_some(), "{path}: {name} is missing in {answer}");
    }
    // What is of any shape says nothing of its members.
    if let Some(known) = schema["properties"].as_object().filter(|known| known.len() > 2) {
        for name in answer.as_object().expect("an object").keys() {
            assert!(known.contains_key(name), "{path}: {name} is not in the document");
        }
    }
}
