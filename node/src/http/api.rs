//! `/api/v1` and `/admin/v1`: JSON for the command line and for programs.
//!
//! Reads carry their age (see `reading`); every change is a command with an id, so that a client that
//! lost the answer repeats it under the same `Idempotency-Key` and learns the first outcome. The routes are
//! a [`Table`], which makes both the router and the OpenAPI document: a route that is not in it is not served.

use std::sync::OnceLock;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::app::App;

mod audit;
pub(super) mod claims;
mod events;
mod exams;
pub(super) mod glass;
mod instances;
mod integrity;
mod life;
mod listing;
mod mesh;
mod partners;
mod placement;
mod remarks;
mod retention;
mod sheet;
mod statistics;
mod studies;
mod table;
mod tokens;

use table::Table;

/// Where `/api/v1` is served.
const BASE: &str = "/api/v1";

/// Routes of `/api/v1`.
pub(super) fn routes() -> Router<App> {
    table(Table::new(BASE)).router()
}

/// Routes of `/admin/v1`, on the unix socket only.
pub(super) fn admin() -> Router<App> {
    Table::new("/admin/v1")
        .get("/tokens", tokens::list, "Join tokens, used and ended ones included")
        .post("/tokens", tokens::create, "Make a join token; the one answer with the token itself")
        .delete("/tokens/{key}", tokens::revoke, "End a join token now")
        .get("/scrub", integrity::scrub, "Where the scrub stands, and what it found")
        .post("/scrub/start", integrity::start, "Go on scrubbing, or begin a pass now")
        .post("/scrub/pause", integrity::pause, "Scrub no more until it is started")
        .post("/verify", integrity::verify_all, "Read every byte of every pack, unopened; JSON lines of progress")
        .post("/repair", integrity::repair, "Bring back what is damaged or missing; JSON lines of progress")
        .put("/gateways/{name}", tokens::set_gateway, "Whose reports a hospital's gateway is given")
        .post("/audit/attest", audit::attest, "State this site's audit chain now")
        .router()
}

/// Everything under [`BASE`], documented if `empty` is.
fn table(empty: Table) -> Table {
    let table = empty.get("/openapi.json", openapi, "This document");
    let table = of_the_mesh(table);
    let table = of_exams(table);
    let table = without_quorum(of_claims(table));
    let table = of_placement(of_remarks(table));
    of_images(table)
}

fn of_the_mesh(table: Table) -> Table {
    table
        .get("/status", mesh::status, "The mesh, the queue and this node's storage")
        .get("/peers", mesh::peers, "A row for each site")
        .get("/chunks", mesh::chunks, "What this node's store holds")
        .get("/events", events::events, "Server-sent events: something changed")
        .get("/audit", audit::page, "Entries of the audit trail, a page at a time")
        .get("/audit/verify", audit::verify_all, "Whether the audit trail is whole")
        .get("/audit/export", audit::export, "The audit trail as FHIR AuditEvents or DICOM audit messages")
        .get("/hospitals", partners::list, "Partner hospitals")
        .get("/hospitals/{name}", partners::show, "One partner hospital")
        .put("/hospitals/{name}", partners::set, "Add or change a partner hospital")
        .get("/policy", partners::policy, "What the mesh agrees on for its waiting room")
        .put("/policy", partners::set_policy, "Agree on another policy")
        .get("/statistics", statistics::show, "Exact turnaround figures over a period")
}

fn of_exams(table: Table) -> Table {
    table
        .get("/exams", listing::list, "Exams, filtered, a page at a time")
        .post("/exams", exams::add, "Request an examination")
        .get("/exams/{id}", exams::show, "One exam whole")
        .post("/exams/{id}/cancel", exams::cancel, "Take an exam out of the queue")
        .post("/exams/{id}/priority", exams::prioritise, "Change how urgent an exam is")
        .post("/exams/{id}/reconcile", exams::reconcile, "Give unsolicited images to the exam that they belong to")
        .post("/exams/{id}/regulation", life::regulate, "Validate a request with a protocol, or refuse it")
        .post("/exams/{id}/acquisition", life::acquire, "The technologist begins to scan")
        .post("/exams/{id}/addendum", life::addend, "Add a word to the final report")
        .post("/exams/{id}/delivery", life::deliver, "The requesting physician has the report")
        .post("/exams/{id}/follow-up", life::follow_up, "What became of the patient")
        .post("/exams/{id}/legal-hold", retention::hold, "Keep the images, whatever their age")
        .post("/exams/{id}/legal-hold/release", retention::release, "Keep the images no longer than others")
        .post("/exams/{id}/purge", retention::purge, "Purge the images before their time is over")
}

