//! Data sets of storage commitment (PS3.4 tables J.3-1 and J.3-2): what an N-ACTION asks for, and what an
//! N-EVENT-REPORT says of it.

use bytes::Bytes;
use dicom_core::Tag;

use crate::element::Coding;
use crate::prescan::coding_of;
use crate::rejection::Rejection;
use crate::transfer_syntax::Layout;
use crate::uid::Uid;
use crate::walk::{Element, Visit, walk};

/// Storage Commitment Push Model SOP Class.
pub const PUSH_MODEL: &str = "1.2.840.10008.1.20.1";
/// Its one, well-known instance.
pub const PUSH_MODEL_INSTANCE: &str = "1.2.840.10008.1.20.1.1";

const REFERENCED_SOP_CLASS: Tag = Tag(0x0008, 0x1150);
const REFERENCED_SOP_INSTANCE: Tag = Tag(0x0008, 0x1155);
const TRANSACTION_UID: Tag = Tag(0x0008, 0x1195);
const FAILURE_REASON: Tag = Tag(0x0008, 0x1197);
const FAILED_SOP_SEQUENCE: Tag = Tag(0x0008, 0x1198);
const REFERENCED_SOP_SEQUENCE: Tag = Tag(0x0008, 0x1199);
const ITEM: Tag = Tag(0xFFFE, 0xE000);

/// A SOP class and instance.
pub type Instance = (Uid, Uid);

/// What an N-ACTION asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitmentRequest {
    /// Transaction UID.
    pub transaction: Uid,
    /// For what.
    pub references: Vec<Instance>,
}

/// Why a data set is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is no data set.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No Transaction UID, or one that is none.
    #[error("transaction uid is missing or invalid")]
    Transaction,
    /// An item without a SOP class and instance.
    #[error("a reference lacks its sop class or instance uid")]
    Reference,
}

impl CommitmentRequest {
    /// Reads the data set of an N-ACTION.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn decode(dataset: &[u8], transfer_syntax: &Uid) -> Result<Self, RequestError> {
        let mut read = Read::default();
        walk(dataset, coding_of(Layout::of(transfer_syntax)), false, &mut read)?;
        if read.unfit || read.class.is_some() {
            return Err(RequestError::Reference);
        }
        let transaction = read.transaction.ok_or(RequestError::Transaction)?;
        Ok(Self { transaction, references: read.references })
    }
}

/// A request as far as it is read.
#[derive(Default)]
struct Read {
    transaction: Option<Uid>,
    references: Vec<Instance>,
    /// The class of the item being read: it comes before the instance, as elements ascend.
    class: Option<Uid>,
    unfit: bool,
}

impl Visit for Read {
    fn element(&mut self, element: &Element<'_>) -> Result<(), Rejection> {
        let Some(value) = element.value() else { return Ok(()) };
        let uid = Uid::from_padded(value).ok();
        match (element.depth, element.parent, element.tag) {
            (0, _, TRANSACTION_UID) => self.transaction = uid,
            (1, Some(REFERENCED_SOP_SEQUENCE), REFERENCED_SOP_CLASS) => {
                self.unfit |= uid.is_none() || self.class.is_some();
                self.class = uid;
            }
            (1, Some(REFERENCED_SOP_SEQUENCE), REFERENCED_SOP_INSTANCE) => match (self.class.take(), uid) {
                (Some(class), Some(instance)) => self.references.push((class, instance)),
                _ => self.unfit = true,
            },
            _ => {}
        }
        Ok(())
    }
}

/// The data set of an N-EVENT-REPORT, in explicit or, for any other syntax, implicit VR little endian.
pub fn encode_result<'a>(
    transfer_syntax: &Uid,
    transaction: &Uid,
    committed: impl Iterator<Item = (&'a Uid, &'a Uid)>,
    failed: impl Iterator<Item = (&'a Uid, &'a Uid, u16)>,
) -> Bytes {
    let coding = if *transfer_syntax == Uid::EXPLICIT_LE { Coding::ExplicitLe } else { Coding::ImplicitLe };
    let mut out = Vec::new();
    put_uid(&mut out, coding, TRANSACTION_UID, transaction);
    let item = |class: &Uid, instance: &Uid, reason: Option<u16>| {
        let mut item = Vec::new();
        put_uid(&mut item, coding, REFERENCED_SOP_CLASS, class);
        put_uid(&mut item, coding, REFERENCED_SOP_INSTANCE, instance);
        if let Some(reason) = reason {
            put(&mut item, coding, FAILURE_REASON, *b"US", &reason.to_le_bytes());
        }
        item
    };
    let failed: Vec<_> = failed.map(|(class, instance, reason)| item(class, instance, Some(reason))).collect();
    put_sequence(&mut out, coding, FAILED_SOP_SEQUENCE, &failed);
    let committed: Vec<_> = committed.map(|(class, instance)| item(class, instance, None)).collect();
    put_sequence(&mut out, coding, REFERENCED_SOP_SEQUENCE, &committed);
    out.into()
}

