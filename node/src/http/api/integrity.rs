//! Whether what is stored here is right: the scrub, verification and repair, for the sysadmin on this machine.

use std::convert::Infallible;
use std::future::Future;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::http::app::{App, try_place};
use crate::http::extract::{UrlQuery, parse_uid};
use crate::http::problem::Problem;
use crate::http::status::scrub_json;
use crate::repair::{self, Repaired};
use crate::verify;

/// Progress lines that a slow client may be behind; further ones are left out.
const PROGRESS_LINES: usize = 16;

/// `GET /scrub`
pub(super) async fn scrub(State(app): State<App>) -> Result<Json<Value>, Problem> {
    Ok(Json(scrub_json(&app.node.scrub().status())))
}

/// `POST /scrub/start`: goes on, or begins a pass now.
pub(super) async fn start(State(app): State<App>) -> Result<Json<Value>, Problem> {
    app.node.scrub().start().await.map_err(|error| Problem::internal(format!("write scrub.json: {error}")))?;
    scrub(State(app)).await
}

/// `POST /scrub/pause`: until it is started again, over restarts too.
pub(super) async fn pause(State(app): State<App>) -> Result<Json<Value>, Problem> {
    app.node.scrub().pause().await.map_err(|error| Problem::internal(format!("write scrub.json: {error}")))?;
    scrub(State(app)).await
}

/// `POST /verify`: reads every byte of every pack. JSON lines: `{"done":…,"total":…}` in bytes, then the report.
pub(super) async fn verify_all(State(app): State<App>) -> Result<Response, Problem> {
    let place = try_place(&app.limits.retrievals, "retrievals")?;
    let (progress, done) = mpsc::channel(PROGRESS_LINES);
    let work = async move {
        let _place = place;
        // A client that is slow or gone misses a step, nothing more.
        let tell = move |done, total| {
            let _ = progress.try_send((done, total));
        };
        match verify::node(&app.node, tell).await {
            Ok(found) => found.to_json(),
            Err(error) => failed(&error),
        }
    };
    Ok(lines(work, done))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RepairQuery {
    study: Option<String>,
}

/// `POST /repair?study=`: brings back what is damaged or missing of what this site holds. JSON lines:
/// `{"done":…,"total":…}` in studies, then the report.
pub(super) async fn repair(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<RepairQuery>,
) -> Result<Response, Problem> {
    let study = query.study.as_deref().map(|uid| parse_uid("study", uid)).transpose()?;
    if let Some(uid) = &study
        && app.node.read(|view| view.study(uid.as_str()))?.is_none()
    {
        return Err(Problem::no_such_study("the mesh knows no such study"));
    }
    let place = try_place(&app.limits.retrievals, "retrievals")?;
    let (progress, done) = mpsc::channel(PROGRESS_LINES);
    let work = async move {
        let _place = place;
        let repaired = match &study {
            Some(uid) => repair::one(&app.node, uid.as_str()).await.map(Option::unwrap_or_default),
            None => repair::all(&app.node, &progress).await,
        };
        match repaired {
            Ok(repaired) => repaired_json(&repaired),
            Err(error) => failed(&error),
        }
    };
    Ok(lines(work, done))
}

fn repaired_json(done: &Repaired) -> Value {
    let nowhere = done.nowhere.iter().map(|(study, hash)| json!({ "study": study, "object": hash.to_string() }));
    let failed = done.failed.iter().map(|(study, why)| json!({ "study": study, "why": why }));
    json!({
        "complete": done.is_complete(),
        "studies": done.studies,
        "parts": done.parts,
        "brought": done.brought,
        "bytes": done.bytes,
        "discarded": done.discarded,
        "nowhere": nowhere.collect::<Vec<_>>(),
        "nowhere_count": done.nowhere_count(),
        "failed": failed.collect::<Vec<_>>(),
        "recorded": done.recorded,
    })
}

fn failed(error: &anyhow::Error) -> Value {
    json!({ "complete": false, "problem": Problem::internal(format!("{error:#}")).to_json() })
}

/// Lines of progress while `work` goes on, then what it gives. It ends when the client leaves.
fn lines(work: impl Future<Output = Value> + Send + 'static, done: mpsc::Receiver<(u64, u64)>) -> Response {
    let (last, result) = mpsc::channel(1);
    drop(maillage_host::spawn(async move {
        tokio::select! {
            // A client that left needs no last line.
            line = work => drop(last.send(line).await),
            () = last.closed() => {}
        }
    }));
    let lines = ReceiverStream::new(done).map(|(done, total)| json!({ "done": done, "total": total }));
    let lines = lines.chain(ReceiverStream::new(result));
    let body = Body::from_stream(lines.map(|line| Ok::<_, Infallible>(Bytes::from(format!("{line}\n")))));
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))];
    (kind, body).into_response()
}
