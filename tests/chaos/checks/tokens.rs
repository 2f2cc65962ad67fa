//! Fencing tokens rise, a stale one completes nothing, and a command has one outcome.

use std::collections::BTreeMap;

use crate::history::{Act, Op, Told, Violation};

const CHECK: &str = "tokens rise";
const REPEATS: &str = "a command has one outcome";

/// A grant that a client was told of.
struct Grant<'a> {
    exam: u64,
    token: u64,
    op: &'a Op,
}

/// Checks all operations.
pub(crate) fn check(ops: &[Op]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let grants = ops.iter().filter_map(|op| match op.told {
        Some(Told::Granted { exam, token }) => Some(Grant { exam, token, op }),
        _ => None,
    });
    let grants: Vec<Grant<'_>> = grants.collect();
    let mut owners: BTreeMap<u64, &Op> = BTreeMap::new();
    for grant in &grants {
        if let Some(other) = owners.insert(grant.token, grant.op) {
            let (a, b) = (&other.user, &grant.op.user);
            violations.push(Violation::new(CHECK, format!("token {} was given to {a} and to {b}", grant.token)));
        }
        let later = grants.iter().filter(|later| later.exam == grant.exam && is_before(grant.op, later.op));
        for later in later.filter(|later| later.token <= grant.token) {
            let what = format!("exam {}: token {} was given after {}", grant.exam, later.token, grant.token);
            violations.push(Violation::new(CHECK, what));
        }
    }
    for op in ops {
        let Act::Report { exam, token, .. } = &op.act else { continue };
        let newer = grants.iter().find(|grant| grant.exam == *exam && grant.token > *token && is_before(grant.op, op));
        if let (Some(Told::Done), Some(newer)) = (&op.told, newer) {
            let what = format!("exam {exam}: token {token} completed it after {} was given", newer.token);
            violations.push(Violation::new(CHECK, what));
        }
    }
    for op in ops {
        if let (Some(first), Some(again)) = (&op.told, &op.again)
            && first != again
        {
            let what = format!("{} of {}: first {first:?}, then {again:?}", op.act.name(), op.user);
            violations.push(Violation::new(REPEATS, what));
        }
    }
    violations
}

fn is_before(first: &Op, second: &Op) -> bool {
    first.answer.is_some_and(|answer| answer < second.call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{granted, reported};

    #[test]
    fn a_later_grant_has_a_greater_token() {
        assert!(check(&[granted("a", 1, 2, 7), granted("b", 3, 4, 9)]).is_empty());
        assert_eq!(check(&[granted("a", 1, 2, 9), granted("b", 3, 4, 7)]).len(), 1);
        assert!(check(&[granted("a", 1, 5, 9), granted("b", 3, 4, 7)]).is_empty(), "at once: either may be first");
    }

    #[test]
    fn no_token_is_given_twice() {
        assert!(!check(&[granted("a", 1, 5, 7), granted("b", 3, 4, 7)]).is_empty());
    }

    #[test]
    fn a_stale_token_completes_nothing() {
        let (old, new) = (granted("a", 1, 2, 7), granted("b", 3, 4, 9));
        assert_eq!(check(&[old.clone(), new.clone(), reported("a", 5, 6, 7)]).len(), 1);
        assert!(check(&[old, new, reported("b", 5, 6, 9)]).is_empty());
    }

    #[test]
    fn a_repeat_is_told_the_same() {
        let mut op = granted("a", 1, 2, 7);
        op.again = op.told.clone();
        assert!(check(std::slice::from_ref(&op)).is_empty());
        op.again = Some(Told::Nothing);
        assert_eq!(check(&[op]).len(), 1);
    }
}
