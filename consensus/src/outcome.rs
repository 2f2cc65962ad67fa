//! What became of a command. Every replica computes the same outcome; a refusal is one.

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::exam::{Claim, ExamState, Unsolicited};
use crate::ids::{ExamId, FencingToken, Name, SiteId};
use crate::machine::ApplyError;
use crate::record::Record;

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The mesh exists.
    Founded,
    /// Done, with nothing to say.
    Done,
    /// A site joined.
    Joined {
        /// Its number.
        site: SiteId,
    },
    /// A session is open.
    SessionOpened {
        /// Its number.
        session: u64,
    },
    /// A session ended.
    SessionExpired {
        /// Claims that it freed.
        freed: u32,
    },
    /// An exam exists.
    ExamAdded {
        /// Its number.
        exam: ExamId,
        /// Whether it existed before: the same accession number and patient were added already.
        existed: bool,
    },
    /// A claim is granted.
    Claimed(Grant),
    /// No exam that fits is waiting.
    NothingWaiting,
    /// A report is recorded.
    Completed {
        /// Its number within the exam.
        report: u32,
    },
    /// Images are attached to an exam.
    StudyRecorded {
        /// Which.
        exam: ExamId,
        /// Why it stands apart from any request, if it does.
        unsolicited: Option<Unsolicited>,
    },
    /// Not done.
    Refused(Refusal),
    /// A remark is kept.
    Remarked {
        /// Its number within the exam.
        remark: u32,
    },
    /// What was read by break glass is in the queue's books.
    GlassMended {
        /// Whether somebody else had the exam or had read it: the report stands beside theirs.
        second_read: bool,
        /// The report's number, if one was written.
        report: Option<u32>,
        /// The claim, if the reader still has the exam.
        grant: Option<Grant>,
    },
    /// A change of the layout is staged.
    Staged {
        /// The version by which all that is staged can be applied.
        version: u64,
    },
}

/// A granted claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The exam.
    pub exam: ExamId,
    /// Its workitem's number.
    pub workitem: u32,
    /// The claim.
    pub claim: Claim,
}

