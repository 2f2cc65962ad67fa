//! The state's clock: no leader stamps a command before the state's time, and while nothing moves that
//! time, stamps go on from it about as fast as time does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_host::UnixMillis;

use crate::world::{World, lock};

/// How long the state's time may be the same before a stamp must have gone on.
const AT_MOST: Duration = Duration::from_secs(2);

/// The first stamp that a node gave at a time of the state.
struct First {
    state: UnixMillis,
    at: Duration,
}

/// The stamps of one life of a node.
pub(crate) struct Time {
    world: Arc<World>,
    first: Mutex<Option<First>>,
}

impl Time {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, first: Mutex::default() }
    }

    /// The node of `slot` is about to stamp a command with `stamp`, where the state's time is `state`.
    pub(crate) fn stamped(&self, slot: u32, state: UnixMillis, stamp: UnixMillis) {
        if stamp < state {
            let behind = state.0 - stamp.0;
            self.world.violation("time", format!("{slot} stamps {behind} ms before the state's time"));
        }
        let at = self.world.now();
        let mut first = lock(&self.first);
        let Some(seen) = first.as_ref().filter(|seen| seen.state == state) else {
            *first = Some(First { state, at });
            return;
        };
        let elapsed = at.saturating_sub(seen.at);
        // Not from the first stamp: that may have been of a wall clock that was put back since.
        let gone_on = Duration::from_millis(stamp.0.saturating_sub(state.0));
        if elapsed > AT_MOST && gone_on < elapsed / 2 {
            let detail = format!("{slot}'s stamps went on by {gone_on:?} in {elapsed:?}");
            drop(first);
            self.world.violation("time", detail);
        }
    }
}
