//! Presence: a libp2p swarm over the node's port, by which members find each other, measure their
//! round trips and tell each other a little about themselves every two seconds.
//!
//! Nothing here is believed further than it goes: presence decides no membership, no claim and no
//! placement. Payloads are signed by their author, of members only, at most 4 KiB, in rising order, and
//! at a bounded rate; what is else is counted as noise and changes nothing. No relay, no DHT: members
//! and their addresses come from the membership.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{mpsc, watch};

use crate::Endpoint;

mod behaviour;
mod inbox;
mod multiaddr;
mod muxer;
mod peers;
mod run;
#[cfg(test)]
mod tests;
mod transport;

/// The longest payload, in bytes: presence is a summary, and goes to every member from every member.
pub const PAYLOAD_LEN_MAX: usize = 4096;

/// Events that wait for the node. Beyond it the newest measurements are dropped; who is connected is not.
const EVENTS_QUEUE: usize = 256;

/// How a node takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceConfig {
    /// The mesh's name: members of another hear nothing of this one.
    pub mesh: String,
    /// Name and version of the software, told to members.
    pub agent: String,
    /// Time between two payloads; 2 s.
    pub interval: Duration,
    /// Whether to look for members on the local network by multicast DNS (RFC 6762). Off by default:
    /// it tells everybody on the network that a node is here.
    pub mdns: bool,
}

impl PresenceConfig {
    /// The usual settings.
    pub fn new(mesh: impl Into<String>) -> Self {
        Self {
            mesh: mesh.into(),
            agent: concat!("maillage/", env!("CARGO_PKG_VERSION")).to_owned(),
            interval: Duration::from_secs(2),
            mdns: false,
        }
    }
}

/// What is learned of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceEvent {
    /// The member is connected: it has answered.
    Connected {
        /// The member.
        peer: PeerId,
    },
    /// The last connection to the member ended.
    Disconnected {
        /// The member.
        peer: PeerId,
    },
    /// The round trip time to a member was measured.
    Rtt {
        /// The member.
        peer: PeerId,
        /// The time.
        rtt: Duration,
    },
    /// A member told of itself, directly or through others.
    Payload {
        /// The member that wrote it.
        peer: PeerId,
        /// What it wrote.
        payload: Bytes,
    },
    /// A member sees this node at an address.
    Observed {
        /// The member that says so.
        by: PeerId,
        /// The address.
        address: SocketAddr,
    },
    /// A member was found at an address that was not known; it is tried from now on.
    Discovered {
        /// The member.
        peer: PeerId,
        /// The address.
        address: SocketAddr,
    },
}

/// Why presence could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// A setting of gossip was refused.
    #[error("gossip refused its settings: {0}")]
    Gossip(String),
    /// Multicast DNS could not be started.
    #[error("multicast dns could not be started: {0}")]
    Mdns(#[source] io::Error),
    /// The swarm could not listen on the port.
    #[error("swarm cannot listen on the port: {0}")]
    Listen(#[source] io::Error),
}

/// The payload is longer than [`PAYLOAD_LEN_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("payload of {0} bytes is longer than {PAYLOAD_LEN_MAX}")]
pub struct PayloadTooLong(pub usize);

/// This node's part in presence. Dropping it ends the part, which holds the endpoint open until then.
#[derive(Debug)]
pub struct Presence {
    payload: watch::Sender<Bytes>,
}

impl Presence {
    /// Starts the swarm on the port of `endpoint`, whose [`crate::Alpn::Libp2p`] connections it takes.
    /// Dropping the receiver ends it as well.
    ///
    /// # Errors
    /// See [`PresenceError`].
    pub fn start(
        endpoint: &Endpoint,
        config: &PresenceConfig,
    ) -> Result<(Self, mpsc::Receiver<PresenceEvent>), PresenceError> {
        let (payload, published) = watch::channel(Bytes::new());
        let (events_tx, events) = mpsc::channel(EVENTS_QUEUE);
        let running = run::Running::new(endpoint, config, published, events_tx)?;
        drop(maillage_host::spawn(running.run()));
        Ok((Self { payload }, events))
    }

    /// Sets what this node tells of itself, from the next interval on until it is set again.
    ///
    /// # Errors
    /// [`PayloadTooLong`]; the former payload stays.
    pub fn publish(&self, payload: Bytes) -> Result<(), PayloadTooLong> {
        if payload.len() > PAYLOAD_LEN_MAX {
            return Err(PayloadTooLong(payload.len()));
        }
        self.payload.send_replace(payload);
        Ok(())
    }
}
