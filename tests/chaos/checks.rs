//! The checks: pure functions from what clients were told, and what is there in the end, to violations.
//!
//! Each stands in a file with tests over hand-made histories that it must reject. None looks inside a
//! node: what a reader, a hospital or an administrator can see is all there is.

use std::collections::BTreeMap;

use serde_json::Value;

pub(crate) mod claims;
pub(crate) mod finality;
pub(crate) mod images;
pub(crate) mod lock;
pub(crate) mod logs;
pub(crate) mod tokens;

/// A workitem, as the mesh shows it in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workitem {
    pub(crate) state: String,
    pub(crate) user: Option<String>,
    pub(crate) token: Option<u64>,
    pub(crate) reason: String,
}

/// A report or a draft, as the mesh shows it in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) number: u64,
    pub(crate) text: String,
    pub(crate) token: u64,
    pub(crate) stale: bool,
}

/// An exam, as a site shows it in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exam {
    pub(crate) id: u64,
    pub(crate) accession: String,
    pub(crate) patient: String,
    pub(crate) state: String,
    pub(crate) unsolicited: bool,
    pub(crate) studies: Vec<String>,
    pub(crate) workitems: Vec<Workitem>,
    pub(crate) reports: Vec<Report>,
}

impl Exam {
    /// From the answer to `GET /exams/{id}`; `None` when something is not as documented.
    pub(crate) fn parse(shown: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let workitem = |item: &Value| {
            Some(Workitem {
                state: text(&item["state"])?,
                user: text(&item["performer"]["user"]),
                token: item["performer"]["token"].as_u64(),
                reason: text(&item["reason"]).unwrap_or_default(),
            })
        };
        let report = |report: &Value| {
            Some(Report {
                number: report["number"].as_u64()?,
                text: text(&report["text"])?,
                token: report["token"].as_u64()?,
                stale: report["stale"].as_bool()?,
            })
        };
        Some(Self {
            id: shown["id"].as_u64()?,
            accession: text(&shown["accession"])?,
            patient: text(&shown["patient"]["id"])?,
            state: text(&shown["state"])?,
            unsolicited: !shown["unsolicited"].is_null(),
            studies: shown["studies"].as_array()?.iter().map(text).collect::<Option<_>>()?,
            workitems: shown["workitems"].as_array()?.iter().map(workitem).collect::<Option<_>>()?,
            reports: shown["report_list"].as_array()?.iter().map(report).collect::<Option<_>>()?,
        })
    }
}

/// All exams that a site shows, by number.
pub(crate) type Exams = BTreeMap<u64, Exam>;

#[cfg(test)]
pub(crate) mod testing {
    use super::{Exam, Report, Workitem};
    use crate::history::{Act, Op, Told};

    /// An operation that was called and answered at these times; 0: never answered.
    pub(crate) fn op(user: &str, call: u64, answer: u64, act: Act, told: impl Into<Option<Told>>) -> Op {
        Op {
            user: user.to_owned(),
            command: format!("{user}-{call}"),
            act,
            call,
            answer: (answer > 0).then_some(answer),
            told: told.into(),
            again: None,
            attempts: 1,
            site: String::new(),
        }
    }

    pub(crate) fn granted(user: &str, call: u64, answer: u64, token: u64) -> Op {
        op(user, call, answer, Act::Claim { exam: None }, Told::Granted { exam: 1, token })
    }

    pub(crate) fn released(user: &str, call: u64, answer: u64, token: u64) -> Op {
        op(user, call, answer, Act::Release { exam: 1, token }, Told::Done)
    }

    pub(crate) fn reported(user: &str, call: u64, answer: u64, token: u64) -> Op {
        let text = format!("by {user}");
        op(user, call, answer, Act::Report { exam: 1, token, text }, Told::Done)
    }

    pub(crate) fn shown(call: u64, answer: u64, state: &str, holder: Option<(&str, u64)>) -> Op {
        let holder = holder.map(|(user, token)| (user.to_owned(), token));
        op("observer", call, answer, Act::Read { exam: 1 }, Told::Shown { state: state.to_owned(), holder })
    }

    /// Exam 1, whose workitems are (state, user, token, reason), read as `a` wrote it.
    pub(crate) fn exam(workitems: &[(&str, &str, u64, &str)]) -> Exam {
        let workitem = |(state, user, token, reason): &(&str, &str, u64, &str)| Workitem {
            state: (*state).to_owned(),
            user: Some((*user).to_owned()),
            token: Some(*token),
            reason: (*reason).to_owned(),
        };
        let reports = workitems.iter().filter(|(state, ..)| *state == "COMPLETED").map(|(_, user, token, _)| Report {
            number: 1,
            text: format!("by {user}"),
            token: *token,
            stale: false,
        });
        Exam {
            id: 1,
            accession: "A1".to_owned(),
            patient: "P1".to_owned(),
            state: "reported".to_owned(),
            unsolicited: false,
            studies: vec!["1.2.3".to_owned()],
            workitems: workitems.iter().map(workitem).collect(),
            reports: reports.collect(),
        }
    }
}
