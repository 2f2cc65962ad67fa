//! The state machine as nodes run it here: the production queue, watched, and in mutants wrapped.

use std::sync::{Arc, Weak};

use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::machine::{ApplyError, Machine, Proposer, StampError};
use maillage_consensus::order::Consent;
use maillage_consensus::transaction::Transaction;
use maillage_consensus::{Outcome, Queue};
use maillage_host::UnixMillis;
use maillage_host::engine::Reader;

use crate::cluster::Cluster;
use crate::history::History;
use crate::invariants::giving::Before;
use crate::invariants::time::Time;
use crate::invariants::{Watch, audit, purges};
use crate::mutant::{Mutant, Mutated};
use crate::witness;
use crate::world::World;

/// The machine that the node of `slot` runs.
pub(crate) fn of(cluster: &Arc<Cluster>, slot: u32) -> Arc<dyn Machine> {
    let inner: Arc<dyn Machine> = match cluster.plan.mutant {
        Some(mutant) if Mutated::is_of(mutant) => Arc::new(Mutated::new(mutant, slot)),
        _ => Arc::new(Queue),
    };
    let (world, history) = (Arc::clone(&cluster.world), Arc::clone(&cluster.history));
    let (watch, understands) = (Arc::clone(&cluster.watch), cluster.understands(slot));
    let mutant = cluster.plan.mutant;
    let time = Time::new(Arc::clone(&world));
    let cluster = Arc::downgrade(cluster);
    Arc::new(Watched { inner, slot, world, history, watch, time, mutant, understands, cluster })
}

/// Tells the history what no client asks for: a leader that ends a silent site's session, an outbox that
/// sends. Sees that every command that ran is in the audit trail, that none comes to a version that has no word
/// for it, and that stamps go on.
struct Watched {
    inner: Arc<dyn Machine>,
    slot: u32,
    world: Arc<World>,
    history: Arc<History>,
    watch: Arc<Watch>,
    time: Time,
    mutant: Option<Mutant>,
    /// The newest format that the node's version understands.
    understands: u8,
    cluster: Weak<Cluster>,
}

fn expiry(envelope: &Envelope) -> Option<(u64, u64)> {
    match envelope.command {
        Command::ExpireSession { site, session } => Some((site.0, session)),
        _ => None,
    }
}

impl Watched {
    fn see(&self, envelope: &Envelope, index: u64, outcome: &[u8], is_repeat: bool) {
        let needs = envelope.command.format();
        if needs > self.understands {
            let detail = format!("a command of format {needs} at {index} came to a node of {}", self.understands);
            self.world.violation("format", detail);
        }
        let Some(outcome) = Outcome::decode(outcome).ok().filter(|_| !is_repeat) else { return };
        if let (Command::BreakGlass { exam, .. }, Outcome::GlassMended { second_read: true, report, .. }) =
            (&envelope.command, &outcome)
        {
            self.watch.outbox.second_read(exam.0, *report, index);
        }
        match (&envelope.command, &outcome) {
            (Command::Order { order, .. }, Outcome::ExamAdded { exam, .. }) if order.consent == Consent::Refused => {
                self.watch.course.confined(exam.0);
            }
            (_, Outcome::Claimed(grant)) => self.watch.course.granted(grant.exam.0, envelope.site.0),
            _ => {}
        }
        if let (Command::RaiseFormat { .. }, Outcome::Done) = (&envelope.command, &outcome) {
            self.world.sometimes("the mesh's format was raised under way");
        }
        self.watch.prefetch.applied(self.world.owner(self.slot), &envelope.command, &outcome);
        if let Some(cluster) = self.cluster.upgrade() {
            self.watch.gateway.applied(&cluster, index, &envelope.command, &outcome);
        }
        self.watch.contracts.applied(index, envelope, &outcome);
        witness::applied(&self.history, envelope, &outcome, index);
    }
}

impl Machine for Watched {
    fn stamp(
        &self,
        state: &dyn Reader,
        command: &[u8],
        from: Proposer,
        now: UnixMillis,
    ) -> Result<Vec<u8>, StampError> {
        let asked = Envelope::decode(command).ok();
        if let Some((site, session)) = asked.as_ref().and_then(expiry) {
            if self.mutant == Some(Mutant::SessionsNeverEnd) {
                return Err(StampError::Invalid("no session ends".to_owned()));
            }
            self.history.expiry(site, session);
        }
        if self.mutant == Some(Mutant::RetentionNever)
            && asked.is_some_and(|asked| purges::ends_retention_of(&asked.command).is_some())
        {
            return Err(StampError::Invalid("no retention ends".to_owned()));
        }
        if let Ok(Some(state)) = Queue.time(state) {
            self.time.stamped(self.slot, state, now);
        }
        let stamped = self.inner.stamp(state, command, from, now)?;
        if let Ok(envelope) = Envelope::decode(&stamped) {
            witness::stamped(&self.history, &envelope);
        }
        Ok(stamped)
    }

    fn time(&self, state: &dyn Reader) -> Result<Option<UnixMillis>, ApplyError> {
        self.inner.time(state)
    }

    fn apply(&self, transaction: &mut Transaction<'_>, index: u64, command: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let envelope = Envelope::decode(command).ok();
        let is_repeat = envelope.as_ref().is_some_and(|envelope| audit::is_repeat(transaction, envelope));
        let fresh = envelope.as_ref().filter(|_| !is_repeat);
        let before = fresh.and_then(|envelope| Before::of(transaction, envelope));
        let over = fresh.and_then(|envelope| purges::Before::of(transaction, envelope));
        let outcome = self.inner.apply(transaction, index, command)?;
        if let Some(envelope) = &envelope {
            self.see(envelope, index, &outcome, is_repeat);
            if let Some(before) = before
                && let (Some(cluster), Ok(outcome)) = (self.cluster.upgrade(), Outcome::decode(&outcome))
            {
                self.watch.giving.applied(&cluster, index, envelope, before, &outcome);
            }
            if let Some(over) = over
                && let Ok(outcome) = Outcome::decode(&outcome)
            {
                self.watch.purges.applied(index, &over, &outcome);
            }
        }
        if !is_repeat && audit::has_begun(transaction) && !audit::has_entry(transaction, index) {
            self.world.violation("audit", format!("the command at {index} ran and is not in the trail"));
        }
        if let Some((site, session)) = envelope.as_ref().and_then(expiry) {
            self.history.expired(site, session);
        }
        Ok(outcome)
    }
}
