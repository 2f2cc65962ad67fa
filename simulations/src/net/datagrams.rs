//! The simulated network of datagrams: what the production endpoint stands on, with its real QUIC and
//! TLS, in the place of a UDP socket (`Socket::Abstract`).
//!
//! A slot has one address and any number of sockets, each of one life: when that life ends, its socket
//! hears and says nothing more, while what is under way to its address reaches whoever binds it next,
//! as with UDP. Directed links delay, pace, queue, lose, repeat and reorder; they are cut as the
//! streams' fabric is, by the same methods, so that one nemesis drives either.
//!
//! Datagrams travel in the batches in which QUIC hands them over (segmentation offload), one entry of a
//! heap for each, and one timer serves all; a socket is woken once for all that an instant brought.
//! Everything random comes from one stream of the seed. Handshakes and keys are random too: a run is
//! the same bit for bit only where the process's randomness is seeded, as in the `simulate` binary.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use maillage_transport::quinn::udp::{EcnCodepoint, Transmit};
use tokio::sync::Notify;

mod link;
mod scene;
mod socket;

pub use link::Flaws;
use link::{Link, Lost, Why};
pub use scene::Scene;
pub(crate) use socket::SimSocket;

use super::{IDLE, Quality};
use crate::rng::Rng;
use crate::world::{Owner, World, lock};

/// The port at which every node listens.
pub const PORT: u16 = 7400;
/// The first port given to a socket that asks for any (RFC 6335 section 6: the dynamic ports).
const EPHEMERAL_FIRST: u16 = 49_152;
/// How long a broken connection's link stays dark: the idle time-out, and half of it again for peers
/// whose probes back off slowly.
const DARK: Duration = IDLE.saturating_add(Duration::from_millis(1_500));
/// From a socket to another one of the same slot.
const LOOPBACK: Duration = Duration::from_micros(50);
/// What a socket keeps unread: the buffer that the product asks its kernel for.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// What the network carried so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Batches that arrived.
    pub batches: u64,
    /// Datagrams that arrived.
    pub datagrams: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Datagrams that were lost, wherever.
    pub lost: u64,
    /// How often the pump ran.
    pub pumped: u64,
}

/// Datagrams of one sender to one receiver, as long as each other but for the last.
#[derive(Debug)]
struct Batch {
    contents: Bytes,
    stride: usize,
    ecn: Option<EcnCodepoint>,
}

impl Batch {
    fn count(&self) -> u64 {
        self.contents.len().div_ceil(self.stride.max(1)) as u64
    }

    /// The end of the last datagram: of its authentication tag, so that the trace tells runs apart
    /// whose randomness differs anywhere.
    fn tag(&self) -> u32 {
        self.contents.last_chunk().map_or(0, |last| u32::from_be_bytes(*last))
    }
}

/// A batch under way.
struct Flight {
    at: Duration,
    sequence: u64,
    from: SocketAddr,
    to: SocketAddr,
    batch: Batch,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// A bound socket.
struct Port {
    id: u64,
    owner: Owner,
    inbox: VecDeque<(SocketAddr, Batch)>,
    inbox_bytes: usize,
    reader: Option<Waker>,
}

struct Inner {
    rng: Rng,
    links: BTreeMap<(u32, u32), Link>,
    flights: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
    /// The tick at which the pump wakes by itself: never while it waits for anything, 0 while it runs.
    armed: u64,
    ports: BTreeMap<SocketAddr, Port>,
    sockets: u64,
    traffic: Traffic,
}

/// See the module.
pub(crate) struct Datagrams {
    world: Arc<World>,
    inner: Mutex<Inner>,
    changed: Notify,
}

/// The address of a slot's socket.
pub(crate) fn address(slot: u32, port: u16) -> SocketAddr {
    let [_, _, high, low] = slot.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, 0, high, low), port))
}

