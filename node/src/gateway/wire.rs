//! What a gateway and a centre say to each other on `mesh-gate/1`.
//!
//! A stream for each question, opened by the gateway: one frame with the question, then frames with the
//! answer. While a centre works at one it says so, so that its silence means that it is gone.
//!
//! ```text
//! gateway  Offer ------------------------> centre
//!          <---------------- Have | Send | Rejected | NotNow | Purged
//!          data set, raw, of the length offered, then the stream's end
//!          <--- Working … ---------------
//!          <---------------- Stored | Rejected | NotNow
//! ```
//! A frame is a version byte and a postcard body; bytes behind the body are an error. Nothing that a frame
//! says decides how much is read beyond the bounds here.

use maillage_consensus::event::Cursor;
use maillage_consensus::exam::{Report, Request};
use maillage_consensus::ids::{Line, Name, UidText};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of every frame. A change that is not understood here gets a new ALPN as well.
const VERSION: u8 = 1;
/// The longest question: [`ITEMS_MAX`] instances of at most some 180 bytes each.
pub(crate) const ASK_MAX: usize = 64 << 10;
/// The longest answer: a page of reports, of which one has up to 256 KiB, and what is known of their exams.
pub(crate) const REPLY_MAX: usize = 2 << 20;
/// Reports' bytes after which a page takes no more.
pub(crate) const PAGE_BYTES: usize = 1 << 20;
/// Instances in one question whether they are safe.
pub(crate) const ITEMS_MAX: usize = 256;
/// Centres named in a welcome: more than any mesh has, and an answer's room for them.
pub(crate) const CENTRES_MAX: usize = 1_000;

/// What a gateway asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// It is there, and how it does.
    Hello(Hello),
    /// Will the centre take this instance?
    Offer(Offer),
    /// Whoever sent this study is done.
    SenderDone {
        /// Its Study Instance UID.
        study: UidText,
    },
    /// Are these safe?
    Safe {
        /// At most [`ITEMS_MAX`].
        items: Vec<Item>,
    },
    /// Which reports came?
    Feed {
        /// Behind where; none for a gateway that was never told anything.
        from: Option<Position>,
    },
    /// A report is durable here, and so at its hospital.
    Acknowledge {
        /// Its exam.
        exam: u64,
        /// Its number.
        report: u32,
    },
    /// What of these does the centre have, and is it safe? Of instances that are in the spool no more.
    Held {
        /// At most [`ITEMS_MAX`].
        references: Vec<Referenced>,
    },
    /// What does the mesh's clock read?
    Time,
}

/// How a gateway does, for people who look at a centre.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Its software's version.
    pub(crate) version: Name,
    /// Instances in its spool, those that are safe not counted.
    pub(crate) waiting: u64,
    /// Bytes of all that is in its spool.
    pub(crate) bytes: u64,
    /// Instances that no centre takes.
    pub(crate) rejected: u64,
    /// Bytes free on its volume.
    pub(crate) free_bytes: u64,
}

/// An instance that a gateway has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// Study Instance UID.
    pub(crate) study: UidText,
    /// SOP Instance UID.
    pub(crate) sop_instance: UidText,
    /// SOP Class UID.
    pub(crate) sop_class: UidText,
    /// Transfer Syntax UID of the data set.
    pub(crate) transfer_syntax: UidText,
    /// BLAKE3 of the data set.
    pub(crate) dataset: [u8; 32],
    /// Its length.
    pub(crate) bytes: u64,
    /// Who sent it to the gateway: an AE title, or what stands for one.
    pub(crate) source: Name,
    /// When it was here at the latest, by the mesh's clock, in milliseconds since 1970; `u64::MAX` while that is not known.
    pub(crate) here_by: u64,
    /// Whether its file began with something foreign.
    pub(crate) foreign_preamble: bool,
}

/// An instance of which it is asked whether it is safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    /// Study Instance UID.
    pub(crate) study: UidText,
    /// SOP Instance UID.
    pub(crate) sop_instance: UidText,
    /// BLAKE3 of the data set.
    pub(crate) dataset: [u8; 32],
    /// As in an [`Offer`].
    pub(crate) here_by: u64,
}

