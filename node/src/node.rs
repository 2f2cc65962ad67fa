//! A running node: the handle by which every interface reaches the queue, the images and the mesh.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maillage_consensus::command::{Command, Envelope, UnixMillisField};
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::{Site, SiteRole};
use maillage_consensus::outcome::Refusal;
use maillage_consensus::raft::{Committed, Group, GroupStatus, ProposeError, ReadError};
use maillage_consensus::{Outcome, StateClock, View};
use maillage_host::{Clock, Disk, UnixMillis};
use maillage_store::Store;
use maillage_transport::Identity;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::commitment::Commitments;
use crate::config::Config;
use crate::data_dir::{MeshFile, MeshFileMember};
use crate::gateway::Gates;
use crate::images::Images;
use crate::ingest::Ingest;
use crate::metrics::{Metrics, outcome_label};
use crate::outbox::Outbox;
use crate::prefetch::Readers;
use crate::presence::{PeerState, Presence};
use crate::roster::{Roster, key_of, peer_of};
use crate::scrub::Scrub;
use crate::token::Token;

/// A command is retried for so long, over changes of leader, before its outcome is called unknown.
/// A mesh without a quorum is told earlier, by Raft.
const COMMAND_DEADLINE: Duration = Duration::from_secs(6);
/// The site that founded the mesh. No command has this index, so no other site has this number.
pub(crate) const FOUNDER: SiteId = SiteId(1);
/// A linearizable read waits no longer than a person would.
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    /// It was not proposed: no quorum can be reached.
    #[error("{0}")]
    NoQuorum(String),
    /// It may yet take effect: repeat it under the same command id to learn its outcome.
    #[error("{0}")]
    Unknown(String),
    /// This node stopped being a replica.
    #[error("{0}")]
    Halted(String),
    /// It is no valid command.
    #[error("{0}")]
    Invalid(String),
}

impl CommandError {
    /// A short label for metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::NoQuorum(_) => "no-quorum",
            Self::Unknown(_) => "unknown",
            Self::Halted(_) => "halted",
            Self::Invalid(_) => "invalid",
        }
    }
}

impl From<ProposeError> for CommandError {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::NoQuorum | ProposeError::NotLeader | ProposeError::Busy => Self::NoQuorum(text),
            ProposeError::Unknown => Self::Unknown(text),
            ProposeError::Invalid(_) | ProposeError::TooLarge(_) => Self::Invalid(text),
            ProposeError::Halted(_) => Self::Halted(text),
        }
    }
}

/// The parts of a running node.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) disk: Disk,
    pub(crate) identity: Identity,
    pub(crate) mesh: MeshFile,
    pub(crate) mesh_id: [u8; 32],
    pub(crate) clock: Clock,
    pub(crate) group: Group,
    pub(crate) store: Store,
    pub(crate) roster: Roster,
    pub(crate) presence: Presence,
    pub(crate) images: Images,
    pub(crate) ingest: Ingest,
    pub(crate) metrics: Metrics,
    pub(crate) outbox: Outbox,
    pub(crate) commitments: Commitments,
    pub(crate) scrub: Scrub,
    pub(crate) gates: Gates,
    pub(crate) state_clock: StateClock,
    pub(crate) readers: Readers,
}

/// A running node. Clones share it.
#[derive(Clone)]
pub(crate) struct Node(Arc<Parts>);

impl Node {
    /// The node made of `parts`.
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.0.identity
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn group(&self) -> &Group {
        &self.0.group
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn roster(&self) -> &Roster {
        &self.0.roster
    }

    pub(crate) fn images(&self) -> &Images {
        &self.0.images
    }

    pub(crate) fn presence(&self) -> &Presence {
        &self.0.presence
    }

    pub(crate) fn ingest(&self) -> &Ingest {
        &self.0.ingest
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.0.outbox
    }

    /// Who reads here.
    pub(crate) fn readers(&self) -> &Readers {
        &self.0.readers
    }

    pub(crate) fn commitments(&self) -> &Commitments {
        &self.0.commitments
    }

    pub(crate) fn scrub(&self) -> &Scrub {
        &self.0.scrub
    }

    /// The hospitals' gateways, as heard here.
    pub(crate) fn gates(&self) -> &Gates {
        &self.0.gates
    }

    /// This site's number.
    pub(crate) fn site(&self) -> SiteId {
        SiteId(self.0.mesh.site_id)
    }

    /// The mesh's identity.
    pub(crate) fn mesh_id(&self) -> [u8; 32] {
        self.0.mesh_id
    }

    /// The mesh's name.
    pub(crate) fn mesh_name(&self) -> String {
        self.0.mesh.mesh_name.clone()
    }

    /// The mesh's epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.mesh.epoch
    }

