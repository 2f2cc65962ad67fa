//! DICOM's own network protocol: the upper layer (PS3.8) and the message exchange (PS3.7).
//!
//! [`pdu`] and [`command`] encode and decode without doing I/O; [`scp`] receives, [`scu`] sends.

pub mod command;
pub mod pdu;
pub mod scp;
pub mod scu;
pub mod sop_class;
pub mod status;
mod wire;

pub use status::StoreStatus;
pub use wire::WireError;
