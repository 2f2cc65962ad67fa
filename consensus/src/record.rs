//! How records are persisted: one version byte, then postcard.
//!
//! A record's version is the mesh's format in which it got its last field. New fields stand at the end,
//! with a value that says "nothing known"; a mesh of an older format never sets them, and its records are
//! written without them, so that nodes of both versions keep the same bytes and read each other's
//! snapshots.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::machine::ApplyError;

/// A kind of record that the replicated state keeps.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// The newest version.
    const VERSION: u8;
    /// What it is, for errors.
    const WHAT: &'static str;

    /// The encoding of the fields that version 1 lacks, when nothing is known of them; none for a record
    /// that has had one version only.
    fn added() -> Option<Vec<u8>> {
        None
    }

    /// The bytes to keep in a mesh of `format`.
    fn encode(&self, format: u8) -> Vec<u8> {
        let mut bytes = encode(Self::VERSION, self);
        if let Some(added) = Self::added().filter(|added| format < Self::VERSION && bytes.ends_with(added)) {
            bytes.truncate(bytes.len() - added.len());
            bytes[0] = 1;
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, ApplyError> {
        let corrupt = |detail: String| ApplyError::Corrupt(format!("{} record{detail}", Self::WHAT));
        let read = |body: &[u8]| postcard::from_bytes(body).map_err(|e| corrupt(format!(": {e}")));
        let Some((&version, body)) = bytes.split_first() else { return Err(corrupt(" that is empty".to_owned())) };
        if version == Self::VERSION {
            return read(body);
        }
        match Self::added().filter(|_| version == 1) {
            Some(added) => read(&[body, &added].concat()),
            None => Err(corrupt(format!(" of version {version}"))),
        }
    }
}

/// `version`, then the postcard encoding of `value`.
///
/// # Panics
/// Never for the types of this crate: postcard fails only on sequences of unknown length, which
/// they do not have.
pub(crate) fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let buffer = vec![version];
    match postcard::to_extend(value, buffer) {
        Ok(bytes) => bytes,
        Err(e) => unreachable!("records have no sequence of unknown length: {e}"),
    }
}

/// The fields that a newer version added, as bytes.
pub(crate) fn fields<T: Serialize>(value: &T) -> Vec<u8> {
    encode(0, value).split_off(1)
}
