//! What one direction between two sites does to a packet. Pure: time comes in, a due time goes out.
//!
//! A bottleneck with a tail-drop queue, then a delay line. The bottleneck needs no timer: it knows
//! until when it is busy with what it has taken, and the backlog follows from that.

use std::time::Duration;

use crate::draw::Draw;

/// Least queue when it is given as 0, in bytes: a few dozen full packets, as a small router has.
const QUEUE_LEAST: u64 = 64 << 10;
/// What a queue given as 0 holds beyond that: 100 ms of the link's rate, a usual buffer.
const QUEUE_MS: u64 = 100;

/// What a direction is like.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// One-way delay.
    pub delay: Duration,
    /// Up to so much is added, drawn evenly. Packets keep their order.
    pub jitter: Duration,
    /// Share of packets lost, each for itself, 0 to 1.
    pub loss: f64,
    /// Bits per second; `None`: no limit.
    pub rate: Option<u64>,
    /// Bytes that wait for the bottleneck before packets are dropped; 0: 100 ms at the rate.
    pub queue: u64,
    /// False: everything is dropped.
    pub up: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { delay: Duration::ZERO, jitter: Duration::ZERO, loss: 0.0, rate: None, queue: 0, up: true }
    }
}

impl Shape {
    /// A line that only delays, by half of `rtt`.
    pub fn rtt(rtt: Duration) -> Self {
        Self { delay: rtt / 2, ..Self::default() }
    }

    fn queue_bytes(&self, rate: u64) -> u64 {
        if self.queue > 0 { self.queue } else { QUEUE_LEAST.max(rate / 8 * QUEUE_MS / 1000) }
    }
}

/// Why a packet goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The line is cut.
    Cut,
    /// Lost by chance.
    Lost,
    /// The queue is full.
    Full,
}

/// What became of a line's packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed on.
    pub passed: u64,
    /// Bytes passed on.
    pub bytes: u64,
    /// Dropped by a cut.
    pub cut: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped by a full queue.
    pub full: u64,
}

/// One direction at work.
#[derive(Debug, Clone)]
pub struct Line {
    /// May be changed at any time; what is under way stays under way.
    pub shape: Shape,
    /// Since the start.
    pub counts: Counts,
    /// When the bottleneck has sent all that it has taken, in nanoseconds of the router's clock.
    busy_until: u64,
    /// When the last packet comes out: none overtakes it.
    last_due: u64,
    draw: Draw,
}

impl Line {
    /// A line of this shape; the seed decides what is lost.
    pub fn new(shape: Shape, draw: Draw) -> Self {
        Self { shape, counts: Counts::default(), busy_until: 0, last_due: 0, draw }
    }

    /// When a packet of `len` bytes that comes at `now` is due at the other end.
    ///
    /// # Errors
    /// Why it is never.
    pub fn offer(&mut self, now: u64, len: u64) -> Result<u64, Refused> {
        if !self.shape.up {
            self.counts.cut += 1;
            return Err(Refused::Cut);
        }
        if self.shape.loss > 0.0 && self.draw.chance(self.shape.loss) {
            self.counts.lost += 1;
            return Err(Refused::Lost);
        }
        let sent = match self.shape.rate {
            None => now,
            Some(rate) => self.transmit(now, len, rate.max(1))?,
        };
        let jitter = self.draw.below(nanos(self.shape.jitter) + 1);
        let due = (sent + nanos(self.shape.delay) + jitter).max(self.last_due);
        // A delay that was taken back must not hold packets until the old one has passed.
        self.last_due = if self.shape.jitter.is_zero() { 0 } else { due };
        self.counts.passed += 1;
        self.counts.bytes += len;
        Ok(due)
    }

    fn transmit(&mut self, now: u64, len: u64, rate: u64) -> Result<u64, Refused> {
        let start = self.busy_until.max(now);
        let backlog = u128::from(start - now) * u128::from(rate) / 8_000_000_000;
        if backlog + u128::from(len) > u128::from(self.shape.queue_bytes(rate)) {
            self.counts.full += 1;
            return Err(Refused::Full);
        }
        let takes = u128::from(len) * 8_000_000_000 / u128::from(rate);
        self.busy_until = start.saturating_add(u64::try_from(takes).unwrap_or(u64::MAX));
        Ok(self.busy_until)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn line(shape: Shape) -> Line {
        Line::new(shape, Draw::new(1))
    }

    #[test]
    fn a_bottleneck_sends_one_packet_after_the_other_and_drops_what_its_queue_cannot_hold() {
        // 8 Mb/s: 1000 bytes take 1 ms. Three of them fit.
        let mut line =
            line(Shape { rate: Some(8_000_000), queue: 3000, delay: Duration::from_millis(10), ..Shape::default() });
        let due: Vec<_> = (0..5).map(|_| line.offer(0, 1000)).collect();
        let full = Err(Refused::Full);
        assert_eq!(due, [Ok(11 * MS), Ok(12 * MS), Ok(13 * MS), full, full]);
        assert_eq!(line.offer(MS, 1000), Ok(14 * MS), "one has left");
        assert_eq!(line.counts, Counts { passed: 4, bytes: 4000, full: 2, ..Counts::default() });
    }

    #[test]
    fn jitter_spreads_packets_and_keeps_their_order() {
        let shape = Shape { delay: Duration::from_millis(10), jitter: Duration::from_millis(5), ..Shape::default() };
        let mut line = line(shape);
        let due: Vec<u64> = (0..1000).filter_map(|n| line.offer(n * 10 * MS, 100).ok()).collect();
        let extra: Vec<u64> = due.iter().zip(0..).map(|(due, n)| due - n * 10 * MS - 10 * MS).collect();
        assert!(extra.iter().all(|extra| *extra <= 5 * MS));
        assert!(extra.iter().any(|extra| *extra < MS) && extra.iter().any(|extra| *extra > 4 * MS));
        let crowded: Vec<u64> = (0..1000).filter_map(|n| line.offer(20_000 * MS + n, 100).ok()).collect();
        assert!(crowded.is_sorted());
    }

    #[test]
    fn a_cut_takes_effect_at_once_and_ends_at_once() {
        let mut line = line(Shape { up: false, ..Shape::default() });
        assert_eq!(line.offer(0, 100), Err(Refused::Cut));
        line.shape.up = true;
        assert_eq!(line.offer(5, 100), Ok(5));
    }

    #[test]
    fn as_much_is_lost_as_was_asked() {
        let mut line = line(Shape { loss: 0.1, ..Shape::default() });
        let lost = (0..100_000).filter(|n| line.offer(*n, 100) == Err(Refused::Lost)).count();
        // 10,000 expected, standard deviation 95.
        assert!((9_500..10_500).contains(&lost), "{lost}");
    }
}