/// The slot at an address. `None` for addresses that no slot has.
fn slot_of(address: SocketAddr) -> Option<u32> {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => match ip.octets() {
            [10, 0, high, low] => Some(u32::from_be_bytes([0, 0, high, low])),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

/// Timers fire in whole milliseconds (tokio's wheel): two instants of one tick need one waking.
fn tick(at: Duration) -> u64 {
    u64::try_from(at.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl Datagrams {
    /// A network without links: between slots nothing arrives before [`Datagrams::set_quality`].
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Arc<Self> {
        let inner = Inner {
            rng: Rng::stream(seed, "datagrams"),
            links: BTreeMap::new(),
            flights: BinaryHeap::new(),
            sequence: 0,
            armed: 0,
            ports: BTreeMap::new(),
            sockets: 0,
            traffic: Traffic::default(),
        };
        Arc::new(Self { world, inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// Makes a link, or gives one another quality; cuts and flaws stay as they are.
    pub(crate) fn set_quality(&self, from: u32, to: u32, quality: Quality) {
        lock(&self.inner).links.entry((from, to)).or_insert_with(|| Link::new(quality)).quality = quality;
    }

    pub(crate) fn set_flaws(&self, from: u32, to: u32, flaws: Flaws) {
        if let Some(link) = lock(&self.inner).links.get_mut(&(from, to)) {
            link.flaws = flaws;
        }
    }

    /// What follows may overtake what is under way, as after a change of route.
    pub(crate) fn set_extra_latency(&self, from: u32, to: u32, extra: Duration) {
        if let Some(link) = lock(&self.inner).links.get_mut(&(from, to)) {
            link.set_extra(extra);
        }
    }

    /// Cuts one direction of a link, until [`Datagrams::mend`] was called as often. What is under way
    /// is lost.
    pub(crate) fn cut(&self, from: u32, to: u32) {
        if let Some(link) = lock(&self.inner).links.get_mut(&(from, to)) {
            link.cuts += 1;
        }
    }

    pub(crate) fn mend(&self, from: u32, to: u32) {
        if let Some(link) = lock(&self.inner).links.get_mut(&(from, to)) {
            link.cuts = link.cuts.saturating_sub(1);
        }
    }

    /// Mends every link; flaws stay.
    pub(crate) fn heal(&self) {
        for link in lock(&self.inner).links.values_mut() {
            link.cuts = 0;
            link.dark_until = Duration::ZERO;
            if !link.extra.is_zero() {
                link.set_extra(Duration::ZERO);
            }
        }
        self.world.event(0, format_args!("heal"));
    }

    /// Breaks the connections between two slots by the only means that a network has: both directions
    /// are dark for longer than the idle time-out.
    pub(crate) fn break_connection(&self, a: u32, b: u32) {
        let until = self.world.now() + DARK;
        let mut inner = lock(&self.inner);
        for way in [(a, b), (b, a)] {
            if let Some(link) = inner.links.get_mut(&way) {
                link.dark_until = link.dark_until.max(until);
            }
        }
        drop(inner);
        self.world.event(0, format_args!("dark between {a} and {b}"));
    }

    /// A node's life ended: its sockets are gone, with what they had not read. Nobody is told.
    pub(crate) fn node_ended(&self, owner: Owner) {
        let gone: Vec<Port> = {
            let mut inner = lock(&self.inner);
            let of_owner: Vec<SocketAddr> =
                inner.ports.iter().filter(|(_, port)| port.owner == owner).map(|(address, _)| *address).collect();
            of_owner.iter().filter_map(|address| inner.ports.remove(address)).collect()
        };
        // Wakers are dropped without the lock: one may be the last hold of a task and of its socket.
        drop(gone);
    }

    /// A socket of this life; port 0 gives any free one.
    ///
    /// # Errors
    /// When a living socket has the address, or every port is taken.
    pub(crate) fn bind(self: &Arc<Self>, owner: Owner, port: u16) -> io::Result<Arc<SimSocket>> {
        let mut inner = lock(&self.inner);
        let is_free = |inner: &Inner, address: SocketAddr| {
            inner.ports.get(&address).is_none_or(|port| !self.world.is_alive(port.owner))
        };
        let wanted = match port {
            0 => EPHEMERAL_FIRST..=u16::MAX,
            port => port..=port,
        };
        let bound = wanted.map(|port| address(owner.slot, port)).find(|address| is_free(&inner, *address));
        let bound = bound.ok_or(io::ErrorKind::AddrInUse)?;
        inner.sockets += 1;
        let id = inner.sockets;
        let port = Port { id, owner, inbox: VecDeque::new(), inbox_bytes: 0, reader: None };
        let old = inner.ports.insert(bound, port);
        drop(inner);
        drop(old);
        Ok(Arc::new(SimSocket::new(Arc::clone(self), owner, bound, id)))
    }

    pub(crate) fn traffic(&self) -> Traffic {
        lock(&self.inner).traffic
    }

    /// Sends a batch. It is gone once and for all: a lost one is nobody's error.
    fn send(&self, owner: Owner, from: SocketAddr, transmit: &Transmit<'_>) {
        if transmit.contents.is_empty() || !self.world.is_alive(owner) {
            return;
        }
        let now = self.world.now();
        let stride = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut inner = lock(&self.inner);
        let Inner { rng, links, .. } = &mut *inner;
        let target = slot_of(transmit.destination);
        let (carried, lost) = match target.map(|to| (to, links.get_mut(&(owner.slot, to)))) {
            Some((to, None)) if to == owner.slot => {
                (vec![(now + LOOPBACK, Bytes::copy_from_slice(transmit.contents))], Lost::default())
            }
            Some((_, Some(link))) => link.carry(now, transmit.contents, stride, rng),
            Some((_, None)) | None => (Vec::new(), Lost::all(Why::Nowhere, transmit.contents, stride)),
        };
        let to = transmit.destination;
        self.note_lost(&mut inner, from, to, &lost);
        let mut earliest = u64::MAX;
        for (at, contents) in carried {
            earliest = earliest.min(tick(at));
            inner.sequence += 1;
            let batch = Batch { contents, stride, ecn: transmit.ecn };
            let flight = Flight { at, sequence: inner.sequence, from, to, batch };
            inner.flights.push(Reverse(flight));
        }
        let is_earlier = earliest < inner.armed;
        if is_earlier {
            inner.armed = earliest;
        }
        drop(inner);
        if is_earlier {
            self.changed.notify_one();
        }
    }

    fn note_lost(&self, inner: &mut Inner, from: SocketAddr, to: SocketAddr, lost: &Lost) {
        let slot = slot_of(from).unwrap_or(0);
        for (why, count, bytes) in lost.iter() {
            inner.traffic.lost += count;
            self.world.event(slot, format_args!("{why:?} {count}/{bytes} to {}", Short(to)));
        }
    }

    /// Delivers what is due, forever. One timer serves the whole network.
    pub(crate) async fn pump(self: Arc<Self>) {
        loop {
            let now = self.world.now();
            let next = {
                let mut inner = lock(&self.inner);
                let next = inner.flights.peek().map(|Reverse(flight)| flight.at);
                inner.armed = next.map_or(u64::MAX, tick);
                next
            };
            match next {
                Some(at) if at <= now => self.deliver_due(now),
                Some(at) => tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(self.world.instant(at)) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    fn deliver_due(&self, now: Duration) {
        let mut readers = Vec::new();
        let mut inner = lock(&self.inner);
        inner.traffic.pumped += 1;
        while inner.flights.peek().is_some_and(|Reverse(flight)| flight.at <= now) {
            let Some(Reverse(flight)) = inner.flights.pop() else { break };
            readers.extend(self.deliver(&mut inner, flight, now));
        }
        drop(inner);
        readers.into_iter().for_each(Waker::wake);
    }

    /// Returns who waits for it.
    fn deliver(&self, inner: &mut Inner, flight: Flight, now: Duration) -> Option<Waker> {
        let Flight { from, to, batch, .. } = flight;
        let (count, bytes) = (batch.count(), batch.contents.len());
        let way = slot_of(from).zip(slot_of(to));
        let is_cut = way.and_then(|way| inner.links.get(&way)).is_some_and(|link| link.is_cut(now));
        let port = inner.ports.get_mut(&to).filter(|port| self.world.is_alive(port.owner));
        let why = match &port {
            _ if is_cut => Some(Why::Cut),
            None => Some(Why::Nowhere),
            Some(port) if port.inbox_bytes + bytes > RECEIVE_BUFFER_BYTES => Some(Why::Unread),
            Some(_) => None,
        };
        let (Some(port), None) = (port, why) else {
            let lost = Lost::all(why.unwrap_or(Why::Nowhere), &batch.contents, batch.stride);
            self.note_lost(inner, from, to, &lost);
            return None;
        };
        let tag = batch.tag();
        port.inbox_bytes += bytes;
        port.inbox.push_back((from, batch));
        let reader = port.reader.take();
        inner.traffic.batches += 1;
        inner.traffic.datagrams += count;
        inner.traffic.bytes += bytes as u64;
        let slot = slot_of(to).unwrap_or(0);
        self.world.event(slot, format_args!("got {count}/{bytes} of {} at {} {tag:08x}", Short(from), to.port()));
        reader
    }
}

/// An address as the trace shows it: slot and port.
struct Short(SocketAddr);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match slot_of(self.0) {
            Some(slot) => write!(f, "{slot}:{}", self.0.port()),
            None => self.0.fmt(f),
        }
    }
}
