//! The worklist service, UPS-RS (PS3.18 section 11): every workitem of the queue as a Unified Procedure
//! Step, to be created, retrieved, searched, updated, claimed, ended and watched by standard clients.
//!
//! Handlers translate. Who gets a step is decided by the replicated queue: *Change State* to IN PROGRESS
//! is a claim under the client's Transaction UID, and of two claimants one has it. Only JSON is spoken
//! (`application/dicom+json`). Both the present addresses and those of the older standard, which end in
//! the requester's AE title, are answered.

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use maillage_consensus::ids::{ExamId, Name};
use maillage_dicom::AeTitle;
use serde_json::Value;

use super::app::App;
use super::body::collect;
use super::extract::{UrlPath, UrlQuery};
use super::media::MediaType;
use super::problem::Problem;
use super::reading::aged;
use crate::ups::dataset::Dataset;
use crate::ups::describe::Scene;
use crate::ups::query::Query;
use crate::ups::{search, steps};

mod answer;
mod change;
mod edit;
mod socket;
mod subscription;

use answer::{Refused, refused, warned, warnings};

/// The service's place below the node's address.
const SERVICE: &str = "/dicom-web";
/// What is spoken.
const DICOM_JSON: &str = "application/dicom+json";
/// The largest data set taken, with room for the attributes that a workitem may keep.
const BODY_BYTES_MAX: u64 = 256 << 10;
/// Whose name a step bears whose performer's client gave none.
const NAMELESS: &str = "ups-rs";

/// Routes of the worklist service.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/dicom-web/workitems", get(find_all).post(edit::create))
        .route("/dicom-web/workitems/{uid}", get(retrieve).post(edit::update))
        .route("/dicom-web/workitems/{uid}/state", put(change::state))
        .route("/dicom-web/workitems/{uid}/state/{aet}", put(change::state_by))
        .route("/dicom-web/workitems/{uid}/cancelrequest", post(change::cancel))
        .route("/dicom-web/workitems/{uid}/cancelrequest/{aet}", post(change::cancel_by))
        .route(
            "/dicom-web/workitems/{uid}/subscribers/{aet}",
            post(subscription::subscribe).delete(subscription::unsubscribe),
        )
        .route("/dicom-web/workitems/{uid}/subscribers/{aet}/suspend", post(subscription::suspend))
        .route("/dicom-web/subscribers/{aet}", get(socket::open))
}

/// The query as it was written: names may come more than once.
type Pairs = Vec<(String, String)>;

/// `GET /workitems/{uid}` (section 11.5).
async fn retrieve(
    State(app): State<App>,
    UrlPath(uid): UrlPath<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    accepts_json(&headers)?;
    let scene = scene(&app, &headers)?;
    freshly(&app, &headers).await;
    let found = steps::find(&app.node, &scene, &uid).await;
    let (exam, workitem) = found.map_err(|error| refused(error, &scene.service, None))?;
    let dataset = app.node.read(|view| scene.describe(view, &exam, &workitem))?;
    let mut response = aged(dicom_json(StatusCode::OK, &Value::Array(vec![dataset.into_json()])), &app);
    locate(&mut response, header::CONTENT_LOCATION, &format!("{}/workitems/{uid}", scene.service));
    Ok(response)
}

/// `GET /workitems` (section 11.9).
async fn find_all(
    State(app): State<App>,
    UrlQuery(pairs): UrlQuery<Pairs>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    accepts_json(&headers)?;
    let query = Query::parse(&pairs).map_err(Problem::invalid)?;
    let scene = scene(&app, &headers)?;
    freshly(&app, &headers).await;
    let (now, newest) = (app.now(), ExamId(*app.node.changes().borrow() + 1));
    let (node, fuzzy, service) = (app.node.clone(), query.fuzzy, scene.service.clone());
    let found = maillage_host::offload(move || {
        node.read(|view| search::search(view, &scene, &query, now, newest)).map_err(Into::into)
    });
    let found = found.await.map_err(|error| Problem::internal(error.to_string()))?;
    let response = match (found.results.is_empty(), found.more) {
        (true, false) => StatusCode::NO_CONTENT.into_response(),
        (_, false) => dicom_json(StatusCode::OK, &Value::Array(found.results)),
        (_, true) => dicom_json(StatusCode::PARTIAL_CONTENT, &Value::Array(found.results)),
    };
    let mut response = aged(response, &app);
    if found.more {
        response = warned(response, &service, warnings::MORE_RESULTS);
    }
    if fuzzy {
        response = warned(response, &service, warnings::NOT_FUZZY);
    }
    Ok(response)
}