/// An instance as a sender names it that asks for storage commitment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Referenced {
    /// SOP Class UID.
    pub(crate) sop_class: UidText,
    /// SOP Instance UID.
    pub(crate) sop_instance: UidText,
}

/// A place in a gateway's feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Position {
    /// Behind this event of the mesh.
    Event {
        /// Its command's log index.
        index: u64,
        /// Its place among the command's.
        place: u16,
    },
    /// On a walk through the exams whose report is still to be delivered, behind this one's report; then behind
    /// that event. For a gateway that is new, was away for longer than events are kept, or makes sure.
    Exam {
        /// The last exam looked at.
        exam: u64,
        /// The last of its reports that was given.
        report: u32,
        /// The event's log index …
        index: u64,
        /// … and place.
        place: u16,
    },
}

impl Position {
    /// Before all exams, with the events behind `cursor` to follow.
    pub(crate) fn walk(cursor: Cursor) -> Self {
        Self::Exam { exam: 0, report: u32::MAX, index: cursor.index, place: cursor.place }
    }

    /// Behind an event.
    pub(crate) fn of(cursor: Cursor) -> Self {
        Self::Event { index: cursor.index, place: cursor.place }
    }
}

/// What a centre answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Still at it.
    Working,
    /// To a hello.
    Welcome(Welcome),
    /// These very bytes are durable here.
    Have,
    /// Send it.
    Send,
    /// It is durable here.
    Stored(Kept),
    /// It is not taken, now or later.
    Rejected {
        /// The reason, as metrics call it.
        reason: Name,
    },
    /// It cannot be done now.
    NotNow {
        /// Why.
        why: Line,
    },
    /// It was purged since the gateway received it.
    Purged,
    /// In the order of the items.
    Safety(Vec<Safety>),
    /// Reports.
    Page(Page),
    /// Done.
    Done,
    /// In the order of the references.
    Held(Vec<Held>),
    /// What the mesh's clock reads, as confirmed by a quorum: nothing is stamped sooner that is decided from now on.
    Time {
        /// In milliseconds since 1970.
        at: u64,
    },
}

/// What an instance was to the centre that stored it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kept {
    /// New.
    New,
    /// There already.
    Duplicate,
    /// Other bytes have its UID: both are kept, this one apart.
    Conflict,
}

/// What is known of an instance, as confirmed by a quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Safety {
    /// Durable in two zones.
    Safe,
    /// Not yet, as far as the centre can tell.
    Pending,
    /// Purged since: nothing of it may be kept.
    Purged,
}

/// What a centre has of an instance, as confirmed by a quorum. The greatest of what several say counts: one that
/// has seen two data sets under a UID knows more than one that has seen one, and who has none knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Held {
    /// Nothing.
    No,
    /// It has it, and cannot tell that it is durable in two zones.
    Pending,
    /// Durable in two zones.
    Safe,
    /// It is of another SOP class.
    OtherClass,
    /// Other bytes came under its UID: nobody can tell which are meant.
    Contested,
}

/// The mesh as a gateway has to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Whether the centre hears a quorum: what it takes is published at once.
    pub(crate) in_touch: bool,
    /// The mesh's centres.
    pub(crate) centres: Vec<Centre>,
}

/// A centre to which a gateway may send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Centre {
    /// Its number.
    pub(crate) site: u64,
    /// Its name.
    pub(crate) name: Name,
    /// Its node's identity.
    #[serde(with = "serde_bytes")]
    pub(crate) peer: Vec<u8>,
    /// Where it listens.
    pub(crate) addresses: Vec<std::net::SocketAddr>,
}

/// Reports, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Page {
    /// The reports.
    pub(crate) reports: Vec<Delivery>,
    /// Where to go on.
    pub(crate) next: Position,
    /// Whether there is more at once.
    pub(crate) more: bool,
}

