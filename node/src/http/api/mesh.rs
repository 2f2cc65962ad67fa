//! The mesh and this node: `/status`, `/peers`, `/chunks`.

use axum::Json;
use axum::extract::State;
use maillage_consensus::View;
use maillage_store::Conflict;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::extract::UrlQuery;
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::rfc3339::rfc3339;
use crate::http::status::MeshStatus;

/// Damaged chunks named in one answer.
const BAD_LISTED_MAX: usize = 100;
/// Instances kept apart that are named in one answer.
const CONFLICTS_LISTED_MAX: usize = 100;

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
    let conflicts = app.node.store().conflicts(None, CONFLICTS_LISTED_MAX).await?;
    Ok(Json(json!({
        "chunks": stats.chunks,
        "bytes": stats.bytes,
        "packs": stats.packs,
        "free_bytes": stats.free,
        "total_bytes": stats.total,
        "bad": stats.bad,
        "writer_failed": stats.is_failed,
        "bad_hashes": bad.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "conflicts": conflicts.iter().map(conflict_json).collect::<Vec<_>>(),
    })))
}

/// An instance that is kept apart: other bytes came before it under its UID.
fn conflict_json(conflict: &Conflict) -> Value {
    let Conflict { second, first } = conflict;
    json!({
        "study": second.study_uid,
        "sop_instance": second.entry.sop_instance,
        "manifest": second.entry.manifest.to_string(),
        "first": first.map(|first| first.to_string()),
        "bytes": second.entry.bytes,
        "received_at": rfc3339(second.received_at.into()),
        "source": second.source,
    })
}
