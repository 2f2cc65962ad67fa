//! The calling side: C-ECHO and C-STORE as a service class user, and any operation of another service
//! class, notifications by their provider among them.
//!
//! One presentation context is proposed for each pair of SOP class and transfer syntax, so that a
//! data set is sent exactly as it is or not at all: an acceptor chooses one syntax of a context, and
//! it need not be ours.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::command::{C_ECHO_RSP, C_STORE_RSP, COMMAND_LEN_MAX, Command, RESPONSE};
use super::pdu::{
    Abort, AssociateAc, AssociateRj, AssociateRq, CONTEXTS_MAX, ContextResult, PduKind, PdvHeader, ProposedContext,
    RELEASE_RQ, Role, UserInformation,
};
use super::scp::SERVICE_LEN_MAX;
use super::status::{Status, StoreStatus};
use super::wire::{Wire, WireError, WireLimits, command_pdus, data_pdus, fragment_len};
use crate::ae_title::AeTitle;
use crate::part10::IMPLEMENTATION_VERSION;
use crate::uid::Uid;

/// Longest P-DATA-TF body that we receive: only responses come.
const MAX_PDU: u32 = 64 << 10;
/// Most bytes that the answers to one operation may have together: a C-FIND's 500 workitems have some 2 MB.
const ANSWERS_LEN_MAX: usize = 64 << 20;
/// Headers and fragments handed to the kernel at once.
const FRAGMENTS_AT_ONCE: usize = 32;
/// Bytes of the headers before a fragment.
const HEADERS_LEN: usize = super::pdu::PDU_HEADER_LEN + super::pdu::PDV_HEADER_LEN;

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub struct ScuTimeouts {
    /// For the connection and the answer to the request, each.
    pub connect: Duration,
    /// For the answer to a message: the peer may be making it durable.
    pub response: Duration,
    /// For progress while sending.
    pub stall: Duration,
}

impl Default for ScuTimeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), response: Duration::from_secs(60), stall: Duration::from_secs(30) }
    }
}

