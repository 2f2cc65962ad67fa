//! Other people's software against ours: dcmtk, pynetdicom, dicomweb-client.
//!
//! A tool that is not there is a test that says so and passes, or, with `MAILLAGE_REQUIRE_INTEROP=1`
//! as in continuous integration, a test that fails.

#![expect(clippy::disallowed_methods, reason = "tests write and read the files that other programs send")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use maillage_tests::study::{CALLED, file, retrieve};
use maillage_tests::{Http, Ran, Slices, multipart, until};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::mesh;

/// For a script that sends some two hundred files, one association each.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(180);
/// Fewer files than this means that the packages are not what they are meant to be.
const FILES_MIN: usize = 190;
/// Transfer syntaxes among them, at least: all but JPEG-LS near-lossless, whose files have no study.
const SYNTAXES_MIN: usize = 11;

/// Files that are broken on purpose: cut short, and one that says explicit value representations in its
/// meta information and has none in its data set.
const BROKEN: [&str; 4] =
    ["MR_truncated.dcm", "SC_rgb_jpeg.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm", "rtplan_truncated.dcm"];

/// Whether to go on: `found`, or nobody insists.
fn present(tool: &str, found: bool) -> bool {
    let required = std::env::var("MAILLAGE_REQUIRE_INTEROP").is_ok_and(|value| value == "1");
    assert!(found || !required, "{tool} is missing, and MAILLAGE_REQUIRE_INTEROP=1");
    if !found {
        eprintln!("skipped: {tool} is missing");
    }
    found
}

fn dcmtk(tool: &str) -> Option<PathBuf> {
    let path = Path::new("/usr/bin").join(tool);
    present(&path.display().to_string(), path.exists()).then_some(path)
}

/// A Python that has these modules.
pub(crate) async fn python(modules: &str) -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("MAILLAGE_PYTHON").unwrap_or_else(|| "python3".into()));
    let mut command = Command::new(&python);
    command.args(["-c", &format!("import {modules}")]);
    let found = command.output().await.is_ok_and(|output| output.status.success());
    present(&format!("{} with {modules}", python.display()), found).then_some(python)
}

pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interop").join(name)
}

#[tokio::test]
async fn echoscu_is_answered() {
    let Some(echoscu) = dcmtk("echoscu") else { return };
    let mesh = mesh(1).await;
    let (host, port) = (mesh.sites[0].dicom().ip().to_string(), mesh.sites[0].dicom().port().to_string());
    Ran::to_end(Command::new(&echoscu).args(["-aec", CALLED, &host, &port])).await.ended(0);
    let refused = Ran::to_end(Command::new(&echoscu).args(["-aec", "ARCHIVE", &host, &port])).await;
    assert_ne!(refused.code, 0, "a wrong called AE title is refused");
}

#[tokio::test]
async fn storescu_sends_files_and_folders_by_default_settings() {
    let Some(storescu) = dcmtk("storescu") else { return };
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let (host, port) = (site.dicom().ip().to_string(), site.dicom().port().to_string());
    let (first, second) = (Slices::new("A1", "P1", 12), Slices::new("A2", "P2", 8));
    let folder = mesh.root().join("disc");
    for (n, (uid, dataset)) in first.instances.iter().chain(&second.instances).enumerate() {
        let place = folder.join(format!("series{}", n % 3));
        fs::create_dir_all(&place).expect("make a folder");
        fs::write(place.join(format!("{n}.dcm")), file(uid, dataset)).expect("write");
    }
    let single = folder.join("series0/0.dcm");
    Ran::to_end(Command::new(&storescu).args(["-aec", CALLED, &host, &port]).arg(single)).await.ended(0);
    let whole = ["-aec", CALLED, "+sd", "+r", &host, &port];
    Ran::to_end(Command::new(&storescu).args(whole).arg(&folder)).await.ended(0);
    // Explicit little endian is among storescu's default proposals: nothing needs to be converted.
    first.is_whole_at(site.http()).await;
    second.is_whole_at(site.http()).await;
}

/// What `send.py` printed in a round, a file a line.
async fn send_round(python: &Path, to: SocketAddr, out: &Path, round: usize) -> Vec<Value> {
    let mut command = Command::new(python);
    command.arg(script("send.py")).args([to.ip().to_string(), to.port().to_string(), CALLED.to_owned()]).arg(out);
    let ran = Ran::to_end_within(SCRIPT_DEADLINE, command.arg(round.to_string())).await.ended(0);
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

fn text<'a>(line: &'a Value, name: &str) -> &'a str {
    line[name].as_str().unwrap_or_else(|| panic!("{name} in {line}"))
}

