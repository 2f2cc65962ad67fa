//! The rules of the library, the same for the writer and for the replay: what a commit or a hold
//! changes in the index.

use std::collections::BTreeSet;
use std::io;

use super::{HoldRecord, InstanceCommit, Stored};
use crate::hash::Hash;
use crate::index::{EdgesRow, HeldRow, InstanceRow, Place, StudyRow, Txn, key};
use crate::manifest::{InstanceIdentity, InstanceManifest, StudyManifest};
use crate::pack::PackFiles;

/// What a commit would be, before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Classified {
    pub(crate) stored: Stored,
    /// The same data set is listed already, and its record and manifest are still readable: if its
    /// chunks are too, nothing need be written.
    pub(crate) known: bool,
}

/// Judges a commit against what is listed.
pub(crate) fn classify(txn: &Txn<'_>, files: &PackFiles, commit: &InstanceCommit) -> io::Result<Classified> {
    let is_known = |row: &InstanceRow| {
        Ok::<_, io::Error>(files.is_readable(row.place.pack, 0) && txn.is_live(files, row.commit.manifest)?)
    };
    let Some(first) = first(txn, &commit.sop_instance)? else {
        return Ok(Classified { stored: Stored::New { manifest: commit.manifest }, known: false });
    };
    if same(&first.commit, commit) {
        let known = is_known(&first)?;
        let manifest = if known { first.commit.manifest } else { commit.manifest };
        return Ok(Classified { stored: Stored::Duplicate { manifest }, known });
    }
    let second: Option<InstanceRow> = txn.get(&key::conflict(&commit.sop_instance, commit.dataset_hash))?;
    let known = second.as_ref().map_or(Ok(false), is_known)?;
    let manifest = second.filter(|_| known).map_or(commit.manifest, |row| row.commit.manifest);
    Ok(Classified { stored: Stored::Conflict { manifest, first: first.commit.manifest }, known })
}

/// What a data set is that is listed, and whole as far as the index knows; none: it must be stored.
pub(crate) fn listed_as(
    txn: &Txn<'_>,
    files: &PackFiles,
    of: &InstanceIdentity,
    dataset_hash: Hash,
) -> io::Result<Option<Stored>> {
    let Some(listed) = first(txn, &of.sop_instance)? else { return Ok(None) };
    let InstanceCommit { study_uid, series_uid, .. } = &listed.commit;
    let is_same = (study_uid, series_uid) == (&of.study_uid, &of.series_uid);
    let (row, stored) = if is_same && listed.commit.dataset_hash == dataset_hash {
        let manifest = listed.commit.manifest;
        (listed, Stored::Duplicate { manifest })
    } else {
        let second: Option<InstanceRow> = txn.get(&key::conflict(&of.sop_instance, dataset_hash))?;
        let Some(second) = second else { return Ok(None) };
        let (manifest, first) = (second.commit.manifest, listed.commit.manifest);
        (second, Stored::Conflict { manifest, first })
    };
    let is_whole = files.is_readable(row.place.pack, 0) && is_whole(txn, files, stored.manifest())?;
    Ok(is_whole.then_some(stored))
}

