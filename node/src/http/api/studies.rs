//! Studies: where their images are, bringing them here, and reading them all again.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_store::Hash;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::copies;
use crate::http::app::{App, try_place};
use crate::http::extract::{UrlPath, UrlQuery, parse_uid};
use crate::http::problem::Problem;
use crate::http::reading::{FreshQuery, Read};
use crate::http::rfc3339::rfc3339;
use crate::http::summary::Summaries;
use crate::images::{Elsewhere, FetchedStudy};

/// Studies in one answer, unless fewer are asked for.
const LIST_DEFAULT: usize = 100;
/// The most studies in one answer.
const LIST_MAX: usize = 1000;
/// Progress lines that a slow client may be behind; further ones are left out.
const PROGRESS_LINES: usize = 16;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    after: Option<String>,
    #[serde(default)]
    fresh: bool,
}

/// `GET /studies?limit=&after=`: in the order of their UIDs, with `next` to continue from.
pub(super) async fn list(State(app): State<App>, UrlQuery(query): UrlQuery<ListQuery>) -> Result<Read<Value>, Problem> {
    let after = query.after.as_deref().map(|uid| parse_uid("after", uid)).transpose()?;
    let limit = query.limit.unwrap_or(LIST_DEFAULT).clamp(1, LIST_MAX);
    let site = app.node.site();
    app.read(query.fresh, |view| {
        let wanted = view.mesh()?.map_or(0, |mesh| mesh.copies);
        let studies = view.studies(after.as_ref().map(maillage_dicom::Uid::as_str), limit)?;
        let next = studies.last().filter(|_| studies.len() == limit).map(|study| study.uid.clone());
        let studies: Vec<Value> = studies.iter().map(|study| study_json(study, wanted, site)).collect();
        Ok(json!({ "studies": studies, "next": next }))
    })
    .await
}

/// `GET /studies/{uid}`: the study, its parts, and who holds each.
pub(super) async fn show(
    State(app): State<App>,
    UrlPath(uid): UrlPath<String>,
    UrlQuery(query): UrlQuery<FreshQuery>,
) -> Result<Read<Value>, Problem> {
    let uid = parse_uid("study", &uid)?;
    let site = app.node.site();
    let read = app.read(query.fresh, |view| {
        let Some(study) = view.study(uid.as_str())? else { return Ok(None) };
        let summaries = Summaries::new(view, site)?;
        let mut shown = study_json(&study, view.mesh()?.map_or(0, |mesh| mesh.copies), site);
        shown["part_list"] = study.parts.iter().map(|held| part_json(held, &summaries)).collect();
        Ok(Some(shown))
    });
    read.await?.try_map(|shown| shown.ok_or_else(unknown))
}

fn study_json(study: &Study, wanted: u8, site: SiteId) -> Value {
    let parts = &study.parts;
    let mut exams: Vec<_> = parts.iter().map(|held| held.exam).collect();
    exams.sort_unstable();
    exams.dedup();
    json!({
        "uid": study.uid,
        "exams": exams,
        "parts": parts.len(),
        "instances": parts.iter().map(|held| u64::from(held.part.instances)).sum::<u64>(),
        "bytes": parts.iter().map(|held| held.part.bytes).sum::<u64>(),
        "received_at": parts.iter().map(|held| held.part.first_received_at).min().map(rfc3339),
        "copies": study.copies(),
        "copies_wanted": wanted,
        "images_here": !parts.is_empty() && parts.iter().all(|held| held.holders.contains(&site)),
    })
}

fn part_json(held: &HeldPart, summaries: &Summaries<'_>) -> Value {
    let named = |site: SiteId| json!({ "site": site, "site_name": summaries.name(site) });
    json!({
        "origin": named(held.origin),
        "exam": held.exam,
        "manifest": Hash(held.part.manifest).to_string(),
        "sequence": held.part.sequence,
        "instances": held.part.instances,
        "bytes": held.part.bytes,
        "first_received_at": rfc3339(held.part.first_received_at),
        "last_received_at": rfc3339(held.part.last_received_at),
        "holders": held.holders.iter().copied().map(named).collect::<Vec<_>>(),
    })
}

fn unknown() -> Problem {
    Problem::no_such_study("the mesh knows no such study")
}

