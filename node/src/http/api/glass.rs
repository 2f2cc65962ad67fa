//! What a site that is cut off from the quorum may do: take an exam by break glass, and write what is
//! sent later.
//!
//! Everything here is answered once it is durable on this site's own disk; `202` says that the mesh does
//! not know of it yet. An exam taken by break glass may be read by somebody else at the same time: that
//! is its price, and it is shown afterwards as a second read.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maillage_consensus::command::Command;
use maillage_consensus::exam::{Exam, ReportKind};
use maillage_consensus::ids::{CommandId, ExamId, FencingToken, Line, Name, Prose};
use maillage_consensus::{Outcome, Refusal};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::exams::decide;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, field, parse_command_id};
use crate::http::problem::Problem;
use crate::http::rfc3339::rfc3339;
use crate::http::summary::ExamLine;
use crate::node::CommandError;
use crate::outbox::{Ask, Book, End, Entry, GlassToken, Local, Refused, What, images_of, text_of};

/// The proof of a claim, as clients send it: a number that the mesh gave, or a text that this site gave.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "the token must be a claim's number or a break-glass claim's text")]
pub(crate) enum ClaimToken {
    /// Of an ordinary claim.
    Fencing(#[schemars(with = "u64")] FencingToken),
    /// Of a claim by break glass.
    Glass(#[schemars(with = "String")] GlassToken),
}

impl FromStr for ClaimToken {
    type Err = Problem;

    /// As forms send it.
    fn from_str(text: &str) -> Result<Self, Problem> {
        let number = text.parse().map(Self::Fencing);
        number
            .or_else(|_| text.parse().map(Self::Glass))
            .map_err(|why: String| Problem::invalid(format!("token: {why}")))
    }
}

/// Why an exam is taken without a quorum.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeBody {
    #[serde(default)]
    user: String,
    #[serde(default)]
    reason: String,
}

/// `POST /exams/{id}/break-glass`: 201 with the token. 409 when a quorum can be reached, when not all
/// images are here, when the exam is over, and when somebody else here took it so.
pub(super) async fn take(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TakeBody>,
) -> Result<Response, Problem> {
    let user = field("user", Name::filled(body.user))?;
    let reason = field("reason", Line::filled(body.reason))?;
    let (entry, studies) = take_exam(&app, exam, id, user, reason).await?;
    let mut answer = entry_json(&entry, false, true);
    answer["studies"] = json!(studies);
    let status = if studies.is_some() && entry.id == id { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(answer)).into_response())
}

/// Takes an exam by break glass. With the entry come the studies whose images are here, unless this is a
/// repeat: that is answered as it was, whatever has become possible since.
///
/// # Errors
/// As [`take`].
pub(crate) async fn take_exam(
    app: &App,
    exam: ExamId,
    id: CommandId,
    user: Name,
    reason: Line,
) -> Result<(Entry, Option<Vec<String>>), Problem> {
    let outbox = app.node.outbox();
    let is_repeat = outbox.book().get(id).is_some();
    let studies = if is_repeat { None } else { Some(may_be_taken(app, exam).await?) };
    let entry = outbox.ask(Ask::Take { id, exam, user, reason }).await?;
    if !is_repeat && entry.id == id {
        tracing::warn!(exam = exam.0, claim = %entry.id.0, "an exam is taken by break glass");
    }
    Ok((entry, studies))
}

/// Checks everything but who has it here. Returns the studies whose images are here.
async fn may_be_taken(app: &App, id: ExamId) -> Result<Vec<String>, Problem> {
    let (exam, contracted) = app.node.read(|view| {
        let Some(exam) = view.exam(id)? else { return Ok((None, true)) };
        let hospital = view.hospital(exam.request.hospital.as_str())?;
        let contracted = |sites: &[_]| sites.is_empty() || sites.contains(&app.node.site());
        Ok((Some(exam), hospital.is_none_or(|hospital| contracted(&hospital.sites))))
    })?;
    let exam: Exam = exam.ok_or_else(|| Problem::no_such_exam(format!("no exam known here has number {id}")))?;
    if exam.state.is_reported() || exam.state.is_off() {
        return Err(Refusal::WrongState { state: exam.state }.into());
    }
    if !contracted {
        return Err(Refusal::NoContract.into());
    }
    if app.node.linearize().await.is_ok() {
        return Err(Problem::quorum_reached(format!("`POST /api/v1/exams/{id}/claim` claims it for the whole mesh")));
    }
    match images_of(&app.node, &exam).await {
        Ok(Local::All(studies)) => Ok(studies),
        Ok(Local::Lacking(studies)) if studies.is_empty() => {
            Err(Problem::incomplete("none of the exam's images are here"))
        }
        Ok(Local::Lacking(studies)) => {
            let detail = format!("images of {} of its studies are not all here", studies.len());
            Err(Problem::incomplete(detail).with("studies", json!(studies)))
        }
        Err(error) => Err(Problem::internal(format!("look for the images: {error:#}"))),
    }
}

