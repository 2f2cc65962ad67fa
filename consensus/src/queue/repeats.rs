//! Repeats that come after their first outcome was forgotten.
//!
//! Outcomes are kept for a day. What a site wrote while it was cut off may be proposed, committed and its
//! answer lost, and then be proposed again days later, when the site reaches a quorum again. A note, a
//! report or an addendum would stand twice, and a report by break glass would be called a second reading of
//! itself. So each of them bears the id of the command that brought it, and a command looks for its own
//! before it is run.

use crate::command::{Command, Envelope};
use crate::exam::{Report, ReportKind};
use crate::ids::{ExamId, Paragraph, Prose};
use crate::machine::ApplyError;
use crate::outcome::{Outcome, Refusal};
use crate::remark::What;
use crate::state::State;

/// The outcome of the first run of a command, if what it brought is here.
pub(super) fn first_outcome(state: &State<'_, '_>, envelope: &Envelope) -> Result<Option<Outcome>, ApplyError> {
    match &envelope.command {
        Command::Note { exam, text } => noted(state, envelope, *exam, text),
        Command::Report { exam, text, .. }
        | Command::Complete { exam, report: text, .. }
        | Command::Addend { exam, text, .. } => {
            Ok(reported(state, envelope, *exam, text)?.map(|kept| kept.map_or_else(Outcome::from, |r| of_report(&r))))
        }
        Command::BreakGlass { exam, report: Some(text), .. } => {
            Ok(reported(state, envelope, *exam, text)?.map(|kept| kept.map_or_else(Outcome::from, |r| of_glass(&r))))
        }
        _ => Ok(None),
    }
}

fn noted(
    state: &State<'_, '_>,
    envelope: &Envelope,
    exam: ExamId,
    text: &Paragraph,
) -> Result<Option<Outcome>, ApplyError> {
    let remarks = state.exam(exam)?.map_or(0, |exam| exam.course.remarks);
    for number in 1..=remarks {
        let Some(remark) = state.remark(exam, number)?.filter(|remark| remark.command == envelope.id) else { continue };
        let same = matches!(&remark.what, What::Note(first) if first == text) && remark.user == envelope.user;
        return Ok(Some(if same { Outcome::Remarked { remark: number } } else { Refusal::OtherCommand.into() }));
    }
    Ok(None)
}

type Kept = Result<Report, Refusal>;

fn reported(
    state: &State<'_, '_>,
    envelope: &Envelope,
    exam: ExamId,
    text: &Prose,
) -> Result<Option<Kept>, ApplyError> {
    let reports = state.exam(exam)?.map_or(0, |exam| exam.reports);
    for number in 1..=reports {
        let Some(report) = state.report(exam, number)?.filter(|report| report.signed.command == envelope.id) else {
            continue;
        };
        let same = report.text == *text && report.user == envelope.user;
        return Ok(Some(if same { Ok(report) } else { Err(Refusal::OtherCommand) }));
    }
    Ok(None)
}

fn of_report(report: &Report) -> Outcome {
    match report.stale {
        true => Refusal::StaleToken { given: report.token, kept_as: Some(report.number) }.into(),
        false => Outcome::Completed { report: report.number },
    }
}

fn of_glass(report: &Report) -> Outcome {
    let second_read = report.signed.kind == ReportKind::SecondRead;
    Outcome::GlassMended { second_read, report: Some(report.number), grant: None }
}
