//! Manifests: what an instance and a study consist of, as bytes that have one address.
//!
//! The encoding is `[version][kind]` and then postcard. It is canonical: what decodes is encoded
//! again and must be the same bytes, so that one content has one hash. Field order and types are
//! persisted and travel between sites: a change is a new version (see the golden tests).

use serde::Serialize;
use serde::de::DeserializeOwned;

mod form;
mod instance;
mod study;

pub use form::{ChunkEntry, Form, FormError};
pub use instance::{INSTANCE_MANIFEST_BYTES_MAX, InstanceIdentity, InstanceManifest, ManifestFlags};
pub use study::{InstanceEntry, STUDY_MANIFEST_BYTES_MAX, StudyManifest};

/// The version of study manifests, and of instance manifests whose chunks are all raw.
const VERSION_1: u8 = 1;
/// The version of instance manifests that say each chunk's form.
const VERSION_2: u8 = 2;
/// The version of instance manifests that are sealed, and name the key.
const VERSION_3: u8 = 3;
/// The longest unique identifier (PS3.5 section 9.1).
const UID_LEN_MAX: usize = 64;

/// Why bytes are no manifest, or a manifest breaks its own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Beyond the limit of its kind.
    #[error("the manifest is too large")]
    TooLarge,
    /// A version that this software does not know.
    #[error("manifest version {0} is unknown")]
    Version(u8),
    /// Another kind of manifest, or none.
    #[error("not a manifest of the expected kind")]
    Kind,
    /// The bytes do not decode.
    #[error("the manifest does not decode")]
    Malformed,
    /// The bytes decode, but are not the one encoding of what they say.
    #[error("the manifest is not in its canonical form")]
    NotCanonical,
    /// The content contradicts itself or a limit.
    #[error("{0}")]
    Invalid(&'static str),
}

fn encode<T: Serialize>(prefix: [u8; 2], manifest: &T, limit: usize) -> Result<Vec<u8>, ManifestError> {
    let encoded = postcard::to_extend(manifest, prefix.to_vec()).map_err(|_| ManifestError::Malformed)?;
    if encoded.len() > limit { Err(ManifestError::TooLarge) } else { Ok(encoded) }
}

/// The version of a manifest of this kind, and its body.
fn open(kind: u8, bytes: &[u8], limit: usize) -> Result<(u8, &[u8]), ManifestError> {
    if bytes.len() > limit {
        return Err(ManifestError::TooLarge);
    }
    match bytes {
        [version @ VERSION_1..=VERSION_3, found, body @ ..] if *found == kind => Ok((*version, body)),
        [VERSION_1..=VERSION_3, ..] | [] => Err(ManifestError::Kind),
        [version, ..] => Err(ManifestError::Version(*version)),
    }
}

fn decode<T: Serialize + DeserializeOwned>(body: &[u8]) -> Result<T, ManifestError> {
    // No length in the bytes is trusted for allocation: serde caps what it reserves, and every
    // element takes at least one of the bytes that are here.
    postcard::from_bytes(body).map_err(|_| ManifestError::Malformed)
}

fn check_uid(uid: &str, what: &'static str) -> Result<(), ManifestError> {
    let allowed = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    let good = (1..=UID_LEN_MAX).contains(&uid.len()) && uid.bytes().all(allowed);
    if good { Ok(()) } else { Err(ManifestError::Invalid(what)) }
}
