//! The seam between Raft and the model: a machine applies bytes to a transaction.
//!
//! The Raft half never looks inside a command, and the model never hears of terms or votes.

use std::io;

use maillage_host::UnixMillis;
use maillage_host::engine::Reader;

use crate::transaction::Transaction;

/// A deterministic state machine. Given the same transaction content, index and command, every
/// replica must write the same bytes and return the same outcome: no clock, no randomness, no
/// environment, no `HashMap` order.
pub trait Machine: Send + Sync + 'static {
    /// Sets the time at which the leader accepts `command`, just before it is proposed. Bytes that
    /// are no valid command, or that `from` may not propose, are refused here, before they reach the
    /// log. `state` is the leader's own, which may be behind what is committed.
    ///
    /// # Errors
    /// [`StampError`].
    fn stamp(&self, state: &dyn Reader, command: &[u8], from: Proposer, now: UnixMillis)
    -> Result<Vec<u8>, StampError>;

    /// The time that a state has reached, if the machine keeps one. Stamps never fall behind it, so
    /// that time goes on under a leader whose wall clock is behind an earlier leader's.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn time(&self, _state: &dyn Reader) -> Result<Option<UnixMillis>, ApplyError> {
        Ok(None)
    }

    /// Applies a committed command and returns the encoded outcome. Refusals that every replica
    /// gives alike are outcomes, not errors.
    ///
    /// # Errors
    /// [`ApplyError`] stops the node: it can no longer be a replica.
    fn apply(&self, transaction: &mut Transaction<'_>, index: u64, command: &[u8]) -> Result<Vec<u8>, ApplyError>;
}

/// Why a command does not reach the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// It never will. The reason is fit for the client.
    #[error("{0}")]
    Invalid(String),
    /// Not as long as the state is what it is here: it may be behind, or the mesh may have to change first.
    #[error("not before the mesh has changed")]
    NotYet,
}

impl From<String> for StampError {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

/// The authenticated node that a command comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposer {
    /// Its id.
    pub node: u64,
    /// Whether it is the leader itself, rather than a node that forwarded to it.
    pub is_leader: bool,
}

/// Why a committed command could not be applied. Fatal for the node.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// This version of the software does not know the command: it must not guess, nor skip it.
    #[error("unknown command at index {index}: {detail}; this node's version is too old for the mesh")]
    Unknown {
        /// The command's log index.
        index: u64,
        /// What could not be read, without its content.
        detail: String,
    },
    /// The state that the command needs is unreadable or contradicts itself.
    #[error("state is corrupt: {0}")]
    Corrupt(String),
    /// The engine failed.
    #[error("state engine: {0}")]
    Io(#[from] io::Error),
}
