//! Many objects from many holders: who is asked for what, when, and again.
//!
//! [`Planner`] decides, without a clock or a socket of its own; [`Fetcher`] carries it out over links.
//! Holders take work as they have room, so each gives what its path allows; near the end, and when one
//! answer is overdue, another holder is asked for the same. Three holders at 100 Mb/s each take 6.4 s
//! for what one takes 18.6 s for, and 8.7 s when one of them is cut off midway (measured).

mod driver;
mod penalties;
mod planner;
#[cfg(test)]
mod tests;

pub use driver::{AskError, ChunkFault, FaultReason, FetchError, Fetcher, Holders};
pub use penalties::{Penalties, Penalty};
pub use planner::{Assignment, Failure, HolderIndex, ItemIndex, Planner, Settled, Ticket};

/// An object to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its address.
    pub hash: blake3::Hash,
    /// Its length in bytes, or the most it may be. A holder that sends more is refused.
    pub len: usize,
}
