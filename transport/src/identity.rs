//! A node's identity: one ed25519 key, one [`PeerId`] on every plane.
//!
//! A `PeerId` of an ed25519 key holds the key itself (libp2p peer-id specification: keys of at most
//! 42 bytes are inlined by the identity multihash), so a signature is checked with the id alone.

use std::fmt;

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use zeroize::Zeroizing;

/// Multihash code of the identity function, by which a peer id inlines its key.
const MULTIHASH_IDENTITY: u64 = 0;

/// One ed25519 key pair.
#[derive(Clone)]
pub struct Identity(ed25519::Keypair);

/// Why a peer id names no key that this mesh can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The id is a digest, or of another kind of key.
    #[error("peer id does not hold an ed25519 key")]
    NotEd25519,
    /// The signature is not this key's over this message.
    #[error("signature does not match")]
    BadSignature,
}

impl Identity {
    /// A new key from the system's randomness.
    pub fn generate() -> Self {
        Self(ed25519::Keypair::generate())
    }

    /// The key whose secret is these 32 bytes (RFC 8032 section 5.1.5); every value is a valid secret.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        let copy = Zeroizing::new(*secret);
        let secret = ed25519::SecretKey::try_from_bytes(ZeroizedSlice(copy));
        #[expect(clippy::expect_used, reason = "only a wrong length fails, and the type fixes the length")]
        let secret = secret.expect("32 bytes are an ed25519 secret");
        Self(secret.into())
    }

    /// The secret, wiped from memory when dropped.
    pub fn secret(&self) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(self.0.secret().as_ref());
        out
    }

    /// The id by which every plane knows this key.
    pub fn peer_id(&self) -> PeerId {
        PublicKey::from(self.0.public()).to_peer_id()
    }

    /// The ed25519 signature, 64 bytes, of `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message)
    }

    /// Checks that `signature` is by the key of `peer` over `message`.
    ///
    /// # Errors
    /// [`IdentityError::NotEd25519`] when the id holds no such key; [`IdentityError::BadSignature`].
    pub fn verify(peer: &PeerId, message: &[u8], signature: &[u8]) -> Result<(), IdentityError> {
        if public_key(peer)?.verify(message, signature) { Ok(()) } else { Err(IdentityError::BadSignature) }
    }

    /// The public key, 32 bytes.
    pub fn public_key(&self) -> [u8; 32] {
        self.0.public().to_bytes()
    }

    pub(crate) fn keypair(&self) -> Keypair {
        self.0.clone().into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.peer_id()).finish()
    }
}

/// The key that an ed25519 peer id holds.
fn public_key(peer: &PeerId) -> Result<ed25519::PublicKey, IdentityError> {
    let multihash = peer.as_ref();
    if multihash.code() != MULTIHASH_IDENTITY {
        return Err(IdentityError::NotEd25519);
    }
    PublicKey::try_decode_protobuf(multihash.digest())
        .ok()
        .and_then(|key| key.try_into_ed25519().ok())
        .ok_or(IdentityError::NotEd25519)
}

/// Lets libp2p wipe its copy of the secret in place.
struct ZeroizedSlice(Zeroizing<[u8; 32]>);

impl AsMut<[u8]> for ZeroizedSlice {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_gives_back_the_same_identity() {
        let identity = Identity::generate();
        let again = Identity::from_secret(&identity.secret());
        assert_eq!(again.peer_id(), identity.peer_id());
        assert_eq!(*again.secret(), *identity.secret());
    }

    #[test]
    fn a_signature_is_checked_by_the_peer_id_alone() {
        let (identity, other) = (Identity::generate(), Identity::generate());
        let signature = identity.sign(b"message");
        assert_eq!(Identity::verify(&identity.peer_id(), b"message", &signature), Ok(()));
        assert_eq!(Identity::verify(&identity.peer_id(), b"another", &signature), Err(IdentityError::BadSignature));
        assert_eq!(Identity::verify(&other.peer_id(), b"message", &signature), Err(IdentityError::BadSignature));
        assert_eq!(Identity::verify(&identity.peer_id(), b"message", b"short"), Err(IdentityError::BadSignature));
    }

    #[test]
    fn a_hashed_peer_id_holds_no_key() {
        let hashed: PeerId = "QmZcrvr3r4S3QvwFdae3c2EWTfo792Y14UpzCZurhmiWeX".parse().expect("a peer id");
        assert_eq!(Identity::verify(&hashed, b"", b""), Err(IdentityError::NotEd25519));
    }

    #[test]
    fn debug_shows_no_secret() {
        let identity = Identity::from_secret(&[0x5a; 32]);
        assert!(!format!("{identity:?}").contains("90, 90"));
    }
}
