//! The command line.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::nemesis::{self, Kind};
use crate::site::SITES_MAX;

const USAGE: &str = "\
usage: chaos run [--seed N] [--minutes M | --hours H] [options]
       chaos sweep --seeds A..B [--minutes M] [options]
       chaos kills [--seed N] [--count N]      one node, killed that many times (500) while it takes images in
       chaos wan-check
       chaos faults
options: --sites N          sites at the start, 3 to 10 (5)
         --faults LIST      names from `chaos faults`, `all` or `none` (all)
         --keep DIR         keep history, logs and configurations there
         --disk DIR         data directories on that disk instead of in memory; no full disks then
         --disk-mib N       size of each site's disk in memory (512, and 24 more for each minute)
         --may-skip         succeed, saying so, where namespaces cannot be made";

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Run,
    WanCheck,
    Faults,
    /// So many kills of one node.
    Kills(u32),
}

/// The arguments.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    pub(crate) task: Task,
    pub(crate) seeds: RangeInclusive<u64>,
    /// How long faults go on.
    pub(crate) duration: Duration,
    pub(crate) sites: usize,
    pub(crate) faults: Vec<Kind>,
    pub(crate) keep: Option<PathBuf>,
    pub(crate) disk: Option<PathBuf>,
    pub(crate) disk_mib: Option<u64>,
    pub(crate) may_skip: bool,
}

impl Arguments {
    /// # Errors
    /// When they make no sense.
    pub(crate) fn parse(mut given: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let task = match given.next().as_deref() {
            Some("run" | "sweep") => Task::Run,
            Some("wan-check") => Task::WanCheck,
            Some("faults") => Task::Faults,
            Some("kills") => Task::Kills(500),
            _ => bail!("{USAGE}"),
        };
        let mut arguments = Self {
            task,
            seeds: 1..=1,
            duration: Duration::from_secs(180),
            sites: 5,
            faults: nemesis::chosen("all")?,
            keep: None,
            disk: None,
            disk_mib: None,
            may_skip: false,
        };
        while let Some(word) = given.next() {
            let mut value = || given.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--seed" => {
                    let seed = value()?.parse()?;
                    arguments.seeds = seed..=seed;
                }
                "--seeds" => {
                    let text = value()?;
                    let (first, last) = text.split_once("..").context("seeds are A..B, B included")?;
                    arguments.seeds = first.parse()?..=last.parse()?;
                }
                "--count" => match &mut arguments.task {
                    Task::Kills(count) => *count = value()?.parse()?,
                    _ => bail!("--count is of `chaos kills`"),
                },
                "--minutes" => arguments.duration = minutes(&value()?)?,
                "--hours" => arguments.duration = minutes(&value()?)? * 60,
                "--sites" => arguments.sites = value()?.parse()?,
                "--faults" => arguments.faults = nemesis::chosen(&value()?)?,
                "--keep" => arguments.keep = Some(value()?.into()),
                "--disk" => arguments.disk = Some(value()?.into()),
                "--disk-mib" => arguments.disk_mib = Some(value()?.parse()?),
                "--may-skip" => arguments.may_skip = true,
                _ => bail!("{word} is not known\n{USAGE}"),
            }
        }
        ensure!((3..=SITES_MAX - 2).contains(&arguments.sites), "3 to {} sites", SITES_MAX - 2);
        Ok(arguments)
    }
}

fn minutes(text: &str) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(text.parse::<f64>()? * 60.0).context("how long?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let parse = |line: &str| Arguments::parse(line.split(' ').map(str::to_owned));
        let sweep = parse("sweep --seeds 3..7 --minutes 0.5 --faults kill,loss").expect("good");
        assert_eq!((sweep.seeds, sweep.duration), (3..=7, Duration::from_secs(30)));
        assert_eq!(sweep.faults.len(), 2);
        assert_eq!(parse("run --hours 2").expect("good").duration, Duration::from_secs(7200));
        assert_eq!(parse("kills --count 7").expect("good").task, Task::Kills(7));
        for bad in ["run --count 7", "", "walk", "run --seed", "run --sites 2", "run --faults typo", "run --minutes -1"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
