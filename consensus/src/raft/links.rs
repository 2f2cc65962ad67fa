//! The network as Raft sees it: byte streams to other nodes, opened on demand.
//!
//! The transport authenticates the far end; this module only names it by its node id. Every request
//! is one bidirectional stream, so nothing here multiplexes.

use std::fmt;
use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// Opens streams to other members.
pub trait Links: Send + Sync + 'static {
    /// Opens one bidirectional stream to the node `target`.
    ///
    /// # Errors
    /// When the node is unknown or cannot be reached now.
    ///
    /// The caller limits the time it waits, sometimes to one heartbeat, by dropping the future: a
    /// connection attempt under way should go on regardless, or a far node is never reached.
    fn open(&self, target: u64) -> BoxFuture<'_, io::Result<Duplex>>;
}

impl fmt::Debug for dyn Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Links")
    }
}

/// The two halves of one stream.
pub struct Duplex {
    /// What the far end sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What we send.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Duplex")
    }
}