fn with_fate<'a>(lines: &'a [Value], fate: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["fate"] == json!(fate)).collect()
}

#[tokio::test]
async fn all_of_pydicoms_files_come_back_byte_for_byte_in_their_own_transfer_syntax() {
    let Some(python) = python("pydicom, pynetdicom, numpy").await else { return };
    let (mut lines, mut round) = (Vec::new(), 0);
    loop {
        // The first round also shows that a site which did not receive them gives the same bytes.
        let mesh = mesh(if round == 0 { 2 } else { 1 }).await;
        let out = mesh.root().join("sent");
        let came = send_round(&python, mesh.sites[0].dicom(), &out, round).await;
        if came.is_empty() {
            break;
        }
        for site in &mesh.sites {
            compare(site.http(), &with_fate(&came, "sent"), &out).await;
        }
        lines.extend(came);
        round += 1;
    }
    let (sent, refused, skipped) =
        (with_fate(&lines, "sent"), with_fate(&lines, "refused"), with_fate(&lines, "skipped"));
    eprintln!("{} sent in {round} rounds, {} refused, {} skipped", sent.len(), refused.len(), skipped.len());
    for line in skipped.iter().chain(&refused) {
        let why = if line["fate"] == json!("skipped") { text(line, "why") } else { text(line, "comment") };
        eprintln!("{}: {}: {why}", text(line, "fate"), text(line, "file"));
    }
    let syntaxes: BTreeSet<&str> = sent.iter().map(|line| text(line, "syntax")).collect();
    assert!(sent.len() >= FILES_MIN, "only {} files were taken", sent.len());
    assert!(syntaxes.len() >= SYNTAXES_MIN, "{syntaxes:?}");
    let refused: BTreeSet<&str> = refused.iter().map(|line| text(line, "file")).collect();
    assert_eq!(refused, BTreeSet::from(BROKEN), "what is broken is refused, and nothing else");
}

/// Every instance's bytes.
async fn compare(http: Http, sent: &[&Value], out: &Path) {
    for line in sent {
        let instance = text(line, "SOPInstanceUID");
        let (study, series) = (text(line, "StudyInstanceUID"), text(line, "SeriesInstanceUID"));
        let path = format!("/dicom-web/studies/{study}/series/{series}/instances/{instance}");
        let answer = until(&format!("{} is known", text(line, "file")), async || {
            let answer = retrieve(http, &path).await;
            (answer.status != 404).then_some(answer)
        })
        .await;
        let parts = answer.expect(200).parts();
        assert_eq!(parts.len(), 1, "{line}");
        let syntax = format!("transfer-syntax={}", text(line, "syntax"));
        assert!(parts[0].head.lines().any(|head| head.ends_with(&syntax)), "{} for {line}", parts[0].head);
        let original = fs::read(out.join(line["number"].to_string())).expect("what was sent");
        let came = multipart::dataset(&parts[0].body);
        assert!(came[..] == original[..], "{}: {} bytes came of {}", text(line, "file"), came.len(), original.len());
    }
}

#[tokio::test]
async fn dicomweb_client_retrieves_a_study() {
    let Some(python) = python("dicomweb_client, pydicom").await else { return };
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let study = Slices::new("A1", "P1", 7);
    study.send(site.dicom()).await;
    let (one, _) = study.first();
    let url = format!("http://{}/dicom-web", site.http().0);
    let mut command = Command::new(&python);
    command.arg(script("retrieve.py")).args([&url, &study.study, &study.series, one]);
    let ran = Ran::to_end(&mut command).await.ended(0);
    let came: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let uids: BTreeSet<&str> = came.iter().map(|instance| text(instance, "instance")).collect();
    assert_eq!(uids, study.instances.keys().map(String::as_str).collect());
    for instance in &came {
        assert_eq!((text(instance, "study"), text(instance, "series")), (&*study.study, &*study.series));
        assert_eq!(text(instance, "syntax"), "1.2.840.10008.1.2.1");
    }
    let pixels: BTreeSet<&str> = came.iter().map(|instance| text(instance, "pixels")).collect();
    assert_eq!(pixels.len(), came.len(), "each slice's own pixels");
}
