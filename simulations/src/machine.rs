//! The state machine as nodes run it here: the production queue, watched, and in mutants wrapped.

use std::sync::Arc;

use maillage_consensus::Queue;
use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::machine::{ApplyError, Machine, Proposer, StampError};
use maillage_consensus::transaction::Transaction;
use maillage_host::UnixMillis;
use maillage_host::engine::Reader;

use crate::cluster::Cluster;
use crate::history::History;
use crate::mutant::{Mutant, Mutated};

/// The machine that the node of `slot` runs.
pub(crate) fn of(cluster: &Arc<Cluster>, slot: u32) -> Arc<dyn Machine> {
    let inner: Arc<dyn Machine> = match cluster.plan.mutant {
        Some(mutant) if Mutated::is_of(mutant) => Arc::new(Mutated::new(mutant, slot)),
        _ => Arc::new(Queue),
    };
    Arc::new(Watched { inner, history: Arc::clone(&cluster.history), mutant: cluster.plan.mutant })
}

/// Tells the history what no client asks for: a leader that ends a silent site's session.
struct Watched {
    inner: Arc<dyn Machine>,
    history: Arc<History>,
    mutant: Option<Mutant>,
}

fn expiry(command: &[u8]) -> Option<(u64, u64)> {
    match Envelope::decode(command).ok()?.command {
        Command::ExpireSession { site, session } => Some((site.0, session)),
        _ => None,
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
        if let Some((site, session)) = expiry(command) {
            if self.mutant == Some(Mutant::SessionsNeverEnd) {
                return Err(StampError::Invalid("no session ends".to_owned()));
            }
            self.history.expiry(site, session);
        }
        self.inner.stamp(state, command, from, now)
    }

    fn time(&self, state: &dyn Reader) -> Result<Option<UnixMillis>, ApplyError> {
        self.inner.time(state)
    }

    fn apply(&self, transaction: &mut Transaction<'_>, index: u64, command: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let outcome = self.inner.apply(transaction, index, command)?;
        if let Some((site, session)) = expiry(command) {
            self.history.expired(site, session);
        }
        Ok(outcome)
    }
}
