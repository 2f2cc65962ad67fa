//! What happened, as the replicated state has it: when the queue decided, not when somebody learned of it.

use maillage_consensus::View;
use maillage_consensus::exam::{Report, Workitem, WorkitemState};
use maillage_consensus::ids::ExamId;

use super::reader;
use super::stage::{Known, Stage};
use crate::day::model::ReaderId;
use crate::day::record::{Claim, Ended, Place, Record, Run};

/// The day's records, from the node that has come furthest.
pub(super) fn run(stage: &Stage) -> Run {
    let mut run = Run { records: stage.day.exams.iter().map(Record::drawn).collect(), ..Run::default() };
    let Some(furthest) = stage.cluster.newest() else { return run };
    let engine = furthest.group.reader();
    let view = View::new(&*engine);
    for (at, record) in run.records.iter_mut().enumerate() {
        let known = stage.known(at);
        let Some(exam) = known.exam else { continue };
        fill(stage, &view, &known, ExamId(exam), record);
    }
    run
}

fn fill(stage: &Stage, view: &View<'_>, known: &Known, id: ExamId, record: &mut Record) {
    let Ok(Some(exam)) = view.exam(id) else { return };
    record.ready_ms = exam.ready_at.map(|at| stage.of_stamp(at.0));
    record.received = known.received.map(|(at_ms, centre)| {
        // A study whose sender was cut in the middle is readable before its last image came.
        (at_ms.min(record.ready_ms.unwrap_or(u64::MAX)), Place::Centre(centre))
    });
    if record.received.is_none() {
        record.ready_ms = None;
    }
    let reports = view.reports(id).unwrap_or_default();
    let items = view.workitems(id).unwrap_or_default();
    record.claims = items.iter().filter_map(|item| claim(stage, item, &reports)).collect();
    record.reported_ms = record.claims.iter().find_map(|claim| match claim.ended {
        Some((at_ms, Ended::Reported)) => Some(at_ms),
        _ => None,
    });
}

/// A workitem that somebody had.
fn claim(stage: &Stage, item: &Workitem, reports: &[Report]) -> Option<Claim> {
    let performer = item.performer.as_ref()?;
    let reader = reader::of_name(performer.user.as_str())?;
    let at_ms = stage.of_stamp(item.at.0);
    let ended = match item.state {
        WorkitemState::Completed => Some((at_ms, Ended::Reported)),
        WorkitemState::Canceled => Some((at_ms, Ended::Returned)),
        WorkitemState::Scheduled | WorkitemState::InProgress => None,
    };
    let late = reports.iter().find(|report| report.stale && report.token == performer.token);
    Some(Claim {
        reader: ReaderId(reader),
        centre: stage.day.readers.get(reader)?.centre,
        claimed_ms: stage.of_stamp(performer.since.0),
        ended,
        late_report_ms: late.map(|report| stage.of_stamp(report.at.0)),
    })
}
