//! *Change Workitem State* and *Request Cancellation* (PS3.18 sections 11.7 and 11.8; the rules are those
//! of PS3.4 table CC.1.1-2).

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::exam::WorkitemState;
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::outcome::Refusal;

use super::answer::{Refused, refused, warned, warnings};
use super::{NAMELESS, dataset_of, locate, requester, scene};
use crate::http::app::App;
use crate::http::extract::{Idempotency, UrlPath};
use crate::ups::dataset::Dataset;
use crate::ups::steps::{self, Asker, Changed};

/// `PUT /workitems/{uid}/state`
pub(super) async fn state(
    State(app): State<App>,
    UrlPath(uid): UrlPath<String>,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
    body: Body,
) -> Result<Response, Refused> {
    change(&app, &uid, Name::fitted(NAMELESS), id, &headers, body).await
}

/// `PUT /workitems/{uid}/state/{aet}`
pub(super) async fn state_by(
    State(app): State<App>,
    UrlPath((uid, aet)): UrlPath<(String, String)>,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
    body: Body,
) -> Result<Response, Refused> {
    change(&app, &uid, requester(&aet)?, id, &headers, body).await
}

async fn change(
    app: &App,
    uid: &str,
    user: Name,
    id: CommandId,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let dataset = dataset_of(headers, body).await?;
    let scene = scene(app, headers)?;
    let changed = steps::change(&app.node, &scene, Asker { id, user }, uid, &dataset).await;
    let changed = changed.map_err(|error| refused(error, &scene.service, Some(warnings::INCONSISTENT_STATE)))?;
    let mut response = StatusCode::OK.into_response();
    locate(&mut response, header::CONTENT_LOCATION, &format!("{}/workitems/{uid}", scene.service));
    Ok(match changed {
        Changed::Now => response,
        Changed::Before(WorkitemState::Canceled) => warned(response, &scene.service, warnings::ALREADY_CANCELED),
        Changed::Before(_) => warned(response, &scene.service, warnings::ALREADY_COMPLETED),
    })
}

/// `POST /workitems/{uid}/cancelrequest`
pub(super) async fn cancel(
    State(app): State<App>,
    UrlPath(uid): UrlPath<String>,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
    body: Body,
) -> Result<Response, Refused> {
    ask_cancel(&app, &uid, Name::fitted(NAMELESS), id, &headers, body).await
}

/// `POST /workitems/{uid}/cancelrequest/{aet}`
pub(super) async fn cancel_by(
    State(app): State<App>,
    UrlPath((uid, aet)): UrlPath<(String, String)>,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
    body: Body,
) -> Result<Response, Refused> {
    ask_cancel(&app, &uid, requester(&aet)?, id, &headers, body).await
}

async fn ask_cancel(
    app: &App,
    uid: &str,
    user: Name,
    id: CommandId,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    // The payload is optional, and so is its type when there is none.
    let dataset =
        if headers.contains_key(header::CONTENT_TYPE) { dataset_of(headers, body).await? } else { Dataset::default() };
    let scene = scene(app, headers)?;
    let accepted = StatusCode::ACCEPTED.into_response();
    match steps::ask_cancel(&app.node, &scene, Asker { id, user }, uid, &dataset).await {
        Ok(false) => Ok(accepted),
        Ok(true) => Ok(warned(accepted, &scene.service, warnings::ALREADY_CANCELED)),
        Err(steps::Refused::Ended(state)) => {
            Err(Refused::with(Refusal::WorkitemState { state }.into(), &scene.service, warnings::COMPLETED))
        }
        Err(error) => Err(refused(error, &scene.service, Some(warnings::INCONSISTENT_STATE))),
    }
}
