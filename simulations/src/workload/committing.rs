//! A site's archive asks whether it may delete what it sent: storage commitment by PS3.18 section 13, or by N-ACTION on
//! an association that may end before the N-EVENT-REPORT comes. It asks again until it is answered, whatever happens to
//! the node meanwhile.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use maillage_dicom::commitment::{CommitmentRequest, PUSH_MODEL, PUSH_MODEL_INSTANCE, encode_result};
use maillage_dicom::dimse::operation::Operation;
use maillage_dicom::dimse::scp::{Event, EventLine, Events, ServiceRequest};
use maillage_dicom::dimse::status::Status;
use maillage_dicom::{AeTitle, Uid};
use serde_json::{Value, json};

use super::dicom::Sample;
use super::http;
use crate::cluster::Cluster;
use crate::rng::Rng;
use crate::world::Owner;

/// Mean pause between two requests of one site.
const PAUSE: Duration = Duration::from_secs(10);
/// Requests of one site in one run.
const REQUESTS_MAX: u64 = 60;
/// Instances of one request, at most, besides the last one.
const INSTANCES_MAX: u64 = 5;
/// … and of the last one.
const AT_END_MAX: usize = 20;
/// How often it is asked for what another site received.
const ELSEWHERE: f64 = 0.15;
/// How often an instance is among them that nobody has sent.
const UNKNOWN: f64 = 0.1;
/// How often it speaks DIMSE.
const BY_DIMSE: f64 = 0.4;
/// For how long its association stays open; it ends with the event in this share of cases, before the answer to it.
const LINE_MS: (u64, u64) = (200, 20_000);
const HANGS_UP: f64 = 0.2;
/// Event types of PS3.4 section J.3.3.1.2: all committed, or not all; and the action type of a request.
const ALL_COMMITTED: u16 = 1;
const FAILURES_EXIST: u16 = 2;
const REQUEST: u16 = 1;
/// Resource limitation (PS3.7 annex C): later, perhaps.
const LATER: u16 = 0x0213;
/// A sender that hears nothing for so long hangs up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries.
const AGAIN_MS: (u64, u64) = (300, 3_000);

const SOP_CLASS: &str = "00081150";
const SOP_INSTANCE: &str = "00081155";
const FAILURE_REASON: &str = "00081197";
const FAILED: &str = "00081198";
const COMMITTED: &str = "00081199";
/// No such object instance (PS3.3 section C.14.1.1).
const NO_SUCH_INSTANCE: u64 = 0x0112;

/// A request under way.
struct Request {
    uid: String,
    /// SOP classes and instances.
    references: Vec<(String, String)>,
    /// Whether the node that is asked said that it has them.
    is_own: bool,
    /// Machines that were lost for good when it was first asked.
    lost: usize,
    /// The layout that held then.
    layout: u64,
}

impl Request {
    fn new(cluster: &Cluster, references: Vec<(String, String)>, is_own: bool, rng: &mut Rng) -> Self {
        Self { uid: uid(rng), references, is_own, lost: cluster.lost(), layout: cluster.layout() }
    }

    fn instances(&self) -> BTreeSet<&str> {
        self.references.iter().map(|(_, instance)| instance.as_str()).collect()
    }
}

/// A result: what is safe, and what is not and why, where the answer says it.
struct Told {
    committed: Vec<String>,
    failed: Vec<(String, u64)>,
}

