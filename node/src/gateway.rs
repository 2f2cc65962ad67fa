//! A hospital's gateway: it spools images, sends them to whichever centres answer, of those that it may send them to,
//! and takes in reports.
//!
//! ```text
//! modality --C-STORE--> scp ─┐                      ┌─ push ──── Offer ───> a centre's door ─> its ingest
//! PACS ------STOW-----> web ─┴> ingest ─> spool ────┼─ safety ── Safe ────> any centre: two zones hold it
//!                              (node/store)         │    └─> dropped; storage commitments answered
//! hospital <── inbox/*.json <── inbox <─────────────┴─ feed ──── Feed ────> any centre
//! ```
//! A gateway is a member of the mesh, and no replica: it has no part of the log, no vote, no session and no
//! copies. What it has is its spool, which is the truth of what it owes the mesh: what is in there and not
//! known to be safe is sent, again after every restart. Everything else here may be lost at any moment.
//!
//! `door` is the centre's side of the same protocol, `wire` what both say.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use maillage_host::{Clock, Disk};
use maillage_store::{Stats, Store};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::commitment::Commitments;
use crate::config::Config;
use crate::data_dir::MeshFile;
use crate::ingest::Ingest;
use crate::metrics::Metrics;

mod ask;
mod centres;
mod document;
pub(crate) mod door;
mod inbox;
mod keys;
mod lines;
mod marks;
mod push;
mod safety;
mod schedule;
mod serve;
mod spool;
mod web;
mod wire;

pub(crate) use door::Gates;
pub use lines::Lines;
#[cfg(test)]
pub(crate) use schedule::Counts;
pub(crate) use serve::{Doors, run};
pub use serve::{Host, Node, mesh_lines};

use centres::{Known, Saved};
use inbox::Seen;
use marks::{Marks, Stamps};
use schedule::Schedule;

/// A centre that says nothing for so long about what it was asked is taken for gone, and another is asked.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// The parts of a running gateway.
struct Parts {
    config: Config,
    disk: Disk,
    clock: Clock,
    stamps: Arc<Stamps>,
    store: Store,
    ingest: Ingest,
    metrics: Metrics,
    commitments: Commitments,
    lines: Arc<dyn Lines>,
    mesh: Mutex<MeshFile>,
    /// Held while the file is written.
    saved: tokio::sync::Mutex<Saved>,
    schedule: Mutex<Schedule>,
    marks: Mutex<Marks>,
    /// Told when there may be something to send, or somebody to send it to.
    stir: Notify,
    centres: Mutex<BTreeMap<u64, Known>>,
    /// Told when a centre becomes known.
    introduced: Notify,
    stats: Mutex<Stats>,
    seen: Mutex<Seen>,
    /// Studies of which something left the spool, and whose keys are still to be looked at.
    dropped: Mutex<BTreeSet<String>>,
}

/// A running gateway. Clones share it.
#[derive(Clone)]
pub(crate) struct Gateway(Arc<Parts>);

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("site", &self.mesh().site_id).finish_non_exhaustive()
    }
}

impl Gateway {
    fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    fn config(&self) -> &Config {
        &self.0.config
    }

    fn disk(&self) -> &Disk {
        &self.0.disk
    }

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The clock by which what is received is stamped.
    fn stamps(&self) -> &Stamps {
        &self.0.stamps
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn ingest(&self) -> &Ingest {
        &self.0.ingest
    }

    fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn commitments(&self) -> &Commitments {
        &self.0.commitments
    }

    fn lines(&self) -> &dyn Lines {
        &*self.0.lines
    }

    /// What goes where. Never held over an await.
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.0.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when what is in the spool is there. Never held over an await.
    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.0.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stir(&self) {
        self.0.stir.notify_one();
    }

    fn mesh(&self) -> MutexGuard<'_, MeshFile> {
        self.0.mesh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size of the store, as last looked at.
    fn stats(&self) -> Stats {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the size of the store. What cannot be read stays as it was.
    async fn look_at_stats(&self) {
        if let Ok(stats) = self.store().stats().await {
            *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
        }
    }

    /// How far the feed is.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Studies whose keys are to be looked at. Never held over an await.
    fn dropped(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when the spool's oldest that is not safe waits.
    fn oldest(&self) -> Option<Duration> {
        let oldest = self.schedule().counts().oldest?;
        Some(Duration::from_millis(self.stamps().now().since(oldest)))
    }
}

/// Says the first of a row of failures to people, and the rest to who looks closely.
#[derive(Debug, Default)]
struct Complaints(Option<String>);

impl Complaints {
    fn hear<T, E: std::fmt::Display>(&mut self, what: &'static str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                self.0 = None;
                Some(value)
            }
            Err(error) => {
                let error = error.to_string();
                if self.0.as_ref() == Some(&error) {
                    tracing::debug!(what, error, "not done yet");
                } else {
                    tracing::warn!(what, error, "not done yet");
                    self.0 = Some(error);
                }
                None
            }
        }
    }
}

/// When something was last so, for people.
fn ago(at: Option<Instant>) -> Option<u64> {
    at.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Files of the gateway's own are small; more than this is not theirs.
fn too_long(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is longer than any that was written"))
}

#[cfg(test)]
pub(crate) mod tests;
