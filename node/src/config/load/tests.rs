//! Precedence, refusals and their places, over real files.

use std::fs;

use expect_test::{Expect, expect};
use tempfile::TempDir;

use super::super::{Caller, LogFormat, template};
use super::*;

/// A directory with `maillage.toml` in it, and an environment.
struct Fixture {
    directory: TempDir,
    sources: Sources,
}

fn fixture(toml: &str, environment: &[(&str, &str)]) -> Fixture {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("maillage.toml");
    fs::write(&path, toml).expect("write");
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Fixture { directory, sources: Sources { file: Some(path), candidates: Vec::new(), environment } }
}

impl Fixture {
    fn problems(&self) -> String {
        let root = format!("{}/", self.directory.path().display());
        load(&self.sources).problems.iter().map(|problem| format!("{problem}\n").replace(&root, "")).collect()
    }
}

fn check_problems(toml: &str, environment: &[(&str, &str)], expect: &Expect) {
    expect.assert_eq(&fixture(toml, environment).problems());
}

#[test]
fn defaults_are_accepted() {
    let loaded = load(&Sources { file: None, candidates: Vec::new(), environment: Vec::new() });
    assert_eq!(loaded.problems, []);
    assert_eq!(loaded.checked().expect("good"), Config::default());
}

#[test]
fn the_template_is_accepted_and_every_value_in_it_is_the_default() {
    assert_eq!(fixture(&template(), &[]).problems(), "");
    let uncommented: String = template()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let loaded = load(&fixture(&uncommented, &[]).sources);
    assert_eq!(loaded.problems, []);
    assert!(loaded.origins.iter().all(|origin| *origin != Origin::Default), "every setting is in the template");
    let mut config = loaded.checked().expect("good");
    let defaults = Config::default();
    config.node.name.clone_from(&defaults.node.name);
    config.node.zone.clone_from(&defaults.node.zone);
    assert_eq!(config, defaults);
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let toml = "[node]\nname = \"file\"\n[raft]\nheartbeat_ms = 100\nsession_ttl_s = 20\n";
    let fixture = fixture(toml, &[("MAILLAGE__RAFT__HEARTBEAT_MS", "50"), ("OTHER", "x"), ("MAILLAGE_CONFIG", "y")]);
    let loaded = load(&fixture.sources);
    let origin = |name: &str| {
        let (_, _, origin) = loaded.values().find(|(setting, ..)| setting.name() == name).expect("a setting");
        origin.to_string().replace(&format!("{}/", fixture.directory.path().display()), "")
    };
    assert_eq!(origin("raft.heartbeat_ms"), "env MAILLAGE__RAFT__HEARTBEAT_MS");
    assert_eq!(origin("raft.session_ttl_s"), "maillage.toml:5");
    assert_eq!(origin("raft.keep_log"), "default");
    let config = loaded.clone().checked().expect("good");
    assert_eq!((config.raft.heartbeat_ms, config.raft.session_ttl_s, config.raft.keep_log), (50, 20, 5000));
    assert_eq!((config.node.name.as_str(), config.node.zone.as_str()), ("file", "file"), "the zone follows the name");
}

#[test]
fn a_variable_may_name_a_file_with_the_value() {
    let mut fixture = fixture("", &[]);
    let value = fixture.directory.path().join("name");
    fs::write(&value, "from-file\n").expect("write");
    fixture.sources.environment = vec![("MAILLAGE__NODE__NAME_FILE".into(), value.into())];
    assert_eq!(load(&fixture.sources).checked().expect("good").node.name, "from-file");

    fixture.sources.environment.push(("MAILLAGE__NODE__NAME".into(), "direct".into()));
    assert!(fixture.problems().contains("MAILLAGE__NODE__NAME sets the same value"), "{}", fixture.problems());

    fixture.sources.environment = vec![("MAILLAGE__NODE__NAME_FILE".into(), "/none/such".into())];
    assert!(fixture.problems().contains("cannot read the file"), "{}", fixture.problems());
}

#[test]
fn every_shape_of_value_comes_from_the_environment() {
    let environment = [
        ("MAILLAGE__DICOM__ANY_CALLER", "true"),
        ("MAILLAGE__DICOM__CALLERS", "[{ ae_title = \"CT1\", address = \"10.1.0.0/16\" }, { ae_title = \"MR 1\" }]"),
        ("MAILLAGE__HTTP__ALLOWED_HOSTS", "a.example, b.example"),
        ("MAILLAGE__LOG__FORMAT", "json"),
        ("MAILLAGE__MESH__ANNOUNCE", "[\"192.0.2.1:7400\", \"[2001:db8::1]:7400\"]"),
        ("MAILLAGE__NODE__WEIGHT", " 7 "),
        ("MAILLAGE__NODE__DATA_DIR", "/srv/a \"b\""),
    ];
    let config = load(&fixture("", &environment).sources).checked().expect("good");
    assert!(config.dicom.any_caller);
    let title = |text: &str| super::super::AeTitle::parse(text).expect("a title");
    assert_eq!(
        config.dicom.callers,
        [
            Caller { ae_title: title("CT1"), address: Some("10.1.0.0/16".parse().expect("a range")) },
            Caller { ae_title: title("MR 1"), address: None },
        ]
    );
    assert_eq!(config.http.allowed_hosts, ["a.example", "b.example"]);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.mesh.announce.len(), 2);
    assert_eq!(config.node.weight, 7);
    assert_eq!(config.node.data_dir, Path::new("/srv/a \"b\""));
}

