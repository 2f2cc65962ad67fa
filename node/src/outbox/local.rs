//! Whether this site holds all images of an exam, by its own disk: what it may read by break glass.

use maillage_consensus::exam::Exam;
use maillage_store::{Hash, StoreError};

use crate::images::CODED_WITHIN;
use crate::ingest::decode_attributes;
use crate::node::Node;

/// Studies read from the index at once.
const PAGE: usize = 256;

/// What of an exam's images is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Local {
    /// All that is known of, in these studies.
    All(Vec<String>),
    /// Something is elsewhere; none of a study is known of at all when this is empty.
    Lacking(Vec<String>),
}

/// What of an exam's images is here: of the studies that the mesh knows, and else of those that came
/// here since the quorum was lost and name the exam's accession number and patient.
///
/// # Errors
/// The state or the store cannot be read.
pub(crate) async fn images_of(node: &Node, exam: &Exam) -> anyhow::Result<Local> {
    if exam.studies.is_empty() {
        let came = unpublished(node, exam).await?;
        let landing = node.store().landing();
        for study in &came {
            landing.until_coded(study, CODED_WITHIN).await;
        }
        let (lacking, here): (Vec<_>, Vec<_>) = came.into_iter().partition(|study| landing.has_of(study));
        return Ok(if here.is_empty() || !lacking.is_empty() { Local::Lacking(lacking) } else { Local::All(here) });
    }
    let (mut here, mut lacking) = (Vec::new(), Vec::new());
    for uid in &exam.studies {
        let parts = node.read(|view| view.study(uid.as_str()))?.map(|study| study.parts).unwrap_or_default();
        let mut whole = !parts.is_empty();
        for held in &parts {
            // Looked at, and not held: nobody would tell the mesh of such a copy.
            whole &= node.store().lacks(Hash(held.part.manifest)).await?.is_empty();
        }
        if whole { &mut here } else { &mut lacking }.push(uid.to_string());
    }
    Ok(if lacking.is_empty() { Local::All(here) } else { Local::Lacking(lacking) })
}

/// Studies of which the mesh knows nothing, with this accession number and patient.
async fn unpublished(node: &Node, exam: &Exam) -> anyhow::Result<Vec<String>> {
    let (mut found, mut after) = (Vec::new(), None::<String>);
    let request = &exam.request;
    if request.accession.is_empty() || request.patient.id.is_empty() {
        return Ok(found);
    }
    loop {
        let page = node.store().studies(after.as_deref(), PAGE).await?;
        for summary in &page {
            if node.read(|view| view.study(&summary.study_uid))?.is_some() {
                continue;
            }
            let Some(first) = node.store().instances(&summary.study_uid).await?.into_iter().next() else { continue };
            // What is damaged or cannot be opened is no image that could be read, and keeps no other from being read.
            let manifest = match node.store().instance_manifest(first.entry.manifest).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) | Err(StoreError::Corrupt(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let Ok(attributes) = node.store().attributes(&manifest) else { continue };
            let Some(says) = decode_attributes(&attributes) else { continue };
            let said = crate::gather::request_of(&says);
            if said.accession == request.accession && said.patient.same_as(&request.patient) {
                found.push(summary.study_uid.clone());
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.study_uid.clone()),
            _ => return Ok(found),
        }
    }
}
