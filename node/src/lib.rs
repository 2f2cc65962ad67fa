//! One node of the mesh, and the command line that speaks to it.
//!
//! The binary calls [`main`]; the simulator takes [`site`], the whole node without its process.

use std::io;
use std::time::Duration;

use clap::Parser as _;

mod arriving;
mod audit;
mod checked;
mod claimed;
mod cli;
mod client;
mod commitment;
mod config;
mod copies;
mod data_dir;
mod demo;
mod dimse;
mod duties;
mod exit;
mod founding;
mod gateway;
mod gather;
mod http;
mod images;
mod ingest;
mod joining;
mod links;
mod logging;
mod metrics;
mod node;
mod outbox;
mod output;
mod pack_day;
mod prefetch;
mod presence;
mod purge;
mod repair;
mod roster;
mod scp;
mod scrub;
mod senders;
mod serve;
pub mod site;
mod situation;
mod study_keys;
mod token;
mod ups;
mod verify;

/// What still runs when the command is done (a file being read, a lock being waited for) is given
/// so long: a process that was told to stop must not hang.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Runs the command line of this process.
pub fn main() -> std::process::ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // With nowhere to print to, the exit code still tells.
            let _ = error.print();
            return if error.use_stderr() { exit::ExitCode::Usage } else { exit::ExitCode::Ok }.into();
        }
    };
    let code = match run(cli) {
        Ok(code) => code,
        Err(error) => exit::report(&error, &mut io::stderr().lock()),
    };
    code.into()
}

fn run(cli: cli::Cli) -> anyhow::Result<exit::ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(cli::run(cli));
    runtime.shutdown_timeout(LEAVE_WITHIN);
    result
}
