//! From a data set to what is stored of it: cut, coded, sealed, durable, and proven to give the same bytes back.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use maillage_host::{UnixMillis, offload, offload_behind};
use maillage_store::{
    Cutting, Hash, InstanceIdentity, InstanceManifest, ManifestFlags, Piece, StoreError, Stored, StudyKey,
};

use super::{Ingest, IngestError, Prepared, encode_attributes, internal};
use crate::gather::request_of;

/// Pieces of one instance that are coded and sealed at once: more would only take the processors from other
/// senders.
const MADE_AT_ONCE: usize = 4;
/// What is shorter is made, or proven, sooner than another thread is woken.
const SHORT_BYTES: usize = 16 << 10;

/// When something came, and whom from.
pub(super) struct Reception {
    pub(super) received_at: UnixMillis,
    pub(super) source: String,
    /// Whether its sender still waits.
    pub(super) is_awaited: bool,
}

impl Ingest {
    /// Cuts, codes and seals a data set, and stores it: durable and proven when this returns.
    pub(super) async fn store(
        &self,
        prepared: Prepared,
        identity: InstanceIdentity,
        flags: ManifestFlags,
        source: String,
        is_anew: bool,
    ) -> Result<Stored, IngestError> {
        let (store, received_at) = (&self.0.store, self.0.clock.now());
        // What is damaged here of it comes out as it was, and takes its own place.
        let damaged = if is_anew { None } else { self.key_of(&identity, prepared.dataset_hash).await? };
        // Held until the instance is durable: a publication that lists the key's instances waits for it.
        let mut sealing = None;
        let key = match damaged {
            Some(key) => Some(key),
            None if (self.0.may_seal)() => {
                let sealing = sealing.insert(store.keys().sealing(&identity.study_uid).await?);
                Some(Arc::clone(sealing.key()))
            }
            None => None,
        };
        let reception = Reception { received_at, source, is_awaited: true };
        self.make(prepared, identity, flags, reception, key, is_anew).await
    }

    /// Cuts a data set and stores it under `key`, coded, or without a key as it came.
    pub(super) async fn make(
        &self,
        prepared: Prepared,
        identity: InstanceIdentity,
        flags: ManifestFlags,
        reception: Reception,
        key: Option<Arc<StudyKey>>,
        is_anew: bool,
    ) -> Result<Stored, IngestError> {
        let (store, Reception { received_at, source, is_awaited }) = (&self.0.store, reception);
        let Prepared { attributes, dataset, dataset_hash, mut part, .. } = prepared;
        if key.is_none() {
            part.rows = None;
        }
        let day = self.0.pack_day.get().and_then(|day| day(&identity.study_uid, &request_of(&attributes)));
        let attributes = encode_attributes(&attributes)?;
        let cutting = Arc::new(Cutting::new(dataset, dataset_hash, part, key.clone()));
        let described = |pieces: Vec<Piece>| {
            let cut = cutting.finish(pieces);
            let cut = cut.ok_or_else(|| IngestError::Internal("a piece of the data set is missing".to_owned()))?;
            let manifest = match &key {
                Some(key) => InstanceManifest::sealed(&cut, identity.clone(), &attributes, flags, key),
                None => Ok(InstanceManifest::of(&cut, identity.clone(), attributes.clone(), flags)),
            };
            Ok::<_, IngestError>((cut, manifest.map_err(internal)?))
        };
        let pieces = on_each_piece(&cutting, is_awaited, |cutting, n| cutting.piece(n)).await?;
        let mut pieces: Vec<Piece> = pieces.into_iter().flatten().collect();
        let (cut, manifest) = described(pieces.clone())?;
        // Side by side, since either takes about as long: the raw bytes are here, and with their sender or in the
        // landing, until both are done. Should this process end between them, what is durable is read when it comes again.
        let commit = async {
            if is_anew {
                store.commit_instance_anew(cut, manifest, received_at, source.clone(), day).await
            } else {
                store.commit_instance_until(cut, manifest, received_at, source.clone(), day).await
            }
        };
        let (stored, proven) = tokio::join!(commit, prove(&cutting, is_awaited, &pieces));
        let (stored, differed) = (stored?, proven?);
        if cutting.is_coding() {
            let stored =
                pieces.iter().skip(cutting.first_of_pixels()).map(|piece| piece.chunk().byte_len() as u64).sum();
            self.0.metrics.coded(cutting.pixels_len(), stored, differed.len() as u64);
        }
        if differed.is_empty() {
            return Ok(stored);
        }
        tracing::warn!(pieces = differed.len(), "coded pixels did not decode to what they were: they are kept raw");
        for n in differed {
            if let (Some(piece), Some(raw)) = (pieces.get_mut(n), cutting.raw_piece(n).map_err(internal)?) {
                *piece = raw;
            }
        }
        let (cut, manifest) = described(pieces)?;
        let anew = store.commit_instance_anew(cut, manifest, received_at, source, day).await?;
        // Not `anew`: the first of the two was a moment before.
        Ok(match stored {
            Stored::New { .. } => Stored::New { manifest: anew.manifest() },
            Stored::Duplicate { .. } | Stored::Conflict { .. } => anew,
        })
    }

    /// The key under which this very data set is listed, if it is, and can be had.
    async fn key_of(&self, identity: &InstanceIdentity, dataset: Hash) -> Result<Option<Arc<StudyKey>>, IngestError> {
        let store = &self.0.store;
        let known = store.instance(&identity.sop_instance).await?;
        let Some(known) =
            known.filter(|known| known.entry.dataset_hash == dataset && known.study_uid == identity.study_uid)
        else {
            return Ok(None);
        };
        match store.instance_manifest(known.entry.manifest).await {
            Ok(Some(manifest)) => Ok(store.keys().of(&manifest).unwrap_or_default()),
            Ok(None) | Err(StoreError::Corrupt(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Does something with each piece of a data set, several side by side; if nobody waits for it, behind what others
/// wait for.
pub(super) async fn on_each_piece<T, E>(
    cutting: &Arc<Cutting>,
    is_awaited: bool,
    work: impl Fn(&Cutting, usize) -> Result<T, E> + Clone + Send + 'static,
) -> Result<Vec<T>, IngestError>
where
    T: Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let one = |n: usize| {
        let (cutting, work) = (Arc::clone(cutting), work.clone());
        async move {
            let is_short = cutting.raw_len(n) < SHORT_BYTES;
            let work = move || work(&cutting, n).map_err(std::io::Error::other);
            match is_awaited {
                true if is_short => work(),
                true => offload(work).await,
                false => offload_behind(work).await,
            }
        }
    };
    let all = stream::iter(0..cutting.pieces()).map(one).buffered(MADE_AT_ONCE).try_collect();
    all.await.map_err(internal)
}

/// The pieces that do not give back what they were coded from: a defect.
pub(super) async fn prove(
    cutting: &Arc<Cutting>,
    is_awaited: bool,
    pieces: &[Piece],
) -> Result<Vec<usize>, IngestError> {
    if !cutting.is_coding() {
        return Ok(Vec::new());
    }
    let pieces: Arc<[Piece]> = pieces.into();
    let is_proven = move |cutting: &Cutting, n: usize| {
        Ok::<_, std::convert::Infallible>(pieces.get(n).is_some_and(|piece| cutting.is_proven(n, piece)))
    };
    let proven = on_each_piece(cutting, is_awaited, is_proven).await?;
    Ok((0..).zip(proven).filter_map(|(n, is_proven)| (!is_proven).then_some(n)).collect())
}
