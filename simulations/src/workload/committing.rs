//! A site's archive asks whether it may delete what it sent: storage commitment by PS3.18 section 13, asked and asked
//! again until it is answered, whatever happens to the node meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::dicom::Sample;
use super::http::{self, Answered};
use crate::cluster::{Cluster, Running};
use crate::rng::Rng;

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
}

/// Asks until the work ends, and then for the last time, for what must be safe by then.
pub(super) async fn run(cluster: Arc<Cluster>, slot: u32, mut rng: Rng) {
    for _ in 0..REQUESTS_MAX {
        tokio::time::sleep(rng.around(PAUSE)).await;
        if cluster.is_ending() {
            break;
        }
        if let Some(request) = request(&cluster, slot, &mut rng) {
            ask(&cluster, slot, request, &mut rng).await;
        }
    }
    while !cluster.is_healed() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut all = references(&cluster, slot);
    rng.shuffle(&mut all);
    all.truncate(AT_END_MAX);
    if !all.is_empty() && cluster.plan.sites > 1 && cluster.rotten().is_none() {
        let uid = uid(&mut rng);
        let request = Request { uid, references: all.clone(), is_own: true, lost: cluster.lost() };
        let failed = ask(&cluster, slot, request, &mut rng).await;
        if failed > 0 {
            let detail = format!("all copies are made, and {failed} of {} instances of slot {slot} are not safe", all.len());
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
    all.filter(|one| seen.insert(one.sop_instance.clone()))
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
    Some(Request { uid: uid(rng), references: all, is_own: is_own || sender == slot, lost: cluster.lost() })
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
                    StatusCode::OK => return settle(cluster, &running, &request, &answered).await,
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

/// Judges a result; how many instances are not safe by it.
async fn settle(cluster: &Arc<Cluster>, running: &Running, request: &Request, answered: &Answered) -> usize {
    let said = answered.json();
    let (committed, failed) = (items(&said, COMMITTED), items(&said, FAILED));
    cluster.world.event(
        running.owner.slot,
        format_args!("commitment {}: {} safe, {} not", request.uid, committed.len(), failed.len()),
    );
    cluster.world.sometimes(if failed.is_empty() {
        "a storage commitment was given"
    } else {
        "a storage commitment was given in part, or not"
    });
    let asked: BTreeSet<&str> = request.references.iter().map(|(_, instance)| instance.as_str()).collect();
    let told: BTreeSet<&str> = committed.iter().chain(&failed).map(|(instance, _)| instance.as_str()).collect();
    if asked != told || committed.len() + failed.len() != asked.len() {
        let detail = format!("{:?} answers {said} to a storage commitment of {asked:?}", running.owner);
        cluster.world.violation("I5", detail);
    }
    let is_whole = cluster.rotten() != Some(running.owner.slot) && cluster.lost() == request.lost;
    let own: Vec<&str> = if request.is_own && is_whole { asked.into_iter().collect() } else { Vec::new() };
    let known = cluster.watch.instances.acknowledged_at(running.owner.slot);
    for (instance, why) in &failed {
        let is_its = own.contains(&instance.as_str()) && known.iter().any(|known| known.sop_instance == *instance);
        if is_its && *why == NO_SUCH_INSTANCE {
            cluster.world.violation("I3", format!("{:?} says that it never had {instance}", running.owner));
        }
    }
    let safe: Vec<String> = committed.into_iter().map(|(instance, _)| instance).collect();
    cluster.watch.commitments.told(cluster, running, request.lost, &safe).await;
    failed.len()
}

#[cfg(test)]
mod tests {
    use maillage_dicom::Uid;

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
