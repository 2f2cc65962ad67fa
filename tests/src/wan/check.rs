//! Whether the network is what was asked for, measured by its users: datagrams between two sites.
//!
//! An emulator that loses nothing or cuts both ways would make every chaos run pass for the wrong
//! reason. So each property is measured, and the check itself is checked: with `spoil` the lines are
//! made otherwise than asked, and every finding must turn bad.

#![expect(clippy::disallowed_methods, reason = "the check measures the network with sockets of its own")]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

use super::{Shape, Wan, address};

const PORT: u16 = 9000;
/// Measurements of which one must be good.
const TRIES: usize = 3;
/// Echoes of one measurement of a round trip.
const ECHOES: usize = 40;
/// What scheduling may add to a round trip in most echoes.
const SLACK: Duration = Duration::from_millis(4);
/// What clocks and rounding may take away from it.
const EARLY: Duration = Duration::from_micros(200);
/// How far the measured rate may be off.
const RATE_TOLERANCE: f64 = 0.10;
/// Datagrams of one measurement of loss.
const SAMPLES: usize = 3000;
/// Standard deviations that chance may be off: one run in 15,000 is.
const SIGMAS: f64 = 4.0;
/// Bytes that IP and UDP add to a datagram.
const HEADERS: usize = 28;
/// What has not come by then was dropped.
const SILENCE: Duration = Duration::from_millis(700);

/// One property.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Which.
    pub what: &'static str,
    /// What was asked for.
    pub asked: String,
    /// What was measured.
    pub measured: String,
    /// Whether it is within the bounds.
    pub good: bool,
}

/// Measures the network between its first two sites. `spoil` may falsify the line that is set up for
/// each measurement.
///
/// # Errors
/// When sockets cannot be made.
pub async fn check(wan: &Wan, spoil: Option<fn(&mut Shape)>) -> io::Result<Vec<Finding>> {
    let lab = Lab { wan, spoil };
    // A busy machine may make a good network look bad; nothing makes a bad one look good.
    let tries = if spoil.is_some() { 1 } else { TRIES };
    let mut findings = Vec::new();
    for property in PROPERTIES {
        let mut finding = lab.measure(property).await?;
        for _ in 1..tries {
            if finding.good {
                break;
            }
            finding = lab.measure(property).await?;
        }
        findings.push(finding);
    }
    Ok(findings)
}

#[derive(Debug, Clone, Copy)]
enum Property {
    RoundTrip,
    Jitter,
    Rate,
    Queue,
    Loss,
    /// Which directions are cut.
    Cut(bool, bool),
}

const PROPERTIES: [Property; 8] = [
    Property::RoundTrip,
    Property::Jitter,
    Property::Rate,
    Property::Queue,
    Property::Loss,
    Property::Cut(true, false),
    Property::Cut(false, true),
    Property::Cut(true, true),
];

struct Lab<'a> {
    wan: &'a Wan,
    spoil: Option<fn(&mut Shape)>,
}