/// Whether an instance's manifest and all that it refers to are here, and not known to be damaged.
fn is_whole(txn: &Txn<'_>, files: &PackFiles, manifest: Hash) -> io::Result<bool> {
    let Some(row) = txn.get::<EdgesRow>(&key::edges(manifest))? else { return Ok(false) };
    for piece in row.targets().iter().chain([&manifest]) {
        if !txn.is_live(files, *piece)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lists what a commit record at `place` says. The data set of a SOP instance with the lowest number stays,
/// whichever is listed first; a later record of the same data set replaces the row (it was written because
/// the earlier had been lost, or moves).
pub(crate) fn apply_commit(txn: &mut Txn<'_>, commit: &InstanceCommit, sequence: u64, place: Place) -> io::Result<()> {
    let row = InstanceRow { commit: commit.clone(), place, sequence };
    txn.saw_sequence(sequence)?;
    match first(txn, &commit.sop_instance)? {
        None => list_first(txn, row),
        Some(listed) if same(&listed.commit, commit) => replace(txn, key_of(commit), &listed, row),
        Some(listed) if listed.sequence <= sequence => list_conflict(txn, row),
        Some(listed) => {
            unlist(txn, &listed)?;
            list_conflict(txn, listed)?;
            list_first(txn, row)
        }
    }
}

fn key_of(commit: &InstanceCommit) -> Vec<u8> {
    key::instance(&commit.study_uid, &commit.series_uid, &commit.sop_instance)
}

fn list_first(txn: &mut Txn<'_>, row: InstanceRow) -> io::Result<()> {
    let commit = &row.commit;
    let study_key = key::study(&commit.study_uid);
    let mut study: StudyRow = txn.get(&study_key)?.unwrap_or_else(|| StudyRow {
        study_uid: commit.study_uid.clone(),
        instances: 0,
        bytes: 0,
        last_received_at: 0,
    });
    study.instances += 1;
    study.bytes = study.bytes.saturating_add(commit.bytes);
    study.last_received_at = study.last_received_at.max(commit.received_at);
    txn.put(study_key, &study)?;
    txn.put(key::sop(&commit.sop_instance), &(&commit.study_uid, &commit.series_uid))?;
    txn.count(row.place.pack, 1, None);
    txn.put(key_of(commit), &row)
}

fn list_conflict(txn: &mut Txn<'_>, row: InstanceRow) -> io::Result<()> {
    let place = key::conflict(&row.commit.sop_instance, row.commit.dataset_hash);
    match txn.get::<InstanceRow>(&place)? {
        Some(listed) => replace(txn, place, &listed, row),
        None => {
            txn.count(row.place.pack, 1, None);
            txn.put(place, &row)
        }
    }
}

/// Puts the later of two records of one data set into its row.
fn replace(txn: &mut Txn<'_>, place: Vec<u8>, listed: &InstanceRow, row: InstanceRow) -> io::Result<()> {
    if listed.place == row.place {
        return Ok(());
    }
    let of = superseded_commit(&row.commit.sop_instance);
    if listed.sequence > row.sequence {
        return txn.supersede(of, row.place);
    }
    txn.supersede(of, listed.place)?;
    txn.count(listed.place.pack, -1, None);
    txn.count(row.place.pack, 1, None);
    let study_key = key::study(&row.commit.study_uid);
    if let Some(mut study) = txn.get::<StudyRow>(&study_key)? {
        study.last_received_at = study.last_received_at.max(row.commit.received_at);
        txn.put(study_key, &study)?;
    }
    txn.put(place, &row)
}

/// Under what superseded records of an instance are listed.
pub(crate) fn superseded_commit(sop_instance: &str) -> Hash {
    Hash::of(sop_instance.as_bytes())
}

/// Takes an instance out of the library.
pub(crate) fn unlist(txn: &mut Txn<'_>, row: &InstanceRow) -> io::Result<()> {
    let commit = &row.commit;
    txn.remove(key_of(commit));
    txn.remove(key::sop(&commit.sop_instance));
    txn.count(row.place.pack, -1, None);
    let study_key = key::study(&commit.study_uid);
    let Some(mut study) = txn.get::<StudyRow>(&study_key)? else { return Ok(()) };
    study.instances = study.instances.saturating_sub(1);
    study.bytes = study.bytes.saturating_sub(commit.bytes);
    if study.instances == 0 {
        txn.remove(study_key);
        return Ok(());
    }
    txn.put(study_key, &study)
}

/// Lists or unlists a held study, unless a later record has.
pub(crate) fn apply_hold(txn: &mut Txn<'_>, hold: &HoldRecord, sequence: u64, place: Place) -> io::Result<()> {
    txn.saw_sequence(sequence)?;
    let key = key::held(hold.manifest);
    if let Some(listed) = txn.get::<HeldRow>(&key)? {
        if listed.place == place || listed.sequence > sequence {
            return Ok(());
        }
        txn.count(listed.place.pack, -1, None);
    }
    txn.count(place.pack, 1, None);
    let HoldRecord { manifest, held, at, study_uid, packs } = hold.clone();
    txn.put(key, &HeldRow { manifest, held, study_uid, since: at, packs, place, sequence })
}

/// Notes what a manifest refers to, so that a purge knows what nothing else refers to. Bytes that are no
/// manifest of a known version refer to nothing.
pub(crate) fn link(txn: &mut Txn<'_>, address: Hash, bytes: &[u8]) -> io::Result<()> {
    let row = if let Ok(manifest) = InstanceManifest::decode(bytes) {
        let chunks: BTreeSet<Hash> = manifest.chunks.iter().map(|entry| entry.hash).collect();
        EdgesRow::Instance {
            study_uid: manifest.study_uid,
            series_uid: manifest.series_uid,
            sop_instance: manifest.sop_instance,
            chunks: chunks.into_iter().collect(),
        }
    } else if let Ok(manifest) = StudyManifest::decode(bytes) {
        let StudyManifest { study_uid, origin, sequence, instances } = manifest;
        txn.put_empty(key::publication(&study_uid, origin, sequence, address));
        let instances = instances.iter().map(|entry| entry.manifest).collect();
        EdgesRow::Study { study_uid, origin, sequence, instances }
    } else {
        return Ok(());
    };
    for target in row.targets() {
        txn.put_empty(key::referrer(*target, address));
    }
    txn.put(key::edges(address), &row)
}

/// Forgets what a manifest referred to.
pub(crate) fn unlink(txn: &mut Txn<'_>, address: Hash) -> io::Result<()> {
    let Some(row) = txn.get::<EdgesRow>(&key::edges(address))? else { return Ok(()) };
    for target in row.targets() {
        txn.remove(key::referrer(*target, address));
    }
    if let EdgesRow::Study { study_uid, origin, sequence, .. } = &row {
        txn.remove(key::publication(study_uid, *origin, *sequence, address));
    }
    txn.remove(key::edges(address));
    Ok(())
}

/// The instance that a SOP instance UID stands for.
pub(crate) fn first(txn: &Txn<'_>, sop_instance: &str) -> io::Result<Option<InstanceRow>> {
    let place: Option<(String, String)> = txn.get(&key::sop(sop_instance))?;
    place.map_or(Ok(None), |(study, series)| txn.get(&key::instance(&study, &series, sop_instance)))
}

/// The same bytes in the same place. A sender that files one data set under two studies contradicts
/// itself; that is a conflict too.
fn same(a: &InstanceCommit, b: &InstanceCommit) -> bool {
    a.dataset_hash == b.dataset_hash && a.study_uid == b.study_uid && a.series_uid == b.series_uid
}
