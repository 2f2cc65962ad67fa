//! Making a damaged index anew while the store is open.
//!
//! The packs stand still meanwhile: the writer has let go of them and refuses what comes, and nothing that was purged
//! is overwritten. The damaged index answers what it still can until the new one, complete, takes its place.
//!
//! A crash on the way leaves what a crash of an opening leaves that makes the index anew: until the new one is the
//! current one, the old one is condemned; from then on the next opening replays what it lacks.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use maillage_host::{offload, spawn};
use tokio::task::{JoinError, JoinHandle};

use crate::error::OpenError;
use crate::event::StoreEvent;
use crate::index::{HeldRow, Index, key};
use crate::recovery::Recovery;
use crate::replay::{Replayed, replay};
use crate::store::rebuild_index;
use crate::writer::{OpenPack, Shared, Writer};

/// How often a damaged index is made anew: one that is damaged again and again is not what is to be mended.
const MENDS_MAX: u64 = 3;

pub(crate) type Mending = JoinHandle<Result<Replayed, OpenError>>;

impl Writer {
    /// Has the index made anew if it is damaged, unless writing has ended, or that was done too often.
    pub(crate) async fn look_at_index(&mut self) {
        if self.mending.is_some() || !self.shared.index().is_damaged() {
            return;
        }
        if self.failed.is_some() {
            return self.shared.mark.condemn().await;
        }
        if self.shared.recovery().mends == MENDS_MAX {
            return self.fail("the index was damaged once more".to_owned(), Vec::new()).await;
        }
        tracing::error!("the index is damaged: it is made anew from the packs, and no image is taken meanwhile");
        // None is written to before what is in it was replayed.
        self.open.clear();
        self.shared.is_mending.store(true, Ordering::Relaxed);
        self.mending = Some(spawn(mend(Arc::clone(&self.shared))));
    }

    /// Goes on with an index that was made anew.
    pub(crate) async fn mended(&mut self, mended: Result<Result<Replayed, OpenError>, JoinError>) {
        self.mending = None;
        let mended = mended.map_err(|error| error.to_string()).and_then(|mended| mended.map_err(|e| e.to_string()));
        match mended {
            Ok(Replayed { recovery, tails, next_number }) => {
                tracing::info!(records = recovery.records_replayed, "the index was made anew");
                recovery.log();
                if self.failed.is_none() {
                    self.open = tails.into_iter().map(OpenPack::resume).collect();
                }
                // No number comes again while its pack may still be remembered.
                self.next_number = self.next_number.max(next_number);
                self.shared.is_mending.store(false, Ordering::Relaxed);
                self.shared.emit(StoreEvent::Mended);
            }
            Err(error) => {
                self.fail(format!("make the index anew: {error}"), Vec::new()).await;
                self.shared.is_mending.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Shared {
    /// Has an index that was made anew be used from now on, and accounts for it: who sees the one sees the other. Gives
    /// back the index of before.
    fn replace_index(&self, index: Arc<Index>, found: &Recovery) -> Arc<Index> {
        let mut in_use = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut account = self.recovery.lock().unwrap_or_else(PoisonError::into_inner);
        *account = Arc::new(account.with_mend(found));
        std::mem::replace(&mut *in_use, index)
    }
}

/// What became of an index that is being made anew; while there is none, never.
pub(crate) async fn ended(mending: &mut Option<Mending>) -> Result<Result<Replayed, OpenError>, JoinError> {
    match mending {
        Some(mending) => mending.await,
        None => std::future::pending().await,
    }
}

/// Puts an index made from the packs in the place of the damaged one. What it gives back is for a writer to go on with.
async fn mend(shared: Arc<Shared>) -> Result<Replayed, OpenError> {
    let _turn = shared.intents.turn.lock().await;
    // Opening it may meet no damage.
    shared.mark.condemn().await;
    let index = rebuild_index(&shared.home, &shared.mark).await.map_err(OpenError::Index)?;
    let replayed = replay(&shared.files, &index, &shared.mark, &shared.intents).await?;
    let (old, new) = (shared.index(), Arc::clone(&index));
    offload(move || keep_bad(&old, &new)).await.map_err(OpenError::Index)?;
    let (damaged, home) = (shared.replace_index(index, &replayed.recovery), Arc::clone(&shared.home));
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
