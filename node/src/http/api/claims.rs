//! Claims: taking, giving back, and ending with a report.
//!
//! A claim is answered only once it is committed and applied: until then nobody has it.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, LIST_MAX};
use maillage_consensus::exam::{ReportKind, Text8, WorkitemKind};
use maillage_consensus::ids::{CommandId, ExamId, FencingToken, Line, Name, Prose, UidText};
use maillage_consensus::order::{Reader, Specialty};
use maillage_consensus::outcome::{Grant, Refusal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::exams::{Done, decide, unexpected};
use super::glass::{self, ClaimToken, Reported};
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::extract::{Idempotency, UrlPath, field, parse_uid};
use crate::http::problem::Problem;
use crate::http::summary::{ClaimLine, ExamLine, ExamSummary, Summaries};

/// Who asks for the next exam, and what they read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NextBody {
    user: String,
    /// Only these modalities; any by default.
    #[serde(default)]
    modalities: Vec<String>,
    /// What they read; radiology by default.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::specialties")]
    specialties: Vec<Specialty>,
    /// What they are experts of.
    #[serde(default)]
    expertise: Vec<String>,
}

impl NextBody {
    fn reader(self) -> Result<Reader, Problem> {
        let lists = [("modalities", self.modalities.len()), ("specialties", self.specialties.len())];
        for (name, count) in lists.into_iter().chain([("expertise", self.expertise.len())]) {
            if count > LIST_MAX {
                return Err(Problem::invalid(format!("{name}: at most {LIST_MAX}")));
            }
        }
        let texts = |name: &str, texts: Vec<String>| {
            texts.into_iter().map(|text| field(name, Text8::filled(text))).collect::<Result<Vec<_>, _>>()
        };
        Ok(Reader {
            specialties: self.specialties,
            expertise: texts("expertise", self.expertise)?,
            modalities: texts("modalities", self.modalities)?,
        })
    }
}

/// `POST /claims/next`: the exam that this reader should read next, or `"exam": null` when there is none.
pub(super) async fn next(
    State(app): State<App>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<NextBody>,
) -> Result<Json<Granted>, Problem> {
    let user = field("user", Name::filled(body.user.as_str()))?;
    let command = next_command(&app, body.reader()?)?;
    claim(&app, id, user, command).await
}

/// The command that asks for the next exam in the words of the mesh's format.
///
/// # Errors
/// The state cannot be read; 503 when a mesh of format 1 is asked for more than modalities.
pub(crate) fn next_command(app: &App, reader: Reader) -> Result<Command, Problem> {
    app.node.readers().asked(&reader);
    if app.format()? < 2 && reader.specialties.is_empty() && reader.expertise.is_empty() {
        let modalities = reader.modalities.iter().map(|modality| UidText::fitted(modality.as_str())).collect();
        return Ok(Command::ClaimNext { modalities });
    }
    app.need_format(2)?;
    Ok(Command::Next(reader))
}

/// Who takes an exam.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeBody {
    user: String,
    /// A DICOM UID that names the transaction; made from the command's id by default.
    transaction_uid: Option<String>,
}

/// `POST /exams/{id}/claim`: 409 with the holder when somebody has it.
pub(super) async fn take(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TakeBody>,
) -> Result<Json<Granted>, Problem> {
    let user = field("user", Name::filled(body.user))?;
    let command = match body.transaction_uid {
        None if app.format()? < 2 => Command::ClaimTake { exam },
        uid => {
            app.need_format(2)?;
            let uid = uid.map(|uid| parse_uid("transaction_uid", &uid)).transpose()?;
            let transaction_uid = uid.map_or_else(UidText::default, |uid| UidText::fitted(uid.as_str()));
            Command::Take { exam, transaction_uid }
        }
    };
    claim(&app, id, user, command).await
}

/// Who takes an exam over, and why.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeOverBody {
    user: String,
    /// Told to whoever had it.
    reason: String,
}

/// `POST /exams/{id}/take-over`: from whoever has it, whose workitem is canceled with the reason.
pub(super) async fn take_over(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<TakeOverBody>,
) -> Result<Json<Granted>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::filled(body.user))?;
    let reason = field("reason", Line::filled(body.reason))?;
    claim(&app, id, user, Command::TakeOver { exam, reason }).await
}

/// The answer to who asked for an exam.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Granted {
    /// It is theirs.
    Granted(Box<GrantLine>),
    /// Nothing waits that this reader should read now.
    Nothing {
        /// False.
        granted: bool,
        /// Null.
        exam: Option<()>,
        /// Null.
        token: Option<()>,
    },
}

/// A claim just granted.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Grant")]
pub(super) struct GrantLine {
    /// True.
    granted: bool,
    exam: GrantedExam,
    /// The number of the workitem that is now in progress.
    workitem: u32,
    /// The claim's proof: keep it.
    token: u64,
    claim: ClaimLine,
}

/// The exam of a grant; only its number when this node's copy of the state does not have it yet.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum GrantedExam {
    Known(Box<ExamLine>),
    Unknown { id: u64 },
}

async fn claim(app: &App, id: CommandId, user: Name, command: Command) -> Result<Json<Granted>, Problem> {
    match app.command(id, user, command).await? {
        Outcome::Claimed(grant) => Ok(Json(Granted::Granted(Box::new(granted(app, &grant).await?)))),
        Outcome::NothingWaiting => Ok(Json(Granted::Nothing { granted: false, exam: None, token: None })),
        other => Err(unexpected(&other)),
    }
}

