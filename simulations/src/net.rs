//! The simulated network: byte streams over connections over directed links.
//!
//! A link has latency, jitter and bandwidth, and can be cut in one direction. A connection joins two
//! lives of two nodes, as one QUIC connection does: its streams break together, when nothing came
//! through for the idle time or when one end learns that the other is a new life. Bytes sent into a
//! cut are retransmitted after it, if the connection lasts; bytes of a node that crashed are still on
//! their way. Datagrams under the production QUIC (`datagrams`) can take its place (`network`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::raft::Duplex;
use tokio::sync::{Notify, mpsc};

mod chunks;
pub mod datagrams;
mod links;
mod network;
mod pipe;
mod tap;
mod tapped;

pub(crate) use chunks::{SimHolders, answer as answer_chunk, read_frame, write_frame};
pub(crate) use links::SimLinks;
pub(crate) use network::Network;
use pipe::Pipe;
pub(crate) use tap::{Ballot, Said, Seen};
pub(crate) use tapped::Listener;

use crate::mutant::Mutant;
use crate::rng::Rng;
use crate::world::{Owner, World, lock};

/// A connection on which nothing came through for this long is over, at both ends (DESIGN 3).
const IDLE: Duration = Duration::from_secs(3);
/// The longest that a lost packet waits to be sent again once the link is back.
const RETRANSMIT_MS: u64 = 250;

/// What a stream is for, as ALPN and plane say it in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plane {
    Raft,
    Chunk,
    Join,
    Gate,
}

/// A stream that a peer opened.
pub(crate) struct Incoming {
    /// The slot that opened it.
    pub(crate) from: u32,
    pub(crate) plane: Plane,
    pub(crate) stream: Duplex,
}

/// How a directed link behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    pub(crate) latency: Duration,
    pub(crate) jitter: Duration,
    pub(crate) bytes_per_second: u64,
}

struct Link {
    quality: Quality,
    /// Added while a spike lasts.
    extra: Duration,
    /// Cuts in force; faults overlap.
    cuts: u32,
    cut_since: Option<Duration>,
    busy_until: Duration,
}

/// Two lives joined.
struct Connection {
    id: u64,
    ends: (Owner, Owner),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Deliver(u64),
    Idle(u32, u32),
    Break(u64),
}

struct Inner {
    rng: Rng,
    links: BTreeMap<(u32, u32), Link>,
    pipes: BTreeMap<u64, Pipe>,
    connections: BTreeMap<(u32, u32), Connection>,
    due: BinaryHeap<Reverse<(Duration, u64, Due)>>,
    sequence: u64,
    next_id: u64,
    doors: BTreeMap<u32, (Owner, mpsc::UnboundedSender<Incoming>)>,
}

/// What watches the bytes that pass.
pub(crate) type Watcher = Box<dyn Fn(&Seen) + Send + Sync>;

/// See the module.
pub(crate) struct Fabric {
    world: Arc<World>,
    mutant: Option<Mutant>,
    watcher: Watcher,
    inner: Mutex<Inner>,
    changed: Notify,
}

impl Fabric {
    pub(crate) fn new(world: Arc<World>, seed: u64, mutant: Option<Mutant>, watcher: Watcher) -> Arc<Self> {
        let inner = Inner {
            rng: Rng::stream(seed, "net"),
            links: BTreeMap::new(),
            pipes: BTreeMap::new(),
            connections: BTreeMap::new(),
            due: BinaryHeap::new(),
            sequence: 0,
            next_id: 0,
            doors: BTreeMap::new(),
        };
        Arc::new(Self { world, mutant, watcher, inner: Mutex::new(inner), changed: Notify::new() })
    }

    pub(crate) fn set_quality(&self, from: u32, to: u32, quality: Quality) {
        let link = Link { quality, extra: Duration::ZERO, cuts: 0, cut_since: None, busy_until: Duration::ZERO };
        lock(&self.inner).links.insert((from, to), link);
    }

    pub(crate) fn set_extra_latency(&self, from: u32, to: u32, extra: Duration) {
        if let Some(link) = lock(&self.inner).links.get_mut(&(from, to)) {
            link.extra = extra;
        }
    }

