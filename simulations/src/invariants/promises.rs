//! I12: a node never forgets what it promised, seen on the wire.
//!
//! A granted vote and an acknowledged entry must be durable before they are said: after a crash the
//! node must still know a ballot at least as high, and hold its log up to what it acknowledged,
//! unless a later leader told it to let go of that. Black-box checks miss a forgotten vote nearly
//! always, because it takes a second candidate in the same term to do harm.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::disk::Ending;
use crate::net::{Ballot, Said, Seen};
use crate::rng::Rng;
use crate::world::{Owner, World, lock};

#[derive(Default)]
struct Promised {
    /// The highest ballot that an earlier life granted a vote to.
    before: Ballot,
    /// … and this life.
    now: Ballot,
    /// The furthest entry acknowledged, and to the leader of which ballot.
    acknowledged: Option<(Ballot, u64)>,
}

/// See the module.
pub(crate) struct Promises {
    world: Arc<World>,
    by_slot: Mutex<BTreeMap<u32, Promised>>,
    /// Draws which voters lose power right after they granted a vote, while that is a fault.
    crashing: Mutex<Option<Rng>>,
}

/// The share of voters that lose power right after they granted a vote, while that is a fault.
const CRASH_AFTER_VOTE: f64 = 0.3;

impl Promises {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, by_slot: Mutex::default(), crashing: Mutex::default() }
    }

    /// From now on some voters lose power once their vote is on its way; none with `None`.
    pub(crate) fn crash_voters(&self, rng: Option<Rng>) {
        *lock(&self.crashing) = rng;
    }

    /// A frame was sent, or arrived.
    pub(crate) fn saw(&self, seen: &Seen) {
        match (seen.said, seen.arrived) {
            (Said::Votes(ballot, granted), false) => self.votes(seen.from, ballot, granted),
            (Said::Acknowledges(leader, index), false) => self.acknowledges(seen.from, leader, index),
            (Said::Appends(leader) | Said::SendsSnapshot(leader), true) => self.leads(seen.to, leader),
            (Said::Conflicts, true) => self.world.sometimes("a follower's log conflicted"),
            (Said::KnowsHigher(_), true) => self.world.sometimes("a leader of the past was told so"),
            (Said::Commits, true) => self.world.sometimes("a forwarded command was committed"),
            _ => {}
        }
        if let (Said::SendsSnapshot(_), true) = (seen.said, seen.arrived) {
            self.world.sometimes("a snapshot was sent");
        }
    }

    fn votes(&self, voter: Owner, ballot: Ballot, granted: bool) {
        let mut by_slot = lock(&self.by_slot);
        let promised = by_slot.entry(voter.slot).or_default();
        let before = promised.before;
        if granted {
            promised.now = promised.now.max(ballot);
        }
        drop(by_slot);
        if ballot < before {
            let detail = format!("{voter:?} says ballot {ballot:?} after it granted {before:?} in an earlier life");
            self.world.violation("I12", detail);
        }
        if granted {
            self.world.sometimes("a vote was granted");
            if lock(&self.crashing).as_mut().is_some_and(|rng| rng.chance(CRASH_AFTER_VOTE)) {
                self.world.request_crash(voter.slot, "right after a vote");
            }
        }
    }

    fn acknowledges(&self, follower: Owner, leader: Ballot, index: u64) {
        let mut by_slot = lock(&self.by_slot);
        let acknowledged = &mut by_slot.entry(follower.slot).or_default().acknowledged;
        *acknowledged = match *acknowledged {
            Some((of, furthest)) if of == leader => Some((leader, furthest.max(index))),
            // A late answer to a leader of the past.
            Some((of, furthest)) if of > leader => Some((of, furthest)),
            _ => Some((leader, index)),
        };
    }

    /// A leader's request arrived: one of a later ballot may shorten the log.
    fn leads(&self, follower: Owner, leader: Ballot) {
        let mut by_slot = lock(&self.by_slot);
        let acknowledged = &mut by_slot.entry(follower.slot).or_default().acknowledged;
        if acknowledged.is_some_and(|(of, _)| of < leader) {
            *acknowledged = None;
        }
    }

    /// A new node, which promised nothing, takes the place of the one in `slot`.
    pub(crate) fn forget(&self, slot: u32) {
        lock(&self.by_slot).remove(&slot);
    }

    pub(crate) fn life_ends(&self, owner: Owner, ending: Ending) {
        let mut by_slot = lock(&self.by_slot);
        let promised = by_slot.entry(owner.slot).or_default();
        promised.before = promised.before.max(promised.now);
        let held = promised.acknowledged.is_some();
        drop(by_slot);
        if held && ending == Ending::PowerCut {
            self.world.sometimes("a node that had acknowledged entries lost power");
        }
    }

    /// A life begins with this term and this as the last entry of its log; neither of a node that has no log.
    pub(crate) fn life_begins(&self, owner: Owner, term: Option<u64>, last_log: Option<u64>) {
        let (before, acknowledged) = {
            let mut by_slot = lock(&self.by_slot);
            let promised = by_slot.entry(owner.slot).or_default();
            (promised.before, promised.acknowledged)
        };
        if term.is_some_and(|term| term < before.0) {
            let detail = format!("{owner:?} begins in term {term:?}, but had granted {before:?}");
            self.world.violation("I12", detail);
        }
        if let Some((leader, index)) = acknowledged
            && last_log.unwrap_or(0) < index
        {
            let detail = format!(
                "{owner:?} begins with a log up to {last_log:?}, but had acknowledged {index} to the leader of {leader:?}"
            );
            self.world.violation("I12", detail);
        }
    }
}
