//! *Subscribe*, *Unsubscribe* and *Suspend Global Subscription* (PS3.18 sections 11.10 to 11.12).
//!
//! Subscriptions are replicated: they hold at every node, whichever the client connects to. An AE title
//! has one for the whole worklist, filtered or not, and one for each workitem that it names.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::command::Subscription;
use maillage_consensus::exam::Text8;
use maillage_dicom::AeTitle;
use serde_bytes::ByteBuf;

use super::answer::{Refused, refused, warned, warnings};
use super::{Pairs, SERVICE, host, locate, scene};
use crate::http::app::App;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery};
use crate::http::problem::Problem;
use crate::ups::filter::{FILTERED, GLOBAL};
use crate::ups::query::{flag, key};
use crate::ups::steps;

/// What a subscribe request says in its query.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    lock: bool,
    keys: Vec<(String, String)>,
}

/// Reads it: `deletionlock`, and `filter=key=value,key=value` or, as the older standard has it, the keys
/// themselves.
fn asked(pairs: &[(String, String)]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    for (name, value) in pairs {
        match name.as_str() {
            "deletionlock" => asked.lock = flag(name, value)?,
            "accept" | "charset" => {}
            "filter" => {
                for part in split_filter(value) {
                    let (name, value) = part.split_once('=').ok_or("filter: key=value pairs are needed")?;
                    key(name, value)?;
                    asked.keys.push((name.to_owned(), value.to_owned()));
                }
            }
            _ => {
                key(name, value)?;
                asked.keys.push((name.clone(), value.clone()));
            }
        }
    }
    Ok(asked)
}

/// The pairs of a filter. A comma that no pair follows belongs to the value before it, as in a list of
/// UIDs.
fn split_filter(filter: &str) -> Vec<String> {
    let mut pairs: Vec<String> = Vec::new();
    for part in filter.split(',') {
        match pairs.last_mut() {
            Some(last) if !part.contains('=') => {
                last.push(',');
                last.push_str(part);
            }
            _ => pairs.push(part.to_owned()),
        }
    }
    pairs
}

/// `POST /workitems/{uid}/subscribers/{aet}`
pub(super) async fn subscribe(
    State(app): State<App>,
    UrlPath((uid, aet)): UrlPath<(String, String)>,
    UrlQuery(pairs): UrlQuery<Pairs>,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
) -> Result<Response, Refused> {
    let asked = asked(&pairs).map_err(Problem::invalid)?;
    let aet = subscriber(&aet)?;
    let scene = scene(&app, &headers)?;
    let is_worklist = uid == GLOBAL || uid == FILTERED;
    let subscription = Subscription {
        aet: aet.clone(),
        workitem: None,
        filter: ByteBuf::new(),
        deletion_lock: asked.lock,
        suspended: false,
        since: 0,
        // Who subscribes here comes for its reports.
        reporter: None,
        told: 0,
    };
    let done = steps::subscribe(&app.node, &scene, id, &uid, asked.keys, subscription).await;
    done.map_err(|error| refused(error, &scene.service, None))?;
    let mut response = StatusCode::CREATED.into_response();
    let socket = format!("ws://{}{SERVICE}/subscribers/{}", host(&headers), in_path(aet.as_str()));
    locate(&mut response, header::CONTENT_LOCATION, &socket);
    if asked.lock && is_worklist {
        // With the lock would come a report of every step that there ever was.
        response = warned(response, &scene.service, warnings::LOCK_NOT_GRANTED);
    }
    Ok(response)
}

/// `DELETE /workitems/{uid}/subscribers/{aet}`
pub(super) async fn unsubscribe(
    State(app): State<App>,
    UrlPath((uid, aet)): UrlPath<(String, String)>,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
) -> Result<StatusCode, Refused> {
    let aet = subscriber(&aet)?;
    let scene = scene(&app, &headers)?;
    let done = steps::unsubscribe(&app.node, &scene, id, &uid, aet).await;
    done.map_err(|error| refused(error, &scene.service, None))?;
    Ok(StatusCode::OK)
}

/// `POST /workitems/{uid}/subscribers/{aet}/suspend`
pub(super) async fn suspend(
    State(app): State<App>,
    UrlPath((uid, aet)): UrlPath<(String, String)>,
    headers: HeaderMap,
    Idempotency(id): Idempotency,
) -> Result<StatusCode, Refused> {
    let aet = subscriber(&aet)?;
    let done = steps::suspend(&app.node, id, &uid, &aet).await;
    done.map_err(|error| refused(error, &format!("http://{}{SERVICE}", host(&headers)), None))?;
    Ok(StatusCode::OK)
}

/// A subscriber's AE title.
///
/// # Errors
/// 400 when it is none.
pub(super) fn subscriber(aet: &str) -> Result<Text8, Refused> {
    let aet = AeTitle::parse(aet).map_err(|error| Problem::invalid(error.to_string()))?;
    Ok(Text8::fitted(aet.as_str()))
}

/// An AE title as a part of a path: all but letters, digits and a few others as percent escapes.
fn in_path(aet: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    aet.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_filter_is_a_list_of_keys() {
        let given = asked(&pairs(&[
            ("deletionlock", "true"),
            ("filter", "WorklistLabel=CT,SOPInstanceUID=1.2,1.3,00741200=HIGH"),
        ]))
        .expect("asked");
        assert!(given.lock);
        assert_eq!(given.keys, pairs(&[("WorklistLabel", "CT"), ("SOPInstanceUID", "1.2,1.3"), ("00741200", "HIGH")]));
        assert_eq!(
            asked(&pairs(&[("00741200", "HIGH")])).expect("the older form").keys,
            pairs(&[("00741200", "HIGH")])
        );
        for bad in [("filter", "HIGH"), ("filter", "Colour=blue"), ("deletionlock", "maybe"), ("Colour", "blue")] {
            assert!(asked(&pairs(&[bad])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_ae_title_is_escaped_in_a_path() {
        assert_eq!(in_path("MY AE/1"), "MY%20AE%2F1");
    }
}
