//! What is said of an exam besides its report: second opinions, findings, critical results,
//! discrepancies, notes.

use super::{Applied, exams};
use crate::command::{Envelope, UnixMillisField};
use crate::event::Happened;
use crate::exam::{Exam, Procedure, WorkitemKind, WorkitemState};
use crate::ids::{ExamId, Line, Name, Paragraph};
use crate::life::Step;
use crate::machine::ApplyError;
use crate::outcome::{Outcome, Refusal};
use crate::remark::{Answer, Concordance, Critical, Discrepancy, Finding, Opinion, Remark, Told, What};
use crate::state::State;

/// The exam, if something can be said of it: an author is named, and the text is not empty.
fn spoken(
    state: &State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    text: &Paragraph,
) -> Result<Result<Exam, Refusal>, ApplyError> {
    let Some(exam) = state.exam(id)? else {
        return Ok(Err(Refusal::NoSuchExam));
    };
    if text.is_empty() || envelope.user.is_empty() {
        return Ok(Err(Refusal::Missing(Name::fitted("a text and its author"))));
    }
    Ok(Ok(exam))
}

/// Keeps a remark under the exam's next number; the caller keeps the exam.
fn keep(state: &mut State<'_, '_>, envelope: &Envelope, exam: &mut Exam, what: What) -> u32 {
    exam.course.remarks += 1;
    let (user, site, at) = (envelope.user.clone(), envelope.site, state.now);
    let (number, command) = (exam.course.remarks, envelope.id);
    let remark = Remark { exam: exam.id, number, user, site, at, what, command };
    state.put_remark(None, &remark);
    exam.course.remarks
}

fn say(state: &mut State<'_, '_>, envelope: &Envelope, exam: &Exam, what: What) -> Applied {
    let mut after = exam.clone();
    match &what {
        What::Critical(_) => after.course.critical_open += 1,
        What::Discrepancy(_) => after.course.discrepancies_open += 1,
        What::Opinion(_) => after.course.opinions_open += 1,
        What::Note(_) | What::Finding(_) | What::FollowUp(_) => {}
    }
    let remark = keep(state, envelope, &mut after, what);
    state.put_exam(Some(exam), &after)?;
    Ok(Outcome::Remarked { remark }.into())
}

pub(super) fn note(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, text: &Paragraph) -> Applied {
    match spoken(state, envelope, id, text)? {
        Ok(exam) => say(state, envelope, &exam, What::Note(text.clone())),
        Err(refusal) => Ok(refusal.into()),
    }
}

pub(super) fn follow_up(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, text: &Paragraph) -> Applied {
    let exam = match spoken(state, envelope, id, text)? {
        Ok(exam) => exam,
        Err(refusal) => return Ok(refusal.into()),
    };
    let mut after = exam.clone();
    match exam.after(Step::FollowUp) {
        Ok(next) => after.state = next,
        Err(state) => return Ok(state.into()),
    }
    let remark = keep(state, envelope, &mut after, What::FollowUp(text.clone()));
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Remarked { remark }.into())
}

pub(super) fn ask_opinion(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    of: &Name,
    question: &Paragraph,
) -> Applied {
    let mut exam = match spoken(state, envelope, id, question)? {
        Ok(exam) => exam,
        Err(refusal) => return Ok(refusal.into()),
    };
    if exam.state.is_off() {
        return Ok(exam.state.into());
    }
    let before = exam.clone();
    let workitem = exams::new_number(&mut exam);
    let step = Procedure { kind: WorkitemKind::SecondOpinion, asked: of.clone(), ..Procedure::default() };
    exams::put_scheduled(state, id, workitem, step)?;
    exam.course.opinions_open += 1;
    let opinion = Opinion { of: of.clone(), question: question.clone(), workitem, answer: None };
    let remark = keep(state, envelope, &mut exam, What::Opinion(opinion));
    state.put_exam(Some(&before), &exam)?;
    Ok(Outcome::Remarked { remark }.into())
}

