//! *Create Workitem* and *Update Workitem* (PS3.18 sections 11.4 and 11.6).

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::WorkitemState;
use maillage_consensus::ids::{CommandId, ExamId, Name, UidText};
use maillage_consensus::outcome::Refusal;
use maillage_dicom::Uid;
use serde_bytes::ByteBuf;
use serde_json::json;

use super::answer::{Refused, warned, warnings};
use super::dataset::{Dataset, dicom_time};
use super::describe::{Scene, is_ended};
use super::request::{self, Update};
use super::{NAMELESS, dataset_of, find, locate, scene, tags, uid_in_query, unexpected};
use crate::http::app::App;
use crate::http::extract::{Idempotency, UrlPath, parse_uid};
use crate::http::problem::Problem;

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
    let creation = request::create(dataset)?;
    let scene = scene(&app, &headers)?;
    refuse_own(&app, &scene, &uid)?;
    let command = Command::CreateWorkitem {
        uid: UidText::fitted(uid.as_str()),
        request: creation.request,
        order: creation.order,
        attributes: creation.attributes,
    };
    let existed = match app.node.command(id, Name::fitted(NAMELESS), command).await? {
        Outcome::ExamAdded { existed, .. } => existed,
        Outcome::Refused(refusal) => return Err(Problem::from(refusal).into()),
        other => return Err(unexpected(&other)),
    };
    app.catch_up().await;
    let mut response = StatusCode::CREATED.into_response();
    let url = format!("{}/workitems/{}", scene.service, uid.as_str());
    locate(&mut response, header::LOCATION, &url);
    locate(&mut response, header::CONTENT_LOCATION, &url);
    if creation.modified || existed {
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

/// UIDs that this mesh makes are not a client's to give.
fn refuse_own(app: &App, scene: &Scene, uid: &Uid) -> Result<(), Refused> {
    let Some((exam, number)) = scene.uids.parse(uid.as_str()) else { return Ok(()) };
    let exists = app.node.read(|view| view.workitem(exam, number))?.is_some();
    if exists {
        return Err(Problem::from(Refusal::DuplicateUid).into());
    }
    Err(Problem::invalid("workitem: this UID is in the mesh's own range").into())
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
    let (exam, workitem) = find(&app, &scene, &uid).await?;
    let in_query = uid_in_query(&query, &["transaction-uid", "transactionuid", "transaction"]);
    let transaction = in_query.unwrap_or_else(|| dataset.text(tags::TRANSACTION_UID));
    dataset.remove(tags::TRANSACTION_UID);
    let mut update = request::update(dataset)?;
    let modified = dicom_time(app.now());
    let modified = json!({ "vr": "DT", "Value": [modified] }).to_string();
    update.attributes.insert(tags::MODIFICATION_DATE_TIME, ByteBuf::from(modified.into_bytes()));
    let command = Command::UpdateWorkitem {
        exam: exam.id,
        number: workitem.number,
        transaction_uid: UidText::new(transaction.as_str()).unwrap_or_else(|_| UidText::fitted("0")),
        attributes: std::mem::take(&mut update.attributes),
    };
    match app.node.command(id, Name::fitted(NAMELESS), command).await? {
        Outcome::Done => {}
        Outcome::Refused(refusal) => {
            app.catch_up().await;
            return Err(refused(&app, &scene, refusal, (exam.id, workitem.number), &transaction));
        }
        other => return Err(unexpected(&other)),
    }
    prioritise(&app, id, exam.id, &update).await?;
    app.catch_up().await;
    let mut response = StatusCode::OK.into_response();
    locate(&mut response, header::CONTENT_LOCATION, &format!("{}/workitems/{uid}", scene.service));
    if update.left_out {
        response = warned(response, &scene.service, warnings::NOT_SUPPORTED);
    }
    Ok(response)
}

/// The exam's urgency, unless it is one of those that UPS calls by the same name already.
async fn prioritise(app: &App, id: CommandId, exam: ExamId, update: &Update) -> Result<(), Refused> {
    let Some(priority) = update.priority else { return Ok(()) };
    app.catch_up().await;
    let present = app.node.read(|view| view.exam(exam))?.map(|exam| exam.request.priority);
    if present.is_some_and(|own| super::describe::priority_name(own) == super::describe::priority_name(priority)) {
        return Ok(());
    }
    // One that follows from the client's, so that a repeat of both does neither twice.
    let second = CommandId(uuid::Builder::from_u128(!id.0.as_u128()).into_uuid());
    match app.node.command(second, Name::fitted(NAMELESS), Command::Prioritise { exam, priority }).await? {
        Outcome::Done => Ok(()),
        Outcome::Refused(refusal) => Err(Problem::from(refusal).into()),
        other => Err(unexpected(&other)),
    }
}

/// Why an update was refused, in the words of section 11.6.3.
fn refused(app: &App, scene: &Scene, refusal: Refusal, (exam, number): (ExamId, u32), transaction: &str) -> Refused {
    let service = &scene.service;
    let state = app.node.read(|view| view.workitem(exam, number)).ok().flatten().map(|workitem| workitem.state);
    match refusal {
        Refusal::WrongTransaction if state == Some(WorkitemState::Scheduled) => {
            let refusal = Refusal::WorkitemState { state: WorkitemState::Scheduled };
            Refused::with(refusal.into(), service, warnings::NOT_CLAIMED)
        }
        Refusal::WrongTransaction if transaction.is_empty() => {
            Refused::with(refusal.into(), service, warnings::TRANSACTION_MISSING)
        }
        Refusal::WrongTransaction => Refused::with(refusal.into(), service, warnings::TRANSACTION_INCORRECT),
        Refusal::WorkitemState { state } if is_ended(state) => {
            Refused::with(Problem::invalid(refusal.to_string()), service, warnings::INCONSISTENT_UPDATE)
        }
        other => Refused::with(other.into(), service, warnings::INCONSISTENT_UPDATE),
    }
}

#[cfg(test)]
mod tests {
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
