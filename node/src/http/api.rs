//! `/api/v1` and `/admin/v1`: JSON for the command line and for programs.
//!
//! Reads carry their age (see `reading`); every change is a command with an id, so that a client that
//! lost the answer repeats it under the same `Idempotency-Key` and learns the first outcome.

use axum::Router;
use axum::routing::{delete, get, post};

use super::app::App;

mod claims;
mod events;
mod exams;
pub(super) mod glass;
mod instances;
mod mesh;
mod studies;
mod tokens;

/// Routes of `/api/v1`.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/status", get(mesh::status))
        .route("/peers", get(mesh::peers))
        .route("/chunks", get(mesh::chunks))
        .route("/events", get(events::events))
        .route("/exams", get(exams::list).post(exams::add))
        .route("/exams/{id}", get(exams::show))
        .route("/exams/{id}/cancel", post(exams::cancel))
        .route("/exams/{id}/priority", post(exams::prioritise))
        .route("/exams/{id}/reconcile", post(exams::reconcile))
        .route("/claims/next", post(claims::next))
        .route("/exams/{id}/claim", post(claims::take))
        .route("/exams/{id}/release", post(claims::release))
        .route("/exams/{id}/report", post(claims::report))
        .route("/exams/{id}/break-glass", post(glass::take))
        .route("/break-glass", get(glass::list))
        .route("/outbox", get(glass::outbox))
        .route("/outbox/{id}", delete(glass::acknowledge))
        .route("/studies", get(studies::list))
        .route("/studies/{uid}", get(studies::show))
        .route("/studies/{uid}/fetch", post(studies::fetch))
        .route("/studies/{uid}/verify", post(studies::verify))
        .route("/instances", post(instances::receive))
}

/// Routes of `/admin/v1`, on the unix socket only.
pub(super) fn admin() -> Router<App> {
    Router::new()
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{key}", delete(tokens::revoke))
}
