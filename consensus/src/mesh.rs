//! The mesh's own records: itself, its sites, their sessions, join tokens, and where images are.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::command::{SiteDescription, StudyPart, UnixMillisField};
use crate::exam::ExamState;
use crate::ids::{Address, ExamId, KeyId, Line, Name, PeerKey, SiteId, UidText};
use crate::record::{self, Record};

/// The mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Its random identity, asked for in every handshake.
    pub id: Address,
    /// Its name, for people.
    pub name: Name,
    /// Copies wanted of each image.
    pub copies: u8,
    /// When it was founded.
    pub founded_at: UnixMillisField,
    /// The format of commands and records that every member understands.
    pub format: u8,
}

impl Record for Mesh {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "mesh";

    fn added() -> Option<Vec<u8>> {
        Some(vec![1])
    }
}

/// What a site is to the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SiteRole {
    /// A reading centre, or the cloud: it has the whole queue, may vote, and holds images.
    #[default]
    Centre,
    /// A hospital's gateway: it sends images and is given reports. It has no part of the log, no vote, no
    /// session and no copies, and proposes nothing.
    Gateway {
        /// The hospitals whose reports it is given, by the names that their requests bear.
        hospitals: Vec<Line>,
    },
}

impl SiteRole {
    /// Whether it is a gateway.
    pub fn is_gateway(&self) -> bool {
        matches!(self, Self::Gateway { .. })
    }
}

/// A member site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Its number, which is also its Raft node id.
    pub id: SiteId,
    /// As it describes itself.
    pub description: SiteDescription,
    /// When it joined.
    pub joined_at: UnixMillisField,
    /// Sessions it has opened so far.
    pub sessions: u64,
    /// Whether the last of them is open.
    pub session_open: bool,
    /// When its session ended, while it is away.
    pub away_since: Option<UnixMillisField>,
    /// What it is to the mesh.
    pub role: SiteRole,
}

impl Site {
    /// Whether it is a hospital's gateway, which is neither replica, voter, holder nor reader.
    pub fn is_gateway(&self) -> bool {
        self.role.is_gateway()
    }
}

impl Record for Site {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "site";

    fn added() -> Option<Vec<u8>> {
        Some(record::fields(&SiteRole::default()))
    }
}

/// A join token, known by the public half of the key inside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The public key.
    pub key: PeerKey,
    /// When it was made.
    pub created_at: UnixMillisField,
    /// When it ends.
    pub expires_at: UnixMillisField,
    /// The site that joined by it.
    pub used_by: Option<SiteId>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// As what a site joins by it.
    pub role: SiteRole,
}

impl Record for JoinToken {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "token";

    fn added() -> Option<Vec<u8>> {
        Some(record::fields(&SiteRole::default()))
    }
}

impl JoinToken {
    /// Whether a site may still join by it at `now`.
    pub fn is_valid_at(&self, now: UnixMillisField) -> bool {
        self.used_by.is_none() && !self.revoked && now < self.expires_at
    }
}

/// A study's images: the parts that sites received, and who holds each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Study {
    /// The Study Instance UID.
    pub uid: UidText,
    /// One part for each site that received some of it.
    pub parts: Vec<HeldPart>,
}

impl Record for Study {
    const VERSION: u8 = 1;
    const WHAT: &'static str = "study";
}

/// A part of a study and its holders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPart {
    /// The site that received it.
    pub origin: SiteId,
    /// The exam it belongs to.
    pub exam: ExamId,
    /// The part.
    pub part: StudyPart,
    /// Sites that durably hold all of it, in ascending order.
    pub holders: Vec<SiteId>,
    /// Earlier publications, the newest first, that sites hold which hold none of the later ones, until those have
    /// caught up: if a later one's only holder dies before it is copied, the rest of the study is still found.
    ///
    /// One at most before format 2, and none or one are the bytes that an `Option` was.
    pub earlier: Vec<EarlierPart>,
}

/// An earlier publication of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierPart {
    /// The part as it was.
    pub part: StudyPart,
    /// Sites that durably hold all of it, in ascending order.
    pub holders: Vec<SiteId>,
}

impl HeldPart {
    /// All its publications that are known, the latest first, each with the sites that durably hold all of it. What one
    /// lists, the later ones list too.
    pub fn publications(&self) -> impl Iterator<Item = (&StudyPart, &[SiteId])> {
        let earlier = self.earlier.iter().map(|earlier| (&earlier.part, earlier.holders.as_slice()));
        std::iter::once((&self.part, self.holders.as_slice())).chain(earlier)
    }

