//! The measured line: how many bytes it carries in a round trip, from what was acknowledged and when.
//!
//! Pure: time and bytes come in, a window goes out. quinn's pacer sends 1.25 windows a round trip and knows
//! no rate, so the window carries all that is known: the most delivered in a round (of the last ten) times
//! the least round trip (of the last ten seconds), and room for three things that are no queue: bursts of
//! the pacer's timer, acknowledgements that come in bunches, and one look above the known rate in each
//! eight rounds. The ideas are BBR's (Cardwell et al., ACM Queue 14(5), 2016;
//! draft-ietf-ccwg-bbr), as far as a window alone can do them.
//!
//! Loss is congestion when a round loses more than [`LOSS_TOLERATED`]; less is the line's own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Loss in a round that is not read as congestion. A radio link loses a few per cent by itself; a queue that
/// overflows loses what is sent too much, which is 20 % at the highest look above the rate.
const LOSS_TOLERATED: f64 = 0.08;
/// … where round trips are longer too: a queue that overflows does both, chance only one.
const LOSS_TOLERATED_QUEUED: f64 = 0.03;
/// A few packets lost in a short round say nothing.
const LOST_PACKETS_LEAST: u64 = 16;
/// A look has lost heavily when it lost this much more than rounds usually do.
const LOOK_LOSS: f64 = 0.02;
/// The weight of a round in what rounds usually lose.
const USUAL_WEIGHT: f64 = 0.1;
/// Rounds whose best rate counts: longer than one cycle of looking for more.
const RATES_KEPT: usize = 10;
/// The least round trip is measured anew, with an emptied queue, when none as short was seen for this long.
const MIN_RTT_LASTS: Duration = Duration::from_secs(10);
/// A round trip this much above the least confirms it: one 32nd, against the noise of timers.
const MIN_RTT_NOISE: u32 = 32;
/// How long the queue is kept empty for that, or a round trip if that is longer.
const EMPTIED_FOR: Duration = Duration::from_millis(100);
/// Packets that a window holds at least.
const PACKETS_LEAST: u64 = 8;
/// The first window: twice what RFC 9002 section 7.2 recommends, since a reader waits, and paced.
const PACKETS_FIRST: u64 = 24;
/// What the pacer's timer, of a millisecond's grain, may be late: so much of the rate is kept queued.
const TIMER_SLACK: Duration = Duration::from_millis(3);
/// Start: a round that brought less than this more than the best before has found the line's rate …
const GROWTH: f64 = 1.25;
/// … or this where the window grew slowly because round trips became longer.
const GROWTH_SLOWED: f64 = 1.1;
/// Rounds without such growth that end the start.
const STALE_ROUNDS: u32 = 3;
/// Round trips are longer when by an eighth, and no less than this (RFC 9406 section 4.2).
const LONGER_LEAST: Duration = Duration::from_millis(4);
/// Acknowledgements of which the shortest round trip tells how long they are now: one alone is noise.
const RECENT: u32 = 8;
/// By how much a look above the known rate goes above it, at most and at least.
const LOOK_MOST: f64 = 1.25;
const LOOK_LEAST: f64 = 1.05;
/// Rounds from one look to the next.
const CYCLE: u32 = 8;
/// What the window is cut to by a loss that is congestion.
const CUT: f64 = 0.85;
/// A queue is another's when round trips stay above so many times the least …
const RIVAL_QUEUE: f64 = 2.0;
/// … for so many rounds, in which we sent no more than the line carries.
const RIVAL_ROUNDS: u32 = 6;
/// Packets by which the window then grows in a round, until loss: RFC 5681 has one, cubic more.
const RIVAL_PACKETS: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Doubles until the rate grows no more.
    Start,
    /// Lets the start's queue run off.
    Drain,
    /// Knows the line; the round of its cycle.
    Cruise(u32),
    /// Keeps the queue empty until then.
    Empty(Instant),
}

/// What is summed up from when a packet is sent until it is acknowledged.
#[derive(Debug, Clone)]
struct Round {
    began: Instant,
    /// The last packet sent before it: the acknowledgement of a later one ends it.
    last_packet: u64,
    delivered: u64,
    lost: u64,
    /// Whether there was too little to send.
    is_limited: bool,
    least_rtt: Option<Duration>,
    /// Bytes acknowledged ahead of the rate, at most.
    bunched: u64,
}

