//! Who was heard, and when: by followers of a leader with a quorum, and by the leader of everybody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Inner;
use crate::raft::status::{ClockOffset, Said};
use crate::raft::types::LeaderId;
use crate::raft::wire::{Frame, Greeting};

/// What a node that says nothing of itself understands: the format of the first version.
const UNSAID_FORMAT: u8 = 1;

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

/// On the leader: when each node was last heard, in this leadership, and what it said of itself.
#[derive(Debug, Default)]
pub(crate) struct Presence(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    leadership: Option<LeaderId>,
    nodes: BTreeMap<u64, Voice>,
}

/// One node.
#[derive(Debug, Clone, Copy)]
struct Voice {
    at: Instant,
    said: Option<Said>,
}

impl Presence {
    /// The map of the leadership `now`, begun anew when that is a new one: every node known is then
    /// given a full term, because this leader cannot know who was silent before.
    fn of(
        &self,
        leadership: LeaderId,
        members: impl Iterator<Item = u64>,
        (node, said): (u64, Said),
    ) -> BTreeMap<u64, Voice> {
        let now = Instant::now();
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.leadership != Some(leadership) {
            *heard = Heard { leadership: Some(leadership), nodes: BTreeMap::new() };
        }
        let before = std::mem::take(&mut heard.nodes);
        let unheard = Voice { at: now, said: None };
        heard.nodes = members.map(|id| (id, before.get(&id).copied().unwrap_or(unheard))).collect();
        if let Some(last) = heard.nodes.get_mut(&node) {
            *last = Voice { at: now, said: Some(said) };
        }
        heard.nodes.clone()
    }
}

impl Inner {
    /// The leader's map, with `node` heard just now; `None` when this node does not lead.
    fn presence(&self, node: u64, said: Said) -> Option<BTreeMap<u64, Voice>> {
        let leadership = self.leadership()?;
        let membership = Arc::clone(&self.raft.metrics().borrow_watched().membership_config);
        Some(self.presence.of(leadership, membership.nodes().map(|(id, _)| *id), (node, said)))
    }

    /// The leader hears itself.
    fn own_presence(&self) -> Option<BTreeMap<u64, Voice>> {
        self.presence(self.node_id(), Said { format: self.format, clock: Some(ClockOffset::default()) })
    }

    pub(super) fn heard(&self) -> Option<BTreeMap<u64, Instant>> {
        Some(self.own_presence()?.into_iter().map(|(id, heard)| (id, heard.at)).collect())
    }

    pub(super) fn said(&self) -> Option<BTreeMap<u64, Said>> {
        Some(self.own_presence()?.into_iter().filter_map(|(id, heard)| Some((id, heard.said?))).collect())
    }

    /// Serves another node's keep-alive.
    pub(crate) fn keep_alive_from(&self, from: u64, greeting: Option<Greeting>) -> Frame {
        let said = match greeting {
            Some(Greeting { format, measured }) => Said { format, clock: measured },
            None => Said { format: UNSAID_FORMAT, clock: None },
        };
        match self.presence(from, said) {
            // A node of the first version refuses an answer with a body as it refuses the question.
            Some(_) => Frame::Heard(greeting.map(|_| self.clock.now())),
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
                Some(leader) if leader == self.node_id() => drop(self.own_presence()),
                Some(leader) => {
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = self.greet(leader, period) => {}
                    }
                }
            }
        }
    }
}
