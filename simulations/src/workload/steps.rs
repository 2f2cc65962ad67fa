//! A standard client of the worklist (PS3.18 section 11): creates workitems, searches, claims by changing
//! the state under a Transaction UID, updates, asks others to stop, gives back or completes; subscribes. It
//! races the other sites' clients and the readers for the same exams, and tries what is not its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, Request};
use maillage_consensus::View;
use maillage_consensus::exam::{Claim, WorkitemKind};
use maillage_consensus::ids::{ExamId, Name};
use serde_json::{Value, json};

use super::http::{self, Answered};
use super::{APART, new_id};
use crate::cluster::{Cluster, MESH_ID, Running};
use crate::invariants::course::Kept;
use crate::invariants::finality::Completed;
use crate::invariants::steps::Step;
use crate::rng::Rng;

/// Mean pause between two things.
const PAUSE: Duration = Duration::from_millis(2_000);
/// … once all is to be finished.
const PAUSE_AT_END: Duration = Duration::from_millis(300);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Tries of one request before the client turns to something else.
const TRIES_MAX: u32 = 12;
/// Workitems created by one site in one run.
const CREATED_MAX: u64 = 20;
/// Results of a search.
const RESULTS: usize = 12;
/// How often two clients ask for the same workitem at once.
const RACES: f64 = 0.4;
/// How often somebody tries a Transaction UID that is not the performer's.
const INTRUDES: f64 = 0.3;
/// How often a claimed workitem is given back, and not completed.
const CANCELS: f64 = 0.25;
/// The whole worklist (PS3.4 section CC.2.3.1).
const GLOBAL: &str = "1.2.840.10008.5.1.4.34.5";

/// A reading workitem that is this client's.
struct Held {
    uid: String,
    step: Step,
    transaction: String,
    token: u64,
}

struct Client {
    cluster: Arc<Cluster>,
    slot: u32,
    rng: Rng,
    created: u64,
    reports: u64,
    labels: u64,
    subscribed: Vec<Option<(String, Step)>>,
    /// An update that was never answered may come yet: no other follows it.
    unsure: BTreeSet<Step>,
}

/// Forever.
pub(super) async fn run(cluster: Arc<Cluster>, slot: u32, rng: Rng) {
    let (subscribed, unsure) = (Vec::new(), BTreeSet::new());
    let mut client = Client { cluster, slot, rng, created: 0, reports: 0, labels: 0, subscribed, unsure };
    loop {
        let ending = client.cluster.is_ending();
        let pause = if ending { PAUSE_AT_END } else { client.rng.around(PAUSE) };
        tokio::time::sleep(pause).await;
        let Some(running) = client.cluster.running(slot) else { continue };
        if let Some(held) = client.held(&running) {
            client.perform(&held).await;
            continue;
        }
        if ending {
            continue;
        }
        match client.rng.below(20) {
            0..=2 => client.create().await,
            3..=4 => client.subscribe().await,
            5..=6 => client.ask_to_stop(&running).await,
            _ => client.claim(&running).await,
        }
    }
}

/// The name under which the client of a site goes.
fn ae_title(slot: u32) -> String {
    format!("reader-{}", slot * 100 + APART + 1)
}

/// The UID of a workitem that no client named, as the mesh makes it.
fn made_uid(exam: u64, number: u32) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&MESH_ID[..16]);
    let root = uuid::Builder::from_random_bytes(bytes).into_uuid().as_u128();
    format!("2.25.{root}.{exam}.{number}")
}

fn element(vr: &str, value: &str) -> Value {
    json!({ "vr": vr, "Value": [value] })
}

impl Client {
    fn request(&mut self, method: Method, path: &str, body: Option<Value>) -> Asked {
        Asked { method, path: format!("/dicom-web/{path}"), key: new_id(&mut self.rng).0.as_u128(), body }
    }

    /// Asks until there is an answer that stands; `None` when none came, and it may have happened.
    async fn ask(&mut self, asked: Asked) -> Option<Answered> {
        for _ in 0..TRIES_MAX {
            if let Some(answered) = try_once(&self.cluster, self.slot, &asked).await {
                return Some(answered);
            }
            let wait = self.rng.millis(100, 1_500);
            tokio::time::sleep(wait).await;
        }
        None
    }

