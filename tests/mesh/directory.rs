//! The data directory: one process, one mesh, one version.

#![expect(clippy::disallowed_methods, reason = "tests spoil data directories from outside")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use maillage_tests::{Mesh, Settings};

use crate::{binary, mesh};

#[tokio::test]
async fn a_second_process_on_a_data_directory_is_refused_and_the_first_goes_on() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    site.run(&["serve"]).await.ended(5).complains_of(&["in use by another process", &site.pid().to_string(), "hint:"]);
    site.run(&["init"]).await.ended(5);
    site.http().get("/readyz").await.expect(200);
    site.run(&["status"]).await.ended(0);
}

#[tokio::test]
async fn a_member_does_not_join_or_found_another_mesh() {
    let one = mesh(1).await;
    let mut two = mesh(1).await;
    let token = one.token("10m").await;
    let site = &mut two.sites[0];
    site.terminate().await;
    let before = fs::read(site.data_dir().join("mesh.json")).expect("read");
    site.run(&["join", &token]).await.ended(5).complains_of(&["already a node"]);
    site.run(&["init", "--mesh", "other"]).await.ended(5).complains_of(&["already a node"]);
    assert_eq!(fs::read(site.data_dir().join("mesh.json")).expect("read"), before);
    site.start();
    site.ready().await;
}

#[tokio::test]
async fn a_newer_version_is_refused_and_its_files_are_left_alone() {
    let mut mesh = mesh(1).await;
    let site = &mut mesh.sites[0];
    site.terminate().await;
    let version = site.data_dir().join("VERSION");
    let known = fs::read(&version).expect("read");
    fs::write(&version, "maillage data format 99\n").expect("write");
    site.run(&["serve"]).await.ended(5).complains_of(&["newer", "99"]);
    assert_eq!(fs::read(&version).expect("read"), b"maillage data format 99\n");
    fs::write(&version, "something else\n").expect("write");
    let code = site.run(&["serve"]).await.code;
    assert!([1, 5, 7].contains(&code), "an unreadable version is no version: {code}");
    fs::write(&version, known).expect("write");
    site.start();
    site.ready().await;
}

#[tokio::test]
async fn a_key_that_others_can_read_is_refused() {
    let mut mesh = mesh(1).await;
    let site = &mut mesh.sites[0];
    site.terminate().await;
    let identity = site.data_dir().join("identity");
    let mode = |bits| fs::set_permissions(&identity, Permissions::from_mode(bits)).expect("set the mode");
    assert_eq!(fs::metadata(&identity).expect("look").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(site.data_dir()).expect("look").permissions().mode() & 0o777, 0o700);
    mode(0o644);
    site.run(&["serve"]).await.ended(5).complains_of(&["can be read by others", "chmod 600"]);
    mode(0o600);
    site.start();
    site.ready().await;
}

#[tokio::test]
async fn a_directory_that_is_no_node_is_not_touched() {
    let mesh = Mesh::empty(binary()).await;
    let site = mesh.prepare("paris", &Settings::default());
    site.run(&["serve"]).await.ended(1).complains_of(&["there is no node", "maillage init"]);
    fs::create_dir(site.data_dir()).expect("make a directory");
    fs::write(site.data_dir().join("thesis.txt"), "years of work").expect("write");
    site.run(&["init"]).await.ended(5).complains_of(&["not empty"]);
    assert_eq!(site.run(&["serve"]).await.code, 1);
    let left: Vec<_> = fs::read_dir(site.data_dir()).expect("look").collect();
    assert_eq!(left.len(), 1);
}
