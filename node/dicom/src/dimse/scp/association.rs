//! One connection, from its first byte to its last.

mod event;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::admission::{Place, Stranger};
use super::budget::Share;
use super::event::{EventLine, ServiceEvent};
use super::negotiate::{self, Accepted, Context};
use super::turns::Turn;
use super::{AssociationEnd, AssociationInfo, AssociationSummary, RejectReason, Shared, StoreRequest};
use crate::dimse::command::{C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, COMMAND_LEN_MAX, Command, RESPONSE};
use crate::dimse::operation::Operation;
use crate::dimse::pdu::{Abort, AssociateRq, PduError, PduKind, RELEASE_RP};
use crate::dimse::status::StoreStatus;
use crate::dimse::wire::{Wire, WireError, WireLimits, command_pdus};
use crate::uid::Uid;

use event::Outstanding;
pub use service::SERVICE_LEN_MAX;

/// First guess of an instance's length: a compressed slice.
const FIRST_GUESS_LEN: usize = 128 << 10;
/// A guess from the instance before is not taken beyond this: one long cine run must not make every
/// later slice claim its memory.
const GUESS_LEN_MAX: usize = 16 << 20;

/// Runs a connection to its end.
pub(super) async fn run(shared: Arc<Shared>, stream: TcpStream, remote: SocketAddr, stranger: Stranger) {
    let limits = WireLimits {
        stall: shared.config.stall_timeout,
        message_grace: shared.config.message_grace,
        data_len_max: usize::try_from(shared.config.max_pdu).unwrap_or(usize::MAX),
    };
    let Ok(mut wire) = Wire::new(stream, limits) else {
        return;
    };
    let negotiation = timeout(shared.config.negotiation_timeout, read_request(&mut wire));
    let request = tokio::select! {
        biased;
        () = shared.shutdown.cancelled() => return,
        () = stranger.displaced.cancelled() => return shared.events.rejected(remote, None, RejectReason::Displaced),
        request = negotiation => request.unwrap_or(Err(WireError::TimedOut)),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return turn_away(&shared, wire, remote, &stranger, &error).await,
    };
    let admitted = negotiate::admit(&request, remote.ip(), &shared.config).and_then(|()| stranger.place());
    let place = match admitted {
        Ok(place) => place,
        Err(reason) => {
            shared.events.rejected(remote, Some(&request.calling), reason);
            tracing::info!(%remote, calling = %request.calling, reason = reason.label(), "association rejected");
            return farewell(wire, &stranger, &reason.answer().encode()).await;
        }
    };
    drop(stranger);
    let span = tracing::info_span!("association", %remote, calling = %request.calling, called = %request.called);
    serve_association(shared, wire, remote, request, place).instrument(span).await;
}

async fn read_request(wire: &mut Wire) -> Result<AssociateRq, WireError> {
    let header = wire.header().await?;
    if header.kind != PduKind::AssociateRq {
        return Err(WireError::OutOfTurn);
    }
    let body = wire.body(header).await?;
    Ok(AssociateRq::decode(&body)?)
}

/// Ends a connection that never asked for an association in a way that can be accepted.
async fn turn_away(shared: &Shared, wire: Wire, remote: SocketAddr, stranger: &Stranger, error: &WireError) {
    let reason = match error {
        WireError::Pdu(error) => RejectReason::of(*error),
        WireError::OutOfTurn => RejectReason::BrokenPdu,
        _ => RejectReason::NoRequest,
    };
    shared.events.rejected(remote, None, reason);
    tracing::debug!(%remote, reason = reason.label(), "connection refused");
    match reason {
        // Whoever speaks another protocol is not answered in this one.
        RejectReason::NotDicom | RejectReason::NoRequest => {}
        _ if matches!(error, WireError::OutOfTurn) => farewell(wire, stranger, &Abort::UNEXPECTED_PDU.encode()).await,
        _ => farewell(wire, stranger, &reason.answer().encode()).await,
    }
}

/// Says a last word to a stranger, unless its place is needed before it has listened.
async fn farewell(wire: Wire, stranger: &Stranger, last: &[u8]) {
    tokio::select! {
        () = wire.close_with(last) => {}
        () = stranger.displaced.cancelled() => {}
    }
}

