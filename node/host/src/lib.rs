//! What a node takes from its machine: time, tasks, disk and an embedded key-value engine.
//!
//! Every crate of the mesh reaches the machine through this one, so that `simulations/` can run the
//! same code under a clock, a disk and a scheduler of its own. Nothing here knows DICOM, Raft or a
//! peer. `clippy.toml` forbids the ways round it (`tokio::spawn`, `std::fs`, `SystemTime::now`, …).
//!
//! Monotonic time is `tokio::time`, which a simulator pauses; randomness is `rand`, whose source a
//! simulator seeds below libc. Neither needs a seam of ours.

pub mod clock;
pub mod disk;
pub mod engine;
pub mod task;

pub use clock::{Clock, UnixMillis};
pub use disk::{Disk, DiskFile};
pub use engine::{Batch, Engine, EngineHome};
pub use task::{offload, offload_behind, spawn};