/// `GET /break-glass`: what was taken by break glass here, and what became of it.
pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    let book = app.node.outbox().book();
    let claims =
        book.entries().filter(|entry| entry.glass().is_some()).map(|entry| entry_json(entry, true, app.is_control));
    Json(json!({ "claims": claims.collect::<Vec<_>>() }))
}

/// `GET /outbox`: everything that waits to be sent, or was sent within a day, or awaits a person.
pub(super) async fn outbox(State(app): State<App>) -> Json<Value> {
    let book = app.node.outbox().book();
    let entries: Vec<Value> = book.entries().map(|entry| entry_json(entry, true, app.is_control)).collect();
    Json(json!({ "entries": entries, "failure": app.node.outbox().failure() }))
}

/// `DELETE /outbox/{id}`: a person has taken note of how it ended.
pub(super) async fn acknowledge(State(app): State<App>, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, Problem> {
    let entry = app.node.outbox().ask(Ask::Drop { id: parse_command_id(&id)? }).await?;
    tracing::info!(exam = entry.exam.0, id = %entry.id.0, state = entry.state(), "an outbox entry was acknowledged");
    Ok(Json(json!({ "done": true, "id": entry.id })))
}

/// What became of a report under a break-glass claim.
pub(crate) enum Reported {
    /// It is durable here.
    Here(Box<Entry>),
    /// The mesh has made an ordinary claim of it: the report belongs under that one.
    Under(FencingToken),
}

/// A report under a break-glass claim.
///
/// # Errors
/// The claim is none of this user's, or the report is not durable.
pub(crate) async fn report(
    app: &App,
    exam: ExamId,
    token: GlassToken,
    key: CommandId,
    user: &Name,
    text: &Prose,
) -> Result<Reported, Problem> {
    // Whether somebody else reads the exam too is not known yet: it is signed as what its author means.
    let signature = app.sign(exam, user, ReportKind::Final, text);
    let ask = Ask::Report { token, exam, user: user.clone(), key, text: text.clone(), signature };
    match app.node.outbox().ask(ask).await {
        Ok(entry) => Ok(Reported::Here(Box::new(entry))),
        Err(Refused::Continues(token)) => Ok(Reported::Under(token)),
        Err(refused) => Err(refused.into()),
    }
}

/// A break-glass claim is given back without a report.
///
/// # Errors
/// As [`report`].
pub(crate) async fn give_back(
    app: &App,
    exam: ExamId,
    token: GlassToken,
    user: Name,
    reason: Line,
) -> Result<Json<Value>, Problem> {
    let ask = Ask::GiveBack { token, exam, user: user.clone(), reason: reason.clone() };
    match app.node.outbox().ask(ask).await {
        Ok(entry) => Ok(Json(json!({ "done": true, "id": exam, "entry": entry_json(&entry, false, true) }))),
        Err(Refused::Continues(held)) => {
            // From the claim's own id: a repeat is the same command.
            match app.command(token.0, user, Command::Release { exam, token: held, reason }).await? {
                Outcome::Done => Ok(Json(json!({ "done": true, "id": exam }))),
                other => Err(super::exams::unexpected(&other)),
            }
        }
        Err(refused) => Err(refused.into()),
    }
}

/// The answer for what is durable here and unknown to the mesh; for what the mesh has decided meanwhile,
/// what it decided.
pub(super) fn queued(entry: &Entry) -> Response {
    let waits = entry.end.is_none();
    let status = if waits { StatusCode::ACCEPTED } else { StatusCode::OK };
    let report = match &entry.end {
        Some((End::Accepted { number }, _)) => Some(*number),
        Some((End::SecondRead { report }, _)) => *report,
        _ => None,
    };
    let answer =
        json!({ "queued": waits, "id": entry.exam, "report": report, "entry": entry_json(entry, false, true) });
    (status, Json(answer)).into_response()
}

/// What became of a command that may wait for a quorum.
pub(crate) enum Decided {
    /// The mesh decided.
    Done(Outcome),
    /// It is kept here, durably, and sent as soon as a quorum is reached.
    Queued(Entry),
}

impl App {
    /// As [`App::command`] for a report, an addendum or a note; without a quorum it is queued, under its
    /// own command id.
    ///
    /// # Errors
    /// The refusal or failure, as a problem.
    pub(crate) async fn command_or_queue(
        &self,
        id: CommandId,
        user: Name,
        command: Command,
    ) -> Result<Decided, Problem> {
        let outbox = self.node.outbox();
        let queue = || outbox.queue(self.node.site(), id, user.clone(), command.clone());
        // What is on its way is not sent a second way.
        let waits = outbox.book().get(id).is_some_and(|entry| entry.end.is_none());
        if waits {
            return Ok(Decided::Queued(queue().await?));
        }
        match self.node.command(id, user.clone(), command.clone()).await {
            Ok(Outcome::Refused(refusal)) => Err(refusal.into()),
            Ok(outcome) => Ok(Decided::Done(outcome)),
            // Whether it was done or not: under the same id it takes effect once.
            Err(error @ (CommandError::NoQuorum(_) | CommandError::Unknown(_))) if text_of(&command).is_some() => {
                match (queue().await, error) {
                    (Ok(entry), _) => Ok(Decided::Queued(entry)),
                    // That it is not recorded here does not say that it was not done.
                    (Err(_), error @ CommandError::Unknown(_)) => Err(error.into()),
                    (Err(error), _) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A report, an addendum or a note is done, or kept here until a quorum is reached.
///
/// # Errors
/// The refusal or failure, as a problem.
pub(super) async fn decide_or_queue(
    app: &App,
    id: CommandId,
    user: Name,
    command: Command,
    exam: ExamId,
) -> Result<Response, Problem> {
    match app.command_or_queue(id, user, command).await? {
        Decided::Queued(entry) => Ok(queued(&entry)),
        Decided::Done(outcome) => decide(app, &outcome, exam).map(IntoResponse::into_response),
    }
}

/// An exam with what was done to it by break glass at this site, which the mesh may not know yet.
pub(super) fn marked(app: &App, book: &Book, mut line: ExamLine) -> ExamLine {
    line.break_glass = book.glass_of(ExamId(line.id)).map(|(entry, _)| entry_json(entry, false, app.is_control));
    line
}

/// An entry of the outbox; with `texts`, what was written, as long as it is in no report of the mesh; with
/// `proofs`, what its claim is ended by: its token, which its id tells, and that of its ordinary claim.
fn entry_json(entry: &Entry, texts: bool, proofs: bool) -> Value {
    let end = entry.end.as_ref();
    let text = entry.text().filter(|_| texts && end.is_none_or(|(end, _)| end.needs_a_person()));
    let (mut why, mut token, mut report) = (None, None, None);
    match end.map(|(end, _)| end) {
        Some(End::Failed { why: said }) => why = Some(said),
        Some(End::Continues { token: given }) => token = Some(given),
        Some(End::Accepted { number } | End::Draft { report: number }) => report = Some(*number),
        Some(End::SecondRead { report: number }) => report = *number,
        Some(End::GivenBack) | None => {}
    }
    let glass = match &entry.what {
        What::Glass(glass) => Some(glass),
        What::Command(_) => None,
    };
    json!({
        "id": Some(entry.id).filter(|_| proofs || glass.is_none() || end.is_some_and(|(end, _)| end.needs_a_person())),
        "kind": entry.kind(),
        "state": entry.state(),
        "exam": entry.exam,
        "user": entry.user,
        "at": rfc3339(entry.at),
        "reason": glass.map(|glass| &glass.reason),
        "token": entry.token().filter(|_| proofs),
        "claim_token": token.filter(|_| proofs),
        "number": report,
        "why": why,
        "settled_at": end.map(|(_, at)| rfc3339(*at)),
        "needs_a_person": end.is_some_and(|(end, _)| end.needs_a_person()),
        "text": text,
    })
}
