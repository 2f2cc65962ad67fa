//! I2: a later grant has a greater token, and nothing accepts a smaller one.

use std::collections::BTreeMap;

use crate::history::{Act, History, Told};
use crate::wgl::Operation;
use crate::world::World;

struct Grant {
    call: u64,
    answer: u64,
    exam: u64,
    token: u64,
}

/// Checks all grants and all that was accepted under them.
pub(crate) fn check_all(world: &World, history: &History) {
    for fault in faults(&history.all()) {
        world.violation("I2", fault);
    }
}

/// What is wrong with the tokens of operations, each with its exam if that is known.
fn faults(all: &[(Option<u64>, Operation<Act>)]) -> Vec<String> {
    let mut grants = Vec::new();
    for (exam, operation) in all {
        let told = match operation.act {
            Act::Claim { told, .. } | Act::TakeOver { told, .. } => told,
            _ => None,
        };
        if let (Some(exam), Some(answer), Some(Told::Granted { token })) = (exam, operation.answer, told) {
            grants.push(Grant { call: operation.call, answer, exam: *exam, token });
        }
    }
    let mut found = falls(&mut grants);
    let mut by_exam: BTreeMap<u64, Vec<&Grant>> = BTreeMap::new();
    for grant in &grants {
        by_exam.entry(grant.exam).or_default().push(grant);
    }
    for (exam, operation) in all {
        let (Some(exam), Act::Release { token, done: Some(true), .. } | Act::Complete { token, done: Some(true), .. }) =
            (exam, operation.act)
        else {
            continue;
        };
        let newer =
            by_exam.get(exam).into_iter().flatten().find(|grant| grant.token > token && grant.answer < operation.call);
        if let Some(newer) = newer {
            found.push(format!("exam {exam}: token {token} accepted after {} was granted", newer.token));
        }
    }
    found
}

/// A grant asked for after another was answered has the greater token; no two are equal.
fn falls(grants: &mut [Grant]) -> Vec<String> {
    grants.sort_by_key(|grant| grant.call);
    let mut answered: Vec<&Grant> = grants.iter().collect();
    answered.sort_by_key(|grant| grant.answer);
    let mut earlier = answered.iter().peekable();
    let (mut greatest, mut found) = (0, Vec::new());
    for grant in grants.iter() {
        while let Some(before) = earlier.next_if(|before| before.answer < grant.call) {
            greatest = greatest.max(before.token);
        }
        if grant.token <= greatest {
            found.push(format!("exam {}: token {} granted after {greatest}", grant.exam, grant.token));
        }
    }
    let mut seen = BTreeMap::new();
    for grant in grants.iter() {
        if let Some(other) = seen.insert(grant.token, grant.exam) {
            found.push(format!("token {} granted for exams {other} and {}", grant.token, grant.exam));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Claimed;

    type Step = (Option<u64>, Operation<Act>);

    fn step(call: u64, exam: u64, act: Act) -> Step {
        (Some(exam), Operation { call, answer: Some(call + 1), act })
    }

    fn grant(call: u64, exam: u64, token: u64) -> Step {
        let by = Claimed { command: u128::from(call), user: 1, site: 1, session: Some(1) };
        step(call, exam, Act::Claim { by, told: Some(Told::Granted { token }) })
    }

    fn complete(call: u64, exam: u64, token: u64, done: bool) -> Step {
        step(call, exam, Act::Complete { claim: 1, token, done: Some(done) })
    }

    #[test]
    fn tokens_rise_and_none_is_granted_twice() {
        assert_eq!(faults(&[grant(1, 7, 5), grant(3, 8, 6), grant(5, 7, 9)]), [""; 0]);
        assert_eq!(faults(&[grant(1, 7, 5), grant(3, 8, 4)]), ["exam 8: token 4 granted after 5"]);
        // Asked for at once: either order is right, the same token never.
        let (mut first, second) = (grant(1, 7, 6), grant(2, 8, 5));
        first.1.answer = Some(9);
        assert_eq!(faults(&[first.clone(), second]), [""; 0]);
        let same = grant(2, 8, 6);
        assert_eq!(faults(&[first, same]), ["token 6 granted for exams 7 and 8"]);
    }

    #[test]
    fn nothing_is_accepted_under_a_token_after_a_greater_one_was_granted() {
        let twice = [grant(1, 7, 5), grant(3, 7, 6)];
        assert_eq!(faults(&[&twice[..], &[complete(5, 7, 6, true), complete(7, 7, 5, false)]].concat()), [""; 0]);
        let late = faults(&[&twice[..], &[complete(5, 7, 5, true)]].concat());
        assert_eq!(late, ["exam 7: token 5 accepted after 6 was granted"]);
        assert_eq!(faults(&[&twice[..], &[complete(5, 8, 5, true)]].concat()), [""; 0], "of another exam");
    }
}
