//! Who was heard, and when: by followers of a leader with a quorum, and by the leader of everybody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Inner;
use crate::raft::types::LeaderId;
use crate::raft::wire::Frame;

/// When a quorum last stood behind a leader that this node heard.
#[derive(Debug, Default)]
pub(crate) struct Contact(Mutex<Option<Instant>>);

impl Contact {
    /// A leader was heard `at`; a quorum had acknowledged it `age` before.
    pub(crate) fn heard(&self, at: Instant, age: Duration) {
        let Some(acknowledged) = at.checked_sub(age) else { return };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (*last).max(Some(acknowledged));
    }

    pub(super) fn silence(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|last| last.elapsed())
    }
}

/// On the leader: when each node was last heard, in this leadership.
#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    leadership: Option<LeaderId>,
    nodes: BTreeMap<u64, Instant>,
}

impl Presence {
    /// The map of the leadership `now`, begun anew when that is a new one: every node known is then
    /// given a full term, because this leader cannot know who was silent before.
    fn of(
        &self,
        leadership: LeaderId,
        members: impl Iterator<Item = u64>,
        touch: Option<u64>,
    ) -> BTreeMap<u64, Instant> {
        let now = Instant::now();
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.leadership != Some(leadership) {
            *heard = Heard { leadership: Some(leadership), nodes: BTreeMap::new() };
        }
        let before = std::mem::take(&mut heard.nodes);
        heard.nodes = members.map(|id| (id, before.get(&id).copied().unwrap_or(now))).collect();
        if let Some(last) = touch.and_then(|id| heard.nodes.get_mut(&id)) {
            *last = now;
        }
        heard.nodes.clone()
    }
}

impl Inner {
    /// The leader's map, with `touch` heard just now; `None` when this node does not lead.
    fn presence(&self, touch: u64) -> Option<BTreeMap<u64, Instant>> {
        let leadership = self.leadership()?;
        let membership = Arc::clone(&self.raft.metrics().borrow_watched().membership_config);
        Some(self.presence.of(leadership, membership.nodes().map(|(id, _)| *id), Some(touch)))
    }

    /// The leader hears itself.
    pub(super) fn heard(&self) -> Option<BTreeMap<u64, Instant>> {
        self.presence(self.node_id())
    }

    /// Serves another node's keep-alive.
    pub(crate) fn keep_alive_from(&self, from: u64) -> Frame {
        match self.presence(from) {
            Some(_) => Frame::Heard,
            None => Frame::NotLeader(self.leader()),
        }
    }

    /// Tells the leader, whoever it is, each `period` that this node is there.
    pub(super) async fn keep_alive(&self, period: Duration) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.leader() {
                None => {}
                // So that a new leadership begins its map soon, asked or not.
                Some(leader) if leader == self.node_id() => drop(self.heard()),
                Some(leader) => {
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        // A keep-alive that fails is its own message.
                        _ = self.dialer.call(leader, &Frame::KeepAlive, period) => {}
                    }
                }
            }
        }
    }
}
