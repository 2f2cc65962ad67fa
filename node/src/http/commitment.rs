//! Storage commitment by PS3.18 section 13: `/dicom-web/commitment-requests/{transaction}`.
//!
//! The request is answered with 200 when the result is there at once, else with 202, and is asked for
//! again by GET. The same request again is answered as the first was; another one under its UID with 409.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maillage_dicom::Uid;
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::App;
use super::body::collect;
use super::extract::{UrlPath, parse_uid};
use super::media::MediaType;
use super::problem::Problem;
use crate::commitment::{Reference, RequestError, Requester, Transaction};

const DICOM_JSON: &str = "application/dicom+json";
/// The largest request: 20,000 references of at most some 350 bytes.
const BODY_BYTES_MAX: u64 = 8 << 20;
/// How long a request waits for its result before it is answered with 202: what is safe already is
/// known by then.
const AT_ONCE: Duration = Duration::from_secs(1);
/// When a client that was answered with 202 should ask again, in seconds.
const ASK_AGAIN_S: &str = "5";

const REFERENCED_SOP_CLASS: &str = "00081150";
const REFERENCED_SOP_INSTANCE: &str = "00081155";
const TRANSACTION_UID: &str = "00081195";
const FAILURE_REASON: &str = "00081197";
const FAILED_SOP_SEQUENCE: &str = "00081198";
const REFERENCED_SOP_SEQUENCE: &str = "00081199";

/// Routes of the storage commitment service.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/dicom-web/commitment-requests/{transaction}", get(check).post(request))
}

/// Section 13.4: the request.
async fn request(
    State(app): State<App>,
    UrlPath(transaction): UrlPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let transaction = parse_uid("transaction", &transaction)?;
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| MediaType::parse(value.to_str().ok()?));
    if !given.is_some_and(|media| [DICOM_JSON, "application/json"].contains(&media.essence.as_str())) {
        return Err(Problem::media_type(format!("the content type must be {DICOM_JSON}; XML is not taken")));
    }
    let references = references(&collect(&headers, body, BODY_BYTES_MAX).await?, &transaction)?;
    let commitments = app.node.commitments();
    commitments.request(transaction.clone(), Requester::Web, references).await?;
    let stands = commitments.settled_within(&transaction, AT_ONCE).await;
    stands.map(|stands| answer(&stands)).ok_or_else(|| Problem::busy("the transaction was forgotten"))
}

/// Section 13.5: the result check.
async fn check(State(app): State<App>, UrlPath(transaction): UrlPath<String>) -> Result<Response, Problem> {
    let transaction = parse_uid("transaction", &transaction)?;
    let known = app.node.commitments().get(&transaction);
    known.map(|stands| answer(&stands)).ok_or_else(|| {
        Problem::not_found(
            "this node knows no such transaction: results are kept for a week, where they were asked for",
        )
    })
}

fn answer(transaction: &Transaction) -> Response {
    if transaction.settled.is_none() {
        let again = [(header::RETRY_AFTER, HeaderValue::from_static(ASK_AGAIN_S))];
        return (StatusCode::ACCEPTED, again).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(DICOM_JSON))];
    (StatusCode::OK, kind, result(transaction).to_string()).into_response()
}

/// The Storage Commitment module of a settled transaction (PS3.3 table C.14-1).
fn result(transaction: &Transaction) -> Value {
    let element = |vr: &str, value: Value| json!({ "vr": vr, "Value": [value] });
    let item = |reference: &Reference| {
        json!({
            REFERENCED_SOP_CLASS: element("UI", json!(reference.sop_class)),
            REFERENCED_SOP_INSTANCE: element("UI", json!(reference.sop_instance)),
        })
    };
    let committed: Vec<Value> = transaction.committed().map(item).collect();
    let failed = transaction.failed().map(|(reference, why)| {
        let mut item = item(reference);
        item[FAILURE_REASON] = element("US", json!(why));
        item
    });
    let failed: Vec<Value> = failed.collect();
    let mut result = json!({ TRANSACTION_UID: element("UI", json!(transaction.uid)) });
    for (tag, items) in [(REFERENCED_SOP_SEQUENCE, committed), (FAILED_SOP_SEQUENCE, failed)] {
        if !items.is_empty() {
            result[tag] = json!({ "vr": "SQ", "Value": items });
        }
    }
    result
}

/// An element of the DICOM JSON model (PS3.18 annex F) whose value is a `T`.
#[derive(Debug, Deserialize)]
struct Element<T> {
    #[serde(rename = "Value", default = "Vec::new")]
    value: Vec<T>,
}

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(rename = "00081195", default)]
    transaction: Option<Element<Uid>>,
    #[serde(rename = "00081199")]
    references: Element<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    #[serde(rename = "00081150")]
    sop_class: Element<Uid>,
    #[serde(rename = "00081155")]
    sop_instance: Element<Uid>,
}