    /// The sites that hold any of its publications, in ascending order: of one that is damaged there, each has most
    /// chunks.
    pub fn all_holders(&self) -> Vec<SiteId> {
        let all: BTreeSet<SiteId> = self.publications().flat_map(|(_, holders)| holders).copied().collect();
        all.into_iter().collect()
    }

    /// The part as it was published last before this, as far as it is known.
    #[must_use]
    pub fn as_before(&self) -> Option<Self> {
        let (before, earlier) = self.earlier.split_first()?;
        let EarlierPart { part, holders } = before.clone();
        Some(Self { part, holders, earlier: earlier.to_vec(), ..*self })
    }

    /// Whether another site than the one that received it holds any of it.
    pub fn is_elsewhere(&self) -> bool {
        self.all_holders().iter().any(|site| *site != self.origin)
    }
}

impl Study {
    /// The fewest copies that any part has.
    pub fn copies(&self) -> usize {
        self.parts.iter().map(|held| held.holders.len()).min().unwrap_or(0)
    }
}

/// What is left of a part of a study whose images were purged: who still has to see to it, and who has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The exam.
    pub exam: ExamId,
    /// The Study Instance UID.
    pub study: UidText,
    /// The site that had received the part.
    pub origin: SiteId,
    /// Its study manifest.
    pub manifest: Address,
    /// Those of earlier publications, of which sites may still have something.
    pub earlier: Vec<Address>,
    /// The publication's number: the site's next one has a higher one.
    pub sequence: u64,
    /// Instances that it had.
    pub instances: u32,
    /// Sites that had said to hold it, in ascending order.
    pub holders: Vec<SiteId>,
    /// When it was purged.
    pub at: UnixMillisField,
    /// Why; empty when its time was over.
    pub reason: Line,
    /// Members that have not confirmed yet, in ascending order.
    pub pending: Vec<SiteId>,
    /// Members that have, and when, in that order.
    pub confirmed: Vec<(SiteId, UnixMillisField)>,
    /// The keys that were destroyed with it: whatever copy is left, nothing opens it.
    pub keys: Vec<KeyId>,
}

impl Record for Tombstone {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "tombstone";
}

/// How many exams are in each state, kept so that no page has to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Requested, images not here.
    pub requested: u64,
    /// In the waiting room.
    pub waiting: u64,
    /// Claimed.
    pub claimed: u64,
    /// Reported.
    pub reported: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Standing apart from any request.
    pub unsolicited: u64,
    /// Studies known.
    pub studies: u64,
    /// Studies with a part on fewer than two sites.
    pub studies_below_two: u64,
    /// Studies with a part on fewer sites than wanted, or in fewer zones.
    pub studies_below_wanted: u64,
    /// What format 2 counts besides.
    pub more: MoreCounts,
}

/// What format 2 counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MoreCounts {
    /// Copies that a site said it had lost, ever.
    pub copies_lost: u64,
    /// Validated, not scanned yet.
    pub validated: u64,
    /// Being scanned.
    pub acquiring: u64,
    /// Images arriving.
    pub receiving: u64,
    /// Opened by their readers.
    pub reading: u64,
    /// Report delivered.
    pub delivered: u64,
    /// Followed up.
    pub followed_up: u64,
    /// Images purged.
    pub purged: u64,
    /// Refused.
    pub refused: u64,
    /// Exams with a critical result that nobody has acknowledged.
    pub critical_open: u64,
    /// Purges that some site has not confirmed, counted by part and site.
    pub purges_pending: u64,
    /// Exams under legal hold.
    pub legal_holds: u64,
    /// Studies with a part that must not leave the site which received it: copies of it are not missed.
    pub studies_confined: u64,
}

impl Record for Counts {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "counts";

    fn added() -> Option<Vec<u8>> {
        Some(record::fields(&MoreCounts::default()))
    }
}

impl Counts {
    /// How many exams are in a state.
    pub fn of(&mut self, state: ExamState) -> &mut u64 {
        match state {
            ExamState::Requested => &mut self.requested,
            ExamState::Waiting => &mut self.waiting,
            ExamState::Claimed => &mut self.claimed,
            ExamState::Reported => &mut self.reported,
            ExamState::Cancelled => &mut self.cancelled,
            ExamState::Validated => &mut self.more.validated,
            ExamState::Acquiring => &mut self.more.acquiring,
            ExamState::Receiving => &mut self.more.receiving,
            ExamState::Reading => &mut self.more.reading,
            ExamState::Delivered => &mut self.more.delivered,
            ExamState::FollowedUp => &mut self.more.followed_up,
            ExamState::Purged => &mut self.more.purged,
            ExamState::Refused => &mut self.more.refused,
        }
    }
}
