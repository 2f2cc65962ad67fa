//! What a node supplies to the receiving side: a handler that stores, and ears for what happens.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;

use super::RejectReason;
use crate::ae_title::AeTitle;
use crate::dimse::status::StoreStatus;
use crate::uid::Uid;

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Stores what is received.
pub trait StoreHandler: Send + Sync + 'static {
    /// A C-ECHO was answered.
    fn echo(&self, _association: &AssociationInfo) {}

    /// Stores one instance; the sender gets the status once the future resolves, so success means
    /// durable. `dataset` is what came, unscanned: no preamble, no file meta information.
    ///
    /// The command and the data set may contradict each other: the handler checks that the UIDs
    /// agree and answers [`StoreStatus::does_not_match`] when they do not.
    fn store(&self, request: StoreRequest, dataset: Bytes) -> BoxFuture<'_, StoreStatus>;

    /// A data set of so many bytes was passed over: what it came with was refused, here rather than by a handler.
    fn passed_over(&self, _association: &AssociationInfo, _bytes: u64) {}

    /// Awaited before each C-STORE is answered, when its data set is out of memory, and whenever a data set was
    /// passed over: a sender that is faster than it may be waits here, at no cost.
    fn pace(&self, _association: &AssociationInfo) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// The C-STORE-RQ that came with a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRequest {
    /// Who sends.
    pub calling_ae: AeTitle,
    /// Whom it called.
    pub called_ae: AeTitle,
    /// From where.
    pub remote: SocketAddr,
    /// Affected SOP Class UID; that of the presentation context.
    pub sop_class: Uid,
    /// Affected SOP Instance UID.
    pub sop_instance: Uid,
    /// Transfer syntax of the data set.
    pub transfer_syntax: Uid,
    /// Message ID.
    pub message_id: u16,
    /// The AE whose C-MOVE caused this, with its message id.
    pub move_originator: Option<(AeTitle, Option<u16>)>,
}

/// Told what happens, to count and to audit. Called on the connection's task: must not block.
pub trait ScpEvents: Send + Sync + 'static {
    /// A connection, an association or an instance was refused, here rather than by the handler.
    fn rejected(&self, _remote: SocketAddr, _calling: Option<&AeTitle>, _reason: RejectReason) {}
    /// An association was accepted.
    fn association_opened(&self, _association: &AssociationInfo) {}
    /// An association ended.
    fn association_closed(&self, _association: &AssociationInfo, _summary: &AssociationSummary) {}
}

/// Ears that hear nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl ScpEvents for NoEvents {}

/// An accepted association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociationInfo {
    /// Who called.
    pub calling_ae: AeTitle,
    /// Whom it called.
    pub called_ae: AeTitle,
    /// From where.
    pub remote: SocketAddr,
    /// The peer's implementation version name, as it says.
    pub implementation: Option<String>,
}

/// What an association did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssociationSummary {
    /// Instances answered with success or a warning.
    pub stored: u64,
    /// Instances answered with a failure.
    pub refused: u64,
    /// Bytes of the data sets received whole.
    pub bytes: u64,
    /// How it ended.
    pub end: AssociationEnd,
}

/// How an association ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssociationEnd {
    /// As it should.
    Released,
    /// The peer aborted.
    AbortedByPeer,
    /// The connection was closed or failed.
    ConnectionLost,
    /// Nothing came in time.
    TimedOut,
    /// The peer broke the protocol.
    ProtocolError,
    /// We are shutting down.
    Shutdown,
}

impl AssociationEnd {
    /// A short name for a metric's label; stable.
    pub fn label(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::AbortedByPeer => "aborted_by_peer",
            Self::ConnectionLost => "connection_lost",
            Self::TimedOut => "timed_out",
            Self::ProtocolError => "protocol_error",
            Self::Shutdown => "shutdown",
        }
    }
}
