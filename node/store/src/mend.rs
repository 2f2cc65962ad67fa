//! Making a damaged index anew while the store is open.
//!
//! The packs stand still meanwhile: the writer has let go of them and refuses what comes, and nothing that was purged
//! is overwritten. The damaged index answers what it still can until the new one, complete, takes its place.
//!
//! A crash on the way leaves what a crash of an opening leaves that makes the index anew: until the new one is the
//! current one, the old one is condemned; from then on the next opening replays what it lacks.

use std::sync::Arc;

use maillage_host::offload;

use crate::error::OpenError;
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
