//! The audit trail: every command with who, where, when and why, each entry chained to the one before.
//!
//! The chain also covers what the command wrote, so that two replicas whose states differ have different
//! chains from the first difference on.

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::ids::{Address, CommandId, ExamId, Line, Name, SiteId};
use crate::record::{self, Record};

/// One command, as the trail keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its log index.
    pub index: u64,
    /// When, in the state's time.
    pub at: UnixMillisField,
    /// Through which site.
    pub site: SiteId,
    /// By whom; empty for the node itself.
    pub user: Name,
    /// The client's name for it.
    pub id: CommandId,
    /// What was asked.
    pub kind: Name,
    /// Of which exam.
    pub exam: Option<ExamId>,
    /// Why, if its author said.
    pub why: Line,
    /// What became of it: `done`, or why it was refused.
    pub outcome: Line,
    /// BLAKE3 of the command's bytes.
    pub command: Address,
    /// BLAKE3 of what it wrote, keys and values in order.
    pub writes: Address,
}

/// An entry and its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The entry.
    pub entry: Entry,
    /// BLAKE3 of the previous entry's chain value and this entry.
    pub chain: Address,
}

impl Record for Link {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "audit";
}

/// What a site's chain is at an index, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// The site.
    pub site: SiteId,
    /// The index of the last entry it covers.
    pub index: u64,
    /// Whether it is this replica's own chain there. None: this replica no longer has that entry.
    pub agrees: Option<bool>,
    /// When.
    pub at: UnixMillisField,
}

impl Record for Attestation {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "attestation";
}

/// The chain's value after `entry`.
pub fn chain(before: &Address, entry: &Entry) -> Address {
    let mut hasher = blake3::Hasher::new_derive_key("maillage 2026-11 audit chain");
    hasher.update(before);
    hasher.update(&record::fields(entry));
    *hasher.finalize().as_bytes()
}
