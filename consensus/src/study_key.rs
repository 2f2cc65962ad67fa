//! The keys under which images are sealed: kept while somebody may need the images, destroyed by their purge.
//!
//! A key belongs to one site's part of one study, and to the publication that is the first to list what is
//! sealed under it. A purge destroys the keys of the publications that it takes away, and no other: what its
//! site received and has not published yet keeps its own. What is left of a destroyed key is its name, so that
//! nobody brings it back.

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::ids::{ExamId, KeyId, Secret, SiteId, UidText};
use crate::record::Record;

/// A key as the mesh keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StudyKey {
    /// Its name.
    pub id: KeyId,
    /// The Study Instance UID.
    pub study: UidText,
    /// The site that sealed under it.
    pub origin: SiteId,
    /// That site's first publication that lists anything sealed under it.
    pub sequence: u64,
    /// When it was brought.
    pub kept_at: UnixMillisField,
    /// The log index of the command that brought it.
    pub index: u64,
    /// The key, or what is left of it.
    pub what: KeptKey,
}

impl Record for StudyKey {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "study key";
}

/// A key, or what is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeptKey {
    /// It opens what is sealed under it.
    Kept(Secret),
    /// Nothing opens what was sealed under it.
    Destroyed {
        /// The exam whose images were purged.
        exam: ExamId,
        /// When.
        at: UnixMillisField,
    },
}

/// What was destroyed last, and what was ever: by it a node knows what of its disk may still have keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destruction {
    /// The log index of the last command that destroyed keys: older snapshots may have them.
    pub at: u64,
    /// The highest log index at which a destroyed key was brought: the log up to there has keys.
    pub brought_at: u64,
    /// Keys destroyed, ever.
    pub keys: u64,
}

impl Record for Destruction {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "destruction of keys";
}