async fn serve_association(
    shared: Arc<Shared>,
    mut wire: Wire,
    remote: SocketAddr,
    request: AssociateRq,
    place: Place,
) {
    let Accepted { answer, contexts } = negotiate::accept(&request, &shared.config, &shared.services);
    let info = AssociationInfo {
        calling_ae: request.calling,
        called_ae: request.called,
        remote,
        implementation: request.user.implementation_version,
    };
    shared.events.association_opened(&info);
    tracing::debug!(contexts = contexts.len(), "association opened");
    wire.established(place.is_one_of_few());
    let summary = AssociationSummary { stored: 0, refused: 0, bytes: 0, end: AssociationEnd::Shutdown };
    let peer_max = request.user.max_pdu;
    let guess = FIRST_GUESS_LEN;
    let (line, events) = EventLine::new();
    let mut association = Association {
        shared: &shared,
        wire,
        info,
        contexts,
        peer_max,
        guess,
        summary,
        line,
        events,
        outstanding: None,
        next_event_id: 1,
    };
    let answer = answer.encode();
    let outcome = tokio::select! {
        biased;
        () = shared.kill.cancelled() => Ok(AssociationEnd::Shutdown),
        outcome = association.run(&answer) => outcome,
    };
    let Association { wire, info, mut summary, .. } = association;
    let last_word = match outcome {
        Ok(end) => {
            summary.end = end;
            (end == AssociationEnd::Shutdown).then_some(Abort::BY_USER)
        }
        Err(error) => {
            summary.end = end_of(&error);
            tracing::debug!(%error, "association broken off");
            if let Some(reason) = reason_of(&error) {
                shared.events.rejected(remote, Some(&info.calling_ae), reason);
            }
            abort_for(&error)
        }
    };
    drop(place);
    shared.events.association_closed(&info, &summary);
    let AssociationSummary { stored, refused, bytes, end } = summary;
    tracing::info!(stored, refused, bytes, end = end.label(), "association closed");
    if let Some(abort) = last_word {
        wire.close_with(&abort.encode()).await;
    }
}

fn end_of(error: &WireError) -> AssociationEnd {
    match error {
        WireError::Aborted(_) => AssociationEnd::AbortedByPeer,
        WireError::Closed | WireError::Cut | WireError::Io(_) => AssociationEnd::ConnectionLost,
        WireError::TimedOut | WireError::TooSlow => AssociationEnd::TimedOut,
        WireError::Pdu(_) | WireError::OutOfTurn => AssociationEnd::ProtocolError,
    }
}

fn reason_of(error: &WireError) -> Option<RejectReason> {
    match error {
        WireError::Pdu(_) | WireError::OutOfTurn => Some(RejectReason::BrokenPdu),
        WireError::TooSlow => Some(RejectReason::TooSlow),
        _ => None,
    }
}

/// What the peer is told when the association cannot go on.
fn abort_for(error: &WireError) -> Option<Abort> {
    match error {
        WireError::Pdu(PduError::UnknownKind) => Some(Abort::UNRECOGNIZED_PDU),
        WireError::Pdu(_) => Some(Abort::INVALID_PARAMETER),
        WireError::OutOfTurn => Some(Abort::UNEXPECTED_PDU),
        WireError::TimedOut | WireError::TooSlow => Some(Abort::BY_USER),
        WireError::Aborted(_) | WireError::Closed | WireError::Cut | WireError::Io(_) => None,
    }
}

struct Association<'a> {
    shared: &'a Shared,
    wire: Wire,
    info: AssociationInfo,
    contexts: Vec<Context>,
    peer_max: u32,
    /// Likely length of the next instance.
    guess: usize,
    summary: AssociationSummary,
    /// What services are given to tell events by …
    line: EventLine,
    /// … and where those come out.
    events: mpsc::Receiver<ServiceEvent>,
    /// The event that the peer has not answered.
    outstanding: Option<Outstanding>,
    next_event_id: u16,
}

/// What became of a data set.
enum Received {
    Whole(Bytes, Share, Turn),
    Refused(StoreStatus),
}

