//! Why the receiving side refuses, and what it answers.

use crate::dimse::pdu::{AssociateRj, PduError};

/// Why a connection, an association or an instance was refused before any handler saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// The first byte is no PDU: HTTP, TLS or noise on the port.
    NotDicom,
    /// An A-ASSOCIATE-RQ, or a later PDU or command, that breaks PS3.8 or PS3.7.
    BrokenPdu,
    /// Another protocol version.
    ProtocolVersion,
    /// Another application context.
    ApplicationContext,
    /// Called by a name that is not ours.
    CalledAe,
    /// The calling AE title is unknown.
    CallingAe,
    /// The calling AE title is known, the address is not its own.
    CallingAddress,
    /// Too many associations.
    Congestion,
    /// Too many associations from one address.
    AddressCongestion,
    /// No A-ASSOCIATE-RQ in time, or none at all.
    NoRequest,
    /// A newer connection took the place of this silent one.
    Displaced,
    /// An instance longer than the bound.
    InstanceTooLong,
    /// No memory for an instance in time.
    Busy,
    /// A message that came slower than the least rate.
    TooSlow,
    /// A C-STORE whose SOP class is not its context's, or that has no valid SOP instance UID.
    BadRequest,
}

impl RejectReason {
    /// A short name for a metric's label; stable.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotDicom => "not_dicom",
            Self::BrokenPdu => "broken_pdu",
            Self::ProtocolVersion => "protocol_version",
            Self::ApplicationContext => "application_context",
            Self::CalledAe => "called_ae",
            Self::CallingAe => "calling_ae",
            Self::CallingAddress => "calling_address",
            Self::Congestion => "congestion",
            Self::AddressCongestion => "address_congestion",
            Self::NoRequest => "no_request",
            Self::Displaced => "displaced",
            Self::InstanceTooLong => "instance_too_long",
            Self::Busy => "busy",
            Self::TooSlow => "too_slow",
            Self::BadRequest => "bad_request",
        }
    }

    /// The answer to an A-ASSOCIATE-RQ refused for this reason. An address that does not fit is
    /// answered as an unknown title is: a stranger does not learn which titles exist.
    pub(super) fn answer(self) -> AssociateRj {
        match self {
            Self::CalledAe => AssociateRj::CALLED_AE,
            Self::CallingAe | Self::CallingAddress => AssociateRj::CALLING_AE,
            Self::ApplicationContext => AssociateRj::APPLICATION_CONTEXT,
            Self::ProtocolVersion => AssociateRj::PROTOCOL_VERSION,
            Self::Congestion | Self::AddressCongestion => AssociateRj::CONGESTION,
            _ => AssociateRj::NO_REASON,
        }
    }

    /// The reason for a body that does not decode.
    pub(super) fn of(error: PduError) -> Self {
        match error {
            PduError::UnknownKind => Self::NotDicom,
            PduError::ProtocolVersion => Self::ProtocolVersion,
            PduError::CalledAe => Self::CalledAe,
            PduError::CallingAe => Self::CallingAe,
            _ => Self::BrokenPdu,
        }
    }
}
