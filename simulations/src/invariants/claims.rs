//! I1: what clients were told of each exam is linearizable.

use crate::history::{Act, Claimed, History, Mended, Shown, Told};
use crate::wgl::{Model, Verdict, check};
use crate::world::World;

/// Steps spent on one exam: some seconds.
const BUDGET: u64 = 2_000_000;

/// The queue as one exam sees it.
struct ExamModel;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ExamState {
    Waiting,
    Claimed(Claimed),
    Reported,
}

impl ExamState {
    fn is_held_by(&self, claim: u128) -> bool {
        matches!(self, Self::Claimed(held) if held.command == claim)
    }
}

impl Model for ExamModel {
    type State = ExamState;
    type Act = Act;

    fn initial() -> ExamState {
        ExamState::Waiting
    }

    fn step(state: &ExamState, act: &Act) -> Vec<ExamState> {
        let only_if = |holds: bool, next: ExamState| if holds { vec![next] } else { Vec::new() };
        match act {
            Act::Claim { by, told } => match told {
                Some(Told::Granted { .. }) => only_if(*state == ExamState::Waiting, ExamState::Claimed(*by)),
                Some(Told::Held { user, site }) => {
                    let held = matches!(state, ExamState::Claimed(held) if held.user == *user && held.site == *site);
                    only_if(held, state.clone())
                }
                Some(Told::Over) => only_if(*state == ExamState::Reported, state.clone()),
                None => vec![if *state == ExamState::Waiting { ExamState::Claimed(*by) } else { state.clone() }],
            },
            Act::TakeOver { by, told } => {
                let held = matches!(state, ExamState::Claimed(_));
                match told {
                    Some(Told::Granted { .. }) => only_if(held, ExamState::Claimed(*by)),
                    Some(Told::Over) => only_if(*state == ExamState::Reported, state.clone()),
                    Some(Told::Held { .. }) => Vec::new(),
                    None => vec![if held { ExamState::Claimed(*by) } else { state.clone() }],
                }
            }
            Act::Glass { by, reports, told } => glass(state, by, *reports, *told),
            Act::Release { claim, done, .. } => end(state, *claim, *done, ExamState::Waiting),
            Act::Complete { claim, done, .. } => end(state, *claim, *done, ExamState::Reported),
            Act::Read(shown) => {
                let same = match (shown, state) {
                    (Shown::Waiting, ExamState::Waiting) | (Shown::Reported, ExamState::Reported) => true,
                    (Shown::Claimed { command, .. }, held) => held.is_held_by(*command),
                    _ => false,
                };
                only_if(same, state.clone())
            }
            Act::Expire { site, session } => match state {
                ExamState::Claimed(held) if held.site == *site => match held.session {
                    Some(held) if held == *session => vec![ExamState::Waiting],
                    Some(_) => vec![state.clone()],
                    None => vec![ExamState::Waiting, state.clone()],
                },
                other => vec![other.clone()],
            },
        }
    }
}

/// What was done by break glass is told to the mesh.
fn glass(state: &ExamState, by: &Claimed, reports: bool, told: Option<Mended>) -> Vec<ExamState> {
    let theirs = matches!(state, ExamState::Claimed(held) if held.user == by.user && held.site == by.site);
    let accepts = theirs || *state == ExamState::Waiting;
    let next = match (reports, state) {
        (true, _) => ExamState::Reported,
        (false, ExamState::Waiting) => ExamState::Claimed(*by),
        (false, held) => held.clone(),
    };
    match told {
        Some(Mended::Holds) if *state == ExamState::Waiting || state.is_held_by(by.command) => vec![next],
        Some(Mended::Reported) if accepts => vec![next],
        // An exam that was cancelled waits for nobody, though here it seems to.
        Some(Mended::SecondRead) if !theirs => vec![state.clone()],
        Some(_) => Vec::new(),
        None => vec![if accepts { next } else { state.clone() }],
    }
}

/// A release or completion under `claim`.
fn end(state: &ExamState, claim: u128, done: Option<bool>, next: ExamState) -> Vec<ExamState> {
    let held = state.is_held_by(claim);
    match done {
        Some(true) if held => vec![next],
        Some(false) if !held => vec![state.clone()],
        Some(_) => Vec::new(),
        None => vec![if held { next } else { state.clone() }],
    }
}

