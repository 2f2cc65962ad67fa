//! The reports of a gateway's own hospitals, by the cursor of the mesh's events.
//!
//! A cursor is a place in the replicated log, so that it means the same at every centre. A gateway that is new,
//! or was away for longer than events are kept, goes through the exams whose report is still to be delivered
//! instead, and then on from where the events were when it began.

use maillage_consensus::command::Command;
use maillage_consensus::event::{Cursor, Happened};
use maillage_consensus::exam::{Exam, Report};
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, SiteId};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::{Outcome, View};

use super::{Door, not_now};
use crate::gateway::wire::{self, Delivery, PAGE_BYTES, Page, Position, Reply};
use crate::node::Node;

/// Events looked at for one page.
const EVENTS_PAGE: usize = 512;
/// Exams looked at for one page of a walk …
const EXAMS_SCANNED: usize = 4_096;
/// … and taken.
const EXAMS_PAGE: usize = 32;

/// A page for a gateway, behind a position.
pub(super) fn page(node: &Node, gateway: SiteId, from: Option<Position>) -> Reply {
    let hospitals = match Door::gateway_of(node, gateway) {
        Ok(Some((_, hospitals))) => hospitals,
        Ok(None) => return not_now(&"the site is no gateway"),
        Err(reply) => return reply,
    };
    let applied = node.group().applied();
    match node.read(|view| Feed { view, hospitals: &hospitals, applied }.page(from)) {
        Ok(page) => Reply::Page(page),
        Err(error) => not_now(&error),
    }
}

struct Feed<'a, 'v> {
    view: &'a View<'v>,
    hospitals: &'a [Line],
    /// An index that the view holds: all that came before it is in there.
    applied: u64,
}

impl Feed<'_, '_> {
    fn page(&self, from: Option<Position>) -> Result<Page, ApplyError> {
        let now = Cursor { index: self.applied, place: u16::MAX };
        match from {
            None => self.walk(Position::walk(now)),
            Some(walk @ Position::Exam { .. }) => self.walk(walk),
            Some(Position::Event { index, place }) => {
                let cursor = Cursor { index, place };
                if cursor < self.view.forgotten()? { self.walk(Position::walk(now)) } else { self.events(cursor) }
            }
        }
    }

    /// Reports that were signed behind a cursor.
    fn events(&self, after: Cursor) -> Result<Page, ApplyError> {
        let events = self.view.events(after, EVENTS_PAGE)?;
        let (mut filling, mut cursor, mut more) = (Filling::default(), after, events.len() == EVENTS_PAGE);
        for (at, event) in events {
            if let Happened::Report { number } = event.what {
                if filling.is_full() {
                    more = true;
                    break;
                }
                if let Some(exam) = self.view.exam(event.exam)?.filter(|exam| self.is_theirs(exam)) {
                    let reports = self.view.reports(exam.id)?;
                    for report in reports.into_iter().filter(|report| report.number == number) {
                        self.add(&exam, report, &mut filling)?;
                    }
                }
            }
            cursor = at;
        }
        Ok(Page { reports: filling.reports, next: Position::of(cursor), more })
    }

    /// Reports still to be delivered, exam by exam.
    fn walk(&self, from: Position) -> Result<Page, ApplyError> {
        let Position::Exam { exam, report, index, place } = from else { return self.page(Some(from)) };
        let on = |exam: ExamId, report: u32| Position::Exam { exam: exam.0, report, index, place };
        // The exam itself once more, unless all of it was given.
        let after = if report == u32::MAX { exam } else { exam.saturating_sub(1) };
        let waits = |exam: &Exam| exam.reports > 0 && exam.course.delivered_at.is_none() && self.is_theirs(exam);
        let (exams, next) = self.view.exams_where(Some(ExamId(after)), EXAMS_SCANNED, EXAMS_PAGE, &waits)?;
        let (mut filling, mut given) = (Filling::default(), from);
        for one in &exams {
            for kept in self.view.reports(one.id)? {
                if one.id.0 == exam && kept.number <= report {
                    continue;
                }
                if filling.is_full() {
                    return Ok(Page { reports: filling.reports, next: given, more: true });
                }
                given = on(one.id, kept.number);
                self.add(one, kept, &mut filling)?;
            }
            given = on(one.id, u32::MAX);
        }
        let next = next.map_or(Position::Event { index, place }, |next| on(next, u32::MAX));
        Ok(Page { reports: filling.reports, next, more: true })
    }

