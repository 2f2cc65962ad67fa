//! Event reports (PS3.18 section 11.13, PS3.4 table CC.2.4-1): what happened in the queue, as the
//! subscribers of a workitem are told of it.
//!
//! They are made from the replicated log's own events, so every node makes the same ones. Each bears a
//! UID (0040,A124) that carries its cursor: a client that names the last one it saw, here or at another
//! node, is told exactly what came after.

use maillage_consensus::View;
use maillage_consensus::command::Subscription;
use maillage_consensus::event::{Cursor, Event, Happened};
use maillage_consensus::exam::{Exam, ExamState, Workitem, WorkitemKind, WorkitemState};
use maillage_consensus::ids::ExamId;
use maillage_consensus::machine::ApplyError;

use super::dataset::Dataset;
use super::describe::{Scene, UPS_PUSH, performer, readiness, state_name};
use super::filter::Filter;
use super::tags;

/// The events of PS3.4 table CC.2.4-1. *SCP Status Change* (4) is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    State = 1,
    CancelRequested = 2,
    Progress = 3,
    Assigned = 5,
}

/// What a subscriber is told of an event; none when it is of no workitem, or not theirs.
///
/// # Errors
/// The state cannot be read.
pub(crate) fn report(
    view: &View<'_>,
    scene: &Scene,
    subscriptions: &[Subscription],
    at: Cursor,
    event: &Event,
) -> Result<Option<Dataset>, ApplyError> {
    let Some(number) = number_of(&event.what) else { return Ok(None) };
    let Some((exam, workitem)) = view.exam(event.exam)?.zip(view.workitem(event.exam, number)?) else {
        return Ok(None);
    };
    let dataset = scene.describe(view, &exam, &workitem)?;
    let theirs = |subscription: &&Subscription| is_theirs(subscription, at, (event.exam, number), &dataset);
    if !subscriptions.iter().any(|subscription| theirs(&subscription)) {
        return Ok(None);
    }
    let Some(mut report) = content(scene, event, &exam, &workitem, &dataset) else { return Ok(None) };
    address(&mut report, scene, &workitem);
    report.put(tags::UID, "UI", &scene.uids.event(at));
    Ok(Some(report))
}

/// The state in which a workitem is when somebody subscribes to it (PS3.4 section CC.2.4.3). It is no
/// event of the log, and bears no UID of one.
pub(crate) fn initial(scene: &Scene, exam: &Exam, workitem: &Workitem) -> Dataset {
    let mut report = state_report(workitem.state, readiness(exam, workitem.step.kind));
    address(&mut report, scene, workitem);
    report
}

fn is_theirs(subscription: &Subscription, at: Cursor, workitem: (ExamId, u32), dataset: &Dataset) -> bool {
    if at.index <= subscription.since {
        return false;
    }
    match subscription.workitem {
        Some(own) => own == workitem,
        None => Filter::of(subscription).is_some_and(|filter| filter.is_for(workitem.0, dataset)),
    }
}

/// The workitem that an event is of.
fn number_of(what: &Happened) -> Option<u32> {
    match what {
        Happened::Workitem { number, .. }
        | Happened::CancelAsked { number, .. }
        | Happened::WorkitemUpdated { number }
        | Happened::Assigned { number, .. } => Some(*number),
        // Images come before anybody reads: the reading that waits for them is the exam's first workitem.
        Happened::Exam { from: Some(from), to } => became_ready(*from, *to).map(|_| 1),
        _ => None,
    }
}

/// The readiness to which a step of the exam leads, if it changes it.
fn became_ready(from: ExamState, to: ExamState) -> Option<&'static str> {
    use ExamState::{Acquiring, Receiving, Requested, Validated, Waiting};
    match (from, to) {
        (Requested | Validated | Acquiring | Receiving, Waiting) => Some("READY"),
        (Requested | Validated | Acquiring, Receiving) => Some("INCOMPLETE"),
        _ => None,
    }
}

fn content(scene: &Scene, event: &Event, exam: &Exam, workitem: &Workitem, dataset: &Dataset) -> Option<Dataset> {
    match &event.what {
        Happened::Workitem { state, reason, kind, .. } => {
            let mut report = state_report(*state, readiness_then(exam, *kind, *state));
            if !reason.is_empty() {
                report.put(tags::REASON_FOR_CANCELLATION, "LT", reason.as_str());
            }
            Some(report)
        }
        Happened::Exam { from: Some(from), to } => {
            became_ready(*from, *to).map(|readiness| state_report(WorkitemState::Scheduled, readiness))
        }
        Happened::CancelAsked { reason, .. } => {
            let mut report = of(Kind::CancelRequested);
            report.put(tags::REQUESTING_AE, "AE", event.user.as_str());
            if !reason.is_empty() {
                report.put(tags::REASON_FOR_CANCELLATION, "LT", reason.as_str());
            }
            Some(report)
        }
        // Of an update of anything else the standard tells nobody.
        Happened::WorkitemUpdated { .. } if workitem.step.attributes.contains_key(&tags::PROGRESS_INFORMATION) => {
            let mut report = of(Kind::Progress);
            report.put_items(tags::PROGRESS_INFORMATION, dataset.items(tags::PROGRESS_INFORMATION));
            Some(report)
        }
        Happened::Assigned { to, .. } => {
            let site = scene.sites.get(&event.site).map_or("", String::as_str);
            let mut report = of(Kind::Assigned);
            report.put_items(tags::STATION_NAME_CODES, dataset.items(tags::STATION_NAME_CODES));
            report
                .put_items(tags::HUMAN_PERFORMER_CODES, performer(to.as_str(), "").items(tags::HUMAN_PERFORMER_CODES));
            report.put(tags::HUMAN_PERFORMER_ORGANIZATION, "LO", site);
            Some(report)
        }
        _ => None,
    }
}

/// A step that is performed or done had its input; one that is scheduled has what it has now.
fn readiness_then(exam: &Exam, kind: WorkitemKind, state: WorkitemState) -> &'static str {
    match state {
        WorkitemState::InProgress | WorkitemState::Completed => "READY",
        WorkitemState::Scheduled | WorkitemState::Canceled => readiness(exam, kind),
    }
}

fn of(kind: Kind) -> Dataset {
    let mut report = Dataset::default();
    report.put_number(tags::EVENT_TYPE_ID, "US", kind as u64);
    report
}

fn state_report(state: WorkitemState, readiness: &str) -> Dataset {
    let mut report = of(Kind::State);
    report.put(tags::INPUT_READINESS_STATE, "CS", readiness);
    report.put(tags::PROCEDURE_STEP_STATE, "CS", state_name(state));
    report
}

fn address(report: &mut Dataset, scene: &Scene, workitem: &Workitem) {
    report.put(tags::AFFECTED_SOP_CLASS_UID, "UI", UPS_PUSH);
    report.put(tags::AFFECTED_SOP_INSTANCE_UID, "UI", &scene.uids.of(workitem));
}