pub(super) fn give_opinion(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    number: u32,
    text: &Paragraph,
    concordance: Concordance,
) -> Applied {
    let exam = match spoken(state, envelope, id, text)? {
        Ok(exam) => exam,
        Err(refusal) => return Ok(refusal.into()),
    };
    let Some(before) = state.remark(id, number)? else {
        return Ok(Refusal::NoSuchRemark.into());
    };
    let mut remark = before.clone();
    let What::Opinion(opinion) = &mut remark.what else {
        return Ok(Refusal::NoSuchRemark.into());
    };
    if opinion.answer.is_some() {
        return Ok(Refusal::DoneAlready.into());
    }
    let (user, site, at) = (envelope.user.clone(), envelope.site, state.now);
    opinion.answer = Some(Answer { user, site, at, text: text.clone(), concordance });
    let workitem = opinion.workitem;
    state.put_remark(Some(&before), &remark);
    // One that was canceled stays so: a UPS that has ended does not end again.
    if let Some(mut workitem) = state.workitem(id, workitem)?
        && matches!(workitem.state, WorkitemState::Scheduled | WorkitemState::InProgress)
    {
        workitem.state = WorkitemState::Completed;
        workitem.at = state.now;
        state.put_workitem(&workitem)?;
    }
    let mut after = exam.clone();
    after.course.opinions_open = after.course.opinions_open.saturating_sub(1);
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

/// The opinion that one workitem was to bring is asked for by another.
pub(super) fn opinion_moved(state: &mut State<'_, '_>, exam: &Exam, from: u32, to: u32) -> Result<(), ApplyError> {
    for number in 1..=exam.course.remarks {
        let Some(before) = state.remark(exam.id, number)? else { continue };
        let mut remark = before.clone();
        match &mut remark.what {
            What::Opinion(opinion) if opinion.workitem == from => opinion.workitem = to,
            _ => continue,
        }
        state.put_remark(Some(&before), &remark);
    }
    Ok(())
}

/// An algorithm's result stands beside the images as the performer of a workitem of its own. It may raise
/// the exam's urgency, and never lowers it.
pub(super) fn add_finding(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, finding: &Finding) -> Applied {
    let Some(mut exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if finding.algorithm.is_empty() || finding.version.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("the algorithm's name and version")).into());
    }
    let open = !exam.state.is_off() && !exam.state.is_reported();
    if let Some(priority) = finding.priority.filter(|priority| open && *priority < exam.request.priority) {
        exam = exams::set_priority(state, &exam, priority, &finding.algorithm)?;
    }
    let before = exam.clone();
    let number = exams::new_number(&mut exam);
    let step = Procedure { kind: WorkitemKind::Analyse, asked: finding.algorithm.clone(), ..Procedure::default() };
    exams::put_scheduled(state, id, number, step)?;
    if let Some(mut workitem) = state.workitem(id, number)? {
        workitem.state = WorkitemState::Completed;
        state.put_workitem(&workitem)?;
    }
    let remark = keep(state, envelope, &mut exam, What::Finding(finding.clone()));
    state.put_exam(Some(&before), &exam)?;
    Ok(Outcome::Remarked { remark }.into())
}

pub(super) fn raise_critical(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, text: &Paragraph) -> Applied {
    let exam = match spoken(state, envelope, id, text)? {
        Ok(exam) => exam,
        Err(refusal) => return Ok(refusal.into()),
    };
    let due_at = UnixMillisField(state.now.0.saturating_add(state.policy()?.critical_ms));
    say(state, envelope, &exam, What::Critical(Critical { text: text.clone(), due_at, escalated: 0, told: None }))
}

pub(super) fn raise_discrepancy(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    grade: u8,
    text: &Paragraph,
) -> Applied {
    let exam = match spoken(state, envelope, id, text)? {
        Ok(exam) => exam,
        Err(refusal) => return Ok(refusal.into()),
    };
    if exam.course.report.is_none() {
        return Ok(exam.state.into());
    }
    say(state, envelope, &exam, What::Discrepancy(Discrepancy { grade, text: text.clone(), told: None }))
}

/// Somebody was told of a critical result, or the physician of a discrepancy.
pub(super) fn tell(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    number: u32,
    whom: &Line,
    read_back: bool,
) -> Applied {
    let (Some(exam), Some(before)) = (state.exam(id)?, state.remark(id, number)?) else {
        return Ok(Refusal::NoSuchRemark.into());
    };
    if whom.is_empty() || envelope.user.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("who was told, and by whom")).into());
    }
    let mut remark = before.clone();
    let mut after = exam.clone();
    let (place, open) = match &mut remark.what {
        What::Critical(critical) => (&mut critical.told, &mut after.course.critical_open),
        What::Discrepancy(discrepancy) => (&mut discrepancy.told, &mut after.course.discrepancies_open),
        _ => return Ok(Refusal::NoSuchRemark.into()),
    };
    if place.is_some() {
        return Ok(Refusal::DoneAlready.into());
    }
    *place = Some(Told { whom: whom.clone(), user: envelope.user.clone(), at: state.now, read_back });
    *open = open.saturating_sub(1);
    state.put_remark(Some(&before), &remark);
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

/// A critical result that nobody acknowledged in time is told again, until somebody does.
pub(super) fn escalate(state: &mut State<'_, '_>, id: ExamId, number: u32) -> Applied {
    let Some(before) = state.remark(id, number)? else {
        return Ok(Refusal::NoSuchRemark.into());
    };
    let mut remark = before.clone();
    let What::Critical(critical) = &mut remark.what else {
        return Ok(Refusal::NoSuchRemark.into());
    };
    if critical.told.is_some() || critical.due_at > state.now {
        return Ok(Refusal::DoneAlready.into());
    }
    critical.escalated += 1;
    critical.due_at = UnixMillisField(state.now.0.saturating_add(state.policy()?.critical_ms));
    state.put_remark(Some(&before), &remark);
    state.happened(id, Happened::Escalated { number });
    Ok(Outcome::Done.into())
}
