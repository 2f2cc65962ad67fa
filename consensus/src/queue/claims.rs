//! Claims: granted to one, given back, taken over, lost. The fencing token decides.

use super::{Applied, exams};
use crate::command::Envelope;
use crate::event::Happened;
use crate::exam::{Claim, Exam, ExamState, Procedure, WorkitemState};
use crate::ids::{ExamId, FencingToken, Line, Name, SiteId, UidText};
use crate::keys;
use crate::life::Step;
use crate::machine::ApplyError;
use crate::mesh::HeldPart;
use crate::order::{self, Policy, Reader};
use crate::outcome::{Grant, Holder, Outcome, Refusal};
use crate::room;
use crate::state::State;

/// Exams looked at by one `claim next`. The room holds tens of exams, not thousands; the bound keeps a
/// command's cost bounded if it ever does.
const NEXT_SCAN_MAX: usize = 1_000;
/// Places read at once.
const NEXT_PAGE: usize = 8;
/// For so long `claim next` prefers other exams to one that the same reader has given back.
const RELEASED_PASSED_OVER_MS: u64 = 10 * 60_000;

/// The exam that this reader should read next: of those that they read and may read here, the first in
/// the room's order.
pub(super) fn next(state: &mut State<'_, '_>, envelope: &Envelope, reader: &Reader) -> Applied {
    let centre = Centre::of(state, envelope.site)?;
    let mut given_back = None;
    let mut room = room::Room::new(state.now);
    for _ in 0..NEXT_SCAN_MAX {
        let Some(place) = room.next(state)? else { break };
        let Some(exam) = state.exam(place.exam)? else { continue };
        if !reader.reads(&exam) || !centre.should_read(state, reader, &exam)? {
            continue;
        }
        // An exam that this reader has just given back would stand before everything behind it.
        if has_just_released(state, envelope, &exam)? {
            given_back.get_or_insert(exam);
            continue;
        }
        return grant(state, envelope, &exam, &Grounds::default());
    }
    match given_back {
        Some(exam) => grant(state, envelope, &exam, &Grounds::default()),
        None => Ok(Outcome::NothingWaiting.into()),
    }
}

/// A centre that asks for an exam, and what it must know to be given the right one.
struct Centre {
    site: SiteId,
    place: order::Place,
    policy: Policy,
    /// Where the sites are that are in session.
    others: Vec<(SiteId, order::Place)>,
}

impl Centre {
    fn of(state: &State<'_, '_>, site: SiteId) -> Result<Self, ApplyError> {
        let mut others = Vec::new();
        for other in state.sites()? {
            if other.session_open && other.id != site {
                others.push((other.id, state.situation(other.id)?.place));
            }
        }
        Ok(Self { site, place: state.situation(site)?.place, policy: state.policy()?, others })
    }

    /// Whether an exam is this centre's to read now: contract and consent allow it, and it is not kept
    /// for readers who are nearer or know more.
    fn should_read(&self, state: &State<'_, '_>, reader: &Reader, exam: &Exam) -> Result<bool, ApplyError> {
        if forbidden(state, self.site, exam)?.is_some() {
            return Ok(false);
        }
        let ready = exam.ready_at.unwrap_or(exam.added_at);
        let needs = &exam.course.order.expertise;
        if !needs.is_empty()
            && !reader.expertise.contains(needs)
            && self.policy.keeps_for_experts(exam.request.priority, ready, state.now)
        {
            return Ok(false);
        }
        let Some(hospital) = state.hospital(exam.request.hospital.as_str())? else { return Ok(true) };
        if hospital.place.is_unknown() {
            return Ok(true);
        }
        let distance = hospital.place.distance(&self.place);
        if !self.policy.keeps(exam.request.priority, ready, state.now, distance) {
            return Ok(true);
        }
        // It is kept only for somebody who is there to read it.
        let nearer = self.others.iter().any(|(site, place)| {
            let contracted = hospital.sites.is_empty() || hospital.sites.contains(site);
            contracted && hospital.place.distance(place) < distance
        });
        Ok(!nearer)
    }
}

/// Why a site may not read an exam at all, if so.
pub(super) fn forbidden(state: &State<'_, '_>, site: SiteId, exam: &Exam) -> Result<Option<Refusal>, ApplyError> {
    if let Some(hospital) = state.hospital(exam.request.hospital.as_str())?
        && !hospital.sites.is_empty()
        && !hospital.sites.contains(&site)
    {
        return Ok(Some(Refusal::NoContract));
    }
    if exam.is_confined() {
        let mut here = false;
        for uid in &exam.studies {
            // A study's parts may belong to several exams: one that was cancelled keeps nothing that comes after.
            let of_this = |held: &HeldPart| held.exam == exam.id && held.origin == site;
            here |= state.study(uid.as_str())?.is_some_and(|study| study.parts.iter().any(of_this));
        }
        if !here {
            return Ok(Some(Refusal::ConsentRefused));
        }
    }
    Ok(None)
}

