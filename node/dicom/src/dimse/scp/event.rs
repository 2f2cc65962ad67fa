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

/// The requestor's end of an [`EventLine`] that no association carries: for who calls a handler directly.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<ServiceEvent>);

/// An event as its requestor has it; it is answered, or the association ends.
#[derive(Debug)]
pub struct Event {
    /// Event Type ID.
    pub event_type: u16,
    /// In the transfer syntax of the request.
    pub dataset: Bytes,
    told: oneshot::Sender<Status>,
}

impl Events {
    /// The next event; `None` when the provider has let go of the line.
    pub async fn next(&mut self) -> Option<Event> {
        let ServiceEvent { event_type, dataset, told, .. } = self.0.recv().await?;
        Some(Event { event_type, dataset, told })
    }
}

impl Event {
    /// Answers it.
    pub fn answer(self, status: Status) {
        // A provider that does not wait any more tells it again.
        let _ = self.told.send(status);
    }
}

impl EventLine {
    /// A line that no association carries; it is closed when its other end is dropped.
    pub fn direct() -> (Self, Events) {
        let (line, events) = Self::new();
        (line, Events(events))
    }

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
