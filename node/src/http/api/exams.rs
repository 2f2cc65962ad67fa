//! Exams: listing, showing, adding, and what a person decides about them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{Exam, ExamState, Patient, Priority, Report, Request, Text8, Workitem};
use maillage_consensus::ids::{ExamId, Line, Name};
use serde::Deserialize;
use serde_json::{Value, json};

use super::glass;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery, field};
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::rfc3339::rfc3339;
use crate::http::summary::{Summaries, claim_json};

/// Exams in one answer, unless fewer are asked for.
const LIST_DEFAULT: usize = 100;
/// The most exams in one answer: each costs a few reads of the state.
const LIST_MAX: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    state: Option<String>,
    limit: Option<usize>,
    after: Option<u64>,
    #[serde(default)]
    fresh: bool,
}

/// `GET /exams?state=&limit=&after=&fresh=`: in ascending order of number, with `next` to continue
/// from. The waiting and the claimed, asked for without `after`, come in the order in which they are
/// to be read and by site, and have no `next`.
pub(super) async fn list(State(app): State<App>, UrlQuery(query): UrlQuery<ListQuery>) -> Result<Read<Value>, Problem> {
    let state = query.state.as_deref().filter(|state| !state.is_empty());
    let state: Option<ExamState> = state.map(str::parse).transpose().map_err(Problem::invalid)?;
    let limit = query.limit.unwrap_or(LIST_DEFAULT).clamp(1, LIST_MAX);
    let (site, now) = (app.node.site(), app.now());
    app.read(query.fresh, |view| {
        let (exams, paged) = match (state, query.after) {
            (Some(ExamState::Waiting), None) => (view.waiting(now, limit)?, false),
            (Some(ExamState::Claimed), None) => (view.claimed(limit)?, false),
            (state, after) => (view.exams(after.map(ExamId), state, limit)?, true),
        };
        let next = exams.last().filter(|_| paged && exams.len() == limit).map(|exam| exam.id);
        let summaries = Summaries::new(view, site)?.of_all(exams)?;
        let book = app.node.outbox().book();
        let shown = summaries.iter().map(|summary| glass::marked(&book, summary.exam.id, summary.to_json(now)));
        let exams: Vec<Value> = shown.collect();
        Ok(json!({ "exams": exams, "next": next }))
    })
    .await
}