/// A sequence without items is left out: both are required only when there is something to say.
fn put_sequence(out: &mut Vec<u8>, coding: Coding, tag: Tag, items: &[Vec<u8>]) {
    if items.is_empty() {
        return;
    }
    let mut content = Vec::new();
    for item in items {
        put(&mut content, Coding::ImplicitLe, ITEM, *b"  ", item);
    }
    put(out, coding, tag, *b"SQ", &content);
}

fn put_uid(out: &mut Vec<u8>, coding: Coding, tag: Tag, uid: &Uid) {
    let mut value = uid.as_str().as_bytes().to_vec();
    if value.len() % 2 == 1 {
        value.push(0);
    }
    put(out, coding, tag, *b"UI", &value);
}

/// PS3.5 section 7.1.2. Items have no VR in either coding.
fn put(out: &mut Vec<u8>, coding: Coding, tag: Tag, vr: [u8; 2], value: &[u8]) {
    out.extend_from_slice(&tag.group().to_le_bytes());
    out.extend_from_slice(&tag.element().to_le_bytes());
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match (coding, vr) {
        (Coding::ExplicitLe, [b'S', b'Q']) => {
            out.extend_from_slice(b"SQ\0\0");
            out.extend_from_slice(&len.to_le_bytes());
        }
        (Coding::ExplicitLe, vr) => {
            out.extend_from_slice(&vr);
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        }
        _ => out.extend_from_slice(&len.to_le_bytes()),
    }
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::parse(text).expect("a uid")
    }

    /// A result with nothing failed has the form of a request.
    fn request(syntax: &Uid, instances: &[Instance]) -> Bytes {
        let committed = instances.iter().map(|(class, instance)| (class, instance));
        encode_result(syntax, &uid("1.9.77"), committed, std::iter::empty())
    }

    #[test]
    fn requests_are_read_in_both_codings() {
        let instances = vec![(uid("1.5"), uid("1.2.3")), (uid("1.5.55"), uid("1.2.34"))];
        for syntax in [Uid::IMPLICIT_LE, Uid::EXPLICIT_LE] {
            let read = CommitmentRequest::decode(&request(&syntax, &instances), &syntax);
            let expected = CommitmentRequest { transaction: uid("1.9.77"), references: instances.clone() };
            assert_eq!(read, Ok(expected), "{syntax}");
        }
    }

    #[test]
    fn a_reference_that_lacks_a_half_is_refused() {
        let whole = request(&Uid::IMPLICIT_LE, &[(uid("1.5"), uid("1.2.3"))]);
        let class = whole.windows(4).position(|window| window == b"\x08\x00\x50\x11").expect("the class");
        let instance = whole.windows(4).position(|window| window == b"\x08\x00\x55\x11").expect("the instance");
        for at in [class, instance] {
            let mut without = whole.to_vec();
            // Another tag, (0008,1151), which is in no dictionary and passed over.
            without[at + 2] = 0x51;
            assert_eq!(CommitmentRequest::decode(&without, &Uid::IMPLICIT_LE), Err(RequestError::Reference));
        }
        let mut nameless = whole.to_vec();
        nameless[2] = 0x96;
        assert_eq!(CommitmentRequest::decode(&nameless, &Uid::IMPLICIT_LE), Err(RequestError::Transaction));
        assert!(CommitmentRequest::decode(&whole[..whole.len() - 1], &Uid::IMPLICIT_LE).is_err());
    }

    #[test]
    fn failures_carry_their_reasons_and_stand_before_what_is_committed() {
        let (class, good, bad) = (uid("1.5"), uid("1.2.3"), uid("1.2.4"));
        let result = encode_result(
            &Uid::EXPLICIT_LE,
            &uid("1.9"),
            [(&class, &good)].into_iter(),
            [(&class, &bad, 0x0112)].into_iter(),
        );
        let at = |needle: &[u8]| result.windows(needle.len()).position(|window| window == needle).expect("there");
        assert!(at(b"\x08\x00\x98\x11SQ") < at(b"\x08\x00\x99\x11SQ"));
        assert!(at(b"\x08\x00\x97\x11US\x02\x00\x12\x01") > at(b"1.2.4"));
        let read = CommitmentRequest::decode(&result, &Uid::EXPLICIT_LE).expect("reads");
        assert_eq!(read.references, [(class, good)], "what failed is not among what is committed");
    }
}
