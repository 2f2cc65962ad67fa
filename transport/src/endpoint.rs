//! The one quinn endpoint of a node: accepts by protocol, keeps the links to other members, and closes
//! what the membership no longer allows.
//!
//! Tasks: one accepts, one follows the membership, one per connection notes its end, one per dial. They
//! end when the endpoint is closed, explicitly or with its last clone. The endpoint keeps a handle of
//! every connection, so that a removed peer is cut off: an accepted connection ends when somebody
//! closes it or the peer is gone for the idle time-out, never because a clone of it was dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use maillage_host::Clock;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::tls::{SERVER_NAME, Tls, TlsError};
use crate::{Alpn, Congestion, Identity, Membership, Plane, congestion};

mod accept;
mod accepted;
mod admission;
mod close;
mod links;
mod registry;
mod rejections;
mod reset;
mod runtime;
mod socket;
#[cfg(test)]
mod tests;

pub use accepted::{Accepted, Incoming};
pub use links::LinkError;
pub use registry::{ConnectionInfo, Direction};
pub use rejections::Rejection;
pub use socket::Socket;

/// What the accepting side writes on a stream of its own once it has admitted the dialler: the version
/// of that custom.
const GREETING: [u8; 1] = [1];

/// Three quarters of a second keeps a path through address translations open and lets the idle time-out
/// tell a dead peer from a lost packet four times over.
const KEEP_ALIVE: Duration = Duration::from_millis(750);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Flow control for 8 chunks of 1 MiB in flight at 1 Gb/s over 40 ms, with room for the reader's pauses.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const SEND_WINDOW_BYTES: u64 = 32 << 20;

/// Streams that a peer may have open towards us, each way.
const STREAMS_MAX: u32 = 256;

/// How long peers are given to hear that the port closes: a few round trips.
const FAREWELL: Duration = Duration::from_secs(1);

/// Datagrams buffered before a handshake is accepted. quinn's own 100 MiB would be a stranger's to fill.
const INCOMING_MAX: usize = 256;
const INCOMING_BUFFER_BYTES: u64 = 64 << 10;
const INCOMING_BUFFER_TOTAL_BYTES: u64 = 8 << 20;

/// What an endpoint needs.
#[derive(Debug)]
pub struct EndpointConfig {
    /// The node's key.
    pub identity: Identity,
    /// Who may talk to it.
    pub membership: Membership,
    /// Where its datagrams go.
    pub socket: Socket,
    /// Judges certificates' validity and tokens' age.
    pub clock: Clock,
    /// Time for a dial to a peer, over all its addresses, until the peer has admitted us.
    pub dial_deadline: Duration,
    /// By what images are sent.
    pub congestion: Congestion,
}

impl EndpointConfig {
    /// A configuration with the usual deadline: 3 s, as long as a silent peer is believed alive; and the
    /// usual congestion control.
    pub fn new(identity: Identity, membership: Membership, socket: Socket, clock: Clock) -> Self {
        Self { identity, membership, socket, clock, dial_deadline: IDLE_TIMEOUT, congestion: Congestion::default() }
    }
}

