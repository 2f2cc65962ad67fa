//! Adding exams, changing them, and reconciling those that came unasked.

use super::Applied;
use crate::command::UnixMillisField;
use crate::event::Happened;
use crate::exam::{
    Course, Exam, ExamState, Priority, Procedure, Request, Skipped, Unsolicited, Workitem, WorkitemKind, WorkitemState,
};
use crate::ids::{ExamId, Line, Name};
use crate::life::Step;
use crate::machine::ApplyError;
use crate::order::{Consent, Order};
use crate::outcome::{Outcome, Refusal};
use crate::state::State;

pub(super) fn add(state: &mut State<'_, '_>, request: &Request, order: Option<&Order>) -> Applied {
    let order = complete(state, request, order)?;
    let mut cancelled = Vec::new();
    if !request.accession.is_empty() {
        let mut same = state.exams_with_accession(request.accession.as_str())?;
        same.retain(|exam| exam.request.patient.same_as(&request.patient));
        // What was purged without having been read answers no request.
        same.retain(|exam| exam.state != ExamState::Purged || exam.course.report.is_some());
        cancelled = same.extract_if(.., |exam| exam.state.is_off()).collect();
        if let Some(exam) = same.iter().find(|exam| exam.unsolicited.is_none()) {
            if order.consent == Consent::Refused && !exam.is_confined() {
                withdraw_consent(state, exam)?;
            }
            return Ok(Outcome::ExamAdded { exam: exam.id, existed: true }.into());
        }
        // The images came before the request. Exactly one such exam, of this patient and accession
        // number, is the requested one; several are for a person to reconcile.
        if let [exam] = same.as_slice() {
            adopt(state, exam, request, order)?;
            return Ok(Outcome::ExamAdded { exam: exam.id, existed: true }.into());
        }
    }
    let exam = create(state, request, order, None)?;
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

/// The patient withdraws what was declared: from now on the images stay where they were received, and the
/// sites that have copies give them up.
fn withdraw_consent(state: &mut State<'_, '_>, exam: &Exam) -> Result<(), ApplyError> {
    let mut after = exam.clone();
    after.course.order.consent = Consent::Refused;
    state.put_exam(Some(exam), &after)?;
    note_consent(state, &after)
}

/// An exam's images may have to stay where they were received: notes which are elsewhere, and that no copies of
/// them are missed.
fn note_consent(state: &mut State<'_, '_>, exam: &Exam) -> Result<(), ApplyError> {
    for uid in &exam.studies {
        if let Some(study) = state.study(uid.as_str())? {
            state.note_consent(&study)?;
        }
    }
    Ok(())
}

/// An order with what the hospital's contract adds to it.
fn complete(state: &State<'_, '_>, request: &Request, order: Option<&Order>) -> Result<Order, ApplyError> {
    let Some(order) = order else { return Ok(Order::default()) };
    let hospital = state.hospital(request.hospital.as_str())?;
    Ok(Order { regulate: order.regulate || hospital.is_some_and(|hospital| hospital.regulate), ..order.clone() })
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
        to.images_after_report |= to.state.is_reported();
        images_came(state, to, from.ready_at.unwrap_or(state.now))?;
    }
    Ok(())
}

/// The request of an exam that so far had only images.
fn adopt(state: &mut State<'_, '_>, exam: &Exam, request: &Request, order: Order) -> Result<(), ApplyError> {
    let mut after = exam.clone();
    after.request = request.clone();
    after.unsolicited = None;
    if state.format >= 2 {
        after.course.skipped.push(Skipped::RequestBeforeImages);
        if order.regulate {
            after.course.skipped.push(Skipped::Regulation);
        }
        if order.consent == Consent::Undeclared {
            after.course.skipped.push(Skipped::Consent);
        }
        after.course.order = order;
    }
    set_due(&mut after);
    state.put_exam(Some(exam), &after)?;
    note_consent(state, &after)
}

