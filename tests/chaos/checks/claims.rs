//! No exam is claimed by two at once: what clients were told of each exam is linearizable.
//!
//! The ends of sessions are not told to clients. They come from the exam's own record in the end: a
//! workitem cancelled for its site's session may have ended at any moment after its grant, and no
//! other claim may end without a client's doing.

use std::collections::BTreeMap;

use super::lock::{Timed, Verdict, search};
use super::{Exam, Exams};
use crate::history::{Act, Op, Told, Violation};

const CHECK: &str = "claims are linearizable";
/// Placements tried for one exam: a few seconds.
const STEPS_MAX: usize = 3_000_000;

/// An exam, as the order has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    /// Its images are awaited.
    Requested,
    Waiting,
    /// By the claim that is so many-th in the list.
    Claimed(usize),
    Reported,
}

/// A claim: its user, and its token if its client ever learned it.
#[derive(Debug, Clone)]
struct Claim {
    user: String,
    token: Option<u64>,
}

/// What happens to the exam.
#[derive(Debug, Clone)]
enum Step {
    Ready,
    Expire { token: u64 },
    Claim { claim: usize, told: Option<Told> },
    End { token: u64, reports: bool, told: Option<Told> },
    Read(Told),
}

/// Checks all exams; how many were too hard to decide comes with the violations.
pub(crate) fn check(ops: &[Op], exams: &Exams) -> (Vec<Violation>, usize) {
    let mut of: BTreeMap<u64, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        if let Some(exam) = op.exam() {
            of.entry(exam).or_default().push(op);
        }
    }
    let (mut violations, mut undecided) = (Vec::new(), 0);
    for (id, ops) in of {
        match check_one(&ops, exams.get(&id)) {
            Verdict::Explained => {}
            Verdict::Undecided => undecided += 1,
            Verdict::Impossible { explained } => {
                let mut what = format!("exam {id}: no order explains more than {explained} of these answers:");
                for op in ops {
                    what += &format!("\n    {:?}", (&op.user, op.call, op.answer, &op.act, &op.told));
                }
                what += &format!("\n    in the end: {:?}", exams.get(&id).map(|exam| &exam.workitems));
                violations.push(Violation::new(CHECK, what));
            }
        }
    }
    (violations, undecided)
}

fn check_one(ops: &[&Op], exam: Option<&Exam>) -> Verdict {
    let (mut claims, mut steps) = (Vec::new(), Vec::new());
    let mut start = State::Waiting;
    for op in ops {
        let act = match (&op.act, &op.told) {
            (Act::Add { awaits_images, .. }, _) => {
                if *awaits_images {
                    start = State::Requested;
                    steps.push(Timed { call: op.call, answer: None, act: Step::Ready });
                }
                continue;
            }
            (Act::Claim { .. }, told) => {
                let token = match told {
                    Some(Told::Granted { token, .. }) => Some(*token),
                    _ => None,
                };
                claims.push(Claim { user: op.user.clone(), token });
                Step::Claim { claim: claims.len() - 1, told: told.clone() }
            }
            (Act::Release { token, .. }, told) => Step::End { token: *token, reports: false, told: told.clone() },
            (Act::Report { token, .. }, told) => Step::End { token: *token, reports: true, told: told.clone() },
            (Act::Read { .. }, Some(told)) => Step::Read(told.clone()),
            (Act::Read { .. }, None) => continue,
        };
        steps.push(Timed { call: op.call, answer: op.answer, act });
    }
    for item in exam.iter().flat_map(|exam| &exam.workitems) {
        if let Some(token) = item.token.filter(|_| item.state == "CANCELED" && item.reason.contains("session")) {
            // Not before its grant was asked for; the search itself keeps it after the grant.
            steps.push(Timed { call: 0, answer: None, act: Step::Expire { token } });
        }
    }
    search(steps, start, |state, step| after(&claims, state, step), STEPS_MAX)
}

fn after(claims: &[Claim], state: &State, step: &Step) -> Option<State> {
    let held = |token: u64| match state {
        State::Claimed(at) => is_of(claims, *at, token),
        _ => false,
    };
    match step {
        Step::Ready => Some(if *state == State::Requested { State::Waiting } else { state.clone() }),
        Step::Expire { token } => held(*token).then_some(State::Waiting),
        Step::Claim { claim, told } => match told {
            Some(Told::Granted { .. }) | None => (*state == State::Waiting).then_some(State::Claimed(*claim)),
            Some(Told::Held { user }) => match state {
                State::Claimed(at) if claims[*at].user == *user => Some(state.clone()),
                _ => None,
            },
            Some(Told::WrongState { state: told }) => is_named(state, told).then(|| state.clone()),
            Some(_) => None,
        },
        Step::End { token, reports, told } => match (told, held(*token)) {
            (Some(Told::Done) | None, true) => Some(if *reports { State::Reported } else { State::Waiting }),
            (Some(Told::Stale { .. } | Told::WrongState { .. }), false) => Some(state.clone()),
            _ => None,
        },
        Step::Read(Told::Shown { state: told, holder }) => {
            let same_holder = match (state, holder) {
                (State::Claimed(at), Some((user, token))) => claims[*at].user == *user && is_of(claims, *at, *token),
                (State::Claimed(_), None) => false,
                _ => true,
            };
            (is_named(state, told) && same_holder).then(|| state.clone())
        }
        Step::Read(_) => None,
    }
}

