//! The worklist service, UPS-RS, as standard clients use it: the script `tests/interop/ups.py` speaks with
//! two sites by requests, pydicom and websockets.

use std::time::Duration;

use maillage_tests::Ran;
use tokio::process::Command;

use crate::interop::{python, script};
use crate::mesh;

/// For some 400 requests, most of them commands, on a busy machine.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(240);

#[tokio::test]
async fn a_standard_client_finds_the_worklist_service_as_the_standard_has_it() {
    let Some(python) = python("requests, pydicom, websockets").await else { return };
    let mesh = mesh(3).await;
    // Neither need be the leader.
    let [_, lyon, nantes] = &mesh.sites[..] else { panic!("three sites") };
    let urls = [lyon, nantes].map(|site| format!("http://{}", site.http().0));
    let mut command = Command::new(&python);
    command.arg(script("ups.py")).args(&urls);
    let ran = Ran::to_end_within(SCRIPT_DEADLINE, &mut command).await.ended(0);
    eprint!("{}", ran.stdout);
    assert_eq!(ran.stdout.lines().filter(|line| line.starts_with("ok ")).count(), 13, "every check was made");
}