/// Asks until the work ends, and then for the last time, for what must be safe by then.
pub(super) async fn run(cluster: Arc<Cluster>, slot: u32, mut rng: Rng) {
    // It speaks DIMSE alone.
    let is_gateways = cluster.gateway_slot() == Some(slot);
    for _ in 0..cluster.plan.at_most(REQUESTS_MAX) {
        tokio::time::sleep(rng.around(PAUSE)).await;
        if cluster.is_ending() {
            break;
        }
        if let Some(request) = request(&cluster, slot, &mut rng) {
            if rng.chance(BY_DIMSE) || is_gateways {
                ask_by_dimse(&cluster, slot, request, &mut rng).await;
            } else {
                ask(&cluster, slot, request, &mut rng).await;
            }
        }
    }
    while !cluster.is_healed() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut all = references(&cluster, slot);
    rng.shuffle(&mut all);
    all.truncate(AT_END_MAX);
    // What has left a gateway's spool is known by its UID to the centre alone that received it, which may be lost.
    let is_unknown = is_gateways && cluster.lost() > 0;
    if !all.is_empty() && !is_unknown && cluster.can_be_safe(slot) && cluster.rotten().is_none() {
        let request = Request::new(&cluster, all.clone(), true, &mut rng);
        let failed = if is_gateways {
            ask_by_dimse(&cluster, slot, request, &mut rng).await
        } else {
            ask(&cluster, slot, request, &mut rng).await
        };
        if failed > 0 {
            let detail =
                format!("all copies are made, and {failed} of {} instances of slot {slot} are not safe", all.len());
            cluster.world.violation("I9", detail);
        }
    }
}

fn uid(rng: &mut Rng) -> String {
    format!("2.25.{}", u128::from(rng.next()) << 32 | u128::from(rng.next() >> 32))
}

/// What was acknowledged at `slot`, as a request names it.
fn references(cluster: &Cluster, slot: u32) -> Vec<(String, String)> {
    let all = cluster.watch.instances.acknowledged_at(slot).into_iter();
    let mut seen = BTreeSet::new();
    all.filter(|one| !cluster.watch.instances.is_contested(&one.sop_instance))
        .filter(|one| seen.insert(one.sop_instance.clone()))
        .map(|one| {
            let sample = Sample { study: one.study, sop_instance: one.sop_instance, data_set: one.data_set };
            (sample.sop_class().as_str().to_owned(), sample.sop_instance)
        })
        .collect()
}

fn request(cluster: &Cluster, slot: u32, rng: &mut Rng) -> Option<Request> {
    let is_own = !rng.chance(ELSEWHERE);
    let sender = if is_own { slot } else { u32::try_from(rng.between(1, u64::from(cluster.plan.sites))).unwrap_or(1) };
    let mut all = references(cluster, sender);
    // The newest: what is safe long since is no question.
    let newest = usize::try_from(INSTANCES_MAX * 2).unwrap_or(usize::MAX);
    let mut all = all.split_off(all.len().saturating_sub(newest));
    rng.shuffle(&mut all);
    all.truncate(usize::try_from(rng.between(1, INSTANCES_MAX)).unwrap_or(1));
    if all.is_empty() {
        return None;
    }
    if rng.chance(UNKNOWN) {
        all.push((all[0].0.clone(), uid(rng)));
    }
    Some(Request::new(cluster, all, is_own || sender == slot, rng))
}

/// Asks the node of `slot` until it has an answer; how many instances are not safe by it.
async fn ask(cluster: &Arc<Cluster>, slot: u32, request: Request, rng: &mut Rng) -> usize {
    let path = format!("/dicom-web/commitment-requests/{}", request.uid);
    // The site that took it: from then on it must know it.
    let mut taken: Option<u64> = None;
    loop {
        if let Some(running) = cluster.running(slot) {
            let is_known = taken == Some(running.site);
            let asks = if is_known && rng.chance(0.8) {
                http::request(Method::GET, &path, None, None)
            } else {
                http::request(Method::POST, &path, None, Some(body(&request)))
            };
            let is_get = asks.method() == Method::GET;
            if let Some(answered) = http::ask(cluster, &running, PATIENCE, asks).await {
                match answered.status {
                    StatusCode::OK => {
                        let said = answered.json();
                        let committed = items(&said, COMMITTED).into_iter().map(|(instance, _)| instance).collect();
                        let told = Told { committed, failed: items(&said, FAILED) };
                        return settle(cluster, running.owner, &request, told).await;
                    }
                    StatusCode::ACCEPTED => taken = Some(running.site),
                    StatusCode::NOT_FOUND if is_get => {
                        let detail = format!("{:?} forgot the storage commitment {}", running.owner, request.uid);
                        cluster.world.violation("I12", detail);
                        return 0;
                    }
                    status if status.is_server_error() => {
                        cluster.world.sometimes("a storage commitment was refused for now");
                    }
                    status => {
                        let detail = format!("a storage commitment is refused: {status} {}", answered.json());
                        cluster.world.violation("startup", detail);
                        return 0;
                    }
                }
            }
        }
        let wait = rng.millis(AGAIN_MS.0, AGAIN_MS.1);
        tokio::time::sleep(wait).await;
    }
}

