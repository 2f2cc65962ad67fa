//! What the page says about the last thing a person did.

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::ids::ExamId;

use super::texts::{Language, Text};
use crate::http::problem::Problem;

/// A message above the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    /// Whether it tells of a failure, which is announced at once.
    pub(super) failed: bool,
    what: What,
    /// A form to send again, under the same command id.
    pub(super) retry: Option<Retry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Done { text: Text, exam: Option<u64> },
    Failed(Problem),
}

/// A form as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Retry {
    /// Where it was sent.
    pub(super) action: String,
    /// Its hidden fields.
    pub(super) fields: Vec<(&'static str, String)>,
    /// The report that it carried: shown again, so that nothing typed is lost.
    pub(super) text: Option<String>,
    /// Whether sending it again may help.
    pub(super) again: bool,
}

impl Notice {
    /// What a redirect's `done` says. Only words of ours: nothing of an address is repeated on the page.
    pub(super) fn done(done: &str, exam: Option<u64>) -> Option<Self> {
        let text = match done {
            "claimed" => Text::DoneClaimed,
            "released" => Text::DoneReleased,
            "reported" => Text::DoneReported,
            "queued" => Text::DoneQueued,
            "glass" => Text::DoneGlass,
            "nothing" => Text::DoneNothing,
            "reader" => Text::DoneReader,
            _ => return None,
        };
        Some(Self { failed: false, what: What::Done { text, exam }, retry: None })
    }

    /// A failure, and the form that failed.
    pub(super) fn failed(problem: Problem, retry: Retry) -> Self {
        let again = matches!(problem.code(), "no-quorum" | "unknown-outcome" | "no-session");
        Self { failed: true, what: What::Failed(problem), retry: Some(Retry { again, ..retry }) }
    }

    /// The exam that it is about, to link to.
    pub(super) fn exam(&self) -> Option<ExamId> {
        match self.what {
            What::Done { exam, .. } => exam.map(ExamId),
            What::Failed(_) => None,
        }
    }

    /// The message.
    pub(super) fn message(&self, language: Language) -> String {
        match &self.what {
            What::Done { text, exam: Some(exam) } => format!("{} {exam}", language.say(*text)),
            What::Done { text, exam: None } => language.say(*text).to_owned(),
            What::Failed(problem) => failure(problem, language),
        }
    }
}

fn failure(problem: &Problem, language: Language) -> String {
    let say = |text| language.say(text);
    match problem.code() {
        "conflict" => {
            let holder = problem.member("holder");
            let of = |name: &str| holder.and_then(|holder| holder[name].as_str()).unwrap_or("–");
            format!("{} {} {} {}", say(Text::FailedHeld), of("user"), say(Text::FailedAt), of("site_name"))
        }
        "stale-token" => match problem.member("kept_as").and_then(serde_json::Value::as_u64) {
            Some(draft) => format!("{} {draft}.", say(Text::FailedStale)),
            None => say(Text::FailedStaleNoDraft).to_owned(),
        },
        "no-quorum" | "no-session" => say(Text::FailedNoQuorum).to_owned(),
        "unknown-outcome" => say(Text::FailedUnknown).to_owned(),
        "quorum-reached" => say(Text::FailedQuorum).to_owned(),
        "wrong-state" => say(Text::FailedState).to_owned(),
        _ => format!("{} {}", say(Text::FailedOther), problem.detail()),
    }
}

/// Milliseconds since the epoch as hours and minutes in UTC, for people.
pub(super) fn clock_time(at: UnixMillisField) -> String {
    let at = crate::http::rfc3339::date_time(at);
    format!("{:02}:{:02}:{:02} UTC", at.hour(), at.minute(), at.second())
}
