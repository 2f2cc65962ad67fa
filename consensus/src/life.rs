//! The life of an exam: which step leads from which state to which. The one table that decides it.
//!
//! Every change of an exam's state, by whatever command, goes through [`after`]; a step that the table
//! does not have is refused with the state that forbids it.

use std::fmt::Write as _;

use crate::exam::ExamState;
use ExamState::{
    Acquiring, Cancelled, Claimed, Delivered, FollowedUp, Purged, Reading, Receiving, Refused, Reported, Requested,
    Validated, Waiting,
};
use Step::{
    Acquire, Addend, Arrive, Cancel, Claim, Deliver, Finalise, FollowUp, GiveBack, Open, Preliminary, Purge, ReadApart,
    Ready, Refuse, TakeOver, Validate,
};

/// Something that happens to an exam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A regulator finds the request relevant and assigns a protocol.
    Validate,
    /// A regulator refuses the request, or the patient the transfer.
    Refuse,
    /// The technologist begins to scan.
    Acquire,
    /// The first image arrives.
    Arrive,
    /// The images are there and nothing else is waited for.
    Ready,
    /// A reader claims it.
    Claim,
    /// The reader opens it.
    Open,
    /// The claim ends without a final report: released, or its site is away.
    GiveBack,
    /// Another reader takes it over, with a reason.
    TakeOver,
    /// A preliminary report is written.
    Preliminary,
    /// The final report is signed.
    Finalise,
    /// It was read and reported by break glass, apart from the queue.
    ReadApart,
    /// An addendum is signed.
    Addend,
    /// The requesting physician has the report.
    Deliver,
    /// The outcome was followed up.
    FollowUp,
    /// The images are purged.
    Purge,
    /// It is not to be read after all.
    Cancel,
}

/// From, by, to. Nothing else is possible.
pub const TRANSITIONS: &[(ExamState, Step, ExamState)] = &[
    (Requested, Validate, Validated),
    (Requested, Refuse, Refused),
    (Requested, Acquire, Acquiring),
    (Requested, Arrive, Receiving),
    (Requested, Ready, Waiting),
    (Requested, Cancel, Cancelled),
    (Validated, Refuse, Refused),
    (Validated, Acquire, Acquiring),
    (Validated, Arrive, Receiving),
    (Validated, Ready, Waiting),
    (Validated, Cancel, Cancelled),
    (Acquiring, Validate, Acquiring),
    (Acquiring, Arrive, Receiving),
    (Acquiring, Ready, Waiting),
    (Acquiring, Cancel, Cancelled),
    (Receiving, Validate, Receiving),
    (Receiving, Refuse, Refused),
    (Receiving, Ready, Waiting),
    (Receiving, Cancel, Cancelled),
    (Receiving, Purge, Purged),
    (Waiting, Claim, Claimed),
    (Waiting, ReadApart, Reported),
    (Waiting, Cancel, Cancelled),
    (Waiting, Purge, Purged),
    (Claimed, Open, Reading),
    (Claimed, GiveBack, Waiting),
    (Claimed, TakeOver, Claimed),
    (Claimed, Preliminary, Reading),
    (Claimed, Finalise, Reported),
    (Reading, GiveBack, Waiting),
    (Reading, TakeOver, Claimed),
    (Reading, Preliminary, Reading),
    (Reading, Finalise, Reported),
    (Reported, Addend, Reported),
    (Reported, Deliver, Delivered),
    (Reported, Purge, Purged),
    (Delivered, Addend, Reported),
    (Delivered, FollowUp, FollowedUp),
    (Delivered, Purge, Purged),
    (FollowedUp, Addend, Reported),
    (FollowedUp, Purge, Purged),
    (Refused, Purge, Purged),
    (Cancelled, Purge, Purged),
];

/// The state after `step`, if the table has it.
pub fn after(state: ExamState, step: Step) -> Option<ExamState> {
    TRANSITIONS.iter().find(|(from, by, _)| (*from, *by) == (state, step)).map(|(_, _, to)| *to)
}

/// Whether some step leads from one state to the other. Several may happen in one command: an emergency's
/// images come, and it is ready.
pub(crate) fn leads(from: ExamState, to: ExamState) -> bool {
    TRANSITIONS.iter().any(|(one, _, other)| (*one, *other) == (from, to))
}

/// The table as a state diagram in Mermaid's language; the one in `docs/` is made by this.
pub fn diagram() -> String {
    let mut text = String::from("stateDiagram-v2\n    [*] --> Requested\n");
    for state in ExamState::ALL {
        let mut by_target: Vec<(ExamState, Vec<String>)> = Vec::new();
        for (_, step, to) in TRANSITIONS.iter().filter(|(from, ..)| *from == state) {
            let word = words(*step);
            match by_target.iter_mut().find(|(target, _)| target == to) {
                Some((_, steps)) => steps.push(word),
                None => by_target.push((*to, vec![word])),
            }
        }
        for (to, steps) in by_target {
            let _ = writeln!(text, "    {state:?} --> {to:?}: {}", steps.join(", "));
        }
    }
    text.push_str("    Purged --> [*]\n");
    text
}

/// `GiveBack` as "give back".
fn words(step: Step) -> String {
    let mut text = String::new();
    for c in format!("{step:?}").chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(c.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_is_a_function_and_every_state_is_reached() {
        let keys: BTreeSet<_> = TRANSITIONS.iter().map(|(from, step, _)| (*from, *step)).collect();
        assert_eq!(keys.len(), TRANSITIONS.len(), "one target for each state and step");
        let mut reached = BTreeSet::from([Requested]);
        while reached.len() < ExamState::ALL.len() {
            let before = reached.len();
            for (from, _, to) in TRANSITIONS {
                if reached.contains(from) {
                    reached.insert(*to);
                }
            }
            assert!(
                reached.len() > before,
                "never reached: {:?}",
                ExamState::ALL.iter().filter(|s| !reached.contains(s))
            );
        }
    }

    #[test]
    fn an_exam_with_a_final_report_is_never_read_or_cancelled_again() {
        for state in [Reported, Delivered, FollowedUp, Purged] {
            for step in [Claim, Open, GiveBack, TakeOver, Preliminary, Finalise, ReadApart, Ready, Cancel, Refuse] {
                assert_eq!(after(state, step), None, "{state:?} {step:?}");
            }
        }
    }

    #[test]
    fn the_diagram_in_the_docs_is_the_table() {
        let page = format!(
            "# The life of an exam\n\nMade from the table in `consensus/src/life.rs` (`UPDATE_EXPECT=1 cargo test -p \
             maillage-consensus diagram` writes it anew).\n\n```mermaid\n{}```\n",
            diagram()
        );
        expect_test::expect_file!["../../docs/life-of-an-exam.md"].assert_eq(&page);
    }
}
