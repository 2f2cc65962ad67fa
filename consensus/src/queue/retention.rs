//! The end of images: when they are to go, what keeps them, and which sites have seen to it.
//!
//! A purge is one command. It takes the images out of the state, so that nobody shows or copies them any more,
//! and leaves a tombstone for each part that every member has to confirm, however long it was away. The keys of
//! what goes are destroyed in the same step, so that from then on no copy can be read. Requests, reports, remarks
//! and the audit trail stay.

use super::{Applied, exams, sealing};
use crate::exam::{Exam, LegalHold, Purged, WorkitemKind};
use crate::ids::{Address, ExamId, Line, Name, SiteId, UidText};
use crate::life::Step;
use crate::machine::ApplyError;
use crate::mesh::{HeldPart, Tombstone};
use crate::outcome::{Outcome, Refusal};
use crate::state::State;

/// What the workitems of an exam that nobody read end with.
const OVER: &str = "the images were purged";

pub(super) fn hold(state: &mut State<'_, '_>, id: ExamId, reason: &Line) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if reason.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("the reason")).into());
    }
    if exam.course.purged.is_some() {
        return Ok(exam.state.into());
    }
    if exam.course.legal_hold.is_some() {
        return Ok(Refusal::DoneAlready.into());
    }
    let mut after = exam.clone();
    after.course.legal_hold = Some(LegalHold { reason: reason.clone(), user: state.user.clone(), at: state.now });
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

pub(super) fn release(state: &mut State<'_, '_>, id: ExamId, reason: &Line) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if reason.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("the reason")).into());
    }
    if exam.course.legal_hold.is_none() {
        return Ok(Refusal::DoneAlready.into());
    }
    let mut after = exam.clone();
    after.course.legal_hold = None;
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

/// Purges an exam's images: when their time is over, by the state's clock; or before, with a reason, those of
/// an exam that is over without a report, or whose patient does not consent.
pub(super) fn purge(state: &mut State<'_, '_>, id: ExamId, reason: &Line, withdrawn: bool) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if let Err(state) = exam.after(Step::Purge) {
        return Ok(state.into());
    }
    if exam.course.legal_hold.is_some() {
        return Ok(Refusal::OnHold.into());
    }
    let hospital = state.hospital(exam.request.hospital.as_str())?;
    let until = state.policy()?.retained_until(hospital.as_ref(), &exam);
    let asked = !reason.is_empty() && (withdrawn || exam.is_confined() || exam.state.is_off());
    if !asked && state.now < until {
        return Ok(Refusal::Retained { until }.into());
    }
    bury(state, &exam, reason)?;
    let mut after = exam.clone();
    after.state = exam.after(Step::Purge).unwrap_or(exam.state);
    after.unsolicited = None;
    after.ended_at.get_or_insert(state.now);
    after.course.purged = Some(Purged { at: state.now, reason: reason.clone(), user: state.user.clone() });
    state.put_exam(Some(&exam), &after)?;
    for kind in [WorkitemKind::Read, WorkitemKind::Regulate, WorkitemKind::SecondOpinion, WorkitemKind::Analyse] {
        exams::end_workitems(state, &after, kind, OVER)?;
    }
    Ok(Outcome::Done.into())
}

/// Takes the exam's parts out of their studies, with a tombstone for each.
fn bury(state: &mut State<'_, '_>, exam: &Exam, reason: &Line) -> Result<(), ApplyError> {
    // A gateway holds no part: what its spool still has of one goes when it next asks whether it is safe.
    let sites = state.sites()?;
    let members: Vec<SiteId> = sites.iter().filter(|site| !site.is_gateway()).map(|site| site.id).collect();
    for uid in &exam.studies {
        let Some(study) = state.study(uid.as_str())? else { continue };
        let mut after = study.clone();
        let gone: Vec<HeldPart> = after.parts.extract_if(.., |held| held.exam == exam.id).collect();
        if gone.is_empty() {
            continue;
        }
        for held in gone {
            let keys = sealing::destroy(state, uid.as_str(), held.origin, held.part.sequence, exam.id)?;
            let tombstone = Tombstone { keys, ..tombstone(held, state.now, reason, &members) };
            state.put_tombstone(None, &tombstone)?;
        }
        if after.parts.is_empty() {
            state.remove_study(&study)?;
        } else {
            state.put_study(Some(&study), &after)?;
        }
    }
    Ok(())
}

fn tombstone(held: HeldPart, at: crate::command::UnixMillisField, reason: &Line, members: &[SiteId]) -> Tombstone {
    let holders = held.all_holders();
    let HeldPart { origin, exam, part, earlier, .. } = held;
    Tombstone {
        exam,
        study: part.study,
        origin,
        manifest: part.manifest,
        earlier: earlier.into_iter().map(|earlier| earlier.part.manifest).collect(),
        sequence: part.sequence,
        instances: part.instances,
        holders,
        at,
        reason: reason.clone(),
        // A site that is no holder may have begun to pull it.
        pending: members.to_vec(),
        confirmed: Vec::new(),
        keys: Vec::new(),
    }
}

/// The proposing site has nothing of a part any more.
pub(super) fn confirm(state: &mut State<'_, '_>, exam: ExamId, study: &UidText, manifest: &Address) -> Applied {
    let Some(before) = state.tombstone(exam, study.as_str(), manifest)? else {
        return Ok(Refusal::NoSuchPart.into());
    };
    let Ok(at) = before.pending.binary_search(&state.site) else {
        return Ok(Refusal::DoneAlready.into());
    };
    let mut after = before.clone();
    after.pending.remove(at);
    after.confirmed.push((state.site, state.now));
    state.put_tombstone(Some(&before), &after)?;
    Ok(Outcome::Done.into())
}
