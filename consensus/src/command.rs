//! What clients and sites ask of the replicated state.
//!
//! A command travels and is logged as one format byte and a postcard body. Variants are only ever added
//! at the end (a golden file a format holds them in place), and each belongs to the format that brought
//! it: it is proposed only once every member of the mesh understands that format. An unknown format or
//! variant stops the node that meets it; it is never skipped.

use std::net::SocketAddr;

use maillage_host::UnixMillis;
use serde::{Deserialize, Serialize};

mod about;
mod wording;

use std::collections::BTreeMap;

use crate::exam::{Priority, ReportKind, Request, Text8, Verdict, WorkitemState};
use crate::ids::{
    Address, CommandId, ExamId, FencingToken, KeyId, Line, Name, Paragraph, PeerKey, Prose, Secret, SiteId, UidText,
};
use crate::order::{Hospital, Order, Place, Policy, Reader};
use crate::placement::{COPIES_MAX, Change, Holders, WEIGHT_MAX};
use crate::remark::{Concordance, Finding};

/// The highest format that this version understands.
pub const FORMAT: u8 = 2;
/// The most attributes of a workitem that a client may set, and their most bytes together.
pub const ATTRIBUTES_MAX: usize = 256;
/// See [`ATTRIBUTES_MAX`].
pub const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;
/// The longest filter of a subscription, in bytes.
pub const FILTER_MAX: usize = 4096;
/// The longest list of addresses a site may announce.
pub const ADDRESSES_MAX: usize = 16;
/// The longest list of modalities or of placements in one command.
pub const LIST_MAX: usize = 64;

/// A command with who, where and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The client's name for it.
    pub id: CommandId,
    /// When the leader accepted it; set by the leader, whatever the client wrote.
    pub at: UnixMillisField,
    /// The site whose node received it. The founder's own first command says 1.
    pub site: SiteId,
    /// The user at that site, empty for the node itself.
    pub user: Name,
    /// What is asked.
    pub command: Command,
}

/// A stamp as it is encoded: milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillisField(pub u64);

impl From<UnixMillis> for UnixMillisField {
    fn from(at: UnixMillis) -> Self {
        Self(at.0)
    }
}

