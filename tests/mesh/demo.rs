//! The demonstration is itself a test, and must end as one.

use std::time::Duration;

use maillage_tests::{Ran, turn};
use tokio::process::Command;

use crate::binary;

#[tokio::test]
async fn the_demonstration_ends_with_success() {
    let _turn = turn().await;
    let mut command = Command::new(binary());
    command.args(["demo", "--exit", "--nodes", "5", "--slices", "20"]);
    let ran = Ran::to_end_within(Duration::from_secs(180), &mut command).await.ended(0);
    for step in
        ["sites are one mesh", "killed (kill -9)", "dr-petit at", "equal byte for byte", "every step was checked"]
    {
        assert!(ran.stdout.contains(step), "{step:?} should be in {}", ran.stdout);
    }
    let data = ran.stdout.split("data in ").nth(1).and_then(|rest| rest.lines().next()).expect("where its data is");
    assert!(!std::path::Path::new(data).exists(), "it leaves nothing behind in {data}");
}

#[tokio::test]
async fn a_demonstration_of_too_few_sites_is_refused() {
    let mut command = Command::new(binary());
    command.args(["demo", "--exit", "--nodes", "2"]);
    let ran = Ran::to_end(&mut command).await;
    assert_ne!(ran.code, 0);
    ran.complains_of(&["--nodes"]);
}
