//! Gathering: instances of a study become a study that the mesh knows.
//!
//! When nothing more came for a while, the study's manifest is written and proposed, with what the
//! images say of themselves, and the queue decides to which exam they belong. More instances later
//! make a new manifest with a higher sequence number. What a crash interrupted is found at the next
//! start: a study whose instances here outnumber those that the mesh knows, or of which keys are pending.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, StudyPart, UnixMillisField};
use maillage_consensus::exam::{Patient, Priority, Request, Text8};
use maillage_consensus::ids::{CommandId, Line, Name, UidText};
use maillage_dicom::{Attributes, Redacted};
use maillage_store::{Hash, HeldOff, Hold, Instance, StoreError, StudyManifest};
use maillage_transport::chunk::Class;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::arriving::First;
use crate::http::is_cut_off;
use crate::ingest::{Arrival, decode_attributes};
use crate::node::Node;
use crate::pack_day;
use crate::study_keys::Closing;

/// Quiet enough after the sender's association ended. Some senders use an association for each image:
/// what follows within this time still belongs to the same publication.
const AFTER_SENDER: Duration = Duration::from_secs(1);
/// A study that never becomes quiet is published this long after its first instance all the same.
const LATEST: Duration = Duration::from_secs(30);
/// A study that could not be published is tried again after this long, twice as long each time …
const RETRY: Duration = Duration::from_secs(1);
/// … but no longer than this, and at once when a quorum is heard again.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Between two looks whether one is.
const TOUCH: Duration = Duration::from_secs(1);
/// Before a study of which something is still to be coded is looked at again.
const WHILE_CODED: Duration = Duration::from_millis(100);
/// Before it is looked again for unpublished studies when that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Studies read from the index at once when it is looked for unpublished ones.
const PAGE: usize = 256;

/// Publishes studies that have become quiet, until `shutdown`.
/// `first` is told of each that begins.
pub(crate) async fn run(
    node: Node,
    mut received: mpsc::UnboundedReceiver<Arrival>,
    first: First,
    shutdown: CancellationToken,
) {
    let quiet = Duration::from_secs(node.config().dicom.quiet_seconds);
    let mut due: BTreeMap<String, Due> = BTreeMap::new();
    let (mut events, mut mends) = (node.store().events(), node.store().mends());
    let mut look = look_for_unpublished(&node, &mut due).await;
    let (mut touch, mut was_cut_off) = (tokio::time::interval(TOUCH), true);
    loop {
        let next = due.values().map(|due| due.at).min();
        tokio::select! {
            () = shutdown.cancelled() => return,
            arrival = received.recv() => match arrival {
                Some(Arrival::Instance { study }) => {
                    if !due.contains_key(&study) {
                        // When too many begin at once, this one is shown when it is complete.
                        let _ = first.try_send(study.clone());
                    }
                    due.entry(study).or_insert_with(Due::now).arrived(quiet);
                }
                Some(Arrival::Later { study }) => {
                    due.entry(study).or_insert_with(Due::now);
                }
                Some(Arrival::SenderDone { study }) => if let Some(due) = due.get_mut(&study) {
                    due.at = due.at.min(Instant::now() + quiet.min(AFTER_SENDER));
                },
                None => return,
            },
            // A receiver that lags may have missed it; the store outlives this.
            _ = events.recv() => {
                let now = node.store().mends();
                if now != mends {
                    // What was refused when the damage was met may be durable, listed by the new index alone, and a
                    // duplicate when it comes again, of which nobody tells.
                    mends = now;
                    look = Some(Instant::now());
                }
            },
            _ = touch.tick() => {
                let is_cut_off = is_cut_off(node.age());
                if std::mem::replace(&mut was_cut_off, is_cut_off) && !is_cut_off {
                    // Readers wait for what came meanwhile.
                    due.values_mut().for_each(Due::try_now);
                }
            }
            () = reached(look) => look = look_for_unpublished(&node, &mut due).await,
            () = reached(next) => {
                let now = Instant::now();
                let ready: Vec<String> =
                    due.iter().filter(|(_, due)| due.at <= now).map(|(study, _)| study.clone()).collect();
                for study in ready {
                    let Some(mut was) = due.remove(&study) else { continue };
                    if node.store().landing().has_of(&study) {
                        // A sender that outruns the coder would put it off for as long as it sends.
                        was.held_off = was.held_off.or_else(|| node.store().landing().hold_off(&study));
                        due.insert(study, Due { at: now + WHILE_CODED, ..was });
                        continue;
                    }
                    if let Err(error) = publish(&node, &study).await {
                        was.failed();
                        if was.failures == 1 {
                            tracing::warn!(%study, error = format!("{error:#}"), "study not published yet");
                        }
                        due.insert(study, was);
                    }
                }
            }
        }
    }
}