fn body(request: &Request) -> Value {
    let ui = |text: &str| json!({ "vr": "UI", "Value": [text] });
    let item = |(class, instance): &(String, String)| json!({ SOP_CLASS: ui(class), SOP_INSTANCE: ui(instance) });
    let items: Vec<Value> = request.references.iter().map(item).collect();
    json!({ COMMITTED: { "vr": "SQ", "Value": items } })
}

/// The instances of a sequence of an answer, with the reason why each is not committed.
fn items(said: &Value, sequence: &str) -> Vec<(String, u64)> {
    let items = said[sequence]["Value"].as_array().cloned().unwrap_or_default();
    let of = |item: &Value, tag: &str| item[tag]["Value"][0].clone();
    let item = |item: &Value| {
        let instance = of(item, SOP_INSTANCE).as_str().unwrap_or_default().to_owned();
        (instance, of(item, FAILURE_REASON).as_u64().unwrap_or_default())
    };
    items.iter().map(item).collect()
}

/// The same by N-ACTION, until an N-EVENT-REPORT comes.
async fn ask_by_dimse(cluster: &Arc<Cluster>, slot: u32, request: Request, rng: &mut Rng) -> usize {
    loop {
        let (line, mut events) = EventLine::direct();
        if let (Some(receiver), Some(action)) = (cluster.receiver(slot), n_action(slot, &request, line)) {
            let owner = receiver.owner();
            let asked = cluster
                .world
                .spawn_on(owner, async move { tokio::time::timeout(PATIENCE, receiver.n_action(action)).await });
            match asked.await.ok().and_then(Result::ok) {
                Some(status) if status == Status::SUCCESS => {
                    let open = rng.millis(LINE_MS.0, LINE_MS.1);
                    if let Some(event) = heard(&mut events, open).await {
                        return settle_event(cluster, owner, &request, event, rng.chance(HANGS_UP)).await;
                    }
                    cluster.world.sometimes("an association ended before a commitment was told on it");
                }
                Some(status) if status.code() == LATER => {
                    cluster.world.sometimes("a storage commitment was refused for now");
                }
                Some(status) => {
                    let detail = format!("an N-ACTION for storage commitment is refused: {status}");
                    cluster.world.violation("startup", detail);
                    return 0;
                }
                None => {}
            }
        }
        drop(events);
        let wait = rng.millis(AGAIN_MS.0, AGAIN_MS.1);
        tokio::time::sleep(wait).await;
    }
}

async fn heard(events: &mut Events, open: Duration) -> Option<Event> {
    tokio::time::timeout(open, events.next()).await.ok().flatten()
}

fn n_action(slot: u32, request: &Request, events: EventLine) -> Option<ServiceRequest> {
    let class = Uid::parse(PUSH_MODEL).ok()?;
    let references: Option<Vec<(Uid, Uid)>> = request
        .references
        .iter()
        .map(|(class, instance)| Some((Uid::parse(class).ok()?, Uid::parse(instance).ok()?)))
        .collect();
    let (transaction, references) = (Uid::parse(&request.uid).ok()?, references?);
    let listed = references.iter().map(|(class, instance)| (class, instance));
    // A request lists what it asks for as a result lists what is committed.
    let dataset = encode_result(&Uid::EXPLICIT_LE, &transaction, listed, std::iter::empty());
    Some(ServiceRequest {
        operation: Operation::Action,
        calling_ae: AeTitle::parse(&format!("PACS{slot}")).ok()?,
        called_ae: AeTitle::parse("MAILLAGE").ok()?,
        remote: SocketAddr::from((Ipv4Addr::LOCALHOST, 11112)),
        negotiated: class.clone(),
        sop_class: class,
        sop_instance: Uid::parse(PUSH_MODEL_INSTANCE).ok(),
        action_type: Some(REQUEST),
        event_type: None,
        attributes: Vec::new(),
        transfer_syntax: Uid::EXPLICIT_LE,
        dataset,
        events,
    })
}

