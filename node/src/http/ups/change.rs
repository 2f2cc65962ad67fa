//! *Change Workitem State* and *Request Cancellation* (PS3.18 sections 11.7 and 11.8; the rules are those
//! of PS3.4 table CC.1.1-2).

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::WorkitemState;
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, UidText};
use maillage_consensus::outcome::Refusal;
use maillage_dicom::Uid;

use super::answer::{Refused, warned, warnings};
use super::dataset::Dataset;
use super::describe::{Scene, is_ended};
use super::{NAMELESS, dataset_of, find, locate, requester, scene, tags, unexpected};
use crate::http::app::App;
use crate::http::extract::{Idempotency, UrlPath};
use crate::http::problem::Problem;

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
    let (exam, workitem) = find(app, &scene, uid).await?;
    let (transaction, to) = asked(&dataset, &scene.service)?;
    let command =
        Command::ChangeWorkitem { exam: exam.id, number: workitem.number, transaction_uid: transaction.clone(), to };
    let refusal = match app.node.command(id, user, command).await? {
        Outcome::Claimed(_) | Outcome::Done => {
            app.catch_up().await;
            return Ok(changed(&scene, uid));
        }
        Outcome::Refused(refusal) => refusal,
        other => return Err(unexpected(&other)),
    };
    app.catch_up().await;
    match refusal {
        Refusal::WrongTransaction => {
            Err(Refused::with(refusal.into(), &scene.service, warnings::TRANSACTION_INCORRECT))
        }
        Refusal::WorkitemState { state } if state == to && is_ended(to) => {
            let theirs = performed_under(app, exam.id, workitem.number, &transaction)?;
            again(&scene, uid, to, theirs)
        }
        other => Err(inconsistent(other, &scene.service)),
    }
}

/// What is asked: the Transaction UID and the state.
fn asked(dataset: &Dataset, service: &str) -> Result<(UidText, WorkitemState), Refused> {
    let to = match dataset.text(tags::PROCEDURE_STEP_STATE).as_str() {
        "IN PROGRESS" => WorkitemState::InProgress,
        "COMPLETED" => WorkitemState::Completed,
        "CANCELED" => WorkitemState::Canceled,
        _ => {
            let problem = Problem::invalid("00741000 must be IN PROGRESS, COMPLETED or CANCELED");
            return Err(Refused::with(problem, service, warnings::INCONSISTENT_STATE));
        }
    };
    let transaction = dataset.text(tags::TRANSACTION_UID);
    if transaction.is_empty() {
        let problem = Problem::invalid("00081195 Transaction UID is needed");
        return Err(Refused::with(problem, service, warnings::TRANSACTION_MISSING));
    }
    let uid = Uid::parse(&transaction).map_err(|error| {
        let problem = Problem::invalid(format!("00081195 Transaction UID: {error}"));
        Refused::with(problem, service, warnings::TRANSACTION_INCORRECT)
    })?;
    Ok((UidText::fitted(uid.as_str()), to))
}

fn changed(scene: &Scene, uid: &str) -> Response {
    let mut response = StatusCode::OK.into_response();
    locate(&mut response, header::CONTENT_LOCATION, &format!("{}/workitems/{uid}", scene.service));
    response
}

/// Whether a step was performed under this Transaction UID; none: nobody performed it.
fn performed_under(app: &App, exam: ExamId, number: u32, transaction: &UidText) -> Result<Option<bool>, Refused> {
    let workitem = app.node.read(|view| view.workitem(exam, number))?;
    Ok(workitem.and_then(|workitem| workitem.performer).map(|claim| claim.transaction_uid == *transaction))
}

/// The state asked for is the one that the step is in.
fn again(scene: &Scene, uid: &str, to: WorkitemState, theirs: Option<bool>) -> Result<Response, Refused> {
    if theirs == Some(false) {
        let problem = Problem::from(Refusal::WrongTransaction);
        return Err(Refused::with(problem, &scene.service, warnings::TRANSACTION_INCORRECT));
    }
    let text = if to == WorkitemState::Canceled { warnings::ALREADY_CANCELED } else { warnings::ALREADY_COMPLETED };
    Ok(warned(changed(scene, uid), &scene.service, text))
}

