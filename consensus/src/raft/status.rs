//! What a node can say of its group, without asking anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What this node does in the group now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Orders the log.
    Leader,
    /// Votes, and follows a leader.
    Follower,
    /// Stands for election.
    Candidate,
    /// Receives the log without a vote; also a node that is in no group yet.
    #[default]
    Learner,
}

/// A node's view of the group at one moment. Ages are as of the last publication, at most a second ago.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupStatus {
    /// This node's role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it follows, itself included.
    pub leader: Option<u64>,
    /// Index of the last entry in its log.
    pub last_log: Option<u64>,
    /// Index of the last entry it knows to be committed.
    pub committed: Option<u64>,
    /// Index of the last entry applied here.
    pub applied: Option<u64>,
    /// Nodes with a vote, of both halves of a joint configuration.
    pub voters: Arc<BTreeSet<u64>>,
    /// Nodes without a vote.
    pub learners: Arc<BTreeSet<u64>>,
    /// Whether a change of voters is half done.
    pub joint: bool,
    /// On the leader: time since a quorum last acknowledged it. `None` elsewhere, or never.
    pub quorum_ack_age: Option<Duration>,
    /// On the leader: for each other node, how many entries it is behind; `None` when not known.
    pub lag: BTreeMap<u64, Option<u64>>,
    /// Index of the newest snapshot.
    pub snapshot: Option<u64>,
    /// Index up to which the log is purged.
    pub purged: Option<u64>,
    /// Why this node stopped being a replica, if it did: the process must end.
    pub fatal: Option<String>,
}

/// How fresh this node's copy of the state can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// Time since this node last heard a leader that a quorum acknowledged (on the leader: since the
    /// quorum's last acknowledgement). `None` when that never happened since the start.
    pub age: Option<Duration>,
}

/// How a node's wall clock stands to the leader's, by the exchange with the shortest round trip of the
/// last few (RFC 5905 section 8, with one stamp of the leader's, which answers at once).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockOffset {
    /// How far the node's clock is ahead of the leader's, in milliseconds.
    pub ahead_ms: i64,
    /// The round trip: the offset is wrong by at most half of it.
    pub round_trip: Duration,
}

/// What a node last said of itself to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// The highest format of commands that it understands.
    pub format: u8,
    /// How its clock stands to the leader's; `None` before its first measurement, and for ever from a
    /// node of the first version.
    pub clock: Option<ClockOffset>,
}
