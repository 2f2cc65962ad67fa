//! Joining: the new site's side and the member's.
//!
//! The joiner dials a member that its token names, authenticated both ways by TLS: the member by its
//! identity in the token, the joiner by the token's key. It then shows that it also holds the node
//! key it wants to join with, by signing the request. The member proposes; the state machine decides.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use maillage_consensus::command::{ADDRESSES_MAX, Command, SiteDescription};
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::{Outcome, Refusal};
use maillage_host::Clock;
use maillage_transport::frame;
use maillage_transport::{Accepted, Alpn, Endpoint, EndpointConfig, Identity, Incoming, Membership, PeerId, Socket};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Role, Settings};
use crate::data_dir::{DataDir, DataDirError, IdentitySecret, Locked, MESH_FILE_FORMAT, MeshFile, MeshFileMember};
use crate::exit::{ExitCode, Failure};
use crate::node::Node;
use crate::roster::{key_of, peer_of};
use crate::token::Token;

/// A join request or reply is small; more is not listened to.
const FRAME_MAX: usize = 256 * 1024;
/// One member is given this long to answer before the next is tried.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(15);
/// What the joiner's signature is over, before the request's own bytes.
const SIGNED_CONTEXT: &[u8] = b"maillage-join/1";

#[derive(Debug, Serialize, Deserialize)]
struct JoinRequest {
    mesh: [u8; 32],
    joiner: SiteDescription,
    /// By the joiner's node key, over the context, the token's public key and the description.
    signature: Vec<u8>,
}

/// What a side says of its software, behind its request or its admission. Format 1's software says nothing
/// there and reads nothing there, and what a later one may put behind these fields is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Software {
    /// Of a joiner: the highest format that it understands. Of a member: the format at which the mesh runs.
    format: u8,
    /// Its version, for people.
    version: String,
}

/// What a joiner says behind its software. One that says nothing there is a centre.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Wish {
    /// Whether it is a hospital's gateway.
    gateway: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum JoinReply {
    Joined { site: u64, mesh_name: String, epoch: u64, members: Vec<ReplyMember> },
    Refused { why: String },
    Unavailable { why: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct ReplyMember {
    site: u64,
    name: String,
    peer: Vec<u8>,
    addresses: Vec<SocketAddr>,
}

/// What a finished join tells the sysadmin.
#[derive(Debug)]
pub(crate) struct JoinReport {
    /// The mesh's name.
    pub(crate) mesh: String,
    /// This site's number.
    pub(crate) site_id: u64,
    /// This site's name.
    pub(crate) site: String,
    /// This node's identity.
    pub(crate) peer_id: String,
}

/// Why a member's answer is no admission.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The text is no join token.
    #[error("{0}")]
    Token(String),
    /// The mesh says no.
    #[error("the mesh refused this site: {0}")]
    Refused(String),
    /// The mesh cannot say: no quorum. Ask again.
    #[error("the mesh cannot decide now: {0}")]
    Unavailable(String),
    /// The answer, or what was to be asked, makes no sense.
    #[error("{0}")]
    Malformed(String),
}

/// A site that wants to join: what it asks, and what an answer makes of it.
pub struct Joining {
    token: Token,
    site_name: String,
    request: Vec<u8>,
    format_max: u8,
    role: Role,
}

impl std::fmt::Debug for Joining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joining").field("site", &self.site_name).finish_non_exhaustive()
    }
}

impl Joining {
    /// Prepares the request of the site of `settings`, with the key it wants to join with.
    ///
    /// # Errors
    /// [`JoinError::Token`], [`JoinError::Malformed`] when the site cannot be described.
    pub fn new(settings: &Settings, identity: &Identity, token: &str) -> Result<Self, JoinError> {
        let malformed = |error: anyhow::Error| JoinError::Malformed(format!("{error:#}"));
        let token = Token::decode(token).map_err(|error| JoinError::Token(error.to_string()))?;
        let joiner = describe(settings.config(), identity).map_err(malformed)?;
        let signed = signed_bytes(&token.identity().peer_id(), &joiner).map_err(malformed)?;
        let request = JoinRequest { mesh: token.mesh, joiner, signature: identity.sign(&signed) };
        let (format_max, role) = (settings.config().raft.format_max, settings.config().node.role);
        let mut request = with_software(&request, &Software::of_format(format_max)).map_err(malformed)?;
        if role == Role::Gateway {
            let wish = postcard::to_extend(&Wish { gateway: true }, request);
            request = wish.map_err(|error| JoinError::Malformed(error.to_string()))?;
        }
        Ok(Self { token, site_name: settings.config().node.name.clone(), request, format_max, role })
    }