/// Why an association could not be made or used.
#[derive(Debug, Error)]
pub enum ScuError {
    /// Nobody there.
    #[error("failed to connect: {0}")]
    Connect(#[source] std::io::Error),
    /// Nothing in time.
    #[error("no answer in time")]
    TimedOut,
    /// Refused.
    #[error(transparent)]
    Rejected(#[from] AssociateRj),
    /// More than 128 pairs of SOP class and transfer syntax.
    #[error("too many presentation contexts")]
    TooManyContexts,
    /// The peer did not accept this SOP class in this transfer syntax.
    #[error("sop class {sop_class} in transfer syntax {transfer_syntax} was not accepted")]
    NotAccepted {
        /// SOP class.
        sop_class: Uid,
        /// Transfer syntax.
        transfer_syntax: Uid,
    },
    /// The connection broke, or the peer aborted or broke the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A response that does not answer our request.
    #[error("peer answered something else")]
    WrongResponse,
}

/// An association with a peer, one message at a time. Dropping it closes the connection; a future
/// of it that is dropped half-way leaves it unusable.
#[derive(Debug)]
pub struct Association {
    wire: Wire,
    contexts: Vec<Context>,
    peer_max: u32,
    next_message_id: u16,
    response: Duration,
}

#[derive(Debug)]
struct Context {
    id: u8,
    sop_class: Uid,
    transfer_syntax: Uid,
}

impl Association {
    /// Connects and negotiates. `contexts` says what is to be sent, each SOP class with the transfer
    /// syntaxes in which it may come.
    ///
    /// # Errors
    /// When nobody answers in time, or refuses. That a context was not accepted shows only when it
    /// is used, or by [`Association::accepts`].
    pub async fn connect(
        addr: SocketAddr,
        calling: &AeTitle,
        called: &AeTitle,
        contexts: &[(Uid, Vec<Uid>)],
        timeouts: ScuTimeouts,
    ) -> Result<Self, ScuError> {
        Self::negotiated(addr, request(calling, called, contexts)?, timeouts).await
    }

    /// Connects as the provider of the SOP classes, who tells their users of events (PS3.7 annex D.3.3.4).
    ///
    /// # Errors
    /// As [`Association::connect`]. A peer that does not answer about roles is taken to agree: many that
    /// listen for reports do not know the item.
    pub async fn connect_as_provider(
        addr: SocketAddr,
        calling: &AeTitle,
        called: &AeTitle,
        contexts: &[(Uid, Vec<Uid>)],
        timeouts: ScuTimeouts,
    ) -> Result<Self, ScuError> {
        let mut request = request(calling, called, contexts)?;
        let role = |(sop_class, _): &(Uid, Vec<Uid>)| Role { sop_class: sop_class.clone(), scu: false, scp: true };
        request.user.roles = contexts.iter().map(role).collect();
        Self::negotiated(addr, request, timeouts).await
    }

    async fn negotiated(addr: SocketAddr, request: AssociateRq, timeouts: ScuTimeouts) -> Result<Self, ScuError> {
        let stream = match timeout(timeouts.connect, TcpStream::connect(addr)).await {
            Ok(stream) => stream.map_err(ScuError::Connect)?,
            Err(_) => return Err(ScuError::TimedOut),
        };
        let limits = WireLimits {
            stall: timeouts.stall,
            // Only responses come, which are short.
            message_grace: timeouts.response,
            data_len_max: usize::try_from(MAX_PDU).unwrap_or(usize::MAX),
        };
        let mut wire = Wire::new(stream, limits).map_err(ScuError::Connect)?;
        wire.acknowledge_at_once();
        let answer = match timeout(timeouts.connect, negotiate(&mut wire, &request)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(ScuError::TimedOut),
        };
        Ok(Self {
            wire,
            contexts: accepted(&request, &answer),
            peer_max: answer.user.max_pdu,
            next_message_id: 1,
            response: timeouts.response,
        })
    }

    /// Whether the peer accepted this SOP class in this transfer syntax.
    pub fn accepts(&self, sop_class: &Uid, transfer_syntax: &Uid) -> bool {
        self.context(sop_class, Some(transfer_syntax)).is_ok()
    }

    /// C-ECHO, in any transfer syntax accepted for [`Uid::VERIFICATION`].
    ///
    /// # Errors
    /// When the peer does not accept it or does not answer it with success.
    pub async fn echo(&mut self) -> Result<(), ScuError> {
        let context_id = self.context(&Uid::VERIFICATION, None)?;
        let message_id = self.message_id();
        let command = Command::echo(message_id).encode();
        self.wire.write(&command_pdus(context_id, &command, self.peer_max)).await?;
        let response = self.response(C_ECHO_RSP, message_id).await?;
        if response.status == Some(0) { Ok(()) } else { Err(ScuError::WrongResponse) }
    }

    /// C-STORE of one data set (no preamble, no file meta information), as it is.
    ///
    /// # Errors
    /// When the peer accepted no such context or the connection breaks. A refusal by the peer is a
    /// status, not an error.
    pub async fn store(
        &mut self,
        sop_class: &Uid,
        sop_instance: &Uid,
        transfer_syntax: &Uid,
        dataset: Bytes,
    ) -> Result<StoreStatus, ScuError> {
        let context_id = self.context(sop_class, Some(transfer_syntax))?;
        let message_id = self.message_id();
        let command = Command::store(message_id, sop_class.clone(), sop_instance.clone()).encode();
        let command = command_pdus(context_id, &command, self.peer_max);
        self.send(context_id, &command, &dataset).await?;
        let response = self.response(C_STORE_RSP, message_id).await?;
        let status = response.status.ok_or(ScuError::WrongResponse)?;
        Ok(StoreStatus::from_code(status, response.comment.unwrap_or_default()))
    }

    /// The transfer syntax in which the peer takes data sets of this SOP class, the first proposed of those
    /// that it accepted.
    pub fn transfer_syntax(&self, sop_class: &Uid) -> Option<&Uid> {
        self.contexts.iter().find(|context| context.sop_class == *sop_class).map(|context| &context.transfer_syntax)
    }

    /// Any operation, in the context of `negotiated` that [`Association::transfer_syntax`] names. The answers
    /// are the pending ones and the last, each with its data set.
    ///
    /// # Errors
    /// When the peer accepted no such context, the connection breaks, or the answers are too long.
    pub async fn perform(
        &mut self,
        negotiated: &Uid,
        command: Command,
        dataset: Option<Bytes>,
    ) -> Result<Vec<(Command, Option<Bytes>)>, ScuError> {
        let context_id = self.context(negotiated, None)?;
        let message_id = self.message_id();
        let command = Command { message_id: Some(message_id), has_data_set: dataset.is_some(), ..command };
        let mut pdus = command_pdus(context_id, &command.encode(), self.peer_max);
        if let Some(dataset) = dataset {
            pdus.extend_from_slice(&data_pdus(context_id, &dataset, self.peer_max));
        }
        self.wire.write(&pdus).await?;
        let (mut answers, mut len) = (Vec::new(), 0);
        loop {
            let answer = self.command(command.field | RESPONSE, message_id).await?;
            let dataset = if answer.has_data_set { Some(self.data_set().await?) } else { None };
            len += dataset.as_ref().map_or(0, Bytes::len);
            let is_pending = matches!(answer.status, Some(0xFF00 | 0xFF01));
            answers.push((answer, dataset));
            if !is_pending {
                return Ok(answers);
            }
            if len > ANSWERS_LEN_MAX {
                return Err(ScuError::WrongResponse);
            }
        }
    }

    /// N-EVENT-REPORT of an instance: `sop_class` is the command's, which may differ from the context's.
    ///
    /// # Errors
    /// As [`Association::perform`]. A refusal by the peer is a status, not an error.
    pub async fn report_event(
        &mut self,
        negotiated: &Uid,
        (sop_class, sop_instance): (Uid, Uid),
        event_type: u16,
        dataset: Bytes,
    ) -> Result<Status, ScuError> {
        let command = Command::event_report(sop_class, sop_instance, event_type);
        let answers = self.perform(negotiated, command, Some(dataset)).await?;
        let (answer, _) = answers.into_iter().next_back().ok_or(ScuError::WrongResponse)?;
        let code = answer.status.ok_or(ScuError::WrongResponse)?;
        Ok(Status::from_code(code, answer.comment.unwrap_or_default()))
    }

    /// Ends the association in good order.
    ///
    /// # Errors
    /// When the peer does not answer; everything it confirmed before is confirmed all the same.
    pub async fn release(mut self) -> Result<(), ScuError> {
        self.wire.write(&RELEASE_RQ).await?;
        let header = self.wire.idle_header(self.response).await?;
        if header.kind != PduKind::ReleaseRp {
            return Err(WireError::OutOfTurn.into());
        }
        self.wire.body(header).await?;
        Ok(())
    }

    /// Ends the association at once; the peer discards what is not complete.
    pub async fn abort(self) {
        self.wire.close_with(&Abort::BY_USER.encode()).await;
    }

    /// Our side of the connection.
    ///
    /// # Errors
    /// When the socket cannot tell.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.wire.local_addr()
    }

    fn message_id(&mut self) -> u16 {
        let id = self.next_message_id;
        self.next_message_id = id.checked_add(1).unwrap_or(1);
        id
    }

    fn context(&self, sop_class: &Uid, transfer_syntax: Option<&Uid>) -> Result<u8, ScuError> {
        let fits = |context: &&Context| {
            context.sop_class == *sop_class && transfer_syntax.is_none_or(|wanted| context.transfer_syntax == *wanted)
        };
        self.contexts.iter().find(fits).map(|context| context.id).ok_or_else(|| ScuError::NotAccepted {
            sop_class: sop_class.clone(),
            transfer_syntax: transfer_syntax.unwrap_or(&Uid::IMPLICIT_LE).clone(),
        })
    }

    /// Sends the command and the data set, of which only headers are written anew: the fragments are
    /// handed to the kernel where they lie.
    async fn send(&mut self, context_id: u8, command: &[u8], dataset: &[u8]) -> Result<(), ScuError> {
        let step = fragment_len(self.peer_max);
        let mut rest = dataset;
        let mut before = command;
        loop {
            let mut headers = Vec::with_capacity(FRAGMENTS_AT_ONCE);
            let mut fragments = Vec::with_capacity(FRAGMENTS_AT_ONCE);
            // An empty data set is one empty last fragment.
            while headers.len() < FRAGMENTS_AT_ONCE && (headers.is_empty() || !rest.is_empty()) {
                let (fragment, after) = rest.split_at(rest.len().min(step));
                let (len, is_last) = (fragment.len(), after.is_empty());
                headers.push(PdvHeader { context_id, is_command: false, is_last, len }.encode_alone());
                fragments.push(fragment);
                rest = after;
            }
            let parts = headers.iter().map(<[u8; HEADERS_LEN]>::as_slice).zip(fragments).flat_map(<[&[u8]; 2]>::from);
            let mut slices: Vec<_> = std::iter::once(before).chain(parts).map(IoSlice::new).collect();
            let mut slices = slices.as_mut_slice();
            IoSlice::advance_slices(&mut slices, 0);
            while !slices.is_empty() {
                let written = self.wire.write_some(slices).await?;
                IoSlice::advance_slices(&mut slices, written);
            }
            if rest.is_empty() {
                return Ok(());
            }
            before = &[];
        }
    }

    /// A response without a data set.
    async fn response(&mut self, field: u16, message_id: u16) -> Result<Command, ScuError> {
        let response = self.command(field, message_id).await?;
        if response.has_data_set { Err(ScuError::WrongResponse) } else { Ok(response) }
    }

    /// The data set of an answer.
    async fn data_set(&mut self) -> Result<Bytes, ScuError> {
        let mut bytes = BytesMut::new();
        loop {
            let pdv = self.wire.pdv().await?;
            if pdv.is_command || bytes.len() + pdv.len > SERVICE_LEN_MAX {
                return Err(ScuError::WrongResponse);
            }
            bytes.reserve(pdv.len);
            self.wire.take(&mut bytes, pdv.len).await?;
            if pdv.is_last {
                return Ok(bytes.freeze());
            }
        }
    }

    async fn command(&mut self, field: u16, message_id: u16) -> Result<Command, ScuError> {
        self.wire.acknowledge_at_once();
        let header = self.wire.idle_header(self.response).await?;
        match header.kind {
            PduKind::Data => {}
            PduKind::Abort => {
                let body = self.wire.body(header).await?;
                return Err(WireError::from(Abort::decode(&body).map_err(WireError::from)?).into());
            }
            _ => return Err(WireError::OutOfTurn.into()),
        }
        let mut bytes = BytesMut::new();
        loop {
            let pdv = self.wire.pdv().await?;
            if !pdv.is_command || bytes.len() + pdv.len > COMMAND_LEN_MAX {
                return Err(ScuError::WrongResponse);
            }
            bytes.reserve(pdv.len);
            self.wire.take(&mut bytes, pdv.len).await?;
            if pdv.is_last {
                break;
            }
        }
        let response = Command::decode(&bytes).map_err(|_| ScuError::WrongResponse)?;
        let answers = response.field == field && response.responds_to == Some(message_id);
        if answers { Ok(response) } else { Err(ScuError::WrongResponse) }
    }
}

fn request(calling: &AeTitle, called: &AeTitle, contexts: &[(Uid, Vec<Uid>)]) -> Result<AssociateRq, ScuError> {
    let pairs =
        contexts.iter().flat_map(|(sop_class, syntaxes)| syntaxes.iter().map(move |syntax| (sop_class, syntax)));
    let mut proposed: Vec<ProposedContext> = Vec::new();
    for (n, (sop_class, transfer_syntax)) in pairs.enumerate() {
        if n == CONTEXTS_MAX {
            return Err(ScuError::TooManyContexts);
        }
        proposed.push(ProposedContext {
            id: u8::try_from(2 * n + 1).map_err(|_| ScuError::TooManyContexts)?,
            abstract_syntax: sop_class.clone(),
            transfer_syntaxes: vec![transfer_syntax.clone()],
        });
    }
    Ok(AssociateRq {
        called: called.clone(),
        calling: calling.clone(),
        application_context: Uid::APPLICATION_CONTEXT,
        contexts: proposed,
        user: UserInformation {
            max_pdu: MAX_PDU,
            implementation_class: Some(Uid::IMPLEMENTATION_CLASS),
            implementation_version: Some(IMPLEMENTATION_VERSION.to_owned()),
            ..UserInformation::default()
        },
    })
}

async fn negotiate(wire: &mut Wire, request: &AssociateRq) -> Result<AssociateAc, ScuError> {
    wire.write(&request.encode()).await?;
    let header = wire.header().await?;
    let body = wire.body(header).await?;
    match header.kind {
        PduKind::AssociateAc => Ok(AssociateAc::decode(&body, request).map_err(WireError::from)?),
        PduKind::AssociateRj => Err(AssociateRj::decode(&body).map_err(WireError::from)?.into()),
        PduKind::Abort => Err(WireError::from(Abort::decode(&body).map_err(WireError::from)?).into()),
        _ => Err(WireError::OutOfTurn.into()),
    }
}

/// The contexts that both sides have: what the peer names must be what we proposed.
fn accepted(request: &AssociateRq, answer: &AssociateAc) -> Vec<Context> {
    let mut contexts = Vec::new();
    for proposed in &request.contexts {
        let negotiated = answer.contexts.iter().find(|context| context.id == proposed.id);
        let chosen = negotiated.filter(|context| context.result == ContextResult::Accepted);
        if let Some(transfer_syntax) = chosen.and_then(|context| context.transfer_syntax.as_ref())
            && proposed.transfer_syntaxes.contains(transfer_syntax)
        {
            contexts.push(Context {
                id: proposed.id,
                sop_class: proposed.abstract_syntax.clone(),
                transfer_syntax: transfer_syntax.clone(),
            });
        }
    }
    contexts
}