/// A new exam with its first workitem. One that waits for nothing is in the waiting room at once.
pub(super) fn create(
    state: &mut State<'_, '_>,
    request: &Request,
    order: Order,
    unsolicited: Option<Unsolicited>,
) -> Result<Exam, ApplyError> {
    let regulate = order.regulate;
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
        course: Course { order, ..Course::default() },
    };
    put_scheduled(state, exam.id, 1, Procedure::default())?;
    if regulate {
        let number = new_number(&mut exam);
        put_scheduled(state, exam.id, number, Procedure { kind: WorkitemKind::Regulate, ..Procedure::default() })?;
    }
    if !request.awaits_images {
        images_came(state, &mut exam, state.now)?;
    }
    state.put_exam(None, &exam)?;
    Ok(exam)
}

/// The images of an exam are there since `at`: it goes into the waiting room, unless a regulator's word
/// is still to come. An emergency does not wait for it, and the record says so.
pub(super) fn images_came(state: &mut State<'_, '_>, exam: &mut Exam, at: UnixMillisField) -> Result<(), ApplyError> {
    if exam.after(Step::Ready).is_err() {
        return Ok(());
    }
    if state.format >= 2 {
        exam.course.images_at.get_or_insert(at);
    }
    if exam.awaits_regulation() {
        if !exam.is_emergency() {
            exam.state = exam.after(Step::Arrive).unwrap_or(exam.state);
            return Ok(());
        }
        skip_regulation(state, exam, "an emergency did not wait for it")?;
    }
    make_ready(state, exam, at);
    Ok(())
}

/// Notes that an exam goes on without a regulator's word.
pub(super) fn skip_regulation(state: &mut State<'_, '_>, exam: &mut Exam, why: &str) -> Result<(), ApplyError> {
    exam.course.skipped.push(Skipped::Regulation);
    end_workitems(state, exam, WorkitemKind::Regulate, why)
}

/// Puts an exam into the waiting room, as it has been ready since `at`.
pub(super) fn make_ready(state: &State<'_, '_>, exam: &mut Exam, at: UnixMillisField) {
    let Ok(ready) = exam.after(Step::Ready) else { return };
    exam.state = ready;
    exam.ready_at = Some(at);
    let undeclared = exam.course.order.consent == Consent::Undeclared && exam.unsolicited.is_none();
    if state.format >= 2 && undeclared {
        exam.course.skipped.push(Skipped::Consent);
    }
    set_due(exam);
}

fn set_due(exam: &mut Exam) {
    let target = exam.request.priority.target_ms();
    exam.due_at = exam.ready_at.map(|ready| UnixMillisField(ready.0.saturating_add(target)));
}

/// A number for one more workitem of an exam.
pub(super) fn new_number(exam: &mut Exam) -> u32 {
    exam.course.workitems = exam.course.workitems.max(exam.workitem) + 1;
    exam.course.workitems
}

/// A new workitem that nobody has.
pub(super) fn put_scheduled(
    state: &mut State<'_, '_>,
    exam: ExamId,
    number: u32,
    step: Procedure,
) -> Result<(), ApplyError> {
    let step = if state.format < 2 { Procedure::default() } else { Procedure { made_at: state.now, ..step } };
    let (at, reason) = (state.now, Line::default());
    state.put_workitem(&Workitem { exam, number, state: WorkitemState::Scheduled, performer: None, reason, at, step })
}

/// Cancels an exam's workitems of a kind that are not ended, with the reason.
pub(super) fn end_workitems(
    state: &mut State<'_, '_>,
    exam: &Exam,
    kind: WorkitemKind,
    reason: &str,
) -> Result<(), ApplyError> {
    change_workitems(state, exam, kind, |workitem| {
        workitem.state = WorkitemState::Canceled;
        workitem.reason = Line::fitted(reason);
    })
}

