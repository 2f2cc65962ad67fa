//! *Subscribe*, *Unsubscribe* and *Suspend Global Subscription* (PS3.18 sections 11.10 to 11.12).
//!
//! Subscriptions are replicated: they hold at every node, whichever the client connects to. An AE title
//! has one for the whole worklist, filtered or not, and one for each workitem that it names.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, FILTER_MAX, Subscription};
use maillage_consensus::exam::Text8;
use maillage_consensus::ids::{CommandId, ExamId, Name};
use maillage_consensus::outcome::Refusal;
use maillage_dicom::AeTitle;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::answer::{Refused, warned, warnings};
use super::dataset::Dataset;
use super::query::{Query, flag, key};
use super::{Pairs, SERVICE, find, host, locate, scene, tags, unexpected};
use crate::http::app::App;
use crate::http::extract::{Idempotency, UrlPath, UrlQuery};
use crate::http::problem::Problem;

/// The whole worklist (PS3.4 section CC.2.3.1).
const GLOBAL: &str = "1.2.840.10008.5.1.4.34.5";
/// What of it a filter matches.
const FILTERED: &str = "1.2.840.10008.5.1.4.34.5.1";

/// What is subscribed to.
type Workitem = Option<(ExamId, u32)>;

/// Which workitems a subscription to the worklist is for: what the replicated record keeps of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Filter {
    /// The keys that must match, as the client wrote them.
    keys: Vec<(String, String)>,
    /// The log index at which it was suspended: exams that came later are not subscribed to.
    until: Option<u64>,
}

impl Filter {
    /// Reads what a subscription keeps; what cannot be read matches nothing.
    pub(super) fn of(subscription: &Subscription) -> Option<Self> {
        if subscription.filter.is_empty() {
            return Some(Self::default());
        }
        serde_json::from_slice(&subscription.filter).ok()
    }

    fn encode(&self) -> Result<ByteBuf, Refused> {
        if *self == Self::default() {
            return Ok(ByteBuf::new());
        }
        let bytes = serde_json::to_vec(self).map_err(|error| Problem::internal(error.to_string()))?;
        if bytes.len() > FILTER_MAX {
            return Err(Problem::invalid(format!("filter: at most {FILTER_MAX} bytes are kept")).into());
        }
        Ok(ByteBuf::from(bytes))
    }

    /// Whether it is for an exam's workitem with this data set. A filter says which workitems are
    /// subscribed to, and a workitem stays so while it is performed: its state and readiness are taken
    /// as they were when it was made.
    pub(super) fn is_for(&self, exam: ExamId, dataset: &Dataset) -> bool {
        if self.until.is_some_and(|until| exam.0 > until) {
            return false;
        }
        let keys: Result<Vec<_>, String> = self.keys.iter().map(|(name, value)| key(name, value)).collect();
        keys.is_ok_and(|keys| {
            let mut made = dataset.clone();
            made.put(tags::PROCEDURE_STEP_STATE, "CS", "SCHEDULED");
            let keys = keys.into_iter().filter(|(path, _)| path[..] != [tags::INPUT_READINESS_STATE]).collect();
            Query { keys, ..Query::default() }.matches(&made)
        })
    }
}

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
    let workitem = subscribed(&app, &headers, &uid).await?;
    match (uid.as_str(), asked.keys.is_empty()) {
        (FILTERED, true) => return Err(Problem::invalid("a filtered subscription needs a filter").into()),
        (FILTERED, false) | (_, true) => {}
        (_, false) => return Err(Problem::invalid(format!("a filter is for {FILTERED} alone")).into()),
    }
    let subscription = Subscription {
        aet,
        workitem,
        filter: Filter { keys: asked.keys, until: None }.encode()?,
        deletion_lock: asked.lock,
        suspended: false,
        since: 0,
    };
    propose(&app, id, Command::Subscribe(subscription.clone())).await?;
    let mut response = StatusCode::CREATED.into_response();
    let socket = format!("ws://{}{SERVICE}/subscribers/{}", host(&headers), in_path(subscription.aet.as_str()));
    locate(&mut response, header::CONTENT_LOCATION, &socket);
    if asked.lock && workitem.is_none() {
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
    let workitem = subscribed(&app, &headers, &uid).await?;
    propose(&app, id, Command::Unsubscribe { aet, workitem }).await?;
    Ok(StatusCode::OK)
}

