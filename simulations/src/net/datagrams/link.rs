//! A directed link: what becomes of the datagrams that enter it, and when they come out.
//!
//! First a queue at the link's rate, which overflows at its tail; then the wire, which loses, repeats
//! and reorders single datagrams. Jitter keeps the order, as delay in other queues does. A batch arrives
//! when its last datagram does, as a kernel that coalesces would hand it over.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::super::Quality;
use crate::rng::Rng;

/// IPv4 and UDP headers, which take their time on the wire too.
const HEADERS: usize = 28;
/// The longest datagram that passes: Ethernet's 1500 bytes without headers. QUIC probes for it.
const DATAGRAM_LEN_MAX: usize = 1500 - HEADERS;
/// What is reordered comes late by this much in the mean: a few round trips within a city.
const LATE: Duration = Duration::from_millis(5);
/// Nothing arrives in the instant in which it was sent, or two nodes could answer each other forever
/// without any time passing.
const LATENCY_MIN: Duration = Duration::from_micros(1);

/// What a link does to single datagrams, besides taking its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flaws {
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that it arrives twice.
    pub duplication: f64,
    /// Probability that it is overtaken by others.
    pub reordering: f64,
    /// The longest that a datagram waits in the queue; beyond, it is dropped.
    pub queue: Duration,
}

impl Default for Flaws {
    /// None, and a queue as deep as routers at the edge have: 200 ms.
    fn default() -> Self {
        Self { loss: 0.0, duplication: 0.0, reordering: 0.0, queue: Duration::from_millis(200) }
    }
}

/// Why a datagram did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The link is cut or dark.
    Cut,
    /// The queue was full.
    Overflow,
    /// The wire lost it.
    Lost,
    /// It is longer than the path takes.
    TooLong,
    /// Nobody is at the address, or no link leads there.
    Nowhere,
    /// The receiver's buffer was full.
    Unread,
}

/// What was lost of a batch: why, datagrams and bytes.
#[derive(Debug, Default)]
pub(super) struct Lost(Vec<(Why, u64, usize)>);

impl Lost {
    pub(super) fn all(why: Why, contents: &[u8], stride: usize) -> Self {
        Self(vec![(why, contents.len().div_ceil(stride.max(1)) as u64, contents.len())])
    }

    fn add(&mut self, why: Why, bytes: usize) {
        match self.0.iter_mut().find(|(known, ..)| *known == why) {
            Some((_, count, sum)) => {
                *count += 1;
                *sum += bytes;
            }
            None => self.0.push((why, 1, bytes)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Why, u64, usize)> {
        self.0.iter().copied()
    }
}

/// What comes out, and when.
type Carried = Vec<(Duration, Bytes)>;

/// See the module.
pub(super) struct Link {
    pub(super) quality: Quality,
    pub(super) flaws: Flaws,
    /// Added while a spike lasts.
    pub(super) extra: Duration,
    /// Cuts in force; faults overlap.
    pub(super) cuts: u32,
    /// Until when nothing passes because a connection was to break.
    pub(super) dark_until: Duration,
    busy_until: Duration,
    last_arrival: Duration,
}

impl Link {
    pub(super) fn new(quality: Quality) -> Self {
        Self {
            quality,
            flaws: Flaws::default(),
            extra: Duration::ZERO,
            cuts: 0,
            dark_until: Duration::ZERO,
            busy_until: Duration::ZERO,
            last_arrival: Duration::ZERO,
        }
    }

    pub(super) fn set_extra(&mut self, extra: Duration) {
        self.extra = extra;
        self.last_arrival = Duration::ZERO;
    }

    pub(super) fn is_cut(&self, now: Duration) -> bool {
        self.cuts > 0 || now < self.dark_until
    }

    /// Takes datagrams of `stride` bytes, the last perhaps shorter. What stays together comes out as one.
    pub(super) fn carry(&mut self, now: Duration, contents: &[u8], stride: usize, rng: &mut Rng) -> (Carried, Lost) {
        if self.is_cut(now) {
            return (Vec::new(), Lost::all(Why::Cut, contents, stride));
        }
        let mut lost = Lost::default();
        let mut together = BytesMut::with_capacity(contents.len());
        let mut apart = Vec::new();
        for datagram in contents.chunks(stride) {
            match self.pass(now, datagram.len(), rng) {
                Err(why) => lost.add(why, datagram.len()),
                Ok(Passage { copies, is_late }) => {
                    if is_late {
                        apart.push(datagram);
                    } else {
                        together.extend_from_slice(datagram);
                    }
                    apart.extend(std::iter::repeat_n(datagram, copies - 1));
                }
            }
        }
        let soonest = self.busy_until.max(now) + (self.quality.latency + self.extra).max(LATENCY_MIN);
        let mut carried = Vec::with_capacity(1 + apart.len());
        if !together.is_empty() {
            let arrival = (soonest + rng.around(self.quality.jitter)).max(self.last_arrival);
            self.last_arrival = arrival;
            carried.push((arrival, together.freeze()));
        }
        for datagram in apart {
            let arrival = soonest + rng.around(LATE + self.quality.jitter);
            carried.push((arrival, Bytes::copy_from_slice(datagram)));
        }
        (carried, lost)
    }

    fn pass(&mut self, now: Duration, len: usize, rng: &mut Rng) -> Result<Passage, Why> {
        if len > DATAGRAM_LEN_MAX {
            return Err(Why::TooLong);
        }
        let nanos = ((len + HEADERS) as u64).saturating_mul(1_000_000_000) / self.quality.bytes_per_second.max(1);
        let through = self.busy_until.max(now) + Duration::from_nanos(nanos);
        if through > now + self.flaws.queue.max(Duration::from_nanos(nanos)) {
            return Err(Why::Overflow);
        }
        self.busy_until = through;
        if rng.chance(self.flaws.loss) {
            return Err(Why::Lost);
        }
        let copies = if rng.chance(self.flaws.duplication) { 2 } else { 1 };
        Ok(Passage { copies, is_late: rng.chance(self.flaws.reordering) })
    }
}

/// How a datagram got through.
struct Passage {
    copies: usize,
    is_late: bool,
}
