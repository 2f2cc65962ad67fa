//! The end of an exam's images: legal hold, purge, and which sites have seen to it.

use axum::Json;
use axum::extract::State;
use maillage_consensus::View;
use maillage_consensus::command::Command;
use maillage_consensus::exam::Exam;
use maillage_consensus::ids::{ExamId, Line, Name};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::Tombstone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exams::{Done, decide};
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, field};
use crate::http::problem::Problem;
use crate::http::rfc3339::At;
use crate::http::summary::Summaries;

/// Why, and who says so.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HoldBody {
    reason: String,
    user: String,
}

/// `POST /exams/{id}/legal-hold`
pub(super) async fn hold(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<HoldBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let (reason, user) = said(body.reason, body.user)?;
    decide(&app, &app.command(id, user, Command::LegalHold { exam, reason }).await?, exam)
}

/// `POST /exams/{id}/legal-hold/release`
pub(super) async fn release(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<HoldBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let (reason, user) = said(body.reason, body.user)?;
    decide(&app, &app.command(id, user, Command::ReleaseHold { exam, reason }).await?, exam)
}

/// Why images go before their time is over, and who says so.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PurgeBody {
    reason: String,
    /// Whether the patient has withdrawn the consent. Else only the images of an exam that is cancelled or
    /// refused, or whose patient refused their transfer, may go.
    #[serde(default)]
    consent_withdrawn: bool,
    user: String,
}

/// `POST /exams/{id}/purge`: everywhere, for good.
pub(super) async fn purge(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<PurgeBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let (reason, user) = said(body.reason, body.user)?;
    let command = Command::Purge { exam, reason, withdrawn: body.consent_withdrawn };
    decide(&app, &app.command(id, user, command).await?, exam)
}

/// Why and by whom; neither may be empty.
fn said(reason: String, user: String) -> Result<(Line, Name), Problem> {
    Ok((field("reason", Line::filled(reason))?, field("user", Name::filled(user))?))
}

/// How long an exam's images stay, and what became of them.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Retention")]
pub(super) struct RetentionLine {
    /// When they are to go by the rules of today; null once they are purged.
    until: Option<At>,
    /// Why they must stay, whatever their age.
    legal_hold: Option<SaidLine>,
    /// When they were purged and why; no reason when their time was over.
    purged: Option<SaidLine>,
    /// What each part of a purged exam's images was, and which sites have confirmed that nothing is left of it.
    parts: Vec<PartLine>,
}

/// Who decided it, when and why.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RetentionDecision")]
struct SaidLine {
    reason: String,
    user: String,
    at: At,
}

/// A purged part of a study.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PurgedPart")]
struct PartLine {
    study: String,
    /// The name of the site that had received it.
    origin: String,
    instances: u32,
    /// The names of the sites that had said to hold it.
    holders: Vec<String>,
    /// In the order in which they did.
    confirmed: Vec<ConfirmedLine>,
    /// The names of the sites that have not yet.
    pending: Vec<String>,
    /// The names of the keys that were destroyed: whatever copy of the images is left, nothing opens it.
    keys_destroyed: Vec<String>,
}

/// A site's word.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PurgeConfirmed")]
struct ConfirmedLine {
    site: String,
    at: At,
}

impl RetentionLine {
    /// What the state says of an exam's images.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(super) fn gather(view: &View<'_>, summaries: &Summaries<'_>, exam: &Exam) -> Result<Self, ApplyError> {
        let said = |reason: &Line, user: &Name, at| SaidLine { reason: reason.to_string(), user: user.to_string(), at };
        let purged = exam.course.purged.as_ref();
        let hold = exam.course.legal_hold.as_ref();
        let tombstones = view.tombstones(exam.id)?;
        Ok(Self {
            until: if purged.is_none() { Some(At(view.retained_until(exam)?)) } else { None },
            legal_hold: hold.map(|hold| said(&hold.reason, &hold.user, At(hold.at))),
            purged: purged.map(|purged| said(&purged.reason, &purged.user, At(purged.at))),
            parts: tombstones.into_iter().map(|tombstone| PartLine::new(tombstone, summaries)).collect(),
        })
    }
}

impl PartLine {
    fn new(tombstone: Tombstone, summaries: &Summaries<'_>) -> Self {
        let name = |site| String::from(summaries.name(site));
        let confirmed = tombstone.confirmed.into_iter();
        Self {
            study: tombstone.study.to_string(),
            origin: name(tombstone.origin),
            instances: tombstone.instances,
            holders: tombstone.holders.into_iter().map(name).collect(),
            confirmed: confirmed.map(|(site, at)| ConfirmedLine { site: name(site), at: At(at) }).collect(),
            pending: tombstone.pending.into_iter().map(name).collect(),
            keys_destroyed: tombstone.keys.iter().map(ToString::to_string).collect(),
        }
    }
}
