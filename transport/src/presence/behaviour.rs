//! What the swarm speaks: identify, ping, gossip of presence, and who may.

use std::collections::HashSet;
use std::time::Duration;

use libp2p::gossipsub::{self, IdentTopic, WhitelistSubscriptionFilter};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, identify, mdns, ping};
use libp2p_allow_block_list::AllowedPeers;
use libp2p_connection_limits::ConnectionLimits;

use super::{PAYLOAD_LEN_MAX, PresenceConfig, PresenceError};
use crate::Identity;

/// A payload with its author, signature, topic and framing.
const MESSAGE_LEN_MAX: usize = PAYLOAD_LEN_MAX + 1024;

/// How often round trips are measured.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a network is asked for members.
const MDNS_INTERVAL: Duration = Duration::from_secs(30);

/// Two swarms that dial each other at once make two; a restart leaves one behind for a while.
const CONNECTIONS_PER_PEER_MAX: u32 = 4;

/// Dials and handshakes under way in the swarm; the endpoint bounds them as well.
const PENDING_MAX: u32 = 64;

/// Versions of what is gossiped, part of the topic's name.
const TOPIC_VERSION: u32 = 1;

pub(super) type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, WhitelistSubscriptionFilter>;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    // First, so that who is no member is refused before anything else learns of it.
    pub(super) allow: libp2p_allow_block_list::Behaviour<AllowedPeers>,
    pub(super) limits: libp2p_connection_limits::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) gossip: Gossip,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

pub(super) fn topic(config: &PresenceConfig) -> IdentTopic {
    IdentTopic::new(format!("maillage/presence/{TOPIC_VERSION}/{}", config.mesh))
}

impl Behaviour {
    pub(super) fn new(identity: &Identity, config: &PresenceConfig) -> Result<Self, PresenceError> {
        let identify = identify::Config::new("maillage/1".to_owned(), identity.keypair().public())
            .with_agent_version(config.agent.clone());
        let limits = ConnectionLimits::default()
            .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_pending_outgoing(Some(PENDING_MAX));
        let ping = ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT);
        Ok(Self {
            allow: libp2p_allow_block_list::Behaviour::default(),
            limits: libp2p_connection_limits::Behaviour::new(limits),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            gossip: gossip(identity, config)?,
            mdns: mdns(identity.peer_id(), config)?.into(),
        })
    }
}

fn gossip(identity: &Identity, config: &PresenceConfig) -> Result<Gossip, PresenceError> {
    let topic = topic(config);
    let settings = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        // Nothing is passed on before it was found in order.
        .validate_messages()
        .max_transmit_size(MESSAGE_LEN_MAX)
        // The own payload goes straight to every neighbour: in a mesh of tens that is each member.
        .flood_publish(true)
        .build()
        .map_err(|error| PresenceError::Gossip(error.to_string()))?;
    let authenticity = gossipsub::MessageAuthenticity::Signed(identity.keypair());
    let filter = WhitelistSubscriptionFilter(HashSet::from([topic.hash()]));
    let mut gossip = Gossip::new_with_subscription_filter(authenticity, settings, filter)
        .map_err(|error| PresenceError::Gossip(error.to_owned()))?;
    gossip.subscribe(&topic).map_err(|error| PresenceError::Gossip(error.to_string()))?;
    Ok(gossip)
}

fn mdns(peer: PeerId, config: &PresenceConfig) -> Result<Option<mdns::tokio::Behaviour>, PresenceError> {
    if !config.mdns {
        return Ok(None);
    }
    let settings = mdns::Config { query_interval: MDNS_INTERVAL, ..mdns::Config::default() };
    mdns::tokio::Behaviour::new(settings, peer).map(Some).map_err(PresenceError::Mdns)
}
