//! What opening a store, or making its index anew, found and did.

use crate::pack::PackId;

/// The account of one opening and of what was made anew since, for the log and for whoever repairs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The index was unusable, found damaged before, or not all there, and made anew from the packs.
    pub index_rebuilt: bool,
    /// Records that the index lacked.
    pub records_replayed: u64,
    /// What a crash left half-written behind the last pack's records; nothing of it was ever
    /// acknowledged.
    pub torn: Option<TornTail>,
    /// Damage in bytes that had been durable. What lay there must come from other nodes.
    pub damage: Vec<Damage>,
    /// Packs that the index wants something of and the directory lacks.
    pub missing: Vec<PackId>,
    /// How often the index was made anew since the store was opened.
    pub(crate) mends: u64,
}

impl Recovery {
    /// This account, with what was found when the index was made anew once more.
    pub(crate) fn with_mend(&self, found: &Self) -> Self {
        Self {
            index_rebuilt: true,
            records_replayed: self.records_replayed + found.records_replayed,
            torn: found.torn.or(self.torn),
            damage: [&self.damage[..], &found.damage].concat(),
            missing: [&self.missing[..], &found.missing].concat(),
            mends: self.mends + 1,
        }
    }

    pub(crate) fn log(&self) {
        if let Some(torn) = self.torn {
            tracing::info!(pack = %torn.pack, torn.offset, torn.bytes, "cut off what a crash left half-written");
        }
        for damage in &self.damage {
            tracing::error!(pack = %damage.pack, damage.offset, damage.bytes, "damage in durable bytes");
        }
        for pack in &self.missing {
            tracing::error!(%pack, "a pack is missing");
        }
    }
}

/// A tail that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TornTail {
    /// The pack, the last.
    pub pack: PackId,
    /// Where it was cut, in bytes.
    pub offset: u64,
    /// Bytes cut off.
    pub bytes: u64,
}

/// A damaged stretch of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The pack.
    pub pack: PackId,
    /// Where the stretch begins, in bytes.
    pub offset: u64,
    /// Its length in bytes; 0 when the pack ends too early and what followed is unknown.
    pub bytes: u64,
}
