//! Events that a service tells the requestor on the association by which it asked, while that is open
//! (PS3.7 section 10.1.1): between its messages, one at a time.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::dimse::status::Status;
use crate::uid::Uid;

/// Events of one association that may wait to be sent.
const EVENTS_WAITING: usize = 4;

/// The way back to a requestor, for as long as its association is open. Clones share it.
#[derive(Debug, Clone)]
pub struct EventLine(mpsc::Sender<ServiceEvent>);

/// An event to be sent.
#[derive(Debug)]
pub(super) struct ServiceEvent {
    /// The abstract syntax of the context in which it goes.
    pub(super) negotiated: Uid,
    pub(super) sop_class: Uid,
    pub(super) sop_instance: Uid,
    pub(super) event_type: u16,
    /// In the transfer syntax of the context.
    pub(super) dataset: Bytes,
    pub(super) told: oneshot::Sender<Status>,
}

impl EventLine {
    pub(super) fn new() -> (Self, mpsc::Receiver<ServiceEvent>) {
        let (sender, events) = mpsc::channel(EVENTS_WAITING);
        (Self(sender), events)
    }

    /// N-EVENT-REPORT of an instance in the context of `negotiated`, whose data set is in that context's
    /// transfer syntax. Returns the requestor's answer; `None` when the association ended before it came.
    pub async fn report_event(
        &self,
        negotiated: &Uid,
        (sop_class, sop_instance): (Uid, Uid),
        event_type: u16,
        dataset: Bytes,
    ) -> Option<Status> {
        let (told, answer) = oneshot::channel();
        let event = ServiceEvent { negotiated: negotiated.clone(), sop_class, sop_instance, event_type, dataset, told };
        self.0.send(event).await.ok()?;
        answer.await.ok()
    }

    /// Whether the association has ended.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl PartialEq for EventLine {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

impl Eq for EventLine {}
