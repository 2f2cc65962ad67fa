//! The connections of one protocol that wait to be taken.

use std::task::{Context, Poll};

use libp2p::PeerId;
use tokio::sync::mpsc;

use super::close;
use crate::Alpn;

/// Accepted connections that wait for whoever serves their protocol. Members only get this far.
const QUEUE: usize = 64;

/// A connection that a peer opened and that the handshake admitted.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Who opened it, proven.
    pub peer: PeerId,
    /// For what.
    pub alpn: Alpn,
    /// The connection. Close it when done; dropping it does not.
    pub connection: quinn::Connection,
}

/// Receives the connections of one protocol. Those that are still unread when it is dropped are closed:
/// the endpoint's own handle would keep them open with nobody behind them.
#[derive(Debug)]
pub struct Accepted(mpsc::Receiver<Incoming>);

impl Accepted {
    pub(super) fn new() -> (mpsc::Sender<Incoming>, Self) {
        let (tx, rx) = mpsc::channel(QUEUE);
        (tx, Self(rx))
    }

    /// The next connection; `None` once the endpoint is closed or somebody else serves the protocol.
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Incoming> {
        self.0.recv().await
    }

    /// The next connection if one waits.
    pub fn try_recv(&mut self) -> Option<Incoming> {
        self.0.try_recv().ok()
    }

    /// Polls for the next connection, as [`Accepted::recv`] does.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.0.poll_recv(cx)
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.0.close();
        while let Some(incoming) = self.try_recv() {
            incoming.connection.close(close::NOT_SERVED.into(), close::NOT_SERVED.reason());
        }
    }
}
