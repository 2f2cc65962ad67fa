//! DICOM at the edge of a node: what strangers send is checked here, and nowhere else.
//!
//! - [`prescan`] reads every data set once, within bounds, before anything else may look at it;
//! - [`attributes`] reads what the queue and the worklist need from a data set that passed;
//! - [`part10`] takes files apart and writes the header that makes a data set a file again;
//! - [`dimse`] receives and sends instances over the network;
//! - [`phantom`] makes CT studies for demonstrations, tests and benchmarks.
//!
//! Nothing here stores anything: a node gives [`dimse::scp`] a handler. Bytes from outside never
//! reach `dicom-object`, which a 266-byte file drives to gigabytes of memory and 72 kB of nested
//! sequences to a stack overflow; it only builds the data sets of the phantom.

pub mod ae_title;
pub mod attributes;
pub mod commitment;
pub mod dimse;
mod element;
pub mod json;
pub mod part10;
pub mod phantom;
pub mod prescan;
pub mod redacted;
pub mod rejection;
pub mod transfer_syntax;
pub mod uid;
mod walk;

pub use ae_title::AeTitle;
pub use attributes::Attributes;
pub use redacted::Redacted;
pub use rejection::Rejection;
pub use uid::Uid;