impl Round {
    fn new(began: Instant, last_packet: u64) -> Self {
        Self { began, last_packet, delivered: 0, lost: 0, is_limited: false, least_rtt: None, bunched: 0 }
    }

    /// The part that was lost; none when it is a few packets.
    fn loss(&self, mtu: u64) -> f64 {
        if self.lost <= LOST_PACKETS_LEAST * mtu {
            return 0.0;
        }
        self.lost as f64 / (self.lost + self.delivered) as f64
    }
}

/// The line as it is known.
#[derive(Debug, Clone)]
pub(super) struct Model {
    mtu: u64,
    window: u64,
    phase: Phase,
    round: Round,
    last_sent: u64,
    /// Bytes a second of the last rounds, and what came bunched in them.
    rates: VecDeque<(f64, u64)>,
    min_rtt: Option<(Duration, Instant)>,
    /// The least round trip there ever was.
    least_rtt: Option<Duration>,
    /// The shortest round trip of the last [`RECENT`] acknowledgements, and those since.
    recent_rtt: Duration,
    recent: (Duration, u32),
    /// Start: the best rate so far, and rounds that did not better it.
    full_rate: f64,
    stale: u32,
    /// The next look's height, the best rate before it, and whether it lost heavily.
    look: f64,
    before_look: f64,
    look_lost: bool,
    /// The part that rounds usually lose.
    usual_loss: f64,
    /// A bound by loss.
    cap: Option<u64>,
    /// Acknowledged since then; ahead of the rate if more than it gives.
    bunch: (Instant, u64),
    /// Rounds in a row with another's queue.
    rival: u32,
}

impl Model {
    pub(super) fn new(now: Instant, mtu: u64) -> Self {
        Self {
            mtu,
            window: PACKETS_FIRST * mtu,
            phase: Phase::Start,
            round: Round::new(now, 0),
            last_sent: 0,
            rates: VecDeque::with_capacity(RATES_KEPT),
            min_rtt: None,
            least_rtt: None,
            full_rate: 0.0,
            stale: 0,
            recent_rtt: Duration::ZERO,
            recent: (Duration::MAX, 0),
            look: LOOK_MOST,
            before_look: 0.0,
            look_lost: false,
            usual_loss: 0.0,
            cap: None,
            bunch: (now, 0),
            rival: 0,
        }
    }

    /// Bytes that may be in flight.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// The least round trip there ever was on this path.
    pub(super) fn least_rtt(&self) -> Option<Duration> {
        self.least_rtt
    }

