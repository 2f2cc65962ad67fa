//! Images: which exam they belong to, and which sites hold them.
//!
//! Images meet their request by accession number **and** patient. Anything less certain makes an
//! exam of its own, to be reconciled by a person: never a silent match, never a lost image.

use std::collections::BTreeSet;

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
    let mut held = HeldPart { origin, exam: exam.id, part: part.clone(), holders: vec![origin], earlier: Vec::new() };
    if let Some(HeldPart { part, holders, earlier, .. }) = earlier {
        held.earlier.push(EarlierPart { part, holders });
        held.earlier.extend(earlier);
        forget_needless(state, &mut held)?;
    }
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
    let of_this = |held: &&mut HeldPart| held.publications().any(|(part, _)| part.manifest == *manifest);
    let Some(held) = study.parts.iter_mut().find(of_this) else {
        return Ok(Refusal::NoSuchPart.into());
    };
    let earlier = held.earlier.iter_mut().find(|earlier| earlier.part.manifest == *manifest);
    let holders = earlier.map_or(&mut held.holders, |earlier| &mut earlier.holders);
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
    if state.format < 2 {
        let wanted = state.mesh()?.map_or(1, |mesh| usize::from(mesh.copies));
        held.earlier.retain(|earlier| held.holders.len() < earlier.holders.len().min(wanted));
    } else {
        forget_needless(state, held)?;
    }
    state.put_study(Some(&before), &study)?;
    if !holds && !given_up {
        state.count_lost_copy()?;
    }
    Ok(Outcome::Done.into())
}

/// Forgets the earlier publications of a part that it does without: those of which every holder has a later one, which
/// lists all of it and more, and all when later ones are where they are wanted, and safe.
///
/// What two zones hold is safe, and its sender may have deleted it (storage commitment): were one earlier publication
/// remembered alone, nobody would know who has what came between it and the latest. As many are remembered as there are
/// sites, at the most. Before format 2 it was the one that had the most holders.
pub(super) fn forget_needless(state: &State<'_, '_>, held: &mut HeldPart) -> Result<(), ApplyError> {
    if state.format < 2 {
        // The newest of those with as many.
        held.earlier.sort_by_key(|earlier| std::cmp::Reverse(earlier.holders.len()));
        held.earlier.truncate(1);
        held.earlier.retain(|earlier| earlier.holders.len() > 1);
        return Ok(());
    }
    let plan = state.plan()?;
    let origin = held.origin;
    let mut covered: BTreeSet<SiteId> = held.holders.iter().copied().collect();
    held.earlier.retain(|earlier| {
        let mut news = earlier.holders.iter().filter(|site| !covered.contains(site));
        let adds = news.any(|site| plan.is_of_use(origin, &covered, *site));
        covered.extend(&earlier.holders);
        adds
    });
    Ok(())
}