/// Has studies published of which more is here than the mesh knows. When it is to be looked again, if that failed.
async fn look_for_unpublished(node: &Node, due: &mut BTreeMap<String, Due>) -> Option<Instant> {
    match unpublished(node).await {
        Ok(studies) => {
            // A key that is pending has images that the mesh does not know, or is to be forgotten.
            let pending = node.store().keys().pending_studies();
            for study in studies.into_iter().chain(pending) {
                due.entry(study).or_insert_with(Due::now);
            }
            None
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "look for unpublished studies");
            Some(Instant::now() + LOOK_AGAIN)
        }
    }
}

/// Waits for a moment; for ever while there is none.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// When a study is to be published.
#[derive(Debug)]
struct Due {
    at: Instant,
    since: Instant,
    failures: u32,
    /// While it waits for what has landed of it.
    held_off: Option<HeldOff>,
}

impl Due {
    fn now() -> Self {
        Self { at: Instant::now(), since: Instant::now(), failures: 0, held_off: None }
    }

    /// Something new came: later, but not for ever.
    fn arrived(&mut self, quiet: Duration) {
        self.at = (Instant::now() + quiet).min(self.since + LATEST.max(quiet));
    }

    /// What failed is tried again now.
    fn try_now(&mut self) {
        if self.failures > 0 {
            self.at = self.at.min(Instant::now());
        }
    }

    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let wait = RETRY.saturating_mul(1 << self.failures.min(5)).min(RETRY_MAX);
        *self = Self { at: Instant::now() + wait, failures: self.failures, ..Self::now() };
    }
}

/// Studies of which more is here than the mesh knows.
async fn unpublished(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = node.store().studies(after.as_deref(), PAGE).await?;
        for summary in &page {
            let known = published(node, &summary.study_uid)?.map_or(0, |part| u64::from(part.instances));
            if summary.seen.instances > known {
                found.push(summary.study_uid.clone());
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.study_uid.clone()),
            _ => return Ok(found),
        }
    }
}

/// This site's part of a study, as the mesh knows it.
fn published(node: &Node, study: &str) -> anyhow::Result<Option<StudyPart>> {
    let study = node.read(|view| view.study(study))?;
    let held = study.and_then(|study| study.parts.into_iter().find(|held| held.origin == node.site()));
    Ok(held.map(|held| held.part))
}

/// Publishes what is here of a study, unless the mesh knows all of it.
pub(crate) async fn publish(node: &Node, study: &str) -> anyhow::Result<()> {
    let _turn = node.images().publishing().await;
    // What this node has not applied yet may be its own last publication.
    node.linearize().await?;
    let (is_purging, last_purged) = node.read(|view| view.purged_of(node.site(), study))?;
    if is_purging {
        // It would list images that are to be gone.
        anyhow::bail!("what was here of the study is being purged first");
    }
    // First: what comes from now on is sealed under another key than what this publication lists.
    let closing = Closing::of(node, study).await?;
    let instances = closing.of_before(node, study, node.store().instances(study).await?).await?;
    let Some(says) = what_they_say(node, &instances).await? else { return closing.settle(node).await };
    let known = published(node, study)?;
    if let Some(part) = &known
        && is_listed(node, part, &instances).await?
    {
        // Of what an earlier version listed the mesh may lack the key.
        closing.keep(node, study, part.sequence).await?;
        return closing.settle(node).await;
    }
    let sequence = known.map_or(last_purged, |part| part.sequence) + 1;
    let times = instances.iter().map(|instance| instance.received_at.0);
    let (first, last) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
    let entries = instances.into_iter().map(|instance| instance.entry).collect();
    let manifest = StudyManifest::new(study.to_owned(), node.site().0, sequence, entries);
    let part = StudyPart {
        study: UidText::filled(study)?,
        manifest: [0; 32],
        sequence,
        instances: u32::try_from(manifest.instances.len())?,
        bytes: manifest.total_bytes(),
        first_received_at: UnixMillisField(first),
        last_received_at: UnixMillisField(last),
        says,
    };
    let now = UnixMillisField(node.clock().now().0);
    let day = node.read(|view| pack_day::of_images(view, study, &part.says, now))?;
    let address = node.store().put_manifest_until(manifest.encode()?, day).await?;
    let mut hold = node.store().hold(address).await?;
    if let Hold::Incomplete { missing } = &hold {
        tracing::warn!(
            study,
            missing = missing.len(),
            "chunks of the study are damaged here: asking its other holders"
        );
        bring_back(node, study).await?;
        hold = node.store().hold(address).await?;
    }
    if let Hold::Incomplete { missing } = hold {
        anyhow::bail!("{} chunks of the study are missing here", missing.len());
    }
    closing.keep(node, study, sequence).await?;
    let part = StudyPart { manifest: address.0, ..part };
    match node.command(publication_id(node, address), Name::default(), Command::RecordStudy(part)).await? {
        Outcome::StudyRecorded { exam, unsolicited } => {
            tracing::info!(study, exam = exam.0, instances = manifest.instances.len(), ?unsolicited, "study published");
            closing.settle(node).await
        }
        other => anyhow::bail!("record the study: {other:?}"),
    }
}

