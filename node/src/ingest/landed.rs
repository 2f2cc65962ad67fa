//! What has landed is cut, coded and put into the packs, first come first.

use std::time::Duration;

use futures::future;
use maillage_dicom::Uid;
use maillage_host::{UnixMillis, offload_behind};
use maillage_store::{Arrived, ArrivedError, Claimed, InstanceIdentity, Landed, Landing, ManifestFlags, StoreError};
use tokio_util::sync::CancellationToken;

use super::making::Reception;
use super::{Arrival, Ingest, IngestError, Listed, Prepared, internal, prepare};

/// Before what could not be stored is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Cuts and codes what lands, until `shutdown`.
pub(crate) async fn run(ingest: Ingest, shutdown: CancellationToken) {
    let coder = || async {
        loop {
            let arrived = ingest.0.store.landing().next().await;
            ingest.settle(arrived).await;
        }
    };
    // Two: while one makes what it coded durable, the other codes.
    shutdown.run_until_cancelled(future::join::<_, _>(coder(), coder())).await;
}

impl Ingest {
    /// Has a data set land, if it is one that would be coded and is new here. It comes back, with the claim, when it did
    /// not.
    pub(super) async fn land(
        &self,
        mut prepared: Prepared,
        identity: &InstanceIdentity,
        source: String,
        claimed: Claimed,
    ) -> Result<Option<(Claimed, Prepared)>, IngestError> {
        let store = &self.0.store;
        let may_land =
            prepared.part.rows.is_some() && store.landing().may_take(&identity.study_uid, prepared.dataset.len());
        // Without a landing, nothing more is asked of the store.
        if !may_land || !(self.0.may_seal)() || store.instance(&identity.sop_instance).await?.is_some() {
            return Ok(Some((claimed, prepared)));
        }
        let sealing = store.keys().sealing(&identity.study_uid).await?;
        let landed = Landed {
            study_uid: identity.study_uid.clone(),
            sop_instance: identity.sop_instance.clone(),
            sop_class: identity.sop_class.clone(),
            transfer_syntax: identity.transfer_syntax.clone(),
            dataset_hash: prepared.dataset_hash,
            received_at: self.0.clock.now().0,
            source,
            key: sealing.key().id(),
        };
        let dataset = std::mem::take(&mut prepared.dataset);
        let refused = store.landing().put(claimed, landed, sealing.into_parts(), dataset).await?;
        Ok(refused.map(|(claimed, dataset)| (claimed, Prepared { dataset, ..prepared })))
    }

    /// Cuts and codes one data set; as often as it takes, while there is no room for it.
    async fn settle(&self, arrived: Arrived) {
        let landing = self.0.store.landing();
        loop {
            let Err(error) = self.code(&arrived).await else {
                landing.set_blocked(None);
                // Whoever brought it may have gone before it was told of.
                self.tell(Arrival::Later { study: arrived.landed.study_uid.clone() });
                return landing.done(arrived).await;
            };
            let study = &arrived.landed.study_uid;
            match error {
                Uncoded::Arrived(ArrivedError::Torn) => {
                    tracing::info!(study, "an image was not written to its end when this node stopped");
                    return landing.done(arrived).await;
                }
                Uncoded::Arrived(ArrivedError::Store(StoreError::KeyDestroyed(_)))
                | Uncoded::Ingest(IngestError::Store(StoreError::KeyDestroyed(_))) => {
                    tracing::info!(study, "the key of an image was destroyed before it was coded: it is gone");
                    return landing.done(arrived).await;
                }
                Uncoded::Arrived(ArrivedError::Damaged(_) | ArrivedError::Store(StoreError::KeyUnknown { .. }))
                | Uncoded::Ingest(IngestError::Store(StoreError::Refused(_) | StoreError::Manifest(_))) => {
                    return lost(landing, arrived, &error);
                }
                Uncoded::Arrived(ArrivedError::Store(error)) | Uncoded::Ingest(IngestError::Store(error)) => {
                    tracing::warn!(study, %error, "what has landed is not coded yet");
                    landing.set_blocked(Some(error));
                    tokio::time::sleep(AGAIN).await;
                }
                Uncoded::Ingest(_) => return lost(landing, arrived, &error),
            }
        }
    }

    async fn code(&self, arrived: &Arrived) -> Result<(), Uncoded> {
        let (key, dataset) = self.0.store.landing().read(arrived).await?;
        let Landed { study_uid, sop_instance, sop_class, transfer_syntax, received_at, source, .. } =
            arrived.landed.clone();
        let syntax: Uid = transfer_syntax.parse().map_err(internal)?;
        let prepared = offload_behind(move || Ok(prepare(dataset, &syntax))).await.map_err(internal)?;
        let prepared = prepared.map_err(IngestError::from)?;
        let series_uid = prepared.attributes.series_uid.to_string();
        let identity = InstanceIdentity { sop_instance, sop_class, series_uid, study_uid, transfer_syntax };
        // It may have been stored by a process that ended before it was done here, and before it was proven.
        let listed = self.listed(&identity, prepared.dataset_hash).await?;
        if matches!(listed, Some(Listed::Readable(_))) {
            return Ok(());
        }
        let flags = ManifestFlags { undecodable: prepared.undecodable, foreign_preamble: false };
        // Behind those who still wait, unless they would soon wait for the coder themselves.
        let reception =
            Reception { received_at: UnixMillis(received_at), source, is_awaited: self.0.store.landing().is_pressed() };
        self.make(prepared, identity, flags, reception, Some(key), listed.is_some()).await?;
        Ok(())
    }
}

/// What was acknowledged cannot be had, or cannot be coded.
fn lost(landing: &Landing, arrived: Arrived, why: &Uncoded) {
    tracing::error!(study = arrived.landed.study_uid, %why, "ALARM: an image that was acknowledged is lost here");
    landing.stuck(arrived);
}

/// Why a data set that landed is not in the packs.
#[derive(Debug, thiserror::Error)]
enum Uncoded {
    #[error(transparent)]
    Arrived(#[from] ArrivedError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
}
