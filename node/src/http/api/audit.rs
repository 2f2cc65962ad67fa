//! The audit trail: `/audit`, `/audit/verify`, `/audit/export`.

use std::collections::VecDeque;
use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use maillage_consensus::View;
use maillage_consensus::audit::Attestation;
use maillage_consensus::command::{Command, UnixMillisField};
use maillage_consensus::ids::Name;
use maillage_consensus::machine::ApplyError;
use maillage_host::offload;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};
use tokio::sync::OwnedSemaphorePermit;

use crate::audit::{Described, Names, fhir_event, syslog_line, verify};
use crate::http::app::{App, try_place};
use crate::http::extract::{Idempotency, UrlQuery};
use crate::http::problem::Problem;
use crate::http::reading::Read;
use crate::http::rfc3339::rfc3339;
use crate::node::Node;

/// Entries in an answer when the client says nothing.
const LIMIT_DEFAULT: usize = 100;
/// The most entries in an answer: about 1 MB.
const LIMIT_MAX: usize = 1_000;
/// Entries of an export that are read at once.
const PAGE: usize = 500;

/// What of the trail is asked for.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct PageQuery {
    after: Option<u64>,
    before: Option<u64>,
    limit: Option<usize>,
    #[serde(default)]
    fresh: bool,
}

/// `GET /audit?after=`: entries after an index, oldest first; `GET /audit?before=`, or neither: those
/// before it, newest first.
pub(super) async fn page(State(app): State<App>, UrlQuery(query): UrlQuery<PageQuery>) -> Result<Read<Value>, Problem> {
    if query.after.is_some() && query.before.is_some() {
        return Err(Problem::invalid("either `after` or `before`, not both"));
    }
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX);
    let node = app.node.clone();
    let read = app.read(query.fresh, |view| {
        let links = match query.after {
            Some(after) => view.audit(after, limit)?,
            // There is nothing beyond what is applied, and a window so far away would hold nothing.
            None => view.audit_back(before_within(&node, query.before), limit)?,
        };
        let names = Names::read(view)?;
        let is_last = links.len() < limit;
        let entries: Result<Vec<_>, ApplyError> =
            links.into_iter().map(|link| Described::new(view, &names, link)).collect();
        Ok((entries?, is_last))
    });
    read.await?.try_map(|(entries, is_last)| {
        let next = entries.last().filter(|_| !is_last).map(|last| last.entry().index);
        Ok(json!({ "entries": entries.iter().map(entry_json).collect::<Vec<_>>(), "next": next }))
    })
}

fn before_within(node: &Node, before: Option<u64>) -> u64 {
    let end = node.group().applied().saturating_add(1);
    before.map_or(end, |before| before.min(end))
}

fn entry_json(described: &Described) -> Value {
    let entry = described.entry();
    json!({
        "index": entry.index,
        "at": rfc3339(entry.at),
        "site": entry.site,
        "site_name": described.site,
        "user": entry.user,
        "id": entry.id,
        "kind": entry.kind,
        "exam": entry.exam,
        "why": entry.why,
        "outcome": entry.outcome,
        "command": hex(&entry.command),
        "writes": hex(&entry.writes),
        "chain": hex(&described.link.chain),
    })
}

fn hex(bytes: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// `GET /audit/verify`: walks the whole chain of this node, and says what the other sites attested.
pub(super) async fn verify_all(State(app): State<App>) -> Result<Read<Value>, Problem> {
    let _place = try_place(&app.limits.audits, "walks of the audit trail")?;
    let node = app.node.clone();
    let walked = offload(move || {
        let found = node.read(|view| Ok((verify(view)?, view.attestations()?, Names::read(view)?)));
        Ok::<_, io::Error>(found)
    });
    let (verdict, attestations, names) = walked.await.map_err(|error| Problem::internal(error.to_string()))??;
    let attested = |said: &Attestation| {
        json!({
            "site": said.site, "site_name": names.of(said.site), "index": said.index, "at": rfc3339(said.at),
            "agrees": said.agrees,
        })
    };
    let value = json!({
        "entries": verdict.entries,
        "last": verdict.last,
        "chain": hex(&verdict.chain),
        "broken": verdict.broken.map(|(index, why)| json!({ "index": index, "why": why })),
        "attestations": attestations.iter().map(attested).collect::<Vec<_>>(),
    });
    app.read(false, |_| Ok(value)).await
}

/// `POST /admin/v1/audit/attest`: this site says now what its chain is, instead of within ten minutes, so
/// that every site compares.
pub(super) async fn attest(State(app): State<App>, Idempotency(id): Idempotency) -> Result<Json<Value>, Problem> {
    let newest = app.node.read(|view| view.audit_back(before_within(&app.node, None), 1))?.pop();
    let (index, chain) = newest.map_or((0, [0; 32]), |link| (link.entry.index, link.chain));
    app.command(id, Name::default(), Command::Attest { index, chain }).await?;
    Ok(Json(json!({ "index": index, "chain": hex(&chain) })))
}

/// How the trail is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Format {
    /// FHIR R4 `AuditEvent`, one a line.
    Fhir,
    /// The same in one `Bundle`.
    FhirBundle,
    /// DICOM audit messages as syslog lines.
    Dicom,
}

