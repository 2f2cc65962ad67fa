//! The HTTP side of a node: the worklist page, the API, DICOMweb, health and metrics.
//!
//! Two routers share their handlers: [`local_router`] on TCP, behind the [`guard`], and
//! [`control_router`] on the unix socket, which adds `/admin/v1`. Handlers translate and nothing more:
//! what may happen is decided by the replicated state, and how errors look is decided in [`problem`].
//!
//! ```text
//! server (connections, timeouts) -> guard (host, origin, headers) -> count -> route -> node
//! ```

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::node::Node;

mod api;
mod app;
mod body;
mod commitment;
mod cookie;
mod dicomweb;
mod extract;
mod guard;
mod health;
mod media;
mod multipart;
mod negotiate;
mod page;
mod problem;
mod reading;
pub(crate) mod rfc3339;
mod server;
mod signing;
mod status;
mod stow;
mod summary;
mod ups;
mod words;

pub(crate) use media::MediaType;
pub(crate) use multipart::{PartReader, Piece};
pub(crate) use problem::Problem;
pub(crate) use rfc3339::rfc3339;
pub use server::Remote;
pub(crate) use server::{bind_control, serve_tcp, serve_unix};

use app::App;
pub(crate) use status::is_cut_off;
pub(crate) use stow::{Intake, store as stow};

use guard::{AllowedHosts, Guard, check_source, secure};

/// Uploads in memory at once. Each may hold one instance of the largest size allowed; more wait.
pub(crate) const UPLOADS_MAX: usize = 8;
/// Event streams open at once: several pages on each of a centre's seats.
const EVENT_STREAMS_MAX: usize = 256;
/// Retrievals at once, each with a few chunks in memory.
const RETRIEVALS_MAX: usize = 64;

/// Walks of the whole audit trail at once: each reads millions of entries from the disk.
const AUDITS_MAX: usize = 2;

/// What is served on TCP: everything but administration, and only to this node's own pages and to
/// programs that are no browsers.
pub(crate) fn local_router(node: Node) -> Router {
    let (metrics, config) = (node.metrics().clone(), node.config().http.clone());
    local_router_of(routes(), App::new(node, limits()), &config, metrics)
}

/// As [`local_router`], of a node with routes of its own.
pub(crate) fn local_router_of<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    state: S,
    config: &crate::config::Http,
    metrics: Metrics,
) -> Router {
    let guard = Guard { hosts: AllowedHosts::new(config.listen, &config.hosts()), metrics: metrics.clone() };
    finish(routes, state, metrics)
        .layer(middleware::from_fn_with_state(guard, check_source))
        .layer(middleware::from_fn(secure))
}

/// As [`control_router`], of a node with routes of its own.
pub(crate) fn control_router_of<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    state: S,
    metrics: Metrics,
) -> Router {
    finish(routes, state, metrics).layer(middleware::from_fn(secure))
}

/// What is served on the unix socket: the same, and administration.
pub(crate) fn control_router(node: Node) -> Router {
    let metrics = node.metrics().clone();
    let app = App::control(node, limits());
    control_router_of(routes().nest("/admin/v1", api::admin()), app, metrics)
}

/// How much may be under way at once.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Uploads.
    pub(crate) uploads: Arc<Semaphore>,
    /// Event streams.
    pub(crate) event_streams: Arc<Semaphore>,
    /// Retrievals.
    pub(crate) retrievals: Arc<Semaphore>,
    /// Walks of the whole audit trail.
    pub(crate) audits: Arc<Semaphore>,
}

fn limits() -> Limits {
    Limits {
        uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
        event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        retrievals: Arc::new(Semaphore::new(RETRIEVALS_MAX)),
        audits: Arc::new(Semaphore::new(AUDITS_MAX)),
    }
}

fn routes() -> Router<App> {
    Router::new()
        .nest("/api/v1", api::routes())
        .merge(page::routes())
        .merge(ups::routes())
        .merge(commitment::routes())
        .route("/dicom-web/studies", post(stow::store))
        .route("/dicom-web/studies/{study}", get(dicomweb::study))
        .route("/dicom-web/studies/{study}/series/{series}", get(dicomweb::series))
        .route("/dicom-web/studies/{study}/series/{series}/instances/{instance}", get(dicomweb::instance))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
}

fn finish<S: Clone + Send + Sync + 'static>(routes: Router<S>, app: S, metrics: Metrics) -> Router {
    routes
        .fallback(async || Problem::not_found("no such address"))
        .method_not_allowed_fallback(async || Problem::method("see the documentation of this address"))
        .with_state(app)
        .layer(middleware::from_fn_with_state(metrics, count))
}

/// Counts each answer by its route's pattern, so that no path from outside becomes a label.
async fn count(State(metrics): State<Metrics>, matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let method = method_label(request.method());
    let response = next.run(request).await;
    let route = matched.as_ref().map_or("(none)", MatchedPath::as_str);
    metrics.http_request(route, method, response.status().as_u16());
    if let Some(problem) = response.extensions().get::<Problem>() {
        if refused_as_sent(problem) {
            metrics.rejected("http", problem.code());
        }
        // The detail may name what a person asked for; the code never does.
        tracing::debug!(route, method, status = %problem.status(), code = problem.code(), "answered with a problem");
    }
    response
}

/// Whether the request itself was at fault. DICOM files that are refused are counted by the ingest.
fn refused_as_sent(problem: &Problem) -> bool {
    matches!(problem.status().as_u16(), 400 | 406 | 408 | 413 | 415) && problem.code() != "rejected"
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
