//! Bytes in flight: one budget for the instances of all associations.
//!
//! An instance's length is not known before its end, so it takes from the budget as it grows. That
//! alone could end in a deadlock, each holding a part and waiting for the rest; so one at a time
//! may overdraw, and who does finishes. Memory is bounded by the budget and the longest instance.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a unit of the budget: semaphores count to 2^32.
const UNIT_LEN: usize = 16 << 10;

pub(super) struct Budget {
    units: Arc<Semaphore>,
    overdraft: Arc<Semaphore>,
}

/// What one instance holds of the budget; given back when dropped.
pub(super) struct Share {
    units: Arc<Semaphore>,
    overdraft: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    overdrawn: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(len: usize) -> Self {
        let units = len.div_ceil(UNIT_LEN).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), overdraft: Arc::new(Semaphore::new(1)) }
    }

    pub(super) fn share(&self) -> Share {
        let (units, overdraft) = (Arc::clone(&self.units), Arc::clone(&self.overdraft));
        Share { units, overdraft, held: None, overdrawn: None }
    }
}

impl Share {
    /// Grows the share to cover `len` bytes in all; waits until there are so many.
    pub(super) async fn cover(&mut self, len: usize) {
        if self.covers(len) {
            return;
        }
        let missing = u32::try_from(self.missing(len)).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            // Neither semaphore is ever closed.
            Ok(more) = Arc::clone(&self.units).acquire_many_owned(missing) => match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            },
            Ok(overdrawn) = Arc::clone(&self.overdraft).acquire_owned() => self.overdrawn = Some(overdrawn),
            else => {}
        }
    }

    /// Whether so many bytes in all were paid for.
    pub(super) fn covers(&self, len: usize) -> bool {
        self.overdrawn.is_some() || self.missing(len) == 0
    }

    /// Units between what is held and `len` bytes.
    fn missing(&self, len: usize) -> usize {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        len.div_ceil(UNIT_LEN).saturating_sub(held)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn one_may_overdraw_and_the_next_waits_for_it() {
        let budget = Budget::new(10 * UNIT_LEN);
        let (mut first, mut second, mut third) = (budget.share(), budget.share(), budget.share());
        first.cover(6 * UNIT_LEN).await;
        second.cover(4 * UNIT_LEN).await;
        first.cover(20 * UNIT_LEN).await;
        assert!(first.overdrawn.is_some());
        assert!(timeout(MOMENT, third.cover(UNIT_LEN)).await.is_err(), "the budget is spent");
        drop(first);
        timeout(MOMENT, third.cover(UNIT_LEN)).await.expect("there is room again");
        assert!(third.overdrawn.is_none());
        drop((second, third));
        assert_eq!(budget.units.available_permits(), 10);
        assert_eq!(budget.overdraft.available_permits(), 1);
    }
}
