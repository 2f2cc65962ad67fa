//! DICOM's own network protocol: the upper layer (PS3.8) and the message exchange (PS3.7).
//!
//! [`pdu`] and [`command`] encode and decode without doing I/O; [`scp`] receives, [`scu`] sends.

pub mod command;
pub mod operation;
pub mod pdu;
pub mod scp;
pub mod scu;
pub mod sop_class;
pub mod status;
mod wire;

pub use operation::Operation;
pub use status::{Status, StoreStatus};
pub use wire::WireError;
