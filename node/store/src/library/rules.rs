//! The rules of the library, the same for the writer and for the replay: what a commit or a hold
//! changes in the index.

use std::io;

use super::{HoldRecord, InstanceCommit, Stored};
use crate::index::{HeldRow, InstanceRow, StudyRow, Txn, key};
use crate::pack::{PackFiles, PackId};

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
        Ok::<_, io::Error>(files.is_readable(row.pack, 0) && txn.is_live(files, row.commit.manifest)?)
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

/// Lists what a commit record in `pack` says. The first data set of a SOP instance stays; a later
/// record of the same data set replaces the row (it was written because the earlier had been lost).
pub(crate) fn apply_commit(txn: &mut Txn<'_>, commit: &InstanceCommit, pack: PackId) -> io::Result<()> {
    let row = InstanceRow { commit: commit.clone(), pack };
    let listed = first(txn, &commit.sop_instance)?;
    if listed.as_ref().is_some_and(|first| !same(&first.commit, commit)) {
        return txn.put(key::conflict(&commit.sop_instance, commit.dataset_hash), &row);
    }
    let place = key::instance(&commit.study_uid, &commit.series_uid, &commit.sop_instance);
    txn.put(place, &row)?;
    let study_key = key::study(&commit.study_uid);
    let mut study: StudyRow = txn.get(&study_key)?.unwrap_or_else(|| StudyRow {
        study_uid: commit.study_uid.clone(),
        instances: 0,
        bytes: 0,
        last_received_at: 0,
    });
    if listed.is_none() {
        txn.put(key::sop(&commit.sop_instance), &(&commit.study_uid, &commit.series_uid))?;
        study.instances += 1;
        study.bytes = study.bytes.saturating_add(commit.bytes);
    }
    study.last_received_at = study.last_received_at.max(commit.received_at);
    txn.put(study_key, &study)
}

/// Lists or unlists a held study.
pub(crate) fn apply_hold(txn: &mut Txn<'_>, hold: &HoldRecord) -> io::Result<()> {
    let place = key::held(hold.manifest);
    if !hold.held {
        txn.remove(place);
        return Ok(());
    }
    let HoldRecord { manifest, at, study_uid, packs, .. } = hold.clone();
    txn.put(place, &HeldRow { manifest, study_uid, since: at, packs })
}

/// The instance that a SOP instance UID stands for.
pub(super) fn first(txn: &Txn<'_>, sop_instance: &str) -> io::Result<Option<InstanceRow>> {
    let place: Option<(String, String)> = txn.get(&key::sop(sop_instance))?;
    place.map_or(Ok(None), |(study, series)| txn.get(&key::instance(&study, &series, sop_instance)))
}

/// The same bytes in the same place. A sender that files one data set under two studies contradicts
/// itself; that is a conflict too.
fn same(a: &InstanceCommit, b: &InstanceCommit) -> bool {
    a.dataset_hash == b.dataset_hash && a.study_uid == b.study_uid && a.series_uid == b.series_uid
}