impl From<UnixMillisField> for UnixMillis {
    fn from(at: UnixMillisField) -> Self {
        Self(at.0)
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The mesh begins; the proposer becomes site 1.
    Found {
        /// The mesh's random identity.
        mesh: Address,
        /// Its name, for people.
        name: Name,
        /// Copies wanted of each image.
        copies: u8,
        /// The founder.
        founder: SiteDescription,
    },
    /// A join token is valid from now on.
    CreateToken {
        /// The public half of the key inside the token.
        key: PeerKey,
        /// Milliseconds after the stamp at which it ends.
        lifetime_ms: u64,
    },
    /// A join token ends now.
    RevokeToken {
        /// The token's public key.
        key: PeerKey,
    },
    /// A new site joins by a token. The receiving member has verified that the joiner holds both
    /// the token's key and its own.
    Join {
        /// The token's public key.
        token: PeerKey,
        /// The new site.
        joiner: SiteDescription,
    },
    /// A site describes itself anew: its addresses or zone changed.
    Describe {
        /// The site as it now is. Its key must be the one it joined with.
        description: SiteDescription,
    },
    /// The proposing site is alive and will send keep-alives to the leader.
    OpenSession,
    /// The leader has not heard from a site for the session's time to live.
    ExpireSession {
        /// The silent site.
        site: SiteId,
        /// Its session, so that a late expiry cannot end a newer one.
        session: u64,
    },
    /// An examination is to be read.
    AddExam(Request),
    /// The waiting exam that is due first is claimed.
    ClaimNext {
        /// Only these modalities; empty for any.
        modalities: Vec<UidText>,
    },
    /// One exam is claimed.
    ClaimTake {
        /// Which.
        exam: ExamId,
    },
    /// A claim is given back.
    Release {
        /// The exam.
        exam: ExamId,
        /// The claim's proof.
        token: FencingToken,
        /// Why, for the next reader; may be empty.
        reason: Line,
    },
    /// A claimed exam is read: its report.
    Complete {
        /// The exam.
        exam: ExamId,
        /// The claim's proof.
        token: FencingToken,
        /// The report.
        report: Prose,
    },
    /// A site holds images of a study, received from outside.
    RecordStudy(StudyPart),
    /// The proposing site durably holds, or no longer holds, all of a part's images.
    RecordHolding {
        /// The study.
        study: UidText,
        /// The part's study manifest.
        manifest: Address,
        /// Whether the site holds all of it.
        holds: bool,
    },
    /// An unsolicited exam's images belong to a requested exam, says a person.
    Reconcile {
        /// The exam that was made for the images.
        unsolicited: ExamId,
        /// The exam that was requested.
        into: ExamId,
    },
    /// An exam is not to be read after all.
    Cancel {
        /// Which.
        exam: ExamId,
        /// Why.
        reason: Line,
    },
    /// An exam's urgency changes.
    Prioritise {
        /// Which.
        exam: ExamId,
        /// Its new urgency.
        priority: Priority,
    },

    // Format 2.
    /// As `Found`, for a mesh that begins at a later format than the first.
    Establish {
        /// The mesh's random identity.
        mesh: Address,
        /// Its name, for people.
        name: Name,
        /// Copies wanted of each image.
        copies: u8,
        /// The founder.
        founder: SiteDescription,
        /// The format it begins with.
        format: u8,
    },
    /// Every member understands this format: it holds from now on. The leader's.
    RaiseFormat {
        /// The next format.
        to: u8,
    },
    /// What the proposing site's audit chain is at an index.
    Attest {
        /// The log index of an entry.
        index: u64,
        /// The chain's value there.
        chain: Address,
    },
    /// A partner hospital, new or changed.
    SetHospital(Hospital),
    /// Where the proposing site is.
    Situate {
        /// Its place.
        place: Place,
    },
    /// What the mesh agrees on for its waiting room.
    SetPolicy(Policy),
    /// An examination is requested, with what format 1 had no word for.
    Order {
        /// The request.
        request: Request,
        /// … and the rest.
        order: Order,
    },
    /// A regulator's verdict.
    Regulate {
        /// Of which exam.
        exam: ExamId,
        /// What.
        verdict: Verdict,
    },
    /// The technologist begins to scan.
    Acquire {
        /// Which.
        exam: ExamId,
    },
    /// The first image of an exam arrived at the proposing site.
    Arrive {
        /// Which.
        exam: ExamId,
    },
    /// The exam that this reader should read next is claimed.
    Next(Reader),
    /// One exam is claimed, picked by its reader.
    Take {
        /// Which.
        exam: ExamId,
        /// The Transaction UID that the client chose; empty for one derived from the command's id.
        transaction_uid: UidText,
    },
    /// A claimed exam is taken over from whoever has it.
    TakeOver {
        /// Which.
        exam: ExamId,
        /// Why; told to whoever had it.
        reason: Line,
    },
    /// The reader opens the exam.
    Open {
        /// Which.
        exam: ExamId,
        /// The claim's proof.
        token: FencingToken,
    },
    /// A preliminary or final report under a claim.
    Report {
        /// Of which exam.
        exam: ExamId,
        /// The claim's proof.
        token: FencingToken,
        /// Preliminary or final.
        kind: ReportKind,
        /// The text.
        text: Prose,
        /// The site's signature, or empty.
        signature: serde_bytes::ByteBuf,
    },
    /// A word added to a final report.
    Addend {
        /// Of which exam.
        exam: ExamId,
        /// The text.
        text: Prose,
        /// The site's signature, or empty.
        signature: serde_bytes::ByteBuf,
    },
    /// The requesting physician has the standing report.
    Deliver {
        /// Of which exam.
        exam: ExamId,
        /// The report's number: a later one is still to be delivered.
        report: u32,
        /// To whom and how.
        to: Line,
    },
    /// What became of the patient.
    FollowUp {
        /// Of which exam.
        exam: ExamId,
        /// What.
        text: Paragraph,
    },
    /// A note between centres.
    Note {
        /// On which exam.
        exam: ExamId,
        /// What.
        text: Paragraph,
    },
    /// A colleague is asked to look too.
    AskOpinion {
        /// At which exam.
        exam: ExamId,
        /// Whom; empty for anybody.
        of: Name,
        /// What.
        question: Paragraph,
    },
    /// A second opinion is given.
    GiveOpinion {
        /// On which exam.
        exam: ExamId,
        /// The remark that asks for it.
        remark: u32,
        /// The opinion.
        text: Paragraph,
        /// Whether it agrees.
        concordance: Concordance,
    },
    /// An algorithm's result.
    AddFinding {
        /// On which exam.
        exam: ExamId,
        /// What.
        finding: Finding,
    },
    /// A critical result, of which somebody must be told.
    RaiseCritical {
        /// Of which exam.
        exam: ExamId,
        /// What.
        text: Paragraph,
    },
    /// Somebody was told of a critical result or of a discrepancy.
    Tell {
        /// Of which exam.
        exam: ExamId,
        /// The remark.
        remark: u32,
        /// Who.
        whom: Line,
        /// Whether they read it back.
        read_back: bool,
    },
    /// A critical result was not acknowledged in time. The leader's.
    Escalate {
        /// Of which exam.
        exam: ExamId,
        /// The remark.
        remark: u32,
    },
    /// Two readings differ.
    RaiseDiscrepancy {
        /// Of which exam.
        exam: ExamId,
        /// 1 to 4.
        grade: u8,
        /// What.
        text: Paragraph,
    },
    /// A client's workitem (UPS-RS *Create*): an exam to be read.
    CreateWorkitem {
        /// Its SOP Instance UID.
        uid: UidText,
        /// What its attributes say of the examination.
        request: Request,
        /// … and the rest.
        order: Order,
        /// All its attributes.
        attributes: BTreeMap<u32, serde_bytes::ByteBuf>,
    },
    /// Attributes of a workitem change (*Update*). An empty value removes its attribute.
    UpdateWorkitem {
        /// Of which exam.
        exam: ExamId,
        /// The workitem's number.
        number: u32,
        /// Required once it is in progress.
        transaction_uid: UidText,
        /// What changes.
        attributes: BTreeMap<u32, serde_bytes::ByteBuf>,
    },
    /// A workitem's state changes (*Change Workitem State*).
    ChangeWorkitem {
        /// Of which exam.
        exam: ExamId,
        /// The workitem's number.
        number: u32,
        /// The performer's Transaction UID.
        transaction_uid: UidText,
        /// The state asked for.
        to: WorkitemState,
    },
    /// A workitem's performer is asked to stop (*Request Cancellation*).
    AskCancel {
        /// Of which exam.
        exam: ExamId,
        /// The workitem's number.
        number: u32,
        /// Why.
        reason: Line,
    },
    /// An application asks for events.
    Subscribe(Subscription),
    /// … and no longer.
    Unsubscribe {
        /// Its AE title.
        aet: Text8,
        /// Of one workitem only.
        workitem: Option<(ExamId, u32)>,
    },
    /// An exam was read by break glass while its site was cut off from the quorum.
    BreakGlass {
        /// Which.
        exam: ExamId,
        /// When it was taken, by the site's own clock.
        taken_at: UnixMillisField,
        /// Why.
        reason: Line,
        /// The report written meanwhile; none: the reader still has it.
        report: Option<Prose>,
        /// Its signature, or empty.
        signature: serde_bytes::ByteBuf,
    },
    /// An exam's images must stay, whatever their age.
    LegalHold {
        /// Which.
        exam: ExamId,
        /// Why.
        reason: Line,
    },
    /// … and need not any longer.
    ReleaseHold {
        /// Which.
        exam: ExamId,
        /// Why.
        reason: Line,
    },
    /// An exam's images go, everywhere. Without a reason the leader's, when their time is over.
    Purge {
        /// Which.
        exam: ExamId,
        /// Why, when a person asks before their time is over.
        reason: Line,
        /// Whether the patient has withdrawn the consent: no exam need be over then.
        withdrawn: bool,
    },
    /// Nothing of a purged part is left at the proposing site.
    RecordPurged {
        /// The exam.
        exam: ExamId,
        /// The study.
        study: UidText,
        /// The part's study manifest.
        manifest: Address,
    },
    /// A change of the layout is staged.
    StagePlacement(Change),
    /// What is staged holds from now on.
    ApplyPlacement {
        /// The staged layout's version: what its author has looked at.
        version: u64,
        /// Why, when images could not lie as they have to; else empty.
        force: Line,
    },
    /// What is staged is dropped.
    RevertPlacement {
        /// The staged layout's version.
        version: u64,
    },
    /// A site's copies go elsewhere.
    Drain {
        /// Which.
        site: SiteId,
        /// Why.
        reason: Line,
        /// Whether it is to be even if images cannot lie as they have to without it.
        force: bool,
    },
    /// … and it is given copies again.
    Undrain {
        /// Which.
        site: SiteId,
        /// Why.
        reason: Line,
    },
    /// The proposing site has no room for more copies, or has again.
    ReportRoom {
        /// Whether it is full.
        full: bool,
    },
    /// The proposing site would be rid of its copy of a part.
    GiveUp {
        /// The study.
        study: UidText,
        /// The part's study manifest.
        manifest: Address,
    },
    /// As `CreateToken`, for a hospital's gateway.
    CreateGatewayToken {
        /// The public half of the key inside the token.
        key: PeerKey,
        /// Milliseconds after the stamp at which it ends.
        lifetime_ms: u64,
        /// The hospitals whose reports the gateway is given, by the names that their requests bear.
        hospitals: Vec<Line>,
    },
    /// As `Join`, of a hospital's gateway.
    JoinGateway {
        /// The token's public key.
        token: PeerKey,
        /// The gateway.
        joiner: SiteDescription,
    },
    /// A gateway is given the reports of these hospitals from now on.
    SetGateway {
        /// Which.
        gateway: SiteId,
        /// Whose.
        hospitals: Vec<Line>,
    },
    /// A key under which the proposing site has sealed images of a study that it is about to publish.
    KeepKey {
        /// The study.
        study: UidText,
        /// The key's name.
        id: KeyId,
        /// The site's first publication that lists anything sealed under it: the purge of that one destroys it.
        sequence: u64,
        /// The key.
        secret: Secret,
    },
}

/// What an application is told of (PS3.18 section 11.10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its AE title.
    pub aet: Text8,
    /// One workitem; none: all, or those that `filter` matches.
    pub workitem: Option<(ExamId, u32)>,
    /// A query in UPS-RS's syntax; empty for all.
    pub filter: serde_bytes::ByteBuf,
    /// Whether a deletion lock is asked for. Nothing here deletes a workitem, so it changes nothing.
    pub deletion_lock: bool,
    /// Whether new workitems are no longer subscribed to (*Suspend Global Subscription*).
    pub suspended: bool,
    /// The log index at which it began: nothing older is told.
    pub since: u64,
    /// The site that sends the reports while its session is open; none: the application comes for them.
    pub reporter: Option<SiteId>,
    /// The log index up to which reports were sent. A command that names one only says how far they were.
    pub told: u64,
}