/// Why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be opened or bound.
    #[error("udp socket could not be opened: {0}")]
    Socket(#[source] io::Error),
    /// The TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why dialling one address failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// The address cannot be dialled, or the endpoint is closed.
    #[error("address cannot be dialled: {0}")]
    Local(#[from] quinn::ConnectError),
    /// Nobody answered in time.
    #[error("no answer in time")]
    Timeout,
    /// Somebody answered who is not the peer, or speaks no common protocol.
    #[error("handshake failed: {0}")]
    Handshake(#[source] quinn::ConnectionError),
    /// The peer answered and did not admit us: we are no member there, or nobody serves the protocol.
    #[error("peer refused us: {0}")]
    Refused(#[source] quinn::ConnectionError),
    /// The peer greeted us in another way than this version does.
    #[error("peer greets in an unknown version")]
    UnknownGreeting,
    /// The peer was removed from the members while we dialled.
    #[error("peer is no member")]
    NotAMember,
    /// The TLS could not be set up.
    #[error("tls could not be set up: {0}")]
    Tls(Arc<TlsError>),
}

/// The port of a node. Clones share it; the last one closes it.
#[derive(Clone)]
pub struct Endpoint(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the endpoint's tasks share.
struct Shared {
    quinn: quinn::Endpoint,
    identity: Identity,
    membership: Membership,
    tls: Tls,
    dial_deadline: Duration,
    admission: admission::Admission,
    registry: registry::Registry,
    links: links::Links,
    rejections: rejections::Rejections,
    routes: Mutex<BTreeMap<Alpn, mpsc::Sender<Incoming>>>,
    stopped: tokio_util::sync::CancellationToken,
}

impl Endpoint {
    /// Opens the port and starts to accept.
    ///
    /// # Errors
    /// When the socket cannot be bound, or the TLS not be set up.
    pub fn bind(config: EndpointConfig) -> Result<Self, BindError> {
        let EndpointConfig { identity, membership, socket, clock, dial_deadline, congestion } = config;
        let tls = Tls::new(&identity, membership.clone(), clock, Arc::new(transport_config(congestion)))?;
        let mut server = tls.server()?;
        server.max_incoming(INCOMING_MAX);
        server.incoming_buffer_size(INCOMING_BUFFER_BYTES);
        server.incoming_buffer_size_total(INCOMING_BUFFER_TOTAL_BYTES);
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            reset::endpoint_config(&identity),
            Some(server.clone()),
            socket.open().map_err(BindError::Socket)?,
            Arc::new(runtime::MeshRuntime),
        )
        .map_err(BindError::Socket)?;
        let shared = Arc::new(Shared {
            quinn,
            identity,
            membership,
            tls,
            dial_deadline,
            admission: admission::Admission::default(),
            registry: registry::Registry::default(),
            links: links::Links::default(),
            rejections: rejections::Rejections::default(),
            routes: Mutex::default(),
            stopped: tokio_util::sync::CancellationToken::new(),
        });
        drop(maillage_host::spawn(accept::run(Arc::clone(&shared), server)));
        drop(maillage_host::spawn(follow_membership(Arc::clone(&shared))));
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// The connections that peers open for this protocol from now on; who asked before gets no more.
    /// While nobody asks, and while 64 wait unread, such connections are closed.
    pub fn accept(&self, alpn: Alpn) -> Accepted {
        let (tx, rx) = Accepted::new();
        self.0.0.routes().insert(alpn, tx);
        rx
    }

    /// The link to a member on a plane: the open one, or a new one over any of the peer's addresses.
    /// The peer has admitted us when this returns.
    ///
    /// # Errors
    /// See [`LinkError`]; within the dial deadline.
    pub async fn link(&self, peer: PeerId, plane: Plane) -> Result<quinn::Connection, LinkError> {
        links::link(&self.0.0, peer, plane).await
    }

    /// Dials one address for a connection of the caller's own, expecting exactly this peer. Except for
    /// [`Alpn::Libp2p`], whose peers give no sign of it, the peer has admitted us when this returns.
    ///
    /// # Errors
    /// See [`DialError`]; within the dial deadline.
    pub async fn dial(&self, peer: PeerId, address: SocketAddr, alpn: Alpn) -> Result<quinn::Connection, DialError> {
        let shared = &self.0.0;
        let connection = timeout(shared.dial_deadline, shared.connect(peer, address, alpn))
            .await
            .map_err(|_| DialError::Timeout)??;
        if shared.register(peer, alpn, Direction::Outbound, &connection) {
            Ok(connection)
        } else {
            connection.close(close::REMOVED.into(), close::REMOVED.reason());
            Err(DialError::NotAMember)
        }
    }

    /// The address of the socket.
    ///
    /// # Errors
    /// When the socket does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.0.quinn.local_addr()
    }

    /// The node's own id.
    pub fn peer_id(&self) -> PeerId {
        self.0.0.identity.peer_id()
    }

    /// The node's identity.
    pub fn identity(&self) -> &Identity {
        &self.0.0.identity
    }

    /// Who may talk to this node.
    pub fn membership(&self) -> &Membership {
        &self.0.0.membership
    }

    /// The open connections.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.0.0.registry.list()
    }

    /// What was turned away so far, by reason.
    pub fn rejections(&self) -> Vec<(Rejection, u64)> {
        self.0.0.rejections.snapshot()
    }

    /// Closes every connection and the port, and waits until the peers have been told.
    pub async fn close(&self) {
        self.0.0.close();
        // A peer that is gone notices by itself.
        let _ = timeout(FAREWELL, self.0.0.quinn.wait_idle()).await;
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("peer", &self.peer_id())
            .field("address", &self.local_addr().ok())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Connects and, where the protocol has it, waits for the greeting. Dropping the future, or the only
    /// handle of its connection, closes it.
    async fn connect(&self, peer: PeerId, address: SocketAddr, alpn: Alpn) -> Result<quinn::Connection, DialError> {
        let config = self.tls.client(peer, alpn).map_err(|error| DialError::Tls(Arc::new(error)))?;
        let connecting = self.quinn.connect_with(config, address, SERVER_NAME)?;
        let connection = connecting.await.map_err(|error| match error {
            quinn::ConnectionError::TimedOut => DialError::Timeout,
            other => DialError::Handshake(other),
        })?;
        if alpn == Alpn::Chunk {
            congestion::carries_images(connection.congestion_state());
        }
        if alpn.greets() {
            let mut stream = connection.accept_uni().await.map_err(DialError::Refused)?;
            let mut greeting = [0; GREETING.len()];
            match stream.read_exact(&mut greeting).await {
                Ok(()) if greeting == GREETING => {}
                Err(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error))) => {
                    return Err(DialError::Refused(error));
                }
                Ok(()) | Err(_) => return Err(DialError::UnknownGreeting),
            }
        }
        Ok(connection)
    }

    /// Notes a connection until it is closed. False when the membership does not allow it (any more);
    /// the connection is noted nonetheless, and the caller's to close.
    fn register(
        self: &Arc<Self>,
        peer: PeerId,
        alpn: Alpn,
        direction: Direction,
        connection: &quinn::Connection,
    ) -> bool {
        let (id, pushed_out) = self.registry.insert(peer, alpn, direction, connection.clone());
        for old in pushed_out {
            self.rejections.count(Rejection::TooManyConnections);
            old.close(close::REPLACED.into(), close::REPLACED.reason());
        }
        let (shared, watched) = (Arc::downgrade(self), connection.clone());
        drop(maillage_host::spawn(async move {
            watched.closed().await;
            if let Some(shared) = shared.upgrade() {
                shared.registry.remove(id);
            }
        }));
        match (direction, alpn) {
            (Direction::Inbound, alpn) => self.membership.admits(&peer, alpn),
            (Direction::Outbound, Alpn::Join) => true,
            (Direction::Outbound, _) => self.membership.is_member(&peer),
        }
    }

    fn route(&self, alpn: Alpn) -> Option<mpsc::Sender<Incoming>> {
        self.routes().get(&alpn).cloned()
    }

    fn routes(&self) -> MutexGuard<'_, BTreeMap<Alpn, mpsc::Sender<Incoming>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.stopped.cancel();
        self.quinn.close(close::SHUTDOWN.into(), close::SHUTDOWN.reason());
        self.routes().clear();
    }
}

/// Closes the connections of peers that cease to be members.
async fn follow_membership(shared: Arc<Shared>) {
    let mut changes = shared.membership.changes();
    loop {
        tokio::select! {
            () = shared.stopped.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        for (peer, alpn, connection) in shared.registry.disallowed(&shared.membership) {
            tracing::info!(%peer, protocol = %alpn, "closing the connection of a peer that is no member");
            connection.close(close::REMOVED.into(), close::REMOVED.reason());
        }
        shared.links.retain(|peer| shared.membership.is_member(peer));
    }
}

fn transport_config(congestion: Congestion) -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config.keep_alive_interval(Some(KEEP_ALIVE));
    // The conversion fails above 2^62 ms only.
    config.max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
    config.stream_receive_window(STREAM_WINDOW_BYTES.into());
    config.receive_window(CONNECTION_WINDOW_BYTES.into());
    config.send_window(SEND_WINDOW_BYTES);
    config.max_concurrent_bidi_streams(STREAMS_MAX.into());
    config.max_concurrent_uni_streams(STREAMS_MAX.into());
    config.datagram_receive_buffer_size(None);
    config.congestion_controller_factory(Arc::new(congestion));
    config
}