/// `POST /workitems/{uid}/subscribers/{aet}/suspend`
pub(super) async fn suspend(
    State(app): State<App>,
    UrlPath((uid, aet)): UrlPath<(String, String)>,
    Idempotency(id): Idempotency,
) -> Result<StatusCode, Refused> {
    let aet = subscriber(&aet)?;
    if uid != GLOBAL && uid != FILTERED {
        return Err(Problem::invalid("only a subscription to the worklist can be suspended").into());
    }
    app.catch_up().await;
    let own = |subscription: &Subscription| subscription.aet == aet && subscription.workitem.is_none();
    let before = app.node.read(|view| view.subscriptions())?.into_iter().find(own);
    let Some(before) = before else { return Err(Problem::not_found("there is no such subscription").into()) };
    if before.suspended {
        return Ok(StatusCode::OK);
    }
    let keys = Filter::of(&before).unwrap_or_default().keys;
    let until = Some(*app.node.changes().borrow());
    let filter = Filter { keys, until }.encode()?;
    propose(&app, id, Command::Subscribe(Subscription { suspended: true, filter, ..before })).await?;
    Ok(StatusCode::OK)
}

/// What a UID of the path names.
async fn subscribed(app: &App, headers: &HeaderMap, uid: &str) -> Result<Workitem, Refused> {
    if uid == GLOBAL || uid == FILTERED {
        return Ok(None);
    }
    let (exam, workitem) = find(app, &scene(app, headers)?, uid).await?;
    Ok(Some((exam.id, workitem.number)))
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

async fn propose(app: &App, id: CommandId, command: Command) -> Result<(), Refused> {
    let user = match &command {
        Command::Subscribe(Subscription { aet, .. }) | Command::Unsubscribe { aet, .. } => Name::fitted(aet.as_str()),
        _ => Name::default(),
    };
    match app.node.command(id, user, command).await? {
        Outcome::Done => {
            app.catch_up().await;
            Ok(())
        }
        Outcome::Refused(Refusal::NoSuchWorkitem) => Err(Problem::not_found("there is no such subscription").into()),
        Outcome::Refused(refusal) => Err(Problem::from(refusal).into()),
        other => Err(unexpected(&other)),
    }
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
    fn a_workitem_stays_subscribed_while_it_is_performed_and_a_suspension_keeps_what_was_there() {
        let json = serde_json::json!({
            "00741000": { "vr": "CS", "Value": ["IN PROGRESS"] },
            "00741200": { "vr": "CS", "Value": ["HIGH"] },
        });
        let dataset = Dataset::parse(json.to_string().as_bytes()).expect("a data set");
        let filter = |keys: &[(&str, &str)], until| Filter { keys: pairs(keys), until };
        let at = ExamId(10);
        assert!(filter(&[("ProcedureStepState", "SCHEDULED"), ("00741200", "HIGH")], None).is_for(at, &dataset));
        assert!(!filter(&[("00741200", "LOW")], None).is_for(at, &dataset));
        assert!(filter(&[], Some(10)).is_for(at, &dataset));
        assert!(!filter(&[], Some(9)).is_for(at, &dataset));
        let kept = filter(&[("00741200", "HIGH")], Some(9));
        let subscription = Subscription {
            aet: Text8::fitted("A"),
            workitem: None,
            filter: kept.encode().expect("short"),
            deletion_lock: false,
            suspended: true,
            since: 1,
        };
        assert_eq!(Filter::of(&subscription), Some(kept));
    }

    #[test]
    fn an_ae_title_is_escaped_in_a_path() {
        assert_eq!(in_path("MY AE/1"), "MY%20AE%2F1");
    }
}
