//! Events sent between the requestor's messages, and its answers to them.

use tokio::sync::oneshot;

use super::super::event::ServiceEvent;
use super::{Association, Context};
use crate::dimse::command::{Command, N_EVENT_REPORT_RQ, RESPONSE};
use crate::dimse::status::Status;
use crate::dimse::wire::{WireError, command_pdus, data_pdus};

/// An event that was sent and not answered yet.
#[derive(Debug)]
pub(super) struct Outstanding {
    message_id: u16,
    told: oneshot::Sender<Status>,
}

impl Association<'_> {
    /// Sends an event. One whose context the requestor did not get is dropped: its teller hears so.
    pub(super) async fn send_event(&mut self, event: ServiceEvent) -> Result<(), WireError> {
        let of_event = |context: &&Context| context.abstract_syntax == event.negotiated;
        let Some(context_id) = self.contexts.iter().find(of_event).map(|context| context.id) else { return Ok(()) };
        let message_id = self.next_event_id;
        self.next_event_id = message_id.checked_add(1).unwrap_or(1);
        let command = Command {
            message_id: Some(message_id),
            has_data_set: true,
            ..Command::event_report(event.sop_class, event.sop_instance, event.event_type)
        };
        let mut pdus = command_pdus(context_id, &command.encode(), self.peer_max);
        pdus.extend_from_slice(&data_pdus(context_id, &event.dataset, self.peer_max));
        self.outstanding = Some(Outstanding { message_id, told: event.told });
        self.wire.write(&pdus).await
    }

    /// Takes a response, which must be that to the event under way.
    pub(super) async fn event_answered(&mut self, context: &Context, command: &Command) -> Result<(), WireError> {
        let Some(Outstanding { message_id, told }) = self.outstanding.take() else { return Err(WireError::OutOfTurn) };
        if command.field != N_EVENT_REPORT_RQ | RESPONSE || command.responds_to != Some(message_id) {
            return Err(WireError::OutOfTurn);
        }
        self.pass_over_data(context, command).await?;
        let Some(code) = command.status else { return Err(WireError::OutOfTurn) };
        // Nobody may wait for it any more.
        let _ = told.send(Status::from_code(code, command.comment.clone().unwrap_or_default()));
        Ok(())
    }
}