    /// Proposes a command and waits for its outcome: committed by a quorum and applied.
    ///
    /// # Errors
    /// [`CommandError`]; only [`CommandError::Unknown`] leaves open whether it took effect.
    pub(crate) async fn command(&self, id: CommandId, user: Name, command: Command) -> Result<Outcome, CommandError> {
        let (kind, started) = (command.kind(), Instant::now());
        if let Some(refusal) = self.not_yet(&command) {
            self.metrics().command(kind, outcome_label(&refusal), started.elapsed());
            return Ok(refusal);
        }
        let other = command.in_other_words();
        let proposed = self.propose(id, user.clone(), command).await;
        let outcome = self.outcome(kind, started, proposed.map(|committed| committed.outcome));
        match (&outcome, other) {
            (Ok(Outcome::Refused(Refusal::OtherCommand)), Some(other)) if self.has_words_for(&other).await? => {
                let proposed = self.propose(id, user, other).await;
                self.outcome(kind, started, proposed.map(|committed| committed.outcome))
            }
            _ => outcome,
        }
    }

    /// Whether the mesh's format has a command.
    ///
    /// # Errors
    /// [`CommandError::Unknown`]: as far as this node knew it has not, and it could not ask for the newest state. It may be
    /// these words in which the command was done.
    async fn has_words_for(&self, command: &Command) -> Result<bool, CommandError> {
        if self.not_yet(command).is_some() {
            self.linearize().await.map_err(|error| CommandError::Unknown(error.to_string()))?;
        }
        Ok(self.not_yet(command).is_none())
    }

    /// The refusal of a command that the mesh has no word for yet, or that this node is told not to use:
    /// the leader would have it wait, in vain.
    fn not_yet(&self, command: &Command) -> Option<Outcome> {
        let founds = matches!(command, Command::Found { .. } | Command::Establish { .. });
        let needs = command.format();
        if founds || needs == 1 {
            return None;
        }
        // One that cannot be read is the leader's to judge.
        let format = self.read(|view| view.format()).ok()?.min(self.config().raft.format_max);
        (needs > format).then_some(Outcome::Refused(Refusal::Format { format }))
    }