impl Format {
    fn media_type(self) -> &'static str {
        match self {
            Self::Fhir => "application/fhir+ndjson",
            Self::FhirBundle => "application/fhir+json",
            Self::Dicom => "text/plain; charset=utf-8",
        }
    }
}

/// What is to be exported.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ExportQuery {
    format: Format,
    from: Option<String>,
    to: Option<String>,
}

/// `GET /audit/export?format=fhir|fhir-bundle|dicom&from=&to=`: entries from a time on, before another,
/// streamed; each time is RFC 3339, or a date, which begins at 00:00 UTC.
pub(super) async fn export(
    State(app): State<App>,
    UrlQuery(query): UrlQuery<ExportQuery>,
) -> Result<Response, Problem> {
    let from = query.from.as_deref().map(moment).transpose()?.unwrap_or_default();
    let to = query.to.as_deref().map(moment).transpose()?.unwrap_or(UnixMillisField(u64::MAX));
    let place = try_place(&app.limits.audits, "walks of the audit trail")?;
    let end = app.node.group().applied();
    let after = app.node.read(|view| last_before(view, from, end))?;
    let opening = r#"{"resourceType":"Bundle","type":"collection","entry":["#;
    let is_bundle = query.format == Format::FhirBundle;
    let export = Export {
        node: app.node,
        format: query.format,
        after,
        end,
        to,
        waiting: is_bundle.then(|| opening.to_owned()).into_iter().collect(),
        is_first: true,
        is_over: false,
        _place: place,
    };
    let pieces = stream::unfold(export, async |mut export| {
        let piece = export.next()?;
        // A walk that keeps the processor from others would be noticed in the queue.
        tokio::task::yield_now().await;
        Some((piece, export))
    });
    let media_type = HeaderValue::from_static(query.format.media_type());
    Ok(([(header::CONTENT_TYPE, media_type)], Body::from_stream(pieces)).into_response())
}

/// Reads a moment.
fn moment(text: &str) -> Result<UnixMillisField, Problem> {
    let date =
        || Date::parse(text, format_description!("[year]-[month]-[day]")).map(|date| date.midnight().assume_utc());
    let moment = OffsetDateTime::parse(text, &Rfc3339).or_else(|_| date());
    let bad = || Problem::invalid(format!("{text:?} is neither a time (2026-01-02T03:04:05Z) nor a date (2026-01-02)"));
    let nanoseconds = moment.map_err(|_| bad())?.unix_timestamp_nanos();
    u64::try_from(nanoseconds / 1_000_000).map(UnixMillisField).map_err(|_| bad())
}

/// The index before the first entry at `from` or later: time never goes back along the trail.
fn last_before(view: &View<'_>, from: UnixMillisField, end: u64) -> Result<u64, ApplyError> {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low + (high - low) / 2;
        match view.audit(middle, 1)?.first() {
            Some(link) if link.entry.at < from => low = link.entry.index,
            // The first after `middle` is late enough, or there is none.
            _ => high = middle,
        }
    }
    Ok(low)
}

/// An export under way.
struct Export {
    node: Node,
    format: Format,
    after: u64,
    end: u64,
    to: UnixMillisField,
    waiting: VecDeque<String>,
    is_first: bool,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

impl Export {
    /// The next piece. An error ends the body short, so that nobody takes half an export for a whole one.
    fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        if self.waiting.is_empty()
            && !self.is_over
            && let Err(error) = self.read()
        {
            self.is_over = true;
            return Some(Err(error.into()));
        }
        if self.waiting.is_empty() {
            return None;
        }
        Some(Ok(Bytes::from(self.waiting.drain(..).collect::<String>())))
    }

    fn read(&mut self) -> Result<(), ApplyError> {
        let after = self.after;
        let page: Vec<Described> = self.node.read(|view| {
            let names = Names::read(view)?;
            view.audit(after, PAGE)?.into_iter().map(|link| Described::new(view, &names, link)).collect()
        })?;
        self.is_over = page.len() < PAGE;
        for described in &page {
            if described.entry().index > self.end || described.entry().at >= self.to {
                self.is_over = true;
                break;
            }
            let text = self.text(described);
            self.waiting.push_back(text);
            self.is_first = false;
            self.after = described.entry().index;
        }
        if self.is_over && self.format == Format::FhirBundle {
            self.waiting.push_back("]}\n".to_owned());
        }
        Ok(())
    }

    fn text(&self, described: &Described) -> String {
        let (mesh, observer) = (self.node.mesh_name(), &self.node.config().node.name);
        match self.format {
            Format::Dicom => format!("{}\n", syslog_line(described, &mesh, observer)),
            Format::Fhir => format!("{}\n", fhir_event(described, &mesh, observer)),
            Format::FhirBundle => {
                let comma = if self.is_first { "" } else { "," };
                format!("{comma}{}", json!({ "resource": fhir_event(described, &mesh, observer) }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_a_date_in_utc() {
        assert_eq!(moment("1970-01-02").expect("a date").0, 86_400_000);
        assert_eq!(moment("2026-01-02T04:04:05.678+01:00").expect("a time").0, 1_767_323_045_678);
        for bad in ["", "yesterday", "2026-13-01", "1969-12-31"] {
            assert_eq!(moment(bad).expect_err(bad).status().as_u16(), 400);
        }
    }
}
