//! Claims: taking, giving back, and ending with a report.
//!
//! A claim is answered only once it is committed and applied: until then nobody has it.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, LIST_MAX};
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, Prose, UidText};
use maillage_consensus::outcome::Grant;
use serde::Deserialize;
use serde_json::{Value, json};

use super::exams::unexpected;
use super::glass::{self, ClaimToken, Decided, Reported};
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, field};
use crate::http::problem::Problem;
use crate::http::summary::{Summaries, claim_json};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NextBody {
    user: String,
    #[serde(default)]
    modalities: Vec<String>,
}

/// `POST /claims/next`: the waiting exam that is due first, or `"exam": null` when none waits.
pub(super) async fn next(
    State(app): State<App>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<NextBody>,
) -> Result<Json<Value>, Problem> {
    let user = field("user", Name::filled(body.user))?;
    if body.modalities.len() > LIST_MAX {
        return Err(Problem::invalid(format!("modalities: at most {LIST_MAX}")));
    }
    let modalities = body.modalities.into_iter().map(|modality| field("modalities", UidText::filled(modality)));
    let modalities = modalities.collect::<Result<_, _>>()?;
    claim(&app, id, user, Command::ClaimNext { modalities }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeBody {
    user: String,
}

/// `POST /exams/{id}/claim`: 409 with the holder when somebody has it.
pub(super) async fn take(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TakeBody>,
) -> Result<Json<Value>, Problem> {
    let user = field("user", Name::filled(body.user))?;
    claim(&app, id, user, Command::ClaimTake { exam }).await
}

async fn claim(app: &App, id: CommandId, user: Name, command: Command) -> Result<Json<Value>, Problem> {
    match app.command(id, user, command).await? {
        Outcome::Claimed(grant) => granted(app, &grant).await.map(Json),
        Outcome::NothingWaiting => Ok(Json(json!({ "granted": false, "exam": null, "token": null }))),
        other => Err(unexpected(&other)),
    }
}

/// A grant, with the exam as this node's state shows it. A grant's token is its index in the log, so
/// this node knows how far it must have come to show it.
async fn granted(app: &App, grant: &Grant) -> Result<Value, Problem> {
    app.wait_applied(grant.claim.token.0).await;
    let (site, now) = (app.node.site(), app.now());
    let (mut exam, site_name) = app.node.read(|view| {
        let summaries = Summaries::new(view, site)?;
        let exam = view.exam(grant.exam)?.map(|exam| summaries.of(exam)).transpose()?;
        let exam = exam.map_or_else(|| json!({ "id": grant.exam }), |exam| exam.to_json(now));
        Ok((exam, summaries.name(grant.claim.site)))
    })?;
    let claim = claim_json(&grant.claim, Some(&site_name));
    if exam["claim"].is_null() {
        // This node's copy is behind, or a repeat came after the claim's end: what was granted is what counts.
        exam["claim"] = claim.clone();
    }
    Ok(json!({
        "granted": true,
        "exam": exam,
        "workitem": grant.workitem,
        "token": grant.claim.token,
        "claim": claim,
    }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseBody {
    token: ClaimToken,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    user: String,
}

/// `POST /exams/{id}/release`
pub(super) async fn release(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<ReleaseBody>,
) -> Result<Json<Value>, Problem> {
    let user = field("user", Name::new(body.user))?;
    let reason = field("reason", Line::new(body.reason))?;
    let token = match body.token {
        ClaimToken::Fencing(token) => token,
        ClaimToken::Glass(token) => return glass::give_back(&app, exam, token, user, reason).await,
    };
    match app.command(id, user, Command::Release { exam, token, reason }).await? {
        Outcome::Done => Ok(Json(json!({ "done": true, "id": exam }))),
        other => Err(unexpected(&other)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportBody {
    user: String,
    token: ClaimToken,
    text: String,
}

/// `POST /exams/{id}/report`: ends the claim. Under a stale token 409, with the draft's number; without a
/// quorum 202, and it is sent as soon as there is one.
pub(super) async fn report(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<ReportBody>,
) -> Result<Response, Problem> {
    let user = field("user", Name::filled(body.user))?;
    let report = field("text", Prose::filled(body.text.replace("\r\n", "\n")))?;
    let token = match body.token {
        ClaimToken::Fencing(token) => token,
        ClaimToken::Glass(token) => match glass::report(&app, exam, token, id, &user, &report).await? {
            Reported::Here(entry) => return Ok(glass::queued(&entry)),
            Reported::Under(token) => token,
        },
    };
    match app.command_or_queue(id, user, Command::Complete { exam, token, report }).await? {
        Decided::Queued(entry) => Ok(glass::queued(&entry)),
        Decided::Done(Outcome::Completed { report }) => {
            Ok(Json(json!({ "done": true, "id": exam, "report": report })).into_response())
        }
        Decided::Done(other) => Err(unexpected(&other)),
    }
}
