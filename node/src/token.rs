//! Join tokens: what a sysadmin carries from one machine to the next.
//!
//! A token holds a key pair of its own, made for one join. The mesh knows only the public half; the
//! joiner authenticates *to* the mesh with it inside the TLS handshake, so no secret is ever sent;
//! and it names the members by their identity, so the mesh is authenticated *before* anything is
//! said. A token for another mesh, or a false mesh asking for one, fails in that handshake.

use std::net::SocketAddr;

use data_encoding::BASE64URL_NOPAD;
use maillage_transport::{Identity, PeerId};
use serde::{Deserialize, Serialize};

/// How a token begins, version included.
const PREFIX: &str = "maillage1.";
/// Members named in a token. Any one suffices; a few survive a member that is down.
const MEMBERS_MAX: usize = 5;

/// A token, taken apart.
#[derive(Serialize, Deserialize)]
pub(crate) struct Token {
    /// The mesh's identity.
    pub(crate) mesh: [u8; 32],
    /// The secret half of the token's key.
    secret: [u8; 32],
    /// Members to dial: identity and addresses.
    members: Vec<(Vec<u8>, Vec<SocketAddr>)>,
}

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// Not of this form.
    #[error("this is not a join token: it should begin with {PREFIX:?}")]
    Form,
    /// Cut or mistyped.
    #[error("the token is damaged: copy it again, whole")]
    Damaged,
}

impl Token {
    /// A token for `mesh` that names `members`.
    pub(crate) fn new(mesh: [u8; 32], key: &Identity, members: &[(PeerId, Vec<SocketAddr>)]) -> Self {
        let members = members.iter().take(MEMBERS_MAX);
        Self {
            mesh,
            secret: *key.secret(),
            members: members.map(|(peer, addresses)| (peer.to_bytes(), addresses.clone())).collect(),
        }
    }

    /// The key that the joiner shows.
    pub(crate) fn identity(&self) -> Identity {
        Identity::from_secret(&self.secret)
    }

    /// Members to dial.
    pub(crate) fn members(&self) -> Vec<(PeerId, SocketAddr)> {
        let members = self.members.iter();
        members
            .filter_map(|(peer, addresses)| Some((PeerId::from_bytes(peer).ok()?, addresses)))
            .flat_map(|(peer, addresses)| addresses.iter().map(move |address| (peer, *address)))
            .collect()
    }

    /// The text to carry. It ends in a checksum, so that a cut copy is told from a refused token.
    pub(crate) fn encode(&self) -> String {
        #[expect(clippy::expect_used, reason = "the type has no sequence of unknown length")]
        let mut bytes = postcard::to_stdvec(self).expect("a token encodes");
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..4]);
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads what [`Token::encode`] wrote.
    ///
    /// # Errors
    /// [`TokenError`].
    pub(crate) fn decode(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Form)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (body, check) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if blake3::hash(body).as_bytes()[..4] != *check {
            return Err(TokenError::Damaged);
        }
        postcard::from_bytes(body).map_err(|_| TokenError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_whole_and_a_damaged_one_is_told_apart() {
        let (key, member) = (Identity::generate(), Identity::generate());
        let address = SocketAddr::from(([192, 0, 2, 1], 7400));
        let token = Token::new([7; 32], &key, &[(member.peer_id(), vec![address])]);
        let text = token.encode();
        let again = Token::decode(&format!(" {text}\n")).expect("decode");
        assert_eq!(again.mesh, [7; 32]);
        assert_eq!(again.identity().peer_id(), key.peer_id());
        assert_eq!(again.members(), [(member.peer_id(), address)]);
        assert_eq!(Token::decode(&text[..text.len() - 3]).err(), Some(TokenError::Damaged));
        assert_eq!(Token::decode("K10deadbeef").err(), Some(TokenError::Form));
    }
}
