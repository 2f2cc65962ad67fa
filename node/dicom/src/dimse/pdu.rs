//! Protocol data units of the upper layer, PS3.8 section 9.3.
//!
//! Sans-IO: bytes in, values out. Every length is checked against what is left of its parent, and
//! every list has a bound, so a hostile PDU costs at most its own bytes.

mod associate;

use thiserror::Error;

use crate::uid::UidError;

pub use associate::{
    AssociateAc, AssociateRq, CONTEXTS_MAX, ContextResult, NegotiatedContext, ProposedContext, Role,
    TRANSFER_SYNTAXES_MAX, UserInformation,
};

/// Bytes of a PDU's header: type, reserved, length.
pub const PDU_HEADER_LEN: usize = 6;
/// Bytes of a PDV's header: length, context id, control.
pub const PDV_HEADER_LEN: usize = 6;
/// Most bytes of an A-ASSOCIATE-RQ or -AC: 128 contexts of a dozen transfer syntaxes take some
/// 100 kB.
pub const ASSOCIATE_LEN_MAX: usize = 256 << 10;

/// Type of a PDU, its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PduKind {
    /// A-ASSOCIATE-RQ.
    AssociateRq,
    /// A-ASSOCIATE-AC.
    AssociateAc,
    /// A-ASSOCIATE-RJ.
    AssociateRj,
    /// P-DATA-TF.
    Data,
    /// A-RELEASE-RQ.
    ReleaseRq,
    /// A-RELEASE-RP.
    ReleaseRp,
    /// A-ABORT.
    Abort,
}

/// Why bytes are not the PDU they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PduError {
    /// The first byte is no PDU type: HTTP, TLS or noise.
    #[error("not a dicom protocol data unit")]
    UnknownKind,
    /// A length that is too long for its kind.
    #[error("protocol data unit is too long")]
    TooLong,
    /// A length that goes beyond its parent, or too few bytes.
    #[error("protocol data unit is cut short")]
    Truncated,
    /// More items than allowed.
    #[error("protocol data unit has too many items")]
    TooMany,
    /// A protocol version without bit 0.
    #[error("protocol version is not supported")]
    ProtocolVersion,
    /// The called AE title is not valid.
    #[error("called ae title is not valid")]
    CalledAe,
    /// The calling AE title is not valid.
    #[error("calling ae title is not valid")]
    CallingAe,
    /// A UID that is none.
    #[error("protocol data unit has an invalid uid: {0}")]
    Uid(#[from] UidError),
    /// A presentation context id that is even, or used twice.
    #[error("presentation context id is not valid")]
    ContextId,
    /// An item that must be there is not.
    #[error("protocol data unit lacks an item")]
    MissingItem,
}

/// A PDU's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PduHeader {
    /// Its type.
    pub kind: PduKind,
    /// Bytes that follow the header.
    pub len: usize,
}

/// A-ASSOCIATE-RJ, PS3.8 section 9.3.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("association rejected (result {result}, source {source_code}, reason {reason})")]
pub struct AssociateRj {
    /// 1 permanent, 2 transient.
    pub result: u8,
    /// 1 service user, 2 provider (ACSE), 3 provider (presentation).
    pub source_code: u8,
    /// Depends on the source.
    pub reason: u8,
}

/// A-ABORT, PS3.8 section 9.3.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("association aborted (source {source_code}, reason {reason})")]
pub struct Abort {
    /// 0 service user, 2 provider.
    pub source_code: u8,
    /// 0 when the source is the user.
    pub reason: u8,
}

/// One presentation data value, PS3.8 section 9.3.5.1 and annex E.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PdvHeader {
    /// Presentation context.
    pub context_id: u8,
    /// Part of a command, else of a data set.
    pub is_command: bool,
    /// The last part.
    pub is_last: bool,
    /// Bytes of the part that follow.
    pub len: usize,
}