/// `GET /exams/{id}`: the exam, its workitems and its reports.
pub(super) async fn show(
    State(app): State<App>,
    UrlPath(id): UrlPath<ExamId>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<Value>, Problem> {
    let (site, now) = (app.node.site(), app.now());
    let read = app.read(query.fresh, |view| {
        let Some(exam) = view.exam(id)? else { return Ok(None) };
        let summaries = Summaries::new(view, site)?;
        let mut shown = glass::marked(&app.node.outbox().book(), id, summaries.of(exam)?.to_json(now));
        shown["workitems"] = view.workitems(id)?.iter().map(|item| workitem_json(item, &summaries)).collect();
        shown["report_list"] = view.reports(id)?.iter().map(|report| report_json(report, &summaries)).collect();
        Ok(Some(shown))
    });
    read.await?.try_map(|shown| shown.ok_or_else(|| Problem::no_such_exam(format!("no exam has number {id}"))))
}

fn workitem_json(workitem: &Workitem, summaries: &Summaries<'_>) -> Value {
    let performer = workitem.performer.as_ref();
    json!({
        "number": workitem.number,
        "state": workitem.state,
        "performer": performer.map(|claim| claim_json(claim, Some(&summaries.name(claim.site)))),
        "reason": workitem.reason,
        "at": rfc3339(workitem.at),
    })
}

fn report_json(report: &Report, summaries: &Summaries<'_>) -> Value {
    json!({
        "number": report.number,
        "text": report.text,
        "user": report.user,
        "site": report.site,
        "site_name": summaries.name(report.site),
        "at": rfc3339(report.at),
        "token": report.token,
        "stale": report.stale,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewExam {
    accession: String,
    patient: NewPatient,
    #[serde(default)]
    modality: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    hospital: String,
    #[serde(default)]
    physician: String,
    priority: Option<String>,
    #[serde(default = "awaits")]
    awaits_images: bool,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPatient {
    id: String,
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    birth_date: String,
    #[serde(default)]
    sex: String,
}

impl std::fmt::Debug for NewPatient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewPatient")
    }
}

fn awaits() -> bool {
    true
}

impl NewExam {
    fn request(self) -> Result<Request, Problem> {
        let patient = self.patient;
        if !patient.birth_date.is_empty() && !is_date(&patient.birth_date) {
            return Err(Problem::invalid("patient.birth_date: must be YYYYMMDD"));
        }
        if !["", "M", "F", "O"].contains(&patient.sex.as_str()) {
            return Err(Problem::invalid("patient.sex: must be M, F or O"));
        }
        let priority = self.priority.as_deref().map(str::parse).transpose().map_err(Problem::invalid)?;
        Ok(Request {
            accession: field("accession", Line::filled(self.accession))?,
            patient: Patient {
                id: field("patient.id", Line::filled(patient.id))?,
                issuer: field("patient.issuer", Line::new(patient.issuer))?,
                name: field("patient.name", Line::new(patient.name))?,
                birth_date: field("patient.birth_date", Text8::new(patient.birth_date))?,
                sex: field("patient.sex", Text8::new(patient.sex))?,
            },
            modality: field("modality", Text8::new(self.modality))?,
            description: field("description", Line::new(self.description))?,
            hospital: field("hospital", Line::new(self.hospital))?,
            physician: field("physician", Line::new(self.physician))?,
            priority: priority.unwrap_or(Priority::Urgent),
            awaits_images: self.awaits_images,
        })
    }
}

fn is_date(text: &str) -> bool {
    text.len() == 8
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && ("01"..="12").contains(&&text[4..6])
        && ("01"..="31").contains(&&text[6..])
}

/// `POST /exams`: 201 when added, 200 when the same accession number and patient were there already.
pub(super) async fn add(
    State(app): State<App>,
    Idempotency(id): Idempotency,
    JsonBody(new): JsonBody<NewExam>,
) -> Result<Response, Problem> {
    let user = field("user", Name::new(new.user.as_str()))?;
    match app.command(id, user, Command::AddExam(new.request()?)).await? {
        Outcome::ExamAdded { exam, existed } => {
            let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
            Ok((status, Json(json!({ "id": exam, "existed": existed }))).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelBody {
    reason: String,
    #[serde(default)]
    user: String,
}

/// `POST /exams/{id}/cancel`
pub(super) async fn cancel(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<CancelBody>,
) -> Result<Json<Value>, Problem> {
    let user = field("user", Name::new(body.user))?;
    let reason = field("reason", Line::filled(body.reason))?;
    decide(&app, app.command(id, user, Command::Cancel { exam, reason }).await?, exam)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PriorityBody {
    priority: String,
    #[serde(default)]
    user: String,
}

/// `POST /exams/{id}/priority`
pub(super) async fn prioritise(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<PriorityBody>,
) -> Result<Json<Value>, Problem> {
    let user = field("user", Name::new(body.user))?;
    let priority = body.priority.parse().map_err(Problem::invalid)?;
    decide(&app, app.command(id, user, Command::Prioritise { exam, priority }).await?, exam)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReconcileBody {
    into: ExamId,
    #[serde(default)]
    user: String,
}

/// `POST /exams/{id}/reconcile`: the images of the unsolicited exam `id` belong to the exam `into`.
pub(super) async fn reconcile(
    State(app): State<App>,
    UrlPath(unsolicited): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<ReconcileBody>,
) -> Result<Json<Value>, Problem> {
    let user = field("user", Name::new(body.user))?;
    let command = Command::Reconcile { unsolicited, into: body.into };
    decide(&app, app.command(id, user, command).await?, unsolicited)
}

fn decide(app: &App, outcome: Outcome, exam: ExamId) -> Result<Json<Value>, Problem> {
    match outcome {
        Outcome::Done => {
            let state = app.node.read(|view| view.exam(exam)).ok().flatten().map(|exam: Exam| exam.state.as_str());
            Ok(Json(json!({ "done": true, "id": exam, "state": state })))
        }
        other => Err(unexpected(&other)),
    }
}

/// An outcome of another command than the one asked: a client used one idempotency key for two.
pub(super) fn unexpected(outcome: &Outcome) -> Problem {
    let done = crate::metrics::outcome_label(outcome);
    Problem::invalid(format!("this idempotency key named another command before; its outcome was {done:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: Value) -> Result<Request, String> {
        let new: NewExam = serde_json::from_value(body).map_err(|error| error.to_string())?;
        new.request().map_err(|problem| problem.detail().to_owned())
    }

    #[test]
    fn an_exam_needs_an_accession_number_and_a_patient() {
        let added = request(json!({ "accession": "A1", "patient": { "id": "P1" } })).expect("enough");
        assert_eq!(added.priority, Priority::Urgent, "unless told otherwise");
        assert!(added.awaits_images);
        let check = |body, error: &str| {
            let given = request(body).expect_err("refused");
            assert!(given.contains(error), "{given:?} should say {error:?}");
        };
        check(json!({ "accession": " ", "patient": { "id": "P1" } }), "accession: empty");
        check(json!({ "accession": "A1", "patient": { "id": "" } }), "patient.id: empty");
        check(json!({ "accession": "A1", "patient": {} }), "missing field `id`");
        check(json!({ "accession": "A1", "patient": { "id": "x".repeat(257) } }), "patient.id: longer than 256 bytes");
        check(json!({ "accession": "A\u{1b}1", "patient": { "id": "P" } }), "accession: holds control characters");
        check(json!({ "accession": "A1", "patient": { "id": "P" }, "colour": 1 }), "unknown field `colour`");
        check(json!({ "accession": "A1", "patient": { "id": "P" }, "priority": "high" }), "none of vital");
        check(json!({ "accession": "A1", "patient": { "id": "P", "sex": "X" } }), "patient.sex");
        for date in ["1970", "19701301", "19700132", "1970-1-1", "é9700101"] {
            check(json!({ "accession": "A1", "patient": { "id": "P", "birth_date": date } }), "patient.birth_date");
        }
        assert!(
            request(json!({ "accession": "A", "patient": { "id": "P", "birth_date": "19700131", "sex": "F" } }))
                .is_ok()
        );
    }
}
