//! Adding exams, changing them, and reconciling those that came unasked.

use super::Applied;
use crate::command::UnixMillisField;
use crate::exam::{Exam, ExamState, Priority, Request, Unsolicited, Workitem, WorkitemState};
use crate::ids::{ExamId, Line, Name};
use crate::machine::ApplyError;
use crate::outcome::{Outcome, Refusal};
use crate::state::State;

pub(super) fn add(state: &mut State<'_, '_>, request: &Request) -> Applied {
    let mut cancelled = Vec::new();
    if !request.accession.is_empty() {
        let mut same = state.exams_with_accession(request.accession.as_str())?;
        same.retain(|exam| exam.request.patient.same_as(&request.patient));
        cancelled = same.extract_if(.., |exam| exam.state == ExamState::Cancelled).collect();
        if let Some(exam) = same.iter().find(|exam| exam.unsolicited.is_none()) {
            return Ok(Outcome::ExamAdded { exam: exam.id, existed: true }.into());
        }
        // The images came before the request. Exactly one such exam, of this patient and accession
        // number, is the requested one; several are for a person to reconcile.
        if let [exam] = same.as_slice() {
            adopt(state, exam, request)?;
            return Ok(Outcome::ExamAdded { exam: exam.id, existed: true }.into());
        }
    }
    let exam = create(state, request, None)?;
    let mut after = exam.clone();
    for from in cancelled.iter().filter(|exam| exam.reconciled_into.is_none()) {
        // Requested again after a cancellation: the images that came for the first request are here.
        take_studies(state, from, &mut after)?;
    }
    if after != exam {
        state.put_exam(Some(&exam), &after)?;
    }
    Ok(Outcome::ExamAdded { exam: exam.id, existed: false }.into())
}

/// Moves the images of `from` to `to`, which becomes ready by them.
fn take_studies(state: &mut State<'_, '_>, from: &Exam, to: &mut Exam) -> Result<(), ApplyError> {
    for uid in &from.studies {
        if !to.studies.contains(uid) {
            to.studies.push(uid.clone());
        }
        if let Some(study) = state.study(uid.as_str())? {
            let mut moved = study.clone();
            for held in moved.parts.iter_mut().filter(|held| held.exam == from.id) {
                held.exam = to.id;
            }
            state.put_study(Some(&study), &moved)?;
        }
    }
    if !from.studies.is_empty() {
        to.images_after_report |= to.state == ExamState::Reported;
        make_ready(to, from.ready_at.unwrap_or(state.now));
    }
    Ok(())
}

/// The request of an exam that so far had only images.
fn adopt(state: &mut State<'_, '_>, exam: &Exam, request: &Request) -> Result<(), ApplyError> {
    let mut after = exam.clone();
    after.request = request.clone();
    after.unsolicited = None;
    set_due(&mut after);
    state.put_exam(Some(exam), &after)
}

/// A new exam with its first workitem. One that awaits no images is in the waiting room at once.
pub(super) fn create(
    state: &mut State<'_, '_>,
    request: &Request,
    unsolicited: Option<Unsolicited>,
) -> Result<Exam, ApplyError> {
    let mut exam = Exam {
        id: ExamId(state.index),
        request: request.clone(),
        state: ExamState::Requested,
        added_at: state.now,
        ready_at: None,
        due_at: None,
        ended_at: None,
        unsolicited,
        reconciled_into: None,
        studies: Vec::new(),
        workitem: 1,
        claim: None,
        reports: 0,
        images_after_report: false,
    };
    if !request.awaits_images {
        make_ready(&mut exam, state.now);
    }
    state.put_exam(None, &exam)?;
    put_scheduled(state, exam.id, 1);
    Ok(exam)
}

/// Puts a requested exam into the waiting room.
pub(super) fn make_ready(exam: &mut Exam, now: UnixMillisField) {
    if exam.state == ExamState::Requested {
        exam.state = ExamState::Waiting;
        exam.ready_at = Some(now);
        set_due(exam);
    }
}

fn set_due(exam: &mut Exam) {
    let target = exam.request.priority.target_ms();
    exam.due_at = exam.ready_at.map(|ready| UnixMillisField(ready.0.saturating_add(target)));
}

/// A new workitem that nobody has.
pub(super) fn put_scheduled(state: &mut State<'_, '_>, exam: ExamId, number: u32) {
    state.put_workitem(&Workitem {
        exam,
        number,
        state: WorkitemState::Scheduled,
        performer: None,
        reason: Line::default(),
        at: state.now,
    });
}

pub(super) fn cancel(state: &mut State<'_, '_>, id: ExamId, reason: &Line) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    match exam.state {
        ExamState::Requested | ExamState::Waiting => {}
        other => return Ok(Refusal::WrongState { state: other }.into()),
    }
    end_unread(state, &exam, None, reason)?;
    Ok(Outcome::Done.into())
}

fn end_unread(
    state: &mut State<'_, '_>,
    exam: &Exam,
    reconciled_into: Option<ExamId>,
    reason: &Line,
) -> Result<(), ApplyError> {
    let mut after = exam.clone();
    after.state = ExamState::Cancelled;
    after.ended_at = Some(state.now);
    after.reconciled_into = reconciled_into;
    after.unsolicited = None;
    state.put_exam(Some(exam), &after)?;
    if let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::Canceled;
        workitem.reason = reason.clone();
        workitem.at = state.now;
        state.put_workitem(&workitem);
    }
    Ok(())
}

pub(super) fn prioritise(state: &mut State<'_, '_>, id: ExamId, priority: Priority) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if matches!(exam.state, ExamState::Reported | ExamState::Cancelled) {
        return Ok(Refusal::WrongState { state: exam.state }.into());
    }
    let mut after = exam.clone();
    after.request.priority = priority;
    set_due(&mut after);
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

pub(super) fn reconcile(state: &mut State<'_, '_>, unsolicited: ExamId, into: ExamId) -> Applied {
    let (Some(from), Some(target)) = (state.exam(unsolicited)?, state.exam(into)?) else {
        return Ok(Refusal::NoSuchExam.into());
    };
    let refuse = |why: &str| Ok(Refusal::CannotReconcile(Name::fitted(why)).into());
    if from.unsolicited.is_none() || from.id == target.id {
        return refuse("the first exam is not an unsolicited one");
    }
    if target.unsolicited.is_some() || target.state == ExamState::Cancelled {
        return refuse("the second exam is not a request to be read");
    }
    if from.state != ExamState::Waiting {
        return Ok(Refusal::WrongState { state: from.state }.into());
    }
    let mut after = target.clone();
    take_studies(state, &from, &mut after)?;
    state.put_exam(Some(&target), &after)?;
    end_unread(state, &from, Some(target.id), &Line::fitted("reconciled into another exam"))?;
    Ok(Outcome::Done.into())
}
