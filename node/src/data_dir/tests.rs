//! What is refused, over real directories.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::exit::ExitCode;

const SECRET: IdentitySecret = IdentitySecret([7; 32]);

fn mesh_file() -> MeshFile {
    MeshFile {
        format: MESH_FILE_FORMAT,
        mesh_id: "ab".repeat(32),
        mesh_name: "ouest".to_owned(),
        site_id: 3,
        site_name: "rennes".to_owned(),
        epoch: 1,
        has_log: false,
        role: crate::config::Role::Centre,
        members: Vec::new(),
    }
}

/// A finished data directory, unlocked.
fn finished() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().join("node");
    let locked = DataDir::create(&root).expect("create");
    locked.store_identity(&SECRET).expect("store the key");
    locked.store_mesh(&mesh_file()).expect("store the mesh");
    (directory, root)
}

fn refusal(result: Result<Locked, DataDirError>) -> (ExitCode, String, String) {
    let error = result.expect_err("a refusal");
    (error.code(), error.to_string(), error.hint().unwrap_or_default())
}

#[test]
fn what_was_stored_is_read_back_by_the_next_process() {
    let (_directory, root) = finished();
    let locked = DataDir::open(&root).expect("open");
    assert_eq!(locked.identity().expect("the key"), SECRET);
    assert_eq!(locked.mesh().expect("the mesh"), mesh_file());
    let mut mesh = mesh_file();
    mesh.epoch = 2;
    locked.store_mesh(&mesh).expect("replace");
    assert_eq!(locked.mesh().expect("the mesh").epoch, 2);
    assert!(!root.join(MESH_NEW).exists());
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&root), mode(&root.join(IDENTITY)), mode(&root.join(MESH))), (0o700, 0o600, 0o600));
}

#[test]
fn a_missing_or_empty_directory_names_init_and_join() {
    let directory = tempfile::tempdir().expect("temporary directory");
    for root in [directory.path().join("none"), directory.path().to_owned()] {
        let (code, message, hint) = refusal(DataDir::open(&root));
        assert_eq!(code, ExitCode::Error);
        assert!(message.starts_with("there is no node in"), "{message}");
        assert!(hint.contains("maillage init") && hint.contains("maillage join"), "{hint}");
    }
}

#[test]
fn somebody_elses_directory_is_left_alone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("thesis.odt"), "years of work").expect("write");
    assert!(matches!(DataDir::open(directory.path()), Err(DataDirError::NotOurs(_))));
    assert!(matches!(DataDir::create(directory.path()), Err(DataDirError::NotEmpty(_))));
    assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
}

#[test]
fn a_fresh_file_system_counts_as_empty() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(directory.path().join("lost+found")).expect("create");
    DataDir::create(directory.path()).expect("create");
}

#[test]
fn a_second_process_is_refused_and_told_which_is_the_first() {
    let (_directory, root) = finished();
    let held = DataDir::open(&root).expect("open");
    let (code, message, _) = refusal(DataDir::open(&root));
    assert_eq!(code, ExitCode::Refused);
    assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    drop(held);
    DataDir::open(&root).expect("open once it is free");
}

#[test]
fn a_node_is_never_made_over_another() {
    let (_directory, root) = finished();
    let before = fs::read(root.join(IDENTITY)).expect("read");
    assert!(matches!(DataDir::create(&root), Err(DataDirError::Exists(_))));
    assert_eq!(fs::read(root.join(IDENTITY)).expect("read"), before);
}

#[test]
fn an_identity_that_others_can_read_is_refused() {
    let (_directory, root) = finished();
    for mode in [0o640, 0o604, 0o644] {
        fs::set_permissions(root.join(IDENTITY), Permissions::from_mode(mode)).expect("chmod");
        let (code, message, hint) = refusal(DataDir::open(&root));
        assert_eq!(code, ExitCode::Refused);
        assert!(message.contains(&format!("mode {mode:o}")), "{message}");
        assert!(hint.contains("chmod 600"), "{hint}");
    }
}

#[test]
fn another_version_is_refused() {
    let (_directory, root) = finished();
    fs::write(root.join(VERSION), "maillage data format 2\n").expect("write");
    let (code, message, _) = refusal(DataDir::open(&root));
    assert_eq!(code, ExitCode::Refused);
    assert!(message.contains("written by a newer maillage (format 2; this one knows 1)"), "{message}");
    for text in ["", "maillage data format x", "something else"] {
        fs::write(root.join(VERSION), text).expect("write");
        assert_eq!(refusal(DataDir::open(&root)).0, ExitCode::Corrupt, "{text:?}");
    }
}

