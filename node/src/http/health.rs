//! `/livez`, `/readyz`, `/metrics`: for load balancers, supervisors and Prometheus.
//!
//! A node is ready as long as it can serve readers: the loss of the quorum, or of room for images,
//! degrades it and says so, with 200, because taking it out of service would make things worse.

use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::exam::ExamState;
use maillage_consensus::raft::Role;
use maillage_store::{Stats, StoreError};

use super::app::App;
use super::reading::milliseconds;
use super::status::{MeshStatus, Reach, is_cut_off};
use crate::duties::{attest, clocks};
use crate::metrics::{CONTENT_TYPE, Scrape};
use crate::outbox::Outbox;

/// What is said of a store that makes its index anew.
const MENDING: &str = "the index is being made anew: no image is taken meanwhile";

/// How well a part does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Ok,
    Degraded,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: &'static str,
    condition: Condition,
    says: String,
}

/// `GET /livez`: 200 while the process can do its work; 500 when only a restart helps.
pub(super) async fn livez(State(app): State<App>) -> Response {
    match app.node.group_status().fatal {
        None => text(StatusCode::OK, "ok\n".to_owned()),
        Some(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("halted: {why}\n")),
    }
}

/// `GET /readyz`, `GET /readyz?verbose`: 503 only when this node can serve nobody.
pub(super) async fn readyz(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let verbose = query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")));
    let stats = app.node.store().stats().await;
    report(&parts(&app, stats), verbose)
}

fn parts(app: &App, stats: Result<Stats, StoreError>) -> Vec<Part> {
    let (group, age) = (app.node.group_status(), app.node.age());
    let reserve = app.node.config().storage.reserve_mib.saturating_mul(1 << 20);
    let part = |name, condition, says: String| Part { name, condition, says };
    let raft = match group.fatal {
        Some(why) => part("raft", Condition::Failed, format!("halted: {why}")),
        None => part("raft", Condition::Ok, format!("term {}, applied {}", group.term, group.applied.unwrap_or(0))),
    };
    let says = age.map_or("no quorum heard yet".to_owned(), |age| format!("heard {} ms ago", milliseconds(age)));
    let condition = if is_cut_off(age) { Condition::Degraded } else { Condition::Ok };
    let quorum = part("quorum", condition, says);
    let listening = app.node.metrics().dicom_listening();
    let dicom = match listening {
        true => part("dicom", Condition::Ok, "listening".to_owned()),
        false => part("dicom", Condition::Degraded, "not listening".to_owned()),
    };
    let mut parts = vec![raft, quorum, dicom, outbox(app.node.outbox())];
    parts.extend(agreement(app));
    match stats {
        Err(_) if app.node.store().is_mending() => parts.push(part("store", Condition::Degraded, MENDING.to_owned())),
        Err(error) => parts.push(part("store", Condition::Failed, error.to_string())),
        Ok(stats) => {
            let (condition, says) = match stats.bad {
                _ if stats.is_failed => (Condition::Failed, "writing stopped".to_owned()),
                _ if stats.is_mending => (Condition::Degraded, MENDING.to_owned()),
                0 => (Condition::Ok, format!("{} chunks", stats.chunks)),
                bad => (Condition::Degraded, format!("{bad} damaged chunks await repair")),
            };
            parts.push(part("store", condition, says));
            let condition = if stats.stuck > 0 { Condition::Degraded } else { Condition::Ok };
            let says = format!("{} MiB to be coded, {} images cannot be", stats.landing >> 20, stats.stuck);
            parts.push(part("landing", condition, says));
            let condition = if stats.free < reserve { Condition::Degraded } else { Condition::Ok };
            let says = format!("{} MiB free, reserve {} MiB", stats.free >> 20, reserve >> 20);
            parts.push(part("disk", condition, says));
        }
    }
    parts
}

/// Whether the replicas agree, and the clocks.
fn agreement(app: &App) -> [Part; 2] {
    let part = |name, degraded, says| {
        let condition = if degraded { Condition::Degraded } else { Condition::Ok };
        Part { name, condition, says }
    };
    let read = app.node.read(|view| Ok((attest::disagreeing(view)?, view.sites()?)));
    let (audit, sites) = match read {
        Err(error) => (part("audit", true, error.to_string()), Vec::new()),
        Ok((disagreeing, sites)) if disagreeing.is_empty() => {
            (part("audit", false, "no site disagrees".to_owned()), sites)
        }
        Ok((disagreeing, sites)) => {
            let disagreeing: Vec<String> = disagreeing.iter().map(ToString::to_string).collect();
            (part("audit", true, format!("the state differs from that of site {}", disagreeing.join(", "))), sites)
        }
    };
    let clock = match clocks::ahead_ms(&app.node, &sites) {
        None => part("clock", false, "not compared".to_owned()),
        Some(ahead) => {
            let off = clocks::is_off(ahead, app.node.config().raft.clock_offset_max_ms);
            part("clock", off, format!("{ahead} ms ahead of the others"))
        }
    };
    [audit, clock]
}

