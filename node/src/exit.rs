//! How the process ends: the exit codes, and what is said on stderr.
//!
//! The codes are an interface: scripts and unit files branch on them, so a code once given keeps its
//! meaning. [`Failure`] is how any part of the node says which one applies; it may be the error
//! itself, or context around another. Everything printed passes through [`crate::output::clean`],
//! because an error may quote what a peer or a file said.

use std::fmt;
use std::io::{self, Write};

use crate::client::ClientError;
use crate::config::ConfigError;
use crate::data_dir::DataDirError;
use crate::output::clean;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Done.
    Ok = 0,
    /// Anything without a code of its own.
    Error = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// It works, but less safely than it should.
    Degraded = 3,
    /// No quorum answered, or whether it did is unknown.
    NoQuorum = 4,
    /// Refused because going on might lose or expose something.
    Refused = 5,
    /// Somebody else was first: already claimed, stale token.
    Conflict = 6,
    /// Bytes are not what was written.
    Corrupt = 7,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// An error that knows its exit code and, where there is one, the command that helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the process ends with.
    pub(crate) code: ExitCode,
    /// A lowercase sentence without a full stop.
    pub(crate) message: String,
    /// What to do about it, best as a command.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what helps.
    #[must_use]
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The code and the hint for an error: the outermost part that knows decides.
pub(crate) fn classify(error: &anyhow::Error) -> (ExitCode, Option<String>) {
    // Context added by `anyhow` is only reachable from the error itself, sources only by the chain.
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return (failure.code, failure.hint.clone());
    }
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return (failure.code, failure.hint.clone());
        }
        if let Some(refusal) = cause.downcast_ref::<DataDirError>() {
            return (refusal.code(), refusal.hint());
        }
        if let Some(refusal) = cause.downcast_ref::<ClientError>() {
            return (refusal.code(), refusal.hint());
        }
        if cause.is::<ConfigError>() {
            let hint = "`maillage config template` prints every setting with its default";
            return (ExitCode::Usage, Some(hint.to_owned()));
        }
    }
    (ExitCode::Error, None)
}

/// Writes the error, its causes and its hint, and returns the exit code.
///
/// A reader that closed our standard output early (`maillage exams list | head`) is no error.
pub(crate) fn report(error: &anyhow::Error, stderr: &mut dyn Write) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::Ok;
    }
    let (code, hint) = classify(error);
    let mut text = format!("error: {}\n", clean_lines(&error.to_string()));
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Errors that show their source as part of themselves would say it twice.
        if !said.contains(&cause) {
            text.push_str(&format!("  caused by: {}\n", clean_lines(&cause)));
        }
        said = cause;
    }
    if let Some(hint) = hint {
        text.push_str(&format!("hint: {}\n", clean_lines(&hint)));
    }
    // With stderr gone there is nobody left to tell.
    let _ = stderr.write_all(text.as_bytes());
    code
}

/// The output module is the only one that writes to a pipe which a reader may close; connections
/// that break have their own errors, which never carry a bare broken pipe.
fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<crate::output::Unwritable>().is_some_and(|error| error.0.kind() == io::ErrorKind::BrokenPipe)
}

/// Cleans each line, and keeps the lines: a configuration has more than one problem.
fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n  ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use expect_test::{Expect, expect};

    use super::*;

    fn check(error: &anyhow::Error, code: ExitCode, expect: &Expect) {
        let mut printed = Vec::new();
        assert_eq!(report(error, &mut printed), code);
        expect.assert_eq(&String::from_utf8(printed).expect("text"));
    }

    #[test]
    fn an_error_is_printed_with_its_causes_and_what_helps() {
        let failure = Failure::new(ExitCode::Refused, "the disk is nearly full").with_hint("free some space");
        check(
            &anyhow::Error::from(failure).context("store the study").context("import"),
            ExitCode::Refused,
            &expect![[r#"
                error: import
                  caused by: store the study
                  caused by: the disk is nearly full
                hint: free some space
            "#]],
        );
    }

    #[test]
    fn a_failure_may_be_context_around_another_error() {
        let error = Err::<(), _>(io::Error::other("device gone"))
            .context(Failure::new(ExitCode::Corrupt, "read the log"))
            .expect_err("an error");
        check(
            &error,
            ExitCode::Corrupt,
            &expect![[r#"
                error: read the log
                  caused by: device gone
            "#]],
        );
    }

    #[test]
    fn an_error_that_says_nothing_of_its_code_is_one() {
        check(
            &anyhow::anyhow!("odd"),
            ExitCode::Error,
            &expect![[r#"
                error: odd
            "#]],
        );
    }

    #[test]
    fn an_error_cannot_drive_the_terminal() {
        let mut printed = Vec::new();
        report(&anyhow::anyhow!("peer said \u{1b}[2J\u{9b}31m"), &mut printed);
        let printed = String::from_utf8(printed).expect("text");
        assert!(!printed.contains('\u{1b}') && !printed.contains('\u{9b}'), "{printed:?}");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_but_a_full_disk_is() {
        let gone = crate::output::Unwritable(io::ErrorKind::BrokenPipe.into());
        let mut printed = Vec::new();
        assert_eq!(report(&gone.into(), &mut printed), ExitCode::Ok);
        assert!(printed.is_empty());
        let full = crate::output::Unwritable(io::ErrorKind::StorageFull.into());
        assert_eq!(report(&full.into(), &mut printed), ExitCode::Error);
    }
}
