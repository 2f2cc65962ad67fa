//! A transaction, and its file: what a sender asked, and what it was told.
//!
//! A file is replaced whole at each change. Fields are only ever added with a new version.

use std::time::Duration;

use bytes::Bytes;
use maillage_consensus::command::UnixMillisField;
use maillage_dicom::{AeTitle, Uid};
use maillage_host::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::checked::{self, Unreadable};

/// What a file begins with.
const MAGIC: &[u8; 4] = b"MSCT";
const VERSION: u8 = 1;
/// How long a result is kept for who asks again: a week, so that a modality that was switched off over
/// a long weekend still finds it.
const KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

/// Failure reasons, PS3.3 section C.14.1.1.
pub(crate) mod reason {
    /// Processing failure: it is not known to be safe, and the time is over; or other bytes came under
    /// the same UID, and nobody can tell which of them the sender means.
    pub(crate) const PROCESSING: u16 = 0x0110;
    /// No such object instance.
    pub(crate) const NO_SUCH_INSTANCE: u16 = 0x0112;
    /// Class / instance conflict.
    pub(crate) const CLASS_CONFLICT: u16 = 0x0119;
}

/// An instance as its sender names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    /// Referenced SOP Class UID.
    pub(crate) sop_class: Uid,
    /// Referenced SOP Instance UID.
    pub(crate) sop_instance: Uid,
}

/// Who asked, and so how the result gets there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Requester {
    /// A client of PS3.18 section 13, which comes back for it.
    Web,
    /// An application entity, which is told by N-EVENT-REPORT.
    Dimse {
        /// Its title.
        calling: AeTitle,
        /// The title by which it called us, and under which we call it.
        called: AeTitle,
    },
}

/// A request for storage commitment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transaction {
    /// Transaction UID.
    pub(crate) uid: Uid,
    /// Who asked.
    pub(crate) by: Requester,
    /// When, by this node's clock.
    pub(crate) asked_at: UnixMillisField,
    /// For what.
    pub(crate) references: Vec<Reference>,
    /// What was found, for good.
    pub(crate) settled: Option<Settled>,
    /// How far the requester has been told.
    pub(crate) report: Report,
}

/// The end of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settled {
    /// When.
    pub(crate) at: UnixMillisField,
    /// What is not committed: its place among the references, in ascending order, and why.
    pub(crate) failed: Vec<(u32, u16)>,
}

/// Whether the requester has been told by N-EVENT-REPORT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Not yet, or there is nothing to tell.
    Open,
    /// It acknowledged.
    Acknowledged,
    /// It could not be told in time.
    GivenUp,
}

impl Transaction {
    /// A transaction that was asked for at `now`.
    pub(crate) fn new(uid: Uid, by: Requester, references: Vec<Reference>, now: UnixMillis) -> Self {
        Self { uid, by, asked_at: now.into(), references, settled: None, report: Report::Open }
    }

    /// Whether it is settled and nothing is left to do for it.
    pub(crate) fn is_told(&self) -> bool {
        self.settled.is_some() && (self.by == Requester::Web || self.report != Report::Open)
    }

    /// Whether its time is over at `now`, or for a process that has known of it for so long: a wall clock that was put
    /// back would have its sender wait for longer.
    pub(crate) fn is_late(&self, now: UnixMillis, known_for: Duration, timeout: Duration) -> bool {
        let by_wall = Duration::from_millis(now.0.saturating_sub(self.asked_at.0));
        by_wall.max(known_for) >= timeout
    }

    /// Whether nothing of it needs to be kept at `now`.
    pub(crate) fn is_over_at(&self, now: UnixMillis) -> bool {
        let since = self.settled.as_ref().map_or(0, |settled| now.0.saturating_sub(settled.at.0));
        self.is_told() && since >= KEPT_MS
    }

    /// What is committed, once it is settled.
    pub(crate) fn committed(&self) -> impl Iterator<Item = &Reference> {
        let settled = self.settled.as_ref();
        self.references.iter().enumerate().filter_map(move |(place, reference)| {
            let failed = |settled: &Settled| settled.failed.iter().any(|(at, _)| *at as usize == place);
            settled.is_some_and(|settled| !failed(settled)).then_some(reference)
        })
    }

    /// What is not committed, and why.
    pub(crate) fn failed(&self) -> impl Iterator<Item = (&Reference, u16)> {
        let failed = self.settled.as_ref().map_or(&[][..], |settled| &settled.failed);
        failed.iter().filter_map(|(place, why)| Some((self.references.get(*place as usize)?, *why)))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub(super) fn encode(&self) -> postcard::Result<Bytes> {
        checked::encode(MAGIC, VERSION, self)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// See [`Unreadable`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        checked::decode(MAGIC, VERSION, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::parse(text).expect("a uid")
    }

    fn transaction() -> Transaction {
        let reference = |n: &str| Reference { sop_class: uid("1.5"), sop_instance: uid(n) };
        let by = Requester::Dimse {
            calling: AeTitle::parse("CT1").expect("a title"),
            called: AeTitle::parse("MAILLAGE").expect("a title"),
        };
        let asked = Transaction::new(uid("1.9"), by, vec![reference("1.2"), reference("1.3")], UnixMillis(5));
        let settled = Settled { at: UnixMillisField(7), failed: vec![(1, reason::NO_SUCH_INSTANCE)] };
        Transaction { settled: Some(settled), report: Report::Acknowledged, ..asked }
    }

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let transaction = transaction();
        let bytes = transaction.encode().expect("encodes");
        let body = &bytes[5 + checked::HASH_LEN..];
        expect_test::expect!["03312e390103435431084d41494c4c414745050203312e3503312e3203312e3503312e3301070101920201"]
            .assert_eq(&data_encoding::HEXLOWER.encode(body));
        assert_eq!(Transaction::decode(&bytes), Ok(transaction));
    }

    #[test]
    fn its_time_is_over_by_either_clock() {
        let asked = Transaction::new(uid("1.9"), Requester::Web, Vec::new(), UnixMillis(10_000));
        let is_late = |now: u64, known_for: u64| {
            asked.is_late(UnixMillis(now), Duration::from_secs(known_for), Duration::from_secs(60))
        };
        assert!(!is_late(69_999, 59));
        assert!(is_late(70_000, 0), "also to a process that has just started");
        assert!(is_late(10_001, 60), "the wall clock stands");
        assert!(is_late(0, 60), "it was put back");
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let bytes = transaction().encode().expect("encodes");
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(Transaction::decode(&flipped).is_err(), "byte {at}");
            assert!(Transaction::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_result_tells_apart_what_is_safe_and_what_is_not() {
        let transaction = transaction();
        let committed: Vec<_> = transaction.committed().map(|one| one.sop_instance.as_str()).collect();
        let failed: Vec<_> = transaction.failed().map(|(one, why)| (one.sop_instance.as_str(), why)).collect();
        assert_eq!((committed, failed), (vec!["1.2"], vec![("1.3", 0x0112)]));
        let pending = Transaction { settled: None, ..transaction };
        assert_eq!(pending.committed().count() + pending.failed().count(), 0, "nothing is safe before the end");
    }

    #[test]
    fn a_result_is_kept_for_a_week_and_until_it_was_told() {
        let told = transaction();
        assert!(!told.is_over_at(UnixMillis(7 + KEPT_MS - 1)) && told.is_over_at(UnixMillis(7 + KEPT_MS)));
        let untold = Transaction { report: Report::Open, ..told };
        assert!(!untold.is_over_at(UnixMillis(u64::MAX)));
    }
}