async fn settle_event(cluster: &Arc<Cluster>, owner: Owner, request: &Request, event: Event, hangs_up: bool) -> usize {
    cluster.world.sometimes("a storage commitment was told by n-event-report");
    let said = CommitmentRequest::decode(&event.dataset, &Uid::EXPLICIT_LE);
    let event_type = event.event_type;
    if !hangs_up {
        event.answer(Status::SUCCESS);
    }
    let committed: Vec<String> = match said {
        Ok(said) if said.transaction.as_str() == request.uid => {
            said.references.into_iter().map(|(_, instance)| instance.as_str().to_owned()).collect()
        }
        other => {
            let detail = format!("{owner:?} tells {other:?} of commitment {}", request.uid);
            cluster.world.violation("I5", detail);
            return 0;
        }
    };
    // It has their reasons, too, which only HTTP's results are read for.
    let not = request.instances().into_iter().filter(|instance| !committed.iter().any(|one| one == instance));
    let failed: Vec<(String, u64)> = not.map(|instance| (instance.to_owned(), 0)).collect();
    let expected = if failed.is_empty() { ALL_COMMITTED } else { FAILURES_EXIST };
    if event_type != expected {
        let detail = format!("{owner:?} tells event {event_type} of commitment {}", request.uid);
        cluster.world.violation("I5", detail);
    }
    settle(cluster, owner, request, Told { committed, failed }).await
}

/// Judges a result; how many instances are not safe by it.
async fn settle(cluster: &Arc<Cluster>, owner: Owner, request: &Request, told: Told) -> usize {
    let Told { committed, failed } = told;
    cluster
        .world
        .event(owner.slot, format_args!("commitment {}: {} safe, {} not", request.uid, committed.len(), failed.len()));
    cluster.world.sometimes(if failed.is_empty() {
        "a storage commitment was given"
    } else {
        "a storage commitment was given in part, or not"
    });
    let asked = request.instances();
    let named: BTreeSet<&str> =
        committed.iter().chain(failed.iter().map(|(instance, _)| instance)).map(String::as_str).collect();
    if asked != named || committed.len() + failed.len() != asked.len() {
        let detail = format!("{owner:?} tells of {named:?} in answer to a commitment of {asked:?}");
        cluster.world.violation("I5", detail);
    }
    let is_whole = cluster.rotten() != Some(owner.slot) && cluster.lost() == request.lost;
    let known = cluster.watch.instances.acknowledged_at(owner.slot);
    for (instance, why) in failed.iter().filter(|(_, why)| *why == NO_SUCH_INSTANCE) {
        let is_its = request.is_own && known.iter().any(|known| known.sop_instance == *instance);
        if is_its && is_whole {
            let detail = format!("{owner:?} says that it never had {instance} ({why:#06x})");
            cluster.world.violation("I3", detail);
        }
    }
    cluster.watch.commitments.told(cluster, owner, request.layout, &committed).await;
    failed.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_uids_are_such_and_an_answer_is_read_as_the_node_writes_it() {
        let mut rng = Rng::new(7);
        for _ in 0..100 {
            assert!(Uid::parse(&uid(&mut rng)).is_ok());
        }
        let said = json!({
            COMMITTED: { "vr": "SQ", "Value": [{ SOP_INSTANCE: { "vr": "UI", "Value": ["1.1"] } }] },
            FAILED: { "vr": "SQ", "Value": [{
                SOP_INSTANCE: { "vr": "UI", "Value": ["1.2"] }, FAILURE_REASON: { "vr": "US", "Value": [274] },
            }] },
        });
        assert_eq!(items(&said, COMMITTED), [("1.1".to_owned(), 0)]);
        assert_eq!(items(&said, FAILED), [("1.2".to_owned(), NO_SUCH_INSTANCE)]);
        assert_eq!(items(&json!({}), FAILED), []);
    }
}
