//! Claims: granted to one, given back, completed. The fencing token decides.

use super::{Applied, Effect, exams};
use crate::command::Envelope;
use crate::exam::{Claim, Exam, ExamState, Report, WorkitemState};
use crate::ids::{ExamId, FencingToken, Line, Name, Prose, UidText};
use crate::keys;
use crate::machine::ApplyError;
use crate::outcome::{Grant, Holder, Outcome, Refusal};
use crate::state::State;

/// Exams looked at by one `claim next`. The room holds tens of exams, not thousands; the bound keeps a
/// command's cost bounded if it ever does.
const NEXT_SCAN_MAX: usize = 1_000;
/// Places read at once.
const NEXT_PAGE: usize = 8;
/// For so long `claim next` prefers other exams to one that the same reader has given back.
const RELEASED_PASSED_OVER_MS: u64 = 10 * 60_000;

pub(super) fn next(state: &mut State<'_, '_>, envelope: &Envelope, modalities: &[UidText]) -> Applied {
    let mut given_back = None;
    let mut room = Room::default();
    while let Some(id) = room.next(state)? {
        let Some(exam) = state.exam(id)? else { continue };
        let modality = exam.request.modality.as_str();
        if !modalities.is_empty() && !modalities.iter().any(|wanted| wanted.as_str() == modality) {
            continue;
        }
        // An exam that this reader has just given back would stand before everything behind it.
        if has_just_released(state, envelope, &exam)? {
            given_back.get_or_insert(exam);
            continue;
        }
        return grant(state, envelope, &exam);
    }
    match given_back {
        Some(exam) => grant(state, envelope, &exam),
        None => Ok(Outcome::NothingWaiting.into()),
    }
}

/// A walk through the waiting room, a few places at a time: most claims need the first only.
#[derive(Default)]
struct Room {
    page: std::collections::VecDeque<Vec<u8>>,
    after: Vec<u8>,
    seen: usize,
}

impl Room {
    fn next(&mut self, state: &mut State<'_, '_>) -> Result<Option<ExamId>, ApplyError> {
        if self.seen >= NEXT_SCAN_MAX {
            return Ok(None);
        }
        if self.page.is_empty() {
            let after = (self.seen > 0).then_some(self.after.as_slice());
            self.page = state.waiting(after, NEXT_PAGE)?.into();
            if self.seen == 0 {
                let end = [keys::WAITING[0] + 1];
                state.raise_waiting_floor(self.page.front().map_or(&end[..], Vec::as_slice))?;
            }
        }
        let Some(key) = self.page.pop_front() else { return Ok(None) };
        self.seen += 1;
        let id = keys::trailing_number(&key).map(ExamId);
        self.after = key;
        Ok(id)
    }
}

fn has_just_released(state: &State<'_, '_>, envelope: &Envelope, exam: &Exam) -> Result<bool, ApplyError> {
    let Some(last) = exam.workitem.checked_sub(1).filter(|number| *number > 0) else { return Ok(false) };
    let Some(workitem) = state.workitem(exam.id, last)? else { return Ok(false) };
    let theirs = workitem.performer.is_some_and(|claim| claim.user == envelope.user && claim.site == envelope.site);
    Ok(theirs && state.now.0.saturating_sub(workitem.at.0) < RELEASED_PASSED_OVER_MS)
}

pub(super) fn take(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    match (&exam.state, &exam.claim) {
        (ExamState::Waiting, _) => grant(state, envelope, &exam),
        (ExamState::Claimed, Some(claim)) => {
            let site = state.site(claim.site)?;
            Ok(Refusal::AlreadyClaimed(Holder {
                user: claim.user.clone(),
                site: claim.site,
                site_name: site.map(|site| site.description.name).unwrap_or_default(),
                since: claim.since,
            })
            .into())
        }
        (other, _) => Ok(Refusal::WrongState { state: *other }.into()),
    }
}

fn grant(state: &mut State<'_, '_>, envelope: &Envelope, exam: &Exam) -> Applied {
    let session = match state.site(envelope.site)? {
        Some(site) if site.session_open => site.sessions,
        _ => return Ok(Refusal::NoSession.into()),
    };
    let claim = Claim {
        token: FencingToken(state.index),
        site: envelope.site,
        session,
        user: envelope.user.clone(),
        since: state.now,
        transaction_uid: transaction_uid(envelope),
    };
    let mut after = exam.clone();
    after.state = ExamState::Claimed;
    after.claim = Some(claim.clone());
    state.put_exam(Some(exam), &after)?;
    if let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::InProgress;
        workitem.performer = Some(claim.clone());
        workitem.at = state.now;
        state.put_workitem(&workitem);
    }
    Ok(Outcome::Claimed(Grant { exam: exam.id, workitem: exam.workitem, claim }).into())
}

