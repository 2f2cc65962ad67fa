//! What the integration tests drive: real nodes as child processes, on loopback.
//!
//! ```text
//! Mesh -- N x Site (a directory, a configuration, a process) -- HTTP, DICOM, command line, signals
//! ```
//! A test that cannot go on has failed, so everything here panics with what happened instead of
//! returning it, and every wait has a deadline. A mesh that is dropped while its test panics prints
//! the ends of its sites' logs; its processes and files are gone afterwards in any case.
//!
//! [`wan`] puts sites into network namespaces and a network between them that delays, loses and cuts; the
//! binary `chaos` runs real nodes on it.
//!
//! The harness speaks HTTP, multipart and Part 10 by code of its own, so that a mistake in the node's
//! code is not made twice. Only DIMSE comes from `maillage_dicom`, whose sender is tested against dcmtk.

pub mod draw;
pub mod exams;
pub mod http;
pub mod kills;
pub mod mesh;
pub mod multipart;
pub mod port;
pub mod run;
pub mod settings;
pub mod site;
pub mod study;
pub mod wait;
pub mod wan;

pub use http::{Answer, Http};
pub use mesh::{Mesh, turn};
pub use run::Ran;
pub use settings::{Caller, Settings};
pub use site::Site;
pub use study::Slices;
pub use wait::{until, until_within};
