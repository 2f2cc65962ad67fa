//! Pack files: append-only, one retention day each, sealed when full.
//!
//! ```text
//! [header, twice in 4096 bytes][record][record] … [seal]          sealed
//! [header, twice in 4096 bytes][record][record] … [zeroes ahead]  being written
//! ```

use std::fmt;

mod files;
mod header;
mod record;
mod walk;

pub(crate) use files::PackFiles;
pub(crate) use header::{HEADER_BYTES, HEADER_LEN, HeaderError, PackHeader};
pub(crate) use record::{Kind, RECORD_HEADER_BYTES, RECORD_HEADER_LEN, RecordHeader, claimed_salt};
pub(crate) use walk::{Walk, Walked, next_header};

/// The name of a pack: `<generation>-<number, 16 hex digits>.pack`. The generation counts how often
/// the content was rewritten by compaction (0: as received); the number rises with every new pack
/// and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PackId {
    /// Rises with every new pack.
    pub number: u64,
    /// 0 for a pack as received.
    pub generation: u32,
}

impl PackId {
    /// Reads a file name; `None` for any other name than the one that [`fmt::Display`] writes.
    pub fn parse(name: &str) -> Option<Self> {
        let (generation, number) = name.strip_suffix(".pack")?.split_once('-')?;
        let id = Self { number: u64::from_str_radix(number, 16).ok()?, generation: generation.parse().ok()? };
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}.pack", self.generation, self.number)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_name_is_a_pack() {
        let id = PackId { number: 0xab, generation: 2 };
        assert_eq!(PackId::parse("2-00000000000000ab.pack"), Some(id));
        for name in
            ["2-00000000000000AB.pack", "02-00000000000000ab.pack", "2-ab.pack", "x", "2-00000000000000ab.pack.new"]
        {
            assert_eq!(PackId::parse(name), None, "{name}");
        }
    }
}