/// Who holds an exam that somebody else asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The user.
    pub user: Name,
    /// The site.
    pub site: SiteId,
    /// The site's name.
    pub site_name: Name,
    /// Since when.
    pub since: UnixMillisField,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No exam has this number.
    #[error("no such exam")]
    NoSuchExam,
    /// Somebody holds it.
    #[error("already claimed by {} at {}", .0.user, .0.site_name)]
    AlreadyClaimed(Holder),
    /// The exam's state does not allow it.
    #[error("the exam is {state}")]
    WrongState {
        /// Its state.
        state: ExamState,
    },
    /// The fencing token is not the current claim's.
    #[error("the claim with token {given} no longer holds{}", match .kept_as { Some(n) => format!("; the text is kept as draft {n}"), None => String::new() })]
    StaleToken {
        /// The token given.
        given: FencingToken,
        /// The report number under which a text was kept.
        kept_as: Option<u32>,
    },
    /// The site has no open session, so no claim of it could be bound to one.
    #[error("the site has no open session")]
    NoSession,
    /// The session is not the site's open one.
    #[error("the session is not open")]
    SessionOver,
    /// The token was never made, or for another mesh.
    #[error("the token is not known to this mesh")]
    TokenUnknown,
    /// The token is past its end.
    #[error("the token has expired")]
    TokenExpired,
    /// A site joined by it already.
    #[error("the token was used already")]
    TokenUsed,
    /// It was revoked.
    #[error("the token was revoked")]
    TokenRevoked,
    /// Another site has this name.
    #[error("a site of this name is a member already")]
    NameTaken,
    /// The proposing site is no member.
    #[error("the site is not a member of this mesh")]
    NotAMember,
    /// There is a mesh already, or there is none yet.
    #[error("{0}")]
    MeshState(Name),
    /// The study or part is not known.
    #[error("no such study part")]
    NoSuchPart,
    /// The two exams cannot be reconciled.
    #[error("{0}")]
    CannotReconcile(Name),
    /// The mesh knows a publication of this part that is not older than the one proposed.
    #[error("publication {sequence} of this part is known already")]
    PartSuperseded {
        /// The known publication's sequence number.
        sequence: u64,
    },
    /// The command id was used for another command.
    #[error("this command id was used for another command")]
    OtherCommand,
    /// Not every member of the mesh understands it yet.
    #[error("the mesh runs at format {format} until every site is upgraded")]
    Format {
        /// The mesh's format.
        format: u8,
    },
    /// The hospital's contract does not cover the site.
    #[error("the hospital's contract does not cover this site")]
    NoContract,
    /// The patient refuses the transfer.
    #[error("the patient refuses the transfer of the images")]
    ConsentRefused,
    /// A reason, a text or an author is needed and was not given.
    #[error("{0} is needed")]
    Missing(Name),
    /// The exam has no such workitem.
    #[error("no such workitem")]
    NoSuchWorkitem,
    /// The exam has no such remark, or it is of another kind.
    #[error("no such remark")]
    NoSuchRemark,
    /// It was answered or acknowledged already.
    #[error("it was done already")]
    DoneAlready,
    /// A workitem with this UID exists.
    #[error("a workitem with this UID exists already")]
    DuplicateUid,
    /// The Transaction UID is not the one that the workitem is being performed under.
    #[error("the Transaction UID is not the workitem's")]
    WrongTransaction,
    /// The workitem's state does not allow it.
    #[error("the workitem is {state:?}")]
    WorkitemState {
        /// Its state.
        state: crate::exam::WorkitemState,
    },
    /// What a completed workitem must have is not there (PS3.4 section CC.2.1.3).
    #[error("the workitem cannot be completed: {0}")]
    NotFinished(Name),
    /// The mesh keeps enough of these.
    #[error("too many {0}")]
    TooMany(Name),
    /// A legal hold keeps the images.
    #[error("a legal hold keeps the images")]
    OnHold,
    /// The images' time is not over.
    #[error("the images are kept until {} (milliseconds since 1970)", .until.0)]
    Retained {
        /// When it is.
        until: UnixMillisField,
    },
    /// What the site had of this study is being purged; once it is, what came since can be recorded.
    #[error("the site has to purge what it had of this study first")]
    Purging,
    /// No site has this number.
    #[error("no such site")]
    NoSuchSite,
    /// Another layout than the one named is staged, or none.
    #[error("{}", match .staged { 0 => "no layout is staged".to_owned(), n => format!("the staged layout is version {n}") })]
    OtherLayout {
        /// The staged layout's version; 0 for none.
        staged: u64,
    },
    /// Images that a site receives could not lie as they have to.
    #[error(
        "images received at {origin} could lie at {copies_possible} sites of the {copies} that they need, in {zones_possible} zones of {zones}"
    )]
    PlacementImpossible {
        /// The site.
        origin: Name,
        /// Copies that they need.
        copies: u8,
        /// … that sites could hold.
        copies_possible: u8,
        /// Zones that they need.
        zones: u8,
        /// … in which sites could hold them.
        zones_possible: u8,
    },
    /// The mesh counts on the copy.
    #[error("the mesh counts on this copy")]
    CopyNeeded,
    /// The token is for a site of the other kind.
    #[error("the token admits {} only", if *gateway { "a hospital's gateway" } else { "a reading centre" })]
    TokenRole {
        /// Whether it is for a gateway.
        gateway: bool,
    },
    /// The site is no gateway.
    #[error("the site is not a hospital's gateway")]
    NotAGateway,
    /// The key was destroyed with the images that it sealed.
    #[error("the key was destroyed")]
    KeyDestroyed,
    /// The mesh keeps another key under this name, or this one for other images.
    #[error("another key has this name")]
    OtherKey,
    /// The site is a gateway, and no layout says anything of one.
    #[error(
        "{0} is a hospital's gateway: it holds no copies, and what it sends is received by the centres that take it; name those here, and at the gateway in gateway.centres"
    )]
    NotACentre(Name),
}

impl Refusal {
    /// Whether the same command may succeed a moment later, so that its repeats must be run again
    /// rather than answered from memory.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::NoSession
                | Self::SessionOver
                | Self::OnHold
                | Self::Retained { .. }
                | Self::Purging
                | Self::CopyNeeded
                | Self::PlacementImpossible { .. }
                | Self::NotAMember
                | Self::MeshState(_)
                | Self::Format { .. }
        )
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Record for Outcome {
    const VERSION: u8 = 1;
    const WHAT: &'static str = "outcome";
}

impl Outcome {
    /// The exam that it names.
    pub fn exam(&self) -> Option<ExamId> {
        match self {
            Self::ExamAdded { exam, .. } | Self::StudyRecorded { exam, .. } => Some(*exam),
            Self::Claimed(grant) => Some(grant.exam),
            _ => None,
        }
    }

    /// The bytes that the Raft layer carries back.
    pub fn encode(&self) -> Vec<u8> {
        Record::encode(self, Self::VERSION)
    }

    /// Reads what [`Outcome::encode`] wrote.
    ///
    /// # Errors
    /// [`ApplyError::Corrupt`] when it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, ApplyError> {
        Record::decode(bytes)
    }
}
