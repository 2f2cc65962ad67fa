//! `POST /instances`: one DICOM file from a person's disk, or a program's.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::http::app::App;
use crate::http::body::{Pieces, require};
use crate::http::problem::Problem;
use crate::ingest::Source;

/// Takes in one Part 10 file. When this answers 200, the instance is durable; an `outcome` of
/// `conflict` says that other bytes hold its UID, and that both are kept.
pub(super) async fn receive(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Json<Value>, Problem> {
    require(&headers, "application/dicom")?;
    // The length is checked before a place is waited for, and the body is read only with one.
    let limit = app.instance_bytes_max();
    let pieces = Pieces::new(&headers, body, limit)?;
    let place = app.upload_place().await?;
    let file = pieces.collect(limit).await?;
    let received = app.node.ingest().receive_file(Source::Local, file).await?;
    drop(place);
    Ok(Json(json!({
        "study": received.study,
        "series": received.series,
        "sop_instance": received.sop_instance,
        "sop_class": received.sop_class,
        "outcome": received.outcome.as_str(),
    })))
}