/// A report on its way to its hospital.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Delivery {
    /// What was asked for, for whom.
    pub(crate) request: Request,
    /// Its images' Study Instance UIDs.
    pub(crate) studies: Vec<UidText>,
    /// The report.
    pub(crate) report: Report,
    /// The name of the site where it was signed.
    pub(crate) site_name: Name,
    /// Whether it is the report that stands.
    pub(crate) stands: bool,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// Nothing, or of another version.
    #[error("a frame of an unknown version")]
    Version,
    /// Not of this form.
    #[error("a malformed frame: {0}")]
    Body(String),
}

/// The bytes of a frame.
///
/// # Errors
/// When it cannot be encoded.
pub(crate) fn encode(frame: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    postcard::to_extend(frame, vec![VERSION]).map_err(|error| FrameError::Body(error.to_string()))
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`FrameError`].
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let Some((&VERSION, body)) = bytes.split_first() else { return Err(FrameError::Version) };
    let (frame, rest) = postcard::take_from_bytes(body).map_err(|error| FrameError::Body(error.to_string()))?;
    if rest.is_empty() { Ok(frame) } else { Err(FrameError::Body(format!("{} trailing bytes", rest.len()))) }
}

#[cfg(test)]
pub(super) mod tests {
    use maillage_consensus::exam::{Patient, Priority, Signed};
    use maillage_consensus::ids::{ExamId, FencingToken, Prose, SiteId};
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    fn uid(text: &str) -> UidText {
        UidText::fitted(text)
    }

    fn asks() -> Vec<Ask> {
        let item = Item { study: uid("1.2"), sop_instance: uid("1.3"), dataset: [3; 32], here_by: 4 };
        vec![
            Ask::Hello(Hello { version: Name::fitted("1"), waiting: 2, bytes: 3, rejected: 4, free_bytes: 5 }),
            Ask::Offer(Offer {
                study: uid("1.2"),
                sop_instance: uid("1.3"),
                sop_class: uid("1.4"),
                transfer_syntax: uid("1.5"),
                dataset: [6; 32],
                bytes: 7,
                source: Name::fitted("CT1"),
                here_by: 8,
                foreign_preamble: true,
            }),
            Ask::SenderDone { study: uid("1.2") },
            Ask::Safe { items: vec![item] },
            Ask::Feed { from: None },
            Ask::Feed { from: Some(Position::Event { index: 9, place: 1 }) },
            Ask::Feed { from: Some(Position::Exam { exam: 3, report: 2, index: 9, place: 1 }) },
            Ask::Acknowledge { exam: 5, report: 2 },
            Ask::Held { references: vec![Referenced { sop_class: uid("1.4"), sop_instance: uid("1.3") }] },
            Ask::Time,
        ]
    }

    pub(in crate::gateway) fn delivery(exam: u64, number: u32) -> Delivery {
        Delivery {
            request: Request {
                accession: Line::fitted("A1"),
                patient: Patient { id: Line::fitted("P1"), name: Line::fitted("TEST^NOBODY"), ..Patient::default() },
                modality: maillage_consensus::exam::Text8::fitted("CT"),
                description: Line::fitted("head"),
                hospital: Line::fitted("CHU"),
                physician: Line::default(),
                priority: Priority::Urgent,
                awaits_images: true,
            },
            studies: vec![uid("1.2")],
            report: Report {
                exam: ExamId(exam),
                number,
                text: Prose::new("nothing\nnew").expect("a text"),
                user: Name::fitted("dr-a"),
                site: SiteId(1),
                at: maillage_consensus::command::UnixMillisField(1_700_000_000_000),
                token: FencingToken(6),
                stale: false,
                signed: Signed::default(),
            },
            site_name: Name::fitted("paris"),
            stands: true,
        }
    }

