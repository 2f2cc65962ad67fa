//! The protocols that share the port, told apart by ALPN (RFC 7301).

use std::fmt;

/// What a connection is for, as negotiated in its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alpn {
    /// The libp2p swarm: presence and discovery.
    Libp2p,
    /// Raft messages between members.
    Raft,
    /// Chunks and manifests between members.
    Chunk,
    /// The one protocol that a holder of a join token may speak.
    Join,
    /// A hospital's gateway and the centres that it sends to.
    Gate,
}

impl Alpn {
    /// Every protocol, in the order of preference of a server.
    pub const ALL: [Self; 5] = [Self::Libp2p, Self::Raft, Self::Chunk, Self::Join, Self::Gate];

    /// The protocol's name on the wire.
    pub const fn as_bytes(self) -> &'static [u8] {
        self.as_str().as_bytes()
    }

    /// The protocol's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            // The name that the libp2p QUIC and TLS specifications give.
            Self::Libp2p => "libp2p",
            Self::Raft => "mesh-raft/1",
            Self::Chunk => "mesh-chunk/1",
            Self::Join => "mesh-join/1",
            Self::Gate => "mesh-gate/1",
        }
    }

    /// The protocol of that name, if it is one of ours.
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_bytes() == name)
    }

    /// Whether the accepting side greets a dialler that it admits. libp2p's own peers expect no such
    /// stream.
    pub(crate) const fn greets(self) -> bool {
        !matches!(self, Self::Libp2p)
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A plane on which members keep one pooled connection in each direction. Raft has its own, so that
/// bulk bytes never stand before a heartbeat in a send buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plane {
    /// Raft messages.
    Raft,
    /// Chunks and manifests.
    Chunk,
    /// A gateway's images to a centre, and its reports back.
    Gate,
}

impl Plane {
    /// The protocol spoken on this plane.
    pub const fn alpn(self) -> Alpn {
        match self {
            Self::Raft => Alpn::Raft,
            Self::Chunk => Alpn::Chunk,
            Self::Gate => Alpn::Gate,
        }
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.alpn().fmt(f)
    }
}
