//! Linearizability of one history, after Wing and Gong with Lowe's memo.
//!
//! Searches an order of the operations that respects real time and in which every answer is the
//! model's. An operation without an answer may take effect at any later moment, or never.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// A sequential specification.
pub(crate) trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Act;
    fn initial() -> Self::State;
    /// The states in which `act`, with the answer that was observed, can leave `state`; none when
    /// that answer is impossible there.
    fn step(state: &Self::State, act: &Self::Act) -> Vec<Self::State>;
}

/// An operation and the moments of its call and answer, on one total order of moments.
#[derive(Debug, Clone)]
pub(crate) struct Operation<A> {
    pub(crate) call: u64,
    /// `None`: the answer never came.
    pub(crate) answer: Option<u64>,
    pub(crate) act: A,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// How many answered operations the best order explains.
    Violation {
        explained: usize,
    },
    /// Not decided within the budget of steps.
    TooHard,
}

struct Node<S> {
    done: Vec<u64>,
    state: S,
    answered: usize,
}

/// Checks `history`, in at most `budget` steps.
pub(crate) fn check<M: Model>(mut history: Vec<Operation<M::Act>>, budget: u64) -> Verdict {
    history.sort_by_key(|operation| operation.call);
    let must = history.iter().filter(|operation| operation.answer.is_some()).count();
    let mut seen: HashSet<(Vec<u64>, M::State)> = HashSet::new();
    let mut stack = vec![Node { done: vec![0; history.len().div_ceil(64)], state: M::initial(), answered: 0 }];
    let (mut explained, mut steps) = (0, 0);
    while let Some(node) = stack.pop() {
        explained = explained.max(node.answered);
        if node.answered == must {
            return Verdict::Linearizable;
        }
        steps += 1;
        if steps > budget {
            return Verdict::TooHard;
        }
        let is_done = |at: usize| node.done[at / 64] >> (at % 64) & 1 == 1;
        let open = || history.iter().enumerate().filter(|(at, _)| !is_done(*at));
        // Nothing may come first that was called after another's answer.
        let horizon = open().filter_map(|(_, operation)| operation.answer).min().unwrap_or(u64::MAX);
        let candidates: Vec<usize> =
            open().take_while(|(_, operation)| operation.call <= horizon).map(|(at, _)| at).collect();
        // The earliest is tried first: it lies on top of the stack.
        for at in candidates.into_iter().rev() {
            for state in M::step(&node.state, &history[at].act) {
                let mut done = node.done.clone();
                done[at / 64] |= 1 << (at % 64);
                if seen.insert((done.clone(), state.clone())) {
                    let answered = node.answered + usize::from(history[at].answer.is_some());
                    stack.push(Node { done, state, answered });
                }
            }
        }
    }
    Verdict::Violation { explained }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register that is written and read.
    struct Register;
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Write(u8),
        Read(u8),
    }
    impl Model for Register {
        type State = u8;
        type Act = Act;
        fn initial() -> u8 {
            0
        }
        fn step(state: &u8, act: &Act) -> Vec<u8> {
            match act {
                Act::Write(value) => vec![*value],
                Act::Read(value) if value == state => vec![*state],
                Act::Read(_) => vec![],
            }
        }
    }

    fn operation(call: u64, answer: impl Into<Option<u64>>, act: Act) -> Operation<Act> {
        Operation { call, answer: answer.into(), act }
    }

    #[test]
    fn good_histories_are_accepted_and_bad_ones_are_not() {
        let verdict = |history: &[Operation<Act>]| check::<Register>(history.to_vec(), 1_000_000);
        let write = operation(1, 4, Act::Write(1));
        assert_eq!(verdict(&[write.clone(), operation(2, 3, Act::Read(0))]), Verdict::Linearizable, "concurrent");
        assert_eq!(verdict(&[write.clone(), operation(2, 3, Act::Read(1))]), Verdict::Linearizable);
        assert_eq!(verdict(&[write.clone(), operation(5, 6, Act::Read(0))]), Verdict::Violation { explained: 1 });
        let back = [write, operation(2, 3, Act::Read(1)), operation(5, 6, Act::Read(0))];
        assert!(matches!(verdict(&back), Verdict::Violation { .. }), "a value may not be unread");
    }

    #[test]
    fn what_was_never_answered_may_have_happened_or_not() {
        let lost = operation(1, None, Act::Write(7));
        for seen in [0, 7] {
            let history = vec![lost.clone(), operation(5, 6, Act::Read(seen))];
            assert_eq!(check::<Register>(history, 1000), Verdict::Linearizable);
        }
        let flickers = vec![lost, operation(5, 6, Act::Read(7)), operation(7, 8, Act::Read(0))];
        assert!(matches!(check::<Register>(flickers, 1000), Verdict::Violation { .. }));
    }

    /// A second checker: every order, by brute force.
    fn brute_force(history: &[Operation<Act>]) -> bool {
        fn search(left: &[Operation<Act>], state: u8) -> bool {
            if left.iter().all(|operation| operation.answer.is_none()) {
                return true;
            }
            (0..left.len()).any(|at| {
                let first = &left[at];
                let rest: Vec<_> = left[..at].iter().chain(&left[at + 1..]).cloned().collect();
                rest.iter().all(|other| other.answer.is_none_or(|answer| first.call <= answer))
                    && Register::step(&state, &first.act).into_iter().any(|state| search(&rest, state))
            })
        }
        search(history, 0)
    }

    #[test]
    fn a_second_checker_agrees_on_random_histories() {
        let mut rng = crate::rng::Rng::new(11);
        let mut verdicts = [0, 0];
        for _ in 0..3000 {
            let history: Vec<_> = (0..5)
                .map(|_| {
                    let call = rng.below(12);
                    let answer = (!rng.chance(0.15)).then(|| call + 1 + rng.below(6));
                    let value = u8::try_from(rng.below(3)).expect("small");
                    operation(
                        call * 2,
                        answer.map(|at| at * 2 + 1),
                        if rng.chance(0.5) { Act::Write(value) } else { Act::Read(value) },
                    )
                })
                .collect();
            let good = brute_force(&history);
            assert_eq!(check::<Register>(history.clone(), 1_000_000) == Verdict::Linearizable, good, "{history:?}");
            verdicts[usize::from(good)] += 1;
        }
        assert!(verdicts.iter().all(|count| *count > 100), "both verdicts are tried: {verdicts:?}");
    }
}
