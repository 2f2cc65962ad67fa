//! Events: a client that follows the stream, now at this node and now at that, misses none and sees none
//! twice; each exam's changes of state follow on each other; and no algorithm ever lowers an urgency.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::event::{Cursor, Event, Happened};
use maillage_consensus::exam::{ExamState, Priority};

use crate::cluster::{Cluster, Running};
use crate::rng::Rng;
use crate::world::{World, lock};

/// Events read at once.
const PAGE: usize = 256;
/// Mean time between two looks of the client.
const LOOK: Duration = Duration::from_millis(1_500);
/// What the names of algorithms begin with here.
pub(crate) const ALGORITHM: &str = "algorithm";

#[derive(Default)]
struct Seen {
    cursor: Cursor,
    count: u64,
    digest: blake3::Hasher,
    states: BTreeMap<u64, ExamState>,
    priorities: BTreeMap<u64, Priority>,
    /// The slot of the last node that had something to tell.
    told_by: Option<u32>,
}

/// See the module.
pub(crate) struct Events {
    world: Arc<World>,
    seen: Mutex<Seen>,
    /// Whether the mesh began with a format that has no events: exams have a past of which nobody was told.
    began_silent: bool,
}

impl Events {
    pub(crate) fn new(world: Arc<World>, began_silent: bool) -> Self {
        Self { world, seen: Mutex::default(), began_silent }
    }

    /// The urgency with which an exam was asked for.
    pub(crate) fn requested(&self, exam: u64, priority: Priority) {
        lock(&self.seen).priorities.entry(exam).or_insert(priority);
    }

    /// Reads on at the node of `running`, which may be behind.
    pub(crate) fn read_on(&self, running: &Running) {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let mut seen = lock(&self.seen);
        if view.forgotten().is_ok_and(|forgotten| forgotten > seen.cursor) {
            self.world.violation("events", format!("{:?} forgot what is after {}", running.owner, seen.cursor));
            return;
        }
        loop {
            let page = view.events(seen.cursor, PAGE).unwrap_or_default();
            for (cursor, event) in &page {
                seen.cursor = *cursor;
                seen.count += 1;
                seen.digest.update(line(*cursor, event).as_bytes());
                self.judge(&mut seen, event);
            }
            if !page.is_empty() && seen.told_by.replace(running.owner.slot) != Some(running.owner.slot) {
                self.world.sometimes("events were read on at another node");
            }
            if page.len() < PAGE {
                return;
            }
        }
    }

    fn judge(&self, seen: &mut Seen, event: &Event) {
        let exam = event.exam.0;
        match &event.what {
            Happened::Exam { from, to } => {
                let before = seen.states.insert(exam, *to);
                if before != *from && !(before.is_none() && self.began_silent) {
                    let detail = format!("exam {exam} went from {from:?} to {to}, and was {before:?}");
                    self.world.violation("events", detail);
                }
            }
            Happened::Priority { to, by } => {
                let before = seen.priorities.insert(exam, *to);
                if by.as_str().starts_with(ALGORITHM) {
                    self.world.sometimes("an algorithm raised an urgency");
                    if before.is_some_and(|before| *to >= before) {
                        let detail = format!("exam {exam}: {by} made {to} of {before:?}");
                        self.world.violation("care", detail);
                    }
                }
            }
            Happened::ClaimLost { .. } => self.world.sometimes("a reader was warned that the claim is lost"),
            Happened::Escalated { .. } => self.world.sometimes("a critical result escalated"),
            _ => {}
        }
    }

    /// Whether the stream of a node that has applied everything is, from its beginning, what the client read.
    pub(crate) fn check_all(&self, running: &Running) {
        self.read_on(running);
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let (mut cursor, mut digest, mut count) = (Cursor::default(), blake3::Hasher::new(), 0_u64);
        loop {
            let page = view.events(cursor, PAGE).unwrap_or_default();
            for (at, event) in &page {
                cursor = *at;
                count += 1;
                digest.update(line(*at, event).as_bytes());
            }
            if page.len() < PAGE {
                break;
            }
        }
        let seen = lock(&self.seen);
        if seen.digest.finalize() != digest.finalize() {
            let detail = format!("a client saw {} events, {:?} has {count} others", seen.count, running.owner);
            self.world.violation("events", detail);
        }
    }
}

fn line(cursor: Cursor, event: &Event) -> String {
    format!("{cursor} {event:?}\n")
}

/// A client that goes from node to node. Forever.
pub(crate) async fn follow(cluster: Arc<Cluster>, mut rng: Rng) {
    loop {
        tokio::time::sleep(rng.around(LOOK)).await;
        if let Some(running) = rng.pick(&cluster.all_running()) {
            cluster.watch.events.read_on(running);
        }
    }
}
