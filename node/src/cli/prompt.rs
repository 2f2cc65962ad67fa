//! What commands take from the person or the machine they run for: answers, standard input, files.

#![expect(
    clippy::disallowed_types,
    reason = "files that a person names on the command line are not the node's, and no simulation runs this"
)]

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::Context as _;

use super::{Context, declined};
use crate::exit::{ExitCode, Failure};
use crate::output::clean;

/// Asks before something that cannot be undone. Without a terminal there is nobody to ask, and a
/// script means what it says.
///
/// # Errors
/// A failure with [`ExitCode::Refused`] when the answer is not yes.
pub(super) async fn confirm(context: &Context, question: &str) -> anyhow::Result<()> {
    if context.global.yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    let question = format!("{} [y/N] ", clean(question));
    let answer = maillage_host::offload(move || {
        let mut stderr = io::stderr().lock();
        stderr.write_all(question.as_bytes())?;
        stderr.flush()?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        Ok(line)
    });
    match answer.await?.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(declined().into()),
    }
}

/// All of standard input as text, at most `len_max` bytes.
///
/// # Errors
/// Not UTF-8, too long, or unreadable.
pub(super) async fn read_stdin(what: &'static str, len_max: u64) -> anyhow::Result<String> {
    let bytes = maillage_host::offload(move || bounded(io::stdin().lock(), len_max)).await;
    text(bytes.with_context(|| format!("read {what} from standard input"))?, what, len_max)
}

/// All of a file as text, at most `len_max` bytes.
///
/// # Errors
/// As [`read_stdin`].
pub(super) async fn read_file(path: PathBuf, what: &'static str, len_max: u64) -> anyhow::Result<String> {
    let name = path.display().to_string();
    let bytes = maillage_host::offload(move || bounded(File::open(path)?, len_max)).await;
    text(bytes.with_context(|| format!("read {what} from {name}"))?, what, len_max)
}

fn bounded(reader: impl Read, len_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One more byte tells a text that is too long from one that just fits.
    reader.take(len_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: Vec<u8>, what: &str, len_max: u64) -> anyhow::Result<String> {
    if bytes.len() as u64 > len_max {
        return Err(Failure::new(ExitCode::Usage, format!("{what} is longer than {len_max} bytes")).into());
    }
    String::from_utf8(bytes).map_err(|_| Failure::new(ExitCode::Usage, format!("{what} is not UTF-8 text")).into())
}