    /// The key by which the joiner shows that it holds the token.
    pub fn token_identity(&self) -> Identity {
        self.token.identity()
    }

    /// Members to ask, and where.
    pub fn members(&self) -> Vec<(PeerId, SocketAddr)> {
        self.token.members()
    }

    /// What to ask.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Asks one member. `endpoint` must have the token's identity.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(&self, endpoint: &Endpoint, peer: PeerId, address: SocketAddr) -> anyhow::Result<Vec<u8>> {
        let connection = endpoint.dial(peer, address, Alpn::Join).await?;
        let (mut writer, mut reader) = connection.open_bi().await?;
        frame::write(&mut writer, &self.request, FRAME_MAX).await?;
        Ok(frame::read(&mut reader, FRAME_MAX).await?.context("the member closed without an answer")?.into())
    }

    /// What the data directory is to say after this answer.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub fn admitted(&self, reply: &[u8]) -> Result<MeshFile, JoinError> {
        let (reply, mesh, _) = split_software(reply).map_err(|error| JoinError::Malformed(error.to_string()))?;
        match reply {
            // A member that does not look, or a mesh that was raised meanwhile: the site would stop at the
            // first command that it does not know. A gateway applies none.
            JoinReply::Joined { .. } if mesh.format > self.format_max && self.role == Role::Centre => {
                Err(JoinError::Refused(too_old(&mesh, &Software::of_format(self.format_max))))
            }
            JoinReply::Joined { site, mesh_name, epoch, members } => Ok(MeshFile {
                format: MESH_FILE_FORMAT,
                mesh_id: data_encoding::HEXLOWER.encode(&self.token.mesh),
                mesh_name,
                site_id: site,
                site_name: self.site_name.clone(),
                epoch,
                has_log: false,
                role: self.role,
                members: members.iter().filter_map(ReplyMember::to_file).collect(),
            }),
            JoinReply::Refused { why } => Err(JoinError::Refused(why)),
            JoinReply::Unavailable { why } => Err(JoinError::Unavailable(why)),
        }
    }
}