/// Conflicts with the step's state bear the standard's text; what failed for another reason does not.
fn inconsistent(refusal: Refusal, service: &str) -> Refused {
    let problem = Problem::from(refusal);
    if problem.status() == StatusCode::CONFLICT {
        return Refused::with(problem, service, warnings::INCONSISTENT_STATE);
    }
    problem.into()
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
    let (exam, workitem) = find(app, &scene, uid).await?;
    let command = Command::AskCancel { exam: exam.id, number: workitem.number, reason: reason(&dataset) };
    let outcome = app.node.command(id, user, command).await?;
    app.catch_up().await;
    let accepted = StatusCode::ACCEPTED.into_response();
    match outcome {
        Outcome::Done => Ok(accepted),
        Outcome::Refused(Refusal::DoneAlready) => Ok(warned(accepted, &scene.service, warnings::ALREADY_CANCELED)),
        Outcome::Refused(refusal @ Refusal::WorkitemState { state: WorkitemState::Completed }) => {
            Err(Refused::with(refusal.into(), &scene.service, warnings::COMPLETED))
        }
        Outcome::Refused(refusal) => Err(inconsistent(refusal, &scene.service)),
        other => Err(unexpected(&other)),
    }
}

/// Why, and with whom it may be discussed: the mesh keeps one line of both.
fn reason(dataset: &Dataset) -> Line {
    let contact = [tags::CONTACT_DISPLAY_NAME, tags::CONTACT_URI].map(|tag| dataset.text(tag));
    let contact: Vec<&str> = contact.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    let code = dataset.item(tags::DISCONTINUATION_REASON_CODES).text(tags::CODE_MEANING);
    let reason = match dataset.text(tags::REASON_FOR_CANCELLATION) {
        text if text.is_empty() => code,
        text => text,
    };
    let reason = reason.replace(['\n', '\r', '\t'], " ");
    if contact.is_empty() {
        return Line::fitted(&reason);
    }
    Line::fitted(format!("{reason} (contact: {})", contact.join(", ")).trim())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn dataset(json: &Value) -> Dataset {
        Dataset::parse(json.to_string().as_bytes()).expect("a data set")
    }

    #[test]
    fn a_state_change_needs_a_state_and_a_transaction() {
        let check = |state: &str, transaction: &str| {
            let json = json!({
                "00741000": { "vr": "CS", "Value": [state] },
                "00081195": { "vr": "UI", "Value": [transaction] },
            });
            asked(&dataset(&json), "x").map_err(|refused| {
                let response = refused.into_response();
                (response.status(), response.headers()["warning"].to_str().expect("text").to_owned())
            })
        };
        assert_eq!(check("COMPLETED", "1.2").expect("asked").1, WorkitemState::Completed);
        for (state, transaction, warning) in [
            ("SCHEDULED", "1.2", warnings::INCONSISTENT_STATE),
            ("CANCELLED", "1.2", warnings::INCONSISTENT_STATE),
            ("IN PROGRESS", "", warnings::TRANSACTION_MISSING),
            ("IN PROGRESS", "no-uid", warnings::TRANSACTION_INCORRECT),
        ] {
            let (status, given) = check(state, transaction).expect_err("refused");
            assert_eq!((status, given), (StatusCode::BAD_REQUEST, format!("299 x: {warning}")));
        }
    }

    #[test]
    fn a_cancel_requests_reason_names_whom_to_ask() {
        let given = dataset(&json!({
            "00741238": { "vr": "LT", "Value": ["wrong\npatient"] },
            "0074100C": { "vr": "LO", "Value": ["Dr A"] },
            "0074100A": { "vr": "UR", "Value": ["tel:112"] },
        }));
        assert_eq!(reason(&given).as_str(), "wrong patient (contact: Dr A, tel:112)");
        assert_eq!(reason(&Dataset::default()).as_str(), "");
    }
}
