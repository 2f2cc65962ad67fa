//! A gateway's HTTP: health, metrics, `status`, its spool, and STOW-RS. Everything else is a centre's.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::wire::Position;
use super::{Gateway, ago};
use crate::http::{self, Intake, UPLOADS_MAX, rfc3339};
use crate::metrics::CONTENT_TYPE;
use crate::metrics::gateway::Scrape;

/// Rejected instances shown in one answer.
const REJECTS_SHOWN: usize = 100;
/// An instance that waits for so long is said: a link is down, or no centre takes it.
const WAITS_LONG: Duration = Duration::from_secs(60);
/// Above this share of the spool, in hundredths, it is said.
const NEARLY_FULL: u64 = 80;

/// The state of every route.
#[derive(Debug, Clone)]
struct Web {
    gateway: Gateway,
    uploads: Arc<Semaphore>,
}

impl FromRef<Web> for Intake {
    fn from_ref(web: &Web) -> Self {
        let gateway = &web.gateway;
        Self {
            ingest: gateway.ingest().clone(),
            metrics: gateway.metrics().clone(),
            uploads: Arc::clone(&web.uploads),
            instance_bytes_max: gateway.config().dicom.max_instance_mib.saturating_mul(1 << 20),
        }
    }
}

fn routes() -> Router<Web> {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(async |State(web): State<Web>| Json(status(&web.gateway))))
        .route("/api/v1/spool", get(async |State(web): State<Web>| Json(spool(&web.gateway))))
        .route("/dicom-web/studies", post(http::stow))
}

impl Gateway {
    fn web(&self) -> Web {
        Web { gateway: self.clone(), uploads: Arc::new(Semaphore::new(UPLOADS_MAX)) }
    }

    /// What is served on TCP.
    pub(super) fn local_router(&self) -> Router {
        http::local_router_of(routes(), self.web(), &self.config().http, self.metrics().clone())
    }

    /// What is served on the unix socket: the same, and administration.
    pub(super) fn control_router(&self) -> Router {
        let routes = routes().route("/admin/v1/spool/retry", post(retry));
        http::control_router_of(routes, self.web(), self.metrics().clone())
    }
}

/// 200 while images can be taken, or could be with more room; 500 when only a restart helps.
async fn livez(State(web): State<Web>) -> Response {
    match web.gateway.stats().is_failed {
        false => text(StatusCode::OK, "ok\n".to_owned()),
        true => text(StatusCode::INTERNAL_SERVER_ERROR, "halted: writing stopped\n".to_owned()),
    }
}

/// 503 when nothing can be taken; 200 and why while it is merely degraded. A link that is down is no reason to
/// send modalities away.
async fn readyz(State(web): State<Web>, RawQuery(query): RawQuery) -> Response {
    let verbose = query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")));
    let failed = web.gateway.stats().is_failed || !web.gateway.metrics().dicom_listening();
    let warnings = warnings(&web.gateway);
    let mut body = String::new();
    if verbose || failed {
        for warning in &warnings {
            body.push_str(&format!("{warning}\n"));
        }
    }
    body.push_str(if failed { "not ready\n" } else { "ready\n" });
    if !warnings.is_empty() && !failed {
        body.push_str("degraded\n");
    }
    text(if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, body)
}

fn text(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))], body).into_response()
}

async fn metrics(State(web): State<Web>) -> Response {
    let gateway = &web.gateway;
    let (counts, seen) = (gateway.schedule().counts(), *gateway.seen());
    let seconds = |duration: Option<Duration>, none: f64| duration.map_or(none, |duration| duration.as_secs_f64());
    gateway.metrics().gateway().set(&Scrape {
        instances: counts.by_state().into(),
        bytes: (counts.bytes, gateway.config().gateway.spool_bytes_max),
        oldest_s: seconds(gateway.oldest(), 0.0),
        centres: gateway.schedule().taker_count(),
        feed_age_s: seconds(seen.at.map(|at| at.elapsed()), f64::INFINITY),
        unacknowledged: seen.unacknowledged,
        free_bytes: gateway.stats().free,
    });
    let body = gateway.metrics().text();
    ([(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE))], body).into_response()
}

