//! Whole groups in one process.

mod cluster;
mod conformance;
mod crashes;
mod greetings;
mod hostile;
mod throughput;
