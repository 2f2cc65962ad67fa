//! Images: which exam they belong to, and which sites hold them.
//!
//! Images meet their request by accession number **and** patient. Anything less certain makes an
//! exam of its own, to be reconciled by a person: never a silent match, never a lost image.

use super::{Applied, exams};
use crate::command::StudyPart;
use crate::event::Happened;
use crate::exam::{Exam, ExamState, Request, Unsolicited};
use crate::ids::{Address, SiteId, UidText};
use crate::machine::ApplyError;
use crate::mesh::{EarlierPart, HeldPart, Study};
use crate::order::Order;
use crate::outcome::{Outcome, Refusal};
use crate::state::State;

/// Zones, and where there is one only sites, in which images are safe.
const SAFE: usize = 2;

pub(super) fn record(state: &mut State<'_, '_>, origin: SiteId, part: &StudyPart) -> Applied {
    let before = state.study(part.study.as_str())?;
    let mut study = before.clone().unwrap_or_else(|| Study { uid: part.study.clone(), parts: Vec::new() });
    let known = study.parts.iter().position(|held| held.origin == origin);
    let earlier = known.and_then(|at| study.parts.get(at)).cloned();
    if let Some(held) = &earlier
        && held.part.sequence >= part.sequence
    {
        if held.part.manifest != part.manifest {
            return Ok(Refusal::PartSuperseded { sequence: held.part.sequence }.into());
        }
        let unsolicited = state.exam(held.exam)?.and_then(|exam| exam.unsolicited);
        return Ok(Outcome::StudyRecorded { exam: held.exam, unsolicited }.into());
    }
    // Else what its publication lists could be images that are to be gone.
    if state.has_to_purge(origin, part.study.as_str())? {
        return Ok(Refusal::Purging.into());
    }
    let last_purged = state.last_purged(part.study.as_str(), origin)?;
    if last_purged > 0 && part.sequence <= last_purged {
        return Ok(Refusal::PartSuperseded { sequence: last_purged }.into());
    }
    // A part published again keeps its exam: its patient was checked at the node, instance by
    // instance, and a person may have reconciled it since. A cancelled exam keeps nothing.
    let exam = match &earlier {
        Some(held) => state.exam(held.exam)?.filter(|exam| !exam.state.is_off()),
        None => None,
    };
    let exam = match exam {
        Some(exam) => exam,
        None => match belongs_to(state, &study, &part.says)? {
            Ok(exam) => exam,
            Err(reason) => {
                let request = Request { awaits_images: true, ..part.says.clone() };
                exams::create(state, &request, Order::default(), Some(reason))?
            }
        },
    };
    let previous = earlier.map(|earlier| best_held(state, earlier)).transpose()?.flatten();
    let held = HeldPart { origin, exam: exam.id, part: part.clone(), holders: vec![origin], previous };
    match known.and_then(|at| study.parts.get_mut(at)) {
        Some(place) => *place = held,
        None => study.parts.push(held),
    }
    state.put_study(before.as_ref(), &study)?;

    let mut after = exam.clone();
    if !after.studies.contains(&part.study) {
        after.studies.push(part.study.clone());
    }
    after.images_after_report |= after.state.is_reported();
    exams::images_came(state, &mut after, state.now)?;
    state.put_exam(Some(&exam), &after)?;
    state.happened(exam.id, Happened::Images { study: part.study.clone(), instances: part.instances });
    Ok(Outcome::StudyRecorded { exam: after.id, unsolicited: after.unsolicited }.into())
}

