//! Small files that are read whole, and tell whether they are: a magic, if any, a version, the BLAKE3 hash of the rest, and a
//! body in postcard.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Of the body's hash.
pub(crate) const HASH_LEN: usize = 32;

/// Why bytes are no such file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// Not our bytes, or not all of them.
    #[error("the file is damaged")]
    Damaged,
    /// Of another version.
    #[error("the file is of version {0}")]
    Version(u8),
}

/// The bytes of a file.
///
/// # Errors
/// When `body` cannot be encoded.
pub(crate) fn encode(magic: &[u8], version: u8, body: &impl Serialize) -> postcard::Result<Bytes> {
    let body = postcard::to_stdvec(body)?;
    Ok([magic, &[version], blake3::hash(&body).as_bytes(), &body].concat().into())
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`Unreadable`].
pub(crate) fn decode<T: DeserializeOwned>(magic: &[u8], version: u8, bytes: &[u8]) -> Result<T, Unreadable> {
    let rest = bytes.strip_prefix(magic).ok_or(Unreadable::Damaged)?;
    let (found, rest) = rest.split_first().ok_or(Unreadable::Damaged)?;
    if *found != version {
        return Err(Unreadable::Version(*found));
    }
    let (hash, body) = rest.split_at_checked(HASH_LEN).ok_or(Unreadable::Damaged)?;
    if blake3::hash(body).as_bytes() != hash {
        return Err(Unreadable::Damaged);
    }
    postcard::from_bytes(body).map_err(|_| Unreadable::Damaged)
}
