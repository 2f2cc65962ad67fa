//! An instance that a gateway offers: whether it is wanted, and its way in.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use maillage_consensus::ids::{Name, SiteId};
use maillage_dicom::Uid;
use maillage_store::{Hash, StoreError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::timeout;

use super::{Door, DoorError, RECEIVED_UNIT, RECEIVED_UNITS, is_left_over, not_now, say, telling};
use crate::gateway::wire::{Kept, Offer, Reply};
use crate::ingest::{Announced, IngestError, ReceivedAs, Source};
use crate::node::Node;

/// A place is waited for so long; another centre may have one.
const PLACE_WITHIN: Duration = Duration::from_secs(1);
/// How long a data set may pause on its way. Its sender is believed gone then.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Memory runs ahead of what has arrived by so much.
const STEP_BYTES: usize = 256 << 10;

/// Answers an offer; the stream's own end of it is the caller's.
pub(super) async fn take(
    door: &Door,
    gateway: SiteId,
    offer: Offer,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<Reply, DoorError> {
    let node = &door.node;
    let parsed = [&offer.sop_class, &offer.sop_instance, &offer.transfer_syntax].map(|uid| Uid::parse(uid.as_str()));
    let [Ok(sop_class), Ok(sop_instance), Ok(transfer_syntax)] = parsed else { return Ok(rejected(node, "uid")) };
    let name = match Door::gateway_of(node, gateway) {
        Ok(Some((name, _))) => name,
        // Or not yet: a centre that has just joined or was cut off is behind, and what is refused is not offered again.
        Ok(None) => return Ok(not_now(&"the site is no gateway")),
        Err(reply) => return Ok(reply),
    };
    let max = node.config().dicom.max_instance_mib.saturating_mul(1 << 20);
    let len = match usize::try_from(offer.bytes) {
        Ok(len) if offer.bytes <= max => len,
        _ => return Ok(rejected(node, "too-large")),
    };
    if let Some(reply) = telling(writer, known(node, &offer)).await? {
        return Ok(reply);
    }
    let units = u32::try_from(len.div_ceil(RECEIVED_UNIT)).unwrap_or(u32::MAX).clamp(1, RECEIVED_UNITS);
    let Ok(Ok(_place)) = timeout(PLACE_WITHIN, door.receiving.acquire_many(units)).await else {
        return Ok(not_now(&"too many instances arrive at once"));
    };
    say(writer, &Reply::Send).await?;
    let data_set = telling(writer, receive(reader, len)).await??;
    let announced = Announced { sop_class, sop_instance, transfer_syntax, foreign_preamble: offer.foreign_preamble };
    let source = Source::Gateway { gateway: name.to_string(), source: offer.source.to_string() };
    let work = async {
        if blake3::hash(&data_set).as_bytes() != &offer.dataset {
            // Its bytes here are wrong, whatever it has: it may be asked again.
            node.metrics().rejected("gate", "hash");
            return not_now(&"other bytes came than were offered");
        }
        match node.ingest().receive(source, announced, data_set).await {
            Ok(received) => Reply::Stored(match received.outcome {
                ReceivedAs::New => Kept::New,
                ReceivedAs::Duplicate => Kept::Duplicate,
                ReceivedAs::Conflict => Kept::Conflict,
            }),
            Err(error) => refusal(&error),
        }
    };
    telling(writer, work).await
}

/// The answer to an offer of what is here already, or was purged, or cannot be taken whatever it is.
async fn known(node: &Node, offer: &Offer) -> Option<Reply> {
    let study = offer.study.as_str();
    match node.read(|view| view.purged_whole_at(study)) {
        Ok(purged_at) if is_left_over(purged_at, offer.here_by) => return Some(Reply::Purged),
        Ok(_) => {}
        Err(error) => return Some(not_now(&error)),
    }
    // Nothing is taken, and what is here already is not published: another centre may do both.
    if node.store().has_stopped_writing() {
        return Some(not_now(&"the store has stopped writing"));
    }
    if node.store().is_mending() {
        return Some(not_now(&"the index of the store is being made anew"));
    }
    match is_here(node, offer).await {
        Ok(true) => Some(Reply::Have),
        Ok(false) => None,
        Err(error) => Some(not_now(&error)),
    }
}

/// Whether these very bytes are durable here, and readable as far as is known.
async fn is_here(node: &Node, offer: &Offer) -> Result<bool, StoreError> {
    let store = node.store();
    let Some(instance) = store.instance(offer.sop_instance.as_str()).await? else { return Ok(false) };
    if instance.entry.dataset_hash != Hash(offer.dataset) || instance.study_uid != offer.study.as_str() {
        return Ok(false);
    }
    let manifest = match store.instance_manifest(instance.entry.manifest).await {
        Ok(Some(manifest)) => manifest,
        // Damaged: taking it again repairs it.
        Ok(None) | Err(StoreError::Corrupt(_) | StoreError::Missing(_) | StoreError::Manifest(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let chunks: Vec<Hash> = manifest.chunks.iter().map(|chunk| chunk.hash).collect();
    store.has_all(&chunks).await
}

/// Reads a data set of the length that was offered. Memory grows with what arrives.
async fn receive(reader: &mut (impl AsyncRead + Unpin), len: usize) -> Result<Bytes, DoorError> {
    let mut data_set = BytesMut::new();
    while data_set.len() < len {
        let step = (len - data_set.len()).min(STEP_BYTES);
        data_set.reserve(step);
        let mut limited = (&mut *reader).take(step as u64);
        match timeout(PAUSE_MAX, limited.read_buf(&mut data_set)).await {
            Ok(Ok(0)) => return Err(DoorError::Truncated),
            Ok(read) => read.map(drop)?,
            Err(_) => return Err(DoorError::Slow),
        }
    }
    Ok(data_set.freeze())
}

fn rejected(node: &Node, reason: &'static str) -> Reply {
    node.metrics().rejected("gate", reason);
    Reply::Rejected { reason: Name::fitted(reason) }
}

/// What is wrong with the bytes is final, what is wrong here may be tried again, here or elsewhere.
fn refusal(error: &IngestError) -> Reply {
    if error.is_transient() { not_now(error) } else { Reply::Rejected { reason: Name::fitted(error.reason()) } }
}
