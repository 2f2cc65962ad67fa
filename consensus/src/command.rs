//! What clients and sites ask of the replicated state.
//!
//! A command travels and is logged as one format byte and a postcard body. Variants and fields are
//! only ever added at the end (a golden file holds them in place); an unknown format or variant
//! stops the node that meets it.

use std::net::SocketAddr;

use maillage_host::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::exam::{Priority, Request};
use crate::ids::{Address, CommandId, ExamId, FencingToken, Line, Name, PeerKey, Prose, SiteId, UidText};

/// The format this version writes and the highest that it reads.
pub const FORMAT: u8 = 1;
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
}

impl Envelope {
    /// The bytes to log.
    pub fn encode(&self) -> Vec<u8> {
        crate::record::encode(FORMAT, self)
    }

    /// Reads what [`Envelope::encode`] wrote.
    ///
    /// # Errors
    /// [`CommandError`]; the node must not go on past a *committed* command that fails here.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let (&format, body) = bytes.split_first().ok_or(CommandError::Empty)?;
        if format != FORMAT {
            return Err(CommandError::Format(format));
        }
        let (envelope, rest): (Self, _) =
            postcard::take_from_bytes(body).map_err(|e| CommandError::Body(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CommandError::Body(format!("{} trailing bytes", rest.len())));
        }
        Ok(envelope)
    }

    /// Checks the bounds that types do not carry, before the command is proposed.
    ///
    /// # Errors
    /// [`CommandError::TooMany`].
    pub fn check(&self) -> Result<(), CommandError> {
        let addresses = match &self.command {
            Command::Found { founder: site, .. }
            | Command::Join { joiner: site, .. }
            | Command::Describe { description: site } => site.addresses.len(),
            Command::ClaimNext { modalities } if modalities.len() > LIST_MAX => {
                return Err(CommandError::TooMany("modalities"));
            }
            _ => 0,
        };
        if addresses > ADDRESSES_MAX { Err(CommandError::TooMany("addresses")) } else { Ok(()) }
    }
}