/// Whether a claim has this token. One whose client never learned it may have any that nobody else has.
fn is_of(claims: &[Claim], at: usize, token: u64) -> bool {
    match claims[at].token {
        Some(own) => own == token,
        None => claims.iter().all(|claim| claim.token != Some(token)),
    }
}

fn is_named(state: &State, name: &str) -> bool {
    match state {
        State::Requested => matches!(name, "requested" | "receiving"),
        State::Waiting => name == "waiting",
        State::Claimed(_) => name == "claimed",
        State::Reported => name == "reported",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{exam, granted, op, released, reported, shown};

    fn good(ops: &[Op], workitems: &[(&str, &str, u64, &str)]) -> bool {
        let (violations, undecided) = check(ops, &Exams::from([(1, exam(workitems))]));
        assert_eq!(undecided, 0);
        violations.is_empty()
    }

    const SESSION: &str = "the session of lyon ended";

    #[test]
    fn a_second_grant_needs_an_end_of_the_first() {
        let twice = [granted("a", 1, 2, 7), granted("b", 3, 4, 9)];
        assert!(!good(&twice, &[]), "two hold it");
        assert!(!good(&twice, &[("CANCELED", "a", 7, "released")]), "nobody was told of a release");
        assert!(good(&twice, &[("CANCELED", "a", 7, SESSION)]));
        assert!(!good(&twice, &[("CANCELED", "b", 9, SESSION)]), "the other's session");
        assert!(good(&[granted("a", 1, 2, 7), released("a", 3, 5, 7), granted("b", 4, 6, 9)], &[]), "at the same time");
        assert!(!good(&[granted("a", 1, 2, 7), granted("b", 3, 4, 9), released("a", 5, 6, 7)], &[]), "too late");
    }

    #[test]
    fn a_refusal_must_be_true() {
        let held = |user: &str| op("b", 3, 4, Act::Claim { exam: Some(1) }, Told::Held { user: user.to_owned() });
        assert!(good(&[granted("a", 1, 2, 7), held("a")], &[]));
        assert!(!good(&[granted("a", 1, 2, 7), held("c")], &[]));
        assert!(!good(&[held("a"), granted("a", 5, 6, 7)], &[]), "nobody held it yet");
        let stale =
            op("a", 3, 4, Act::Report { exam: 1, token: 7, text: String::new() }, Told::Stale { kept_as: None });
        assert!(!good(&[granted("a", 1, 2, 7), stale.clone()], &[]), "the claim held");
        assert!(good(&[granted("a", 1, 2, 7), stale], &[("CANCELED", "a", 7, SESSION)]));
    }

    #[test]
    fn a_stale_token_ends_nothing() {
        let ops = [granted("a", 1, 2, 7), released("a", 3, 4, 7), granted("b", 5, 6, 9), reported("a", 7, 8, 7)];
        assert!(!good(&ops, &[]));
    }

    #[test]
    fn a_fresh_read_is_fresh() {
        let claimed = [granted("a", 1, 2, 7), shown(3, 4, "claimed", Some(("a", 7)))];
        assert!(good(&claimed, &[]));
        assert!(!good(&[granted("a", 1, 2, 7), shown(3, 4, "waiting", None)], &[]), "older than the grant");
        let ops = [granted("a", 1, 2, 7), reported("a", 3, 4, 7), shown(5, 6, "claimed", Some(("a", 7)))];
        assert!(!good(&ops, &[]), "older than the report");
    }

    #[test]
    fn a_claim_whose_client_died_may_have_happened() {
        let lost = op("a", 1, 0, Act::Claim { exam: Some(1) }, None);
        let freed = released("a", 5, 6, 7);
        assert!(good(
            &[lost.clone(), shown(3, 4, "claimed", Some(("a", 7))), freed.clone(), granted("b", 7, 8, 9)],
            &[]
        ));
        assert!(good(&[lost.clone(), granted("b", 7, 8, 9)], &[]), "or not");
        assert!(
            !good(&[lost, shown(3, 4, "claimed", Some(("a", 7))), granted("b", 7, 8, 9)], &[]),
            "it did, and holds"
        );
    }

    #[test]
    fn an_exam_without_its_images_is_not_claimed() {
        let add = op("h", 1, 2, Act::Add { accession: "A1".to_owned(), awaits_images: true }, Told::Added { exam: 1 });
        let early = shown(3, 4, "requested", None);
        assert!(good(&[add.clone(), early.clone(), granted("a", 5, 6, 7)], &[]));
        assert!(!good(&[add, granted("a", 1, 2, 7), early], &[]), "it was there already");
    }
}