/// What waits in the outbox is as it should be; what nobody has acknowledged, or a journal that takes
/// nothing, is not.
fn outbox(outbox: &Outbox) -> Part {
    let counts = outbox.book().counts();
    let (condition, says) = match (outbox.failure(), counts.unacknowledged) {
        (Some(why), _) => (Condition::Degraded, why),
        (None, 0) => (Condition::Ok, format!("{} entries wait to be sent", counts.waiting)),
        (None, failed) => {
            (Condition::Degraded, format!("{} entries wait to be sent, {failed} await a person", counts.waiting))
        }
    };
    Part { name: "outbox", condition, says }
}

fn report(parts: &[Part], verbose: bool) -> Response {
    let worst = parts.iter().map(|part| part.condition).max().unwrap_or(Condition::Ok);
    let word = |condition| match condition {
        Condition::Ok => "ok",
        Condition::Degraded => "degraded",
        Condition::Failed => "failed",
    };
    let status = if worst == Condition::Failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let mut body = String::new();
    if verbose || worst == Condition::Failed {
        for part in parts {
            body.push_str(&format!("{} {}: {}\n", part.name, word(part.condition), part.says));
        }
    }
    body.push_str(if worst == Condition::Failed { "not ready\n" } else { "ready\n" });
    if worst == Condition::Degraded {
        body.push_str("degraded\n");
    }
    text(status, body)
}

fn text(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))], body).into_response()
}

/// `GET /metrics`. What cannot be read just now is left at zero rather than failing the scrape.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let storage = app.node.store().stats().await.unwrap_or_default();
    let (group, scrub) = (app.node.group_status(), app.node.scrub().status());
    let mut scrape = Scrape {
        term: group.term,
        leads: group.role == Role::Leader,
        committed: group.committed.unwrap_or(0),
        applied: group.applied.unwrap_or(0),
        quorum_age: app.node.age(),
        store_bytes: storage.bytes,
        store_chunks: storage.chunks,
        store_bad_chunks: storage.bad,
        store_free_bytes: storage.free,
        landing_bytes: storage.landing,
        landing_lost: storage.stuck,
        scrub_repaired: storage.repaired,
        scrub_unrepaired: scrub.unrepaired,
        scrub_age: scrub.age(app.node.clock().now()),
        ..Scrape::default()
    };
    scrape.outbox = app.node.outbox().book().counts().by_state().into();
    if let Ok(status) = app.node.read(|view| MeshStatus::gather(&app.node, view, storage)) {
        let mut counts = status.counts;
        scrape.exams = ExamState::ALL.map(|state| (state.as_str(), *counts.of(state))).into();
        scrape.studies_below_two = counts.studies_below_two;
        scrape.studies_below_wanted = counts.studies_below_wanted;
        scrape.studies_confined = counts.more.studies_confined;
        scrape.mesh_format = status.format();
        scrape.audit_disagreements = status.disagreeing.len();
        scrape.clock_ahead_ms = status.clock_ahead_ms;
        scrape.peers_connected = status.sites.iter().filter(|row| row.reach == Reach::Connected).count();
    }
    let body = app.node.metrics().encode(&scrape);
    ([(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE))], body).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn check(conditions: &[Condition], verbose: bool, status: u16, body: &str) {
        let parts: Vec<Part> = conditions
            .iter()
            .zip(["raft", "quorum", "store"])
            .map(|(&condition, name)| Part { name, condition, says: "…".to_owned() })
            .collect();
        let answer = report(&parts, verbose);
        assert_eq!(answer.status().as_u16(), status);
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(String::from_utf8_lossy(&bytes), body);
    }

    #[tokio::test]
    async fn a_degraded_node_is_ready_and_a_failed_one_is_not() {
        check(&[Condition::Ok, Condition::Ok], false, 200, "ready\n").await;
        check(&[Condition::Ok, Condition::Degraded], false, 200, "ready\ndegraded\n").await;
        let body = "raft ok: …\nquorum degraded: …\nready\ndegraded\n";
        check(&[Condition::Ok, Condition::Degraded], true, 200, body).await;
        let body = "raft failed: …\nquorum degraded: …\nnot ready\n";
        check(&[Condition::Failed, Condition::Degraded], false, 503, body).await;
    }
}