fn of_claims(table: Table) -> Table {
    table
        .post("/claims/next", claims::next, "Claim the exam that this reader should read next")
        .post("/exams/{id}/claim", claims::take, "Claim one exam")
        .post("/exams/{id}/take-over", claims::take_over, "Take an exam from whoever has it, with a reason")
        .post("/exams/{id}/open", claims::open, "The reader has the exam before their eyes")
        .post("/exams/{id}/release", claims::release, "Give an exam back to the waiting room")
        .post("/exams/{id}/report", claims::report, "Write a preliminary or final report, signed by this site")
}

/// What a site does that is cut off from the quorum.
fn without_quorum(table: Table) -> Table {
    table
        .post("/exams/{id}/break-glass", glass::take, "Take an exam without a quorum, with a reason")
        .get("/break-glass", glass::list, "Exams taken by break glass here, and what became of them")
        .get("/outbox", glass::outbox, "What waits here to be sent to the mesh, and how the rest ended")
        .delete("/outbox/{id}", glass::acknowledge, "A person has taken note of how an entry ended")
}

fn of_remarks(table: Table) -> Table {
    table
        .post("/exams/{id}/notes", remarks::note, "A note between centres")
        .post("/exams/{id}/opinions", remarks::ask_opinion, "Ask a colleague to look too")
        .post("/exams/{id}/opinions/{remark}/answer", remarks::give_opinion, "Give a second opinion")
        .post("/exams/{id}/findings", remarks::add_finding, "An algorithm's result")
        .post("/exams/{id}/criticals", remarks::raise_critical, "A result of which somebody must be told at once")
        .post("/exams/{id}/criticals/{remark}/told", remarks::tell_critical, "Somebody was told of it")
        .post("/exams/{id}/discrepancies", remarks::raise_discrepancy, "Two readings differ")
        .post("/exams/{id}/discrepancies/{remark}/told", remarks::tell_discrepancy, "The physician was told of it")
        .get("/criticals", remarks::open_criticals, "Critical results of which nobody has been told")
}

fn of_placement(table: Table) -> Table {
    table
        .get("/placement", placement::show, "Where copies may lie: the layout that holds, and the one that is staged")
        .put("/placement/copies", placement::set_copies, "Stage another number of copies")
        .put("/placement/zones", placement::set_zones, "Stage another number of zones")
        .put("/placement/sites/{name}", placement::set_share, "Stage what a site takes")
        .put("/placement/contracts/{origin}", placement::set_contract, "Stage who may hold what a site receives")
        .post("/placement/contracts/{origin}/end", placement::end_contract, "Stage the end of a contract")
        .get("/placement/diff", placement::diff, "What the staged layout would move and make impossible")
        .post("/placement/apply", placement::apply, "Let the staged layout hold, by the version that was looked at")
        .post("/placement/revert", placement::revert, "Drop the staged layout")
        .post("/placement/sites/{name}/drain", placement::drain, "Move a site's copies elsewhere")
        .post("/placement/sites/{name}/undrain", placement::undrain, "Give a site copies again")
        .get("/placement/counts", placement::counts, "Copies of all images, as they are beside as they should be")
        .get("/placement/under", placement::under, "Images with too few copies, a page at a time")
        .get("/placement/studies/{uid}", placement::locate, "Who holds each part of a study, and who should")
}

fn of_images(table: Table) -> Table {
    table
        .get("/studies", studies::list, "Studies, a page at a time")
        .get("/studies/{uid}", studies::show, "One study, its parts, and who holds each")
        .post("/studies/{uid}/fetch", studies::fetch, "Bring a study here; JSON lines of progress")
        .post("/studies/{uid}/verify", studies::verify, "Read, hash and open everything of a study that is here")
        .post("/instances", instances::receive, "Take in one DICOM file")
}

/// `GET /openapi.json`
async fn openapi() -> Response {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let document = DOCUMENT.get_or_init(|| table(Table::documented(BASE)).document().to_string());
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (kind, document.as_str()).into_response()
}

#[cfg(test)]
mod tests;
