//! The same seed twice must give the same events, byte for byte, in different processes.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "traces of finished runs, outside every simulated disk"
)]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::Shape;
use crate::batch::{run_as, this_program, wait_for};

/// Runs `seed` twice, the second time as program `with` if there is one; prints the first event that differs.
pub(crate) fn check(seed: u64, with: Option<PathBuf>, shape: &Shape) -> anyhow::Result<bool> {
    let directory = std::env::temp_dir();
    let paths = [1, 2].map(|run| directory.join(format!("simulate-{}-{seed}-{run}.trace", std::process::id())));
    let settings = paths.each_ref().map(|path| shape.settings(seed, Some(path.clone())));
    let this = this_program()?;
    let other = with.unwrap_or_else(|| this.clone());
    let both = wait_for(async { futures::try_join!(run_as(&this, &settings[0]), run_as(&other, &settings[1])) })??;
    let mut digests = Vec::new();
    for outcome in [both.0, both.1] {
        anyhow::ensure!(!outcome.digest.is_empty(), "the run did not end: {}", outcome.output);
        digests.push(outcome.digest);
    }
    let difference = first_difference(&paths[0], &paths[1])?;
    for path in &paths {
        std::fs::remove_file(path).context("remove a trace")?;
    }
    match difference {
        None if digests[0] == digests[1] => {
            println!("seed {seed}: two runs, the same events, digest {}", digests[0]);
            Ok(true)
        }
        None => {
            println!("seed {seed}: the digests differ, {} and {}, the lines do not", digests[0], digests[1]);
            Ok(false)
        }
        Some((number, first, second)) => {
            println!("seed {seed}: line {number} differs\n  first:  {first}\n  second: {second}");
            Ok(false)
        }
    }
}

fn first_difference(first: &Path, second: &Path) -> anyhow::Result<Option<(usize, String, String)>> {
    let lines = |path: &Path| anyhow::Ok(BufReader::new(File::open(path).context("open a trace")?).lines());
    let (mut first, mut second) = (lines(first)?, lines(second)?);
    for number in 1.. {
        match (first.next().transpose()?, second.next().transpose()?) {
            (None, None) => return Ok(None),
            (a, b) if a == b => {}
            (a, b) => {
                let shown = |line: Option<String>| line.unwrap_or_else(|| "(the end)".to_owned());
                return Ok(Some((number, shown(a), shown(b))));
            }
        }
    }
    Ok(None)
}