    fn is_theirs(&self, exam: &Exam) -> bool {
        self.hospitals.contains(&exam.request.hospital)
    }

    /// Adds a report, unless it is a draft under a lost claim.
    fn add(&self, exam: &Exam, report: Report, filling: &mut Filling) -> Result<(), ApplyError> {
        if report.stale {
            return Ok(());
        }
        let site = self.view.site(report.site)?;
        let delivery = Delivery {
            request: exam.request.clone(),
            studies: exam.studies.clone(),
            stands: exam.course.report == Some(report.number),
            report,
            site_name: site.map_or_else(Name::default, |site| site.description.name),
        };
        filling.bytes += wire::encode(&delivery).map_or(0, |bytes| bytes.len());
        filling.reports.push(delivery);
        Ok(())
    }
}

#[derive(Default)]
struct Filling {
    reports: Vec<Delivery>,
    bytes: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.bytes >= PAGE_BYTES
    }
}

/// A report is durable at a gateway of its hospital: it is delivered, if it is the one that stands.
pub(super) async fn acknowledge(node: &Node, gateway: SiteId, exam: u64, report: u32) -> Reply {
    let (name, hospitals) = match Door::gateway_of(node, gateway) {
        Ok(Some(gateway)) => gateway,
        Ok(None) => return not_now(&"the site is no gateway"),
        Err(reply) => return reply,
    };
    let exam = ExamId(exam);
    let is_owed = || {
        let known = node.read(|view| view.exam(exam))?;
        Ok::<_, ApplyError>(known.is_some_and(|known| {
            hospitals.contains(&known.request.hospital)
                && known.course.report == Some(report)
                && known.course.delivered_at.is_none()
        }))
    };
    let mut owed = is_owed();
    if matches!(owed, Ok(false)) {
        // Not the one that stands, or no news; unless this centre is behind the one that gave the report.
        if let Err(error) = node.linearize().await {
            return not_now(&error);
        }
        owed = is_owed();
    }
    match owed {
        Ok(true) => {}
        Ok(false) => return Reply::Done,
        Err(error) => return not_now(&error),
    }
    let to = Line::fitted(&format!("gateway {name}"));
    let command = Command::Deliver { exam, report, to };
    match node.command(delivery_id(node, gateway, exam, report), Name::default(), command).await {
        Ok(Outcome::Done) => {
            tracing::info!(exam = exam.0, report, gateway = gateway.0, "report delivered");
            Reply::Done
        }
        // What a moment changes is no answer.
        Ok(Outcome::Refused(refusal)) if refusal.is_transient() => not_now(&refusal),
        // A later report stands, or somebody else delivered it.
        Ok(outcome) => {
            tracing::debug!(
                exam = exam.0,
                report,
                ?outcome,
                "a report that came to a gateway is not delivered by that"
            );
            Reply::Done
        }
        Err(error) => not_now(&error),
    }
}

/// The same acknowledgement is the same command, whichever centre proposes it.
fn delivery_id(node: &Node, gateway: SiteId, exam: ExamId, report: u32) -> CommandId {
    let mut hasher = blake3::Hasher::new_derive_key("maillage 2026-11 gateway delivery id");
    hasher.update(&node.mesh_id());
    hasher.update(&gateway.0.to_be_bytes());
    hasher.update(&exam.0.to_be_bytes());
    hasher.update(&report.to_be_bytes());
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    CommandId(uuid::Builder::from_random_bytes(id).into_uuid())
}