impl Association<'_> {
    async fn run(&mut self, answer: &[u8]) -> Result<AssociationEnd, WireError> {
        self.wire.write(answer).await?;
        loop {
            let header = tokio::select! {
                biased;
                () = self.shared.shutdown.cancelled() => return Ok(AssociationEnd::Shutdown),
                // Only between messages, and one at a time; an idle wait may be broken off.
                Some(event) = self.events.recv(), if self.outstanding.is_none() => {
                    self.send_event(event).await?;
                    continue;
                }
                header = self.wire.idle_header(self.shared.config.idle_timeout) => header?,
            };
            match header.kind {
                PduKind::Data => self.message().await?,
                PduKind::ReleaseRq => {
                    self.wire.body(header).await?;
                    self.wire.write(&RELEASE_RP).await?;
                    return Ok(AssociationEnd::Released);
                }
                PduKind::Abort => return Ok(AssociationEnd::AbortedByPeer),
                _ => return Err(WireError::OutOfTurn),
            }
        }
    }

    async fn message(&mut self) -> Result<(), WireError> {
        let (context_id, command) = self.command().await?;
        let Some(context) = self.contexts.iter().find(|context| context.id == context_id) else {
            return Err(PduError::ContextId.into());
        };
        let context = context.clone();
        if let (Some(service), Some(operation)) = (context.service, Operation::of(command.field)) {
            let handler = Arc::clone(&self.shared.services[service]);
            return self.operate(&context, &command, operation, &handler).await;
        }
        match command.field {
            C_ECHO_RQ => {
                self.pass_over_data(&context, &command).await?;
                self.shared.handler.echo(&self.info);
                self.respond(&context, &command, &StoreStatus::SUCCESS).await
            }
            C_STORE_RQ => self.store(&context, &command).await,
            // There is never anything under way that could be cancelled.
            C_CANCEL_RQ => Ok(()),
            field if field & RESPONSE != 0 => self.event_answered(&context, &command).await,
            _ => {
                self.pass_over_data(&context, &command).await?;
                self.respond(&context, &command, &StoreStatus::from_code(0x0211, "unrecognized operation")).await
            }
        }
    }

    /// Reads a command set. Its first PDU's header has been read.
    async fn command(&mut self) -> Result<(u8, Command), WireError> {
        let mut bytes = BytesMut::new();
        let mut context_id = None;
        loop {
            let pdv = self.wire.pdv().await?;
            if !pdv.is_command || *context_id.get_or_insert(pdv.context_id) != pdv.context_id {
                return Err(WireError::OutOfTurn);
            }
            if bytes.len() + pdv.len > COMMAND_LEN_MAX {
                return Err(PduError::TooLong.into());
            }
            bytes.reserve(pdv.len);
            self.wire.take(&mut bytes, pdv.len).await?;
            if pdv.is_last {
                let command = Command::decode(&bytes).map_err(|_| PduError::MissingItem)?;
                return Ok((pdv.context_id, command));
            }
        }
    }

    async fn store(&mut self, context: &Context, command: &Command) -> Result<(), WireError> {
        let request = self.store_request(context, command);
        let status = match request {
            Err(status) => {
                self.reject(RejectReason::BadRequest);
                self.pass_over_data(context, command).await?;
                status
            }
            Ok(request) => match self.data_set(context, self.shared.config.instance_len_max, self.guess).await? {
                Received::Refused(status) => status,
                Received::Whole(dataset, share, turn) => {
                    self.summary.bytes += dataset.len() as u64;
                    // A little more than last time: slices of a series differ by a few bytes.
                    self.guess = (dataset.len() + dataset.len() / 64 + 64).min(GUESS_LEN_MAX);
                    let status = self.shared.handler.store(request, dataset).await;
                    drop((share, turn));
                    self.shared.handler.pace(&self.info).await;
                    status
                }
            },
        };
        if status.is_stored() {
            self.summary.stored += 1;
        } else {
            self.summary.refused += 1;
        }
        self.respond(context, command, &status).await
    }

    /// What the handler is told, or the status for a request that makes no sense (PS3.7 annex C).
    fn store_request(&self, context: &Context, command: &Command) -> Result<StoreRequest, StoreStatus> {
        let is_storage = context.service.is_none() && context.abstract_syntax != Uid::VERIFICATION;
        if !is_storage || command.sop_class.as_ref() != Some(&context.abstract_syntax) {
            return Err(StoreStatus::from_code(0x0122, "sop class is not that of the presentation context"));
        }
        let Some(Ok(sop_instance)) = &command.sop_instance else {
            return Err(StoreStatus::from_code(0x0117, "sop instance uid is missing or invalid"));
        };
        if !command.has_data_set {
            return Err(StoreStatus::cannot_understand("no data set"));
        }
        let originator = command.move_originator.clone();
        Ok(StoreRequest {
            calling_ae: self.info.calling_ae.clone(),
            called_ae: self.info.called_ae.clone(),
            remote: self.info.remote,
            sop_class: context.abstract_syntax.clone(),
            sop_instance: sop_instance.clone(),
            transfer_syntax: context.transfer_syntax.clone(),
            message_id: command.message_id.unwrap_or(0),
            move_originator: originator.map(|originator| (originator, command.move_originator_message)),
        })
    }

    /// Reads a data set of at most `len_max` bytes into one contiguous buffer, paying for its memory as it
    /// grows; `guess` is how long it likely is.
    async fn data_set(&mut self, context: &Context, len_max: usize, guess: usize) -> Result<Received, WireError> {
        let (mut share, mut turn) = (self.shared.budget.share(), self.shared.turns.turn(guess));
        let mut bytes = BytesMut::new();
        let mut capacity_wanted = guess;
        loop {
            let pdv = turn.during(self.wire.pdv()).await?;
            check_data(pdv.is_command, pdv.context_id, context)?;
            let needed = bytes.len() + pdv.len;
            if needed > len_max {
                self.reject(RejectReason::InstanceTooLong);
                let taken = bytes.len();
                drop((bytes, share, turn));
                self.pass_over_rest(context, taken, pdv.len, pdv.is_last).await?;
                return Ok(Received::Refused(StoreStatus::out_of_resources("instance is too long")));
            }
            self.wire.excuse(turn.come().await);
            if needed > bytes.capacity() {
                let capacity = capacity_wanted.max(needed);
                if !self.pay(&mut share, capacity).await {
                    self.reject(RejectReason::Busy);
                    let taken = bytes.len();
                    drop((bytes, share, turn));
                    self.pass_over_rest(context, taken, pdv.len, pdv.is_last).await?;
                    return Ok(Received::Refused(StoreStatus::out_of_resources("busy, try again later")));
                }
                // As much as was paid for: `reserve` would take twice what there was.
                let mut longer = BytesMut::with_capacity(capacity);
                longer.extend_from_slice(&bytes);
                bytes = longer;
                capacity_wanted = capacity + capacity / 2;
            }
            turn.during(self.wire.take(&mut bytes, pdv.len)).await?;
            debug_assert!(share.covers(bytes.capacity()), "more is taken than was paid for");
            if pdv.is_last {
                return Ok(Received::Whole(bytes.freeze(), share, turn));
            }
        }
    }

    /// Waits for a share of the budget; false when there is none in time. The wait is not held
    /// against the sender, who cannot send meanwhile.
    async fn pay(&mut self, share: &mut Share, len: usize) -> bool {
        let before = Instant::now();
        let paid = timeout(self.shared.config.stall_timeout, share.cover(len)).await.is_ok();
        self.wire.excuse(before.elapsed());
        paid
    }

    async fn pass_over_data(&mut self, context: &Context, command: &Command) -> Result<(), WireError> {
        if command.has_data_set { self.pass_over_rest(context, 0, 0, false).await } else { Ok(()) }
    }

    /// Passes over the rest of a data set, of which `taken` bytes were read and `len` bytes follow in this PDV, so
    /// that the sender hears why it is refused. What goes on beyond any instance is cut off.
    async fn pass_over_rest(
        &mut self,
        context: &Context,
        taken: usize,
        mut len: usize,
        mut is_last: bool,
    ) -> Result<(), WireError> {
        let mut passed = 0;
        loop {
            self.wire.skip(len).await?;
            passed += len;
            if is_last {
                let handler = &self.shared.handler;
                handler.passed_over(&self.info, (taken + passed) as u64);
                handler.pace(&self.info).await;
                return Ok(());
            }
            if passed > self.shared.config.instance_len_max {
                return Err(PduError::TooLong.into());
            }
            let pdv = self.wire.pdv().await?;
            check_data(pdv.is_command, pdv.context_id, context)?;
            (len, is_last) = (pdv.len, pdv.is_last);
        }
    }

    async fn respond(&mut self, context: &Context, command: &Command, status: &StoreStatus) -> Result<(), WireError> {
        let response = command.respond(status).encode();
        self.wire.write(&command_pdus(context.id, &response, self.peer_max)).await
    }

    fn reject(&self, reason: RejectReason) {
        tracing::info!(reason = reason.label(), "instance refused");
        self.shared.events.rejected(self.info.remote, Some(&self.info.calling_ae), reason);
    }
}

fn check_data(is_command: bool, context_id: u8, context: &Context) -> Result<(), WireError> {
    if is_command || context_id != context.id { Err(WireError::OutOfTurn) } else { Ok(()) }
}