impl crate::record::Record for Subscription {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "subscription";
}

/// What a site signs when its user signs a report.
pub fn signed_bytes(mesh: &Address, exam: ExamId, user: &Name, kind: ReportKind, text: &Prose) -> Vec<u8> {
    let mut bytes = b"maillage 2026-11 report\0".to_vec();
    bytes.extend_from_slice(mesh);
    bytes.extend_from_slice(&exam.0.to_be_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(blake3::hash(user.as_str().as_bytes()).as_bytes());
    bytes.extend_from_slice(blake3::hash(text.as_str().as_bytes()).as_bytes());
    bytes
}

/// A site as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteDescription {
    /// Its node's identity.
    pub key: PeerKey,
    /// Its name, unique in the mesh.
    pub name: Name,
    /// Its failure domain: copies and voters are spread over zones.
    pub zone: Name,
    /// Where its node listens.
    pub addresses: Vec<SocketAddr>,
    /// Its share of the images, relative to the others'; 0 holds none.
    pub weight: u16,
}

/// Images of one study that one site received from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StudyPart {
    /// The Study Instance UID.
    pub study: UidText,
    /// The study manifest's address.
    pub manifest: Address,
    /// Rises when the same site publishes the same study again with more instances.
    pub sequence: u64,
    /// Instances in the manifest.
    pub instances: u32,
    /// Their data sets' bytes.
    pub bytes: u64,
    /// Milliseconds since the Unix epoch, the receiver's clock, of the first instance.
    pub first_received_at: UnixMillisField,
    /// … and of the last.
    pub last_received_at: UnixMillisField,
    /// What the images say of the examination.
    pub says: Request,
}

