//! What every handler is given: the node, and the limits on what may be under way at once.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::command::{Command, UnixMillisField};
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::{Outcome, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Limits;
use super::problem::Problem;
use crate::node::Node;

/// How long an answer waits for the local state to show what was just done, so that the next read
/// here sees it. Done it is, whether or not this node has caught up.
const OWN_WRITE_WAIT: Duration = Duration::from_secs(2);

/// The state of every route.
#[derive(Debug, Clone)]
pub(crate) struct App {
    /// The node served.
    pub(crate) node: Node,
    /// How much may be under way at once.
    pub(crate) limits: Limits,
}

impl App {
    /// Serves `node` within `limits`.
    pub(crate) fn new(node: Node, limits: Limits) -> Self {
        Self { node, limits }
    }

    /// This node's time.
    pub(crate) fn now(&self) -> UnixMillisField {
        self.node.clock().now().into()
    }

    /// The largest instance taken, in bytes of the whole file.
    pub(crate) fn instance_bytes_max(&self) -> u64 {
        self.node.config().dicom.max_instance_mib.saturating_mul(1 << 20)
    }

    /// Waits for one of the places for uploads.
    ///
    /// # Errors
    /// 503 when the node stops.
    pub(crate) async fn upload_place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let place = Arc::clone(&self.limits.uploads).acquire_owned();
        place.await.map_err(|_| Problem::busy("the node is stopping"))
    }

    /// Proposes a command. A refusal is an error here.
    ///
    /// # Errors
    /// The refusal or failure, as a problem.
    pub(crate) async fn command(&self, id: CommandId, user: Name, command: Command) -> Result<Outcome, Problem> {
        match self.node.command(id, user, command).await? {
            Outcome::Refused(refusal) => Err(refusal.into()),
            outcome => Ok(outcome),
        }
    }

    /// The format at which the mesh runs, as far as this node knows.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) fn format(&self) -> Result<u8, Problem> {
        Ok(self.node.read(|view| view.format())?)
    }

    /// Refuses what the mesh's format has no command for, before it is proposed.
    ///
    /// # Errors
    /// 503, with the mesh's format.
    pub(crate) fn need_format(&self, needed: u8) -> Result<(), Problem> {
        match self.format()? {
            format if format < needed => Err(Refusal::Format { format }.into()),
            _ => Ok(()),
        }
    }

    /// Waits until this node's own state is at `index` of the log, or for two seconds.
    pub(crate) async fn wait_applied(&self, index: u64) {
        let mut changes = self.node.changes();
        // Late or ended: the caller shows what it has.
        let _ = tokio::time::timeout(OWN_WRITE_WAIT, changes.wait_for(|applied| *applied >= index)).await;
    }

    /// Waits until this node's own state shows everything committed so far, or for two seconds.
    pub(crate) async fn catch_up(&self) {
        self.node.catch_up().await;
    }
}

/// Takes a place, or says that there is none.
///
/// # Errors
/// 503.
pub(crate) fn try_place(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Problem> {
    let place = Arc::clone(places).try_acquire_owned();
    place.map_err(|_| Problem::busy(format!("too many {what} at once: try again")))
}
