//! An exam's life around its reading: regulation and acquisition before, addendum, delivery and follow-up
//! after.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{ReportKind, Verdict};
use maillage_consensus::ids::{ExamId, Line, Name, Paragraph, Prose};
use schemars::JsonSchema;
use serde::Deserialize;

use super::exams::{Done, decide};
use super::glass;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, field};
use crate::http::problem::Problem;

/// A regulator's verdict.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "verdict", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum VerdictBody {
    /// The request is relevant.
    Validated {
        /// By which the technologist is to acquire the images.
        protocol: String,
        user: String,
    },
    /// It is not to be done.
    Refused {
        /// Why.
        reason: String,
        user: String,
    },
}

/// `POST /exams/{id}/regulation`
pub(super) async fn regulate(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<VerdictBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let (verdict, user) = match body {
        VerdictBody::Validated { protocol, user } => {
            (Verdict::Validated { protocol: field("protocol", Line::filled(protocol))? }, user)
        }
        VerdictBody::Refused { reason, user } => {
            (Verdict::Refused { reason: field("reason", Line::filled(reason))? }, user)
        }
    };
    let user = field("user", Name::filled(user))?;
    decide(&app, &app.command(id, user, Command::Regulate { exam, verdict }).await?, exam)
}

/// Who does something that needs no words.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ByBody {
    #[serde(default)]
    user: String,
}

/// `POST /exams/{id}/acquisition`: the technologist begins to scan.
pub(super) async fn acquire(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<ByBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::new(body.user))?;
    decide(&app, &app.command(id, user, Command::Acquire { exam }).await?, exam)
}

/// What somebody says.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TextBody {
    pub(super) user: String,
    pub(super) text: String,
}

impl TextBody {
    /// Who says it, and what, in a few sentences.
    ///
    /// # Errors
    /// 400.
    pub(super) fn said(self) -> Result<(Name, Paragraph), Problem> {
        Ok((field("user", Name::filled(self.user))?, field("text", Paragraph::filled(lines(&self.text)))?))
    }
}

/// A text whose lines end as texts here do.
pub(super) fn lines(text: &str) -> String {
    text.replace("\r\n", "\n")
}

/// `POST /exams/{id}/addendum`: a word added to the final report, signed as it is; without a quorum 202.
pub(super) async fn addend(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TextBody>,
) -> Result<Response, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::filled(body.user))?;
    let text = field("text", Prose::filled(lines(&body.text)))?;
    let signature = app.sign(exam, &user, ReportKind::Addendum, &text).into();
    glass::decide_or_queue(&app, id, user, Command::Addend { exam, text, signature }, exam).await
}

/// A delivery.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeliveryBody {
    /// The number of the report that stands: a later one is still to be delivered.
    report: u32,
    /// To whom and how.
    to: String,
    #[serde(default)]
    user: String,
}

/// `POST /exams/{id}/delivery`: the requesting physician has the report.
pub(super) async fn deliver(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<DeliveryBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::new(body.user))?;
    let to = field("to", Line::filled(body.to))?;
    decide(&app, &app.command(id, user, Command::Deliver { exam, report: body.report, to }).await?, exam)
}

/// `POST /exams/{id}/follow-up`: what became of the patient.
pub(super) async fn follow_up(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TextBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let (user, text) = body.said()?;
    decide(&app, &app.command(id, user, Command::FollowUp { exam, text }).await?, exam)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_verdict_says_one_thing_with_what_belongs_to_it() {
        let read = |body| serde_json::from_value::<VerdictBody>(body).map_err(|error| error.to_string());
        assert!(read(json!({ "verdict": "validated", "protocol": "head", "user": "r" })).is_ok());
        assert!(read(json!({ "verdict": "refused", "reason": "no need", "user": "r" })).is_ok());
        for (body, error) in [
            (json!({ "verdict": "validated", "user": "r" }), "missing field `protocol`"),
            (json!({ "verdict": "refused", "protocol": "head", "user": "r" }), "unknown field `protocol`"),
            (json!({ "verdict": "perhaps", "user": "r" }), "unknown variant `perhaps`"),
            (json!({ "protocol": "head", "user": "r" }), "missing field `verdict`"),
        ] {
            let given = read(body).expect_err("refused");
            assert!(given.contains(error), "{given:?} should say {error:?}");
        }
    }
}