/// `POST /studies/{uid}/fetch`: brings the whole study here. JSON lines: `{"done":…,"total":…}` in bytes,
/// then `{"complete":true,…}`, or `{"complete":false,"problem":{…}}`. Ends when the client leaves; what
/// came so far stays.
pub(super) async fn fetch(State(app): State<App>, UrlPath(uid): UrlPath<String>) -> Result<Response, Problem> {
    let uid = parse_uid("study", &uid)?;
    if app.node.read(|view| view.study(uid.as_str()))?.is_none() {
        return Err(unknown());
    }
    let place = try_place(&app.limits.retrievals, "retrievals")?;
    let (progress, done) = mpsc::channel(PROGRESS_LINES);
    let (last, result) = mpsc::channel(1);
    maillage_host::spawn(async move {
        let _place = place;
        let work = async {
            let line = match app.node.images().fetch(uid.as_str(), progress).await {
                Ok(Some(fetched)) => {
                    let recorded = record_holdings(&app, &fetched).await;
                    let report = fetched.report;
                    match fetched.failed {
                        Some(error) => json!({ "complete": false, "problem": Problem::from(error).to_json() }),
                        None => json!({
                        "complete": true,
                        "instances": report.instances,
                        "bytes": report.bytes,
                        "fetched": report.fetched,
                        "holding_recorded": recorded,
                        }),
                    }
                }
                Ok(None) => json!({ "complete": false, "problem": unknown().to_json() }),
                Err(error) => json!({ "complete": false, "problem": Problem::from(error).to_json() }),
            };
            // A client that left needs no last line.
            let _ = last.send(line).await;
        };
        tokio::select! {
            () = work => {}
            () = last.closed() => {}
        }
    });
    let lines = ReceiverStream::new(done).map(|(done, total)| json!({ "done": done, "total": total }));
    let lines = lines.chain(ReceiverStream::new(result));
    let body = Body::from_stream(lines.map(|line| Ok::<_, Infallible>(Bytes::from(format!("{line}\n")))));
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))];
    Ok((kind, body).into_response())
}

/// Tells the mesh that this site now holds what it fetched. Without a quorum that is told later, by
/// the reconciler: the images are here all the same.
async fn record_holdings(app: &App, fetched: &FetchedStudy) -> bool {
    let mut recorded = true;
    for held in &fetched.new_holdings {
        if let Err(error) = copies::report(&app.node, &held.part, true).await {
            let (study, error) = (held.part.study.as_str(), format!("{error:#}"));
            tracing::warn!(study, error, "fetched images are not recorded yet");
            recorded = false;
        }
    }
    recorded
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyQuery {
    #[serde(default)]
    everywhere: bool,
}

/// `POST /studies/{uid}/verify?everywhere=`: reads, hashes and opens all of the study that is here, and says of what is
/// not here where it is; everywhere, also what each other holder has, which comes over the network.
pub(super) async fn verify(
    State(app): State<App>,
    UrlPath(uid): UrlPath<String>,
    UrlQuery(query): UrlQuery<VerifyQuery>,
) -> Result<Json<Value>, Problem> {
    let uid = parse_uid("study", &uid)?;
    let _place = try_place(&app.limits.retrievals, "retrievals")?;
    let images = app.node.images();
    let here = images.verify(uid.as_str()).await?.ok_or_else(unknown)?;
    // The mesh may not know it yet: then it is nowhere else.
    let elsewhere =
        if query.everywhere { Some(images.verify_elsewhere(uid.as_str()).await?.unwrap_or_default()) } else { None };
    let (not_here, sites) = app.node.read(|view| {
        let summaries = Summaries::new(view, app.node.site())?;
        let not_here: Vec<Value> = here.not_here.iter().map(|held| part_json(held, &summaries)).collect();
        let sites: Option<Vec<Value>> =
            elsewhere.as_ref().map(|sites| sites.iter().map(|site| elsewhere_json(site, &summaries)).collect());
        Ok((not_here, sites))
    })?;
    let report = &here.report;
    let mut shown = json!({
        "study": uid.as_str(),
        "complete": here.is_complete(),
        "here": here.is_here(),
        "instances": report.instances,
        "chunks": report.chunks,
        "bytes": report.bytes,
        "unpublished": here.unpublished,
        "landing": here.landing,
        "landing_lost": here.landing_lost,
        "missing": named(&report.missing),
        "corrupt": named(&report.corrupt),
        "contradictory": named(&report.contradictory),
        "unopened": named(&report.unopened),
        "not_here": not_here,
    });
    if let (Some(elsewhere), Some(sites)) = (elsewhere, sites) {
        // Nobody could be asked for what nobody is noted to hold.
        let is_somewhere = here.not_here.iter().all(|held| !held.holders.is_empty());
        let is_complete = here.is_complete() && is_somewhere && elsewhere.iter().all(Elsewhere::is_complete);
        shown["complete"] = json!(is_complete);
        shown["elsewhere"] = json!(sites);
    }
    Ok(Json(shown))
}

fn named(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(ToString::to_string).collect()
}

/// `state` is `complete`, `damaged` (some of it cannot be read there, or was other bytes), `incomplete`, or
/// `unreachable`: it could not be asked to the end, for `why`.
fn elsewhere_json(found: &Elsewhere, summaries: &Summaries<'_>) -> Value {
    let state = match found {
        found if found.is_complete() => "complete",
        found if !found.damaged.is_empty() => "damaged",
        found if found.unreachable.is_some() => "unreachable",
        _ => "incomplete",
    };
    json!({
        "site": found.site,
        "site_name": summaries.name(found.site),
        "state": state,
        "objects": found.objects,
        "bytes": found.bytes,
        "missing": named(&found.missing),
        "damaged": named(&found.damaged),
        "why": found.unreachable,
    })
}
