//! What is said of an exam besides its report: notes, second opinions, findings, critical results,
//! discrepancies.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use maillage_consensus::command::{Command, UnixMillisField};
use maillage_consensus::exam::{Priority, Text8};
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, Paragraph};
use maillage_consensus::outcome::Refusal;
use maillage_consensus::remark::{Concordance, Finding, What};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exams::{Done, decide};
use super::glass;
use super::life::{TextBody, lines};
use super::sheet::RemarkLine;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery, field};
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::summary::Summaries;

/// Open critical results in one answer: more than a group could ever have.
const CRITICALS_MAX: usize = 1000;

/// `POST /exams/{id}/notes`: from centre to centre; without a quorum 202.
pub(super) async fn note(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TextBody>,
) -> Result<Response, Problem> {
    app.need_format(2)?;
    let (user, text) = body.said()?;
    glass::decide_or_queue(&app, id, user, Command::Note { exam, text }, exam).await
}

/// A second opinion that is asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpinionBody {
    user: String,
    /// A person or a specialty; anybody in any centre by default.
    #[serde(default)]
    of: String,
    question: String,
}

/// `POST /exams/{id}/opinions`: a colleague is asked to look too.
pub(super) async fn ask_opinion(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<OpinionBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::filled(body.user))?;
    let of = field("of", Name::new(body.of.trim()))?;
    let question = field("question", Paragraph::filled(lines(&body.question)))?;
    decide(&app, &app.command(id, user, Command::AskOpinion { exam, of, question }).await?, exam)
}

/// A second opinion.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AnswerBody {
    user: String,
    text: String,
    /// Whether it agrees with the first reader.
    #[schemars(schema_with = "crate::http::words::concordance")]
    concordance: Concordance,
}

/// `POST /exams/{id}/opinions/{remark}/answer`
pub(super) async fn give_opinion(
    State(app): State<App>,
    UrlPath((exam, remark)): UrlPath<(ExamId, u32)>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<AnswerBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let (user, text) = TextBody { user: body.user, text: body.text }.said()?;
    let command = Command::GiveOpinion { exam, remark, text, concordance: body.concordance };
    decide(&app, &app.command(id, user, command).await?, exam)
}

/// An algorithm's result.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FindingBody {
    algorithm: String,
    version: String,
    /// What it found; empty for nothing.
    #[serde(default)]
    finding: String,
    /// How sure it is, from 0 to 1; kept to a thousandth.
    score: f64,
    /// A SOP Instance UID and frame, or words.
    #[serde(default)]
    location: String,
    /// The urgency that it asks for: it raises the exam's, never lowers it.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::priority")]
    priority: Option<Priority>,
    #[serde(default)]
    user: String,
}

impl FindingBody {
    fn finding(self) -> Result<Finding, Problem> {
        if !(0.0..=1.0).contains(&self.score) {
            return Err(Problem::invalid("score: must be from 0 to 1"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
        let score = (self.score * 1000.0).round() as u16;
        Ok(Finding {
            algorithm: field("algorithm", Name::filled(self.algorithm))?,
            version: field("version", Text8::filled(self.version))?,
            finding: field("finding", Line::new(self.finding))?,
            score,
            location: field("location", Line::new(self.location))?,
            priority: self.priority,
        })
    }
}

/// `POST /exams/{id}/findings`
pub(super) async fn add_finding(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<FindingBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::new(body.user.as_str()))?;
    let finding = body.finding()?;
    decide(&app, &app.command(id, user, Command::AddFinding { exam, finding }).await?, exam)
}

/// `POST /exams/{id}/criticals`: a result of which somebody must be told at once.
pub(super) async fn raise_critical(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TextBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let (user, text) = body.said()?;
    decide(&app, &app.command(id, user, Command::RaiseCritical { exam, text }).await?, exam)
}

/// A difference between readings.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DiscrepancyBody {
    user: String,
    /// 1 none, 2 minor, 3 major, 4 vital.
    #[schemars(range(min = 1, max = 4))]
    grade: u8,
    text: String,
}

/// `POST /exams/{id}/discrepancies`
pub(super) async fn raise_discrepancy(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<DiscrepancyBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    if !(1..=4).contains(&body.grade) {
        return Err(Problem::invalid("grade: must be 1 to 4"));
    }
    let (user, text) = TextBody { user: body.user, text: body.text }.said()?;
    let command = Command::RaiseDiscrepancy { exam, grade: body.grade, text };
    decide(&app, &app.command(id, user, command).await?, exam)
}

/// Who was told.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ToldBody {
    /// By whom.
    user: String,
    /// A name and function.
    whom: String,
    /// Whether they read it back.
    #[serde(default)]
    read_back: bool,
}

