//! `GET /exams`: exams, filtered, a page at a time.

use axum::extract::State;
use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Exam, ExamState};
use maillage_consensus::ids::ExamId;
use maillage_consensus::machine::ApplyError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::glass;
use crate::http::app::App;
use crate::http::extract::UrlQuery;
use crate::http::problem::Problem;
use crate::http::reading::Read;
use crate::http::summary::{ExamLine, Summaries};

/// Exams in one answer, unless fewer are asked for.
const LIST_DEFAULT: usize = 100;
/// The most exams in one answer: each costs a few reads of the state.
const LIST_MAX: usize = 1000;

/// Exams looked at for one answer, at most: what no index finds is looked for a page at a time.
const SCAN_MAX: usize = 10_000;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only those in this state.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::state")]
    state: Option<String>,
    /// Only those of this hospital.
    hospital: Option<String>,
    /// Only those of this modality.
    modality: Option<String>,
    /// Only those of this Patient ID.
    patient: Option<String>,
    /// Only those with this accession number.
    accession: Option<String>,
    /// Only those that wait for a regulator, first come first.
    #[serde(default, rename = "to-regulate")]
    to_regulate: bool,
    /// From 1 to 1000, 100 by default.
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<u64>,
    /// Whether every earlier command must be visible.
    #[serde(default)]
    fresh: bool,
}

/// Exams in a list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Exams")]
pub(super) struct ExamList {
    exams: Vec<ExamLine>,
    /// Where to go on from; null at the end. A page may be short, or empty, and still have a next one.
    next: Option<u64>,
}

/// What of the query each exam must meet.
struct Wanted {
    state: Option<ExamState>,
    query: ListQuery,
}

impl Wanted {
    fn of(query: ListQuery) -> Result<Self, Problem> {
        let state = query.state.as_deref().filter(|state| !state.is_empty());
        Ok(Self { state: state.map(str::parse).transpose().map_err(Problem::invalid)?, query })
    }

    fn keeps(&self, exam: &Exam) -> bool {
        let (request, query) = (&exam.request, &self.query);
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        self.state.is_none_or(|state| state == exam.state)
            && is(&query.hospital, request.hospital.as_str())
            && is(&query.modality, request.modality.as_str())
            && is(&query.patient, request.patient.id.as_str())
            && is(&query.accession, request.accession.as_str())
    }

    /// What is found by the shortest way that leads to it, and where to go on from.
    fn find(&self, view: &View<'_>, now: UnixMillisField) -> Result<(Vec<Exam>, Option<ExamId>), ApplyError> {
        let limit = self.query.limit.unwrap_or(LIST_DEFAULT).clamp(1, LIST_MAX);
        let after = self.query.after.map(ExamId);
        if self.query.to_regulate {
            return Ok(self.paged(view.to_regulate(SCAN_MAX)?, after, limit));
        }
        if let Some(accession) = &self.query.accession {
            return Ok(self.paged(view.exams_with_accession(accession)?, after, limit));
        }
        let found = match (self.state, after) {
            (Some(ExamState::Waiting), None) => view.waiting(now, LIST_MAX)?,
            (Some(ExamState::Claimed | ExamState::Reading), None) => view.claimed(LIST_MAX)?,
            (_, after) => return view.exams_where(after, SCAN_MAX, limit, &|exam| self.keeps(exam)),
        };
        Ok((found.into_iter().filter(|exam| self.keeps(exam)).take(limit).collect(), None))
    }

    /// A page of what is in ascending order already.
    fn paged(&self, found: Vec<Exam>, after: Option<ExamId>, limit: usize) -> (Vec<Exam>, Option<ExamId>) {
        let mut rest = found.into_iter().filter(|exam| Some(exam.id) > after && self.keeps(exam));
        let page: Vec<Exam> = rest.by_ref().take(limit).collect();
        let next = rest.next().and(page.last().map(|exam| exam.id));
        (page, next)
    }
}

/// `GET /exams`: in ascending order of number, with `next` to continue from. The waiting, the claimed
/// and those being read, asked for without `after`, come in the order in which they are to be read and by
/// site, and have no `next`.
pub(super) async fn list(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<ListQuery>,
) -> Result<Read<ExamList>, Problem> {
    let fresh = query.fresh;
    let wanted = Wanted::of(query)?;
    let (site, now) = (app.node.site(), app.now());
    app.read(fresh, |view| {
        let (exams, next) = wanted.find(view, now)?;
        let summaries = Summaries::new(view, site)?.with_proofs(app.is_control).of_all(exams)?;
        let book = app.node.outbox().book();
        let exams = summaries.iter().map(|summary| glass::marked(&app, &book, summary.line(now))).collect();
        Ok(ExamList { exams, next: next.map(|id| id.0) })
    })
    .await
}
