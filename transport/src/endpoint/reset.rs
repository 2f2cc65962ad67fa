//! Stateless resets that outlive the process: how peers learn that a node died and came back.
//!
//! A node that restarts knows nothing of its old connections. What peers still send on them it answers
//! by a reset, and they believe it if it carries the token that the old process gave them (RFC 9000
//! section 10.3). So what makes the tokens, and what tells this node's connection ids from anybody's,
//! comes from the node's key and not from each process's randomness, as QUIC implementations have it by
//! default. Without it peers keep a dead link until the idle time-out, and a leader writes into the
//! void for so long.

use std::sync::Arc;

use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;

use crate::Identity;

/// What the derived key is for (BLAKE3's `derive_key` mode asks for a context that nothing else has).
const CONTEXT: &str = "maillage 2026 stateless resets of a node's quic endpoint v1";
/// Bytes of the key of the tokens, and of the key of the connection ids.
const DERIVED: usize = TOKEN_KEY + size_of::<u64>();
/// As long as the digest (RFC 2104 section 3).
const TOKEN_KEY: usize = ring::digest::SHA256_OUTPUT_LEN;

/// An endpoint whose resets are those of every process of this node.
///
/// Connection ids are signed with a key of their own by a weak hash, which only spares strangers'
/// packets an answer: whoever recovers that key learns nothing of the other.
pub(super) fn endpoint_config(identity: &Identity) -> quinn::EndpointConfig {
    let mut derived = zeroize::Zeroizing::new([0; DERIVED]);
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(identity.secret().as_slice());
    hasher.finalize_xof().fill(derived.as_mut_slice());
    let (token_key, id_key) = derived.split_at(TOKEN_KEY);
    let id_key = id_key.iter().fold(0, |key, byte| (key << 8) | u64::from(*byte));
    let mut config = quinn::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, token_key)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
}
