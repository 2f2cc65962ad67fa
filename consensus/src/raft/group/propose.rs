//! Bringing a command to the leader, and its outcome back.
//!
//! The one thing to get right is what is known when something fails: a command that cannot have
//! reached a log is reported so, and everything else stays "perhaps" until an answer is certain.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maillage_host::UnixMillis;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResponse;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Inner;
use crate::machine::{Proposer, StampError};
use crate::raft::MAX_COMMAND;
use crate::raft::client::{answer, is_refusal};
use crate::raft::types::{LeaderId, Payload, TypeConfig};
use crate::raft::wire::{Failure, Frame};

/// KiB of commands that a leader has under way at most: they wait in memory until applied.
pub(super) const UNDER_WAY_KIB: usize = 64 << 10;
/// Bytes that a stamp may add to a command.
const STAMP_ROOM: usize = 4 << 10;
/// Without a quorum for this long, and after as long a wait, a proposal is refused: within 2 s.
const REFUSE_AFTER: Duration = Duration::from_millis(1800);
/// Without a quorum for this long, a proposal is refused at once.
const GONE_AFTER: Duration = Duration::from_secs(10);
/// Between two attempts, when no change of leader comes first.
const RETRY: Duration = Duration::from_millis(50);
/// How long reaching the leader may take; less than [`REFUSE_AFTER`], which would otherwise be late.
const OPEN_LIMIT: Duration = Duration::from_secs(1);

/// A committed and applied command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its index in the log.
    pub index: u64,
    /// What the machine answered.
    pub outcome: Bytes,
}

/// Why a command was not committed, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No quorum can be reached. The command was **not** proposed.
    #[error("no quorum of voters can be reached")]
    NoQuorum,
    /// This node does not lead in the term asked for. The command was **not** proposed.
    #[error("this node is not the leader of that term")]
    NotLeader,
    /// Too many proposals are under way. The command was **not** proposed.
    #[error("too many proposals are under way")]
    Busy,
    /// The deadline passed after the command may have been proposed: it may yet be committed.
    #[error("the command's fate is unknown: it may yet be committed")]
    Unknown,
    /// The machine says these bytes are no valid command. It was **not** proposed.
    #[error("invalid command: {0}")]
    Invalid(String),
    /// The command is longer than [`MAX_COMMAND`]. It was **not** proposed.
    #[error("command of {0} bytes is too large")]
    TooLarge(usize),
    /// This node stopped being a replica; the command may or may not have been proposed.
    #[error("this node halted: {0}")]
    Halted(String),
}

/// What one attempt taught.
enum Attempt {
    Committed(Committed),
    /// Certainly in no log.
    NotProposed,
    /// As before, because the leader has enough to do.
    Busy,
    /// Perhaps in a log.
    Unknown,
    Invalid(String),
}