#[test]
fn an_unfinished_join_is_not_served_and_says_how_to_start_over() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().join("node");
    let locked = DataDir::create(&root).expect("create");
    locked.store_identity(&SECRET).expect("store the key");
    drop(locked);
    for result in [DataDir::open(&root), DataDir::create(&root)] {
        let (code, message, hint) = refusal(result);
        assert_eq!(code, ExitCode::Refused);
        assert!(message.contains("did not finish"), "{message}");
        assert!(hint.contains(&format!("rm -r {}", root.display())), "{hint}");
    }
}

#[test]
fn an_unfinished_join_is_taken_up_with_the_same_key_and_a_finished_one_is_not() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().join("node");
    let locked = DataDir::create_or_resume(&root).expect("create");
    assert!(matches!(locked.identity(), Err(DataDirError::Unfinished(_))));
    locked.store_identity(&SECRET).expect("store the key");
    assert!(matches!(DataDir::create_or_resume(&root), Err(DataDirError::InUse { .. })));
    drop(locked);
    let locked = DataDir::create_or_resume(&root).expect("take it up again");
    assert_eq!(locked.identity().expect("the key"), SECRET);
    assert!(matches!(locked.store_identity(&IdentitySecret([9; 32])), Err(DataDirError::Exists(_))));
    locked.store_mesh(&mesh_file()).expect("finish");
    drop(locked);
    assert!(matches!(DataDir::create_or_resume(&root), Err(DataDirError::Exists(_))));
    assert_eq!(DataDir::open(&root).expect("open").identity().expect("the key"), SECRET);
}

#[test]
fn a_discarded_directory_can_be_used_again_and_a_finished_one_is_not_discarded() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let root = directory.path().join("node");
    let locked = DataDir::create(&root).expect("create");
    locked.store_identity(&SECRET).expect("store the key");
    locked.discard().expect("discard");
    let locked = DataDir::create(&root).expect("create again");
    locked.store_identity(&SECRET).expect("store the key");
    locked.store_mesh(&mesh_file()).expect("store the mesh");
    locked.discard().expect("does nothing");
    assert_eq!(DataDir::open(&root).expect("open").identity().expect("kept"), SECRET);
}

#[test]
fn damaged_files_are_corruption_and_newer_ones_are_not() {
    let (_directory, root) = finished();
    let locked = DataDir::open(&root).expect("open");
    for (text, code) in [
        ("", ExitCode::Corrupt),
        ("{\"format\":1}", ExitCode::Corrupt),
        ("{\"format\":2,\"new\":true}", ExitCode::Refused),
    ] {
        fs::write(root.join(MESH), text).expect("write");
        assert_eq!(locked.mesh().expect_err("a refusal").code(), code, "{text:?}");
    }
    fs::write(root.join(IDENTITY), "zz").expect("write");
    assert_eq!(locked.identity().expect_err("a refusal").code(), ExitCode::Corrupt);
}

#[test]
fn a_leftover_of_a_crash_does_not_stop_the_next_store() {
    let (directory, root) = finished();
    let precious = directory.path().join("precious");
    fs::write(&precious, "kept").expect("write");
    symlink(&precious, root.join(MESH_NEW)).expect("link");
    let locked = DataDir::open(&root).expect("open");
    locked.store_mesh(&mesh_file()).expect("store");
    assert_eq!(fs::read_to_string(&precious).expect("read"), "kept", "a link is replaced, not followed");
    assert_eq!(locked.mesh().expect("the mesh"), mesh_file());
}

#[test]
fn a_secret_is_not_printed() {
    assert_eq!(format!("{SECRET:?}"), "IdentitySecret(…)");
}

#[test]
fn a_socket_path_beyond_the_systems_limit_is_refused() {
    let root = PathBuf::from(format!("/{}", "x".repeat(SOCKET_PATH_LEN_MAX - "/control.sock".len() - 1)));
    DataDir::at(&root).control_socket().expect("just short enough");
    let error = DataDir::at(&root.join("y")).control_socket().expect_err("too long");
    assert_eq!(error.code(), ExitCode::Usage);
}
