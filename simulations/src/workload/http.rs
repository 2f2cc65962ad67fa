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
use maillage_consensus::exam::{Claim, ExamState, Patient, Priority, Request as Examination, Verdict};
use maillage_consensus::ids::{CommandId, ExamId, FencingToken, Name, SiteId, UidText};
use maillage_consensus::order::{Hospital, Keep, Order, Place, Policy, Reader};
use maillage_consensus::outcome::{Grant, Holder};
use maillage_consensus::remark::Finding;
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
    let (method, path, body) = match command {
        Command::ClaimNext { modalities } => {
            (Method::POST, "claims/next".to_owned(), json!({ "user": user, "modalities": modalities }))
        }
        Command::Next(Reader { specialties, expertise, modalities }) => {
            let body = json!({
                "user": user, "modalities": modalities, "specialties": specialties, "expertise": expertise,
            });
            (Method::POST, "claims/next".to_owned(), body)
        }
        Command::AddExam(request) => (Method::POST, "exams".to_owned(), of_request(user, request, &Order::default())),
        Command::Order { request, order } => (Method::POST, "exams".to_owned(), of_request(user, request, order)),
        Command::SetHospital(hospital) if hospital.sites.is_empty() => {
            let path = format!("hospitals/{}", hospital.name.as_str().replace(' ', "%20"));
            (Method::PUT, path, of_hospital(user, hospital))
        }
        Command::SetPolicy(policy) => (Method::PUT, "policy".to_owned(), of_policy(user, policy)),
        _ => {
            let (what, body) = of_an_exam(user, command)?;
            (Method::POST, format!("exams/{}/{what}", command.exam()?), body)
        }
    };
    Some(request(method, &format!("/api/v1/{path}"), Some(id), Some(body)))
}

/// What is done to one exam: the end of the address, and the body.
fn of_an_exam(user: &Name, command: &Command) -> Option<(String, Value)> {
    let to = |what: &str, body: Value| Some((what.to_owned(), body));
    match command {
        Command::ClaimTake { .. } => to("claim", json!({ "user": user })),
        Command::Take { transaction_uid, .. } if transaction_uid.is_empty() => to("claim", json!({ "user": user })),
        Command::TakeOver { reason, .. } => to("take-over", json!({ "user": user, "reason": reason })),
        Command::Open { token, .. } => to("open", json!({ "user": user, "token": token })),
        Command::Release { token, reason, .. } => {
            to("release", json!({ "user": user, "token": token, "reason": reason }))
        }
        Command::Complete { token, report, .. } => {
            to("report", json!({ "user": user, "token": token, "text": report }))
        }
        Command::Report { token, kind, text, .. } => {
            to("report", json!({ "user": user, "token": token, "text": text, "kind": kind }))
        }
        Command::Addend { text, .. } => to("addendum", json!({ "user": user, "text": text })),
        Command::Cancel { reason, .. } => to("cancel", json!({ "user": user, "reason": reason })),
        Command::Regulate { verdict: Verdict::Validated { protocol }, .. } => {
            to("regulation", json!({ "user": user, "verdict": "validated", "protocol": protocol }))
        }
        Command::Regulate { verdict: Verdict::Refused { reason }, .. } => {
            to("regulation", json!({ "user": user, "verdict": "refused", "reason": reason }))
        }
        Command::Acquire { .. } => to("acquisition", json!({ "user": user })),
        Command::Deliver { report, to: whom, .. } => {
            to("delivery", json!({ "user": user, "report": report, "to": whom }))
        }
        Command::FollowUp { text, .. } => to("follow-up", json!({ "user": user, "text": text })),
        Command::AskOpinion { of, question, .. } => {
            to("opinions", json!({ "user": user, "of": of, "question": question }))
        }
        Command::GiveOpinion { remark, text, concordance, .. } => {
            let body = json!({ "user": user, "text": text, "concordance": concordance });
            to(&format!("opinions/{remark}/answer"), body)
        }
        Command::AddFinding { finding, .. } => to("findings", of_finding(user, finding)),
        Command::RaiseCritical { text, .. } => to("criticals", json!({ "user": user, "text": text })),
        Command::Tell { remark, whom, read_back, .. } => {
            to(&format!("criticals/{remark}/told"), json!({ "user": user, "whom": whom, "read_back": read_back }))
        }
        Command::LegalHold { reason, .. } => to("legal-hold", json!({ "user": user, "reason": reason })),
        Command::ReleaseHold { reason, .. } => to("legal-hold/release", json!({ "user": user, "reason": reason })),
        Command::Purge { reason, withdrawn, .. } => {
            to("purge", json!({ "user": user, "reason": reason, "consent_withdrawn": withdrawn }))
        }
        _ => None,
    }
}

