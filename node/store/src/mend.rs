//! Making a damaged index anew while the store is open.
//!
//! The packs stand still meanwhile: the writer has let go of them and refuses what comes, and nothing that was purged
//! is overwritten. The damaged index answers what it still can until the new one, complete, takes its place.
//!
//! A crash on the way leaves what a crash of an opening leaves that makes the index anew: until the new one is the
//! current one, the old one is condemned; from then on the next opening replays what it lacks.

use std::io;
use std::sync::Arc;

use maillage_host::offload;

use crate::error::OpenError;
use crate::index::{HeldRow, Index, key};
use crate::replay::{Replayed, replay};
use crate::store::rebuild_index;
use crate::writer::Shared;

/// Puts an index made from the packs in the place of the damaged one. What it gives back is for a writer to go on with.
pub(crate) async fn mend(shared: Arc<Shared>) -> Result<Replayed, OpenError> {
    let _turn = shared.intents.turn.lock().await;
    // Opening it may meet no damage.
    shared.mark.condemn().await;
    let index = rebuild_index(&shared.home, &shared.mark).await.map_err(OpenError::Index)?;
    let replayed = replay(&shared.files, &index, &shared.mark, &shared.intents).await?;
    let (old, new) = (shared.index(), Arc::clone(&index));
    offload(move || keep_bad(&old, &new)).await.map_err(OpenError::Index)?;
    let (damaged, home) = (shared.replace_index(index), Arc::clone(&shared.home));
    let tidied = offload(move || {
        drop(damaged);
        home.tidy()
    });
    if let Err(error) = tidied.await {
        tracing::warn!(%error, "the files of the damaged index are left until the next start");
    }
    Ok(replayed)
}

/// What the damaged index still says is bad stays so, and studies with something of it are not held: no pack says which
/// pieces were found damaged, and the mesh would be told that a copy is whole.
fn keep_bad(old: &Index, new: &Index) -> io::Result<()> {
    let mut bad = Vec::new();
    for hash in old.bad(usize::MAX).unwrap_or_default() {
        let Some(row) = new.txn().chunk(hash)? else { continue };
        let is_there = old.txn().chunk(hash).is_ok_and(|was| was.is_none_or(|was| was.place() == row.place()));
        if is_there && new.mark_bad(hash, &row)? {
            bad.push(hash);
        }
    }
    if bad.is_empty() {
        return Ok(());
    }
    let (studies, _) = new.studies_of(&bad)?;
    let mut txn = new.txn();
    for row in new.rows::<HeldRow>(key::HELD, None, usize::MAX)? {
        if row.held && studies.contains(&row.study_uid) {
            txn.put(key::held(row.manifest), &HeldRow { held: false, ..row })?;
        }
    }
    new.commit(txn.into_batch(None)?.0)
}