/// A UID derived from the command's own UUID (PS3.5 section B.2), so that every replica and every
/// repeat names the same transaction.
fn transaction_uid(envelope: &Envelope) -> UidText {
    UidText::fitted(&format!("2.25.{}", envelope.id.0.as_u128()))
}

pub(super) fn release(state: &mut State<'_, '_>, id: ExamId, token: FencingToken, reason: &Line) -> Applied {
    let exam = match held(state, id, token)? {
        Ok(exam) => exam,
        Err(refusal) => return Ok(refusal.into()),
    };
    let reason = if reason.is_empty() { Line::fitted("released by its reader") } else { reason.clone() };
    give_back(state, &exam, &reason)?;
    Ok(Outcome::Done.into())
}

/// The exam, if `token` is its current claim's.
fn held(state: &State<'_, '_>, id: ExamId, token: FencingToken) -> Result<Result<Exam, Refusal>, ApplyError> {
    let Some(exam) = state.exam(id)? else {
        return Ok(Err(Refusal::NoSuchExam));
    };
    if exam.claim.as_ref().is_some_and(|claim| claim.token == token) {
        return Ok(Ok(exam));
    }
    Ok(Err(Refusal::StaleToken { given: token, kept_as: None }))
}

/// Returns a claimed exam to the waiting room, at its old place: its workitem is canceled with the
/// reason and the next one takes over (UPS has no un-claim).
pub(super) fn give_back(state: &mut State<'_, '_>, exam: &Exam, reason: &Line) -> Result<(), ApplyError> {
    if let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::Canceled;
        workitem.reason = reason.clone();
        workitem.at = state.now;
        state.put_workitem(&workitem);
    }
    let mut after = exam.clone();
    after.state = ExamState::Waiting;
    after.claim = None;
    after.workitem += 1;
    state.put_exam(Some(exam), &after)?;
    exams::put_scheduled(state, exam.id, after.workitem);
    Ok(())
}

pub(super) fn complete(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    token: FencingToken,
    text: &Prose,
) -> Applied {
    let exam = match held(state, id, token)? {
        Ok(exam) => exam,
        Err(Refusal::StaleToken { .. }) => return keep_draft(state, envelope, id, token, text),
        Err(refusal) => return Ok(refusal.into()),
    };
    let mut after = exam.clone();
    after.state = ExamState::Reported;
    after.claim = None;
    after.ended_at = Some(state.now);
    let number = put_report(state, envelope, &mut after, token, text, false);
    state.put_exam(Some(&exam), &after)?;
    if let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::Completed;
        workitem.at = state.now;
        state.put_workitem(&workitem);
    }
    Ok(Outcome::Completed { report: number }.into())
}

/// A report under a lost claim is refused and kept: marked, beside the others, replacing nothing.
/// A token that was never granted for this exam earns no such place.
fn keep_draft(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    token: FencingToken,
    text: &Prose,
) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if !was_granted(state, &exam, token)? || text.as_str().is_empty() {
        return Ok(Refusal::StaleToken { given: token, kept_as: None }.into());
    }
    let mut after = exam.clone();
    let number = put_report(state, envelope, &mut after, token, text, true);
    state.put_exam(Some(&exam), &after)?;
    let outcome = Outcome::Refused(Refusal::StaleToken { given: token, kept_as: Some(number) });
    Ok(Effect { outcome, keep: true })
}

fn was_granted(state: &State<'_, '_>, exam: &Exam, token: FencingToken) -> Result<bool, ApplyError> {
    for number in (1..=exam.workitem).rev() {
        let workitem = state.workitem(exam.id, number)?;
        let performer = workitem.and_then(|workitem| workitem.performer);
        if performer.is_some_and(|claim| claim.token == token) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn put_report(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    exam: &mut Exam,
    token: FencingToken,
    text: &Prose,
    stale: bool,
) -> u32 {
    exam.reports += 1;
    state.put_report(&Report {
        exam: exam.id,
        number: exam.reports,
        text: text.clone(),
        user: Name::clone(&envelope.user),
        site: envelope.site,
        at: state.now,
        token,
        stale,
    });
    exam.reports
}