impl Inner {
    pub(super) async fn propose(&self, command: Bytes, deadline: Duration) -> Result<Committed, ProposeError> {
        if command.len() > MAX_COMMAND {
            return Err(ProposeError::TooLarge(command.len()));
        }
        let start = Instant::now();
        let end = start + deadline;
        // Whether any attempt may have put the command in a log.
        let mut perhaps = false;
        let mut busy = false;
        loop {
            if let Some(reason) = self.stopped() {
                return Err(ProposeError::Halted(reason));
            }
            if Instant::now() >= end {
                return Err(match (perhaps, busy) {
                    (true, _) => ProposeError::Unknown,
                    (false, true) => ProposeError::Busy,
                    (false, false) => ProposeError::NoQuorum,
                });
            }
            if !perhaps && self.without_quorum(start) {
                return Err(ProposeError::NoQuorum);
            }
            let attempt = match self.leader() {
                None => Attempt::NotProposed,
                Some(leader) if leader == self.node_id() => {
                    self.propose_here(&command, self.node_id(), end, None).await
                }
                Some(leader) => self.forward(leader, &command, end).await,
            };
            busy = matches!(attempt, Attempt::Busy);
            match attempt {
                Attempt::Committed(committed) => return Ok(committed),
                // An earlier attempt passed the same check: this answer does not undo it.
                Attempt::Invalid(_) if perhaps => return Err(ProposeError::Unknown),
                Attempt::Invalid(reason) => return Err(ProposeError::Invalid(reason)),
                Attempt::Unknown => perhaps = true,
                Attempt::NotProposed | Attempt::Busy => {}
            }
            self.leader_changes(RETRY.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    pub(super) async fn propose_in_term(
        &self,
        term: u64,
        command: Bytes,
        deadline: Duration,
    ) -> Result<Committed, ProposeError> {
        if command.len() > MAX_COMMAND {
            return Err(ProposeError::TooLarge(command.len()));
        }
        if let Some(reason) = self.stopped() {
            return Err(ProposeError::Halted(reason));
        }
        let leader = self.leadership().filter(|leader| leader.term == term).ok_or(ProposeError::NotLeader)?;
        match self.propose_here(&command, self.node_id(), Instant::now() + deadline, Some(leader)).await {
            Attempt::Committed(committed) => Ok(committed),
            Attempt::Invalid(reason) => Err(ProposeError::Invalid(reason)),
            Attempt::Unknown => Err(ProposeError::Unknown),
            Attempt::Busy => Err(ProposeError::Busy),
            Attempt::NotProposed if self.without_quorum(self.started) => Err(ProposeError::NoQuorum),
            Attempt::NotProposed => Err(ProposeError::NotLeader),
        }
    }

    /// Serves the proposal of the authenticated node `from`; never forwards it further.
    pub(crate) async fn propose_for(&self, from: u64, command: Bytes, end: Instant) -> Frame {
        if command.len() > MAX_COMMAND {
            return Frame::Failed(Failure::Invalid("the command is too large".to_owned()));
        }
        match self.leader() {
            Some(leader) if leader == self.node_id() => {}
            other => return Frame::NotLeader(other),
        }
        match self.propose_here(&command, from, end, None).await {
            Attempt::Committed(committed) => Frame::Committed(committed.index, committed.outcome),
            Attempt::NotProposed | Attempt::Busy => Frame::Failed(Failure::NotProposed),
            Attempt::Unknown => Frame::Failed(Failure::Unknown),
            Attempt::Invalid(reason) => Frame::Failed(Failure::Invalid(reason)),
        }
    }

    /// Proposes as the leader that this node believes to be; `only_as` pins the leadership.
    async fn propose_here(&self, command: &Bytes, from: u64, end: Instant, only_as: Option<LeaderId>) -> Attempt {
        let kib = u32::try_from(command.len() / 1024 + 1).unwrap_or(u32::MAX);
        let waited = timeout_at(end, Arc::clone(&self.under_way).acquire_many_owned(kib)).await;
        let Ok(Ok(_permit)) = waited else { return Attempt::Busy };
        let proposer = Proposer { node: from, is_leader: from == self.node_id() };
        let stamped = match self.machine.stamp(&*self.view.engine(), command, proposer, self.now()) {
            Ok(stamped) if stamped.len() <= MAX_COMMAND + STAMP_ROOM => Payload(stamped.into()),
            Ok(_) => return Attempt::Invalid("the stamped command is too large".to_owned()),
            Err(StampError::Invalid(reason)) => return Attempt::Invalid(reason),
            Err(StampError::NotYet) => return Attempt::NotProposed,
        };
        let written = async {
            match only_as {
                None => self.raft.client_write(stamped).await,
                Some(leader) => self.write_as(stamped, leader).await,
            }
        };
        match timeout_at(end, written).await {
            Ok(Ok(response)) => {
                Attempt::Committed(Committed { index: response.log_id.index, outcome: response.data.0 })
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Attempt::NotProposed,
            // Discarded entries, and a node that is stopping: another leader may have them.
            Ok(Err(_)) | Err(_) => Attempt::Unknown,
        }
    }

    /// The time of a stamp: this node's wall clock, or the state's where that is ahead.
    fn now(&self) -> UnixMillis {
        let wall = self.clock.now();
        match self.machine.time(&*self.view.engine()) {
            Ok(Some(state)) => wall.max(self.state_clock.now(state)),
            Ok(None) => wall,
            Err(error) => {
                tracing::error!(%error, "read the state's clock");
                wall
            }
        }
    }

    async fn write_as(
        &self,
        command: Payload,
        leader: LeaderId,
    ) -> Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>> {
        let (responder, answer) = ProgressResponder::complete_only();
        self.raft.write(command).with_leader(leader).responder(responder).await.map_err(RaftError::Fatal)?;
        match answer.await {
            Ok(result) => result.map_err(RaftError::APIError),
            Err(_) => Err(RaftError::Fatal(openraft::errors::Fatal::Stopped)),
        }
    }

    async fn forward(&self, leader: u64, command: &Bytes, end: Instant) -> Attempt {
        let left = end.saturating_duration_since(Instant::now());
        let Ok((mut reader, mut writer)) = self.dialer.open(leader, left.min(OPEN_LIMIT)).await else {
            return Attempt::NotProposed;
        };
        let exchange = async {
            writer.send(&Frame::Propose(left, command.clone())).await?;
            answer(&mut reader).await
        };
        let answered = tokio::select! {
            answered = timeout_at(end, exchange) => answered,
            // Another leader may answer sooner than this one's silence is noticed.
            () = self.leader_is_no_longer(leader) => return Attempt::Unknown,
        };
        match answered {
            Ok(Ok(Frame::Committed(index, outcome))) => Attempt::Committed(Committed { index, outcome }),
            Ok(Ok(Frame::NotLeader(_) | Frame::Failed(Failure::NotProposed))) => Attempt::NotProposed,
            Ok(Ok(Frame::Failed(Failure::Invalid(reason)))) => Attempt::Invalid(reason),
            // A stream that was refused at its hello carried no proposal.
            Ok(Err(error)) if is_refusal(&error) => Attempt::NotProposed,
            Ok(Ok(_) | Err(_)) | Err(_) => Attempt::Unknown,
        }
    }

    /// Whether what began at `start` must be refused because no quorum is in sight.
    pub(super) fn without_quorum(&self, start: Instant) -> bool {
        let silence = self.quorum_silence().unwrap_or_else(|| self.started.elapsed());
        silence >= GONE_AFTER || (silence >= REFUSE_AFTER && start.elapsed() >= REFUSE_AFTER)
    }

    /// Waits until the leader known here changes, at most `limit`.
    pub(super) async fn leader_changes(&self, limit: Duration) {
        let mut metrics = self.raft.server_metrics();
        // A fresh receiver counts what it finds as a change.
        metrics.borrow_and_update();
        if timeout(limit, metrics.changed()).await.is_ok_and(|changed| changed.is_err()) {
            // openraft has stopped; its last word would otherwise be heard again at once.
            sleep(limit).await;
        }
    }

    /// Returns once this node follows another leader than `leader`.
    async fn leader_is_no_longer(&self, leader: u64) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let known = metrics.borrow_watched().current_leader;
            if known.is_some_and(|known| known != leader) {
                return;
            }
            if metrics.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Why this node takes part no more, if so.
    pub(super) fn stopped(&self) -> Option<String> {
        if let Some(reason) = self.halt.reason() {
            return Some(reason);
        }
        if self.stop.is_cancelled() {
            return Some("it is shutting down".to_owned());
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.running_state.as_ref().err().map(ToString::to_string)
    }

    /// The reason to give when openraft says `otherwise`.
    pub(super) fn halted_because(&self, otherwise: &str) -> String {
        self.stopped().unwrap_or_else(|| otherwise.to_owned())
    }
}
