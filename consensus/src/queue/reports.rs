//! Reports: preliminary, final, addenda; those under a lost claim are kept beside them.

use serde_bytes::ByteBuf;

use super::{Applied, Effect, claims, exams};
use crate::command::Envelope;
use crate::exam::{Claim, Exam, Procedure, Report, ReportKind, Signed, WorkitemKind, WorkitemState};
use crate::ids::{CommandId, ExamId, FencingToken, Line, Name, Prose};
use crate::life::Step;
use crate::machine::ApplyError;
use crate::outcome::{Outcome, Refusal};
use crate::state::State;
use crate::statistics::Turnaround;

/// A report's text, what kind it is, and its signature.
#[derive(Clone, Copy)]
pub(super) struct Text<'t> {
    pub(super) kind: ReportKind,
    pub(super) text: &'t Prose,
    pub(super) signature: &'t [u8],
}

impl<'t> Text<'t> {
    /// A final report as format 1 has it.
    pub(super) fn plain(text: &'t Prose) -> Self {
        Self { kind: ReportKind::Final, text, signature: &[] }
    }
}

pub(super) fn write(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    token: FencingToken,
    text: &Text<'_>,
) -> Applied {
    let (exam, claim) = match claims::held(state, id, token)? {
        Ok(held) => held,
        Err(Refusal::StaleToken { .. }) => return keep_draft(state, envelope, id, token, text),
        Err(refusal) => return Ok(refusal.into()),
    };
    let is_final = match text.kind {
        ReportKind::Final => true,
        ReportKind::Preliminary => false,
        ReportKind::Addendum | ReportKind::SecondRead => {
            return Ok(Refusal::Missing(Name::fitted("a preliminary or final report")).into());
        }
    };
    let next = match exam.after(if is_final { Step::Finalise } else { Step::Preliminary }) {
        Ok(next) => next,
        Err(state) => return Ok(state.into()),
    };
    if state.format >= 2 && text.text.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("a text")).into());
    }
    let mut after = exam.clone();
    after.state = next;
    if !is_final {
        // Who writes of it has opened it.
        after.course.opened_at.get_or_insert(state.now);
    }
    let number = put(state, envelope, &mut after, token, text, false);
    if is_final {
        finalise(state, &mut after, &claim)?;
    }
    state.put_exam(Some(&exam), &after)?;
    if is_final && let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::Completed;
        workitem.at = state.now;
        state.put_workitem(&workitem)?;
    }
    Ok(Outcome::Completed { report: number }.into())
}

/// What a final report ends and begins: the claim, the clock of the turnaround, the delivery.
pub(super) fn finalise(state: &mut State<'_, '_>, exam: &mut Exam, claim: &Claim) -> Result<(), ApplyError> {
    exam.claim = None;
    exam.ended_at = Some(state.now);
    if state.format < 2 {
        return Ok(());
    }
    state.put_turnaround(&Turnaround {
        exam: exam.id,
        ready_at: exam.ready_at.unwrap_or(exam.added_at),
        claimed_at: claim.since,
        reported_at: state.now,
        priority: exam.request.priority,
        modality: exam.request.modality.clone(),
        hospital: exam.request.hospital.clone(),
        reader: claim.user.clone(),
        site: claim.site,
    });
    to_deliver(state, exam)
}

/// A workitem for the delivery of the report that stands now.
fn to_deliver(state: &mut State<'_, '_>, exam: &mut Exam) -> Result<(), ApplyError> {
    exams::end_workitems(state, exam, WorkitemKind::Deliver, "a later report is to be delivered")?;
    let number = exams::new_number(exam);
    let step = Procedure { kind: WorkitemKind::Deliver, ..Procedure::default() };
    exams::put_scheduled(state, exam.id, number, step)
}

/// A report under a lost claim is refused and kept: marked, beside the others, replacing nothing.
/// A token that was never granted for this exam earns no such place.
fn keep_draft(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    token: FencingToken,
    text: &Text<'_>,
) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if !claims::was_granted(state, &exam, token)? || text.text.is_empty() {
        return Ok(Refusal::StaleToken { given: token, kept_as: None }.into());
    }
    let mut after = exam.clone();
    let number = put(state, envelope, &mut after, token, text, true);
    state.put_exam(Some(&exam), &after)?;
    let outcome = Outcome::Refused(Refusal::StaleToken { given: token, kept_as: Some(number) });
    Ok(Effect { outcome, keep: true })
}

/// Keeps a text as the exam's next report. One that is no draft is the one that stands.
pub(super) fn put(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    exam: &mut Exam,
    token: FencingToken,
    text: &Text<'_>,
    stale: bool,
) -> u32 {
    exam.reports += 1;
    if state.format >= 2 && !stale && text.kind != ReportKind::SecondRead {
        exam.course.report = Some(exam.reports);
        exam.course.delivered_at = None;
    }
    let command = if state.format < 2 { CommandId::default() } else { envelope.id };
    state.put_report(&Report {
        exam: exam.id,
        number: exam.reports,
        text: text.text.clone(),
        user: envelope.user.clone(),
        site: envelope.site,
        at: state.now,
        token,
        stale,
        signed: Signed { kind: text.kind, signature: ByteBuf::from(text.signature), command },
    });
    exam.reports
}

pub(super) fn addend(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    text: &Prose,
    signature: &[u8],
) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    let next = match exam.after(Step::Addend) {
        Ok(next) => next,
        Err(state) => return Ok(state.into()),
    };
    if text.is_empty() || envelope.user.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("a text and its author")).into());
    }
    let mut after = exam.clone();
    after.state = next;
    let text = Text { kind: ReportKind::Addendum, text, signature };
    let number = put(state, envelope, &mut after, FencingToken(state.index), &text, false);
    to_deliver(state, &mut after)?;
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Completed { report: number }.into())
}

/// The standing report reached the requesting physician. An earlier one's delivery is no news.
pub(super) fn deliver(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, report: u32, to: &Line) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    let next = match exam.after(Step::Deliver) {
        Ok(next) => next,
        Err(state) => return Ok(state.into()),
    };
    if to.is_empty() || exam.course.report != Some(report) || state.report(id, report)?.is_none() {
        return Ok(Refusal::Missing(Name::fitted("the standing report and whom it went to")).into());
    }
    let mut after = exam.clone();
    after.state = next;
    after.course.delivered_at = Some(state.now);
    exams::change_workitems(state, &exam, WorkitemKind::Deliver, |workitem| {
        workitem.state = WorkitemState::Completed;
        workitem.reason = Line::fitted(&format!("{} told by {}", to, envelope.user));
    })?;
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}
