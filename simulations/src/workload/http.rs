//! The HTTP clients: requests to a node's own router, with nothing but its socket left out.
//!
//! What a command line, a worklist or a script does: JSON in, JSON or a problem out, repeats under one
//! `Idempotency-Key`.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{Claim, ExamState};
use maillage_consensus::ids::{CommandId, ExamId, FencingToken, Name, SiteId, UidText};
use maillage_consensus::outcome::{Grant, Holder};
use maillage_consensus::{Outcome, Refusal};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::cluster::{Cluster, Running};
use crate::gateway::Receiver;
use crate::world::Owner;

/// The most of an answer that a client reads.
const ANSWER_MAX: usize = 64 << 20;
/// By which an answer says whose pages may have it.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// A node's answer.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) content_type: String,
    /// The `Warning` header: something is left out.
    pub(crate) warning: bool,
    /// Whether a browser lets pages of other sites read it.
    pub(crate) is_for_other_sites: bool,
    pub(crate) body: Bytes,
}

impl Answered {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// Asks the node of `running`; `None` when it dies with the question or says nothing within `limit`.
pub(crate) async fn ask(
    cluster: &Cluster,
    running: &Running,
    limit: Duration,
    request: Request<Body>,
) -> Option<Answered> {
    ask_of(running.http.clone(), cluster, running.owner, limit, request).await
}

/// Asks whatever takes images in a slot.
pub(crate) async fn ask_receiver(
    cluster: &Cluster,
    receiver: &Receiver,
    limit: Duration,
    request: Request<Body>,
) -> Option<Answered> {
    ask_of(receiver.http(), cluster, receiver.owner(), limit, request).await
}

/// The same on the node's unix socket, as its command line asks.
pub(crate) async fn ask_on_socket(
    cluster: &Cluster,
    running: &Running,
    limit: Duration,
    request: Request<Body>,
) -> Option<Answered> {
    ask_of(running.control.clone(), cluster, running.owner, limit, request).await
}

async fn ask_of(
    router: Router,
    cluster: &Cluster,
    owner: Owner,
    limit: Duration,
    request: Request<Body>,
) -> Option<Answered> {
    let asked = cluster.world.spawn_on(owner, async move {
        let answer = async {
            // A router never fails; it answers with a problem.
            let answer = router.oneshot(request).await.unwrap_or_else(|never| match never {});
            let (parts, body) = answer.into_parts();
            let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
            let (content_type, warning) = (text(header::CONTENT_TYPE), parts.headers.contains_key(header::WARNING));
            let is_kept = text(RESOURCE_POLICY) == "same-origin";
            let is_for_other_sites = !is_kept || parts.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
            let body = http_body_util::Limited::new(body, ANSWER_MAX).collect().await.ok()?.to_bytes();
            Some(Answered { status: parts.status, content_type, warning, is_for_other_sites, body })
        };
        tokio::time::timeout(limit, answer).await.ok().flatten()
    });
    asked.await.ok().flatten()
}

/// A request with a JSON body, or with none.
pub(crate) fn request(method: Method, path: &str, key: Option<CommandId>, body: Option<Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if let Some(key) = key {
        request = request.header("idempotency-key", key.0.to_string());
    }
    let body = match body {
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Body::from(body.to_string())
        }
        None => Body::empty(),
    };
    request.body(body).unwrap_or_default()
}

