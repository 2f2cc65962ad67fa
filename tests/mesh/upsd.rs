//! The Unified Procedure Step service by DIMSE, as standard applications use it: the script
//! `tests/interop/upsd.py` speaks with two sites by pynetdicom, and is told of events by them.

use std::time::Duration;

use maillage_tests::{Mesh, Ran, Settings, port};
use tokio::process::Command;

use crate::binary;
use crate::interop::{python, script};

/// For some 150 operations, an outage of a subscriber and a killed site, on a busy machine.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(240);
/// The subscriber's title, as the script has it.
const SUBSCRIBER: &str = "WATCHER";

async fn ran(part: &str, mesh: &Mesh, listen: std::net::SocketAddr) -> Option<Command> {
    let python = python("pynetdicom, pydicom, requests").await?;
    let mut command = Command::new(&python);
    command.arg(script("upsd.py")).arg(part).arg(listen.port().to_string());
    for site in &mesh.sites[1..] {
        command.arg(site.dicom().to_string()).arg(format!("http://{}", site.http().0));
    }
    Some(command)
}

#[tokio::test]
async fn a_standard_application_has_its_steps_by_dimse_and_is_told_of_them() {
    if python("pynetdicom, pydicom, requests").await.is_none() {
        return;
    }
    let listen = port::free();
    let peers = vec![(SUBSCRIBER.to_owned(), listen)];
    let settings = Settings { peers, session_ttl_s: 6, ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 3, |_| settings.clone()).await;
    let Some(mut command) = ran("service", &mesh, listen).await else { return };
    let ran_to = Ran::to_end_within(SCRIPT_DEADLINE, &mut command).await.ended(0);
    eprint!("{}", ran_to.stdout);
    assert_eq!(ran_to.stdout.lines().filter(|line| line.starts_with("ok ")).count(), 9, "every check was made");

    // The site through which it subscribed is gone: whoever leads then tells it.
    mesh.sites[1].kill();
    let Some(mut command) = ran("after", &mesh, listen).await else { return };
    let ran_to = Ran::to_end_within(SCRIPT_DEADLINE, &mut command).await.ended(0);
    eprint!("{}", ran_to.stdout);
    assert!(ran_to.stdout.contains("ok told by another site"), "{}", ran_to.stdout);
}
