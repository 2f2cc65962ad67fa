//! What a node supplies for the service classes other than storage and verification: a handler for its
//! SOP classes, asked for one operation at a time.
//!
//! What reaches a handler was checked as far as PS3.7 alone says what is right: the command names a class
//! that the handler takes in this context and, where one is needed, an instance; the data set is within
//! [`SERVICE_LEN_MAX`](super::SERVICE_LEN_MAX) and passed the pre-scan.

use std::net::SocketAddr;

use bytes::Bytes;
use dicom_core::Tag;
use tokio::sync::mpsc;

use super::{BoxFuture, EventLine};
use crate::ae_title::AeTitle;
use crate::dimse::operation::Operation;
use crate::dimse::status::Status;
use crate::uid::Uid;

/// Serves some SOP classes.
pub trait ServiceHandler: Send + Sync + 'static {
    /// The abstract syntaxes served. They come before storage where both would take one.
    fn sop_classes(&self) -> &[Uid];

    /// Whether a command in a context of the class `negotiated` may name `named`: only that class, but for
    /// service classes that share one instance among several.
    fn takes(&self, negotiated: &Uid, named: &Uid) -> bool {
        negotiated == named
    }

    /// Performs one operation; the requestor gets the answer once the future resolves, so success means
    /// durable. Results of a C-FIND go to `matches` before; when that is closed the requestor has
    /// cancelled or is gone. The future is dropped then, at the next place where it waits.
    fn perform(&self, request: ServiceRequest, matches: mpsc::Sender<Bytes>) -> BoxFuture<'_, ServiceAnswer>;
}

/// A request for an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRequest {
    /// Which.
    pub operation: Operation,
    /// Who asks.
    pub calling_ae: AeTitle,
    /// Whom it called.
    pub called_ae: AeTitle,
    /// From where.
    pub remote: SocketAddr,
    /// The presentation context's abstract syntax.
    pub negotiated: Uid,
    /// Affected or Requested SOP Class UID.
    pub sop_class: Uid,
    /// Affected or Requested SOP Instance UID; always there but for C-FIND, which has none, and N-CREATE,
    /// whose requestor may leave it to us.
    pub sop_instance: Option<Uid>,
    /// Action Type ID of an N-ACTION.
    pub action_type: Option<u16>,
    /// Event Type ID of an N-EVENT-REPORT.
    pub event_type: Option<u16>,
    /// What an N-GET asks for; empty is all.
    pub attributes: Vec<Tag>,
    /// Transfer syntax of the data set, and of what is answered: implicit or explicit VR little endian.
    pub transfer_syntax: Uid,
    /// The data set, sound by the pre-scan; empty when there is none.
    pub dataset: Bytes,
    /// The way back to the requestor while its association is open.
    pub events: EventLine,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAnswer {
    /// The status.
    pub status: Status,
    /// The instance that an N-CREATE made, when it differs from the command's.
    pub sop_instance: Option<Uid>,
    /// What goes with the answer, in the request's transfer syntax.
    pub dataset: Option<Bytes>,
}

impl ServiceAnswer {
    /// Success with these attributes.
    pub fn with(dataset: Bytes) -> Self {
        Self { status: Status::SUCCESS, sop_instance: None, dataset: Some(dataset) }
    }
}

impl From<Status> for ServiceAnswer {
    fn from(status: Status) -> Self {
        Self { status, sop_instance: None, dataset: None }
    }
}
