//! Arriving: the mesh is told when the first image of a requested exam is here.
//!
//! It is news for who waits for the exam, nothing that anything depends on: publishing the study decides
//! what the images belong to. So it runs apart from ingest and gathering, which never wait for it; several
//! exams are told of together; and what cannot be told now, without a quorum, is not told at all.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_consensus::Outcome;
use maillage_consensus::View;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{Exam, ExamState, Request};
use maillage_consensus::ids::{CommandId, ExamId, Name};
use maillage_consensus::machine::ApplyError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::gather;
use crate::images::CODED_WITHIN;
use crate::node::Node;

/// First images that come within this time are told of together.
const TOGETHER: Duration = Duration::from_millis(300);
/// Studies that wait to be told of; a site receives from a few modalities at once. Beyond it they are not.
const WAITING_MAX: usize = 256;

/// Where gathering says that a study's first image is here.
pub(crate) type First = mpsc::Sender<String>;

/// A channel for the studies that begin to arrive.
pub(crate) fn channel() -> (First, mpsc::Receiver<String>) {
    mpsc::channel(WAITING_MAX)
}

/// Tells the mesh which exams begin to arrive, until `shutdown`.
pub(crate) async fn run(node: Node, mut first: mpsc::Receiver<String>, shutdown: CancellationToken) {
    while let Some(Some(study)) = shutdown.run_until_cancelled(first.recv()).await {
        let mut studies = BTreeSet::from([study]);
        if shutdown.run_until_cancelled(tokio::time::sleep(TOGETHER)).await.is_none() {
            return;
        }
        while let Ok(study) = first.try_recv() {
            studies.insert(study);
        }
        if let Err(error) = tell(&node, &studies).await {
            tracing::debug!(error = format!("{error:#}"), "not told that images arrive");
        }
    }
}

/// Proposes it for the exams that these studies are of. The first failure ends it: the next would fail, too,
/// after as long a wait.
async fn tell(node: &Node, studies: &BTreeSet<String>) -> anyhow::Result<()> {
    let mut exams = BTreeSet::new();
    for study in studies {
        node.store().landing().until_coded(study, CODED_WITHIN).await;
        let instances = node.store().instances(study).await?;
        let Some(says) = gather::what_they_say(node, &instances).await? else { continue };
        exams.extend(node.read(|view| awaited(view, &says))?);
    }
    for exam in exams {
        // Refused when the study was published meanwhile, or another site told of it.
        match node.command(CommandId::random(), Name::default(), Command::Arrive { exam }).await? {
            Outcome::Done => tracing::debug!(exam = exam.0, "its images arrive"),
            other => tracing::debug!(exam = exam.0, ?other, "its images arrive, which is no news"),
        }
    }
    Ok(())
}

/// The one exam that waits for images that say `says`. None when it is not certain, or it waits no more.
fn awaited(view: &View<'_>, says: &Request) -> Result<Option<ExamId>, ApplyError> {
    let waits = |exam: &Exam| matches!(exam.state, ExamState::Requested | ExamState::Validated | ExamState::Acquiring);
    Ok(requested(view, says)?.filter(waits).map(|exam| exam.id))
}

/// The one exam that was requested of which images are that say `says`, by the rule by which the queue will decide it:
/// accession number and patient. None when it is not certain.
pub(crate) fn requested(view: &View<'_>, says: &Request) -> Result<Option<Exam>, ApplyError> {
    if says.accession.is_empty() {
        return Ok(None);
    }
    let mut exams = view.exams_with_accession(says.accession.as_str())?;
    exams.retain(|exam| {
        let is_there = !exam.state.is_off() && exam.state != ExamState::Purged;
        is_there && exam.unsolicited.is_none() && exam.request.patient.same_as(&says.patient)
    });
    Ok(if exams.len() == 1 { exams.pop() } else { None })
}