    /// What the mesh shows as in progress under this client's name.
    fn held(&self, running: &Running) -> Option<Held> {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let own = ae_title(self.slot);
        let claimed = view.claimed(usize::MAX).ok()?;
        let mine = |claim: &&Claim| claim.user.as_str() == own;
        let exam = claimed.into_iter().find(|exam| exam.claim.as_ref().filter(mine).is_some())?;
        let workitem = view.workitem(exam.id, exam.workitem).ok()??;
        let claim = exam.claim?;
        let uid = if workitem.step.uid.is_empty() {
            made_uid(exam.id.0, exam.workitem)
        } else {
            workitem.step.uid.to_string()
        };
        let (step, transaction) = ((exam.id.0, exam.workitem), claim.transaction_uid.to_string());
        Some(Held { uid, step, transaction, token: claim.token.0 })
    }

    async fn create(&mut self) {
        if self.created >= self.cluster.plan.at_most(CREATED_MAX) {
            return;
        }
        self.created += 1;
        let (slot, number) = (self.slot, self.created);
        let uid = format!("2.25.7{slot:03}{number:05}");
        let priority = ["HIGH", "MEDIUM", "LOW"][self.rng.index(3)];
        let body = json!({
            "00080018": element("UI", &uid),
            "00741200": element("CS", priority),
            "00741204": element("LO", "Read the head"),
            "00404005": element("DT", "20261124120000"),
            "00404041": element("CS", "READY"),
            "00741000": element("CS", "SCHEDULED"),
            "00100020": element("LO", &format!("U{slot}-{number}")),
            "0040A370": { "vr": "SQ", "Value": [{ "00080050": element("SH", &format!("U{slot}-{number}")) }] },
        });
        let asked = self.request(Method::POST, "workitems", Some(body));
        let Some(answered) = self.ask(asked).await else { return };
        if answered.status != 201 {
            return self.wrong("a workitem created", &answered);
        }
        let Some(running) = self.cluster.running(self.slot) else { return };
        let engine = running.group.reader();
        // Its node had applied it when it answered; a node that died since learns it again.
        if let Ok(Some((exam, _))) = View::new(&*engine).workitem_named(&uid) {
            self.cluster.world.sometimes("a standard client created a workitem");
            self.cluster.watch.finality.exam_added(exam.0, self.cluster.newest_index());
            self.cluster.history.exam_added(exam.0);
        }
    }

    /// A scheduled reading of the worklist, as a search shows it.
    async fn find(&mut self, running: &Running, state: &str) -> Option<(String, Step)> {
        let asked = self.request(Method::GET, &format!("workitems?00741000={state}&limit={RESULTS}"), None);
        let answered = self.ask(asked).await?;
        let found = answered.json();
        let uids = found.as_array().into_iter().flatten().filter_map(|item| item["00080018"]["Value"][0].as_str());
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let root = made_uid(0, 0);
        let root = root.trim_end_matches(".0.0");
        let mut readings = Vec::new();
        for uid in uids {
            let step = match uid.strip_prefix(root).and_then(|rest| rest.strip_prefix('.')?.split_once('.')) {
                Some((exam, number)) => exam.parse().ok().zip(number.parse().ok()),
                None => view.workitem_named(uid).ok().flatten().map(|(exam, number)| (exam.0, number)),
            };
            let Some((exam, number)) = step else { continue };
            let workitem = view.workitem(ExamId(exam), number).ok().flatten();
            if workitem.is_some_and(|workitem| workitem.step.kind == WorkitemKind::Read) {
                readings.push((uid.to_owned(), (exam, number)));
            }
        }
        self.rng.pick(&readings).cloned()
    }

    /// A UID that no other transaction has.
    fn new_transaction(&mut self) -> String {
        format!("2.25.{}", new_id(&mut self.rng).0.as_u128())
    }

    fn change(&mut self, uid: &str, slot: u32, transaction: &str, state: &str) -> Asked {
        let body = json!({ "00741000": element("CS", state), "00081195": element("UI", transaction) });
        self.request(Method::PUT, &format!("workitems/{uid}/state/{}", ae_title(slot)), Some(body))
    }