fn of_request(user: &Name, request: &Examination, order: &Order) -> Value {
    let Patient { id, issuer, name, birth_date, sex } = &request.patient;
    json!({
        "accession": request.accession,
        "patient": { "id": id, "issuer": issuer, "name": name, "birth_date": birth_date, "sex": sex },
        "modality": request.modality,
        "description": request.description,
        "hospital": request.hospital,
        "physician": request.physician,
        "priority": request.priority.as_str(),
        "awaits_images": request.awaits_images,
        "consent": order.consent,
        "specialty": order.specialty,
        "expertise": order.expertise,
        "regulate": order.regulate,
        "question": order.question,
        "user": user,
    })
}

fn of_finding(user: &Name, finding: &Finding) -> Value {
    json!({
        "algorithm": finding.algorithm,
        "version": finding.version,
        "finding": finding.finding,
        "score": f64::from(finding.score) / 1000.0,
        "location": finding.location,
        "priority": finding.priority.map(Priority::as_str),
        "user": user,
    })
}

fn of_keeps(keeps: &[Keep]) -> Value {
    keeps.iter().map(|keep| json!({ "modality": keep.modality, "seconds": keep.ms / 1000 })).collect()
}

fn of_hospital(user: &Name, hospital: &Hospital) -> Value {
    let Place { territory, department, region } = &hospital.place;
    json!({
        "finess": hospital.finess,
        "territory": territory,
        "department": department,
        "region": region,
        "regulate": hospital.regulate,
        "retention": of_keeps(&hospital.retention),
        "user": user,
    })
}

fn of_policy(user: &Name, policy: &Policy) -> Value {
    let share = |thousandths: u16| f64::from(thousandths) / 1000.0;
    let [territory, department, region] = policy.kept_for.map(share);
    let policy = json!({
        "kept_for_territory": territory,
        "kept_for_department": department,
        "kept_for_region": region,
        "kept_for_experts": share(policy.kept_for_experts),
        "critical_seconds": policy.critical_ms / 1000,
        "retention": of_keeps(&policy.retention),
        "unread_seconds": policy.unread_ms / 1000,
    });
    json!({ "policy": policy, "user": user })
}

/// The text of a command that a node without a quorum keeps for later, and whose it is.
pub(super) fn text_of(command: &Command) -> Option<(ExamId, &str)> {
    match command {
        Command::Complete { exam, report: text, .. }
        | Command::Report { exam, text, .. }
        | Command::Addend { exam, text, .. } => Some((*exam, text.as_str())),
        _ => None,
    }
}

