//! The thread that carries packets between the sites.
//!
//! One thread for all lines: packets wait in one heap by due time, and the thread sleeps until the next
//! is due or a device has something to read. On a small machine that costs a few microseconds a packet.

#![expect(
    clippy::disallowed_methods,
    reason = "test harness: packets are carried in real time by a thread of their own, never simulated"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::{read, write};

use super::line::{Counts, Line, Shape};
use super::tun::MTU;
use crate::draw::Draw;

/// Packets read of one device before the others get their turn.
const BATCH: usize = 64;
/// Where an IPv4 header has the last byte of its destination (RFC 791).
const DESTINATION_LAST: usize = 19;
/// The length of that header without options.
const HEADER_LEN: usize = 20;
/// The event that ends the thread; the others are numbers of sites.
const END: u64 = u64::MAX;

/// The router. Dropped, it stops.
#[derive(Debug)]
pub struct Router {
    lines: Arc<Mutex<Lines>>,
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// All lines, by where they come from and lead.
#[derive(Debug)]
struct Lines {
    sites: usize,
    lines: Vec<Line>,
}

impl Lines {
    fn at(&mut self, from: usize, to: usize) -> Option<&mut Line> {
        if from == to || to >= self.sites {
            return None;
        }
        self.lines.get_mut(from * self.sites + to)
    }
}

impl Router {
    /// Starts to carry packets between these devices.
    pub(super) fn start(tuns: Vec<OwnedFd>, shape: &Shape, seed: u64) -> io::Result<Self> {
        let sites = tuns.len();
        let line = |n: usize| Line::new(shape.clone(), Draw::fork(seed, &format!("line {n}")));
        let lines = Arc::new(Mutex::new(Lines { sites, lines: (0..sites * sites).map(line).collect() }));
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, tun) in tuns.iter().enumerate() {
            let number = u64::try_from(number).map_err(io::Error::other)?;
            epoll::add(&poll, tun, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        }
        epoll::add(&poll, &*end, epoll::EventData::new_u64(END), epoll::EventFlags::IN)?;
        let carrier = Carrier {
            tuns,
            poll,
            _end: Arc::clone(&end),
            lines: Arc::clone(&lines),
            start: Instant::now(),
            waiting: BinaryHeap::new(),
            free: Vec::new(),
            taken: 0,
        };
        let thread = std::thread::Builder::new().name("wan".to_owned()).spawn(move || carrier.run())?;
        Ok(Self { lines, end, thread: Some(thread) })
    }

    fn locked(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sites it joins.
    pub fn sites(&self) -> usize {
        self.locked().sites
    }

    /// Changes the line from one site to another, from its next packet on. A pair that does not exist
    /// is left alone.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Shape)) {
        if let Some(line) = self.locked().at(from, to) {
            change(&mut line.shape);
        }
    }

    /// Changes every line whose ends are chosen.
    pub fn change_where(&self, mut chosen: impl FnMut(usize, usize) -> bool, mut change: impl FnMut(&mut Shape)) {
        let mut lines = self.locked();
        let sites = lines.sites;
        for (from, to) in (0..sites).flat_map(|from| (0..sites).map(move |to| (from, to))) {
            if chosen(from, to)
                && let Some(line) = lines.at(from, to)
            {
                change(&mut line.shape);
            }
        }
    }

    /// The shape of a line; the default for a pair that does not exist.
    pub fn shape(&self, from: usize, to: usize) -> Shape {
        self.locked().at(from, to).map(|line| line.shape.clone()).unwrap_or_default()
    }

    /// What became of a line's packets.
    pub fn counts(&self, from: usize, to: usize) -> Counts {
        self.locked().at(from, to).map(|line| line.counts).unwrap_or_default()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = write(&*self.end, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet under way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: u64,
    /// In which order it came: packets due at once keep it.
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

struct Carrier {
    tuns: Vec<OwnedFd>,
    poll: OwnedFd,
    // Kept open for as long as it is polled.
    _end: Arc<OwnedFd>,
    lines: Arc<Mutex<Lines>>,
    start: Instant,
    waiting: BinaryHeap<Reverse<Packet>>,
    free: Vec<Vec<u8>>,
    taken: u64,
}

impl Carrier {
    fn run(mut self) {
        // Waking up late by the usual 50 us would be seen as delay.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        loop {
            let wait = self.deliver_due();
            let timeout = wait.map(|wait| Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            });
            let mut events: Vec<epoll::Event> = Vec::with_capacity(self.tuns.len() + 1);
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    eprintln!("wan: {error}");
                    return;
                }
            }
            for event in &events {
                let from = event.data.u64();
                if from == END {
                    return;
                }
                self.take_from(usize::try_from(from).unwrap_or(usize::MAX));
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Delivers what is due, and says how long the next packet has.
    fn deliver_due(&mut self) -> Option<Duration> {
        loop {
            let due = self.waiting.peek().map(|Reverse(packet)| packet.due)?;
            let now = self.now();
            if due > now {
                return Some(Duration::from_nanos(due - now));
            }
            let Reverse(packet) = self.waiting.pop()?;
            // A device that takes no more drops, as any card does.
            let _ = write(&self.tuns[packet.to], &packet.bytes);
            self.free.push(packet.bytes);
        }
    }

    /// Takes what a site has sent.
    fn take_from(&mut self, from: usize) {
        for _ in 0..BATCH {
            let mut bytes = self.free.pop().unwrap_or_default();
            bytes.resize(MTU, 0);
            let Some(tun) = self.tuns.get(from) else { return };
            match read(tun, &mut bytes[..]) {
                Ok(len) => bytes.truncate(len),
                Err(_) => {
                    self.free.push(bytes);
                    return;
                }
            }
            self.send_on(from, bytes);
        }
    }

    fn send_on(&mut self, from: usize, bytes: Vec<u8>) {
        let now = self.now();
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let due = destination(&bytes).and_then(|to| {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.at(from, to)?.offer(now, len).ok().map(|due| (to, due))
        });
        let Some((to, due)) = due else {
            self.free.push(bytes);
            return;
        };
        self.taken += 1;
        self.waiting.push(Reverse(Packet { due, number: self.taken, to, bytes }));
    }
}

/// The site that an IPv4 packet is for, by the network's addresses.
fn destination(packet: &[u8]) -> Option<usize> {
    let is_ipv4 = packet.len() >= HEADER_LEN && packet[0] >> 4 == 4;
    let last = is_ipv4.then(|| usize::from(packet[DESTINATION_LAST]))?;
    let to = last.checked_sub(1)?;
    let whole: [u8; 4] = packet[16..HEADER_LEN].try_into().ok()?;
    (std::net::Ipv4Addr::from(whole) == super::address(to)).then_some(to)
}