/// `POST /exams/{id}/criticals/{remark}/told`
pub(super) async fn tell_critical(
    State(app): State<App>,
    UrlPath(remark): UrlPath<(ExamId, u32)>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<ToldBody>,
) -> Result<Json<Done>, Problem> {
    tell(&app, remark, id, body, |what| matches!(what, What::Critical(_))).await
}

/// `POST /exams/{id}/discrepancies/{remark}/told`
pub(super) async fn tell_discrepancy(
    State(app): State<App>,
    UrlPath(remark): UrlPath<(ExamId, u32)>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<ToldBody>,
) -> Result<Json<Done>, Problem> {
    tell(&app, remark, id, body, |what| matches!(what, What::Discrepancy(_))).await
}

async fn tell(
    app: &App,
    (exam, remark): (ExamId, u32),
    id: CommandId,
    body: ToldBody,
    is_meant: fn(&What) -> bool,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::filled(body.user))?;
    let whom = field("whom", Line::filled(body.whom))?;
    // A remark's kind never changes: what this node knows to be another one is refused here, so that a
    // number mistaken for another marks no critical result as told. What it does not know yet, the mesh decides.
    let remarks = app.node.read(|view| view.remarks(exam))?;
    if remarks.iter().any(|known| known.number == remark && !is_meant(&known.what)) {
        return Err(Refusal::NoSuchRemark.into());
    }
    let command = Command::Tell { exam, remark, whom, read_back: body.read_back };
    decide(app, &app.command(id, user, command).await?, exam)
}

/// Critical results of which nobody has been told.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Criticals {
    /// The one that escalates first comes first.
    criticals: Vec<CriticalLine>,
}

/// One of them.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OpenCritical")]
struct CriticalLine {
    exam: u64,
    hospital: String,
    physician: String,
    /// Since it was raised.
    open_ms: u64,
    /// Whether it is past the time by which somebody should have been told.
    overdue: bool,
    remark: RemarkLine,
}

/// `GET /criticals`: those of which nobody has been told, with how long they have been open.
pub(super) async fn open_criticals(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<Criticals>, Problem> {
    let (site, now): (_, UnixMillisField) = (app.node.site(), app.now());
    app.read(query.fresh, |view| {
        let summaries = Summaries::new(view, site)?;
        let mut criticals = Vec::new();
        for (id, number, due_at) in view.criticals(CRITICALS_MAX)? {
            let Some(exam) = view.exam(id)? else { continue };
            let Some(remark) = view.remarks(id)?.into_iter().find(|remark| remark.number == number) else { continue };
            criticals.push(CriticalLine {
                exam: id.0,
                hospital: exam.request.hospital.into(),
                physician: exam.request.physician.into(),
                open_ms: now.0.saturating_sub(remark.at.0),
                overdue: due_at < now,
                remark: RemarkLine::new(remark, &summaries),
            });
        }
        Ok(Criticals { criticals })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_a_share_and_is_kept_to_a_thousandth() {
        let finding = |score| {
            let body = FindingBody {
                algorithm: "bleed".to_owned(),
                version: "1.2".to_owned(),
                finding: String::new(),
                score,
                location: String::new(),
                priority: None,
                user: String::new(),
            };
            body.finding().map(|finding| finding.score).map_err(|problem| problem.code())
        };
        assert_eq!([0.0, 0.9876, 1.0].map(finding), [Ok(0), Ok(988), Ok(1000)]);
        assert_eq!([-0.1, 1.01, f64::NAN, f64::INFINITY].map(finding), [Err("invalid"); 4]);
    }
}
