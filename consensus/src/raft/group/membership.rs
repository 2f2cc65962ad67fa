//! Who is in the group, and who votes.
//!
//! Changes are made by the leader, one at a time: openraft loses track when two overlap. Each runs in
//! a task of its own, because a joint change has two steps, and a caller that goes away between them
//! must not leave the group with two quorums.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, ForwardReason, InitializeError, PreconditionFailed, RaftError,
};
use openraft::{ChangeMembers, EmptyNode, Precondition};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Inner;
use crate::raft::types::{LeaderId, StoredMembership, TypeConfig};

/// How long a caller waits for a change.
const LIMIT: Duration = Duration::from_secs(30);

/// Why a change of membership was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes the membership.
    #[error("this node is not the leader (the leader is {leader:?})")]
    NotLeader {
        /// The leader this node knows of.
        leader: Option<u64>,
    },
    /// Another change is not finished.
    #[error("another change of membership is under way")]
    InProgress,
    /// The change makes no sense.
    #[error("change of membership refused: {0}")]
    Refused(String),
    /// It did not finish in time; it may yet.
    #[error("the change of membership did not finish in time")]
    Timeout,
    /// This node stopped being a replica.
    #[error("this node halted: {0}")]
    Halted(String),
}

/// How long a change waits for the one before it, of this or an earlier leader, to be committed.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Between two attempts of a leader that waits for its lease.
const LEASE_RETRY: Duration = Duration::from_millis(20);

enum Change {
    AddLearner(u64),
    SetVoters {
        voters: BTreeSet<u64>,
        expected: Option<BTreeSet<u64>>,
    },
    Remove(u64),
    /// Finish a joint change that was left half done.
    Flatten,
}

pub(super) async fn add_learner(inner: &Arc<Inner>, id: u64) -> Result<(), MembershipError> {
    change(inner, Change::AddLearner(id)).await
}

pub(super) async fn set_voters(
    inner: &Arc<Inner>,
    voters: BTreeSet<u64>,
    expected: Option<BTreeSet<u64>>,
) -> Result<(), MembershipError> {
    change(inner, Change::SetVoters { voters, expected }).await
}

pub(super) async fn remove(inner: &Arc<Inner>, id: u64) -> Result<(), MembershipError> {
    change(inner, Change::Remove(id)).await
}

/// As leader, finishes a joint change that an earlier leader left half done, if there is one.
pub(super) async fn flatten(inner: &Arc<Inner>) {
    if inner.leadership().is_none() || !inner.is_joint() {
        return;
    }
    match change(inner, Change::Flatten).await {
        Ok(()) | Err(MembershipError::InProgress) => {}
        Err(error) => tracing::warn!(%error, "a joint membership was not finished"),
    }
}

async fn change(inner: &Arc<Inner>, change: Change) -> Result<(), MembershipError> {
    let Ok(permit) = Arc::clone(&inner.changing).try_acquire_owned() else { return Err(MembershipError::InProgress) };
    let worker = Arc::clone(inner);
    let task = maillage_host::spawn(async move {
        let _permit = permit;
        worker.run(change).await
    });
    match timeout(LIMIT, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(MembershipError::Halted(inner.halted_because("a task failed"))),
        Err(_) => Err(MembershipError::Timeout),
    }
}

impl Inner {
    fn membership(&self) -> Arc<StoredMembership> {
        Arc::clone(&self.raft.metrics().borrow_watched().membership_config)
    }

    fn is_joint(&self) -> bool {
        self.membership().get_joint_config().len() > 1
    }

    async fn run(&self, change: Change) -> Result<(), MembershipError> {
        if let Some(reason) = self.stopped() {
            return Err(MembershipError::Halted(reason));
        }
        let Some(leader) = self.leadership() else {
            return Err(MembershipError::NotLeader { leader: self.leader() });
        };
        self.settle().await?;
        if self.is_joint() {
            // Adding nobody turns a joint configuration into its newer half.
            self.apply_change(leader, ChangeMembers::AddVoterIds(BTreeSet::new())).await?;
        }
        match change {
            Change::Flatten => Ok(()),
            Change::AddLearner(id) => {
                if self.membership().get_node(&id).is_some() {
                    return Ok(());
                }
                self.apply_change(leader, ChangeMembers::AddNodes([(id, EmptyNode {})].into())).await
            }
            Change::SetVoters { voters, expected } => self.change_voters(leader, voters, expected).await,
            Change::Remove(id) => {
                let membership = self.membership();
                let mut voters: BTreeSet<u64> = membership.voter_ids().collect();
                if membership.get_node(&id).is_none() {
                    return Ok(());
                }
                if id == self.node_id() {
                    return Err(MembershipError::Refused("the leader must hand over before it is removed".to_owned()));
                }
                if voters.remove(&id) {
                    self.change_voters(leader, voters, None).await?;
                }
                self.apply_change(leader, ChangeMembers::RemoveNodes([id].into())).await
            }
        }
    }