/// What a person should know, the worst first.
fn warnings(gateway: &Gateway) -> Vec<String> {
    let (counts, stats, config) = (gateway.schedule().counts(), gateway.stats(), gateway.config());
    let mut warnings = Vec::new();
    if stats.is_failed {
        warnings.push("the spool stopped writing after a failed write: restart maillage serve".to_owned());
    }
    if stats.is_mending {
        warnings.push("the spool's damaged index is being made anew: images are refused until it is".to_owned());
    }
    if let Err(error) = gateway.room()(0) {
        warnings.push(format!("images are refused: {error}"));
    } else if counts.bytes / NEARLY_FULL >= config.gateway.spool_bytes_max / 100 {
        warnings.push(format!("the spool is more than {NEARLY_FULL} % full"));
    }
    if gateway.schedule().taker_count() == 0 {
        let who = match config.gateway.centres.as_slice() {
            [] => "no centre".to_owned(),
            only => format!("none of gateway.centres ({})", only.join(", ")),
        };
        warnings.push(format!("{who} answers: images are taken and wait here"));
    }
    for name in gateway.unknown_centres() {
        warnings.push(format!("gateway.centres names {name:?}, and no centre of the mesh has this name"));
    }
    let home = &config.gateway.home;
    if !home.is_empty() && gateway.centres().values().all(|known| known.name != *home) {
        warnings.push(format!("gateway.home is {home:?}, and no centre of the mesh has this name"));
    }
    if let Some(oldest) = gateway.oldest().filter(|oldest| *oldest > WAITS_LONG) {
        warnings.push(format!("an instance has not been safe for {} s", oldest.as_secs()));
    }
    if counts.rejected > 0 {
        warnings.push(format!("{} instances are taken by no centre: maillage spool list", counts.rejected));
    }
    if stats.bad > 0 {
        warnings.push(format!("{} damaged chunks", stats.bad));
    }
    warnings
}

/// `GET /api/v1/status`
fn status(gateway: &Gateway) -> Value {
    let (counts, seen, stats) = (gateway.schedule().counts(), *gateway.seen(), gateway.stats());
    let mesh = gateway.mesh().clone();
    let current = gateway.schedule().current();
    let answering = gateway.schedule().answering();
    let centres = gateway.centres().clone();
    let rows = centres.iter().map(|(site, known)| {
        json!({
            "site": site,
            "name": known.name,
            "state": if answering.contains(site) { "answers" } else { "silent" },
            "allowed": gateway.schedule().may_have(*site),
            "used": current == Some(*site),
            "quorum": known.in_touch,
            "heard_ms": ago(known.heard),
            "rtt_ms": known.round_trip.map(|rtt| rtt.as_secs_f64() * 1000.0),
            "addresses": known.addresses,
        })
    });
    let rows: Vec<Value> = rows.collect();
    let warnings: Vec<Value> = warnings(gateway).into_iter().map(|what| json!({ "what": what })).collect();
    json!({
        "role": "gateway",
        "mesh": { "name": mesh.mesh_name, "id": mesh.mesh_id },
        "site": { "id": mesh.site_id, "name": mesh.site_name },
        "version": env!("CARGO_PKG_VERSION"),
        "centre": current.and_then(|site| centres.get(&site)).map(|known| &known.name),
        "centres": rows,
        "spool": {
            "instances": counts.by_state().iter().map(|(_, count)| count).sum::<u64>(),
            "waiting": counts.waiting,
            "in_flight": counts.in_flight,
            "pushed": counts.pushed,
            "safe": counts.safe,
            "rejected": counts.rejected,
            "bytes": counts.bytes,
            "bytes_max": gateway.config().gateway.spool_bytes_max,
            "oldest_ms": gateway.oldest().map(|oldest| u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX)),
            "free_bytes": stats.free,
            "stored_bytes": stats.bytes,
            "bad": stats.bad,
        },
        "feed": {
            "cursor": seen.position.map(cursor),
            "heard_ms": ago(seen.at),
            "delivered": seen.delivered,
            "unacknowledged": seen.unacknowledged,
        },
        "warnings": warnings,
    })
}

fn cursor(position: Position) -> String {
    match position {
        Position::Event { index, place } => format!("{index}.{place}"),
        Position::Exam { exam, .. } => format!("exam {exam}"),
    }
}

/// `GET /api/v1/spool`: what no centre takes, and why.
fn spool(gateway: &Gateway) -> Value {
    let rejects = gateway.schedule().rejects(REJECTS_SHOWN);
    let rejects = rejects.into_iter().map(|(key, spooled, reason)| {
        json!({
            "sop_instance": key.sop_instance,
            "study": spooled.study,
            "bytes": spooled.bytes,
            "source": spooled.source,
            "received_at": rfc3339(spooled.received_at.into()),
            "reason": reason,
        })
    });
    json!({ "rejected": rejects.collect::<Vec<_>>() })
}

/// `POST /admin/v1/spool/retry`: what was rejected is offered again.
async fn retry(State(web): State<Web>) -> Json<Value> {
    let again = web.gateway.schedule().retry(Instant::now());
    web.gateway.stir();
    Json(json!({ "done": true, "instances": again }))
}
