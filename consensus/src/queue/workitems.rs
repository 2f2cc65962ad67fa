//! Workitems as Unified Procedure Steps: what UPS-RS and the UPS service classes ask of the queue
//! (PS3.4 annex CC, PS3.18 section 11).

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use super::{Applied, care, claims, exams};
use crate::command::{ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, Envelope, Subscription};
use crate::event::Happened;
use crate::exam::{CancelAsked, Claim, Exam, Procedure, Request, Workitem, WorkitemKind, WorkitemState};
use crate::ids::{ExamId, FencingToken, Line, Name, UidText};
use crate::machine::ApplyError;
use crate::order::Order;
use crate::outcome::{Grant, Outcome, Refusal};
use crate::state::State;

/// Subscriptions kept by a mesh.
const SUBSCRIPTIONS_MAX: usize = 10_000;

/// A client's workitem becomes the reading workitem of the exam that its attributes describe.
pub(super) fn create(
    state: &mut State<'_, '_>,
    uid: &UidText,
    request: &Request,
    order: &Order,
    attributes: &BTreeMap<u32, ByteBuf>,
) -> Applied {
    if uid.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("a UID")).into());
    }
    if state.has_workitem_uid(uid.as_str())? {
        return Ok(Refusal::DuplicateUid.into());
    }
    let added = exams::add(state, request, Some(order))?;
    let Outcome::ExamAdded { exam: id, .. } = added.outcome else { return Ok(added) };
    let (Some(exam), Some(workitem)) = (state.exam(id)?, current(state, id)?) else {
        return Ok(Refusal::NoSuchWorkitem.into());
    };
    // The request is known by another way already: its workitem bears this UID, if it bears none yet.
    if !workitem.step.uid.is_empty() {
        return Ok(Refusal::DuplicateUid.into());
    }
    if workitem.state != WorkitemState::Scheduled {
        return Ok(exam.state.into());
    }
    let step = Procedure { uid: uid.clone(), attributes: attributes.clone(), ..workitem.step.clone() };
    state.name_workitem(&workitem, uid);
    state.put_workitem(&Workitem { step, ..workitem })?;
    Ok(added)
}

fn current(state: &State<'_, '_>, exam: ExamId) -> Result<Option<Workitem>, ApplyError> {
    match state.exam(exam)? {
        Some(exam) => state.workitem(exam.id, exam.workitem),
        None => Ok(None),
    }
}

/// A workitem and its exam.
fn find(state: &State<'_, '_>, id: ExamId, number: u32) -> Result<Option<(Exam, Workitem)>, ApplyError> {
    Ok(state.exam(id)?.zip(state.workitem(id, number)?))
}

/// The claim under which a workitem is performed.
fn performer(workitem: &Workitem) -> Option<&Claim> {
    workitem.performer.as_ref().filter(|_| workitem.state == WorkitemState::InProgress)
}

pub(super) fn update(
    state: &mut State<'_, '_>,
    id: ExamId,
    number: u32,
    transaction_uid: &UidText,
    attributes: &BTreeMap<u32, ByteBuf>,
) -> Applied {
    let Some((_, mut workitem)) = find(state, id, number)? else {
        return Ok(Refusal::NoSuchWorkitem.into());
    };
    match workitem.state {
        WorkitemState::Scheduled if transaction_uid.is_empty() => {}
        WorkitemState::InProgress
            if performer(&workitem).is_some_and(|claim| claim.transaction_uid == *transaction_uid) => {}
        WorkitemState::Scheduled | WorkitemState::InProgress => return Ok(Refusal::WrongTransaction.into()),
        ended => return Ok(Refusal::WorkitemState { state: ended }.into()),
    }
    let kept = &mut workitem.step.attributes;
    for (tag, value) in attributes {
        if value.is_empty() {
            kept.remove(tag);
        } else {
            kept.insert(*tag, value.clone());
        }
    }
    let bytes: usize = kept.values().map(|value| value.len()).sum();
    if kept.len() > ATTRIBUTES_MAX || bytes > ATTRIBUTE_BYTES_MAX {
        return Ok(Refusal::TooMany(Name::fitted("attributes")).into());
    }
    state.put_workitem(&workitem)?;
    state.happened(id, Happened::WorkitemUpdated { number });
    Ok(Outcome::Done.into())
}

pub(super) fn change(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    number: u32,
    transaction_uid: &UidText,
    to: WorkitemState,
) -> Applied {
    let Some((exam, workitem)) = find(state, id, number)? else {
        return Ok(Refusal::NoSuchWorkitem.into());
    };
    if transaction_uid.is_empty() {
        return Ok(Refusal::WrongTransaction.into());
    }
    let refused = Ok(Refusal::WorkitemState { state: workitem.state }.into());
    match (workitem.state, to) {
        (WorkitemState::Scheduled, WorkitemState::InProgress) => {
            if workitem.step.kind == WorkitemKind::Read {
                claims::take(state, envelope, id, Some(transaction_uid))
            } else {
                perform(state, envelope, workitem, transaction_uid)
            }
        }
        (WorkitemState::InProgress, WorkitemState::Completed | WorkitemState::Canceled) => {
            let Some(claim) = performer(&workitem).filter(|claim| claim.transaction_uid == *transaction_uid) else {
                return Ok(Refusal::WrongTransaction.into());
            };
            let token = claim.token;
            match (workitem.step.kind, to) {
                (WorkitemKind::Read, WorkitemState::Canceled) => {
                    claims::release(state, id, token, &Line::fitted("canceled by its performer"))
                }
                // The final report completes the reading; without one there is nothing to complete.
                (WorkitemKind::Read, _) => Ok(Refusal::NotFinished(Name::fitted("a final report is needed")).into()),
                (WorkitemKind::Regulate, WorkitemState::Completed) if exam.course.regulation.is_none() => {
                    Ok(Refusal::NotFinished(Name::fitted("a verdict is needed")).into())
                }
                (WorkitemKind::Deliver, WorkitemState::Completed) if exam.course.delivered_at.is_none() => {
                    Ok(Refusal::NotFinished(Name::fitted("a delivery is needed")).into())
                }
                _ => end(state, workitem, to),
            }
        }
        _ => refused,
    }
}

