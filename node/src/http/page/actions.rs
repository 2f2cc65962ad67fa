//! The page's forms. Each is a command with the id that the form carries, so that a second press or a
//! reload changes nothing; done, it redirects to the page, which then shows the committed state.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::ReportKind;
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, Prose};
use maillage_consensus::order::Reader;
use serde::Deserialize;

use super::notice::{Notice, Retry};
use super::room::Room;
use super::texts::Language;
use super::{html, view};
use crate::http::api::claims::next_command;
use crate::http::api::glass::{self, ClaimToken, Decided, Reported};
use crate::http::app::App;
use crate::http::body::FormBody;
use crate::http::cookie;
use crate::http::extract::{UrlPath, field, parse_command_id};
use crate::http::problem::Problem;
use crate::outbox::GlassToken;

#[derive(Debug, Deserialize)]
pub(super) struct ReaderForm {
    reader: String,
    lang: Option<String>,
}

/// `POST /ui/reader`: who reads at this browser.
pub(super) async fn set_reader(headers: HeaderMap, FormBody(form): FormBody<ReaderForm>) -> Result<Response, Problem> {
    let reader = field("reader", Name::filled(form.reader))?;
    let language = Language::choose(form.lang.as_deref(), &headers);
    let cookie = [(header::SET_COOKIE, cookie::set_reader(&reader))];
    Ok((cookie, redirect(language, "reader", None)).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct ClaimForm {
    key: String,
    lang: Option<String>,
}

/// `POST /ui/next`: the exam that a radiologist here should read next. Who reads other exams picks them.
pub(super) async fn next(
    State(app): State<App>,
    headers: HeaderMap,
    FormBody(form): FormBody<ClaimForm>,
) -> Result<Response, Problem> {
    let deed = Deed::Command(Box::new(next_command(&app, Reader::default())?));
    act(&app, &headers, Asked { action: "/ui/next".to_owned(), deed, form: form.into() }).await
}

/// `POST /ui/exams/{id}/claim`
pub(super) async fn claim(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    headers: HeaderMap,
    FormBody(form): FormBody<ClaimForm>,
) -> Result<Response, Problem> {
    let (action, command) = (format!("/ui/exams/{exam}/claim"), Command::ClaimTake { exam });
    act(&app, &headers, Asked { action, deed: Deed::Command(Box::new(command)), form: form.into() }).await
}

#[derive(Debug, Deserialize)]
pub(super) struct GlassForm {
    key: String,
    lang: Option<String>,
    #[serde(default)]
    reason: String,
}

/// `POST /ui/exams/{id}/break-glass`
pub(super) async fn break_glass(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    headers: HeaderMap,
    FormBody(form): FormBody<GlassForm>,
) -> Result<Response, Problem> {
    let deed = Deed::BreakGlass { exam, reason: field("reason", Line::filled(form.reason.as_str()))? };
    let form = Sent { key: form.key, lang: form.lang, fields: vec![("reason", form.reason)], text: None };
    act(&app, &headers, Asked { action: format!("/ui/exams/{exam}/break-glass"), deed, form }).await
}

#[derive(Debug, Deserialize)]
pub(super) struct ReleaseForm {
    key: String,
    lang: Option<String>,
    token: String,
    #[serde(default)]
    reason: String,
}

/// `POST /ui/exams/{id}/release`
pub(super) async fn release(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    headers: HeaderMap,
    FormBody(form): FormBody<ReleaseForm>,
) -> Result<Response, Problem> {
    let reason = field("reason", Line::new(form.reason.as_str()))?;
    let deed = match form.token.parse()? {
        ClaimToken::Fencing(token) => Deed::Command(Box::new(Command::Release { exam, token, reason })),
        ClaimToken::Glass(token) => Deed::GiveBack { exam, token, reason },
    };
    let fields = vec![("token", form.token), ("reason", form.reason)];
    let form = Sent { key: form.key, lang: form.lang, fields, text: None };
    act(&app, &headers, Asked { action: format!("/ui/exams/{exam}/release"), deed, form }).await
}

#[derive(Deserialize)]
pub(super) struct ReportForm {
    key: String,
    lang: Option<String>,
    token: String,
    text: String,
}

/// `POST /ui/exams/{id}/report`. Whatever goes wrong, the text comes back with the answer.
pub(super) async fn report(
    State(app): State<App>,
    UrlPath(exam): UrlPath<ExamId>,
    headers: HeaderMap,
    FormBody(form): FormBody<ReportForm>,
) -> Result<Response, Problem> {
    // Forms end their lines with CR LF (HTML section 4.10.21.4); texts hold LF only.
    let text = form.text.replace("\r\n", "\n");
    let sent =
        Sent { key: form.key, lang: form.lang, fields: vec![("token", form.token.clone())], text: Some(text.clone()) };
    let action = format!("/ui/exams/{exam}/report");
    let given = field("text", Prose::filled(text)).and_then(|text| Ok((text, form.token.parse()?)));
    match given {
        Ok((text, ClaimToken::Fencing(token))) => {
            let reader = cookie::reader(&headers).unwrap_or_default();
            match app.report_command(exam, token, &reader, ReportKind::Final, text) {
                Ok(command) => {
                    let deed = Deed::Command(Box::new(command));
                    act(&app, &headers, Asked { action, deed, form: sent }).await
                }
                Err(problem) => failed(&app, &headers, problem, action, sent).await,
            }
        }
        Ok((report, ClaimToken::Glass(token))) => {
            act(&app, &headers, Asked { action, deed: Deed::Report { exam, token, report }, form: sent }).await
        }
        Err(problem) => failed(&app, &headers, problem, action, sent).await,
    }
}

/// What a person asked for by a form.
struct Asked {
    action: String,
    deed: Deed,
    form: Sent,
}

/// What is to be done: by the mesh, or here without it.
enum Deed {
    Command(Box<Command>),
    BreakGlass { exam: ExamId, reason: Line },
    Report { exam: ExamId, token: GlassToken, report: Prose },
    GiveBack { exam: ExamId, token: GlassToken, reason: Line },
}

impl Deed {
    /// Does it. Returns the word for what was done, and to which exam.
    async fn perform(self, app: &App, id: CommandId, reader: Name) -> Result<(&'static str, Option<ExamId>), Problem> {
        let command = match self {
            Self::Command(command) => *command,
            Self::BreakGlass { exam, reason } => {
                glass::take_exam(app, exam, id, reader, reason).await?;
                return Ok(("glass", Some(exam)));
            }
            Self::Report { exam, token, report } => {
                match glass::report(app, exam, token, id, &reader, &report).await? {
                    Reported::Here(_) => return Ok(("queued", Some(exam))),
                    Reported::Under(token) => app.report_command(exam, token, &reader, ReportKind::Final, report)?,
                }
            }
            Self::GiveBack { exam, token, reason } => {
                let Json(_) = glass::give_back(app, exam, token, reader, reason).await?;
                return Ok(("released", Some(exam)));
            }
        };
        let exam = command.exam();
        let outcome = match app.command_or_queue(id, reader, command).await? {
            Decided::Queued(entry) => return Ok(("queued", Some(entry.exam))),
            Decided::Done(outcome) => outcome,
        };
        // So that the page that follows shows it.
        app.catch_up().await;
        Ok(match outcome {
            Outcome::Claimed(grant) => ("claimed", Some(grant.exam)),
            Outcome::NothingWaiting => ("nothing", None),
            Outcome::Completed { .. } => ("reported", exam),
            _ => ("released", exam),
        })
    }
}

/// A form as it came.
struct Sent {
    key: String,
    lang: Option<String>,
    fields: Vec<(&'static str, String)>,
    text: Option<String>,
}

impl From<ClaimForm> for Sent {
    fn from(form: ClaimForm) -> Self {
        Self { key: form.key, lang: form.lang, fields: Vec::new(), text: None }
    }
}

async fn act(app: &App, headers: &HeaderMap, asked: Asked) -> Result<Response, Problem> {
    let Asked { action, deed, form } = asked;
    let result = match (parse_command_id(&form.key), cookie::reader(headers)) {
        (Ok(id), Some(reader)) => deed.perform(app, id, reader).await,
        (Err(problem), _) => Err(problem),
        (Ok(_), None) => Err(Problem::invalid("no reader's name is set")),
    };
    match result {
        Ok((done, exam)) => Ok(redirect(Language::choose(form.lang.as_deref(), headers), done, exam)),
        Err(problem) => failed(app, headers, problem, action, form).await,
    }
}

fn redirect(language: Language, done: &str, exam: Option<ExamId>) -> Response {
    let lang = language.code();
    let target = match exam {
        Some(exam) => format!("/?lang={lang}&done={done}&exam={exam}#exam-{exam}"),
        None => format!("/?lang={lang}&done={done}"),
    };
    Redirect::to(&target).into_response()
}

/// The page again, with what failed and the means to repeat it.
async fn failed(
    app: &App,
    headers: &HeaderMap,
    problem: Problem,
    action: String,
    form: Sent,
) -> Result<Response, Problem> {
    let language = Language::choose(form.lang.as_deref(), headers);
    let mut fields = form.fields;
    fields.push(("key", form.key));
    let status = problem.status();
    let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(HeaderValue::from_static("2"));
    let notice = Notice::failed(problem, Retry { action, fields, text: form.text, again: false });
    let room = Room::gather(app, cookie::reader(headers)).await?;
    let mut response = html(language, view::page(&room, language, Some(&notice)).into_string());
    *response.status_mut() = status;
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    Ok(response)
}
