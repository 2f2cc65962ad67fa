//! Unified Procedure Steps: every workitem of the queue as the standard has it (PS3.3 section B.26, PS3.4
//! annex CC), whichever interface speaks of it.
//!
//! `dataset`, `tags` and `uids` are the words; `describe` makes a data set of a workitem, `request` reads
//! what a client says of one, `steps` does what is asked. Two interfaces translate: UPS-RS in
//! `crate::http::ups`, DIMSE in `crate::dimse`. Both propose the same commands, so that of two claimants
//! one has the step, whichever ways they came.

pub(crate) mod dataset;
pub(crate) mod describe;
pub(crate) mod feed;
pub(crate) mod filter;
pub(crate) mod query;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod search;
pub(crate) mod steps;
pub(crate) mod tags;
#[cfg(test)]
mod tests;
pub(crate) mod uids;