/// Checks every exam's history. Returns how many were checked.
pub(crate) fn check_all(world: &World, history: &History) -> usize {
    let exams = history.by_exam();
    let count = exams.len();
    for (exam, operations) in exams {
        match check::<ExamModel>(operations.clone(), BUDGET) {
            Verdict::Linearizable => {}
            Verdict::TooHard => world.violation("I1", format!("exam {exam}: its history is too hard to decide")),
            Verdict::Violation { explained } => {
                let mut told = String::new();
                for operation in &operations {
                    told += &format!(
                        "\n      {:>6} {:>6} {:?}",
                        operation.call,
                        operation.answer.unwrap_or(0),
                        operation.act
                    );
                }
                world.violation("I1", format!("exam {exam}: only {explained} answers can be explained of{told}"));
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wgl::Operation;

    fn claim(command: u128, told: Option<Told>) -> Act {
        let user = u32::try_from(command).expect("small");
        Act::Claim { by: Claimed { command, user, site: 1, session: told.map(|_| 1) }, told }
    }

    fn verdict(history: &[(u64, Option<u64>, Act)]) -> Verdict {
        let operations =
            history.iter().map(|(call, answer, act)| Operation { call: *call, answer: *answer, act: *act }).collect();
        check::<ExamModel>(operations, BUDGET)
    }

    const GRANTED: Option<Told> = Some(Told::Granted { token: 9 });

    #[test]
    fn two_claims_are_explained_only_by_what_ends_the_first() {
        let twice = [(1, Some(2), claim(1, GRANTED)), (3, Some(4), claim(2, GRANTED))];
        assert!(matches!(verdict(&twice), Verdict::Violation { .. }));
        for between in [
            Act::Expire { site: 1, session: 1 },
            Act::Release { claim: 1, token: 9, done: Some(true) },
            Act::Release { claim: 1, token: 9, done: None },
        ] {
            let mut history = twice.to_vec();
            history.push((2, None, between));
            assert_eq!(verdict(&history), Verdict::Linearizable, "{between:?}");
        }
        let mut other = twice.to_vec();
        other.push((2, None, Act::Expire { site: 1, session: 2 }));
        assert!(matches!(verdict(&other), Verdict::Violation { .. }), "another session ended");
    }

    #[test]
    fn a_take_over_needs_a_holder_and_ends_its_claim() {
        let by = Claimed { command: 2, user: 2, site: 1, session: Some(1) };
        let taken_over = Act::TakeOver { by, told: GRANTED };
        assert!(matches!(verdict(&[(1, Some(2), taken_over)]), Verdict::Violation { .. }), "nobody held it");
        let complete = |claim, done| Act::Complete { claim, token: 9, done: Some(done) };
        let history = |first, second| {
            [(1, Some(2), claim(1, GRANTED)), (3, Some(4), taken_over), (5, Some(6), first), (7, Some(8), second)]
        };
        assert_eq!(verdict(&history(complete(1, false), complete(2, true))), Verdict::Linearizable);
        assert!(matches!(verdict(&history(complete(1, true), complete(2, false))), Verdict::Violation { .. }));
    }

    #[test]
    fn a_break_glass_is_accepted_where_nobody_else_has_the_exam_and_a_second_read_elsewhere() {
        let by = Claimed { command: 7, user: 7, site: 2, session: None };
        let glass = |reports, told| Act::Glass { by, reports, told: Some(told) };
        let held = (1, Some(2), claim(1, GRANTED));
        let complete = |claim| Act::Complete { claim, token: 9, done: Some(true) };
        assert_eq!(verdict(&[(1, Some(2), glass(true, Mended::Reported))]), Verdict::Linearizable);
        assert_eq!(verdict(&[held, (3, Some(4), glass(true, Mended::SecondRead))]), Verdict::Linearizable);
        let overwritten = [held, (3, Some(4), glass(true, Mended::Reported)), (5, Some(6), complete(1))];
        assert!(matches!(verdict(&overwritten), Verdict::Violation { .. }));
        let goes_on = [(1, Some(2), glass(false, Mended::Holds)), (3, Some(4), complete(7))];
        assert_eq!(verdict(&goes_on), Verdict::Linearizable);
        assert!(matches!(verdict(&[held, goes_on[1]]), Verdict::Violation { .. }), "of a claim that never was");
    }

    #[test]
    fn a_completion_is_final_and_needs_its_claim() {
        let completed = Act::Complete { claim: 1, token: 9, done: Some(true) };
        let mut history = vec![(1, Some(2), claim(1, GRANTED)), (3, Some(4), completed)];
        assert_eq!(verdict(&history), Verdict::Linearizable);
        history.push((5, Some(6), Act::Read(Shown::Waiting)));
        assert!(matches!(verdict(&history), Verdict::Violation { .. }));
        let stale =
            [(1, Some(2), claim(1, None)), (3, Some(4), Act::Complete { claim: 7, token: 9, done: Some(true) })];
        assert!(matches!(verdict(&stale), Verdict::Violation { .. }));
    }
}