impl Lab<'_> {
    async fn measure(&self, property: Property) -> io::Result<Finding> {
        match property {
            Property::RoundTrip => self.round_trip().await,
            Property::Jitter => self.jitter().await,
            Property::Rate => self.rate().await,
            Property::Queue => self.queue().await,
            Property::Loss => self.loss().await,
            Property::Cut(there, back) => self.cut(there, back).await,
        }
    }

    fn set(&self, from: usize, to: usize, asked: &Shape) {
        self.wan.router.change(from, to, |shape| {
            *shape = asked.clone();
            if let Some(spoil) = self.spoil {
                spoil(shape);
            }
        });
    }

    fn both(&self, asked: &Shape) {
        self.set(0, 1, asked);
        self.set(1, 0, asked);
    }

    async fn socket(&self, site: usize) -> io::Result<UdpSocket> {
        let own = SocketAddr::from((address(site), PORT));
        self.wan.sites[site].run(async move { UdpSocket::bind(own).await }).await?
    }

    /// Round trips of `ECHOES` datagrams, in order of length.
    async fn echoes(&self) -> io::Result<Vec<Duration>> {
        let (near, far) = (self.socket(0).await?, self.socket(1).await?);
        let echo = maillage_host::spawn(async move {
            let mut bytes = [0; 64];
            while let Ok((len, from)) = far.recv_from(&mut bytes).await {
                let _ = far.send_to(&bytes[..len], from).await;
            }
        });
        let mut trips = Vec::new();
        for _ in 0..ECHOES {
            let since = Instant::now();
            near.send_to(b"echo", (address(1), PORT)).await?;
            if timeout(SILENCE, near.recv(&mut [0; 64])).await.is_ok() {
                trips.push(since.elapsed());
            }
        }
        echo.abort();
        let _ = echo.await;
        trips.sort_unstable();
        Ok(trips)
    }

    async fn round_trip(&self) -> io::Result<Finding> {
        let asked = Duration::from_millis(40);
        self.both(&Shape::rtt(asked));
        let trips = self.echoes().await?;
        // The machine may be busy now and then; most echoes must not notice.
        let (least, usual) = (trips.first().copied().unwrap_or_default(), quantile(&trips, 1, 4));
        Ok(Finding {
            what: "round trip",
            asked: format!("{asked:?}"),
            measured: format!("least {least:.1?}, lower quartile {usual:.1?}"),
            good: least + EARLY >= asked && usual <= asked + SLACK,
        })
    }

    async fn jitter(&self) -> io::Result<Finding> {
        let jitter = Duration::from_millis(20);
        self.both(&Shape { delay: Duration::from_millis(10), jitter, ..Shape::default() });
        let trips = self.echoes().await?;
        // The sum of two even draws: three quarters of it lie within 20 ms of each other.
        let spread = quantile(&trips, 7, 8).saturating_sub(quantile(&trips, 1, 8));
        Ok(Finding {
            what: "jitter",
            asked: format!("up to {jitter:?} each way"),
            measured: format!("middle three quarters within {spread:.1?}"),
            good: spread > jitter / 2 && spread < 2 * jitter,
        })
    }

    /// Sends `count` datagrams of `len` bytes from the first site, `burst` every `pause`. How many came
    /// to the second, and how long the first was before the last.
    async fn flood(&self, count: usize, len: usize, burst: usize, pause: Duration) -> io::Result<(usize, Duration)> {
        let (near, far) = (self.socket(0).await?, self.socket(1).await?);
        let receiver = self.wan.sites[1].run(async move {
            let mut bytes = vec![0; 2048];
            let (mut came, mut first, mut last) = (0, None, None);
            while let Ok(Ok(_)) = timeout(SILENCE, far.recv(&mut bytes)).await {
                came += 1;
                first.get_or_insert_with(Instant::now);
                last = Some(Instant::now());
            }
            (came, first.zip(last).map(|(first, last)| last - first).unwrap_or_default())
        });
        let sender = self.wan.sites[0].run(async move {
            let bytes = vec![7; len];
            for n in 1..=count {
                near.send_to(&bytes, (address(1), PORT)).await?;
                if n % burst == 0 {
                    sleep(pause).await;
                }
            }
            io::Result::Ok(())
        });
        let (received, sent) = tokio::join!(receiver, sender);
        sent??;
        received
    }

    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    async fn rate(&self) -> io::Result<Finding> {
        let (rate, len) = (8_000_000, 1000);
        // A queue that holds it all: a sender that stumbles must not leave the line idle.
        self.both(&Shape { rate: Some(rate), queue: 8 << 20, ..Shape::default() });
        let (came, took) = self.flood(2400, len, 40, Duration::from_millis(5)).await?;
        let bits = (came.saturating_sub(1) * (len + HEADERS) * 8) as f64;
        let measured = bits / took.as_secs_f64().max(0.001);
        Ok(Finding {
            what: "rate",
            asked: format!("{:.1} Mb/s", rate as f64 / 1e6),
            measured: format!("{:.2} Mb/s", measured / 1e6),
            good: came > 100 && (measured / rate as f64 - 1.0).abs() <= RATE_TOLERANCE,
        })
    }

    async fn queue(&self) -> io::Result<Finding> {
        // So slow that nothing leaves while the burst comes: what passes is what fits.
        let (len, fits) = (1000, 20);
        let queue = u64::try_from(fits * (len + HEADERS)).unwrap_or(u64::MAX);
        self.both(&Shape { rate: Some(400_000), queue, ..Shape::default() });
        let (came, _) = self.flood(100, len, 100, Duration::ZERO).await?;
        Ok(Finding {
            what: "queue",
            asked: format!("{fits} datagrams"),
            measured: format!("{came} of a burst of 100 passed"),
            good: came >= fits && came <= fits + 4,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    async fn loss(&self) -> io::Result<Finding> {
        let loss = 0.1;
        self.both(&Shape { loss, ..Shape::default() });
        let (came, _) = self.flood(SAMPLES, 32, 20, Duration::from_millis(3)).await?;
        let (n, lost) = (SAMPLES as f64, SAMPLES.saturating_sub(came) as f64);
        let bound = SIGMAS * (n * loss * (1.0 - loss)).sqrt();
        Ok(Finding {
            what: "loss",
            asked: format!("{:.0} of {SAMPLES}", n * loss),
            measured: format!("{lost} of {SAMPLES}, {bound:.0} more or less are chance"),
            good: (lost - n * loss).abs() <= bound,
        })
    }

    async fn cut(&self, there: bool, back: bool) -> io::Result<Finding> {
        self.set(0, 1, &Shape { up: !there, ..Shape::default() });
        self.set(1, 0, &Shape { up: !back, ..Shape::default() });
        let (near, far) = (self.socket(0).await?, self.socket(1).await?);
        let mut came = [false; 2];
        for (at, from, to, site) in [(0, &near, &far, 1), (1, &far, &near, 0)] {
            for _ in 0..3 {
                from.send_to(b"there?", (address(site), PORT)).await?;
            }
            came[at] = timeout(SILENCE, to.recv(&mut [0; 64])).await.is_ok();
        }
        let name = |cut: bool| if cut { "cut" } else { "open" };
        Ok(Finding {
            what: if there && back { "cut" } else { "one-way cut" },
            asked: format!("there {}, back {}", name(there), name(back)),
            measured: format!("there {}, back {}", name(!came[0]), name(!came[1])),
            good: came == [!there, !back],
        })
    }
}

fn quantile(sorted: &[Duration], part: usize, of: usize) -> Duration {
    sorted.get(sorted.len() * part / of).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::{missing, spoil};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_network_is_what_was_asked_and_the_check_notices_when_it_is_not() {
        if let Some(why) = missing() {
            eprintln!("skipped: {why}");
            return;
        }
        let wan = Wan::new(2, &Shape::default(), 1).expect("a network");
        // A busy machine disturbs a measurement now and then, never towards what was asked five times.
        let mut bad = Vec::new();
        for attempt in 0..5 {
            let findings = check(&wan, None).await.expect("measured");
            let still = |finding: &Finding| !finding.good && (attempt == 0 || bad.contains(&finding.what));
            bad = findings.iter().filter(|finding| still(finding)).map(|finding| finding.what).collect();
            if bad.is_empty() {
                break;
            }
            eprintln!("measured again: {findings:?}");
        }
        assert!(bad.is_empty(), "{bad:?}");
        for finding in check(&wan, Some(spoil)).await.expect("measured") {
            assert!(!finding.good, "not noticed: {finding:?}");
        }
    }
}
