//! The bytes of a request and of an answer's header. Coded by hand: both have one fixed length, so that
//! nothing a peer sends decides how much is read.

use blake3::Hash;

use super::Class;

/// Version of both forms. A change of either that is not understood here gets a new ALPN as well.
const VERSION: u8 = 1;

pub(super) const REQUEST_LEN: usize = 38;
pub(super) const HEADER_LEN: usize = 6;

/// `version, class, hash (32), longest answer taken (u32, big-endian)`. Behind it each byte is the request's class
/// from then on, until the asker ends its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) class: Class,
    pub(super) hash: Hash,
    pub(super) len_max: u32,
}

/// `version, status, length of what follows (u32, big-endian)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// The bytes follow.
    Found { len: u32 },
    /// The holder does not have it.
    Absent,
    /// The holder has it, and cannot give it now.
    Failed,
    /// It is longer than was asked for.
    TooLong { len: u32 },
}

/// A class on the wire. Ids are kept stable; they are in the order in which the classes came to be.
pub(super) fn class_byte(class: Class) -> u8 {
    match class {
        Class::Reader => 0,
        Class::Copy => 1,
        Class::Prefetch => 2,
        Class::Repair => 3,
    }
}

/// What is not known is of a later version, and answered after everything else.
pub(super) fn class_of(byte: u8) -> Class {
    match byte {
        0 => Class::Reader,
        1 => Class::Copy,
        2 => Class::Prefetch,
        _ => Class::Repair,
    }
}

impl Request {
    pub(super) fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut out = [0; REQUEST_LEN];
        out[0] = VERSION;
        out[1] = class_byte(self.class);
        out[2..34].copy_from_slice(self.hash.as_bytes());
        out[34..].copy_from_slice(&self.len_max.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let [VERSION, class, rest @ ..] = bytes else { return None };
        let (hash, len_max) = rest.split_first_chunk::<32>()?;
        let class = class_of(*class);
        Some(Self { class, hash: Hash::from_bytes(*hash), len_max: u32::from_be_bytes(len_max.try_into().ok()?) })
    }
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_LEN] {
        let (status, len) = match self {
            Self::Found { len } => (0, len),
            Self::Absent => (1, 0),
            Self::Failed => (2, 0),
            Self::TooLong { len } => (3, len),
        };
        let [a, b, c, d] = len.to_be_bytes();
        [VERSION, status, a, b, c, d]
    }

    pub(super) fn decode(bytes: [u8; HEADER_LEN]) -> Option<Self> {
        let [VERSION, status, a, b, c, d] = bytes else { return None };
        let len = u32::from_be_bytes([a, b, c, d]);
        match (status, len) {
            (0, len) => Some(Self::Found { len }),
            (1, 0) => Some(Self::Absent),
            (2, 0) => Some(Self::Failed),
            (3, len) => Some(Self::TooLong { len }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    /// Golden bytes: these forms are spoken between versions.
    #[test]
    fn the_wire_forms_stay_as_they_are() {
        let request = Request { class: Class::Copy, hash: Hash::from_bytes([7; 32]), len_max: 0x0102_0304 };
        let mut golden = [7; REQUEST_LEN];
        golden[..2].copy_from_slice(&[1, 1]);
        golden[34..].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(request.encode(), golden);
        let ids = Class::ALL.map(|class| Request { class, ..request }.encode()[1]);
        assert_eq!(ids, [0, 2, 1, 3]);
        assert_eq!(Header::Found { len: 0x0102_0304 }.encode(), [1, 0, 1, 2, 3, 4]);
        assert_eq!(Header::Absent.encode(), [1, 1, 0, 0, 0, 0]);
        assert_eq!(Header::Failed.encode(), [1, 2, 0, 0, 0, 0]);
        assert_eq!(Header::TooLong { len: 5 }.encode(), [1, 3, 0, 0, 0, 5]);
    }

    proptest! {
        #[test]
        fn a_request_that_decodes_encodes_to_the_same_bytes(bytes in any::<[u8; 32]>(), head in 0u8..3, class: u8, len_max: u32) {
            let mut wire = [0; REQUEST_LEN];
            wire[0] = head;
            wire[1] = class;
            wire[2..34].copy_from_slice(&bytes);
            wire[34..].copy_from_slice(&len_max.to_be_bytes());
            let decoded = Request::decode(&wire);
            prop_assert_eq!(decoded.is_some(), head == VERSION);
            if let Some(request) = decoded {
                // A class that is not known is the lowest.
                wire[1] = class.min(3);
                prop_assert_eq!(request.encode(), wire);
            }
        }

        #[test]
        fn a_header_that_decodes_encodes_to_the_same_bytes(wire in any::<[u8; HEADER_LEN]>(), status in 0u8..5) {
            for wire in [wire, [VERSION, status, wire[2], wire[3], wire[4], wire[5]]] {
                if let Some(header) = Header::decode(wire) {
                    prop_assert_eq!(header.encode(), wire);
                }
            }
        }
    }
}
