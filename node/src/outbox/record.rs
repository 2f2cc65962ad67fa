//! What the outbox's journal says: one record for each thing that happened to an entry.
//!
//! Variants and fields are only ever added at the end, and a golden test holds them in place: a journal
//! outlives the version that wrote it.

use std::fmt;
use std::str::FromStr;

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::ids::{CommandId, ExamId, FencingToken, Line, Name, Prose};
use serde::{Deserialize, Serialize};

/// Proves a break-glass claim at the site that made it. Written with a word before its UUID, so that it
/// can never be taken for a fencing token, which is a number and which the whole mesh knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct GlassToken(pub(crate) CommandId);

/// What a break-glass token begins with.
const GLASS_PREFIX: &str = "glass-";

impl fmt::Display for GlassToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{GLASS_PREFIX}{}", self.0.0)
    }
}

impl FromStr for GlassToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = text.strip_prefix(GLASS_PREFIX).and_then(|id| id.parse().ok());
        id.map(|id| Self(CommandId(id))).ok_or_else(|| "this is no break-glass token".to_owned())
    }
}

impl TryFrom<String> for GlassToken {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<GlassToken> for String {
    fn from(token: GlassToken) -> Self {
        token.to_string()
    }
}

/// Something that happened to an entry of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// An exam was taken by break glass.
    Taken {
        /// The entry.
        id: CommandId,
        /// Which exam.
        exam: ExamId,
        /// By whom.
        user: Name,
        /// Why.
        reason: Line,
        /// When, by this site's clock.
        at: UnixMillisField,
    },
    /// The mesh is about to be asked to go on with a break-glass claim as an ordinary one. From here on
    /// it may have done so.
    Tried {
        /// The entry.
        id: CommandId,
    },
    /// An exam taken by break glass was reported.
    Reported {
        /// The entry.
        id: CommandId,
        /// The client's name for the report.
        key: CommandId,
        /// The report.
        text: Prose,
        /// The site's signature, or empty.
        signature: Vec<u8>,
        /// When.
        at: UnixMillisField,
    },
    /// An exam taken by break glass was given back without a report.
    GivenBack {
        /// The entry.
        id: CommandId,
        /// Why; may be empty.
        reason: Line,
        /// When.
        at: UnixMillisField,
    },
    /// A command that no quorum could decide is to be sent again.
    Queued {
        /// The envelope's bytes, whose command id is the entry.
        envelope: Vec<u8>,
        /// When.
        at: UnixMillisField,
    },
    /// The mesh decided.
    Settled {
        /// The entry.
        id: CommandId,
        /// What.
        end: End,
        /// When.
        at: UnixMillisField,
    },
    /// A person acknowledged how it ended.
    Dropped {
        /// The entry.
        id: CommandId,
    },
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// It is in the mesh's books: the report, or the remark, has this number within its exam.
    Accepted {
        /// The number.
        number: u32,
    },
    /// Somebody else has the exam or has read it: what was read here stands beside it.
    SecondRead {
        /// The report's number, if one was written.
        report: Option<u32>,
    },
    /// Nobody else has the exam: the reader goes on under an ordinary claim.
    Continues {
        /// The claim's proof.
        token: FencingToken,
    },
    /// The mesh knows that the exam was taken and given back.
    GivenBack,
    /// The claim was lost meanwhile: the text is kept beside the exam's reports, and is none of them.
    Draft {
        /// Its number within the exam.
        report: u32,
    },
    /// The mesh refuses it, and would again.
    Failed {
        /// Why.
        why: Line,
    },
}

impl End {
    /// Whether a person must take note of it before it is forgotten: what was written is not where its
    /// author believes it to be.
    pub(crate) fn needs_a_person(&self) -> bool {
        matches!(self, Self::Draft { .. } | Self::Failed { .. })
    }

    /// The name used on every interface.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::SecondRead { .. } => "second-read",
            Self::Continues { .. } => "continues",
            Self::GivenBack => "given-back",
            Self::Draft { .. } => "draft",
            Self::Failed { .. } => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_glass_token_is_no_fencing_token_and_comes_back_from_its_text() {
        let token = GlassToken(CommandId(uuid::Uuid::from_u128(7)));
        let text = token.to_string();
        assert_eq!(text, "glass-00000000-0000-0000-0000-000000000007");
        assert_eq!(text.parse(), Ok(token));
        assert!(text.parse::<FencingToken>().is_err());
        for other in ["7", "glass-7", "00000000-0000-0000-0000-000000000007", ""] {
            assert!(other.parse::<GlassToken>().is_err(), "{other}");
        }
    }

    /// The bytes of each record: a journal that an earlier version wrote must be read by every later one.
    #[test]
    fn records_keep_their_bytes() {
        let id = CommandId(uuid::Uuid::from_u128(1));
        let at = UnixMillisField(5);
        let line = Line::fitted("why");
        let records = [
            Record::Taken { id, exam: ExamId(2), user: Name::fitted("ann"), reason: line.clone(), at },
            Record::Tried { id },
            Record::Reported { id, key: id, text: Prose::fitted("text"), signature: vec![9], at },
            Record::GivenBack { id, reason: line.clone(), at },
            Record::Queued { envelope: vec![1, 2], at },
            Record::Settled { id, end: End::Accepted { number: 3 }, at },
            Record::Settled { id, end: End::SecondRead { report: None }, at },
            Record::Settled { id, end: End::Continues { token: FencingToken(8) }, at },
            Record::Settled { id, end: End::GivenBack, at },
            Record::Settled { id, end: End::Draft { report: 4 }, at },
            Record::Settled { id, end: End::Failed { why: line }, at },
            Record::Dropped { id },
        ];
        let mut table = String::new();
        for record in records {
            let bytes = postcard::to_stdvec(&record).expect("encodes");
            assert_eq!(postcard::from_bytes::<Record>(&bytes).expect("decodes"), record);
            table.push_str(&data_encoding::HEXLOWER.encode(&bytes));
            table.push('\n');
        }
        expect_test::expect![[r#"
            0010000000000000000000000000000000010203616e6e0377687905
            011000000000000000000000000000000001
            02100000000000000000000000000000000110000000000000000000000000000000010474657874010905
            0310000000000000000000000000000000010377687905
            0402010205
            051000000000000000000000000000000001000305
            051000000000000000000000000000000001010005
            051000000000000000000000000000000001020805
            0510000000000000000000000000000000010305
            051000000000000000000000000000000001040405
            051000000000000000000000000000000001050377687905
            061000000000000000000000000000000001
        "#]]
        .assert_eq(&table);
    }
}