impl Software {
    /// This software, at a format.
    fn of_format(format: u8) -> Self {
        Self { format, version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Why a site's software cannot follow a mesh.
fn too_old(mesh: &Software, joiner: &Software) -> String {
    format!(
        "the mesh runs at format {} (its member runs maillage {}), and the joining site's software, maillage {}, \
         understands no more than format {}: install a version there that understands format {}, then join again",
        mesh.format, mesh.version, joiner.version, joiner.format, mesh.format
    )
}

fn with_software(said: &impl Serialize, software: &Software) -> anyhow::Result<Vec<u8>> {
    Ok(postcard::to_extend(software, postcard::to_stdvec(said)?)?)
}

/// What a side says, what of its software, and what stands behind.
fn split_software<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> postcard::Result<(T, Software, &[u8])> {
    let (said, rest) = postcard::take_from_bytes(bytes)?;
    let (software, rest) = match rest {
        [] => (Software { format: 1, version: "of the first format".to_owned() }, rest),
        rest => postcard::take_from_bytes(rest)?,
    };
    Ok((said, software, rest))
}

/// Joins the mesh that `token` is for, and leaves a data directory ready for `serve`.
///
/// # Errors
/// When the token is damaged or refused, no member answers, or the data directory is in use.
pub(crate) async fn join(config: &Config, token: &str) -> anyhow::Result<JoinReport> {
    // A damaged token must not leave a directory behind.
    Token::decode(token).map_err(|error| Failure::new(ExitCode::Usage, error.to_string()))?;
    let (directory, identity) = prepare(&config.node.data_dir)?;
    let joining = Joining::new(&Settings::from(config.clone()), &identity, token)?;
    let mesh = match ask_members(&joining).await {
        Ok(mesh) => mesh,
        Err(JoinError::Refused(why)) => {
            directory.discard()?;
            return Err(Failure::new(ExitCode::Refused, format!("the mesh refused this site: {why}")).into());
        }
        Err(error @ JoinError::Unavailable(_)) => {
            let failure = Failure::new(ExitCode::NoQuorum, error.to_string());
            return Err(failure.with_hint("run the same command again").into());
        }
        Err(error) => return Err(error.into()),
    };
    directory.store_mesh(&mesh)?;
    Ok(JoinReport {
        mesh: mesh.mesh_name,
        site_id: mesh.site_id,
        site: mesh.site_name,
        peer_id: identity.peer_id().to_string(),
    })
}

/// A data directory with an identity, new or left by an attempt that was cut off: the mesh may have
/// admitted that identity already, so it is kept.
///
/// # Errors
/// When the directory holds anything else.
pub(crate) fn prepare(root: &Path) -> Result<(Locked, Identity), DataDirError> {
    let directory = DataDir::create_or_resume(root)?;
    match directory.identity() {
        Ok(secret) => Ok((directory, Identity::from_secret(&secret.0))),
        Err(DataDirError::Unfinished(_)) => {
            let identity = Identity::generate();
            directory.store_identity(&IdentitySecret(*identity.secret()))?;
            Ok((directory, identity))
        }
        Err(error) => Err(error),
    }
}

impl ReplyMember {
    fn to_file(&self) -> Option<MeshFileMember> {
        Some(MeshFileMember {
            peer_id: PeerId::from_bytes(&self.peer).ok()?.to_string(),
            site_id: self.site,
            name: self.name.clone(),
            addresses: self.addresses.clone(),
        })
    }
}

/// This site as its configuration describes it, with every address at which others may reach it.
pub(crate) fn describe(config: &Config, identity: &Identity) -> anyhow::Result<SiteDescription> {
    let mut addresses = config.mesh.announce.clone();
    if addresses.is_empty() {
        addresses = own_addresses(config.mesh.listen).context("list the network interfaces")?;
    }
    Ok(SiteDescription {
        key: key_of(&identity.peer_id()),
        name: Name::filled(config.node.name.as_str()).context("node.name")?,
        zone: Name::filled(config.node.zone.as_str()).context("node.zone")?,
        addresses,
        weight: config.node.weight,
    })
}

/// Where `listen` can be reached: itself, or, when it is every interface, each of their addresses.
/// Loopback only when there is nothing else.
fn own_addresses(listen: SocketAddr) -> std::io::Result<Vec<SocketAddr>> {
    if !listen.ip().is_unspecified() {
        return Ok(vec![listen]);
    }
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()?
        .into_iter()
        .filter(|interface| !interface.is_link_local())
        .map(|interface| interface.ip())
        .filter(|ip| listen.is_ipv6() || ip.is_ipv4())
        .collect();
    if addresses.iter().any(|ip| !ip.is_loopback()) {
        addresses.retain(|ip| !ip.is_loopback());
    }
    addresses.sort_unstable();
    addresses.truncate(ADDRESSES_MAX);
    Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, listen.port())).collect())
}

fn signed_bytes(token: &PeerId, joiner: &SiteDescription) -> anyhow::Result<Vec<u8>> {
    let mut bytes = SIGNED_CONTEXT.to_vec();
    bytes.extend_from_slice(&token.to_bytes());
    bytes.extend_from_slice(&postcard::to_stdvec(joiner)?);
    Ok(bytes)
}

