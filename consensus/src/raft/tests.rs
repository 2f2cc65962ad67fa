//! Whole groups in one process.

mod cluster;
mod conformance;
mod crashes;
mod hostile;
mod throughput;