/// The request that carries a command, for those that the API has.
pub(super) fn of_command(id: CommandId, user: &Name, command: &Command) -> Option<Request<Body>> {
    let (path, body) = match command {
        Command::ClaimNext { modalities } => {
            ("/api/v1/claims/next".to_owned(), json!({ "user": user, "modalities": modalities }))
        }
        Command::ClaimTake { exam } => (format!("/api/v1/exams/{exam}/claim"), json!({ "user": user })),
        Command::Release { exam, token, reason } => {
            (format!("/api/v1/exams/{exam}/release"), json!({ "user": user, "token": token, "reason": reason }))
        }
        Command::Cancel { exam, reason } => {
            (format!("/api/v1/exams/{exam}/cancel"), json!({ "user": user, "reason": reason }))
        }
        Command::Complete { exam, token, report } => {
            (format!("/api/v1/exams/{exam}/report"), json!({ "user": user, "token": token, "text": report }))
        }
        Command::AddExam(exam) => {
            let patient = &exam.patient;
            let patient = json!({ "id": patient.id, "issuer": patient.issuer, "name": patient.name });
            let body = json!({
                "accession": exam.accession, "patient": patient, "modality": exam.modality,
                "description": exam.description, "hospital": exam.hospital,
                "priority": exam.priority.as_str(), "awaits_images": exam.awaits_images,
            });
            ("/api/v1/exams".to_owned(), body)
        }
        _ => return None,
    };
    Some(request(Method::POST, &path, Some(id), Some(body)))
}

/// What an answer means.
pub(super) enum Means {
    Outcome(Outcome),
    /// Kept by that node's outbox, and not committed yet.
    Kept,
    /// Refused before it was proposed.
    NotNow,
    Unknown,
    /// Nothing that the workload sends deserves this.
    Wrong(String),
}

/// Reads the answer to [`of_command`]'s request.
pub(super) fn outcome(command: &Command, answered: &Answered) -> Means {
    let said = answered.json();
    let code = said["code"].as_str().unwrap_or_default();
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default();
    if answered.status == 202 {
        return Means::Kept;
    }
    if said["queued"] == false && !said["report"].is_number() {
        // That outbox has sent it meanwhile: what the mesh made of it is answered to a repeat.
        return Means::Unknown;
    }
    if answered.status.is_success() {
        return match command {
            Command::AddExam(_) => Means::Outcome(Outcome::ExamAdded {
                exam: ExamId(number(&said["id"])),
                existed: said["existed"] == true,
            }),
            Command::Release { .. } | Command::Cancel { .. } => Means::Outcome(Outcome::Done),
            Command::Complete { .. } => Means::Outcome(Outcome::Completed {
                report: u32::try_from(number(&said["report"])).unwrap_or_default(),
            }),
            _ if said["granted"] == true => {
                let claim = &said["claim"];
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let claim = Claim {
                    token: FencingToken(number(&claim["token"])),
                    site: SiteId(number(&claim["site"])),
                    session: 0,
                    user: Name::fitted(&text(&claim["user"])),
                    since: Default::default(),
                    transaction_uid: UidText::fitted(&text(&claim["transaction_uid"])),
                };
                Means::Outcome(Outcome::Claimed(Grant {
                    exam: ExamId(number(&said["exam"]["id"])),
                    workitem: 0,
                    claim,
                }))
            }
            _ => Means::Outcome(Outcome::NothingWaiting),
        };
    }
    let refused = |refusal| Means::Outcome(Outcome::Refused(refusal));
    match (answered.status.as_u16(), code) {
        (503, "no-session") => refused(Refusal::NoSession),
        // Nothing was done, also where the disk has no room to write it down.
        (503, _) | (507, "not-recorded") => Means::NotNow,
        (504, _) | (500, "halted") => Means::Unknown,
        (409, "conflict") => refused(Refusal::AlreadyClaimed(Holder {
            user: Name::fitted(said["holder"]["user"].as_str().unwrap_or_default()),
            site: SiteId(number(&said["holder"]["site"])),
            site_name: Name::default(),
            since: Default::default(),
        })),
        (409, "wrong-state") => match ExamState::ALL.into_iter().find(|state| said["state"] == state.as_str()) {
            Some(state) => refused(Refusal::WrongState { state }),
            None => Means::Wrong(said.to_string()),
        },
        (409, "stale-token") => {
            refused(Refusal::StaleToken { given: FencingToken(number(&said["given"])), kept_as: None })
        }
        (403, "consent-refused") => refused(Refusal::ConsentRefused),
        (404, "no-such-exam") => refused(Refusal::NoSuchExam),
        _ => Means::Wrong(format!("{} {said}", answered.status)),
    }
}
