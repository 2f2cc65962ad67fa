//! Why a request to the local node failed, and what that means for the exit code.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use uuid::Uuid;

use crate::exit::ExitCode;

/// An error body (RFC 9457, `application/problem+json`) with our `code`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    /// What kind of problem, for people.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// What happened in this case, for people.
    pub(crate) detail: String,
    /// What kind of problem, for programs.
    pub(crate) code: String,
    /// Why an instance was not taken, for counting.
    pub(crate) reason: String,
}

impl Default for Problem {
    fn default() -> Self {
        Self {
            title: "the node refused the request".to_owned(),
            status: 0,
            detail: String::new(),
            code: String::new(),
            reason: String::new(),
        }
    }
}

impl Problem {
    /// The exit code that its `code` stands for.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self.code.as_str() {
            "no-quorum" | "unknown-outcome" => ExitCode::NoQuorum,
            "conflict" | "stale-token" | "wrong-state" | "done-already" | "quorum-reached" | "continues"
            | "not-sent" | "other-layout" => ExitCode::Conflict,
            "storage-full"
            | "not-recorded"
            | "other-patient"
            | "several-patients"
            | "no-contract"
            | "consent-refused"
            | "placement-impossible"
            | "not-a-centre"
            | "not-placed" => ExitCode::Refused,
            "images-damaged" | "corrupt" => ExitCode::Corrupt,
            _ => ExitCode::Error,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.title.as_str(), self.detail.as_str()) {
            (title, "") => f.write_str(title),
            ("", detail) => f.write_str(detail),
            (title, detail) => write!(f, "{title}: {detail}"),
        }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nothing listens on the socket.
    #[error("no node is running on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket is another user's.
    #[error("may not reach the node on {}: permission denied", .0.display())]
    Forbidden(PathBuf),
    /// The path cannot be a socket's.
    #[error(transparent)]
    Path(#[from] crate::data_dir::DataDirError),
    /// The connection broke, or the answer was no HTTP.
    #[error("the connection to the node broke: {0}")]
    Broken(String),
    /// The node took too long.
    #[error("the node did not answer within {0} s")]
    Silent(u64),
    /// A command may or may not have taken effect.
    #[error("whether the command took effect is unknown: {reason}")]
    Unknown {
        /// The command's id.
        command_id: Uuid,
        /// What went wrong.
        reason: String,
    },
    /// The node said no.
    #[error("{0}")]
    Refused(Problem),
    /// The node's answer makes no sense.
    #[error("the node's answer cannot be read: {0}")]
    Unreadable(String),
}

impl ClientError {
    /// What the process ends with.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Refused(problem) => problem.exit_code(),
            Self::Unknown { .. } => ExitCode::NoQuorum,
            Self::Path(error) => error.code(),
            _ => ExitCode::Error,
        }
    }

    /// What helps.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotRunning(_) => {
                "`maillage serve` runs it; `-c FILE` or MAILLAGE__NODE__DATA_DIR names another data directory"
                    .to_owned()
            }
            Self::Forbidden(_) => "run it as the user that runs the node".to_owned(),
            Self::Unknown { command_id, .. } => format!(
                "repeat the same command with `--command-id {command_id}`: it takes effect once, and answers as it did"
            ),
            Self::Refused(problem) => match problem.code.as_str() {
                "no-quorum" => "`maillage status` shows which sites answer".to_owned(),
                "stale-token" => "`maillage exams show ID` shows who holds the claim now".to_owned(),
                "images-damaged" | "corrupt" => "`maillage study verify UID` names what is damaged".to_owned(),
                _ => return None,
            },
            _ => return None,
        })
    }

    /// Whether the command may have reached the node without its answer reaching us.
    pub(super) fn is_uncertain(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Silent(_) | Self::Unreadable(_) => true,
            Self::Refused(problem) => problem.code == "unknown-outcome",
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_code_has_its_exit_code() {
        for (code, exit) in [
            ("no-quorum", ExitCode::NoQuorum),
            ("unknown-outcome", ExitCode::NoQuorum),
            ("conflict", ExitCode::Conflict),
            ("stale-token", ExitCode::Conflict),
            ("wrong-state", ExitCode::Conflict),
            ("done-already", ExitCode::Conflict),
            ("no-contract", ExitCode::Refused),
            ("consent-refused", ExitCode::Refused),
            ("storage-full", ExitCode::Refused),
            ("not-a-centre", ExitCode::Refused),
            ("images-damaged", ExitCode::Corrupt),
            ("corrupt", ExitCode::Corrupt),
            ("not-found", ExitCode::Error),
            ("", ExitCode::Error),
        ] {
            let problem = Problem { code: code.to_owned(), ..Problem::default() };
            assert_eq!(ClientError::Refused(problem).code(), exit, "{code:?}");
        }
    }

    #[test]
    fn an_unknown_outcome_says_how_to_repeat_the_command() {
        let command_id = Uuid::nil();
        let error = ClientError::Unknown { command_id, reason: "gone".to_owned() };
        assert_eq!(error.code(), ExitCode::NoQuorum);
        assert!(error.hint().expect("a hint").contains(&format!("--command-id {command_id}")));
    }
}
