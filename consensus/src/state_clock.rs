//! The state's clock between two commands.
//!
//! Replicated state has a time of its own: the greatest stamp of any command so far. It stands still
//! while nothing is proposed, and for as long as a leader's wall clock is behind an earlier leader's.
//! What lasts a while (a silent site's grace, a kept outcome) must end all the same, so whoever asks
//! for the time lets it run on by its own monotonic clock from where it last saw it.

use std::sync::{Mutex, PoisonError};

use maillage_host::UnixMillis;
use tokio::time::Instant;

/// The state's time as one node extrapolates it. It never goes back.
#[derive(Debug, Default)]
pub struct StateClock(Mutex<Option<(UnixMillis, Instant)>>);

impl StateClock {
    /// The time now, when the state says `state`.
    pub fn now(&self, state: UnixMillis) -> UnixMillis {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let runs_on = seen.map(|(time, since)| {
            let elapsed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            UnixMillis(time.0.saturating_add(elapsed))
        });
        match runs_on {
            Some(time) if time >= state => time,
            _ => {
                *seen = Some((state, Instant::now()));
                state
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_runs_on_from_the_latest_that_the_state_said_and_never_goes_back() {
        let clock = StateClock::default();
        assert_eq!(clock.now(UnixMillis(1_000)), UnixMillis(1_000));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(clock.now(UnixMillis(1_000)), UnixMillis(1_500), "a quiet state's clock runs on");
        assert_eq!(clock.now(UnixMillis(9_000)), UnixMillis(9_000), "a state ahead is believed");
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(clock.now(UnixMillis(9_100)), UnixMillis(9_250), "and one behind is not");
    }
}