/// A client that wants the present state rather than a recent one waits for it (RFC 9111 section 5.2.1.4).
async fn freshly(app: &App, headers: &HeaderMap) {
    if headers.get(header::CACHE_CONTROL).is_some_and(|value| value == "no-cache") {
        app.catch_up().await;
    }
}

/// What data sets for this client are made with.
fn scene(app: &App, headers: &HeaderMap) -> Result<Scene, Refused> {
    Ok(Scene::new(&app.node, format!("http://{}{SERVICE}", host(headers)))?)
}

/// The name under which the client reaches this node; the guard has checked it where it matters.
fn host(headers: &HeaderMap) -> String {
    let given = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = given.and_then(|host| host.parse::<Authority>().ok());
    authority.map_or_else(|| "localhost".to_owned(), |authority| authority.to_string())
}

/// A requester's AE title, as a user's name.
fn requester(aet: &str) -> Result<Name, Refused> {
    let aet = AeTitle::parse(aet).map_err(|error| Problem::invalid(error.to_string()))?;
    Ok(Name::fitted(aet.as_str()))
}

/// The data set in a body.
async fn dataset_of(headers: &HeaderMap, body: Body) -> Result<Dataset, Refused> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| MediaType::parse(value.to_str().ok()?));
    // Older clients call it application/json.
    if !given.is_some_and(|media| [DICOM_JSON, "application/json"].contains(&media.essence.as_str())) {
        return Err(Problem::media_type(format!("the content type must be {DICOM_JSON}; XML is not taken")).into());
    }
    let bytes = collect(headers, body, BODY_BYTES_MAX).await?;
    Ok(Dataset::parse(&bytes).map_err(|error| Problem::invalid(format!("body: {error}")))?)
}

/// Whether the client takes JSON.
fn accepts_json(headers: &HeaderMap) -> Result<(), Refused> {
    let lines: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().map(|line| line.to_str().unwrap_or("\u{0}")).collect();
    let ranges = MediaType::list(&lines.join(",")).ok_or_else(|| Problem::not_acceptable("malformed accept header"))?;
    let fits = |range: &MediaType| {
        let json = [DICOM_JSON, "application/json", "application/*", "*/*"].contains(&range.essence.as_str());
        json && range.weight() > 0
    };
    if ranges.is_empty() || ranges.iter().any(fits) {
        return Ok(());
    }
    Err(Problem::not_acceptable(format!("only {DICOM_JSON} is spoken")).into())
}

/// A UID that a query gives by a name, or bare (`?1.2.3`), as PS3.18's templates can be read both ways.
fn uid_in_query(query: &RawQuery, names: &[&str]) -> Option<String> {
    let pairs = query.0.as_deref().unwrap_or_default().split('&');
    let value = |pair: &str| match pair.split_once('=') {
        Some((name, value)) => names.iter().any(|own| own.eq_ignore_ascii_case(name)).then(|| value.to_owned()),
        None => (!pair.is_empty()).then(|| pair.to_owned()),
    };
    pairs.filter_map(value).next()
}

fn dicom_json(status: StatusCode, value: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(DICOM_JSON))];
    (status, content_type, value.to_string()).into_response()
}

/// Sets a header that names a resource; what cannot stand in a header is left out.
fn locate(response: &mut Response, name: header::HeaderName, url: &str) {
    if let Ok(url) = HeaderValue::from_str(url) {
        response.headers_mut().insert(name, url);
    }
}

#[cfg(test)]
mod requests {
    use super::*;

    #[test]
    fn a_uid_is_found_by_its_name_or_bare() {
        let query = |text: &str| RawQuery(Some(text.to_owned()));
        let names = ["transaction-uid", "transaction"];
        assert_eq!(uid_in_query(&query("1.2.3"), &names).as_deref(), Some("1.2.3"));
        assert_eq!(uid_in_query(&query("x=y&Transaction-UID=1.2"), &names).as_deref(), Some("1.2"));
        assert_eq!(uid_in_query(&query("other=1.2"), &names), None);
        assert_eq!(uid_in_query(&RawQuery(None), &names), None);
    }

    #[test]
    fn xml_is_not_spoken() {
        let accept = |text: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, text.parse().expect("a value"))]);
            accepts_json(&headers).is_ok()
        };
        assert!(accepts_json(&HeaderMap::new()).is_ok());
        assert!(accept("application/dicom+json") && accept("*/*") && accept("application/dicom+xml, application/json"));
        assert!(!accept("application/dicom+xml") && !accept("multipart/related; type=\"application/dicom+xml\""));
        assert!(!accept("application/dicom+json;q=0"));
    }
}
