//! Break glass: what a site read while it was cut off from the quorum.

use super::claims::{Grounds, forbidden, grant, transaction_uid};
use super::{Applied, Effect, exams, reports};
use crate::command::{Envelope, UnixMillisField};
use crate::exam::{Claim, Exam, ExamState, ReportKind, WorkitemState};
use crate::ids::{ExamId, FencingToken, Line, Name, Prose};
use crate::life::Step;
use crate::outcome::{Grant, Outcome, Refusal};
use crate::state::State;

/// What a site did by break glass.
pub(super) struct Glass<'t> {
    pub(super) taken_at: UnixMillisField,
    pub(super) reason: &'t Line,
    pub(super) report: Option<&'t Prose>,
    pub(super) signature: &'t [u8],
}

/// Writes into the books what was done by break glass: accepted where nobody else read the exam, a visible
/// second read where somebody did. Nothing is lost, nothing merged in silence.
pub(super) fn mend(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, glass: &Glass<'_>) -> Applied {
    let Some(before) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if glass.reason.is_empty() || envelope.user.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("a reason and its author")).into());
    }
    if glass.report.is_none()
        && let Some(refusal) = forbidden(state, envelope.site, &before)?
    {
        // What was read is kept, whoever read it; who has not read it yet must not begin.
        return Ok(refusal.into());
    }
    let mut exam = before.clone();
    // The site had the images before the mesh heard of them.
    exams::images_came(state, &mut exam, state.now)?;
    if exam.awaits_regulation() && exam.after(Step::Ready).is_ok() {
        exams::skip_regulation(state, &mut exam, "read by break glass before it came")?;
    }
    exams::make_ready(state, &mut exam, state.now);
    if exam != before {
        state.put_exam(Some(&before), &exam)?;
    }
    let theirs = exam.claim.as_ref().is_some_and(|claim| (claim.site, &claim.user) == (envelope.site, &envelope.user));
    if exam.state == ExamState::Waiting || theirs {
        let claim = match &exam.claim {
            Some(claim) => claim.clone(),
            None => Claim {
                token: FencingToken(state.index),
                site: envelope.site,
                session: 0,
                user: envelope.user.clone(),
                since: glass.taken_at.max(exam.ready_at.unwrap_or_default()).min(state.now),
                transaction_uid: transaction_uid(envelope),
            },
        };
        return accept(state, envelope, &exam, claim, glass);
    }
    let mut after = exam.clone();
    after.course.read_twice |= !exam.state.is_off();
    let report = glass.report.map(|text| {
        let text = reports::Text { kind: ReportKind::SecondRead, text, signature: glass.signature };
        reports::put(state, envelope, &mut after, FencingToken(state.index), &text, false)
    });
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::GlassMended { second_read: true, report, grant: None }.into())
}

fn accept(state: &mut State<'_, '_>, envelope: &Envelope, exam: &Exam, claim: Claim, glass: &Glass<'_>) -> Applied {
    let Some(text) = glass.report else {
        // Still being read: an ordinary claim from now on.
        if exam.claim.is_some() {
            let grant = Grant { exam: exam.id, workitem: exam.workitem, claim };
            return Ok(Outcome::GlassMended { second_read: false, report: None, grant: Some(grant) }.into());
        }
        let effect = grant(state, envelope, exam, &Grounds { picked: true, transaction_uid: None })?;
        return Ok(match effect.outcome {
            Outcome::Claimed(grant) => {
                Outcome::GlassMended { second_read: false, report: None, grant: Some(grant) }.into()
            }
            outcome => Effect { outcome, ..effect },
        });
    };
    let mut after = exam.clone();
    after.state = ExamState::Reported;
    after.course.picked = true;
    let text = reports::Text { kind: ReportKind::Final, text, signature: glass.signature };
    let number = reports::put(state, envelope, &mut after, claim.token, &text, false);
    reports::finalise(state, &mut after, &claim)?;
    state.put_exam(Some(exam), &after)?;
    if let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::Completed;
        workitem.performer = Some(claim);
        workitem.reason = Line::fitted(&format!("break glass: {}", glass.reason));
        workitem.at = state.now;
        state.put_workitem(&workitem)?;
    }
    Ok(Outcome::GlassMended { second_read: false, report: Some(number), grant: None }.into())
}
