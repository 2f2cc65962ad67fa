//! The pace of copies: how many bytes a second this site takes in for them, so that a drain or a lost site leaves
//! room on the line for what readers wait for, whose own pulls are never slowed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// So much may come at once after a pause: a few chunks, so that the pace is even.
const BURST: Duration = Duration::from_millis(250);

/// A bucket of bytes that fills at a steady rate.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second; none: no limit.
    rate: Option<u64>,
    /// When all that was taken so far is paid for.
    paid_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most so many megabytes a second; 0 for no limit.
    pub(crate) fn of_mb_s(mb_s: u64) -> Self {
        let rate = (mb_s > 0).then(|| mb_s.saturating_mul(1_000_000));
        Self { rate, paid_at: Mutex::default() }
    }

    /// Takes `bytes`, and returns when they are paid for, give or take the burst.
    pub(crate) async fn take(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let paid_at = {
            let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
            let from = paid_at.map_or(now, |at| at.max(now));
            *paid_at.insert(from + cost)
        };
        if let Some(until) = paid_at.checked_sub(BURST).filter(|until| *until > now) {
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn copies_come_at_the_pace_whoever_takes_them_and_no_pace_is_no_wait() {
        let pace = Pace::of_mb_s(4);
        let started = Instant::now();
        let take = async || {
            for _ in 0..20 {
                pace.take(1 << 20).await;
            }
        };
        tokio::join!(take(), take());
        // 40 MiB at 4 MB/s, less the burst.
        let seconds = started.elapsed().as_secs_f64();
        assert!((10.0..10.6).contains(&seconds), "{seconds}");
        // A pause is not saved up.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let started = Instant::now();
        take().await;
        assert!((4.9..5.3).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
        let started = Instant::now();
        Pace::of_mb_s(0).take(u64::MAX).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