/// Gives a workitem that is no reading to its performer.
fn perform(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    mut workitem: Workitem,
    transaction_uid: &UidText,
) -> Applied {
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
        transaction_uid: transaction_uid.clone(),
    };
    workitem.state = WorkitemState::InProgress;
    workitem.performer = Some(claim.clone());
    workitem.at = state.now;
    state.put_workitem(&workitem)?;
    let (exam, number) = (workitem.exam, workitem.number);
    state.happened(exam, Happened::Assigned { number, to: claim.user.clone() });
    Ok(Outcome::Claimed(Grant { exam, workitem: number, claim }).into())
}

/// A workitem that is no reading loses its performer, who is warned: it is canceled with the reason, and
/// another linked to it is there for the next.
pub(super) fn lose(state: &mut State<'_, '_>, id: ExamId, number: u32, reason: &Line) -> Result<(), ApplyError> {
    let Some((before, mut workitem)) = find(state, id, number)? else { return Ok(()) };
    if let Some(claim) = performer(&workitem) {
        let (user, site) = (claim.user.clone(), claim.site);
        state.happened(id, Happened::ClaimLost { user, site, reason: reason.clone() });
    }
    let step =
        Procedure { uid: UidText::default(), replaces: Some(number), cancel_asked: None, ..workitem.step.clone() };
    (workitem.state, workitem.reason, workitem.at) = (WorkitemState::Canceled, reason.clone(), state.now);
    state.put_workitem(&workitem)?;
    let mut exam = before.clone();
    let replacement = exams::new_number(&mut exam);
    exams::put_scheduled(state, id, replacement, step)?;
    state.put_exam(Some(&before), &exam)?;
    care::opinion_moved(state, &exam, number, replacement)
}

fn end(state: &mut State<'_, '_>, mut workitem: Workitem, to: WorkitemState) -> Applied {
    workitem.state = to;
    workitem.at = state.now;
    state.put_workitem(&workitem)?;
    Ok(Outcome::Done.into())
}

/// Asks for a workitem to be canceled: done at once when nobody performs it, else told to who does.
pub(super) fn ask_cancel(
    state: &mut State<'_, '_>,
    envelope: &Envelope,
    id: ExamId,
    number: u32,
    reason: &Line,
) -> Applied {
    let Some((_, mut workitem)) = find(state, id, number)? else {
        return Ok(Refusal::NoSuchWorkitem.into());
    };
    match workitem.state {
        WorkitemState::Canceled => Ok(Refusal::DoneAlready.into()),
        WorkitemState::Completed => Ok(Refusal::WorkitemState { state: workitem.state }.into()),
        WorkitemState::Scheduled if workitem.step.kind == WorkitemKind::Read => exams::cancel(state, id, reason),
        WorkitemState::Scheduled => {
            workitem.reason = reason.clone();
            end(state, workitem, WorkitemState::Canceled)
        }
        WorkitemState::InProgress => {
            let (by, at) = (envelope.user.clone(), state.now);
            workitem.step.cancel_asked = Some(CancelAsked { by, reason: reason.clone(), at });
            state.put_workitem(&workitem)?;
            state.happened(id, Happened::CancelAsked { number, reason: reason.clone() });
            Ok(Outcome::Done.into())
        }
    }
}

/// A subscription made again keeps where it began, how far it was told and who sends its reports.
pub(super) fn subscribe(state: &mut State<'_, '_>, subscription: &Subscription) -> Applied {
    if subscription.aet.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("an AE title")).into());
    }
    if let Some((exam, number)) = subscription.workitem
        && state.workitem(exam, number)?.is_none()
    {
        return Ok(Refusal::NoSuchWorkitem.into());
    }
    let before = state.subscription(subscription.aet.as_str(), subscription.workitem)?;
    if before.is_none() && state.subscriptions(SUBSCRIPTIONS_MAX)? >= SUBSCRIPTIONS_MAX {
        return Ok(Refusal::TooMany(Name::fitted("subscriptions")).into());
    }
    if subscription.told > 0 {
        // It may have ended or changed since its sender looked: only how far it was told is taken.
        let Some(before) = before else { return Ok(Refusal::NoSuchWorkitem.into()) };
        let told = subscription.told.min(state.index).max(before.told);
        state.put_subscription(&Subscription { told, ..before });
        return Ok(Outcome::Done.into());
    }
    let since = before.as_ref().map_or(state.index, |before| before.since);
    let told = before.as_ref().map_or(0, |before| before.told);
    let reporter = subscription.reporter.or(before.and_then(|before| before.reporter));
    state.put_subscription(&Subscription { since, told, reporter, ..subscription.clone() });
    Ok(Outcome::Done.into())
}

pub(super) fn unsubscribe(state: &mut State<'_, '_>, aet: &str, workitem: Option<(ExamId, u32)>) -> Applied {
    if state.subscription(aet, workitem)?.is_none() {
        return Ok(Refusal::NoSuchWorkitem.into());
    }
    state.remove_subscription(aet, workitem);
    Ok(Outcome::Done.into())
}
