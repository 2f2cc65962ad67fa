//! Linearizable reads: the leader proves its leadership to a quorum and says which index a read must
//! have applied; the reader waits until it has, on its own state.

use std::time::Duration;

use openraft::ReadPolicy;
use tokio::time::{Instant, timeout_at};

use super::Inner;
use crate::raft::wire::{Failure, Frame};

/// Between two attempts, when no change of leader comes first.
const RETRY: Duration = Duration::from_millis(50);
/// How long one attempt may take: a leader that lost its quorum says so after its lease.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Why a linearizable read was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No quorum can be reached.
    #[error("no quorum of voters can be reached")]
    NoQuorum,
    /// The state did not reach the read's index in time.
    #[error("the local state did not catch up in time")]
    Timeout,
    /// This node stopped being a replica.
    #[error("this node halted: {0}")]
    Halted(String),
}

impl Inner {
    pub(super) async fn linearize(&self, deadline: Duration) -> Result<u64, ReadError> {
        let start = Instant::now();
        let end = start + deadline;
        loop {
            if let Some(reason) = self.stopped() {
                return Err(ReadError::Halted(reason));
            }
            if Instant::now() >= end || self.without_quorum(start) {
                return Err(ReadError::NoQuorum);
            }
            let index = match self.leader() {
                None => None,
                Some(leader) if leader == self.node_id() => self.read_index(end).await,
                Some(leader) => self.ask_read_index(leader, end).await,
            };
            if let Some(index) = index {
                return self.wait_applied(index, end).await;
            }
            self.leader_changes(RETRY.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// As leader: the index that a read beginning now must have applied, once a quorum confirmed the
    /// leadership in a round begun after now.
    async fn read_index(&self, end: Instant) -> Option<u64> {
        let confirmed = timeout_at(end, self.raft.get_read_log_id(ReadPolicy::ReadIndex)).await;
        let (read, _applied) = confirmed.ok()?.ok()?;
        Some(read.index())
    }

    async fn ask_read_index(&self, leader: u64, end: Instant) -> Option<u64> {
        let left = end.saturating_duration_since(Instant::now()).min(ATTEMPT);
        match self.dialer.call(leader, &Frame::ReadIndex(left), left).await {
            Ok(Frame::ReadAt(index)) => Some(index),
            _ => None,
        }
    }

    /// Serves another node's question.
    pub(crate) async fn read_index_for(&self, end: Instant) -> Frame {
        match self.leader() {
            Some(leader) if leader == self.node_id() => match self.read_index(end).await {
                Some(index) => Frame::ReadAt(index),
                None => Frame::Failed(Failure::NotProposed),
            },
            other => Frame::NotLeader(other),
        }
    }

    pub(super) async fn wait_applied(&self, index: u64, end: Instant) -> Result<u64, ReadError> {
        let mut changes = self.view.changes();
        let mut halt = self.halt.watch();
        let applied = async {
            tokio::select! {
                applied = changes.wait_for(|applied| *applied >= index) => applied.ok().map(|applied| *applied),
                _ = halt.wait_for(Option::is_some) => None,
                () = self.stop.cancelled() => None,
            }
        };
        match timeout_at(end, applied).await {
            Ok(Some(applied)) => Ok(applied),
            Ok(None) => Err(ReadError::Halted(self.halted_because("it stopped"))),
            Err(_) => Err(ReadError::Timeout),
        }
    }
}
