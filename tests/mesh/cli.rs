//! The command line: pure JSON when asked for, exit codes that scripts can branch on.

use maillage_tests::exams::ready;
use maillage_tests::{Mesh, Settings};
use serde_json::json;

use crate::{binary, mesh};

#[tokio::test]
async fn every_command_that_prints_prints_one_json_document_when_asked() {
    let mut mesh = Mesh::empty(binary()).await;
    let settings = Settings::default();
    let mut site = mesh.prepare("paris", &settings);
    let founded = site.run_json(&["init", "--mesh", "test"]).await;
    assert_eq!((&founded["mesh"], &founded["site"]), (&json!("test"), &json!("paris")));
    assert_eq!(founded["mesh_id"].as_str().map(str::len), Some(64));
    site.start();
    site.ready().await;
    mesh.sites.push(site);
    mesh.settled().await;
    let site = &mesh.sites[0];

    let made = site.run_json(&["token", "create", "--lifetime", "10m"]).await;
    let joined = mesh.prepare("lyon", &settings).run_json(&["join", made["token"].as_str().expect("a token")]).await;
    assert_eq!((&joined["mesh"], &joined["site"]), (&json!("test"), &json!("lyon")));
    let listed = site.run_json(&["token", "list"]).await;
    assert_eq!(listed["tokens"][0]["key"], made["key"]);
    assert!(!listed.to_string().contains(made["token"].as_str().expect("a token")), "a list shows no secret");

    let add = ["exams", "add", "--patient-id", "P1", "--accession", "A1", "--without-images", "--priority", "vital"];
    let id = site.run_json(&add).await["id"].to_string();
    assert_eq!(site.run_json(&["exams", "list"]).await["exams"][0]["priority"], json!("vital"));
    assert_eq!(site.run_json(&["exams", "list", "--state", "waiting", "--fresh"]).await["fresh"], json!(true));
    assert_eq!(site.run_json(&["exams", "show", &id]).await["accession"], json!("A1"));
    let prioritised = site.run_json(&["exams", "prioritise", &id, "scheduled"]).await;
    assert_eq!(prioritised["done"], json!(true));
    let granted = site.run_json(&["claim", "take", &id, "--user", "dr-a"]).await;
    assert_eq!(granted["exam"]["priority"], json!("scheduled"));
    site.run_json(&["claim", "release", &id, "--token", &granted["token"].to_string()]).await;
    assert_eq!(
        site.run_json(&["--yes", "exams", "cancel", &id, "--reason", "a test"]).await["state"],
        json!("cancelled")
    );
    assert_eq!(site.run_json(&["claim", "next", "--user", "dr-a"]).await["granted"], json!(false));

    assert_eq!(site.run_json(&["status"]).await["mesh"]["name"], json!("test"));
    assert_eq!(site.run_json(&["health"]).await["healthy"], json!(true));
    assert_eq!(site.run_json(&["peers", "list"]).await["peers"].as_array().map(Vec::len), Some(2));
    assert_eq!(site.run_json(&["study", "list"]).await["studies"], json!([]));
    assert_eq!(site.run_json(&["chunks", "stats"]).await["bad"], json!(0));
    assert_eq!(site.run_json(&["config", "check"]).await["ok"], json!(true));
    assert_eq!(site.run_json(&["version"]).await["name"], json!("maillage"));
    assert!(
        site.run_json(&["config", "template"]).await["template"].as_str().is_some_and(|text| text.contains("[raft]"))
    );
}

#[tokio::test]
async fn tables_are_for_people_and_carry_no_escape_sequences() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let mut exam = ready("A1");
    exam["description"] = json!("CT of the head");
    site.http().post("/api/v1/exams", &exam).await.expect(201);
    for line in
        [&["status"][..], &["exams", "list"], &["peers", "list"], &["health"], &["token", "list"], &["study", "list"]]
    {
        let ran = site.run(line).await.ended(0);
        assert!(!ran.stdout.trim().is_empty(), "{line:?}");
        assert!(!ran.stdout.contains('\u{1b}'), "{line:?}: {}", ran.stdout);
    }
    let listed = site.run(&["exams", "list"]).await.stdout;
    assert!(listed.contains("CT of the head") && listed.contains("waiting"), "{listed}");
}

#[tokio::test]
async fn a_line_that_makes_no_sense_ends_with_2() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    for line in [
        &["frobnicate"][..],
        &[],
        &["exams", "add"],
        &["exams", "list", "--state", "lost"],
        &["token", "create", "--lifetime", "soon"],
        &["claim", "complete", "1", "--token", "1"],
        &["join", "no-token-at-all"],
        &["status", "-o", "xml"],
    ] {
        let ran = site.run(line).await.ended(2);
        assert_eq!(ran.stdout, "", "{line:?}");
        assert!(!ran.stderr.is_empty());
    }
    assert!(!site.data_dir().exists(), "nothing was begun");
}

#[tokio::test]
async fn without_a_running_node_the_command_says_which_directory_it_asked() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    let ran = site.run(&["status"]).await.ended(1);
    ran.complains_of(&["no node is running", &site.data_dir().display().to_string(), "hint:"]);
    assert_eq!(site.run(&["-o", "json", "exams", "list"]).await.ended(1).stdout, "");
}