    /// Opens the door of a life: streams to it arrive at the receiver.
    pub(crate) fn open_door(&self, owner: Owner) -> mpsc::UnboundedReceiver<Incoming> {
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.inner).doors.insert(owner.slot, (owner, sender));
        receiver
    }

    /// A node's life ended: nobody is told, its peers find out by silence.
    pub(crate) fn node_ended(&self, owner: Owner) {
        let now = self.world.now();
        let mut inner = lock(&self.inner);
        inner.doors.remove(&owner.slot);
        let over: Vec<u64> = inner.connections_of(owner).collect();
        for id in over {
            inner.schedule(now + IDLE, Due::Break(id));
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// A new life answers what is sent to the old one by a reset.
    pub(crate) fn node_began(&self, slot: u32) {
        let now = self.world.now();
        let mut inner = lock(&self.inner);
        let old = Owner { slot, incarnation: self.world.owner(slot).incarnation.saturating_sub(1) };
        let over: Vec<u64> = inner.connections_of(old).collect();
        for id in over {
            let after = inner.rng.millis(1, 200);
            inner.schedule(now + after, Due::Break(id));
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Cuts one direction of a link, until [`Fabric::mend`] was called as often.
    pub(crate) fn cut(&self, from: u32, to: u32) {
        let now = self.world.now();
        let mut inner = lock(&self.inner);
        let Some(link) = inner.links.get_mut(&(from, to)) else { return };
        link.cuts += 1;
        if link.cuts == 1 {
            link.cut_since = Some(now);
            inner.schedule(now + IDLE, Due::Idle(from, to));
        }
        drop(inner);
        self.changed.notify_one();
    }

    pub(crate) fn mend(&self, from: u32, to: u32) {
        let mut inner = lock(&self.inner);
        let Some(link) = inner.links.get_mut(&(from, to)) else { return };
        link.cuts = link.cuts.saturating_sub(1);
        if link.cuts == 0 && link.cut_since.take().is_some() {
            self.resend(&mut inner, from, to);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Mends every link.
    pub(crate) fn heal(&self) {
        let mut inner = lock(&self.inner);
        let pairs: Vec<(u32, u32)> = inner.links.keys().copied().collect();
        for (from, to) in pairs {
            let Some(link) = inner.links.get_mut(&(from, to)) else { continue };
            link.cuts = 0;
            link.extra = Duration::ZERO;
            if link.cut_since.take().is_some() {
                self.resend(&mut inner, from, to);
            }
        }
        drop(inner);
        self.changed.notify_one();
        self.world.event(0, format_args!("heal"));
    }

    fn resend(&self, inner: &mut Inner, from: u32, to: u32) {
        let now = self.world.now();
        let stuck: Vec<u64> = inner
            .pipes
            .iter()
            .filter(|(_, pipe)| pipe.from.slot == from && pipe.to.slot == to && pipe.first_arrival().is_some())
            .map(|(id, _)| *id)
            .collect();
        let latency = inner.links.get(&(from, to)).map_or(Duration::ZERO, |link| link.quality.latency);
        for id in stuck {
            let wait = latency + inner.rng.millis(0, RETRANSMIT_MS);
            if let Some(pipe) = inner.pipes.get_mut(&id) {
                pipe.delay_until(now + wait);
            }
            inner.schedule(now + wait, Due::Deliver(id));
        }
    }

    /// Breaks the connection between two slots, if there is one.
    pub(crate) fn break_connection(&self, a: u32, b: u32) {
        let mut inner = lock(&self.inner);
        let id = inner.connections.get(&pair(a, b)).map(|connection| connection.id);
        if let Some(id) = id {
            self.break_now(&mut inner, id);
        }
    }

    fn break_now(&self, inner: &mut Inner, id: u64) {
        inner.connections.retain(|_, connection| connection.id != id);
        let mut broken = 0;
        for pipe in inner.pipes.values_mut().filter(|pipe| pipe.connection == id) {
            pipe.reset();
            broken += 1;
        }
        inner.pipes.retain(|_, pipe| !pipe.is_over());
        self.world.event(0, format_args!("connection {id} breaks with {broken} pipes"));
        if broken > 0 {
            self.world.sometimes("a connection broke with streams on it");
        }
    }

    /// Delivers what is due, forever. One timer serves the whole network.
    pub(crate) async fn pump(self: Arc<Self>) {
        loop {
            let next = lock(&self.inner).due.peek().map(|Reverse((at, ..))| *at);
            match next {
                Some(at) if at <= self.world.now() => self.run_due(),
                Some(at) => tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(self.world.instant(at)) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    fn run_due(self: &Arc<Self>) {
        let now = self.world.now();
        let mut refused = Vec::new();
        let mut inner = lock(&self.inner);
        while inner.due.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((_, _, due))) = inner.due.pop() else { break };
            match due {
                Due::Deliver(pipe) => refused.extend(self.deliver(&mut inner, pipe, now)),
                Due::Break(id) => {
                    if inner.connections.values().any(|connection| connection.id == id)
                        || inner.pipes.values().any(|pipe| pipe.connection == id)
                    {
                        self.break_now(&mut inner, id);
                    }
                }
                Due::Idle(from, to) => {
                    let since = inner.links.get(&(from, to)).and_then(|link| link.cut_since);
                    let over = since.is_some_and(|since| since + IDLE <= now);
                    let id = inner.connections.get(&pair(from, to)).map(|connection| connection.id);
                    if let Some(id) = id.filter(|_| over) {
                        self.world.sometimes("a connection was idle for too long");
                        self.break_now(&mut inner, id);
                    }
                }
            }
        }
    }

    /// Returns the stream that was announced to nobody: its halves must be dropped without the lock.
    fn deliver(self: &Arc<Self>, inner: &mut Inner, id: u64, now: Duration) -> Option<Incoming> {
        let pipe = inner.pipes.get(&id)?;
        let (from, to) = (pipe.from, pipe.to);
        if inner.links.get(&(from.slot, to.slot)).is_some_and(|link| link.cuts > 0) {
            return None;
        }
        let alive = self.world.is_alive(to);
        let pipe = inner.pipes.get_mut(&id)?;
        let (seen, back) = pipe.deliver(now, alive);
        let answers = pipe.back.and_then(|back| inner.pipes.get_mut(&back));
        if let (Some(answers), Some(last)) = (answers, seen.last()) {
            answers.asked(last.said);
        }
        if alive {
            for seen in &seen {
                (self.watcher)(seen);
            }
        }
        let mut refused = None;
        if let Some(back) = back {
            let stream = Duplex { reader: Box::new(self.reader(id, to)), writer: Box::new(self.writer(back, to)) };
            let plane = inner.pipes.get(&id).map_or(Plane::Raft, |pipe| pipe.plane);
            let incoming = Incoming { from: from.slot, plane, stream };
            refused = match inner.doors.get(&to.slot).filter(|(owner, _)| *owner == to) {
                Some((_, door)) => door.send(incoming).err().map(|error| error.0),
                None => Some(incoming),
            };
            if refused.is_some() {
                for id in [id, back] {
                    if let Some(pipe) = inner.pipes.get_mut(&id) {
                        pipe.reset();
                    }
                }
            }
        }
        if inner.pipes.get(&id).is_some_and(Pipe::is_over) {
            inner.pipes.remove(&id);
        }
        refused
    }
}

fn pair(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

impl Inner {
    fn schedule(&mut self, at: Duration, due: Due) {
        self.sequence += 1;
        self.due.push(Reverse((at, self.sequence, due)));
    }

    fn connections_of(&self, owner: Owner) -> impl Iterator<Item = u64> {
        let with = move |connection: &&Connection| connection.ends.0 == owner || connection.ends.1 == owner;
        self.connections.values().filter(with).map(|connection| connection.id)
    }

    /// When what is sent now arrives.
    fn arrival(&mut self, now: Duration, from: u32, to: u32, bytes: usize) -> Duration {
        let Some(link) = self.links.get_mut(&(from, to)) else { return now };
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / link.quality.bytes_per_second.max(1);
        link.busy_until = link.busy_until.max(now) + Duration::from_nanos(nanos);
        let (sent, base, jitter) = (link.busy_until, link.quality.latency + link.extra, link.quality.jitter);
        sent + base + self.rng.around(jitter)
    }
}
