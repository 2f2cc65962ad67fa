//! *Create Workitem* and *Update Workitem* (PS3.18 sections 11.4 and 11.6).

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::ids::{CommandId, Name};
use maillage_dicom::Uid;

use super::answer::{Refused, refused, warned, warnings};
use super::{NAMELESS, dataset_of, locate, scene, uid_in_query};
use crate::http::app::App;
use crate::http::extract::{Idempotency, UrlPath, parse_uid};
use crate::http::problem::Problem;
use crate::ups::dataset::Dataset;
use crate::ups::steps::{self, Asker};
use crate::ups::tags;

/// `POST /workitems`, the UID in the query or in the data set.
pub(super) async fn create(
    State(app): State<App>,
    query: RawQuery,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
    body: Body,
) -> Result<Response, Refused> {
    let dataset = dataset_of(&headers, body).await?;
    let uid = uid_for(&dataset, uid_in_query(&query, &["workitem", "workitemuid", "uid"]), id)?;
    let scene = scene(&app, &headers)?;
    let asker = Asker { id, user: Name::fitted(NAMELESS) };
    let modified = steps::create(&app.node, &scene, asker, &uid, dataset).await;
    let modified = modified.map_err(|error| refused(error, &scene.service, None))?;
    let mut response = StatusCode::CREATED.into_response();
    let url = format!("{}/workitems/{}", scene.service, uid.as_str());
    locate(&mut response, header::LOCATION, &url);
    locate(&mut response, header::CONTENT_LOCATION, &url);
    if modified {
        response = warned(response, &scene.service, warnings::CREATED_MODIFIED);
    }
    Ok(response)
}

/// The UID of a workitem to be created; one is made of the command's id when the client chose none, so
/// that its repeat names the same.
fn uid_for(dataset: &Dataset, in_query: Option<String>, id: CommandId) -> Result<Uid, Refused> {
    let in_body = dataset.text(tags::SOP_INSTANCE_UID);
    let uid = match in_query {
        Some(uid) if in_body.is_empty() || in_body == uid => uid,
        Some(_) => return Err(Problem::invalid("the query and the data set name different UIDs").into()),
        None if in_body.is_empty() => format!("2.25.{}", id.0.as_u128()),
        None => in_body,
    };
    let uid = parse_uid("workitem", &uid)?;
    // It will name the step for good, to every client.
    if uid.is_strict() { Ok(uid) } else { Err(Problem::invalid("workitem: a component has a leading zero").into()) }
}

/// `POST /workitems/{uid}`, the Transaction UID in the query or, as the older standard has it, in the
/// data set.
pub(super) async fn update(
    State(app): State<App>,
    UrlPath(uid): UrlPath<String>,
    query: RawQuery,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
    body: Body,
) -> Result<Response, Refused> {
    let mut dataset = dataset_of(&headers, body).await?;
    let scene = scene(&app, &headers)?;
    let in_query = uid_in_query(&query, &["transaction-uid", "transactionuid", "transaction"]);
    let transaction = in_query.unwrap_or_else(|| dataset.text(tags::TRANSACTION_UID));
    dataset.remove(tags::TRANSACTION_UID);
    let asker = Asker { id, user: Name::fitted(NAMELESS) };
    let left_out = steps::update(&app.node, &scene, asker, &uid, &transaction, dataset).await;
    let left_out = left_out.map_err(|error| refused(error, &scene.service, Some(warnings::INCONSISTENT_UPDATE)))?;
    let mut response = StatusCode::OK.into_response();
    locate(&mut response, header::CONTENT_LOCATION, &format!("{}/workitems/{uid}", scene.service));
    if left_out {
        response = warned(response, &scene.service, warnings::NOT_SUPPORTED);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_uid_is_the_querys_the_data_sets_or_the_commands() {
        let id = CommandId(uuid::Builder::from_u128(7).into_uuid());
        let body = |uid: &str| {
            let json = json!({ "00080018": { "vr": "UI", "Value": [uid] } });
            Dataset::parse(json.to_string().as_bytes()).expect("a data set")
        };
        let none = Dataset::default();
        let given = |dataset: &Dataset, query: Option<&str>| {
            uid_for(dataset, query.map(str::to_owned), id).map(|uid| uid.as_str().to_owned()).ok()
        };
        assert_eq!(given(&none, Some("1.2.3")).as_deref(), Some("1.2.3"));
        assert_eq!(given(&body("1.2.3"), Some("1.2.3")).as_deref(), Some("1.2.3"));
        assert_eq!(given(&body("1.2.3"), None).as_deref(), Some("1.2.3"));
        assert_eq!(given(&none, None).as_deref(), Some("2.25.7"));
        assert_eq!(given(&body("1.2.3"), Some("1.2.4")), None);
        assert_eq!(given(&none, Some("1.02.3")), None);
        assert_eq!(given(&none, Some("one")), None);
    }
}