    async fn claim(&mut self, running: &Running) {
        let Some((uid, step)) = self.find(running, "SCHEDULED").await else { return };
        let transaction = self.new_transaction();
        let own = self.change(&uid, self.slot, &transaction, "IN PROGRESS");
        if !self.rng.chance(RACES) {
            let answered = self.ask(own).await;
            self.judge_claim(step, &transaction, answered);
            return;
        }
        let other = u32::try_from(self.rng.between(1, u64::from(self.cluster.plan.sites))).unwrap_or(1);
        let theirs = self.new_transaction();
        let rival = self.change(&uid, other, &theirs, "IN PROGRESS");
        let cluster = Arc::clone(&self.cluster);
        let (first, second) = tokio::join!(self.ask(own), async { try_once(&cluster, other, &rival).await });
        let won = [self.judge_claim(step, &transaction, first), self.judge_claim(step, &theirs, second)];
        if won.contains(&true) {
            self.cluster.world.sometimes("two Transaction UIDs raced for a workitem");
        }
    }

    /// Whether the claim was granted.
    fn judge_claim(&self, step: Step, transaction: &str, answered: Option<Answered>) -> bool {
        let Some(answered) = answered else { return false };
        match answered.status.as_u16() {
            200 => {
                self.cluster.watch.steps.won(step, transaction, self.cluster.newest_index());
                true
            }
            409 => {
                self.cluster.world.sometimes("a second claimant of a workitem was refused");
                false
            }
            // Consent refuses it to all but its hospital; a node that has just started may not know it yet.
            403 | 404 => false,
            _ => {
                self.wrong("a workitem claimed", &answered);
                false
            }
        }
    }

    async fn perform(&mut self, held: &Held) {
        self.cluster.watch.steps.won(held.step, &held.transaction, self.cluster.newest_index());
        if self.rng.chance(INTRUDES) {
            self.intrude(held).await;
        }
        if self.rng.chance(0.5) && !self.unsure.contains(&held.step) {
            self.update(held).await;
        }
        if !self.cluster.is_ending() {
            let reading = self.rng.around(self.cluster.plan.reading);
            tokio::time::sleep(reading).await;
            if self.rng.chance(CANCELS) {
                let asked = self.change(&held.uid, self.slot, &held.transaction, "CANCELED");
                if self.ask(asked).await.is_some_and(|answered| answered.status == 200) {
                    self.cluster.world.sometimes("a performer canceled its workitem");
                }
                return;
            }
        }
        self.complete(held).await;
    }

    async fn update(&mut self, held: &Held) {
        self.labels += 1;
        // Higher than any that this workitem's performer, who is one for good, said before.
        let label = self.labels;
        let body = json!({ "00741204": element("LO", &format!("step {label}")) });
        let path = format!("workitems/{}?transaction-uid={}", held.uid, held.transaction);
        let asked = self.request(Method::POST, &path, Some(body));
        match self.ask(asked).await {
            None => drop(self.unsure.insert(held.step)),
            Some(answered) if answered.status == 200 => {
                self.cluster.watch.steps.labelled(held.step, label, self.cluster.newest_index());
            }
            // It ended meanwhile.
            Some(_) => {}
        }
    }

    /// Somebody who is not the performer tries to change what is in progress.
    async fn intrude(&mut self, held: &Held) {
        let wrong = self.new_transaction();
        let asked = if self.rng.chance(0.5) {
            let body = json!({ "00741204": element("LO", "step 0") });
            self.request(Method::POST, &format!("workitems/{}?transaction-uid={wrong}", held.uid), Some(body))
        } else {
            self.change(&held.uid, self.slot, &wrong, "CANCELED")
        };
        let what = if asked.method == Method::POST { "updated" } else { "canceled" };
        let Some(answered) = self.ask(asked).await else { return };
        match answered.status.as_u16() {
            200 => self.cluster.watch.steps.intruded(held.step, what),
            400 => self.cluster.world.sometimes("a wrong Transaction UID was refused"),
            // It ended meanwhile, or its node has just started.
            404 | 409 => {}
            _ => self.wrong("a wrong Transaction UID", &answered),
        }
    }