    /// As [`Node::command`], with the command's place in the log and its outcome's bytes.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub(crate) async fn propose(&self, id: CommandId, user: Name, command: Command) -> Result<Committed, ProposeError> {
        let bytes = self.envelope(id, user, command).encode();
        self.group().propose(Bytes::from(bytes), COMMAND_DEADLINE).await
    }

    /// As [`Node::command`], for the leader's own: not proposed once this node leads no more in `term`.
    ///
    /// # Errors
    /// [`CommandError`].
    pub(crate) async fn command_in_term(&self, term: u64, command: Command) -> Result<Outcome, CommandError> {
        let (kind, started) = (command.kind(), Instant::now());
        let bytes = self.envelope(CommandId::random(), Name::default(), command).encode();
        let proposed = self.group().propose_in_term(term, Bytes::from(bytes), COMMAND_DEADLINE).await;
        self.outcome(kind, started, proposed.map(|committed| committed.outcome))
    }

    fn envelope(&self, id: CommandId, user: Name, command: Command) -> Envelope {
        Envelope { id, at: UnixMillisField::default(), site: self.site(), user, command }
    }

    /// The outcome, counted.
    fn outcome(
        &self,
        kind: &'static str,
        started: Instant,
        proposed: Result<Bytes, ProposeError>,
    ) -> Result<Outcome, CommandError> {
        let result = proposed
            .map_err(CommandError::from)
            .and_then(|outcome| Outcome::decode(&outcome).map_err(|error| CommandError::Unknown(error.to_string())));
        let label = match &result {
            Ok(outcome) => outcome_label(outcome),
            Err(error) => error.label(),
        };
        self.metrics().command(kind, label, started.elapsed());
        result
    }

    /// Reads a consistent local view of the replicated state, as old as [`Node::age`] says.
    ///
    /// # Errors
    /// [`ApplyError`] when the state cannot be read.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&View<'_>) -> Result<T, ApplyError>) -> Result<T, ApplyError> {
        let frozen = self.group().reader().view();
        read(&View::new(&*frozen))
    }

    /// The state's time, which runs on here while nothing is proposed.
    ///
    /// # Errors
    /// [`ApplyError`] when the state cannot be read.
    pub(crate) fn state_time(&self, view: &View<'_>) -> Result<UnixMillis, ApplyError> {
        Ok(self.0.state_clock.now(view.clock()?.into()))
    }

    /// Returns once this node's state holds every command committed before the call.
    ///
    /// # Errors
    /// [`CommandError::NoQuorum`] when that cannot be known in time.
    pub(crate) async fn linearize(&self) -> Result<(), CommandError> {
        match self.group().linearize(READ_DEADLINE).await {
            Ok(_) => Ok(()),
            Err(error @ ReadError::Halted(_)) => Err(CommandError::Halted(error.to_string())),
            Err(error) => Err(CommandError::NoQuorum(error.to_string())),
        }
    }

    /// Waits until this node's own state shows everything committed so far, or for two seconds.
    pub(crate) async fn catch_up(&self) {
        // Late or without a quorum: the caller goes by what is here.
        let _ = self.linearize().await;
    }

    /// Time since a quorum last confirmed what this node reads; `None` if never since it started.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.group().freshness().age
    }

    /// Told the applied index at every change of the replicated state.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.group().changes()
    }

    /// Raft as this node sees it.
    pub(crate) fn group_status(&self) -> GroupStatus {
        self.group().watch().borrow().clone()
    }

    /// The other sites as presence shows them.
    pub(crate) fn peers(&self) -> Vec<PeerState> {
        self.0.presence.peers(&self.0.roster)
    }

    /// Makes a join token that is valid for `lifetime`, once, for a site of this role.
    ///
    /// # Errors
    /// [`CommandError`]: the mesh must know the token before anybody can use it.
    pub(crate) async fn create_token(
        &self,
        id: CommandId,
        user: Name,
        lifetime: Duration,
        role: SiteRole,
    ) -> Result<NewToken, CommandError> {
        // From the command's id: a repeat of the command makes the same token.
        let seed = [&self.identity().secret()[..], id.0.as_bytes()].concat();
        let key = Identity::from_secret(&blake3::derive_key("maillage 2026-11 join token key", &seed));
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let public = key_of(&key.peer_id());
        let command = match role {
            SiteRole::Centre => Command::CreateToken { key: public, lifetime_ms },
            SiteRole::Gateway { hospitals } => Command::CreateGatewayToken { key: public, lifetime_ms, hospitals },
        };
        if let Outcome::Refused(refusal) = self.command(id, user, command).await? {
            return Err(CommandError::Invalid(refusal.to_string()));
        }
        self.linearize().await?;
        let (mut sites, token) = self
            .read(|view| Ok((view.sites()?, view.tokens()?)))
            .map_err(|error| CommandError::Unknown(error.to_string()))?;
        let public = key_of(&key.peer_id());
        let expires_at = token.iter().find(|token| token.key == public).map_or(0, |token| token.expires_at.0);
        sites.retain(|site| !site.is_gateway());
        // This node first: it is the one that the sysadmin knows to be up.
        sites.sort_by_key(|site| site.id != self.site());
        let members =
            sites.iter().filter_map(|site| Some((peer_of(&site.description.key)?, site.description.addresses.clone())));
        let members: Vec<_> = members.collect();
        let text = Token::new(self.mesh_id(), &key, &members).encode();
        Ok(NewToken { text, key: key.peer_id().to_string(), expires_at: UnixMillisField(expires_at) })
    }

    /// Remembers the members for the next start.
    ///
    /// # Errors
    /// When `mesh.json` cannot be written.
    pub(crate) async fn save_members(&self, sites: &[Site]) -> std::io::Result<()> {
        let members = sites.iter().filter(|site| !site.is_gateway()).filter_map(|site| {
            Some(MeshFileMember {
                peer_id: peer_of(&site.description.key)?.to_string(),
                site_id: site.id.0,
                name: site.description.name.to_string(),
                addresses: site.description.addresses.clone(),
            })
        });
        let mesh = MeshFile { has_log: true, members: members.collect(), ..self.0.mesh.clone() };
        mesh.save(&self.0.disk).await
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("site", &self.site()).finish_non_exhaustive()
    }
}

/// A join token just made.
pub(crate) struct NewToken {
    /// The secret text to carry to the new site.
    pub(crate) text: String,
    /// Its public name, for listing and revoking.
    pub(crate) key: String,
    /// When it ends.
    pub(crate) expires_at: UnixMillisField,
}