impl PduKind {
    /// From the first byte of a PDU.
    ///
    /// # Errors
    /// [`PduError::UnknownKind`].
    pub fn from_byte(byte: u8) -> Result<Self, PduError> {
        Ok(match byte {
            1 => Self::AssociateRq,
            2 => Self::AssociateAc,
            3 => Self::AssociateRj,
            4 => Self::Data,
            5 => Self::ReleaseRq,
            6 => Self::ReleaseRp,
            7 => Self::Abort,
            _ => return Err(PduError::UnknownKind),
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::AssociateRq => 1,
            Self::AssociateAc => 2,
            Self::AssociateRj => 3,
            Self::Data => 4,
            Self::ReleaseRq => 5,
            Self::ReleaseRp => 6,
            Self::Abort => 7,
        }
    }
}

impl PduHeader {
    /// Decodes a header and checks the length against the kind's bound; `data_len_max` is ours for
    /// P-DATA-TF.
    ///
    /// # Errors
    /// [`PduError::UnknownKind`], [`PduError::TooLong`] or, when a fixed-size PDU has another size,
    /// [`PduError::Truncated`].
    pub fn decode(bytes: [u8; PDU_HEADER_LEN], data_len_max: usize) -> Result<Self, PduError> {
        let [kind, _, length @ ..] = bytes;
        let kind = PduKind::from_byte(kind)?;
        let len = usize::try_from(u32::from_be_bytes(length)).map_err(|_| PduError::TooLong)?;
        let len_max = match kind {
            PduKind::AssociateRq | PduKind::AssociateAc => ASSOCIATE_LEN_MAX,
            PduKind::Data => data_len_max,
            _ => 4,
        };
        if len > len_max {
            return Err(PduError::TooLong);
        }
        if len < 4 {
            return Err(PduError::Truncated);
        }
        Ok(Self { kind, len })
    }
}

impl PdvHeader {
    /// Decodes a PDV's header, where `left` bytes of its PDU follow from the header on.
    ///
    /// # Errors
    /// [`PduError::Truncated`] when the PDV goes beyond its PDU or is shorter than its own header.
    pub fn decode(bytes: [u8; PDV_HEADER_LEN], left: usize) -> Result<Self, PduError> {
        let [a, b, c, d, context_id, control] = bytes;
        let declared = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| PduError::TooLong)?;
        if declared < 2 || declared > left.saturating_sub(4) {
            return Err(PduError::Truncated);
        }
        Ok(Self { context_id, is_command: control & 1 != 0, is_last: control & 2 != 0, len: declared - 2 })
    }

    /// The headers of a P-DATA-TF with this one PDV.
    pub fn encode_alone(&self) -> [u8; PDU_HEADER_LEN + PDV_HEADER_LEN] {
        let pdv_len = u32::try_from(self.len + 2).unwrap_or(u32::MAX);
        let [a, b, c, d] = pdv_len.saturating_add(4).to_be_bytes();
        let [e, f, g, h] = pdv_len.to_be_bytes();
        let control = u8::from(self.is_command) | (u8::from(self.is_last) << 1);
        [PduKind::Data.byte(), 0, a, b, c, d, e, f, g, h, self.context_id, control]
    }
}

impl AssociateRj {
    /// The called AE title is not ours.
    pub const CALLED_AE: Self = Self { result: 1, source_code: 1, reason: 7 };
    /// The calling AE title is not known, or calls from the wrong address.
    pub const CALLING_AE: Self = Self { result: 1, source_code: 1, reason: 3 };
    /// Another application context than DICOM's.
    pub const APPLICATION_CONTEXT: Self = Self { result: 1, source_code: 1, reason: 2 };
    /// The request cannot be understood.
    pub const NO_REASON: Self = Self { result: 1, source_code: 2, reason: 1 };
    /// Another protocol version than 1.
    pub const PROTOCOL_VERSION: Self = Self { result: 1, source_code: 2, reason: 2 };
    /// Too many associations at the moment.
    pub const CONGESTION: Self = Self { result: 2, source_code: 3, reason: 1 };

    /// Decodes a body.
    ///
    /// # Errors
    /// [`PduError::Truncated`].
    pub fn decode(body: &[u8]) -> Result<Self, PduError> {
        match *body {
            [_, result, source_code, reason] => Ok(Self { result, source_code, reason }),
            _ => Err(PduError::Truncated),
        }
    }

    /// The whole PDU.
    pub fn encode(self) -> [u8; 10] {
        [PduKind::AssociateRj.byte(), 0, 0, 0, 0, 4, 0, self.result, self.source_code, self.reason]
    }
}

impl Abort {
    /// We give up, for a reason of our own.
    pub const BY_USER: Self = Self { source_code: 0, reason: 0 };
    /// Bytes that are no PDU.
    pub const UNRECOGNIZED_PDU: Self = Self { source_code: 2, reason: 1 };
    /// A PDU that may not come now.
    pub const UNEXPECTED_PDU: Self = Self { source_code: 2, reason: 2 };
    /// A PDU with an invalid parameter.
    pub const INVALID_PARAMETER: Self = Self { source_code: 2, reason: 6 };

    /// Decodes a body.
    ///
    /// # Errors
    /// [`PduError::Truncated`].
    pub fn decode(body: &[u8]) -> Result<Self, PduError> {
        match *body {
            [_, _, source_code, reason] => Ok(Self { source_code, reason }),
            _ => Err(PduError::Truncated),
        }
    }

    /// The whole PDU.
    pub fn encode(self) -> [u8; 10] {
        [PduKind::Abort.byte(), 0, 0, 0, 0, 4, 0, 0, self.source_code, self.reason]
    }
}