    /// The final report completes a reading; the state is then asked for as the standard has it.
    async fn complete(&mut self, held: &Held) {
        self.reports += 1;
        let (exam, name) = (held.step.0, Name::fitted(&ae_title(self.slot)));
        let text = format!("report {} of {name}: nothing abnormal", self.reports);
        let body = json!({ "user": name, "token": held.token, "text": text });
        let key = new_id(&mut self.rng).0.as_u128();
        let report =
            Asked { method: Method::POST, path: format!("/api/v1/exams/{exam}/report"), key, body: Some(body) };
        let Some(answered) = self.ask(report).await else { return };
        let said = answered.json();
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let index = self.cluster.newest_index();
        match (answered.status.as_u16(), number(&said["report"]), number(&said["kept_as"])) {
            (200, Some(report), _) => {
                self.cluster.world.sometimes("a standard client completed a workitem");
                let token = held.token;
                self.cluster.watch.finality.completed(Completed { exam, index, token, report, text });
                let asked = self.change(&held.uid, self.slot, &held.transaction, "COMPLETED");
                if let Some(answered) = self.ask(asked).await
                    && !matches!(answered.status.as_u16(), 200 | 404)
                {
                    self.wrong("a completed workitem", &answered);
                }
            }
            (202, ..) => self.cluster.watch.outbox.kept(self.slot, exam, &text),
            (409, _, Some(number)) => {
                self.cluster.watch.course.kept(Kept { exam, number, text, stale: true, index });
            }
            (200 | 404 | 409, ..) => {}
            _ => self.wrong("a report", &answered),
        }
    }

    /// Asks for a workitem to be canceled: one of its own, which ends if nobody performs it, or one that
    /// another performs, who is told.
    async fn ask_to_stop(&mut self, running: &Running) {
        let uid = if self.rng.chance(0.5) && self.created > 0 {
            let number = self.rng.between(1, self.created);
            format!("2.25.7{:03}{number:05}", self.slot)
        } else {
            // Only told to whom performs it: what was in progress is never scheduled again.
            let Some((uid, _)) = self.find(running, "IN%20PROGRESS").await else { return };
            uid
        };
        let body = json!({ "00741238": element("LT", "asked for in error") });
        let path = format!("workitems/{uid}/cancelrequest/{}", ae_title(self.slot));
        let asked = self.request(Method::POST, &path, Some(body));
        let Some(answered) = self.ask(asked).await else { return };
        match answered.status.as_u16() {
            202 => self.cluster.world.sometimes("a workitem's cancellation was asked for"),
            404 | 409 => {}
            _ => self.wrong("a cancellation asked for", &answered),
        }
    }

    async fn subscribe(&mut self) {
        let aet = ae_title(self.slot);
        if self.subscribed.len() > 2 && self.rng.chance(0.5) {
            let at = self.rng.index(self.subscribed.len());
            let ended = self.subscribed.swap_remove(at);
            let (uid, step) = ended.map_or((GLOBAL.to_owned(), None), |(uid, step)| (uid, Some(step)));
            self.cluster.watch.steps.ending(&aet, step);
            let asked = self.request(Method::DELETE, &format!("workitems/{uid}/subscribers/{aet}"), None);
            self.ask(asked).await;
            return;
        }
        let Some(running) = self.cluster.running(self.slot) else { return };
        let one = if self.subscribed.contains(&None) { self.find(&running, "SCHEDULED").await } else { None };
        let (uid, step) = one.clone().map_or((GLOBAL.to_owned(), None), |(uid, step)| (uid, Some(step)));
        if self.subscribed.contains(&one) {
            return;
        }
        let asked = self.request(Method::POST, &format!("workitems/{uid}/subscribers/{aet}"), None);
        let Some(answered) = self.ask(asked).await else { return };
        match answered.status.as_u16() {
            201 => {}
            404 => return,
            _ => return self.wrong("a subscription", &answered),
        }
        self.cluster.watch.steps.subscribed(&aet, step, self.cluster.newest_index());
        self.subscribed.push(one);
    }

    fn wrong(&self, what: &str, answered: &Answered) {
        let detail = format!("{what} by a standard client is refused: {} {}", answered.status, answered.json());
        self.cluster.world.violation("startup", detail);
    }
}

/// A request that can be sent again.
struct Asked {
    method: Method,
    path: String,
    key: u128,
    body: Option<Value>,
}

/// One try at the node of `slot`; `None` without an answer that stands.
async fn try_once(cluster: &Cluster, slot: u32, asked: &Asked) -> Option<Answered> {
    let running = cluster.running(slot)?;
    let key = maillage_consensus::ids::CommandId(uuid::Uuid::from_u128(asked.key));
    let request: Request<_> = http::request(asked.method.clone(), &asked.path, Some(key), asked.body.clone());
    let answered = http::ask(cluster, &running, PATIENCE, request).await?;
    let is_halted = answered.status == 500 && answered.json()["code"] == "halted";
    // 507: its outbox cannot take it down now.
    (!is_halted && !matches!(answered.status.as_u16(), 503 | 504 | 507)).then_some(answered)
}