/// Whether a publication lists exactly what is here: an instance that had to be stored anew is under another
/// manifest.
async fn is_listed(node: &Node, part: &StudyPart, instances: &[Instance]) -> anyhow::Result<bool> {
    if part.instances as usize != instances.len() {
        return Ok(false);
    }
    let manifest = match node.store().study_manifest(Hash(part.manifest)).await {
        Ok(manifest) => manifest,
        Err(StoreError::Corrupt(_)) => None,
        Err(error) => return Err(error.into()),
    };
    // One that is damaged here says nothing. Its other holders have it.
    let Some(manifest) = manifest else { return Ok(true) };
    let listed: BTreeSet<Hash> = manifest.instances.iter().map(|entry| entry.manifest).collect();
    Ok(instances.iter().all(|instance| listed.contains(&instance.entry.manifest)))
}

/// Brings back what was durable here and is damaged, from sites that hold earlier publications of the
/// study: without it, what came since could never be published.
async fn bring_back(node: &Node, study: &str) -> anyhow::Result<()> {
    let parts = node.read(|view| view.study(study))?.map(|study| study.parts).unwrap_or_default();
    for held in parts {
        // Its publication waits for it, and so does the exam's reader.
        if let Err(error) = node.images().pull_part(&held, Class::Reader, None).await {
            tracing::debug!(study, %error, "not brought back");
        }
    }
    Ok(())
}

/// The same publication is the same command, also after a restart.
fn publication_id(node: &Node, manifest: Hash) -> CommandId {
    let mut hasher = blake3::Hasher::new_derive_key("maillage 2026-11 study publication id");
    hasher.update(&node.site().0.to_be_bytes());
    hasher.update(&manifest.0);
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    CommandId(uuid::Builder::from_random_bytes(id).into_uuid())
}

/// What the first of a study's instances that can be opened says of its examination; none without one. Those whose
/// key was destroyed are being purged, or came back with a backup: nobody can read them, or is to.
pub(crate) async fn what_they_say(node: &Node, instances: &[Instance]) -> anyhow::Result<Option<Request>> {
    let mut unknown = None;
    for instance in instances {
        let manifest = node.store().instance_manifest(instance.entry.manifest).await?;
        let manifest = manifest.context("an instance's manifest is not here")?;
        match node.store().attributes(&manifest) {
            Ok(attributes) => {
                let attributes = decode_attributes(&attributes).context("an instance's attributes cannot be read")?;
                return Ok(Some(request_of(&attributes)));
            }
            Err(StoreError::KeyDestroyed(_)) => {}
            // The others are wanted all the same.
            Err(error @ StoreError::KeyUnknown { .. }) => unknown = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    unknown.map_or(Ok(None), |error| Err(error.into()))
}

/// What images say of their examination. They do not say how urgent it is: until a request does, they
/// count as urgent, since waiting is the worse error.
pub(crate) fn request_of(attributes: &Attributes) -> Request {
    let line = |text: &Option<Redacted<String>>| Line::fitted(said(text));
    let code = |text: &Option<Redacted<String>>| Text8::fitted(said(text));
    Request {
        accession: line(&attributes.accession_number),
        patient: Patient {
            id: line(&attributes.patient_id),
            issuer: line(&attributes.issuer_of_patient_id),
            name: line(&attributes.patient_name),
            birth_date: code(&attributes.birth_date),
            sex: code(&attributes.sex),
        },
        modality: code(&attributes.modality),
        description: line(&attributes.study_description),
        hospital: line(&attributes.institution),
        physician: line(&attributes.referring_physician),
        priority: Priority::Urgent,
        awaits_images: true,
    }
}

fn said(text: &Option<Redacted<String>>) -> &str {
    text.as_ref().map_or("", |text| text.expose())
}

#[cfg(test)]
mod tests;