/// As format 1 has it: the waiting exam that is due first.
pub(super) fn first(state: &mut State<'_, '_>, envelope: &Envelope, modalities: &[UidText]) -> Applied {
    let mut given_back = None;
    let mut room = Room::default();
    while let Some(id) = room.next(state)? {
        let Some(exam) = state.exam(id)? else { continue };
        let modality = exam.request.modality.as_str();
        if !modalities.is_empty() && !modalities.iter().any(|wanted| wanted.as_str() == modality) {
            continue;
        }
        if forbidden(state, envelope.site, &exam)?.is_some() {
            continue;
        }
        if has_just_released(state, envelope, &exam)? {
            given_back.get_or_insert(exam);
            continue;
        }
        return grant(state, envelope, &exam, &Grounds::default());
    }
    match given_back {
        Some(exam) => grant(state, envelope, &exam, &Grounds::default()),
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
    let current = state.workitem(exam.id, exam.workitem)?;
    let replaced = match current.and_then(|workitem| workitem.step.replaces) {
        Some(number) => Some(number),
        // Format 1 keeps no link: each workitem replaces the one before.
        None => exam.workitem.checked_sub(1).filter(|number| *number > 0),
    };
    let Some(last) = replaced else { return Ok(false) };
    let Some(workitem) = state.workitem(exam.id, last)? else { return Ok(false) };
    let theirs = workitem.performer.is_some_and(|claim| claim.user == envelope.user && claim.site == envelope.site);
    Ok(theirs && state.now.0.saturating_sub(workitem.at.0) < RELEASED_PASSED_OVER_MS)
}

/// Claims one exam. Picked, rather than given, when the client names its transaction.
pub(super) fn take(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    transaction_uid: Option<&UidText>,
) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if exam.after(Step::Claim).is_err() {
        return Ok(match &exam.claim {
            Some(claim) => Refusal::AlreadyClaimed(holder(state, claim)?).into(),
            None => exam.state.into(),
        });
    }
    if let Some(refusal) = forbidden(state, envelope.site, &exam)? {
        return Ok(refusal.into());
    }
    let grounds = Grounds { picked: state.format >= 2, transaction_uid };
    grant(state, envelope, &exam, &grounds)
}

fn holder(state: &State<'_, '_>, claim: &Claim) -> Result<Holder, ApplyError> {
    let site = state.site(claim.site)?;
    Ok(Holder {
        user: claim.user.clone(),
        site: claim.site,
        site_name: site.map(|site| site.description.name).unwrap_or_default(),
        since: claim.since,
    })
}

/// Takes an exam from whoever has it, who is told why.
pub(super) fn take_over(state: &mut State<'_, '_>, envelope: &Envelope, id: ExamId, reason: &Line) -> Applied {
    let Some(exam) = state.exam(id)? else {
        return Ok(Refusal::NoSuchExam.into());
    };
    if exam.after(Step::TakeOver).is_err() {
        return Ok(exam.state.into());
    }
    if reason.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("a reason")).into());
    }
    if let Some(refusal) = forbidden(state, envelope.site, &exam)? {
        return Ok(refusal.into());
    }
    let why = Line::fitted(&format!("taken over by {}: {reason}", envelope.user));
    let exam = lose(state, &exam, &why)?;
    grant(state, envelope, &exam, &Grounds { picked: true, transaction_uid: None })
}

/// How a claim came about.
#[derive(Default)]
pub(super) struct Grounds<'t> {
    pub(super) picked: bool,
    /// The Transaction UID that the client chose.
    pub(super) transaction_uid: Option<&'t UidText>,
}

/// Gives an exam to whoever asked.
pub(super) fn grant(state: &mut State<'_, '_>, envelope: &Envelope, exam: &Exam, grounds: &Grounds<'_>) -> Applied {
    let session = match state.site(envelope.site)? {
        Some(site) if site.session_open => site.sessions,
        _ => return Ok(Refusal::NoSession.into()),
    };
    let chosen = grounds.transaction_uid.filter(|uid| !uid.is_empty()).cloned();
    let claim = Claim {
        token: FencingToken(state.index),
        site: envelope.site,
        session,
        user: envelope.user.clone(),
        since: state.now,
        transaction_uid: chosen.unwrap_or_else(|| transaction_uid(envelope)),
    };
    let mut after = exam.clone();
    after.state = ExamState::Claimed;
    after.claim = Some(claim.clone());
    after.course.picked = grounds.picked;
    state.put_exam(Some(exam), &after)?;
    if let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::InProgress;
        workitem.performer = Some(claim.clone());
        workitem.at = state.now;
        state.put_workitem(&workitem)?;
        state.happened(exam.id, Happened::Assigned { number: exam.workitem, to: claim.user.clone() });
    }
    Ok(Outcome::Claimed(Grant { exam: exam.id, workitem: exam.workitem, claim }).into())
}