#[test]
fn callers_may_be_written_as_tables() {
    let toml = "[[dicom.callers]]\nae_title = \"CT1\"\n[[dicom.callers]]\nae_title = \"MR1\"\naddress = \"::1\"\n";
    assert_eq!(load(&fixture(toml, &[]).sources).checked().expect("good").dicom.callers.len(), 2);
}

#[test]
fn a_single_listening_address_is_announced() {
    let announced = |listen: &str| {
        let toml = format!("[mesh]\nlisten = \"{listen}\"\n");
        load(&fixture(&toml, &[]).sources).checked().expect("good").mesh.announce
    };
    assert_eq!(announced("192.0.2.1:7400"), ["192.0.2.1:7400".parse().expect("an address")]);
    assert_eq!(announced("0.0.0.0:7400"), []);
    assert_eq!(announced("127.0.0.1:0"), []);
}

#[test]
fn unknown_keys_and_wrong_values_are_refused_with_their_lines() {
    let toml = "\
[node]
nmae = \"x\"
weight = 70000

[dicom]
ae_title = \"LONGER THAN SIXTEEN\"
callers = [
  { ae_title = \"CT1\", adress = \"10.0.0.1\" },
]

[htttp]
listen = \"127.0.0.1:1\"
[mesh]
listen = \"localhost:7400\"
";
    check_problems(
        toml,
        &[("MAILLAGE__NODE__NAEM", "x"), ("MAILLAGE__NODE__WEIGHT", "heavy")],
        &expect![[r#"
            maillage.toml:2: unknown key `nmae` in [node]; there are name, zone, data_dir, weight, role
            maillage.toml:3: node.weight: invalid value: integer `70000`, expected u16
            maillage.toml:6: dicom.ae_title: ae title is longer than 16 characters
            maillage.toml:8: dicom.callers: unknown field `adress`, expected `ae_title` or `address`
            maillage.toml:11: unknown section `htttp`; there are node, mesh, site, raft, http, dicom, ingest, storage, gateway, audit, log
            maillage.toml:14: mesh.listen: invalid socket address syntax
            env MAILLAGE__NODE__NAEM: unknown setting; `maillage config template` lists them
            env MAILLAGE__NODE__WEIGHT: node.weight: string values must be quoted, expected literal string
        "#]],
    );
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_its_line() {
    check_problems(
        "[node]\nname = \"a\nweight = 3\n",
        &[],
        &expect![[r#"
        maillage.toml:2: invalid basic string, expected `"`
    "#]],
    );
    check_problems(
        "[node]\nname = \"a\"\nname = \"b\"\n",
        &[],
        &expect![[r#"
        maillage.toml:3: duplicate key
    "#]],
    );
    check_problems(
        "node = 3\n",
        &[],
        &expect![[r#"
        maillage.toml:1: `node` is a section: write `[node]`
    "#]],
    );
}

#[test]
fn what_does_not_fit_together_is_refused_all_at_once() {
    let toml = "\
[node]
name = \"a b\"
weight = 0
[mesh]
listen = \"0.0.0.0:7480\"
announce = [\"0.0.0.0:7400\"]
[raft]
heartbeat_ms = 500
election_min_ms = 1000
election_max_ms = 1000
session_ttl_s = 1
[http]
listen = \"0.0.0.0:7480\"
allowed_hosts = [\"http://x\"]
[dicom]
listen = \"127.0.0.1:7480\"
max_associations = 0
[storage]
copies = 8
[log]
filter = \"info,=,\"
";
    check_problems(
        toml,
        &[("MAILLAGE__DICOM__QUIET_SECONDS", "0")],
        &expect![[r#"
        maillage.toml:2: node.name: may hold ASCII letters, digits, `-`, `_` and `.` only
        node.zone: may hold ASCII letters, digits, `-`, `_` and `.` only
        maillage.toml:3: node.weight: must be at least 1
        maillage.toml:6: mesh.announce: 0.0.0.0:7400 is not an address that another site can reach
        maillage.toml:9: raft.election_min_ms: must be at least 3 x raft.heartbeat_ms = 1500, is 1000
        maillage.toml:10: raft.election_max_ms: must be more than raft.election_min_ms = 1000, is 1000
        maillage.toml:11: raft.session_ttl_s: must be at least 2 x raft.election_max_ms = 2 s, is 1
        maillage.toml:13: http.listen: 0.0.0.0:7480 is not loopback, and the API has no users yet: whoever reaches it may claim exams and see images. Listen on 127.0.0.1, or set http.trusted_network = true if that is meant
        maillage.toml:14: http.allowed_hosts: "http://x" is not a host name (no scheme, no port)
        maillage.toml:17: dicom.max_associations: must be 1 to 4096, is 0
        env MAILLAGE__DICOM__QUIET_SECONDS: dicom.quiet_seconds: must be 1 to 600, is 0
        maillage.toml:19: storage.copies: must be 1 to 7, is 8
        maillage.toml:13: http.listen: 0.0.0.0:7480 collides with mesh.listen = 0.0.0.0:7480: ports must be distinct
        maillage.toml:16: dicom.listen: 127.0.0.1:7480 collides with mesh.listen = 0.0.0.0:7480: ports must be distinct
        maillage.toml:16: dicom.listen: 127.0.0.1:7480 collides with http.listen = 0.0.0.0:7480: ports must be distinct
        maillage.toml:21: log.filter: "info,=," is no log filter: invalid filter directive
    "#]],
    );
}

#[test]
fn ports_of_distinct_addresses_do_not_collide() {
    let toml = "[mesh]\nlisten = \"127.0.0.2:7480\"\n[dicom]\nlisten = \"127.0.0.3:7480\"\n";
    check_problems(toml, &[], &expect![[""]]);
}

#[test]
fn a_data_directory_too_deep_for_its_socket_is_refused() {
    let toml = format!("[node]\ndata_dir = \"/{}\"\n", "x".repeat(100));
    assert!(fixture(&toml, &[]).problems().contains("choose a shorter data directory"));
}

#[test]
fn a_named_file_must_exist_and_a_candidate_need_not() {
    let mut fixture = fixture("[node]\nname = \"candidate\"\n", &[]);
    let path = fixture.sources.file.replace("/none/such.toml".into()).expect("a file");
    assert!(fixture.problems().starts_with("cannot read the configuration /none/such.toml"));
    fixture.sources.file = None;
    fixture.sources.candidates = vec!["/none/such.toml".into(), path.clone()];
    let loaded = load(&fixture.sources);
    assert_eq!(loaded.file, Some(path));
    assert_eq!(loaded.checked().expect("good").node.name, "candidate");
}

#[test]
fn where_a_site_is_comes_from_the_file_and_from_the_environment() {
    let fixture = fixture("[site]\nterritory = \"ght-nord\"\n", &[("MAILLAGE__SITE__REGION", "hauts-de-france")]);
    let site = load(&fixture.sources).checked().expect("good").site;
    assert_eq!(
        (site.territory.as_str(), site.department.as_str(), site.region.as_str()),
        ("ght-nord", "", "hauts-de-france")
    );
    let long = "x".repeat(65);
    check_problems(
        &format!("[site]\nterritory = \" ght-nord\"\ndepartment = \"{long}\"\n"),
        &[],
        &expect![[r#"
        maillage.toml:2: site.territory: starts or ends with a space: another word than the hospitals' one
        maillage.toml:3: site.department: longer than 64 bytes
    "#]],
    );
}

#[test]
fn the_centres_of_a_gateway_are_names_of_sites_and_its_home_is_one_of_them() {
    let role = "[node]\nrole = \"gateway\"\n";
    let named = |toml: &str, environment: &[(&str, &str)]| {
        load(&fixture(&format!("{role}{toml}"), environment).sources).checked().expect("good").gateway.centres
    };
    assert_eq!(named("", &[]), Vec::<String>::new());
    assert_eq!(named("[gateway]\nhome = \"b\"\ncentres = [\"a\", \"b\"]\n", &[]), ["a", "b"]);
    assert_eq!(named("", &[("MAILLAGE__GATEWAY__CENTRES", "nantes, rennes")]), ["nantes", "rennes"]);
    check_problems(
        &format!("{role}[gateway]\nhome = \"lyon\"\ncentres = [\"nantes\", \"\", \" rennes\"]\n"),
        &[],
        &expect![[r#"
        maillage.toml:4: gateway.home: "lyon" is none of gateway.centres: no image is sent there
        maillage.toml:5: gateway.centres: "" is no site's name: it must have 1 to 63 bytes, has 0
        maillage.toml:5: gateway.centres: " rennes" is no site's name: it may hold ASCII letters, digits, `-`, `_` and `.` only
    "#]],
    );
}
