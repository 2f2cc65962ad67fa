//! One run of the `maillage` command to its end.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// No command but `demo` and `serve` takes this long.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
    what: String,
}

impl Ran {
    /// Runs `command`, with no input and nobody at the terminal.
    ///
    /// # Panics
    /// When it cannot be run or does not end within a minute.
    pub async fn to_end(command: &mut Command) -> Self {
        Self::to_end_within(DEADLINE, command).await
    }

    /// As [`Ran::to_end`], with another deadline.
    ///
    /// # Panics
    /// When it cannot be run or does not end in time.
    pub async fn to_end_within(deadline: Duration, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let what = format!("{:?}", command.as_std());
        let ended = timeout(deadline, command.output()).await;
        let ended = ended.unwrap_or_else(|_| panic!("{what} did not end within {} s", deadline.as_secs()));
        let output = ended.unwrap_or_else(|error| panic!("{what}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("commands print UTF-8");
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            what,
        }
    }

    /// Itself, if it ended with `code`.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\nstdout: {}\nstderr: {}", self.what, self.stdout, self.stderr);
        self
    }

    /// Its output, which is one JSON document and nothing else.
    ///
    /// # Panics
    /// When it is anything else.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error} in {:?}\nstderr: {}", self.what, self.stdout, self.stderr))
    }

    /// Whether standard error says all of these.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn complains_of(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "{} should say {word:?}: {}", self.what, self.stderr);
        }
    }
}
