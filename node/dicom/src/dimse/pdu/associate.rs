//! A-ASSOCIATE-RQ and -AC, PS3.8 sections 9.3.2 and 9.3.3, with the user information of PS3.7 annex
//! D.3.3. Extended negotiation and user identity are passed over: they ask for nothing that
//! storing needs.

use bytes::{BufMut, BytesMut};

use super::{PduError, PduKind};
use crate::ae_title::AeTitle;
use crate::uid::Uid;

/// Most presentation contexts: their ids are the odd numbers to 255.
pub const CONTEXTS_MAX: usize = 128;
/// Most transfer syntaxes of a context; the standard knows some 60.
pub const TRANSFER_SYNTAXES_MAX: usize = 128;
/// Most items that are passed over or collected in the user information.
const USER_ITEMS_MAX: usize = 512;
/// Most bytes of an implementation version name, PS3.7 annex D.3.3.2.3.
const VERSION_LEN_MAX: usize = 16;

const ITEM_APPLICATION_CONTEXT: u8 = 0x10;
const ITEM_CONTEXT_RQ: u8 = 0x20;
const ITEM_CONTEXT_AC: u8 = 0x21;
const ITEM_ABSTRACT_SYNTAX: u8 = 0x30;
const ITEM_TRANSFER_SYNTAX: u8 = 0x40;
const ITEM_USER_INFORMATION: u8 = 0x50;
const ITEM_MAX_LENGTH: u8 = 0x51;
const ITEM_IMPLEMENTATION_CLASS: u8 = 0x52;
const ITEM_ASYNC_WINDOW: u8 = 0x53;
const ITEM_ROLE: u8 = 0x54;
const ITEM_IMPLEMENTATION_VERSION: u8 = 0x55;

/// A request for an association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociateRq {
    /// Whom the requestor calls.
    pub called: AeTitle,
    /// The requestor.
    pub calling: AeTitle,
    /// DICOM's, or it is refused.
    pub application_context: Uid,
    /// What it wants to do.
    pub contexts: Vec<ProposedContext>,
    /// Its limits and its name.
    pub user: UserInformation,
}

/// A proposed presentation context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposedContext {
    /// Odd.
    pub id: u8,
    /// SOP class.
    pub abstract_syntax: Uid,
    /// At least one, in the requestor's order.
    pub transfer_syntaxes: Vec<Uid>,
}

/// An acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociateAc {
    /// As requested.
    pub called: AeTitle,
    /// As requested.
    pub calling: AeTitle,
    /// One answer a proposed context.
    pub contexts: Vec<NegotiatedContext>,
    /// The acceptor's limits and name.
    pub user: UserInformation,
}

/// The answer to a proposed presentation context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NegotiatedContext {
    /// Id of the proposal.
    pub id: u8,
    /// The answer.
    pub result: ContextResult,
    /// The chosen transfer syntax; insignificant unless accepted.
    pub transfer_syntax: Option<Uid>,
}

/// Result of a presentation context's negotiation, PS3.8 table 9-18.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextResult {
    /// Accepted.
    Accepted,
    /// User rejection.
    UserRejection,
    /// No reason, by the provider.
    NoReason,
    /// Abstract syntax not supported.
    AbstractSyntax,
    /// Transfer syntaxes not supported.
    TransferSyntaxes,
}

/// User information of either side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInformation {
    /// Longest P-DATA-TF body that the side receives; 0 is unlimited.
    pub max_pdu: u32,
    /// Implementation class.
    pub implementation_class: Option<Uid>,
    /// Implementation version name.
    pub implementation_version: Option<String>,
    /// Operations invoked and performed at once, when asked for.
    pub async_window: Option<(u16, u16)>,
    /// Roles, when asked for.
    pub roles: Vec<Role>,
}

/// SCP/SCU role selection, PS3.7 annex D.3.3.4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// SOP class.
    pub sop_class: Uid,
    /// The requestor may be its SCU.
    pub scu: bool,
    /// The requestor may be its SCP.
    pub scp: bool,
}

impl AssociateRq {
    /// Decodes a body.
    ///
    /// # Errors
    /// See [`PduError`].
    pub fn decode(body: &[u8]) -> Result<Self, PduError> {
        let (fixed, items) = split_fixed(body)?;
        let called = AeTitle::from_padded(&fixed[4..20]).map_err(|_| PduError::CalledAe)?;
        let calling = AeTitle::from_padded(&fixed[20..36]).map_err(|_| PduError::CallingAe)?;
        let mut application_context = None;
        let mut contexts: Vec<ProposedContext> = Vec::new();
        let mut user = UserInformation::default();
        for item in Items(items) {
            let (kind, value) = item?;
            match kind {
                ITEM_APPLICATION_CONTEXT => application_context = Some(Uid::from_padded(value)?),
                ITEM_CONTEXT_RQ => {
                    let context = ProposedContext::decode(value)?;
                    if contexts.len() == CONTEXTS_MAX {
                        return Err(PduError::TooMany);
                    }
                    if context.id % 2 == 0 || contexts.iter().any(|other| other.id == context.id) {
                        return Err(PduError::ContextId);
                    }
                    contexts.push(context);
                }
                ITEM_USER_INFORMATION => user = UserInformation::decode(value)?,
                _ => {}
            }
        }
        let application_context = application_context.ok_or(PduError::MissingItem)?;
        Ok(Self { called, calling, application_context, contexts, user })
    }

