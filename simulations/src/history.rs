//! What clients asked and were told, exam by exam: the only witness that the black-box invariants
//! hear.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::wgl::Operation;
use crate::world::{World, lock};

/// A claim, named by the command that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Claimed {
    pub(crate) command: u128,
    pub(crate) user: u32,
    pub(crate) site: u64,
    /// Known only from the grant.
    pub(crate) session: Option<u64>,
}

/// What somebody who asked for an exam was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Granted {
        token: u64,
    },
    /// Somebody else has it.
    Held {
        user: u32,
        site: u64,
    },
    /// It is reported.
    Over,
}

/// What the mesh made of a break glass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mended {
    /// An ordinary claim.
    Holds,
    /// The exam's report.
    Reported,
    /// A second read, which changes nothing of who holds the exam.
    SecondRead,
}

/// What a linearizable read showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Waiting,
    Claimed { command: u128, user: u32, site: u64 },
    Reported,
}

/// One operation on one exam, with its answer if it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Claim {
        by: Claimed,
        told: Option<Told>,
    },
    Release {
        claim: u128,
        token: u64,
        done: Option<bool>,
    },
    Complete {
        claim: u128,
        token: u64,
        done: Option<bool>,
    },
    /// A claim of what somebody else holds.
    TakeOver {
        by: Claimed,
        told: Option<Told>,
    },
    Read(Shown),
    /// A site's outbox tells the mesh of an exam that was taken by break glass, and of its report if there is one.
    Glass {
        by: Claimed,
        reports: bool,
        told: Option<Mended>,
    },
    /// The leader ended a site's session.
    Expire {
        site: u64,
        session: u64,
    },
}

struct Record {
    exam: Option<u64>,
    operation: Operation<Act>,
}

#[derive(Default)]
struct Records {
    moment: u64,
    records: BTreeMap<u64, Record>,
    exams: Vec<u64>,
    /// The calls of sessions' ends, by site and session.
    expiries: BTreeMap<(u64, u64), u64>,
    /// The calls of commands that no client tells of, by command id.
    witnessed: BTreeMap<u128, u64>,
    /// The indexes at which such commands were decided.
    decided: BTreeSet<u64>,
    /// The command or transaction of each claim, and its session, by exam and token.
    claims: BTreeMap<(u64, u64), (u128, u64)>,
}

/// See the module.
pub(crate) struct History {
    world: Arc<World>,
    records: Mutex<Records>,
}

