//! Putting a group together from what is on disk.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::{Config, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Contact, Group, GroupConfig, Heartbeat, Inner, Offset, Presence, propose, upkeep};
use crate::StateClock;
use crate::raft::client::{Dialer, Ledger, Network, QuorumView};
use crate::raft::config::Timing;
use crate::raft::halt::Halt;
use crate::raft::log::{Identity, Limits, Log, LogError};
use crate::raft::snapshot::SnapshotStore;
use crate::raft::state::State;
use crate::raft::status::GroupStatus;
use crate::raft::types::{Raft, index_or_zero};

/// Streams served at once: some tens for each of the sites sized for.
const STREAMS: usize = 2048;
/// Entries in one append; its bytes are limited by the log's reader.
const APPEND_ENTRIES: u64 = 4096;

/// Why a group did not start. None of these is repaired by trying again with the same disk.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state or the snapshots cannot be opened.
    #[error("state: {0}")]
    State(#[from] io::Error),
    /// The state is behind the purged log and there is no snapshot that covers the gap.
    #[error("state is at index {applied} but the log begins after {purged}, and no snapshot covers the gap")]
    Gap {
        /// Index of the last entry applied.
        applied: u64,
        /// Index of the last entry purged.
        purged: u64,
    },
    /// openraft refused what it found.
    #[error("raft: {0}")]
    Raft(String),
}

pub(super) async fn start(config: GroupConfig) -> Result<Group, StartError> {
    let raft_config = raft_config(&config)?;
    let halt = Halt::default();
    let identity = Identity { node_id: config.node_id, mesh_id: config.mesh_id };
    let log = Log::open(&config.disk, identity, Limits::default(), halt.clone()).await?;
    let snapshots = Arc::new(SnapshotStore::open(config.disk.clone(), config.mesh_id).await?);
    let machine = Arc::clone(&config.machine);
    let state =
        State::open(Arc::clone(&config.home), Arc::clone(&machine), Arc::clone(&snapshots), halt.clone()).await?;
    check_gap(&log, &state, &snapshots)?;
    let view = state.view();
    let dialer = Dialer { links: config.links, node_id: config.node_id, mesh_id: config.mesh_id, epoch: config.epoch };
    let quorum = QuorumView::default();
    let network = Network {
        dialer: dialer.clone(),
        quorum: quorum.clone(),
        snapshots: Arc::clone(&snapshots),
        halt: halt.clone(),
        ledger: Ledger::default(),
    };
    let raft = Raft::new(config.node_id, Arc::new(raft_config), network, log.clone(), state).await;
    let raft = raft.map_err(|error| StartError::Raft(halt.reason().unwrap_or_else(|| error.to_string())))?;
    quorum.attach(raft.metrics());
    let inner = Arc::new(Inner {
        raft,
        dialer,
        snapshots,
        contact: Contact::default(),
        halt,
        stop: CancellationToken::new(),
        streams: Semaphore::new(STREAMS),
        receiving: Semaphore::new(1),
        log,
        view,
        machine,
        clock: config.clock,
        state_clock: StateClock::default(),
        timing: config.timing,
        started: Instant::now(),
        presence: Presence::default(),
        offset: Offset::default(),
        heartbeat: Heartbeat::default(),
        format: config.format,
        under_way: Arc::new(Semaphore::new(propose::UNDER_WAY_KIB)),
        changing: Arc::new(Semaphore::new(1)),
        status: watch::channel(GroupStatus::default()).0,
        members: upkeep::Members::default(),
        tasks: Mutex::new(Vec::new()),
    });
    inner.publish_status();
    let tasks = upkeep::spawn(&inner, config.disk, config.keepalive);
    *inner.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    Ok(Group { inner })
}

fn raft_config(config: &GroupConfig) -> Result<Config, StartError> {
    let Timing { heartbeat, election_min, election_max } = config.timing;
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let raft = Config {
        cluster_name: "mesh".to_owned(),
        heartbeat_interval: millis(heartbeat),
        election_timeout_min: millis(election_min),
        election_timeout_max: millis(election_max),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every.max(1)),
        max_in_snapshot_log_to_keep: config.keep_log,
        max_payload_entries: APPEND_ENTRIES,
        backoff: "50ms 100ms ...500ms".to_owned(),
        // A killed leader that resumed in its old term wrote other entries under log ids that its
        // followers already held, and acknowledged writes were lost.
        enable_leader_restore: Some(false),
        // A node cut off must not come back with a higher term and depose a healthy leader.
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    raft.validate().map_err(|error| StartError::Config(error.to_string()))
}

fn check_gap(log: &Log, state: &State, snapshots: &SnapshotStore) -> Result<(), StartError> {
    let snapshot = snapshots.current().and_then(|file| file.0.head.meta.last_log_id);
    let reach = state.applied().log_id.max(snapshot);
    match log.purged() {
        Some(purged) if reach.is_none_or(|reach| reach.index < purged.index) => {
            Err(StartError::Gap { applied: index_or_zero(reach.as_ref()), purged: purged.index })
        }
        _ => Ok(()),
    }
}