/// A grant, with the exam as this node's state shows it. A grant's token is its index in the log, so
/// this node knows how far it must have come to show it.
async fn granted(app: &App, grant: &Grant) -> Result<GrantLine, Problem> {
    app.wait_applied(grant.claim.token.0).await;
    let (site, now) = (app.node.site(), app.now());
    let (exam, site_name) = app.node.read(|view| {
        let summaries = Summaries::new(view, site)?;
        let exam = view.exam(grant.exam)?.map(|exam| summaries.of(exam)).transpose()?;
        let current = |exam: &ExamSummary| exam.exam.claim.as_ref().map(|claim| claim.token);
        Ok((exam.map(|exam| (exam.line(now), current(&exam))), summaries.name(grant.claim.site)))
    })?;
    let claim = ClaimLine::new(&grant.claim, Some(&site_name), true);
    let exam = match exam {
        Some((mut exam, current)) => {
            // This node's copy is behind, or a repeat came after the claim's end: what was granted is what counts.
            // Another's claim, since then, is shown without its proofs.
            if current.is_none_or(|current| current == grant.claim.token) {
                exam.claim = Some(claim.clone());
            }
            GrantedExam::Known(Box::new(exam))
        }
        None => GrantedExam::Unknown { id: grant.exam.0 },
    };
    Ok(GrantLine { granted: true, exam, workitem: grant.workitem, token: grant.claim.token.0, claim })
}

/// The proof of a claim.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenBody {
    #[schemars(with = "u64")]
    token: FencingToken,
    #[serde(default)]
    user: String,
}

/// `POST /exams/{id}/open`: its reader has it before their eyes.
pub(super) async fn open(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<OpenBody>,
) -> Result<Json<Done>, Problem> {
    app.need_format(2)?;
    let user = field("user", Name::new(body.user))?;
    decide(&app, &app.command(id, user, Command::Open { exam, token: body.token }).await?, exam)
}

/// What a client ends a claim by: the proof that the grant gave, or the Transaction UID under which it
/// claimed the procedure step by UPS, which gives no other.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "the token must be a claim's number, a break-glass claim's text or a step's Transaction UID"
)]
enum Proof {
    Token(ClaimToken),
    TransactionUid(#[schemars(with = "String")] UidText),
}

impl Proof {
    /// The proof as the queue knows it. A claim that holds no more has one too: what is written under it is
    /// kept as a draft.
    async fn of_claim(self, app: &App, exam: ExamId) -> Result<ClaimToken, Problem> {
        let uid = match self {
            Self::Token(token) => return Ok(token),
            Self::TransactionUid(uid) => uid,
        };
        let granted = || -> Result<Option<ClaimToken>, Problem> {
            let items = app.node.read(|view| view.workitems(exam))?;
            let readings = items.into_iter().filter(|item| item.step.kind == WorkitemKind::Read);
            let claims = readings.filter_map(|item| item.performer);
            let claim = claims.rev().find(|claim| !uid.is_empty() && claim.transaction_uid == uid);
            Ok(claim.map(|claim| ClaimToken::Fencing(claim.token)))
        };
        if let Some(token) = granted()? {
            return Ok(token);
        }
        // It may have been claimed at another site a moment ago.
        app.node.linearize().await?;
        granted()?.ok_or_else(|| Refusal::WrongTransaction.into())
    }
}

/// A claim that is given back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseBody {
    token: Proof,
    /// For the next reader.
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
) -> Result<Response, Problem> {
    let user = field("user", Name::new(body.user))?;
    let reason = field("reason", Line::new(body.reason))?;
    let token = match body.token.of_claim(&app, exam).await? {
        ClaimToken::Fencing(token) => token,
        ClaimToken::Glass(token) => {
            return glass::give_back(&app, exam, token, user, reason).await.map(IntoResponse::into_response);
        }
    };
    decide(&app, &app.command(id, user, Command::Release { exam, token, reason }).await?, exam)
        .map(IntoResponse::into_response)
}

/// A report under a claim.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportBody {
    user: String,
    token: Proof,
    text: String,
    /// `final` by default, which ends the claim; a preliminary one does not.
    #[serde(default)]
    #[schemars(schema_with = "crate::http::words::report_kind")]
    kind: ReportKind,
}

/// `POST /exams/{id}/report`: a final one ends the claim. Under a stale token 409, with the draft's number;
/// without a quorum 202, and it is sent as soon as there is one.
pub(super) async fn report(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    Idempotency(id): Idempotency,
    JsonBody(body): JsonBody<ReportBody>,
) -> Result<Response, Problem> {
    let user = field("user", Name::filled(body.user))?;
    let text = field("text", Prose::filled(body.text.replace("\r\n", "\n")))?;
    if !matches!(body.kind, ReportKind::Preliminary | ReportKind::Final) {
        return Err(Problem::invalid("kind: must be preliminary or final; an addendum has an address of its own"));
    }
    let token = match body.token.of_claim(&app, exam).await? {
        ClaimToken::Fencing(token) => token,
        ClaimToken::Glass(token) => match glass::report(&app, exam, token, id, &user, &text).await? {
            Reported::Here(entry) => return Ok(glass::queued(&entry)),
            Reported::Under(token) => token,
        },
    };
    let command = app.report_command(exam, token, &user, body.kind, text)?;
    glass::decide_or_queue(&app, id, user, command, exam).await
}