    /// Waits until the membership in force is committed: openraft refuses to change it before.
    async fn settle(&self) -> Result<(), MembershipError> {
        let end = Instant::now() + SETTLE_LIMIT;
        let mut metrics = self.raft.server_metrics();
        loop {
            if let Some(reason) = self.stopped() {
                return Err(MembershipError::Halted(reason));
            }
            let settled = {
                let metrics = metrics.borrow_watched();
                metrics.membership_config.log_id() == metrics.committed_membership_config.log_id()
            };
            if settled {
                return Ok(());
            }
            match timeout_at(end, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(MembershipError::Halted(self.halted_because("raft stopped"))),
                Err(_) => return Err(MembershipError::InProgress),
            }
        }
    }

    async fn change_voters(
        &self,
        leader: LeaderId,
        voters: BTreeSet<u64>,
        expected: Option<BTreeSet<u64>>,
    ) -> Result<(), MembershipError> {
        let membership = self.membership();
        let current: BTreeSet<u64> = membership.voter_ids().collect();
        if voters.is_empty() {
            return Err(MembershipError::Refused("a group has at least one voter".to_owned()));
        }
        if expected.is_some_and(|expected| expected != current) {
            return Err(MembershipError::Refused("the voters are not those expected".to_owned()));
        }
        if let Some(stranger) = voters.iter().find(|id| membership.get_node(id).is_none()) {
            return Err(MembershipError::Refused(format!("node {stranger} is not a learner")));
        }
        if voters == current {
            return Ok(());
        }
        self.apply_change(leader, ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// One change, all of it in the leadership `leader`: between the look at the membership and the
    /// change, nobody else can then have changed it.
    async fn apply_change(
        &self,
        leader: LeaderId,
        change: ChangeMembers<u64, EmptyNode>,
    ) -> Result<(), MembershipError> {
        let end = Instant::now() + SETTLE_LIMIT;
        loop {
            let preconditions = [
                Precondition::CommittedLeaderId { committed_leader_id: leader },
                Precondition::LastMembershipLogId { last_membership_log_id: *self.membership().log_id() },
            ];
            match self.raft.change_membership_if(change.clone(), true, preconditions).await {
                Ok(_) => return Ok(()),
                // A leader that no quorum has acknowledged yet, or lately.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))
                    if forward.reason == ForwardReason::LeaseExpired && Instant::now() < end => {}
                Err(RaftError::APIError(error)) => return Err(self.refusal(error)),
                Err(RaftError::Fatal(fatal)) => {
                    return Err(MembershipError::Halted(self.halted_because(&fatal.to_string())));
                }
            }
            sleep(LEASE_RETRY).await;
        }
    }

    fn refusal(&self, error: ClientWriteError<TypeConfig>) -> MembershipError {
        match error {
            ClientWriteError::ForwardToLeader(forward) => MembershipError::NotLeader { leader: forward.leader_id },
            ClientWriteError::LogEntryDiscarded(_) => MembershipError::NotLeader { leader: self.leader() },
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                MembershipError::InProgress
            }
            ClientWriteError::PreconditionFailed(PreconditionFailed::CommittedLeaderIdMismatch { .. }) => {
                MembershipError::NotLeader { leader: self.leader() }
            }
            ClientWriteError::PreconditionFailed(_) => MembershipError::InProgress,
            ClientWriteError::ChangeMembershipError(error) => MembershipError::Refused(error.to_string()),
        }
    }

    pub(super) async fn initialize(&self) -> Result<(), MembershipError> {
        let founder = std::collections::BTreeMap::from([(self.node_id(), EmptyNode {})]);
        match self.raft.initialize(founder).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                return Err(MembershipError::Refused("this node has a log or a vote already".to_owned()));
            }
            Err(error) => return Err(MembershipError::Halted(self.halted_because(&error.to_string()))),
        }
        self.until_leader(self.node_id(), LIMIT).await?;
        self.settle().await
    }

    pub(super) async fn transfer_leader(&self, to: u64) -> Result<(), MembershipError> {
        if self.leadership().is_none() {
            return Err(MembershipError::NotLeader { leader: self.leader() });
        }
        if !self.membership().voter_ids().any(|voter| voter == to) {
            return Err(MembershipError::Refused(format!("node {to} is not a voter")));
        }
        if to == self.node_id() {
            return Ok(());
        }
        if let Err(fatal) = self.raft.trigger().transfer_leader(to).await {
            return Err(MembershipError::Halted(self.halted_because(&fatal.to_string())));
        }
        self.until_leader(to, self.timing.election_max * 4).await
    }

    async fn until_leader(&self, id: u64, limit: Duration) -> Result<(), MembershipError> {
        let end = Instant::now() + limit;
        while self.leader() != Some(id) || (id == self.node_id() && self.leadership().is_none()) {
            if let Some(reason) = self.stopped() {
                return Err(MembershipError::Halted(reason));
            }
            if Instant::now() >= end {
                return Err(MembershipError::Timeout);
            }
            self.leader_changes(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
