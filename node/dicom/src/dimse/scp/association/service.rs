//! The operations of the service handlers: C-FIND and the normalized services.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::super::service::{ServiceAnswer, ServiceHandler, ServiceRequest};
use super::{Association, Context, FIRST_GUESS_LEN, Received, RejectReason};
use crate::dimse::command::{C_CANCEL_RQ, Command};
use crate::dimse::operation::Operation;
use crate::dimse::pdu::{Abort, PduError, PduKind};
use crate::dimse::status::Status;
use crate::dimse::wire::{WireError, command_pdus, data_pdus};
use crate::prescan;

/// Longest data set of an operation, in bytes: a storage commitment of 20,000 instances has some 3 MB, a
/// workitem a few kB.
pub const SERVICE_LEN_MAX: usize = 4 << 20;
/// Results of a C-FIND that wait for the requestor to take them.
const MATCHES_WAITING: usize = 16;

/// Status codes of PS3.7 annex C.
mod code {
    pub(super) const PROCESSING_FAILURE: u16 = 0x0110;
    pub(super) const INVALID_INSTANCE: u16 = 0x0117;
    pub(super) const MISSING_ATTRIBUTE: u16 = 0x0120;
    pub(super) const CLASS_NOT_SUPPORTED: u16 = 0x0122;
    pub(super) const RESOURCE_LIMITATION: u16 = 0x0213;
    /// Of C-FIND, PS3.4 table C.4-1.
    pub(super) const OUT_OF_RESOURCES: u16 = 0xA700;
    pub(super) const IDENTIFIER_MISMATCH: u16 = 0xA900;
    pub(super) const UNABLE_TO_PROCESS: u16 = 0xC000;
}

