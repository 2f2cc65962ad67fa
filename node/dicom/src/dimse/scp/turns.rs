//! Turns: how many bytes of data sets come in at once. The budget bounds memory; this keeps it flat within that, however many
//! associations send, since what is not read waits with its sender.
//!
//! A data set has its turn from its first bytes until the handler is done with it, but for while nothing comes of it: who is
//! slow keeps nobody waiting. And nobody waits for long: where the handler is slow, memory has to grow after all, and the
//! budget has the last word.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// Bytes that have their turn at once: as many as a disk takes in one fsync or two.
const TURNS_LEN: usize = 16 << 20;
/// What a data set counts for at least and at most, whatever it is guessed to be: the first of an association is not
/// known at all, and none is to wait for all others.
const SHARE_LEN_MIN: usize = 512 << 10;
const SHARE_LEN_MAX: usize = 4 << 20;
/// Bytes of a permit.
const UNIT_LEN: usize = 64 << 10;
/// A sender of whom nothing comes for so long is not waited for by the others.
const LULL: Duration = Duration::from_millis(20);
/// Nobody waits longer for a turn.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The turns of all associations.
pub(super) struct Turns(Arc<Semaphore>);

/// The turn of one data set.
pub(super) struct Turn {
    turns: Arc<Semaphore>,
    units: u32,
    held: Option<OwnedSemaphorePermit>,
    /// It came to its turn too late once, and goes on without.
    goes_on: bool,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(TURNS_LEN / UNIT_LEN)))
    }

    /// For a data set that is guessed to be so long.
    pub(super) fn turn(&self, guess: usize) -> Turn {
        let units = guess.clamp(SHARE_LEN_MIN, SHARE_LEN_MAX).div_ceil(UNIT_LEN);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Turn { turns: Arc::clone(&self.0), units, held: None, goes_on: false }
    }
}

impl Turn {
    /// Waits for it, but not for long. How long that took.
    pub(super) async fn come(&mut self) -> Duration {
        if self.held.is_some() || self.goes_on {
            return Duration::ZERO;
        }
        let before = Instant::now();
        let held = timeout(WAIT_MAX, Arc::clone(&self.turns).acquire_many_owned(self.units)).await;
        // The semaphore is never closed.
        self.held = held.ok().and_then(Result::ok);
        self.goes_on = self.held.is_none();
        before.elapsed()
    }

    /// Does what waits for the sender. The turn is another's when that takes long.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(done) = timeout(LULL, work.as_mut()).await {
            return done;
        }
        self.held = None;
        work.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many of the least as there is room for.
    const AT_ONCE: usize = TURNS_LEN / SHARE_LEN_MIN;

    #[tokio::test(start_paused = true)]
    async fn so_many_have_their_turn_and_the_next_waits_for_one_of_them() {
        let turns = Turns::new();
        let mut having: Vec<Turn> = (0..AT_ONCE).map(|_| turns.turn(1)).collect();
        for turn in &mut having {
            assert_eq!(turn.come().await, Duration::ZERO);
        }
        let mut next = turns.turn(1);
        let ends = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            having.pop();
        };
        let (waited, ()) = tokio::join!(next.come(), ends);
        assert_eq!(waited, Duration::from_millis(100));
        assert_eq!(next.come().await, Duration::ZERO, "it has it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_keeps_nobody_waiting_and_has_its_turn_again_once_something_comes() {
        let turns = Turns::new();
        let (mut slow, mut large) = (turns.turn(1), turns.turn(usize::MAX));
        slow.come().await;
        slow.during(tokio::time::sleep(LULL / 2)).await;
        assert!(slow.held.is_some());
        slow.during(tokio::time::sleep(2 * LULL)).await;
        assert!(slow.held.is_none());
        assert_eq!(turns.0.available_permits(), TURNS_LEN / UNIT_LEN);
        large.come().await;
        slow.come().await;
        let left = TURNS_LEN - SHARE_LEN_MAX - SHARE_LEN_MIN;
        assert_eq!(turns.0.available_permits(), left / UNIT_LEN, "a large one counts for no more than its share");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long_nor_twice() {
        let turns = Turns::new();
        let mut having: Vec<Turn> = (0..AT_ONCE).map(|_| turns.turn(1)).collect();
        for turn in &mut having {
            turn.come().await;
        }
        let mut next = turns.turn(1);
        assert_eq!(next.come().await, WAIT_MAX);
        assert_eq!(next.come().await, Duration::ZERO);
    }
}
