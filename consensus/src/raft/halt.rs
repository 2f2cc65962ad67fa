//! The one-way switch that ends a replica.
//!
//! An fsync that failed, a rotten log, a command that this version does not know: after any of them
//! the node may no longer promise anything, so it says why, once, and the process must end. The first
//! reason wins, because the later ones follow from it.

use std::sync::Arc;

use tokio::sync::watch;

/// Shared by everything in a group that may have to stop it.
#[derive(Debug, Clone)]
pub(crate) struct Halt(Arc<watch::Sender<Option<String>>>);

impl Default for Halt {
    fn default() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }
}

impl Halt {
    /// Stops the replica for `reason`, unless it is stopped already.
    pub(crate) fn halt(&self, reason: impl Into<String>) {
        self.0.send_if_modified(|current| {
            if current.is_some() {
                return false;
            }
            let reason = reason.into();
            tracing::error!(%reason, "this node is no longer a replica");
            *current = Some(reason);
            true
        });
    }

    /// Why the replica stopped, if it did.
    pub(crate) fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }
}
