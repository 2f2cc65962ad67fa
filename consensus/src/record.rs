//! How records are persisted: one version byte, then postcard.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::machine::ApplyError;

/// A kind of record that the replicated state keeps.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// The version written. A change of fields raises it and keeps a reader of the old one.
    const VERSION: u8;
    /// What it is, for errors.
    const WHAT: &'static str;

    fn encode(&self) -> Vec<u8> {
        encode(Self::VERSION, self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, ApplyError> {
        match bytes.split_first() {
            Some((&version, body)) if version == Self::VERSION => {
                postcard::from_bytes(body).map_err(|e| ApplyError::Corrupt(format!("{} record: {e}", Self::WHAT)))
            }
            Some((version, _)) => Err(ApplyError::Corrupt(format!("{} record of version {version}", Self::WHAT))),
            None => Err(ApplyError::Corrupt(format!("empty {} record", Self::WHAT))),
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
