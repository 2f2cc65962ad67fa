//! Whether a history of one object can be put in an order in which every answer is right
//! (linearizability; Wing and Gong 1993, with the memo of Lowe 2017).
//!
//! An operation takes effect at one moment between its call and its answer; one without an answer at
//! any moment after its call, or never. The search places operations one by one; what has been placed
//! and what state that led to is all that matters for the rest, so each such pair is visited once.

use std::collections::HashSet;
use std::hash::Hash;

/// The most operations of one object: bits of a set of them.
pub(crate) const OPS_MAX: usize = 128;

/// An operation, and what it means.
#[derive(Debug, Clone)]
pub(crate) struct Timed<A> {
    pub(crate) call: u64,
    pub(crate) answer: Option<u64>,
    pub(crate) act: A,
}

/// What the search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is such an order.
    Explained,
    /// There is none; the best explains so many of the answers.
    Impossible { explained: usize },
    /// Too many operations or too many orders.
    Undecided,
}

/// Searches from `start`, where `step` gives the state after an operation, or `None` when its answer is
/// wrong in that state. At most `steps_max` placements are tried.
pub(crate) fn search<A, S: Clone + Eq + Hash>(
    mut ops: Vec<Timed<A>>,
    start: S,
    step: impl Fn(&S, &A) -> Option<S>,
    steps_max: usize,
) -> Verdict {
    if ops.len() > OPS_MAX {
        return Verdict::Undecided;
    }
    ops.sort_by_key(|op| op.call);
    let answered =
        ops.iter().enumerate().filter(|(_, op)| op.answer.is_some()).fold(0_u128, |set, (at, _)| set | 1 << at);
    let (mut open, mut seen, mut best, mut steps) = (vec![(0_u128, start)], HashSet::new(), 0, 0);
    while let Some((placed, state)) = open.pop() {
        best = best.max((placed & answered).count_ones());
        if placed & answered == answered {
            return Verdict::Explained;
        }
        let left = |at: &usize| placed >> at & 1 == 0;
        // Whatever is placed next must have been called before every answer that is still to be placed.
        let first_answer = (0..ops.len()).filter(left).filter_map(|at| ops[at].answer).min().unwrap_or(u64::MAX);
        let next = (0..ops.len()).filter(left).take_while(|at| ops[*at].call <= first_answer);
        // Reversed, so that the earliest call is tried first.
        for at in next.collect::<Vec<_>>().into_iter().rev() {
            steps += 1;
            if steps > steps_max {
                return Verdict::Undecided;
            }
            if let Some(after) = step(&state, &ops[at].act) {
                let node = (placed | 1 << at, after);
                if seen.insert(node.clone()) {
                    open.push(node);
                }
            }
        }
    }
    Verdict::Impossible { explained: usize::try_from(best).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Write(u8),
        Read(u8),
    }

    fn step(state: &u8, act: &Act) -> Option<u8> {
        match act {
            Act::Write(value) => Some(*value),
            Act::Read(value) => (value == state).then_some(*state),
        }
    }

    fn timed(call: u64, answer: u64, act: Act) -> Timed<Act> {
        Timed { call, answer: (answer > 0).then_some(answer), act }
    }

    fn verdict(ops: &[Timed<Act>]) -> Verdict {
        search(ops.to_vec(), 0, step, 100_000)
    }

    #[test]
    fn a_read_may_be_placed_anywhere_within_its_time_and_nowhere_else() {
        let write = timed(10, 20, Act::Write(1));
        for (call, answer, value, good) in
            [(12, 18, 0, true), (12, 18, 1, true), (21, 22, 1, true), (21, 22, 0, false), (1, 2, 1, false)]
        {
            let found = verdict(&[write.clone(), timed(call, answer, Act::Read(value))]);
            assert_eq!(found == Verdict::Explained, good, "{call} {answer} {value}: {found:?}");
        }
    }

    #[test]
    fn a_value_that_was_seen_is_not_unseen() {
        let lost = timed(1, 0, Act::Write(1));
        let seen = [lost.clone(), timed(5, 6, Act::Read(1)), timed(7, 8, Act::Read(0))];
        assert_eq!(verdict(&seen), Verdict::Impossible { explained: 1 });
        let late = [lost, timed(5, 6, Act::Read(0)), timed(7, 8, Act::Read(1))];
        assert_eq!(verdict(&late), Verdict::Explained);
    }

    #[test]
    fn what_is_too_much_is_undecided_and_not_called_good() {
        let many: Vec<_> = (0..129).map(|n| timed(n, 1000, Act::Write(1))).collect();
        assert_eq!(verdict(&many), Verdict::Undecided);
        let few: Vec<_> = (0..30).map(|n| timed(n, 1000, Act::Write(1))).collect();
        assert_eq!(search(few, 0, step, 10), Verdict::Undecided);
    }

    /// Every order, with nothing clever: what the search must agree with.
    fn every_order(left: &[Timed<Act>], state: u8) -> bool {
        if left.iter().all(|op| op.answer.is_none()) {
            return true;
        }
        (0..left.len()).any(|at| {
            let rest: Vec<_> = left.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, op)| op.clone()).collect();
            let may_be_next = rest.iter().all(|other| other.answer.is_none_or(|answer| left[at].call <= answer));
            may_be_next && step(&state, &left[at].act).is_some_and(|state| every_order(&rest, state))
        })
    }

    #[test]
    fn a_search_of_every_order_agrees_on_random_histories() {
        let mut draw = maillage_tests::draw::Draw::new(5);
        let mut verdicts = [0, 0];
        for _ in 0..2000 {
            let ops: Vec<_> = (0..5)
                .map(|_| {
                    let call = draw.within(1..12);
                    let answer = if draw.chance(0.2) { 0 } else { call + draw.within(1..7) };
                    let value = u8::try_from(draw.below(3)).expect("small");
                    timed(call, answer, if draw.chance(0.5) { Act::Write(value) } else { Act::Read(value) })
                })
                .collect();
            let good = every_order(&ops, 0);
            assert_eq!(verdict(&ops) == Verdict::Explained, good, "{ops:?}");
            verdicts[usize::from(good)] += 1;
        }
        assert!(verdicts.iter().all(|count| *count > 100), "{verdicts:?}");
    }
}
