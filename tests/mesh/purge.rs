//! Images go from every disk when their time is over, also where a site was away; a legal hold keeps them; what
//! the mesh still waits for is on record.

#![expect(clippy::disallowed_methods, reason = "tests look for bytes in a site's files")]

use std::fs;
use std::path::Path;

use maillage_tests::multipart::find;
use maillage_tests::{Http, Mesh, Settings, Site, Slices, until};
use serde_json::{Value, json};

use crate::disk::documents;
use crate::life::{done, exam, list, refused};
use crate::{binary, mesh};

/// Where the packs of a site still name an instance of a study. What they hold of it is sealed: manifests, which
/// name it, and the chunks that they list go together.
pub(crate) fn is_in(data_dir: &Path, study: &Slices) -> Option<String> {
    for entry in fs::read_dir(data_dir.join("packs")).expect("look") {
        let path = entry.expect("an entry").path();
        let Ok(bytes) = fs::read(&path) else { continue };
        if study.instances.keys().any(|uid| find(&bytes, uid.as_bytes()).is_some()) {
            return Some(path.display().to_string());
        }
    }
    None
}

/// A study of an exam that is reported and delivered, on all three sites.
async fn delivered(sites: &[Site], accession: &str) -> (Slices, String) {
    let http = sites[0].http();
    let study = Slices::new(accession, "P1", 4);
    let id = crate::life::add(http, &maillage_tests::exams::requested(accession, "P1")).await;
    study.send(sites[0].dicom()).await;
    until("three sites hold the study", async || {
        let shown = http.get(&format!("/api/v1/studies/{}", study.study)).await;
        (shown.status == 200 && shown.json()["copies"] == json!(3)).then_some(())
    })
    .await;
    let claim = done(http, &format!("/api/v1/exams/{id}/claim"), json!({ "user": "dr-a" })).await;
    let report = json!({ "user": "dr-a", "token": claim["token"], "text": "Nothing." });
    done(http, &format!("/api/v1/exams/{id}/report"), report).await;
    done(http, &format!("/api/v1/exams/{id}/delivery"), json!({ "user": "dr-a", "to": "Dr B", "report": 1 })).await;
    (study, id)
}