    /// The whole PDU.
    pub fn encode(&self) -> BytesMut {
        let mut pdu = begin(PduKind::AssociateRq, &self.called, &self.calling);
        put_item(&mut pdu, ITEM_APPLICATION_CONTEXT, |out| out.put_slice(self.application_context.as_str().as_bytes()));
        for context in &self.contexts {
            put_item(&mut pdu, ITEM_CONTEXT_RQ, |out| {
                out.put_slice(&[context.id, 0, 0, 0]);
                put_uid(out, ITEM_ABSTRACT_SYNTAX, &context.abstract_syntax);
                for transfer_syntax in &context.transfer_syntaxes {
                    put_uid(out, ITEM_TRANSFER_SYNTAX, transfer_syntax);
                }
            });
        }
        self.user.encode(&mut pdu);
        finish(pdu)
    }
}

impl ProposedContext {
    fn decode(value: &[u8]) -> Result<Self, PduError> {
        let (&[id, _, _, _], items) = value.split_first_chunk().ok_or(PduError::Truncated)?;
        let mut abstract_syntax = None;
        let mut transfer_syntaxes = Vec::new();
        for item in Items(items) {
            match item? {
                (ITEM_ABSTRACT_SYNTAX, value) => abstract_syntax = Some(Uid::from_padded(value)?),
                (ITEM_TRANSFER_SYNTAX, _) if transfer_syntaxes.len() == TRANSFER_SYNTAXES_MAX => {
                    return Err(PduError::TooMany);
                }
                (ITEM_TRANSFER_SYNTAX, value) => transfer_syntaxes.push(Uid::from_padded(value)?),
                _ => {}
            }
        }
        match abstract_syntax {
            Some(abstract_syntax) if !transfer_syntaxes.is_empty() => {
                Ok(Self { id, abstract_syntax, transfer_syntaxes })
            }
            _ => Err(PduError::MissingItem),
        }
    }
}

impl AssociateAc {
    /// Decodes a body.
    ///
    /// # Errors
    /// See [`PduError`]; the AE titles, which the standard calls insignificant here, are taken from
    /// `request`.
    pub fn decode(body: &[u8], request: &AssociateRq) -> Result<Self, PduError> {
        let (_, items) = split_fixed(body)?;
        let mut contexts = Vec::new();
        let mut user = UserInformation::default();
        for item in Items(items) {
            match item? {
                (ITEM_CONTEXT_AC, _) if contexts.len() == CONTEXTS_MAX => return Err(PduError::TooMany),
                (ITEM_CONTEXT_AC, value) => contexts.push(NegotiatedContext::decode(value)?),
                (ITEM_USER_INFORMATION, value) => user = UserInformation::decode(value)?,
                _ => {}
            }
        }
        Ok(Self { called: request.called.clone(), calling: request.calling.clone(), contexts, user })
    }

    /// The whole PDU.
    pub fn encode(&self) -> BytesMut {
        let mut pdu = begin(PduKind::AssociateAc, &self.called, &self.calling);
        put_uid(&mut pdu, ITEM_APPLICATION_CONTEXT, &Uid::APPLICATION_CONTEXT);
        for context in &self.contexts {
            put_item(&mut pdu, ITEM_CONTEXT_AC, |out| {
                out.put_slice(&[context.id, 0, context.result.byte(), 0]);
                // Insignificant in a refusal, but some requestors parse it all the same.
                put_uid(out, ITEM_TRANSFER_SYNTAX, context.transfer_syntax.as_ref().unwrap_or(&Uid::IMPLICIT_LE));
            });
        }
        self.user.encode(&mut pdu);
        finish(pdu)
    }
}

impl NegotiatedContext {
    fn decode(value: &[u8]) -> Result<Self, PduError> {
        let (&[id, _, result, _], items) = value.split_first_chunk().ok_or(PduError::Truncated)?;
        let result = ContextResult::from_byte(result);
        let mut transfer_syntax = None;
        for item in Items(items) {
            if let (ITEM_TRANSFER_SYNTAX, value) = item? {
                // In a refusal it is insignificant and may be anything.
                transfer_syntax = Uid::from_padded(value).ok();
            }
        }
        if result == ContextResult::Accepted && transfer_syntax.is_none() {
            return Err(PduError::MissingItem);
        }
        Ok(Self { id, result, transfer_syntax })
    }
}

impl ContextResult {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Accepted,
            1 => Self::UserRejection,
            3 => Self::AbstractSyntax,
            4 => Self::TransferSyntaxes,
            _ => Self::NoReason,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::UserRejection => 1,
            Self::NoReason => 2,
            Self::AbstractSyntax => 3,
            Self::TransferSyntaxes => 4,
        }
    }
}