/// What an answer means.
#[derive(Debug, PartialEq)]
pub(super) enum Means {
    Outcome(Outcome),
    /// Kept by that node's outbox, and not committed yet.
    Kept,
    /// Refused before it was proposed, and why: the documents say that nothing was changed.
    NotNow(&'static str),
    /// As when no answer comes: it may be done, or be done yet.
    Unknown,
    /// Nothing that the workload sends deserves this.
    Wrong(String),
}

/// Reads the answer to [`of_command`]'s request.
pub(super) fn outcome(command: &Command, answered: &Answered) -> Means {
    let said = answered.json();
    if answered.status == 202 {
        return Means::Kept;
    }
    if said["queued"] == false && !said["report"].is_number() {
        // That outbox has sent it meanwhile: what the mesh made of it is answered to a repeat.
        return Means::Unknown;
    }
    if answered.status.is_success() {
        return Means::Outcome(done(command, &said));
    }
    let (status, code) = (answered.status.as_u16(), said["code"].as_str().unwrap_or_default());
    if let Some(refusal) = refusal(status, code, &said) {
        return Means::Outcome(Outcome::Refused(refusal));
    }
    match (status, code) {
        (503, "no-quorum") => Means::NotNow("a command was refused for want of a quorum"),
        (503, "mesh-format") => Means::NotNow("a command was refused until all sites are upgraded"),
        // What could be proposed before the node had no place, or no room, to keep it.
        (503 | 504 | 507, _) | (500, "halted") => Means::Unknown,
        _ => Means::Wrong(format!("{} {said}", answered.status)),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

/// The number of a report or a remark, if there is one.
fn numbered(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// What was done, as a success says it.
fn done(command: &Command, said: &Value) -> Outcome {
    match command {
        Command::AddExam(_) | Command::Order { .. } => {
            Outcome::ExamAdded { exam: ExamId(number(&said["id"])), existed: said["existed"] == true }
        }
        Command::ClaimNext { .. }
        | Command::Next(_)
        | Command::ClaimTake { .. }
        | Command::Take { .. }
        | Command::TakeOver { .. } => {
            if said["granted"] == true {
                Outcome::Claimed(grant(said))
            } else {
                Outcome::NothingWaiting
            }
        }
        _ => match (numbered(&said["report"]), numbered(&said["remark"])) {
            (Some(report), _) => Outcome::Completed { report },
            (None, Some(remark)) => Outcome::Remarked { remark },
            (None, None) => Outcome::Done,
        },
    }
}

fn grant(said: &Value) -> Grant {
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
    Grant {
        exam: ExamId(number(&said["exam"]["id"])),
        workitem: numbered(&said["workitem"]).unwrap_or_default(),
        claim,
    }
}

/// The refusal that a problem stands for, if the mesh gave it; what of it is for people is left out.
fn refusal(status: u16, code: &str, said: &Value) -> Option<Refusal> {
    Some(match (status, code) {
        (503, "no-session") => Refusal::NoSession,
        (409, "conflict") => Refusal::AlreadyClaimed(Holder {
            user: Name::fitted(said["holder"]["user"].as_str().unwrap_or_default()),
            site: SiteId(number(&said["holder"]["site"])),
            site_name: Name::default(),
            since: Default::default(),
        }),
        (409, "wrong-state") => {
            let state = ExamState::ALL.into_iter().find(|state| said["state"] == state.as_str())?;
            Refusal::WrongState { state }
        }
        (409, "stale-token") => {
            Refusal::StaleToken { given: FencingToken(number(&said["given"])), kept_as: numbered(&said["kept_as"]) }
        }
        (403, "consent-refused") => Refusal::ConsentRefused,
        (403, "no-contract") => Refusal::NoContract,
        (403, "not-a-member") => Refusal::NotAMember,
        (404, "no-such-exam") => Refusal::NoSuchExam,
        (404, "no-such-remark") => Refusal::NoSuchRemark,
        (409, "done-already") => Refusal::DoneAlready,
        (409, "legal-hold") => Refusal::OnHold,
        (409, "retained") => Refusal::Retained { until: Default::default() },
        (422, "missing") => Refusal::Missing(Name::default()),
        (429, "too-many") => Refusal::TooMany(Name::default()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use maillage_consensus::exam::ReportKind;
    use maillage_consensus::ids::{Line, Prose};

    use super::*;

    const EXAM: ExamId = ExamId(7);

    fn user() -> Name {
        Name::fitted("reader-101")
    }

    fn answered(status: u16, body: Value) -> Answered {
        let status = StatusCode::from_u16(status).expect("a status");
        let body = body.to_string().into();
        Answered { status, content_type: String::new(), warning: false, is_for_other_sites: false, body }
    }

    fn complete() -> Command {
        Command::Complete { exam: EXAM, token: FencingToken(9), report: Prose::fitted("nothing") }
    }

    fn means(command: &Command, status: u16, code: &str) -> Means {
        outcome(command, &answered(status, json!({ "code": code })))
    }

    #[test]
    fn an_answer_that_leaves_open_what_was_done_is_as_none() {
        for command in [complete(), Command::ClaimTake { exam: EXAM }] {
            for (status, code) in
                [(504, "unknown-outcome"), (503, "busy"), (507, "not-recorded"), (500, "halted"), (503, "")]
            {
                assert_eq!(means(&command, status, code), Means::Unknown, "{status} {code}");
            }
            for code in ["no-quorum", "mesh-format"] {
                assert!(matches!(means(&command, 503, code), Means::NotNow(_)), "{code}");
            }
            assert_eq!(means(&command, 503, "no-session"), Means::Outcome(Refusal::NoSession.into()));
            assert!(matches!(means(&command, 422, "other-command"), Means::Wrong(_)));
            assert!(matches!(means(&command, 500, "internal"), Means::Wrong(_)));
        }
        assert_eq!(outcome(&complete(), &answered(202, json!({ "queued": true }))), Means::Kept);
        assert_eq!(outcome(&complete(), &answered(200, json!({ "queued": false, "report": null }))), Means::Unknown);
    }

    #[test]
    fn an_answer_says_what_the_mesh_decided() {
        let read = |command: &Command, status: u16, body: Value| match outcome(command, &answered(status, body)) {
            Means::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        };
        let reported = json!({ "done": true, "id": 7, "state": "reported", "report": 2 });
        assert_eq!(read(&complete(), 200, reported), Outcome::Completed { report: 2 });
        let cancel = Command::Cancel { exam: EXAM, reason: Line::fitted("no need") };
        assert_eq!(read(&cancel, 200, json!({ "done": true, "id": 7, "state": null })), Outcome::Done);
        let critical = Command::RaiseCritical { exam: EXAM, text: Default::default() };
        let remarked = json!({ "done": true, "id": 7, "state": "reported", "remark": 3 });
        assert_eq!(read(&critical, 200, remarked), Outcome::Remarked { remark: 3 });
        let stale = json!({ "code": "stale-token", "given": 9, "kept_as": 4 });
        let given = FencingToken(9);
        assert_eq!(read(&complete(), 409, stale), Outcome::Refused(Refusal::StaleToken { given, kept_as: Some(4) }));
        let next = Command::Next(Reader::default());
        assert_eq!(read(&next, 200, json!({ "granted": false, "exam": null })), Outcome::NothingWaiting);
        let claim = json!({ "user": "reader-101", "site": 3, "token": 12, "transaction_uid": "2.25.5" });
        let granted = json!({ "granted": true, "exam": { "id": 7 }, "workitem": 1, "token": 12, "claim": claim });
        let Outcome::Claimed(grant) = read(&next, 200, granted) else { panic!("a grant") };
        assert_eq!((grant.exam, grant.claim.token, grant.claim.site), (EXAM, FencingToken(12), SiteId(3)));
    }

    #[test]
    fn a_command_goes_to_its_address_under_its_id() {
        let id = CommandId::default();
        let address = |command: &Command| {
            let request = of_command(id, &user(), command).expect("a request");
            assert_eq!(request.headers()["idempotency-key"], id.0.to_string());
            format!("{} {}", request.method(), request.uri())
        };
        let report = Command::Report {
            exam: EXAM,
            token: FencingToken(9),
            kind: ReportKind::Preliminary,
            text: Prose::fitted("so far"),
            signature: Default::default(),
        };
        assert_eq!(text_of(&report), Some((EXAM, "so far")));
        assert_eq!(address(&report), "POST /api/v1/exams/7/report");
        let told = Command::Tell { exam: EXAM, remark: 3, whom: Line::fitted("dr b"), read_back: true };
        assert_eq!(address(&told), "POST /api/v1/exams/7/criticals/3/told");
        let hospital = Hospital {
            name: Line::fitted("archive 3"),
            finess: Default::default(),
            place: Place::default(),
            sites: Vec::new(),
            regulate: false,
            retention: Vec::new(),
        };
        assert_eq!(address(&Command::SetHospital(hospital)), "PUT /api/v1/hospitals/archive%203");
        assert!(of_command(id, &user(), &Command::Escalate { exam: EXAM, remark: 3 }).is_none(), "the leader's");
    }
}
