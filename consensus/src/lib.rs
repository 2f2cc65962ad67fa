//! What the sites agree on: the replicated queue and its Raft group.
//!
//! This crate knows no DICOM file and no socket. [`raft`] replicates opaque commands; [`machine`] is
//! the seam between the two halves; the rest is the queue's model: commands, outcomes, and the pure
//! function ([`Queue`]) that turns one into the other.

pub mod audit;
pub mod command;
pub mod event;
pub mod exam;
pub mod ids;
mod keys;
pub mod life;
pub mod machine;
pub mod mesh;
pub mod order;
pub mod outcome;
pub mod placement;
mod queue;
pub mod raft;
mod record;
pub mod remark;
mod room;
mod state;
mod state_clock;
pub mod statistics;
pub mod study_key;
pub mod transaction;
pub mod view;

pub use command::{Command, Envelope};
pub use outcome::{Outcome, Refusal};
pub use queue::{OUTCOME_KEPT_MS, Queue};
pub use state_clock::StateClock;
pub use view::View;
