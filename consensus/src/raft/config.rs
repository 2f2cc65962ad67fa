//! What a group is started with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use maillage_host::{Clock, Disk, EngineHome};

use super::links::Links;
use crate::machine::Machine;

/// Everything a [`Group`](super::Group) needs from its node.
pub struct GroupConfig {
    /// This node's id in the mesh. Comes from a log index, is never reused; a wiped disk is a new node.
    pub node_id: u64,
    /// The mesh's identity; streams and files of another mesh are refused.
    pub mesh_id: [u8; 32],
    /// The mesh's epoch, raised when a lost quorum was rebuilt; streams of another epoch are refused.
    pub epoch: u64,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// How often this node tells the leader that it is there. [`GroupConfig::KEEPALIVE`] unless a test needs less.
    pub keepalive: Duration,
    /// The highest format of commands that this node says it understands. What a format is, is the
    /// machine's business.
    pub format: u8,
    /// Applied entries between two snapshots.
    pub snapshot_every: u64,
    /// Entries kept in the log below a snapshot, for followers that are only a little behind.
    pub keep_log: u64,
    /// Where the log and the snapshots live, under `raft/`.
    pub disk: Disk,
    /// Where the applied state lives.
    pub home: Arc<dyn EngineHome>,
    /// What commands mean.
    pub machine: Arc<dyn Machine>,
    /// How other nodes are reached.
    pub links: Arc<dyn Links>,
    /// Wall time, read only to stamp commands.
    pub clock: Clock,
}

impl GroupConfig {
    /// The usual period of keep-alives: ten fit in a session of 30 s.
    pub const KEEPALIVE: Duration = Duration::from_secs(3);
}

impl fmt::Debug for GroupConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConfig")
            .field("node_id", &self.node_id)
            .field("epoch", &self.epoch)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

/// Raft's clocks. The minimum election timeout should be at least ten round trips and ten times the
/// 99th percentile of an append; failover takes about twice the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower stands for election.
    pub election_min: Duration,
    /// The longest such silence; also the leader's lease.
    pub election_max: Duration,
}

impl Timing {
    /// For sites on one local network: failover in about half a second.
    pub const LAN: Self = Self {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(300),
    };
    /// For sites in several cities: failover in about two seconds.
    pub const WAN: Self = Self {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
    };
}
