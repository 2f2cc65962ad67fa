//! The replicated log: one Raft group over opaque commands.
//!
//! openraft decides; this module gives it a log on disk (`log`), a state (`state`), snapshots
//! (`snapshot`) and a network (`client`, `server`), and gives everybody else one handle, [`Group`]. A
//! command and an outcome are bytes here; [`crate::machine::Machine`] knows what they mean. `types` is
//! the one place that chooses openraft's type parameters, and nothing of openraft's is ever written to
//! disk or wire as openraft would encode it: `codec` and `wire` do that.

mod client;
mod codec;
mod config;
mod group;
mod halt;
mod links;
mod log;
mod runtime;
mod server;
mod snapshot;
mod state;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;
mod wire;

pub use config::{GroupConfig, Timing};
pub use group::{Committed, Group, MembershipError, ProposeError, ReadError, StartError};
pub use links::{Duplex, Links};
pub use log::LogError;
pub use status::{ClockOffset, Freshness, GroupStatus, Role, Said};

/// The longest command accepted, in bytes: an entry must travel and apply in a fraction of a heartbeat.
pub const MAX_COMMAND: usize = 1 << 20;
