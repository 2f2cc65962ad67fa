//! Configuration: one file, overridden by the environment, unknown keys refused.

#![expect(clippy::disallowed_methods, reason = "tests write configuration files as a sysadmin does")]

use std::fs;

use maillage_tests::{Mesh, Ran, Settings};
use serde_json::json;

use crate::binary;

#[tokio::test]
async fn the_template_is_a_good_configuration() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    let template = site.run(&["config", "template"]).await.ended(0).stdout;
    fs::write(site.config(), &template).expect("write");
    site.run(&["config", "check"]).await.ended(0);
    // Every line that is commented out is a setting, and a good one.
    let mut all = String::new();
    for line in template.lines() {
        let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        all.push_str(setting.unwrap_or(line));
        all.push('\n');
    }
    fs::write(site.config(), &all).expect("write");
    site.run(&["config", "check"]).await.ended(0);
    let shown = site.run_json(&["config", "show"]).await;
    let from_file =
        shown.as_object().expect("settings").values().filter(|value| value["from"] != json!("default")).count();
    assert!(from_file > 25, "the template names every setting: {from_file}");
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_its_line_by_every_command() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    fs::write(site.config(), "[node]\nname = \"paris\"\n\n[http]\nlistne = \"127.0.0.1:1\"\n").expect("write");
    for line in [&["config", "check"][..], &["serve"], &["init"], &["status"]] {
        site.run(line).await.ended(2).complains_of(&["listne", "paris.toml:5"]);
    }
    let checked = site.run(&["-o", "json", "config", "check"]).await.ended(2);
    assert_eq!(checked.json()["ok"], json!(false));
}

#[tokio::test]
async fn every_problem_is_named_at_once() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    let text = "[raft]\nelection_min_ms = 100\n[storage]\ncopies = 0\n[http]\nlisten = \"0.0.0.0:7480\"\n";
    fs::write(site.config(), text).expect("write");
    let ran = site.run(&["config", "check"]).await.ended(2);
    ran.complains_of(&["election_min", "copies", "trusted_network"]);
}

#[tokio::test]
async fn a_value_that_cannot_be_read_hides_no_other_problem() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    let text = "[dicom]\nae_title = \"LONGER THAN SIXTEEN\"\n[storage]\ncopies = 0\n[http]\nlisten = \"nowhere\"\n";
    fs::write(site.config(), text).expect("write");
    site.run(&["config", "check"]).await.ended(2).complains_of(&["ae_title", "http.listen", "copies"]);
}

#[tokio::test]
async fn the_environment_overrides_the_file_and_show_says_so() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    let secret = mesh.root().join("zone.txt");
    fs::write(&secret, "from-a-file\n").expect("write");
    let mut command = site.command(&["-o", "json", "config", "show"]);
    command
        .env("MAILLAGE__NODE__NAME", "marseille")
        .env("MAILLAGE__RAFT__HEARTBEAT_MS", "170")
        .env("MAILLAGE__HTTP__ALLOWED_HOSTS", "a.example,b.example")
        .env("MAILLAGE__NODE__ZONE_FILE", &secret);
    let shown = Ran::to_end(&mut command).await.ended(0).json();
    assert_eq!(shown["node.name"]["value"], json!("marseille"));
    assert_eq!(shown["node.name"]["from"], json!("env MAILLAGE__NODE__NAME"));
    assert_eq!(shown["raft.heartbeat_ms"]["value"], json!(170));
    assert_eq!(shown["http.allowed_hosts"]["value"], json!(["a.example", "b.example"]));
    assert_eq!(shown["node.zone"]["value"], json!("from-a-file"));
    let from = shown["raft.session_ttl_s"]["from"].as_str().expect("an origin");
    assert!(from.contains("paris.toml:"), "{from}");
    assert_eq!(shown["raft.election_min_ms"]["from"], json!("default"));

    let mut unknown = site.command(&["config", "check"]);
    unknown.env("MAILLAGE__NODE__NAEM", "x");
    Ran::to_end(&mut unknown).await.ended(2).complains_of(&["MAILLAGE__NODE__NAEM"]);
    let mut wrong = site.command(&["config", "check"]);
    wrong.env("MAILLAGE__RAFT__HEARTBEAT_MS", "fast");
    Ran::to_end(&mut wrong).await.ended(2).complains_of(&["MAILLAGE__RAFT__HEARTBEAT_MS"]);
}