impl UserInformation {
    fn decode(value: &[u8]) -> Result<Self, PduError> {
        let mut user = Self::default();
        for (n, item) in Items(value).enumerate() {
            if n == USER_ITEMS_MAX {
                return Err(PduError::TooMany);
            }
            match item? {
                (ITEM_MAX_LENGTH, &[a, b, c, d]) => user.max_pdu = u32::from_be_bytes([a, b, c, d]),
                (ITEM_MAX_LENGTH, _) => return Err(PduError::Truncated),
                (ITEM_IMPLEMENTATION_CLASS, value) => user.implementation_class = Uid::from_padded(value).ok(),
                (ITEM_IMPLEMENTATION_VERSION, value) => {
                    let version = String::from_utf8_lossy(&value[..value.len().min(VERSION_LEN_MAX)]);
                    user.implementation_version = Some(version.trim().to_owned());
                }
                (ITEM_ASYNC_WINDOW, &[a, b, c, d]) => {
                    user.async_window = Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
                }
                (ITEM_ROLE, value) => user.roles.push(Role::decode(value)?),
                _ => {}
            }
        }
        Ok(user)
    }

    fn encode(&self, pdu: &mut BytesMut) {
        put_item(pdu, ITEM_USER_INFORMATION, |out| {
            put_item(out, ITEM_MAX_LENGTH, |out| out.put_u32(self.max_pdu));
            if let Some(class) = &self.implementation_class {
                put_uid(out, ITEM_IMPLEMENTATION_CLASS, class);
            }
            if let Some((invoked, performed)) = self.async_window {
                put_item(out, ITEM_ASYNC_WINDOW, |out| {
                    out.put_u16(invoked);
                    out.put_u16(performed);
                });
            }
            for role in &self.roles {
                put_item(out, ITEM_ROLE, |out| role.encode(out));
            }
            if let Some(version) = &self.implementation_version {
                put_item(out, ITEM_IMPLEMENTATION_VERSION, |out| out.put_slice(version.as_bytes()));
            }
        });
    }
}

impl Role {
    fn decode(value: &[u8]) -> Result<Self, PduError> {
        let (&[a, b], rest) = value.split_first_chunk().ok_or(PduError::Truncated)?;
        let len = usize::from(u16::from_be_bytes([a, b]));
        match (rest.get(..len), rest.get(len..)) {
            (Some(uid), Some(&[scu, scp])) => {
                Ok(Self { sop_class: Uid::from_padded(uid)?, scu: scu == 1, scp: scp == 1 })
            }
            _ => Err(PduError::Truncated),
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        let uid = self.sop_class.as_str().as_bytes();
        out.put_u16(u16::try_from(uid.len()).unwrap_or(u16::MAX));
        out.put_slice(uid);
        out.put_slice(&[u8::from(self.scu), u8::from(self.scp)]);
    }
}

/// The items of a value, each of type, reserved byte, 16-bit length and value.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Result<(u8, &'a [u8]), PduError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((&[kind, _, a, b], rest)) = self.0.split_first_chunk() else {
            self.0 = &[];
            return Some(Err(PduError::Truncated));
        };
        match rest.split_at_checked(usize::from(u16::from_be_bytes([a, b]))) {
            Some((value, rest)) => {
                self.0 = rest;
                Some(Ok((kind, value)))
            }
            None => {
                self.0 = &[];
                Some(Err(PduError::Truncated))
            }
        }
    }
}

/// Bytes before the items of an A-ASSOCIATE body: version, titles, reserved.
const FIXED_LEN: usize = 68;

fn split_fixed(body: &[u8]) -> Result<(&[u8; FIXED_LEN], &[u8]), PduError> {
    let (fixed, items) = body.split_first_chunk::<FIXED_LEN>().ok_or(PduError::Truncated)?;
    if fixed[1] & 1 == 0 { Err(PduError::ProtocolVersion) } else { Ok((fixed, items)) }
}

fn begin(kind: PduKind, called: &AeTitle, calling: &AeTitle) -> BytesMut {
    let mut pdu = BytesMut::with_capacity(1024);
    // The length is filled in at the end.
    pdu.put_slice(&[kind.byte(), 0, 0, 0, 0, 0]);
    pdu.put_slice(&[0, 1, 0, 0]);
    pdu.put_slice(&called.padded());
    pdu.put_slice(&calling.padded());
    pdu.put_bytes(0, 32);
    pdu
}

fn finish(mut pdu: BytesMut) -> BytesMut {
    let len = u32::try_from(pdu.len() - 6).unwrap_or(u32::MAX);
    pdu[2..6].copy_from_slice(&len.to_be_bytes());
    pdu
}

fn put_uid(out: &mut BytesMut, kind: u8, uid: &Uid) {
    put_item(out, kind, |out| out.put_slice(uid.as_str().as_bytes()));
}

fn put_item(out: &mut BytesMut, kind: u8, value: impl FnOnce(&mut BytesMut)) {
    out.put_slice(&[kind, 0, 0, 0]);
    let begin = out.len();
    value(out);
    let len = u16::try_from(out.len() - begin).unwrap_or(u16::MAX);
    out[begin - 2..begin].copy_from_slice(&len.to_be_bytes());
}
