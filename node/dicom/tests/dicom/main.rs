//! The crate over its real interfaces: bytes of data sets and files, and TCP.

mod attributes;
mod dataset;
mod hostile;
mod mutations;
mod negotiation;
mod part10;
mod peer;
mod phantom;
mod prescan;
mod services;
mod storing;