async fn ask_members(joining: &Joining) -> Result<MeshFile, JoinError> {
    let mut failures = Vec::new();
    let mut unavailable = None;
    for (peer, address) in joining.members() {
        match tokio::time::timeout(MEMBER_TIMEOUT, ask(joining, peer, address)).await {
            Ok(Ok(reply)) => match joining.admitted(&reply) {
                Err(error @ JoinError::Unavailable(_)) => unavailable = Some(error),
                Err(JoinError::Malformed(error)) => failures.push(format!("{address}: {error}")),
                decided => return decided,
            },
            Ok(Err(e)) => failures.push(format!("{address}: {e:#}")),
            Err(_) => failures.push(format!("{address}: no answer within {} s", MEMBER_TIMEOUT.as_secs())),
        }
    }
    Err(unavailable.unwrap_or_else(|| {
        JoinError::Malformed(format!(
            "no member of the mesh let this site in; nothing secret was sent\n  {}\n\
             Is the token from this mesh, unused and not expired? Is UDP open to these addresses?",
            failures.join("\n  ")
        ))
    }))
}

async fn ask(joining: &Joining, peer: PeerId, address: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let unspecified = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let endpoint = Endpoint::bind(EndpointConfig::new(
        joining.token_identity(),
        Membership::new(Clock::system()),
        Socket::Udp(unspecified.parse()?),
        Clock::system(),
    ))?;
    let reply = joining.ask(&endpoint, peer, address).await;
    endpoint.close().await;
    reply
}

/// Answers sites that hold a token, until `shutdown`.
pub(crate) async fn serve(mut incoming: Accepted, node: Node, shutdown: CancellationToken) {
    while let Some(Some(guest)) = shutdown.run_until_cancelled(incoming.recv()).await {
        let node = node.clone();
        maillage_host::spawn(async move {
            let token = guest.peer;
            match tokio::time::timeout(MEMBER_TIMEOUT, answer(&node, guest)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    node.metrics().rejected("join", "malformed");
                    tracing::warn!(%token, error = format!("{error:#}"), "join request failed");
                }
                Err(_) => node.metrics().rejected("join", "timeout"),
            }
        });
    }
}

async fn answer(node: &Node, guest: Incoming) -> anyhow::Result<()> {
    let Incoming { peer, connection, .. } = guest;
    let (mut writer, mut reader) = connection.accept_bi().await?;
    let request = frame::read(&mut reader, FRAME_MAX).await?.context("no request")?;
    let reply = admit(node, &peer, connection.remote_address().ip(), &request).await?;
    frame::write(&mut writer, &reply, FRAME_MAX).await?;
    writer.finish()?;
    // The reply is in flight until the joiner closes; closing first could drop it.
    connection.closed().await;
    Ok(())
}

/// Answers the bytes of a request by whoever holds the token's key.
///
/// # Errors
/// When the request is malformed.
pub(crate) async fn admit(node: &Node, token: &PeerId, seen_at: IpAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (request, joiner, rest) = split_software(request)?;
    let wish = if rest.is_empty() { Wish::default() } else { postcard::take_from_bytes(rest)?.0 };
    let reply = decide(node, token, seen_at, request, &joiner, wish).await?;
    // Read after the decision: nobody is told of an older format than the one that it was admitted at.
    with_software(&reply, &Software::of_format(node.read(|view| view.format())?))
}