impl Association<'_> {
    /// Answers a request for an operation of the handler of its context.
    pub(super) async fn operate(
        &mut self,
        context: &Context,
        command: &Command,
        operation: Operation,
        handler: &Arc<dyn ServiceHandler>,
    ) -> Result<(), WireError> {
        if command.message_id.is_none() {
            return Err(PduError::MissingItem.into());
        }
        let mut request = match self.service_request(context, command, operation, &**handler) {
            Ok(request) => request,
            Err(status) => {
                self.reject(RejectReason::BadRequest);
                self.pass_over_data(context, command).await?;
                return self.respond(context, command, &status).await;
            }
        };
        let mut paid = None;
        if command.has_data_set {
            match self.data_set(context, SERVICE_LEN_MAX, FIRST_GUESS_LEN.min(8 << 10)).await? {
                Received::Refused(status) => {
                    let is_find = operation == Operation::Find;
                    let code = if is_find { code::OUT_OF_RESOURCES } else { code::RESOURCE_LIMITATION };
                    let status = Status::from_code(code, status.comment().to_owned());
                    return self.respond(context, command, &status).await;
                }
                Received::Whole(dataset, share, _) => {
                    self.summary.bytes += dataset.len() as u64;
                    if let Err(rejection) = prescan::scan(&dataset, &context.transfer_syntax) {
                        self.reject(RejectReason::BadRequest);
                        let is_find = operation == Operation::Find;
                        let code = if is_find { code::UNABLE_TO_PROCESS } else { code::PROCESSING_FAILURE };
                        return self.respond(context, command, &Status::from_code(code, rejection.to_string())).await;
                    }
                    request.dataset = dataset;
                    paid = Some(share);
                }
            }
        }
        let answer = self.perform(context, command, request, &**handler).await?;
        drop(paid);
        tracing::debug!(operation = operation.label(), status = %answer.status, "operation answered");
        self.answer(context, command, answer).await
    }

    /// What the handler is told, or the status for a request that makes no sense (PS3.7 annex C).
    fn service_request(
        &self,
        context: &Context,
        command: &Command,
        operation: Operation,
        handler: &dyn ServiceHandler,
    ) -> Result<ServiceRequest, Status> {
        let (class, instance) = if operation.is_of_requested() {
            (&command.requested_class, &command.requested_instance)
        } else {
            (&command.sop_class, &command.sop_instance)
        };
        let fits = |class: &&crate::uid::Uid| handler.takes(&context.abstract_syntax, class);
        let Some(sop_class) = class.as_ref().filter(fits) else {
            return Err(Status::from_code(code::CLASS_NOT_SUPPORTED, "sop class is not that of the context"));
        };
        let sop_instance = match instance {
            Some(Ok(uid)) => Some(uid.clone()),
            None if !operation.needs_instance() => None,
            _ => return Err(Status::from_code(code::INVALID_INSTANCE, "sop instance uid is missing or invalid")),
        };
        if operation.needs_data_set() && !command.has_data_set {
            let is_find = operation == Operation::Find;
            let code = if is_find { code::IDENTIFIER_MISMATCH } else { code::MISSING_ATTRIBUTE };
            return Err(Status::from_code(code, "no data set"));
        }
        Ok(ServiceRequest {
            operation,
            calling_ae: self.info.calling_ae.clone(),
            called_ae: self.info.called_ae.clone(),
            remote: self.info.remote,
            negotiated: context.abstract_syntax.clone(),
            sop_class: sop_class.clone(),
            sop_instance,
            action_type: command.action_type,
            event_type: command.event_type,
            attributes: command.attributes.clone(),
            transfer_syntax: context.transfer_syntax.clone(),
            dataset: Bytes::new(),
            events: self.line.clone(),
        })
    }

    /// Lets the handler work, and sends on what it finds meanwhile.
    async fn perform(
        &mut self,
        context: &Context,
        command: &Command,
        request: ServiceRequest,
        handler: &dyn ServiceHandler,
    ) -> Result<ServiceAnswer, WireError> {
        let (sink, mut matches) = mpsc::channel(MATCHES_WAITING);
        let mut work = handler.perform(request, sink);
        let mut done = None;
        loop {
            let found = tokio::select! {
                biased;
                found = matches.recv() => found,
                answer = &mut work, if done.is_none() => {
                    done = Some(answer);
                    continue;
                }
            };
            let Some(found) = found else {
                // Nothing more is found; what remains is how it ended.
                return Ok(match done {
                    Some(answer) => answer,
                    None => work.await,
                });
            };
            if self.is_cancelled(command).await? {
                return Ok(Status::CANCELLED.into());
            }
            let pending = ServiceAnswer { dataset: Some(found), ..Status::PENDING.into() };
            self.answer(context, command, pending).await?;
        }
    }

    /// Whether the requestor has cancelled what is under way. Only looks at what has come already.
    async fn is_cancelled(&mut self, command: &Command) -> Result<bool, WireError> {
        if !self.wire.has_input()? {
            return Ok(false);
        }
        let header = self.wire.idle_header(self.shared.config.stall_timeout).await?;
        match header.kind {
            PduKind::Data => {
                let (_, other) = self.command().await?;
                let cancels = other.field == C_CANCEL_RQ && !other.has_data_set;
                if cancels { Ok(other.responds_to == command.message_id) } else { Err(WireError::OutOfTurn) }
            }
            PduKind::Abort => {
                let body = self.wire.body(header).await?;
                Err(Abort::decode(&body)?.into())
            }
            _ => Err(WireError::OutOfTurn),
        }
    }

    async fn answer(&mut self, context: &Context, command: &Command, answer: ServiceAnswer) -> Result<(), WireError> {
        let mut response = command.respond(&answer.status);
        if let Some(made) = answer.sop_instance {
            response.sop_instance = Some(Ok(made));
        }
        response.has_data_set = answer.dataset.is_some();
        let mut pdus: BytesMut = command_pdus(context.id, &response.encode(), self.peer_max);
        if let Some(dataset) = answer.dataset {
            pdus.extend_from_slice(&data_pdus(context.id, &dataset, self.peer_max));
        }
        self.wire.write(&pdus).await
    }
}