fn names(list: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = list.iter().map(|site| site.as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}

/// Waits until all sites but those named have confirmed that an exam's images are gone.
async fn purged_but_at(http: Http, id: &str, away: &[&str]) -> Value {
    until("the purge is confirmed", async || {
        let shown = exam(http, id).await;
        let parts = list(&shown["retention"], "parts");
        let waits = |part: &Value| names(list(part, "pending")) == away;
        (shown["state"] == json!("purged") && !parts.is_empty() && parts.iter().all(waits)).then_some(shown)
    })
    .await
}

#[tokio::test]
async fn images_go_everywhere_also_where_a_site_was_away_and_a_legal_hold_keeps_others() {
    let mut mesh = mesh(3).await;
    let name = mesh.sites[2].name().to_owned();
    let (first, purged) = delivered(&mesh.sites, "A1").await;
    let (second, held) = delivered(&mesh.sites, "A2").await;
    let paris = mesh.sites[0].http();
    let reason = json!({ "reason": "asked for by the court", "user": "dpo" });
    mesh.sites[0].run_json(&["exam", "hold", &held, "--reason", "asked for by the court", "--user", "dpo"]).await;
    assert!(is_in(mesh.sites[0].data_dir(), &first).is_some(), "the search finds what is there");
    refused(&paris.post(&format!("/api/v1/exams/{purged}/purge"), &reason).await, 409, "retained");

    mesh.sites[2].kill();
    mesh.sites[0].run(&["policy", "set", "--retention", "1s", "--unread", "1s"]).await.ended(0);
    let shown = purged_but_at(paris, &purged, &[&name]).await;
    assert_eq!(list(&shown, "report_list").len(), 1, "the report stays");
    for site in &mesh.sites[..2] {
        assert_eq!(is_in(site.data_dir(), &first), None, "at {}", site.name());
        second.is_whole_at(site.http()).await;
    }
    let text = mesh.sites[0].run(&["exam", "show", &purged]).await.ended(0).stdout;
    assert!(text.contains("still to come") && text.contains(&name), "{text}");
    assert_eq!(paris.get(&format!("/api/v1/studies/{}", first.study)).await.status, 404);
    refused(&paris.post(&format!("/api/v1/exams/{held}/purge"), &reason).await, 409, "legal-hold");

    mesh.sites[2].start();
    mesh.sites[2].ready().await;
    purged_but_at(paris, &purged, &[]).await;
    assert_eq!(is_in(mesh.sites[2].data_dir(), &first), None, "at the site that was away");
    second.is_whole_at(mesh.sites[2].http()).await;

    // A site that never comes back keeps nothing waiting but its own word.
    mesh.sites[2].kill();
    mesh.sites[0].run_json(&["exam", "release-hold", &held, "--reason", "the case is closed", "--user", "dpo"]).await;
    purged_but_at(paris, &held, &[&name]).await;
    for site in &mesh.sites[..2] {
        assert_eq!(is_in(site.data_dir(), &second), None, "at {}", site.name());
    }
    let trail = paris.json("/api/v1/audit?after=0&limit=1000").await;
    let of = |kind: &str| {
        list(&trail, "entries")
            .iter()
            .filter(|entry| entry["kind"] == json!(kind) && entry["outcome"] == json!("done"))
            .count()
    };
    assert_eq!((of("purge"), of("record-purged"), of("legal-hold"), of("release-hold")), (2, 5, 1, 1), "{trail}");

    // Images that come afterwards are an exam of their own.
    mesh.sites[0].run(&["policy", "set", "--retention", "90d", "--unread", "180d"]).await.ended(0);
    first.send(mesh.sites[0].dicom()).await;
    until("the images are there anew", async || {
        let answer = paris.get(&format!("/api/v1/studies/{}", first.study)).await;
        (answer.status == 200).then_some(())
    })
    .await;
    first.is_whole_at(paris).await;
    assert_eq!(exam(paris, &purged).await["state"], json!("purged"));
}

/// Sends a study and waits until so many sites hold it. Its exam.
async fn on_sites(site: &Site, study: &Slices, count: usize) -> String {
    study.send(site.dicom()).await;
    let part = until("the sites hold the study", async || {
        let shown = site.http().get(&format!("/api/v1/studies/{}", study.study)).await;
        let shown: Value = (shown.status == 200).then(|| shown.json())?;
        (shown["copies"] == json!(count)).then(|| shown["part_list"][0].clone())
    })
    .await;
    part["exam"].to_string().trim_matches('"').to_owned()
}

#[tokio::test]
async fn a_purge_that_has_to_wait_at_a_site_holds_up_no_other_there() {
    // The last site takes sixteen seconds for the copy of sixteen documents, and cannot purge what it is still taking in.
    let settings = |n: usize| Settings {
        lines: if n == 2 { vec![("[storage]", "copy_mb_s_max = 1".to_owned())] } else { Vec::new() },
        ..Settings::default()
    };
    let mesh = Mesh::start(binary(), 3, settings).await;
    let (paris, slow) = (mesh.sites[0].http(), mesh.sites[2].name().to_owned());
    let (small, large) = (Slices::new("A1", "P1", 4), documents("A2", "P2", 16));
    let after = on_sites(&mesh.sites[0], &small, 3).await;
    let stuck = on_sites(&mesh.sites[0], &large, 2).await;

    let withdrawn = json!({ "reason": "withdrawn", "consent_withdrawn": true, "user": "dpo" });
    done(paris, &format!("/api/v1/exams/{stuck}/purge"), withdrawn.clone()).await;
    purged_but_at(paris, &stuck, &[&slow]).await;
    done(paris, &format!("/api/v1/exams/{after}/purge"), withdrawn).await;
    purged_but_at(paris, &after, &[]).await;
    let shown = exam(paris, &stuck).await;
    assert_eq!(names(list(&list(&shown["retention"], "parts")[0], "pending")), [slow.as_str()], "{shown}");
    let text = mesh.sites[0].run(&["exam", "show", &stuck]).await.ended(0).stdout;
    assert!(text.contains("still to come") && text.contains(&slow), "{text}");
    assert_eq!(is_in(mesh.sites[2].data_dir(), &small), None, "what went is gone");

    purged_but_at(paris, &stuck, &[]).await;
    for site in &mesh.sites {
        for study in [&small, &large] {
            assert_eq!(is_in(site.data_dir(), study), None, "at {}", site.name());
        }
    }
}
