//! The mesh and this node: `/status`, `/peers`, `/chunks`.

use axum::Json;
use axum::extract::State;
use maillage_consensus::View;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::extract::UrlQuery;
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::status::MeshStatus;

/// Damaged chunks named in one answer.
const BAD_LISTED_MAX: usize = 100;

/// `GET /status`
pub(super) async fn status(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<Value>, Problem> {
    let storage = app.node.store().stats().await?;
    let gather = |view: &View<'_>| MeshStatus::gather(&app.node, view, storage)?.with_open_exams(view);
    app.read(query.fresh, gather).await?.try_map(|status| Ok(status.to_json()))
}

/// `GET /peers`
pub(super) async fn peers(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<Value>, Problem> {
    let storage = app.node.store().stats().await?;
    let read = app.read(query.fresh, |view| MeshStatus::gather(&app.node, view, storage));
    read.await?.try_map(|status| Ok(json!({ "peers": status.peers_json() })))
}

/// `GET /chunks`: what this node's store holds.
pub(super) async fn chunks(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let stats = app.node.store().stats().await?;
    let bad = app.node.store().bad_chunks(BAD_LISTED_MAX).await?;
    Ok(Json(json!({
        "chunks": stats.chunks,
        "bytes": stats.bytes,
        "packs": stats.packs,
        "free_bytes": stats.free,
        "total_bytes": stats.total,
        "bad": stats.bad,
        "writer_failed": stats.is_failed,
        "bad_hashes": bad.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })))
}
