//! `GET /events?after=CURSOR`: what happened in the queue, event by event, from a cursor on.
//!
//! A cursor is a place in the replicated log, so that it means the same at every node: a client that was
//! cut off asks any of them for what came after the last event that it saw, and misses none. A node that is
//! itself behind the cursor has nothing to say until it has caught up. Events of more than a week ago are
//! forgotten; who asks for them is told so, and reads the worklist anew.

use std::collections::VecDeque;

use axum::http::HeaderMap;
use axum::response::sse::Event;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::event::{Cursor, Event as Happening};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::RETRY;
use crate::audit::Names;
use crate::http::problem::Problem;
use crate::http::rfc3339::rfc3339;
use crate::node::Node;

/// Events read at once.
const PAGE: usize = 256;
/// The name of the event that ends a stream whose cursor was overtaken.
const FORGOTTEN: &str = "cursor-forgotten";

/// Where a client wants its events from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// After what it saw.
    Cursor(Cursor),
    /// After what this node knows.
    Now,
}

impl From {
    /// What the request says. An `EventSource` that lost its stream repeats the address it was given, and
    /// adds where it was.
    ///
    /// # Errors
    /// When it is no cursor.
    pub(super) fn of(after: &str, headers: &HeaderMap) -> Result<Self, Problem> {
        let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
        match last.filter(|id| !id.is_empty()).unwrap_or(after) {
            "" | "now" => Ok(Self::Now),
            cursor => {
                let bad = |error| Problem::invalid(format!("{cursor:?} is no cursor: {error}"));
                cursor.parse().map(Self::Cursor).map_err(bad)
            }
        }
    }
}

/// A client's stream.
pub(super) struct Since {
    node: Node,
    changes: watch::Receiver<u64>,
    cursor: Cursor,
    waiting: VecDeque<Event>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Since {
    /// The stream from a place on.
    ///
    /// # Errors
    /// 410 when what came after that place is forgotten; 500 when the state cannot be read.
    pub(super) fn new(node: Node, from: From, place: OwnedSemaphorePermit) -> Result<Self, Problem> {
        let changes = node.changes();
        // The view holds at least what was applied when it was asked for.
        let applied = node.group().applied();
        let forgotten = node.read(|view| view.forgotten())?;
        let cursor = match from {
            From::Now => Cursor { index: applied, place: u16::MAX },
            From::Cursor(cursor) => cursor,
        };
        if cursor < forgotten {
            let detail = format!("events up to {forgotten} are forgotten: read the worklist, then ask from now on");
            return Err(Problem::cursor_forgotten(detail).with("forgotten", json!(forgotten.to_string())));
        }
        // At once, so that a client that is cut off before its first event knows where it was.
        let waiting = VecDeque::from([Event::default().id(cursor.to_string()).retry(RETRY)]);
        Ok(Self { node, changes, cursor, waiting, ended: false, _place: place })
    }

    /// The next event; `None` when the stream ends.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.changes.borrow_and_update();
            if self.read().is_err() {
                // The state cannot be read: whoever looks after this node is told elsewhere.
                return None;
            }
            if self.waiting.is_empty() {
                self.changes.changed().await.ok()?;
            }
        }
    }

    fn read(&mut self) -> Result<(), Problem> {
        let cursor = self.cursor;
        let (forgotten, names, page) =
            self.node.read(|view| Ok((view.forgotten()?, Names::read(view)?, view.events(cursor, PAGE)?)))?;
        if cursor < forgotten {
            // A client that takes a week over what was sent to it.
            self.waiting.push_back(Event::default().event(FORGOTTEN).data(forgotten.to_string()));
            self.ended = true;
            return Ok(());
        }
        for (cursor, happening) in page {
            let data = to_json(cursor, &happening, &names).to_string();
            self.waiting.push_back(Event::default().id(cursor.to_string()).data(data));
            self.cursor = cursor;
        }
        Ok(())
    }
}

/// An event: what happened by its name, and apart from who and when what it says of it.
pub(super) fn to_json(cursor: Cursor, happening: &Happening, names: &Names) -> Value {
    let (what, details) = match serde_json::to_value(&happening.what) {
        Ok(Value::Object(named)) => named.into_iter().next().unwrap_or_default(),
        // A kind without details. None fails: there is no map in them.
        Ok(other) => (other.as_str().unwrap_or_default().to_owned(), Value::Null),
        Err(_) => Default::default(),
    };
    json!({
        "cursor": cursor.to_string(),
        "at": rfc3339(UnixMillisField(happening.at.0)),
        "user": happening.user,
        "site": happening.site,
        "site_name": names.of(happening.site),
        "exam": happening.exam,
        "what": what,
        "details": details,
    })
}

#[cfg(test)]
mod tests {
    use maillage_consensus::event::Happened;
    use maillage_consensus::exam::ExamState;
    use maillage_consensus::ids::{ExamId, Line, Name, SiteId};

    use super::*;

    #[test]
    fn an_event_says_what_happened_apart_from_who_and_when() {
        let claim_lost =
            Happened::ClaimLost { user: Name::fitted("dr-b"), site: SiteId(9), reason: Line::fitted("gone") };
        for (what, name, details) in [
            (Happened::Exam { from: None, to: ExamState::Waiting }, "exam", json!({ "from": null, "to": "waiting" })),
            (claim_lost, "claim-lost", json!({ "user": "dr-b", "site": 9, "reason": "gone" })),
        ] {
            let at = UnixMillisField(1_767_323_045_678);
            let happening = Happening { at, user: Name::fitted("dr-a"), site: SiteId(7), exam: ExamId(12), what };
            let json = to_json(Cursor { index: 41, place: 2 }, &happening, &Names::default());
            assert_eq!(
                json,
                json!({
                    "cursor": "41.2", "at": "2026-01-02T03:04:05.678Z", "user": "dr-a", "site": 7,
                    "site_name": "site 7", "exam": 12, "what": name, "details": details,
                })
            );
        }
    }

    #[test]
    fn where_the_client_was_counts_before_where_it_asked_from() {
        let mut headers = HeaderMap::new();
        assert_eq!(From::of("", &headers).expect("now"), From::Now);
        let at = |index, place| From::Cursor(Cursor { index, place });
        assert_eq!(From::of("5.1", &headers).expect("a cursor"), at(5, 1));
        assert_eq!(From::of("5", &headers).expect("a cursor"), at(5, u16::MAX));
        headers.insert("last-event-id", "7.0".parse().expect("a value"));
        assert_eq!(From::of("5.1", &headers).expect("a cursor"), at(7, 0));
        assert_eq!(From::of("now", &headers).expect("a cursor"), at(7, 0));
        headers.insert("last-event-id", "x".parse().expect("a value"));
        assert_eq!(From::of("5.1", &headers).expect_err("none").status().as_u16(), 400);
    }
}
