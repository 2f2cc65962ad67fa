//! The tasks that run as long as the group: the status for others, checkpoints, what was left undone.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use maillage_host::Disk;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Inner, membership};
use crate::raft::client::quorum_age;
use crate::raft::status::{GroupStatus, Role};
use crate::raft::types::StoredMembership;

/// The longest time between two publications of the status, and between two checkpoints.
const PERIOD: Duration = Duration::from_secs(1);
/// The shortest time between two publications: openraft reports after every step, a leader of many
/// followers hundreds of times a second.
const PUBLISH_MIN: Duration = Duration::from_millis(50);
/// How long a write to the log, or a heartbeat of the disk, may take before a leader hands over.
const STALL_HAND_OVER: Duration = Duration::from_secs(5);
/// How long it may take before the node gives up.
const STALL_END: Duration = Duration::from_secs(20);

pub(super) fn spawn(inner: &Arc<Inner>, disk: Disk, keepalive: Duration) -> Vec<JoinHandle<()>> {
    let (status, state, presence) = (Arc::clone(inner), Arc::clone(inner), Arc::clone(inner));
    let heart = Arc::clone(inner);
    vec![
        maillage_host::spawn(async move { status.watch_raft().await }),
        maillage_host::spawn(async move { keep_up(&state).await }),
        maillage_host::spawn(async move { presence.keep_alive(keepalive).await }),
        maillage_host::spawn(async move { heart.heartbeat.run(&disk, &heart.halt, &heart.stop).await }),
    ]
}

/// Each second: a checkpoint of the state, the removal of old snapshots, the end of a joint change.
async fn keep_up(inner: &Arc<Inner>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = inner.view.checkpoint().await {
            inner.halt.halt(format!("the state cannot be checkpointed: {error}"));
        }
        inner.snapshots.sweep().await;
        membership::flatten(inner).await;
    }
}

/// Who votes and who does not, of the membership seen last: it changes seldom and is said with every heartbeat.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<Option<(Arc<StoredMembership>, Ids, Ids)>>);

type Ids = Arc<BTreeSet<u64>>;

impl Members {
    /// Voters of both halves of a joint configuration, and learners.
    fn of(&self, membership: &Arc<StoredMembership>) -> (Ids, Ids) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, voters, learners) = match seen.take().filter(|(of, ..)| Arc::ptr_eq(of, membership)) {
            Some(same) => seen.insert(same),
            None => seen.insert((
                Arc::clone(membership),
                Arc::new(membership.voter_ids().collect()),
                Arc::new(membership.membership().learner_ids().collect()),
            )),
        };
        (Arc::clone(voters), Arc::clone(learners))
    }
}

impl Inner {
    async fn watch_raft(&self) {
        let mut metrics = self.raft.metrics();
        let mut halt = self.halt.watch();
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = metrics.changed() => {
                    if changed.is_err() {
                        // openraft ended without being told to.
                        self.halt.halt("raft stopped");
                        self.publish_status();
                        return;
                    }
                }
                _ = halt.changed() => {}
                () = sleep(PERIOD) => {}
            }
            if looked.elapsed() < STALL_HAND_OVER {
                self.mind_stall().await;
            } else {
                // It was stopped itself (SIGSTOP, a machine that is moved), and the disk has had no time to answer.
                sleep(PERIOD).await;
            }
            looked = Instant::now();
            self.publish_status();
            if self.halt.reason().is_some() {
                // Whatever stopped this node, it must not go on leading or voting.
                self.stop_raft().await;
                self.publish_status();
                return;
            }
            sleep(PUBLISH_MIN).await;
        }
    }

    /// A disk that does not answer: first somebody else should lead, then this node must go.
    async fn mind_stall(&self) {
        let stalled = self.log.stalled_for().max(self.heartbeat.stalled_for());
        if stalled >= STALL_END {
            self.halt.halt("the disk has not answered for 20 s");
        } else if stalled >= STALL_HAND_OVER && self.leadership().is_some() {
            let metrics = self.metrics();
            let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
            let others =
                metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id && voters.contains(id));
            let Some((best, _)) = others.max_by_key(|(_, matched)| **matched) else { return };
            tracing::warn!(?stalled, to = best, "the disk stalls; the leadership is handed over");
            if let Err(error) = self.raft.trigger().transfer_leader(*best).await {
                tracing::warn!(%error, "the leadership was not handed over");
            }
        }
    }

    pub(super) fn publish_status(&self) {
        let metrics = self.metrics();
        if let Err(fatal) = &metrics.running_state
            && !self.stop.is_cancelled()
        {
            self.halt.halt(format!("raft stopped: {fatal}"));
        }
        let quorum_ack_age = quorum_age(&metrics);
        if let Some(age) = quorum_ack_age {
            // Remembered, so that freshness does not fall back when the leadership is lost.
            self.contact.heard(Instant::now(), age);
        }
        let fatal = self.halt.reason();
        // Whatever openraft, which may be waiting for the disk, says of itself: this node is no part of it any more.
        let state = if fatal.is_some() { ServerState::Shutdown } else { metrics.state };
        let leads = state == ServerState::Leader;
        let behind = |matched: Option<u64>| Some(metrics.last_log_index?.saturating_sub(matched?));
        let others = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
        let lag = others.map(|(id, matched)| (*id, behind(matched.as_ref().map(|id| id.index)))).collect();
        let (voters, learners) = self.members.of(&metrics.membership_config);
        let status = GroupStatus {
            role: match state {
                ServerState::Leader => Role::Leader,
                ServerState::Candidate => Role::Candidate,
                ServerState::Follower => Role::Follower,
                ServerState::Learner | ServerState::Shutdown => Role::Learner,
            },
            term: metrics.current_term,
            leader: metrics.current_leader.filter(|leader| fatal.is_none() || *leader != metrics.id),
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: metrics.last_applied.map(|id| id.index),
            voters,
            learners,
            joint: metrics.membership_config.get_joint_config().len() > 1,
            quorum_ack_age,
            lag: if leads { lag } else { Default::default() },
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            fatal,
        };
        self.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }
}