fn references(body: &[u8], transaction: &Uid) -> Result<Vec<Reference>, Problem> {
    let unfit = || Problem::invalid("body: one data set with a Referenced SOP Sequence (0008,1199) of UIDs is needed");
    let whole: Value = serde_json::from_slice(body).map_err(|_| unfit())?;
    // One data set, also in an array, as results of this standard are written.
    let whole = match whole {
        Value::Array(mut list) if list.len() == 1 => list.remove(0),
        other => other,
    };
    // An array would be read as a structure's fields in their order.
    if !whole.is_object() {
        return Err(unfit());
    }
    let request: Request = serde_json::from_value(whole).map_err(|_| unfit())?;
    if request.transaction.is_some_and(|named| named.value.first().is_some_and(|named| named != transaction)) {
        return Err(Problem::invalid("the transaction UID of the body is not that of the address"));
    }
    let one = |uids: Element<Uid>| <[Uid; 1]>::try_from(uids.value).ok().map(|[uid]| uid);
    let reference =
        |item: Item| Some(Reference { sop_class: one(item.sop_class)?, sop_instance: one(item.sop_instance)? });
    let references: Option<Vec<Reference>> = request.references.value.into_iter().map(reference).collect();
    references.ok_or_else(|| Problem::invalid("each reference needs one SOP class and one SOP instance UID"))
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let detail = error.to_string();
        match error {
            RequestError::Empty => Self::invalid(detail),
            RequestError::TooMany => Self::too_large(detail),
            RequestError::Duplicate => Self::transaction_used(detail),
            RequestError::Full => Self::busy(detail),
            RequestError::NotDurable(_) => Self::not_recorded(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use maillage_consensus::command::UnixMillisField;
    use maillage_host::UnixMillis;

    use super::*;
    use crate::commitment::{Settled, reason};

    fn uid(text: &str) -> Uid {
        Uid::parse(text).expect("a uid")
    }

    fn read(body: &Value) -> Result<Vec<Reference>, u16> {
        references(body.to_string().as_bytes(), &uid("1.9")).map_err(|problem| problem.status().as_u16())
    }

    fn body(instances: &[&str]) -> Value {
        let item = |name: &&str| json!({ "00081150": { "vr": "UI", "Value": ["1.5"] }, "00081155": { "vr": "UI", "Value": [name] } });
        json!({ "00081199": { "vr": "SQ", "Value": instances.iter().map(item).collect::<Vec<_>>() } })
    }

    #[test]
    fn a_request_is_one_data_set_of_references() {
        let expected = Ok(vec![Reference { sop_class: uid("1.5"), sop_instance: uid("1.3") }]);
        assert_eq!(read(&body(&["1.3"])), expected);
        assert_eq!(read(&json!([body(&["1.3"])])), expected);
        let mut named = body(&["1.3"]);
        named["00081195"] = json!({ "vr": "UI", "Value": ["1.9"] });
        assert_eq!(read(&named), expected);
        named["00081195"] = json!({ "vr": "UI", "Value": ["1.8"] });
        for wrong in [named, json!([]), json!({}), json!("x"), body(&["../x"]), json!([body(&["1.3"]), body(&["1.4"])])]
        {
            assert_eq!(read(&wrong), Err(400), "{wrong}");
        }
    }

    #[test]
    fn pending_is_202_without_a_body_and_the_end_names_each_instance() {
        let references = ["1.1", "1.2"].map(|name| Reference { sop_class: uid("1.5"), sop_instance: uid(name) });
        let mut transaction = Transaction::new(uid("1.9"), Requester::Web, references.into(), UnixMillis(1));
        let pending = answer(&transaction);
        assert_eq!(
            (pending.status(), &pending.headers()[header::RETRY_AFTER]),
            (StatusCode::ACCEPTED, &HeaderValue::from_static("5"))
        );
        let failed = vec![(1, reason::NO_SUCH_INSTANCE)];
        transaction.settled = Some(Settled { at: UnixMillisField(2), failed });
        assert_eq!(answer(&transaction).status(), StatusCode::OK);
        let ui = |text: &str| json!({ "vr": "UI", "Value": [text] });
        assert_eq!(
            result(&transaction),
            json!({
                "00081195": ui("1.9"),
                "00081199": { "vr": "SQ", "Value": [{ "00081150": ui("1.5"), "00081155": ui("1.1") }] },
                "00081198": { "vr": "SQ", "Value": [{
                    "00081150": ui("1.5"), "00081155": ui("1.2"), "00081197": { "vr": "US", "Value": [0x0112] },
                }] },
            })
        );
    }
}