/// Bytes that are no command of a known format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Written by a newer version, or no command at all.
    #[error("format {0} is not known, only 1 to {FORMAT}")]
    Format(u8),
    /// Of a known format, but malformed or with a variant that this version does not know.
    #[error("malformed or unknown command: {0}")]
    Body(String),
    /// Nothing at all.
    #[error("empty command")]
    Empty,
    /// A list longer than its bound.
    #[error("{0} has too many entries")]
    TooMany(&'static str),
    /// A value outside its range.
    #[error("{0} is out of range")]
    Range(&'static str),
}

impl Envelope {
    /// The bytes to log.
    pub fn encode(&self) -> Vec<u8> {
        crate::record::encode(self.command.format(), self)
    }

    /// Reads what [`Envelope::encode`] wrote.
    ///
    /// # Errors
    /// [`CommandError`]; the node must not go on past a *committed* command that fails here.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let (&format, body) = bytes.split_first().ok_or(CommandError::Empty)?;
        if !(1..=FORMAT).contains(&format) {
            return Err(CommandError::Format(format));
        }
        let (envelope, rest): (Self, _) =
            postcard::take_from_bytes(body).map_err(|e| CommandError::Body(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CommandError::Body(format!("{} trailing bytes", rest.len())));
        }
        if envelope.command.format() != format {
            return Err(CommandError::Body(format!("a command of another format than {format}")));
        }
        Ok(envelope)
    }

    /// Checks the bounds that types do not carry, before the command is proposed.
    ///
    /// # Errors
    /// [`CommandError::TooMany`], [`CommandError::Range`].
    pub fn check(&self) -> Result<(), CommandError> {
        let most = |count: usize, max: usize, what| if count > max { Err(CommandError::TooMany(what)) } else { Ok(()) };
        match &self.command {
            Command::Found { founder: site, .. }
            | Command::Establish { founder: site, .. }
            | Command::Join { joiner: site, .. }
            | Command::JoinGateway { joiner: site, .. }
            | Command::Describe { description: site } => most(site.addresses.len(), ADDRESSES_MAX, "addresses"),
            Command::CreateGatewayToken { hospitals, .. } | Command::SetGateway { hospitals, .. } => {
                most(hospitals.len(), LIST_MAX, "hospitals")
            }
            Command::ClaimNext { modalities } => most(modalities.len(), LIST_MAX, "modalities"),
            Command::Next(reader) => {
                most(reader.modalities.len(), LIST_MAX, "modalities")?;
                most(reader.expertise.len(), LIST_MAX, "expertise")?;
                most(reader.specialties.len(), LIST_MAX, "specialties")
            }
            Command::SetHospital(hospital) => {
                most(hospital.sites.len(), LIST_MAX, "sites")?;
                most(hospital.retention.len(), LIST_MAX, "retention")
            }
            Command::SetPolicy(policy) => {
                let shares = policy.kept_for.iter().chain([&policy.kept_for_experts]);
                if shares.copied().max().is_some_and(|share| share > 1000) || policy.critical_ms < 60_000 {
                    return Err(CommandError::Range("policy"));
                }
                most(policy.retention.len(), LIST_MAX, "retention")
            }
            Command::RaiseDiscrepancy { grade, .. } if !(1..=4).contains(grade) => Err(CommandError::Range("grade")),
            Command::AddFinding { finding, .. } if finding.score > 1000 => Err(CommandError::Range("score")),
            Command::CreateWorkitem { attributes, .. } | Command::UpdateWorkitem { attributes, .. } => {
                most(attributes.len(), ATTRIBUTES_MAX, "attributes")?;
                most(attributes.values().map(|value| value.len()).sum(), ATTRIBUTE_BYTES_MAX, "attributes")
            }
            Command::StagePlacement(change) => check_change(change),
            Command::Subscribe(subscription) => most(subscription.filter.len(), FILTER_MAX, "filter"),
            Command::Report { signature, .. }
            | Command::Addend { signature, .. }
            | Command::BreakGlass { signature, .. } => most(signature.len(), 64, "signature"),
            _ => Ok(()),
        }
    }
}

/// The bounds of a change of the layout.
fn check_change(change: &Change) -> Result<(), CommandError> {
    let few = |number: u8, what| if number > COPIES_MAX { Err(CommandError::Range(what)) } else { Ok(()) };
    match change {
        Change::Copies(copies) => few(*copies, "copies"),
        Change::Zones(zones) => few(*zones, "zones"),
        Change::Share(share) if share.weight.is_some_and(|weight| weight > WEIGHT_MAX) => {
            Err(CommandError::Range("weight"))
        }
        Change::Contract(contract) => {
            few(contract.copies, "copies")?;
            few(contract.zones, "zones")?;
            if let Holders::Only(sites) | Holders::AllBut(sites) = &contract.holders
                && sites.len() > LIST_MAX
            {
                return Err(CommandError::TooMany("sites"));
            }
            if contract.regions.len() > LIST_MAX { Err(CommandError::TooMany("regions")) } else { Ok(()) }
        }
        Change::Share(_) | Change::EndContract(_) => Ok(()),
    }
}