/// A UID derived from the command's own UUID (PS3.5 section B.2), so that every replica and every
/// repeat names the same transaction.
pub(super) fn transaction_uid(envelope: &Envelope) -> UidText {
    UidText::fitted(&format!("2.25.{}", envelope.id.0.as_u128()))
}

/// The reader opens the exam: from now on it is being read.
pub(super) fn open(state: &mut State<'_, '_>, id: ExamId, token: FencingToken) -> Applied {
    let (exam, _) = match held(state, id, token)? {
        Ok(held) => held,
        Err(refusal) => return Ok(refusal.into()),
    };
    if exam.state == ExamState::Reading {
        return Ok(Outcome::Done.into());
    }
    let mut after = exam.clone();
    match exam.after(Step::Open) {
        Ok(next) => after.state = next,
        Err(state) => return Ok(state.into()),
    }
    after.course.opened_at = Some(state.now);
    state.put_exam(Some(&exam), &after)?;
    Ok(Outcome::Done.into())
}

pub(super) fn release(state: &mut State<'_, '_>, id: ExamId, token: FencingToken, reason: &Line) -> Applied {
    let exam = match held(state, id, token)? {
        Ok((exam, _)) => exam,
        Err(refusal) => return Ok(refusal.into()),
    };
    let reason = if reason.is_empty() { Line::fitted("released by its reader") } else { reason.clone() };
    give_back(state, &exam, &reason)?;
    Ok(Outcome::Done.into())
}

/// The exam and its claim, if `token` is the claim's.
pub(super) fn held(
    state: &State<'_, '_>,
    id: ExamId,
    token: FencingToken,
) -> Result<Result<(Exam, Claim), Refusal>, ApplyError> {
    let Some(exam) = state.exam(id)? else {
        return Ok(Err(Refusal::NoSuchExam));
    };
    match exam.claim.clone().filter(|claim| claim.token == token) {
        Some(claim) => Ok(Ok((exam, claim))),
        None => Ok(Err(Refusal::StaleToken { given: token, kept_as: None })),
    }
}

/// Returns a claimed exam to the waiting room, at its old place: its workitem is canceled with the
/// reason and a new one, linked to it, takes over (UPS has no un-claim).
pub(super) fn give_back(state: &mut State<'_, '_>, exam: &Exam, reason: &Line) -> Result<Exam, ApplyError> {
    if let Some(mut workitem) = state.workitem(exam.id, exam.workitem)? {
        workitem.state = WorkitemState::Canceled;
        workitem.reason = reason.clone();
        workitem.at = state.now;
        state.put_workitem(&workitem)?;
    }
    let mut after = exam.clone();
    after.state = ExamState::Waiting;
    after.claim = None;
    after.course.opened_at = None;
    after.course.picked = false;
    after.workitem = if state.format < 2 { exam.workitem + 1 } else { exams::new_number(&mut after) };
    state.put_exam(Some(exam), &after)?;
    let step = Procedure { replaces: Some(exam.workitem), ..Procedure::default() };
    exams::put_scheduled(state, exam.id, after.workitem, step)?;
    Ok(after)
}

/// As [`give_back`], when it was not the reader who wished it: they are warned.
pub(super) fn lose(state: &mut State<'_, '_>, exam: &Exam, reason: &Line) -> Result<Exam, ApplyError> {
    if let Some(claim) = &exam.claim {
        let (user, site) = (claim.user.clone(), claim.site);
        state.happened(exam.id, Happened::ClaimLost { user, site, reason: reason.clone() });
    }
    give_back(state, exam, reason)
}

/// Whether a token was ever granted for an exam.
pub(super) fn was_granted(state: &State<'_, '_>, exam: &Exam, token: FencingToken) -> Result<bool, ApplyError> {
    for number in (1..=exam.workitem).rev() {
        let workitem = state.workitem(exam.id, number)?;
        let performer = workitem.and_then(|workitem| workitem.performer);
        if performer.is_some_and(|claim| claim.token == token) {
            return Ok(true);
        }
    }
    Ok(false)
}
