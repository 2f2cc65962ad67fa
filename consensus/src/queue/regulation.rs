//! Before the images: a regulator's verdict, the scan, the first image.

use super::{Applied, exams};
use crate::command::Envelope;
use crate::exam::{ExamState, Regulation, Skipped, Verdict, WorkitemKind, WorkitemState};
use crate::ids::{ExamId, Name};
use crate::life::Step;
use crate::outcome::{Outcome, Refusal};
use crate::state::State;

pub(super) fn regulate(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, verdict: &Verdict) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    let (step, missing) = match verdict {
        Verdict::Validated { protocol } => (Step::Validate, protocol.is_empty().then_some("a protocol")),
        Verdict::Refused { reason } => (Step::Refuse, reason.is_empty().then_some("a reason")),
    };
    let next = match exam.after(step) {
        Ok(next) => next,
        Err(state) => return Ok(state.into()),
    };
    if let Some(what) = missing {
        return Ok(Refusal::Missing(Name::fitted(what)).into());
    }
    let mut after = exam.clone();
    let (user, site, at) = (envelope.user.clone(), envelope.site, state.now);
    after.course.regulation = Some(Regulation { user, site, at, verdict: verdict.clone() });
    exams::change_workitems(state, &exam, WorkitemKind::Regulate, |workitem| {
        workitem.state = WorkitemState::Completed;
    })?;
    if let Verdict::Refused { reason } = verdict {
        // The verdict is kept with the exam before it ends.
        state.put_exam(Some(&exam), &after)?;
        exams::end_unread(state, &after, Step::Refuse, None, reason)?;
        return Ok(Outcome::Done.into());
    }
    after.state = next;
    if let Some(at) = after.course.images_at {
        exams::make_ready(state, &mut after, at);
    }
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

pub(super) fn acquire(state: &mut State<'_, '_>, id: ExamId) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    let next = match exam.after(Step::Acquire) {
        Ok(next) => next,
        Err(state) => return Ok(state.into()),
    };
    let mut after = exam.clone();
    if exam.awaits_regulation() {
        if !exam.is_emergency() {
            return Ok(Refusal::Missing(Name::fitted("a regulator's verdict")).into());
        }
        after.course.skipped.push(Skipped::RegulationBeforeAcquisition);
    }
    after.state = next;
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

/// The first image arrived. Anything but progress is no news: a second site receives, or the whole study
/// was published first.
pub(super) fn arrive(state: &mut State<'_, '_>, id: ExamId) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if exam.state == ExamState::Receiving {
        return Ok(Outcome::Done.into());
    }
    let next = match exam.after(Step::Arrive) {
        Ok(next) => next,
        Err(state) => return Ok(state.into()),
    };
    let mut after = exam.clone();
    after.state = next;
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}
