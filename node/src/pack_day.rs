//! The rules of retention to the store's packs: with what goes on which day images are laid down.
//!
//! It is what is likely when they come here, so that most of a pack goes at once. Nothing is purged by it, and rules
//! may change: images go when their exam is purged, wherever they lie.

use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Exam, Request};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::HeldPart;

use crate::arriving;

pub(crate) const DAY_MS: u64 = 24 * 3_600_000;

/// … images of a study that say `says`; none while it is not known of which exam they are.
pub(crate) fn of_images(
    view: &View<'_>,
    study: &str,
    says: &Request,
    now: UnixMillisField,
) -> Result<Option<u64>, ApplyError> {
    let exam = match known(view, study, says)? {
        Some(exam) => Some(exam),
        None => arriving::requested(view, says)?,
    };
    exam.map(|exam| of_exam(view, &exam, now)).transpose()
}

/// … a part that is brought here, now by the state's clock: it has moved with what made the part known.
pub(crate) fn of_part(view: &View<'_>, held: &HeldPart) -> Result<Option<u64>, ApplyError> {
    let now = view.clock()?;
    view.exam(held.exam)?.map(|exam| of_exam(view, &exam, now)).transpose()
}

fn of_exam(view: &View<'_>, exam: &Exam, now: UnixMillisField) -> Result<u64, ApplyError> {
    Ok(view.expected_until(exam, now)?.0 / DAY_MS)
}

/// The exam of what is known of a study already, as the queue finds it.
fn known(view: &View<'_>, study: &str, says: &Request) -> Result<Option<Exam>, ApplyError> {
    for held in view.study(study)?.map(|study| study.parts).unwrap_or_default() {
        if let Some(exam) = view.exam(held.exam)?
            && !exam.state.is_off()
            && exam.request.patient.same_as(&says.patient)
        {
            return Ok(Some(exam));
        }
    }
    Ok(None)
}
