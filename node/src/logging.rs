//! Logs: to standard error, as text for people or as JSON for machines.
//!
//! Standard output belongs to results. No patient data goes into a log: whoever writes a line sees to
//! that; here is only how lines look.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::exit::{ExitCode, Failure};

/// Starts logging for a node. `verbosity` above 0 overrides the configured filter.
///
/// # Errors
/// A filter that cannot be parsed (which `config check` finds), or logging that is on already.
pub(crate) fn start_for_node(log: &Log, verbosity: u8) -> Result<(), Failure> {
    let filter = match verbosity {
        0 => &log.filter,
        1 => "info,maillage=debug",
        _ => "debug,maillage=trace",
    };
    start(log.format, filter)
}

/// Starts logging for a command that ends by itself: only warnings, unless asked.
///
/// # Errors
/// As [`start_for_node`].
pub(crate) fn start_for_command(verbosity: u8) -> Result<(), Failure> {
    let filter = match verbosity {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    start(LogFormat::Text, filter)
}

fn start(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter);
    let filter = filter.map_err(|error| Failure::new(ExitCode::Usage, format!("log filter: {error}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(true).try_init(),
    };
    started.map_err(|error| Failure::new(ExitCode::Error, format!("cannot start logging: {error}")))
}
