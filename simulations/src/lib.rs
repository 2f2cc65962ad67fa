//! The mesh's production code under a simulated clock, network, disk and scheduler, from one seed.
//!
//! What runs here is the production node, whole: `site` gives it a simulated machine. A seed draws a plan (`plan`); a `nemesis` does harm to a `cluster` in
//! a `world` while clients (`workload`) use it; `invariants` watch, and judge at the end. One world per
//! process, because the scheduler of `maillage_host` is installed for good.

mod cluster;
pub mod day;
mod disk;
mod durable;
mod gateway;
mod history;
mod invariants;
mod liars;
mod machine;
mod mutant;
mod nemesis;
mod net;
mod plan;
mod quic;
mod rng;
mod run;
mod site;
mod trace;
mod wgl;
mod witness;
mod workload;
mod world;

pub use mutant::Mutant;
pub use net::datagrams;
pub use plan::{Fault, Faults, Settings, Transport};
pub use run::{Begun, Report, RunError, run};
pub use world::{Violation, acting};
