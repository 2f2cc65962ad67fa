//! Which records are dead when a study goes, and what the index forgets with them. Pure apart from reading the
//! index; the writer calls it between two groups.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::{Dead, DeadRecord, Intent, Publication, PurgeWhat};
use crate::hash::Hash;
use crate::index::{EdgesRow, HeldRow, Index, InstanceRow, Place, Txn, key};
use crate::library::{first, superseded_commit, unlink, unlist};
use crate::pack::PackId;

/// Instances taken out in one step: the writer serves puts between two of them.
const STEP_INSTANCES: usize = 256;

/// A part of a purge.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) intent: Intent,
    /// Whether something is left for another step.
    pub(crate) left: bool,
}

/// The next step; none when nothing of it is here.
pub(crate) fn plan(index: &Index, what: &PurgeWhat) -> io::Result<Option<Step>> {
    let mut planner = Planner { txn: index.txn(), dead: BTreeMap::new(), unlinked: BTreeSet::new() };
    let left = match what {
        PurgeWhat::Study { publication, own } => planner.study(publication, *own)?,
        PurgeWhat::Kept(publication) => planner.kept(*publication)?,
        PurgeWhat::Unreferenced(hashes) => planner.unreferenced(hashes)?,
    };
    if planner.dead.is_empty() && planner.unlinked.is_empty() {
        return Ok(None);
    }
    let salts = index.pack_rows()?.into_iter().map(|(id, row)| (id, row.salt)).collect();
    let manifest = match what {
        PurgeWhat::Study { publication, .. } => Some(publication.manifest),
        PurgeWhat::Kept(publication) => Some(*publication),
        PurgeWhat::Unreferenced(_) => None,
    };
    let intent = Intent::new(manifest, planner.dead, planner.unlinked, &salts);
    Ok(Some(Step { intent, left }))
}

/// Takes dead records out of the index. What has come anew since at another place stays.
pub(crate) fn apply(txn: &mut Txn<'_>, intent: &Intent) -> io::Result<()> {
    for pack in &intent.packs {
        for record in &pack.records {
            let place = Place { pack: pack.id, offset: record.offset, len: record.len };
            forget(txn, &record.what, place)?;
        }
    }
    for manifest in &intent.unlinked {
        if txn.chunk(*manifest)?.is_none() {
            unlink(txn, *manifest)?;
        }
    }
    Ok(())
}

fn forget(txn: &mut Txn<'_>, what: &Dead, place: Place) -> io::Result<()> {
    match what {
        Dead::Piece(hash) => {
            if let Some(row) = txn.chunk(*hash)?.filter(|row| row.place() == place) {
                txn.remove(key::chunk(*hash));
                txn.remove(key::bad(*hash));
                txn.count(place.pack, -1, Some(row.len));
            } else {
                txn.remove(key::superseded(*hash, place));
            }
        }
        Dead::Instance(sop_instance) => match first(txn, sop_instance)?.filter(|row| row.place == place) {
            Some(row) => unlist(txn, &row)?,
            None => txn.remove(key::superseded(superseded_commit(sop_instance), place)),
        },
        Dead::Conflict(sop_instance, dataset) => {
            let key = key::conflict(sop_instance, *dataset);
            if txn.get::<InstanceRow>(&key)?.is_some_and(|row| row.place == place) {
                txn.remove(key);
                txn.count(place.pack, -1, None);
            }
        }
        Dead::Hold(manifest) => {
            let key = key::held(*manifest);
            if txn.get::<HeldRow>(&key)?.is_some_and(|row| row.place == place) {
                txn.remove(key);
                txn.count(place.pack, -1, None);
            }
        }
        Dead::Superseded(of) => txn.remove(key::superseded(*of, place)),
    }
    Ok(())
}

struct Planner<'a> {
    /// Changed on the way, so that each reference is counted once, and never committed.
    txn: Txn<'a>,
    dead: BTreeMap<PackId, BTreeSet<DeadRecord>>,
    unlinked: BTreeSet<Hash>,
}

