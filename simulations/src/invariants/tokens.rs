//! I2: a later grant has a greater token, and nothing accepts a smaller one.

use std::collections::BTreeMap;

use crate::history::{Act, History, Told};
use crate::world::World;

struct Grant {
    call: u64,
    answer: u64,
    exam: u64,
    token: u64,
}

/// Checks all grants and all that was accepted under them.
pub(crate) fn check_all(world: &World, history: &History) {
    let all = history.all();
    let mut grants = Vec::new();
    for (exam, operation) in &all {
        let told = match operation.act {
            Act::Claim { told, .. } | Act::TakeOver { told, .. } => told,
            _ => None,
        };
        if let (Some(exam), Some(answer), Some(Told::Granted { token })) = (exam, operation.answer, told) {
            grants.push(Grant { call: operation.call, answer, exam: *exam, token });
        }
    }
    rise(world, &mut grants);
    let mut by_exam: BTreeMap<u64, Vec<&Grant>> = BTreeMap::new();
    for grant in &grants {
        by_exam.entry(grant.exam).or_default().push(grant);
    }
    for (exam, operation) in &all {
        let (Some(exam), Act::Release { token, done: Some(true), .. } | Act::Complete { token, done: Some(true), .. }) =
            (exam, operation.act)
        else {
            continue;
        };
        let newer =
            by_exam.get(exam).into_iter().flatten().find(|grant| grant.token > token && grant.answer < operation.call);
        if let Some(newer) = newer {
            world.violation("I2", format!("exam {exam}: token {token} accepted after {} was granted", newer.token));
        }
    }
}

/// A grant asked for after another was answered has the greater token; no two are equal.
fn rise(world: &World, grants: &mut [Grant]) {
    grants.sort_by_key(|grant| grant.call);
    let mut answered: Vec<&Grant> = grants.iter().collect();
    answered.sort_by_key(|grant| grant.answer);
    let mut earlier = answered.iter().peekable();
    let mut greatest = 0;
    for grant in grants.iter() {
        while let Some(before) = earlier.next_if(|before| before.answer < grant.call) {
            greatest = greatest.max(before.token);
        }
        if grant.token <= greatest {
            let detail = format!("exam {}: token {} granted after {greatest}", grant.exam, grant.token);
            world.violation("I2", detail);
        }
    }
    let mut seen = BTreeMap::new();
    for grant in grants.iter() {
        if let Some(other) = seen.insert(grant.token, grant.exam) {
            world.violation("I2", format!("token {} granted for exams {other} and {}", grant.token, grant.exam));
        }
    }
}
