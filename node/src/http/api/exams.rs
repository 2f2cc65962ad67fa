//! Exams: showing, adding, and what a person decides about them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{Exam, Patient, Priority, Request, Text8};
use maillage_consensus::ids::{ExamId, Line, Name};
use maillage_consensus::order::{Consent, Order, Specialty};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::glass;
use super::sheet::ExamSheet;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery, field};
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::summary::Summaries;

/// `GET /exams/{id}`: the exam, its workitems, its reports, and what was said of it.
pub(super) async fn show(
    State(app): State<App>,
    UrlPath(id): UrlPath<ExamId>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<ExamSheet>, Problem> {
    let (site, now) = (app.node.site(), app.now());
    let read = app.read(query.fresh, |view| {
        let Some(exam) = view.exam(id)? else { return Ok(None) };
        let mut sheet = ExamSheet::gather(view, &Summaries::new(view, site)?.with_proofs(app.is_control), exam, now)?;
        sheet.line = glass::marked(&app, &app.node.outbox().book(), sheet.line);
        Ok(Some(sheet))
    });
    read.await?.try_map(|shown| shown.ok_or_else(|| Problem::no_such_exam(format!("no exam has number {id}"))))
}

#[derive(Debug, Deserialize, JsonSchema)]
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
    /// `urgent` by default.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::priority")]
    priority: Option<String>,
    /// Whether images are to arrive before it can be read; without them it waits at once.
    #[serde(default = "awaits")]
    awaits_images: bool,
    /// What the patient said of the transfer of the images; refused, they do not leave their site.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::consent")]
    consent: Option<Consent>,
    /// Who reads it; by its modality by default.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::specialty")]
    specialty: Option<Specialty>,
    /// The expertise that a rare case needs.
    #[serde(default)]
    expertise: String,
    /// Whether a regulator has to validate it first.
    #[serde(default)]
    regulate: bool,
    /// The clinical question.
    #[serde(default)]
    question: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize, JsonSchema)]
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
    /// What format 1 has no word for.
    fn order(&self) -> Result<Order, Problem> {
        Ok(Order {
            consent: self.consent.unwrap_or_default(),
            specialty: self.specialty,
            expertise: field("expertise", Text8::new(self.expertise.trim()))?,
            regulate: self.regulate,
            question: field("question", Line::new(self.question.as_str()))?,
        })
    }

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

/// An exam that is there now.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Added {
    id: u64,
    /// Whether the same accession number and patient were there already.
    existed: bool,
}

/// `POST /exams`: 201 when added, 200 when the same accession number and patient were there already.
pub(super) async fn add(
    State(app): State<App>,
    Idempotency(id): Idempotency,
    JsonBody(new): JsonBody<NewExam>,
) -> Result<(StatusCode, Json<Added>), Problem> {
    let user = field("user", Name::new(new.user.as_str()))?;
    let (order, request) = (new.order()?, new.request()?);
    let command = if order == Order::default() && app.format()? < 2 {
        Command::AddExam(request)
    } else {
        app.need_format(2)?;
        Command::Order { request, order }
    };
    match app.command(id, user, command).await? {
        Outcome::ExamAdded { exam, existed } => {
            let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
            Ok((status, Json(Added { id: exam.0, existed })))
        }
        other => Err(unexpected(&other)),
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
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
) -> Result<Json<Done>, Problem> {
    let user = field("user", Name::new(body.user))?;
    let reason = field("reason", Line::filled(body.reason))?;
    decide(&app, &app.command(id, user, Command::Cancel { exam, reason }).await?, exam)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PriorityBody {
    #[schemars(schema_with = "crate::http::words::priority")]
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
) -> Result<Json<Done>, Problem> {
    let user = field("user", Name::new(body.user))?;
    let priority = body.priority.parse().map_err(Problem::invalid)?;
    decide(&app, &app.command(id, user, Command::Prioritise { exam, priority }).await?, exam)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReconcileBody {
    /// The exam that was requested.
    #[schemars(with = "u64")]
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
) -> Result<Json<Done>, Problem> {
    let user = field("user", Name::new(body.user))?;
    let command = Command::Reconcile { unsolicited, into: body.into };
    decide(&app, &app.command(id, user, command).await?, unsolicited)
}

/// What was asked is done.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Done {
    done: bool,
    id: u64,
    /// The exam's state in this node's copy, which may be a moment behind.
    state: Option<&'static str>,
    /// The remark's number, where one was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<u32>,
    /// The report's number, where one was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<u32>,
}

/// The answer to what is done or is not.
///
/// # Errors
/// The outcome is another command's.
pub(super) fn decide(app: &App, outcome: &Outcome, exam: ExamId) -> Result<Json<Done>, Problem> {
    let (remark, report) = match outcome {
        Outcome::Done => (None, None),
        Outcome::Remarked { remark } => (Some(*remark), None),
        Outcome::Completed { report } => (None, Some(*report)),
        other => return Err(unexpected(other)),
    };
    let state = app.node.read(|view| view.exam(exam)).ok().flatten().map(|exam: Exam| exam.state.as_str());
    Ok(Json(Done { done: true, id: exam.0, state, remark, report }))
}

/// An outcome of another command than the one asked: a client used one idempotency key for two.
pub(super) fn unexpected(outcome: &Outcome) -> Problem {
    let done = crate::metrics::outcome_label(outcome);
    Problem::invalid(format!("this idempotency key named another command before; its outcome was {done:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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

    #[test]
    fn what_is_not_said_of_an_order_is_its_default_and_what_is_nonsense_is_refused() {
        let order = |more: Value| {
            let mut body = json!({ "accession": "A1", "patient": { "id": "P1" } });
            body.as_object_mut().expect("a body").extend(more.as_object().expect("members").clone());
            let new: NewExam = serde_json::from_value(body).map_err(|error| error.to_string())?;
            new.order().map_err(|problem| problem.detail().to_owned())
        };
        assert_eq!(order(json!({})), Ok(Order::default()));
        let said = order(json!({
            "consent": "declared", "specialty": "nuclear-medicine", "expertise": "paediatric", "regulate": true,
            "question": "bleeding?",
        }));
        assert_eq!(
            said,
            Ok(Order {
                consent: Consent::Declared,
                specialty: Some(Specialty::NuclearMedicine),
                expertise: Text8::fitted("paediatric"),
                regulate: true,
                question: Line::fitted("bleeding?"),
            })
        );
        assert!(order(json!({ "consent": "yes" })).expect_err("refused").contains("unknown variant `yes`"));
        assert!(order(json!({ "expertise": "x".repeat(17) })).expect_err("refused").contains("longer than 16"));
    }
}