impl History {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, records: Mutex::default() }
    }

    /// An exam that was acknowledged.
    pub(crate) fn exam_added(&self, exam: u64) {
        let mut records = lock(&self.records);
        if !records.exams.contains(&exam) {
            records.exams.push(exam);
        }
    }

    /// Exams acknowledged so far, oldest first.
    pub(crate) fn exams(&self) -> Vec<u64> {
        lock(&self.records).exams.clone()
    }

    /// An operation begins. `exam` is not known while the mesh is to choose it.
    pub(crate) fn call(&self, exam: Option<u64>, act: Act) -> u64 {
        let mut records = lock(&self.records);
        records.moment += 1;
        let call = records.moment;
        records.records.insert(call, Record { exam, operation: Operation { call, answer: None, act } });
        call
    }

    /// It was answered.
    pub(crate) fn answer(&self, call: u64, exam: u64, act: Act) {
        let mut records = lock(&self.records);
        records.moment += 1;
        let moment = records.moment;
        if let Some(record) = records.records.get_mut(&call) {
            record.exam = Some(exam);
            record.operation.answer = Some(moment);
            record.operation.act = act;
        }
        drop(records);
        self.world.event(0, format_args!("exam {exam}: {act:?}"));
    }

    /// It certainly had no effect.
    pub(crate) fn never(&self, call: u64) {
        lock(&self.records).records.remove(&call);
    }

    /// A leader is about to propose the end of a session; the first time counts.
    pub(crate) fn expiry(&self, site: u64, session: u64) {
        let known = lock(&self.records).expiries.contains_key(&(site, session));
        if !known {
            let call = self.call(None, Act::Expire { site, session });
            lock(&self.records).expiries.insert((site, session), call);
        }
    }

    /// A replica applied it; the first to do so counts.
    pub(crate) fn expired(&self, site: u64, session: u64) {
        let mut records = lock(&self.records);
        let Some(call) = records.expiries.get(&(site, session)).copied() else { return };
        records.moment += 1;
        let moment = records.moment;
        if let Some(record) = records.records.get_mut(&call) {
            record.operation.answer.get_or_insert(moment);
        }
    }

    /// A leader is about to propose a command that no client tells of; the first time counts.
    pub(crate) fn asked(&self, id: u128, exam: u64, act: Act) {
        let known = lock(&self.records).witnessed.contains_key(&id);
        if !known {
            let call = self.call(Some(exam), act);
            lock(&self.records).witnessed.insert(id, call);
        }
    }

    /// A replica applied it at `index`, with this answer, or to no effect; the first to do so counts.
    pub(crate) fn decided(&self, id: u128, exam: u64, index: u64, act: Option<Act>) {
        let call = {
            let mut records = lock(&self.records);
            if !records.decided.insert(index) {
                return;
            }
            let call = records.witnessed.get(&id).copied();
            if act.is_none() {
                // It may be asked again, and then have one.
                records.witnessed.remove(&id);
            }
            call
        };
        match (call, act) {
            (Some(call), Some(act)) => self.answer(call, exam, act),
            (Some(call), None) => self.never(call),
            (None, _) => {}
        }
    }

    /// A claim was granted.
    pub(crate) fn granted(&self, exam: u64, token: u64, claim: u128, session: u64) {
        lock(&self.records).claims.insert((exam, token), (claim, session));
    }

    /// The command or transaction of a claim; of none when the token was never granted.
    pub(crate) fn claim_of(&self, exam: u64, token: u64) -> u128 {
        lock(&self.records).claims.get(&(exam, token)).map_or(0, |(claim, _)| *claim)
    }

    /// The session that a claim ends with; none when the token was never granted, or is bound to none.
    pub(crate) fn session_of(&self, exam: u64, token: u64) -> Option<u64> {
        let records = lock(&self.records);
        records.claims.get(&(exam, token)).map(|(_, session)| *session).filter(|session| *session > 0)
    }

    /// Every operation, in the order of calls.
    pub(crate) fn all(&self) -> Vec<(Option<u64>, Operation<Act>)> {
        let records = lock(&self.records);
        records.records.values().map(|record| (record.exam, record.operation.clone())).collect()
    }

    /// The operations that may have touched each exam.
    pub(crate) fn by_exam(&self) -> BTreeMap<u64, Vec<Operation<Act>>> {
        let all = self.all();
        let mut exams: BTreeMap<u64, Vec<Operation<Act>>> = BTreeMap::new();
        for (exam, operation) in &all {
            if let Some(exam) = exam {
                exams.entry(*exam).or_default().push(operation.clone());
            }
        }
        for history in exams.values_mut() {
            let Involved { users, commands, mut sites } = involved(history);
            let take_overs = history.iter().filter(|operation| matches!(operation.act, Act::TakeOver { .. }));
            let taken_by = take_overs.map(|operation| operation.answer.unwrap_or(u64::MAX)).max();
            let anywhere = all.iter().filter(|(exam, _)| exam.is_none()).map(|(_, operation)| operation);
            for operation in anywhere.clone() {
                // Where a claim of an unknown exam went shows by its user, or by what ended it. Whoever takes
                // over is not told from whom: it may have been any of them.
                let taken = taken_by.is_some_and(|answer| operation.call < answer);
                if let Act::Claim { by, .. } = operation.act
                    && (taken || users.contains(&by.user) || commands.contains(&by.command))
                {
                    sites.insert(by.site);
                    history.push(operation.clone());
                }
            }
            let ends = |operation: &&Operation<Act>| matches!(operation.act, Act::Expire { site, .. } if sites.contains(&site));
            history.extend(anywhere.filter(ends).cloned());
        }
        exams
    }
}

/// Who holds or may hold an exam: users, claims by their command, and the sites where claims of it may
/// have ended.
#[derive(Default)]
struct Involved {
    users: BTreeSet<u32>,
    commands: BTreeSet<u128>,
    sites: BTreeSet<u64>,
}

fn involved(history: &[Operation<Act>]) -> Involved {
    let mut involved = Involved::default();
    for operation in history {
        match operation.act {
            Act::Claim { by, told: None | Some(Told::Granted { .. }) }
            | Act::TakeOver { by, told: None | Some(Told::Granted { .. }) } => {
                involved.sites.insert(by.site);
            }
            Act::Glass { by, .. } => {
                involved.sites.insert(by.site);
            }
            Act::Claim { told: Some(Told::Held { user, site }), .. } | Act::Read(Shown::Claimed { user, site, .. }) => {
                involved.users.insert(user);
                involved.sites.insert(site);
            }
            Act::Release { claim, .. } | Act::Complete { claim, .. } => {
                involved.commands.insert(claim);
            }
            _ => {}
        }
    }
    involved
}