    fn replies() -> Vec<Reply> {
        let centre = Centre { site: 1, name: Name::fitted("paris"), peer: vec![1, 2], addresses: Vec::new() };
        vec![
            Reply::Working,
            Reply::Welcome(Welcome { in_touch: true, centres: vec![centre] }),
            Reply::Have,
            Reply::Send,
            Reply::Stored(Kept::Conflict),
            Reply::Rejected { reason: Name::fitted("other-patient") },
            Reply::NotNow { why: Line::fitted("no room") },
            Reply::Purged,
            Reply::Safety(vec![Safety::Safe, Safety::Pending, Safety::Purged]),
            Reply::Page(Page {
                reports: vec![delivery(5, 1)],
                next: Position::Event { index: 9, place: 0 },
                more: true,
            }),
            Reply::Done,
            Reply::Held(vec![Held::No, Held::Pending, Held::Safe, Held::OtherClass, Held::Contested]),
            Reply::Time { at: 1_700_000_000_000 },
        ]
    }

    #[test]
    fn the_frames_of_version_1_do_not_change() {
        let mut text = String::new();
        for frame in asks() {
            let bytes = encode(&frame).expect("encodes");
            assert_eq!(decode::<Ask>(&bytes), Ok(frame));
            text.push_str(&format!("{}\n", data_encoding::HEXLOWER.encode(&bytes)));
        }
        for frame in replies() {
            let bytes = encode(&frame).expect("encodes");
            assert_eq!(decode::<Reply>(&bytes), Ok(frame));
            text.push_str(&format!("{}\n", data_encoding::HEXLOWER.encode(&bytes)));
        }
        expect_test::expect_file!["golden/frames-v1.hex"].assert_eq(&text);
    }

    #[test]
    fn what_is_cut_longer_or_of_another_version_is_no_frame() {
        for frame in asks() {
            let bytes = encode(&frame).expect("encodes");
            for cut in 0..bytes.len() {
                assert!(decode::<Ask>(&bytes[..cut]).is_err(), "{frame:?} cut at {cut}");
            }
            assert!(decode::<Ask>(&[&bytes[..], &[0]].concat()).is_err(), "{frame:?}");
            assert_eq!(decode::<Ask>(&[&[2], &bytes[1..]].concat()), Err(FrameError::Version));
        }
    }

    #[test]
    fn the_longest_question_and_page_fit_their_bounds() {
        let long = "1".repeat(64);
        let item = Item { study: uid(&long), sop_instance: uid(&long), dataset: [255; 32], here_by: u64::MAX };
        assert!(encode(&Ask::Safe { items: vec![item; ITEMS_MAX] }).expect("encodes").len() <= ASK_MAX);
        let named = Referenced { sop_class: uid(&long), sop_instance: uid(&long) };
        assert!(encode(&Ask::Held { references: vec![named; ITEMS_MAX] }).expect("encodes").len() <= ASK_MAX);
        let mut one = delivery(u64::MAX, u32::MAX);
        one.report.text = Prose::new("x".repeat(262_144)).expect("the longest");
        let one = encode(&one).expect("encodes").len();
        assert!(PAGE_BYTES + 2 * one <= REPLY_MAX, "a page that was just not full, and one more: {one}");
        let address = std::net::SocketAddr::from(([255; 16], 65535));
        let centre = Centre {
            site: u64::MAX,
            name: Name::fitted(&long),
            peer: vec![255; 64],
            addresses: vec![address; maillage_consensus::command::ADDRESSES_MAX],
        };
        let welcome = Reply::Welcome(Welcome { in_touch: true, centres: vec![centre; CENTRES_MAX] });
        assert!(encode(&welcome).expect("encodes").len() <= REPLY_MAX);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, valid in any::<bool>()) {
            let bytes = if valid { [&[VERSION], &bytes[..]].concat() } else { bytes };
            if let Ok(ask) = decode::<Ask>(&bytes) {
                prop_assert!(decode::<Ask>(&encode(&ask).expect("encodes")) == Ok(ask));
            }
            let _ = decode::<Reply>(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in any::<proptest::sample::Index>(), which in any::<proptest::sample::Index>(), to: u8) {
            let mut bytes = encode(which.get(&asks())).expect("encodes");
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = decode::<Ask>(&bytes);
            let mut bytes = encode(which.get(&replies())).expect("encodes");
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = decode::<Reply>(&bytes);
        }
    }
}