/// A-RELEASE-RQ as a whole PDU.
pub const RELEASE_RQ: [u8; 10] = [5, 0, 0, 0, 0, 4, 0, 0, 0, 0];
/// A-RELEASE-RP as a whole PDU.
pub const RELEASE_RP: [u8; 10] = [6, 0, 0, 0, 0, 4, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ae_title::AeTitle;
    use crate::uid::Uid;

    fn request() -> AssociateRq {
        let context = |n: u8| ProposedContext {
            id: 2 * n + 1,
            abstract_syntax: Uid::CT_IMAGE_STORAGE,
            transfer_syntaxes: vec![Uid::EXPLICIT_LE, Uid::IMPLICIT_LE],
        };
        AssociateRq {
            called: AeTitle::parse("CALLED").expect("a title"),
            calling: AeTitle::parse("CALLING").expect("a title"),
            application_context: Uid::APPLICATION_CONTEXT,
            contexts: (0..128).map(context).collect(),
            user: UserInformation {
                max_pdu: 16384,
                implementation_class: Some(Uid::IMPLEMENTATION_CLASS),
                implementation_version: Some("VERSION".to_owned()),
                async_window: Some((0, 3)),
                roles: vec![Role { sop_class: Uid::CT_IMAGE_STORAGE, scu: true, scp: false }],
            },
        }
    }

    fn answer() -> AssociateAc {
        let negotiated = |id, result, transfer_syntax| NegotiatedContext { id, result, transfer_syntax };
        AssociateAc {
            called: request().called,
            calling: request().calling,
            contexts: vec![
                negotiated(1, ContextResult::Accepted, Some(Uid::EXPLICIT_LE)),
                negotiated(3, ContextResult::AbstractSyntax, Some(Uid::IMPLICIT_LE)),
            ],
            user: request().user,
        }
    }

    #[test]
    fn association_pdus_read_back_as_written() {
        let pdu = request().encode();
        let header = PduHeader::decode(pdu[..6].try_into().expect("a header"), 0).expect("decodes");
        assert_eq!(header, PduHeader { kind: PduKind::AssociateRq, len: pdu.len() - 6 });
        assert_eq!(AssociateRq::decode(&pdu[6..]), Ok(request()));
        assert_eq!(AssociateAc::decode(&answer().encode()[6..], &request()), Ok(answer()));
        assert_eq!(AssociateRj::decode(&AssociateRj::CONGESTION.encode()[6..]), Ok(AssociateRj::CONGESTION));
        assert_eq!(Abort::decode(&Abort::UNEXPECTED_PDU.encode()[6..]), Ok(Abort::UNEXPECTED_PDU));
    }

    #[test]
    fn every_cut_of_a_request_is_refused_and_nothing_panics() {
        let pdu = request().encode();
        let whole = AssociateRq::decode(&pdu[6..]).expect("decodes");
        for end in 6..pdu.len() {
            assert_ne!(AssociateRq::decode(&pdu[6..end]).ok().as_ref(), Some(&whole));
        }
    }

    #[test]
    fn contexts_must_have_distinct_odd_ids() {
        let with_ids = |ids: [u8; 2]| {
            let mut request = request();
            request.contexts.truncate(2);
            (request.contexts[0].id, request.contexts[1].id) = (ids[0], ids[1]);
            AssociateRq::decode(&request.encode()[6..])
        };
        assert_eq!(with_ids([1, 1]), Err(PduError::ContextId));
        assert_eq!(with_ids([2, 3]), Err(PduError::ContextId));
        assert!(with_ids([255, 1]).is_ok());
    }

    #[test]
    fn lengths_are_bounded_by_kind() {
        let header = |kind: u8, len: u32| {
            let [a, b, c, d] = len.to_be_bytes();
            PduHeader::decode([kind, 0, a, b, c, d], 1 << 20)
        };
        assert_eq!(header(1, u32::MAX), Err(PduError::TooLong));
        assert_eq!(header(4, (1 << 20) + 1), Err(PduError::TooLong));
        assert_eq!(header(5, 5), Err(PduError::TooLong));
        assert_eq!(header(7, 3), Err(PduError::Truncated));
        assert_eq!(header(b'G', 4), Err(PduError::UnknownKind));
        assert!(header(4, 1 << 20).is_ok());
        assert_eq!(PdvHeader::decode([0, 0, 0, 1, 1, 3], 100), Err(PduError::Truncated));
        assert_eq!(PdvHeader::decode([0, 0, 0, 97, 1, 3], 100), Err(PduError::Truncated));
        assert_eq!(PdvHeader::decode([255, 255, 255, 255, 1, 3], 100), Err(PduError::Truncated));
        assert_eq!(PdvHeader::decode([0, 0, 0, 96, 1, 3], 100).map(|pdv| pdv.len), Ok(94));
    }

    proptest! {
        #[test]
        fn a_request_with_flipped_bytes_is_decoded_or_refused(
            flips in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..8),
        ) {
            let mut pdu = request().encode();
            for (at, byte) in flips {
                let at = at % pdu.len();
                pdu[at] = byte;
            }
            if let Ok(decoded) = AssociateRq::decode(&pdu[6..]) {
                prop_assert!(decoded.contexts.len() <= CONTEXTS_MAX);
            }
            let _ = AssociateAc::decode(&pdu[6..], &request());
        }
    }
}