async fn decide(
    node: &Node,
    token: &PeerId,
    seen_at: IpAddr,
    request: JoinRequest,
    software: &Software,
    wish: Wish,
) -> anyhow::Result<JoinReply> {
    let refused = |why: &str| Ok(JoinReply::Refused { why: why.to_owned() });
    if request.mesh != node.mesh_id() {
        node.metrics().rejected("join", "other-mesh");
        return refused("the token is for another mesh");
    }
    let joiner_peer = peer_of(&request.joiner.key).context("joiner's identity")?;
    let signed = signed_bytes(token, &request.joiner)?;
    if Identity::verify(&joiner_peer, &signed, &request.signature).is_err() {
        node.metrics().rejected("join", "signature");
        return refused("the request is not signed by the key that wants to join");
    }
    if let Err(error) = node.linearize().await {
        return Ok(JoinReply::Unavailable { why: error.to_string() });
    }
    let mesh = Software::of_format(node.read(|view| view.format())?);
    if mesh.format > software.format && !wish.gateway {
        node.metrics().rejected("join", "format");
        return refused(&too_old(&mesh, software));
    }
    let mut joiner = request.joiner;
    // Behind a translated address a site does not know how others reach it: we see it now.
    if let Some(port) = joiner.addresses.first().map(SocketAddr::port) {
        let seen = SocketAddr::new(seen_at, port);
        if !joiner.addresses.contains(&seen) && joiner.addresses.len() < ADDRESSES_MAX {
            joiner.addresses.push(seen);
        }
    }
    let token = key_of(token);
    let command = if wish.gateway { Command::JoinGateway { token, joiner } } else { Command::Join { token, joiner } };
    match node.command(CommandId::random(), Name::default(), command).await {
        Ok(Outcome::Joined { site }) => {
            tracing::info!(site = site.0, "site joined");
            Ok(JoinReply::Joined {
                site: site.0,
                mesh_name: node.mesh_name(),
                epoch: node.epoch(),
                members: members(node)?,
            })
        }
        Ok(Outcome::Refused(refusal)) => {
            let reason = match refusal {
                Refusal::TokenUsed => "token-used",
                Refusal::TokenExpired => "token-expired",
                Refusal::TokenRevoked => "token-revoked",
                Refusal::TokenUnknown => "token-unknown",
                Refusal::TokenRole { .. } => "token-role",
                _ => "refused",
            };
            node.metrics().rejected("join", reason);
            refused(&refusal.to_string())
        }
        Ok(other) => bail!("unexpected outcome {other:?}"),
        Err(error) => Ok(JoinReply::Unavailable { why: error.to_string() }),
    }
}

/// Whom a new site may dial: not the gateways.
fn members(node: &Node) -> anyhow::Result<Vec<ReplyMember>> {
    let sites = node.read(|view| view.sites())?;
    let members = sites.into_iter().filter(|site| !site.is_gateway()).map(|site| ReplyMember {
        site: site.id.0,
        name: site.description.name.to_string(),
        peer: site.description.key.as_bytes().to_vec(),
        addresses: site.description.addresses,
    });
    Ok(members.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_of_the_first_format_says_nothing_and_reads_nothing_of_formats() {
        let refusal = JoinReply::Refused { why: "no".to_owned() };
        let first = postcard::to_stdvec(&refusal).unwrap();
        let (_, said, _): (JoinReply, _, _) = split_software(&first).unwrap();
        assert_eq!(said.format, 1);
        let now = with_software(&refusal, &Software::of_format(7)).unwrap();
        let read_by_the_first: JoinReply = postcard::from_bytes(&now).unwrap();
        assert!(matches!(read_by_the_first, JoinReply::Refused { why } if why == "no"));
        let later = [now, b"what a later version adds".to_vec()].concat();
        assert_eq!(split_software::<JoinReply>(&later).unwrap().1, Software::of_format(7));
        assert!(split_software::<JoinReply>(&[first, vec![7]].concat()).is_err(), "half of it is malformed");
    }

    #[test]
    fn a_site_does_not_enter_a_mesh_whose_format_it_does_not_understand_whoever_lets_it_in() {
        let joining = |format_max| Joining {
            token: Token::new([1; 32], &Identity::generate(), &[]),
            site_name: "lyon".to_owned(),
            request: Vec::new(),
            format_max,
            role: Role::Centre,
        };
        let joined = JoinReply::Joined { site: 9, mesh_name: "test".to_owned(), epoch: 1, members: Vec::new() };
        let reply = with_software(&joined, &Software::of_format(2)).unwrap();
        assert_eq!(joining(2).admitted(&reply).unwrap().site_id, 9);
        let error = joining(1).admitted(&reply).unwrap_err().to_string();
        assert!(error.contains("runs at format 2") && error.contains("no more than format 1"), "{error}");
    }
}