    /// The least round trip of late; none while it is measured anew.
    fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt.map(|(rtt, _)| rtt)
    }

    #[cfg(test)]
    pub(super) fn rounds_seen(&self) -> usize {
        self.rates.len()
    }

    pub(super) fn set_mtu(&mut self, mtu: u64) {
        self.mtu = mtu;
    }

    pub(super) fn sent(&mut self, packet: u64) {
        self.last_sent = self.last_sent.max(packet);
    }

    pub(super) fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, is_limited: bool) {
        let rtt = now.saturating_duration_since(sent);
        self.least_rtt = Some(self.least_rtt.map_or(rtt, |least| least.min(rtt)));
        self.round.least_rtt = Some(self.round.least_rtt.map_or(rtt, |least| least.min(rtt)));
        self.min_rtt = Some(match self.min_rtt {
            Some((least, since)) if rtt > least + least / MIN_RTT_NOISE => (least, since),
            Some((least, _)) => (least.min(rtt), now),
            None => (rtt, now),
        });
        self.round.delivered += bytes;
        self.round.is_limited |= is_limited;
        self.bunch.1 += bytes;
        self.recent = (self.recent.0.min(rtt), self.recent.1 + 1);
        if self.recent.1 == RECENT {
            self.recent_rtt = self.recent.0;
            self.recent = (Duration::MAX, 0);
        }
        if self.phase == Phase::Start && !is_limited {
            self.window += if self.is_longer(2) {
                0
            } else if self.is_longer(8) {
                bytes / 4
            } else {
                bytes
            };
        }
    }

    pub(super) fn lost(&mut self, bytes: u64, is_persistent: bool) {
        self.round.lost += bytes;
        if is_persistent {
            // Nothing came through for several time-outs: the line is another, or was gone.
            let fresh = Self::new(self.round.began, self.mtu);
            *self = Self {
                window: PACKETS_LEAST * self.mtu,
                last_sent: self.last_sent,
                least_rtt: self.least_rtt,
                ..fresh
            };
            self.round.last_packet = self.last_sent;
        }
    }

    pub(super) fn end_acks(&mut self, now: Instant, in_flight: u64, is_limited: bool, largest: Option<u64>) {
        self.round.is_limited |= is_limited;
        self.measure_bunch(now);
        if largest.is_some_and(|largest| largest > self.round.last_packet) {
            self.end_round(now, in_flight);
        }
    }

    fn best_rate(&self) -> f64 {
        self.rates.iter().map(|(rate, _)| *rate).fold(0.0, f64::max)
    }

    /// Bytes that the line carries in a round trip.
    fn carries(&self) -> f64 {
        self.best_rate() * self.min_rtt().unwrap_or_default().as_secs_f64()
    }

    fn slack(&self) -> f64 {
        (PACKETS_LEAST * self.mtu) as f64 + self.best_rate() * TIMER_SLACK.as_secs_f64()
    }

    /// As Linux does (`bbr_update_ack_aggregation`): what is acknowledged faster than the line can carry was
    /// held up on the way, and a window without room for it would leave the line idle meanwhile.
    fn measure_bunch(&mut self, now: Instant) {
        let (since, acked) = self.bunch;
        let expected = self.best_rate() * now.saturating_duration_since(since).as_secs_f64();
        if (acked as f64) <= expected {
            self.bunch = (now, 0);
        } else {
            self.round.bunched = self.round.bunched.max(bytes_of(acked as f64 - expected));
        }
    }

    fn end_round(&mut self, now: Instant, in_flight: u64) {
        let round = std::mem::replace(&mut self.round, Round::new(now, self.last_sent));
        let took = now.saturating_duration_since(round.began).as_secs_f64().max(1e-4);
        let rate = round.delivered as f64 / took;
        let best = self.best_rate();
        // A round in which there was too little to send says only that the line does at least this.
        if !round.is_limited || rate > best {
            if self.rates.len() == RATES_KEPT {
                self.rates.pop_front();
            }
            self.rates.push_back((rate, round.bunched));
        }
        let loss = round.loss(self.mtu);
        let is_heavy = loss > if self.is_longer(8) { LOSS_TOLERATED_QUEUED } else { LOSS_TOLERATED };
        self.next_phase(now, in_flight, &round, rate, is_heavy, loss);
        self.watch_rival(&round);
        self.bound(in_flight, is_heavy);
        if !matches!(self.phase, Phase::Start | Phase::Empty(_)) {
            self.set_window();
        }
    }

    fn next_phase(&mut self, now: Instant, in_flight: u64, round: &Round, rate: f64, is_heavy: bool, loss: f64) {
        self.phase = match self.phase {
            Phase::Start => {
                let is_longer = self.is_longer(8);
                let grew = self.full_rate * if is_longer { GROWTH_SLOWED } else { GROWTH };
                if rate > grew {
                    (self.full_rate, self.stale) = (rate, 0);
                } else if !round.is_limited {
                    self.stale += 1;
                }
                let enough = if is_longer { 1 } else { STALE_ROUNDS };
                if is_heavy || self.stale >= enough { Phase::Drain } else { Phase::Start }
            }
            Phase::Drain if in_flight as f64 <= self.carries() + self.slack() => Phase::Cruise(2),
            Phase::Drain => Phase::Drain,
            Phase::Empty(until) if now >= until => Phase::Cruise(2),
            Phase::Empty(until) => Phase::Empty(until),
            Phase::Cruise(_)
                if self.min_rtt.is_some_and(|(_, since)| now.saturating_duration_since(since) > MIN_RTT_LASTS) =>
            {
                let rtt = self.min_rtt().unwrap_or_default();
                self.window = bytes_of(self.carries() / 2.0).max(PACKETS_LEAST * self.mtu);
                self.min_rtt = None;
                Phase::Empty(now + rtt.max(EMPTIED_FOR))
            }
            Phase::Cruise(number) => self.next_cruise(number, rate, loss),
        };
    }

    /// Round 0 sends a look's bytes, round 1 has them acknowledged, round 2 lets what they queued run off.
    fn next_cruise(&mut self, number: u32, rate: f64, loss: f64) -> Phase {
        match number {
            0 => {
                self.look_lost = loss > self.usual_loss + LOOK_LOSS;
                Phase::Cruise(1)
            }
            1 => {
                self.look_lost |= loss > self.usual_loss + LOOK_LOSS;
                let step = if self.look_lost { 0.5 } else { 1.5 };
                self.look = (1.0 + (self.look - 1.0) * step).clamp(LOOK_LEAST, LOOK_MOST);
                // One that found more goes on at once.
                let found = !self.look_lost && rate > self.before_look * (1.0 + (LOOK_LEAST - 1.0) * 2.0);
                if found { self.start_look() } else { Phase::Cruise(2) }
            }
            _ => {
                self.usual_loss += (loss - self.usual_loss) * USUAL_WEIGHT;
                if number + 1 >= CYCLE { self.start_look() } else { Phase::Cruise(number + 1) }
            }
        }
    }

    fn start_look(&mut self) -> Phase {
        self.before_look = self.best_rate();
        Phase::Cruise(0)
    }

    /// Whether round trips are longer than the least by this part of it.
    fn is_longer(&self, part: u32) -> bool {
        self.min_rtt().is_some_and(|least| self.recent_rtt > least + (least / part).max(LONGER_LEAST))
    }

    /// Whoever keeps to the measured line beside somebody whom only a full queue stops is left with nothing.
    fn watch_rival(&mut self, round: &Round) {
        let Some((rtt, least)) = round.least_rtt.zip(self.min_rtt()) else { return };
        let is_queued = rtt.as_secs_f64() > RIVAL_QUEUE * least.as_secs_f64() + TIMER_SLACK.as_secs_f64();
        let is_cruise = matches!(self.phase, Phase::Cruise(_));
        self.rival = if is_queued && is_cruise { self.rival + 1 } else { 0 };
    }

    /// A look's loss bounds the next look only; all other bounds the window, for a while.
    fn bound(&mut self, in_flight: u64, is_heavy: bool) {
        let is_look = matches!(self.phase, Phase::Cruise(1 | 2) | Phase::Start);
        if is_heavy && !is_look {
            let sent = self.window.min(in_flight.max(PACKETS_LEAST * self.mtu));
            self.cap = Some(bytes_of(sent as f64 * CUT));
        } else if let Some(cap) = self.cap {
            let raised = cap + cap / 8;
            self.cap = (raised as f64 <= 2.0 * self.carries() + 2.0 * self.slack()).then_some(raised);
        }
    }

    fn set_window(&mut self) {
        let (carries, slack) = (self.carries(), self.slack());
        if carries == 0.0 {
            return;
        }
        if self.rival >= RIVAL_ROUNDS {
            self.window = (self.window + RIVAL_PACKETS * self.mtu).min(self.cap.unwrap_or(u64::MAX));
            return;
        }
        let bunched = self.rates.iter().map(|(_, bunched)| *bunched).max().unwrap_or(0) as f64;
        let share = match self.phase {
            Phase::Drain | Phase::Cruise(2) => 0.9,
            Phase::Cruise(0) => self.look,
            Phase::Start | Phase::Empty(_) | Phase::Cruise(_) => 1.0,
        };
        let window = bytes_of(carries * share + slack + bunched.min(carries / 2.0));
        self.window = window.min(self.cap.unwrap_or(u64::MAX)).max(PACKETS_LEAST * self.mtu);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "no line carries 2^52 bytes in a round trip")]
fn bytes_of(value: f64) -> u64 {
    value as u64
}
