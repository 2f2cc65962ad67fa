//! The worklist page at `/`: server-rendered, live by server-sent events, whole without scripts.
//!
//! [`room`] gathers what is shown, [`view`] renders it and reads nothing, [`actions`] are the forms.
//! The page shows replicated state only: a claim appears when it is committed, never when a button is
//! pressed. The script (`static/room.js`) replaces `<main>` by `/fragments/room` at each event.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::app::App;
use super::cookie;
use super::extract::UrlQuery;
use super::problem::Problem;

mod actions;
mod assets;
mod notice;
mod room;
mod texts;
mod view;

use notice::Notice;
use room::Room;
use texts::Language;

/// The page's routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(page))
        .route("/fragments/room", get(fragment))
        .route("/static/room.css", get(assets::style))
        .route("/static/room.js", get(assets::script))
        .route("/ui/reader", post(actions::set_reader))
        .route("/ui/next", post(actions::next))
        .route("/ui/exams/{id}/claim", post(actions::claim))
        .route("/ui/exams/{id}/break-glass", post(actions::break_glass))
        .route("/ui/exams/{id}/release", post(actions::release))
        .route("/ui/exams/{id}/report", post(actions::report))
}

#[derive(Debug, Default, Deserialize)]
struct PageQuery {
    lang: Option<String>,
    done: Option<String>,
    exam: Option<u64>,
}

async fn page(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<PageQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let room = Room::gather(&app, cookie::reader(&headers)).await?;
    let language = Language::choose(query.lang.as_deref(), &headers);
    let notice = query.done.as_deref().and_then(|done| Notice::done(done, query.exam));
    Ok(html(language, view::page(&room, language, notice.as_ref()).into_string()))
}

async fn fragment(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<PageQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let room = Room::gather(&app, cookie::reader(&headers)).await?;
    let language = Language::choose(query.lang.as_deref(), &headers);
    Ok(html(language, view::main(&room, language).into_string()))
}

/// An answer that holds a page or a part of one.
fn html(language: Language, markup: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_LANGUAGE, HeaderValue::from_static(language.code())),
        (header::VARY, HeaderValue::from_static("Accept-Language, Cookie")),
    ];
    (headers, markup).into_response()
}