impl Planner<'_> {
    /// Whether instances are left.
    fn study(&mut self, publication: &Publication, own: bool) -> io::Result<bool> {
        let Publication { study_uid, origin, sequence, manifest } = publication;
        let (mut publications, mut later) = (BTreeSet::from([*manifest]), BTreeSet::new());
        // What the same site published before, this one replaced.
        for key in self.txn.keys(&key::publications_of(study_uid, *origin))? {
            match key::publication_parts(&key) {
                Some((number, address)) if number <= *sequence => drop(publications.insert(address)),
                Some((_, address)) if own => drop(later.insert(address)),
                _ => {}
            }
        }
        let all: BTreeSet<Hash> = publications.union(&later).copied().collect();
        let mut taken = 0;
        for publication in &publications {
            let row: Option<EdgesRow> = self.txn.get(&key::edges(*publication))?;
            for instance in row.iter().flat_map(EdgesRow::targets) {
                if taken == STEP_INSTANCES {
                    return Ok(true);
                }
                let goes =
                    self.txn.get::<EdgesRow>(&key::edges(*instance))?.is_some() || self.txn.chunk(*instance)?.is_some();
                if goes && self.is_only_in(*instance, &all)? {
                    self.instance(*instance)?;
                    taken += 1;
                }
            }
        }
        for publication in all {
            let held: Option<HeldRow> = self.txn.get(&key::held(publication))?;
            if let Some(row) = held {
                self.is_dead(row.place, Dead::Hold(publication));
            }
            self.manifest(publication)?;
        }
        Ok(false)
    }

    /// A publication that is not held. What others refer to stays, and so does what this node received and lists:
    /// the very same instance may have come here too. Whether instances are left.
    fn kept(&mut self, publication: Hash) -> io::Result<bool> {
        if self.txn.get::<HeldRow>(&key::held(publication))?.is_some_and(|row| row.held) {
            return Ok(false);
        }
        let row: Option<EdgesRow> = self.txn.get(&key::edges(publication))?;
        let (only, mut taken) = (BTreeSet::from([publication]), 0);
        for instance in row.iter().flat_map(EdgesRow::targets) {
            if taken == STEP_INSTANCES {
                return Ok(true);
            }
            let Some(edges) = self.txn.get::<EdgesRow>(&key::edges(*instance))? else { continue };
            if self.is_only_in(*instance, &only)? && !self.is_listed(*instance, &edges)? {
                self.instance(*instance)?;
                taken += 1;
            }
        }
        self.manifest(publication)?;
        Ok(false)
    }

    /// Whether the library lists an instance by this manifest, as the one of its UID or as a conflict.
    fn is_listed(&self, manifest: Hash, edges: &EdgesRow) -> io::Result<bool> {
        let EdgesRow::Instance { sop_instance, .. } = edges else { return Ok(false) };
        let mut listed = first(&self.txn, sop_instance)?.is_some_and(|row| row.commit.manifest == manifest);
        for key in self.txn.keys(&key::conflicts_of(sop_instance))? {
            listed |= self.txn.get::<InstanceRow>(&key)?.is_some_and(|row| row.commit.manifest == manifest);
        }
        Ok(listed)
    }

    /// Whether no other manifest refers to the instance.
    fn is_only_in(&self, instance: Hash, publications: &BTreeSet<Hash>) -> io::Result<bool> {
        let referrers = self.txn.keys(&key::referrers(instance))?;
        let of = |key: &Vec<u8>| key.last_chunk::<32>().copied().map(Hash);
        Ok(referrers.iter().filter_map(of).all(|manifest| publications.contains(&manifest)))
    }

    /// An instance, its entry in the library, and the chunks that nothing else refers to.
    fn instance(&mut self, manifest: Hash) -> io::Result<()> {
        let row: Option<EdgesRow> = self.txn.get(&key::edges(manifest))?;
        self.manifest(manifest)?;
        let Some(EdgesRow::Instance { sop_instance, chunks, .. }) = row else { return Ok(()) };
        for chunk in chunks {
            if self.txn.keys(&key::referrers(chunk))?.is_empty() {
                self.piece(chunk)?;
            }
        }
        let listed = first(&self.txn, &sop_instance)?.filter(|listed| listed.commit.manifest == manifest);
        let Some(listed) = listed else { return self.second(&sop_instance, manifest) };
        self.is_dead(listed.place, Dead::Instance(sop_instance.clone()));
        unlist(&mut self.txn, &listed)?;
        for place in self.txn.superseded(superseded_commit(&sop_instance))? {
            self.is_dead(place, Dead::Superseded(superseded_commit(&sop_instance)));
        }
        // A second data set under its UID was never shown, and goes with it.
        for key in self.txn.keys(&key::conflicts_of(&sop_instance))? {
            let Some(second) = self.txn.get::<InstanceRow>(&key)? else { continue };
            self.is_dead(second.place, Dead::Conflict(sop_instance.clone(), second.commit.dataset_hash));
            self.txn.remove(key);
            if self.txn.keys(&key::referrers(second.commit.manifest))?.is_empty() {
                self.instance(second.commit.manifest)?;
            }
        }
        Ok(())
    }

    /// The entry of a second data set, which goes and leaves the first.
    fn second(&mut self, sop_instance: &str, manifest: Hash) -> io::Result<()> {
        for key in self.txn.keys(&key::conflicts_of(sop_instance))? {
            let second = self.txn.get::<InstanceRow>(&key)?.filter(|second| second.commit.manifest == manifest);
            if let Some(second) = second {
                self.is_dead(second.place, Dead::Conflict(sop_instance.to_owned(), second.commit.dataset_hash));
                self.txn.remove(key);
            }
        }
        Ok(())
    }

    /// A manifest, with what it refers to.
    fn manifest(&mut self, manifest: Hash) -> io::Result<()> {
        self.piece(manifest)?;
        if self.txn.get::<EdgesRow>(&key::edges(manifest))?.is_some() {
            unlink(&mut self.txn, manifest)?;
            self.unlinked.insert(manifest);
        }
        Ok(())
    }

    /// A chunk or manifest, wherever it lies.
    fn piece(&mut self, hash: Hash) -> io::Result<()> {
        if let Some(row) = self.txn.chunk(hash)? {
            self.is_dead(row.place(), Dead::Piece(hash));
            self.txn.remove(key::chunk(hash));
        }
        for place in self.txn.superseded(hash)? {
            self.is_dead(place, Dead::Superseded(hash));
        }
        Ok(())
    }

    fn unreferenced(&mut self, hashes: &[Hash]) -> io::Result<bool> {
        for hash in hashes {
            let is_manifest = self.txn.get::<EdgesRow>(&key::edges(*hash))?.is_some();
            if !is_manifest && self.txn.keys(&key::referrers(*hash))?.is_empty() {
                self.piece(*hash)?;
            }
        }
        Ok(false)
    }

    fn is_dead(&mut self, place: Place, what: Dead) {
        let Place { pack, offset, len } = place;
        self.dead.entry(pack).or_default().insert(DeadRecord { offset, len, what });
    }
}
