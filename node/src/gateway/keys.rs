//! The keys under which the spool is sealed. No mesh knows them: they are in this machine's file alone, and what is
//! dropped opens nowhere, not from a backup of the packs either, once its key has left that file.
//!
//! A key goes when nothing in the spool is sealed under it any more. What comes of the study afterwards is sealed
//! under another one.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_store::{KeyId, StoreError};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Complaints, Gateway};

/// Between two looks: the file is written anew for all keys of one look together.
const ROUND: Duration = Duration::from_secs(60);
/// How long it is waited for what is being sealed. Later there is less of it.
const ROTATE_WITHIN: Duration = Duration::from_secs(2);

/// Forgets keys until `shutdown`.
pub(super) async fn run(gateway: Gateway, shutdown: CancellationToken) {
    let mut forgetting = Complaints::default();
    while let Some(forgotten) = shutdown.run_until_cancelled(gateway.forget_keys()).await {
        forgetting.hear("forget the keys of what was dropped", forgotten);
        if shutdown.run_until_cancelled(sleep(ROUND)).await.is_none() {
            return;
        }
    }
}

impl Gateway {
    /// Forgets the keys under which nothing is sealed any more, of the studies of which something was dropped.
    ///
    /// # Errors
    /// The studies are looked at again by the next call.
    pub(super) async fn forget_keys(&self) -> Result<(), StoreError> {
        let studies = std::mem::take(&mut *self.dropped());
        // In this order: the account of an index that is made anew in between is not that of the one that is asked.
        let (mends, recovery) = (self.store().mends(), self.store().recovery());
        // Nobody knows under which keys that is sealed that is damaged or not there; it may be put back.
        if !recovery.damage.is_empty() || !recovery.missing.is_empty() {
            return Ok(());
        }
        match self.forget_keys_of(&studies, mends).await {
            Ok(later) => {
                self.dropped().extend(later);
                Ok(())
            }
            Err(error) => {
                self.dropped().extend(studies);
                Err(error)
            }
        }
    }

    /// The studies that are to be looked at later: all, once the index was made anew more often than `mends`.
    async fn forget_keys_of(&self, studies: &BTreeSet<String>, mends: u64) -> Result<BTreeSet<String>, StoreError> {
        let (mut unused, mut later) = (BTreeSet::new(), BTreeSet::new());
        for study in studies {
            match self.unused_keys(study).await? {
                Some(mut keys) => unused.append(&mut keys),
                None => drop(later.insert(study.clone())),
            }
        }
        // What a failed write left may be found when the index is made anew, though it lists nothing of it.
        let stats = self.store().stats().await?;
        if stats.is_mending || self.store().mends() != mends {
            return Ok(studies.clone());
        }
        if !stats.is_failed {
            self.store().keys().forget(&unused).await?;
        }
        Ok(later)
    }

    /// The keys of a study under which nothing is sealed, nor will be; none while that cannot be known.
    async fn unused_keys(&self, study: &str) -> Result<Option<BTreeSet<KeyId>>, StoreError> {
        let store = self.store();
        // What comes again, and is damaged here, takes the key of what is listed under its UID, which is not dropped
        // meanwhile. So whatever begins to come in after this look takes one that is listed below, or a new one.
        if store.landing().is_any_under_way(study) {
            return Ok(None);
        }
        let Ok(pending) = timeout(ROTATE_WITHIN, store.keys().rotate(study)).await else { return Ok(None) };
        let mut unused: BTreeSet<KeyId> = pending.iter().map(|key| key.id()).collect();
        // What is listed is sealed under pending keys: of one alone nothing need be read.
        if unused.len() == 1 && store.study_seen(study).await?.is_some() {
            unused.clear();
        }
        if unused.is_empty() {
            return Ok(Some(unused));
        }
        // Listed behind the rotation: whatever was sealed under these keys is durable by now.
        let (named, is_all) = store.keys_of_study(study).await?;
        unused.retain(|id| is_all && !named.contains(id));
        Ok(Some(unused))
    }
}
