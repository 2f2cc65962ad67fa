//! Identity, links and verified bytes between the sites of a mesh.
//!
//! One node has one ed25519 key, one UDP port and one quinn endpoint, split by ALPN: `libp2p` goes to
//! a swarm ([`presence`]), `mesh-raft/1` and `mesh-chunk/1` are plain QUIC, `mesh-join/1` admits a site
//! that holds a token. Who may talk is decided by [`Membership`], inside the TLS handshake, on every
//! plane alike. Bytes are addressed by BLAKE3 and compared before anyone sees them ([`chunk`],
//! [`fetch`]).
//!
//! This crate knows no exam, no study and no Raft: it moves what it is given.

mod alpn;
mod certificate;
pub mod chunk;
mod congestion;
pub mod endpoint;
pub mod fetch;
pub mod frame;
mod identity;
mod membership;
pub mod placement;
pub mod presence;
mod tls;

#[cfg(test)]
mod testing;

pub use alpn::{Alpn, Plane};
pub use congestion::Congestion;
pub use endpoint::{Accepted, Endpoint, EndpointConfig, Incoming, LinkError, Socket};
pub use identity::{Identity, IdentityError};
pub use libp2p::PeerId;
pub use membership::Membership;
/// The QUIC implementation whose connections and streams this crate hands out.
pub use quinn;
