//! The way back from a pack to the rows that point into it, and from a chunk to the studies that it is of.
//!
//! There is no key for the first: it is asked only after damage, and takes a look at every row.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;

use maillage_host::engine::scan_within;

use super::{ChunkRow, EdgesRow, HeldRow, Index, InstanceRow, decode, key};
use crate::hash::Hash;
use crate::pack::PackId;

/// Rows that point into stretches of one pack.
#[derive(Debug, Default)]
pub(crate) struct InPack {
    /// Chunks and manifests that are not quarantined; whether each is a manifest.
    pub(crate) pieces: Vec<(Hash, ChunkRow, bool)>,
    /// Instances and conflicts of the library.
    pub(crate) commits: Vec<InstanceRow>,
    /// Holds, ended ones included.
    pub(crate) holds: Vec<HeldRow>,
}

impl Index {
    /// What lies in `pack` at an offset within one of `stretches`, each (first, behind).
    pub(crate) fn in_pack(&self, pack: PackId, stretches: &[(u64, u64)]) -> io::Result<InPack> {
        let is_there =
            |of: PackId, offset: u64| of == pack && stretches.iter().any(|(from, to)| (*from..*to).contains(&offset));
        let mut found = InPack::default();
        self.each(key::CHUNK, |key, row: ChunkRow| {
            let hash = key.get(key::CHUNK.len()..).and_then(|hash| hash.try_into().ok()).map(Hash);
            found
                .pieces
                .extend(hash.filter(|_| !row.bad && is_there(row.pack, row.offset)).map(|hash| (hash, row, false)));
        })?;
        let txn = self.txn();
        for (hash, _, is_manifest) in &mut found.pieces {
            *is_manifest = txn.get::<EdgesRow>(&key::edges(*hash))?.is_some();
        }
        for prefix in [key::INSTANCE, key::CONFLICT] {
            self.each(prefix, |_, row: InstanceRow| {
                found.commits.extend(Some(row).filter(|row| is_there(row.place.pack, row.place.offset)));
            })?;
        }
        self.each(key::HELD, |_, row: HeldRow| {
            found.holds.extend(Some(row).filter(|row| is_there(row.place.pack, row.place.offset)));
        })?;
        Ok(found)
    }

    /// The studies of the manifests among `hashes`, and of the manifests that refer to them; and those of `hashes`
    /// of which nothing is known.
    pub(crate) fn studies_of(&self, hashes: &[Hash]) -> io::Result<(BTreeSet<String>, Vec<Hash>)> {
        let txn = self.txn();
        let (mut studies, mut unknown) = (BTreeSet::new(), Vec::new());
        for hash in hashes {
            let prefix = key::referrers(*hash);
            let referrers = txn.keys(&prefix)?;
            let referrers = referrers.iter().filter_map(|key| key.get(prefix.len()..)?.try_into().ok().map(Hash));
            let mut is_known = false;
            for manifest in referrers.chain([*hash]) {
                if let Some(EdgesRow::Instance { study_uid, .. } | EdgesRow::Study { study_uid, .. }) =
                    txn.get::<EdgesRow>(&key::edges(manifest))?
                {
                    studies.insert(study_uid);
                    is_known = true;
                }
            }
            if !is_known {
                unknown.push(*hash);
            }
        }
        Ok((studies, unknown))
    }

    /// Looks at every row whose key begins with `prefix`.
    fn each<T: serde::de::DeserializeOwned>(&self, prefix: &[u8], mut look: impl FnMut(&[u8], T)) -> io::Result<()> {
        let mut failed = None;
        scan_within(&self.engine, prefix, Bound::Unbounded, &mut |key, value| {
            match decode(value) {
                Ok(row) => look(key, row),
                Err(error) => failed = Some(error),
            }
            failed.is_none()
        })?;
        failed.map_or(Ok(()), Err)
    }
}