/// The exam that images which say `says` belong to, or why none.
fn belongs_to(state: &State<'_, '_>, study: &Study, says: &Request) -> Result<Result<Exam, Unsolicited>, ApplyError> {
    // Another site received some of this very study: same exam, if it is the same patient.
    for held in &study.parts {
        if let Some(exam) = state.exam(held.exam)?
            && !exam.state.is_off()
            && exam.request.patient.same_as(&says.patient)
        {
            return Ok(Ok(exam));
        }
    }
    if says.accession.is_empty() || says.patient.id.is_empty() {
        return Ok(Err(Unsolicited::NoIdentifiers));
    }
    let mut requests = state.exams_with_accession(says.accession.as_str())?;
    // What comes after a purge is an exam of its own.
    requests.retain(|exam| !exam.state.is_off() && exam.state != ExamState::Purged);
    let (same, others): (Vec<_>, Vec<_>) =
        requests.into_iter().partition(|exam| exam.request.patient.same_as(&says.patient));
    let (mut unsolicited, mut requested): (Vec<_>, Vec<_>) =
        same.into_iter().partition(|exam| exam.unsolicited.is_some());
    Ok(match (requested.len(), unsolicited.len()) {
        (1, _) => Ok(requested.remove(0)),
        // Another study of an exam that came unasked: one exam, still to be reconciled.
        (0, 1) => Ok(unsolicited.remove(0)),
        (0, 0) if others.is_empty() => Err(Unsolicited::NoRequest),
        (0, 0) => Err(Unsolicited::OtherPatient),
        _ => Err(Unsolicited::Ambiguous),
    })
}

pub(super) fn record_holding(
    state: &mut State<'_, '_>,
    site: SiteId,
    uid: &UidText,
    manifest: &Address,
    holds: bool,
) -> Applied {
    let Some(before) = state.study(uid.as_str())? else {
        return Ok(Refusal::NoSuchPart.into());
    };
    let mut study = before.clone();
    let wanted = state.mesh()?.map_or(1, |mesh| usize::from(mesh.copies));
    let of_this = |held: &&mut HeldPart| {
        held.part.manifest == *manifest
            || held.previous.as_ref().is_some_and(|earlier| earlier.part.manifest == *manifest)
    };
    let Some(held) = study.parts.iter_mut().find(of_this) else {
        return Ok(Refusal::NoSuchPart.into());
    };
    let holders = match &mut held.previous {
        Some(earlier) if earlier.part.manifest == *manifest => &mut earlier.holders,
        _ => &mut held.holders,
    };
    let changes = match (holders.binary_search(&site), holds) {
        (Err(at), true) => {
            holders.insert(at, site);
            true
        }
        (Ok(at), false) => {
            holders.remove(at);
            true
        }
        _ => false,
    };
    if site == held.origin {
        // It says so again when it has read every byte.
        state.vouch(uid.as_str(), manifest, holds)?;
    }
    if !changes {
        return Ok(Outcome::Done.into());
    }
    let given_up = site != held.origin && state.exam(held.exam)?.is_some_and(|exam| exam.is_confined());
    if let Some(earlier) = &held.previous
        && held.holders.len() >= earlier.holders.len().min(wanted)
        && (state.format < 2 || !is_held_better(state, &earlier.holders, &held.holders)?)
    {
        held.previous = None;
    }
    state.put_study(Some(&before), &study)?;
    if !holds && !given_up {
        state.count_lost_copy()?;
    }
    Ok(Outcome::Done.into())
}

/// The publication, of a part and the one before it, that is to be remembered beside one that only its origin holds
/// yet; none if nobody but the origin holds either.
fn best_held(state: &State<'_, '_>, held: HeldPart) -> Result<Option<EarlierPart>, ApplyError> {
    let this = EarlierPart { part: held.part, holders: held.holders };
    let best = match held.previous {
        Some(earlier) if is_held_better(state, &earlier.holders, &this.holders)? => earlier,
        _ => this,
    };
    Ok((best.holders.len() > 1).then_some(best))
}

/// Whether an earlier publication with these holders has to be remembered before a later one with those, which lists
/// all of it and more.
///
/// What two zones hold is safe: its sender may have deleted it (storage commitment). Were an earlier publication that
/// more sites hold remembered in its place, nobody would know who has what came between the two. Before format 2 the
/// one with more holders was.
fn is_held_better(state: &State<'_, '_>, earlier: &[SiteId], later: &[SiteId]) -> Result<bool, ApplyError> {
    if state.format < 2 {
        return Ok(earlier.len() > later.len());
    }
    let plan = state.plan()?;
    let safety = |holders: &[SiteId]| (plan.zones_of(holders).min(SAFE), holders.len().min(SAFE));
    Ok(safety(earlier) > safety(later))
}