/// Changes an exam's workitems of a kind that are not ended.
pub(super) fn change_workitems(
    state: &mut State<'_, '_>,
    exam: &Exam,
    kind: WorkitemKind,
    mut change: impl FnMut(&mut Workitem),
) -> Result<(), ApplyError> {
    for number in 1..=exam.course.workitems.max(exam.workitem) {
        let Some(mut workitem) = state.workitem(exam.id, number)? else { continue };
        let ended = matches!(workitem.state, WorkitemState::Canceled | WorkitemState::Completed);
        if workitem.step.kind == kind && !ended {
            change(&mut workitem);
            workitem.at = state.now;
            state.put_workitem(&workitem)?;
        }
    }
    Ok(())
}

pub(super) fn cancel(state: &mut State<'_, '_>, id: ExamId, reason: &Line) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    match exam.after(Step::Cancel) {
        Ok(_) => {}
        Err(state) => return Ok(state.into()),
    }
    end_unread(state, &exam, Step::Cancel, None, reason)?;
    Ok(Outcome::Done.into())
}

/// Ends an exam that nobody has read, and all its workitems.
pub(super) fn end_unread(
    state: &mut State<'_, '_>,
    exam: &Exam,
    by: Step,
    reconciled_into: Option<ExamId>,
    reason: &Line,
) -> Result<(), ApplyError> {
    let mut after = exam.clone();
    after.state = exam.after(by).unwrap_or(ExamState::Cancelled);
    after.ended_at = Some(state.now);
    after.reconciled_into = reconciled_into;
    after.unsolicited = None;
    state.put_exam(Some(exam), &after)?;
    for kind in [WorkitemKind::Read, WorkitemKind::Regulate, WorkitemKind::SecondOpinion, WorkitemKind::Analyse] {
        end_workitems(state, exam, kind, reason.as_str())?;
    }
    Ok(())
}

pub(super) fn prioritise(state: &mut State<'_, '_>, id: ExamId, priority: Priority) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if exam.state.is_reported() || exam.state.is_off() {
        return Ok(exam.state.into());
    }
    let by = state.user.clone();
    set_priority(state, &exam, priority, &by)?;
    Ok(Outcome::Done.into())
}

/// Changes an exam's urgency, and says by whom.
pub(super) fn set_priority(
    state: &mut State<'_, '_>,
    exam: &Exam,
    priority: Priority,
    by: &Name,
) -> Result<Exam, ApplyError> {
    let mut after = exam.clone();
    after.request.priority = priority;
    set_due(&mut after);
    if state.format >= 2 {
        after.course.raised_by.clone_from(by);
        // What is now an emergency waits for nobody.
        if let Some(at) = after.course.images_at.filter(|_| after.ready_at.is_none()) {
            images_came(state, &mut after, at)?;
        }
    }
    state.put_exam(Some(exam), &after)?;
    state.happened(exam.id, Happened::Priority { to: priority, by: by.clone() });
    Ok(after)
}

pub(super) fn reconcile(state: &mut State<'_, '_>, unsolicited: ExamId, into: ExamId) -> Applied {
    let (Some(from), Some(target)) = (state.exam(unsolicited)?, state.exam(into)?) else {
        return Ok(Refusal::NoSuchExam.into());
    };
    let refuse = |why: &str| Ok(Refusal::CannotReconcile(Name::fitted(why)).into());
    if from.unsolicited.is_none() || from.id == target.id {
        return refuse("the first exam is not an unsolicited one");
    }
    if target.unsolicited.is_some() || target.state.is_off() || target.state == ExamState::Purged {
        return refuse("the second exam is not a request to be read");
    }
    if from.state != ExamState::Waiting {
        return Ok(Refusal::WrongState { state: from.state }.into());
    }
    let mut after = target.clone();
    take_studies(state, &from, &mut after)?;
    state.put_exam(Some(&target), &after)?;
    state.happened(from.id, Happened::Reconciled { into: target.id });
    end_unread(state, &from, Step::Cancel, Some(target.id), &Line::fitted("reconciled into another exam"))?;
    Ok(Outcome::Done.into())
}
