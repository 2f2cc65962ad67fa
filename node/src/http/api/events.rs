//! `GET /events`: server-sent events. With `after`, each event of the queue from a cursor on (see
//! [`since`]); without, one whenever the queue or this node's contact with the mesh changed, for pages and
//! programs that then read what they show anew.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use maillage_consensus::event::{Cursor, Happened};
use maillage_consensus::machine::ApplyError;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::audit::Names;
use crate::http::app::{App, try_place};
use crate::http::extract::UrlQuery;
use crate::http::problem::Problem;
use crate::http::status::is_cut_off;
use crate::node::Node;

mod since;

use since::{From, Since};

/// Changes closer together than this make one event: a page need not flicker.
const COALESCE: Duration = Duration::from_millis(200);
/// How often contact with the mesh is looked at: its loss changes no state.
const CONTACT_CHECK: Duration = Duration::from_secs(1);
/// Silence after which a comment is sent, so that each end notices that the other is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events of the queue read at once.
const PAGE: usize = 256;
/// The name of the event that tells of a lost claim.
const LOST: &str = "claim-lost";
/// Milliseconds after which a browser that lost the stream connects again.
const RETRY: Duration = Duration::from_millis(1000);

struct Watcher {
    node: Node,
    changes: watch::Receiver<u64>,
    cut_off: bool,
    /// Up to where lost claims were looked for.
    told: Cursor,
    /// What is to be sent before anything else is looked at.
    waiting: VecDeque<Event>,
    /// Whether an event is owed at once: the client has not seen the present state.
    owed: bool,
    last: Instant,
    _place: OwnedSemaphorePermit,
}

/// Which events.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct EventsQuery {
    after: Option<String>,
    /// Without `after`: the applied index that the client's page shows.
    seen: Option<u64>,
}

/// `GET /events?after=`: see [`since`]. `GET /events`: event `queue`, its id the
/// applied index, and before it an event `claim-lost` for each claim that ended against its reader's will.
/// With `Last-Event-ID` or `seen`, the first event comes at once only if that is not the present one.
pub(super) async fn events(
    State(app): State<App>,
    headers: HeaderMap,
    UrlQuery(query): UrlQuery<EventsQuery>,
) -> Result<Response, Problem> {
    let place = try_place(&app.limits.event_streams, "event streams")?;
    if let Some(after) = query.after {
        let since = Since::new(app.node, From::of(&after, &headers)?, place)?;
        let events = stream::unfold(since, async |mut since| {
            let event = since.next().await?;
            Some((Ok::<_, Infallible>(event), since))
        });
        return Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response());
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let seen = last.or(query.seen);
    let mut changes = app.node.changes();
    let applied = *changes.borrow_and_update();
    let watcher = Watcher {
        cut_off: is_cut_off(app.node.age()),
        node: app.node,
        changes,
        told: Cursor { index: seen.unwrap_or(applied), place: u16::MAX },
        waiting: VecDeque::new(),
        owed: seen != Some(applied),
        last: Instant::now(),
        _place: place,
    };
    let events = stream::unfold(watcher, async |mut watcher| {
        let event = watcher.next().await?;
        Some((Ok::<_, Infallible>(event), watcher))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

impl Watcher {
    /// The next event; `None` when the node ended.
    async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.waiting.pop_front() {
            return Some(event);
        }
        if !std::mem::take(&mut self.owed) {
            loop {
                match timeout(CONTACT_CHECK, self.changes.changed()).await {
                    Ok(changed) => {
                        changed.ok()?;
                        break;
                    }
                    Err(_) if is_cut_off(self.node.age()) != self.cut_off => break,
                    Err(_) => {}
                }
            }
            sleep(COALESCE.saturating_sub(self.last.elapsed())).await;
        }
        self.last = Instant::now();
        self.cut_off = is_cut_off(self.node.age());
        let applied = *self.changes.borrow_and_update();
        // A state that cannot be read is told elsewhere; the page is told that it changed all the same.
        let _ = self.read_lost();
        let data = json!({ "applied": applied, "cut_off": self.cut_off });
        // Last: a client that is cut off before it asks again for what it was not told.
        self.waiting
            .push_back(Event::default().id(applied.to_string()).event("queue").retry(RETRY).data(data.to_string()));
        self.waiting.pop_front()
    }

    /// Reads which claims were lost since the client was told: by a take-over, or with their site's session.
    fn read_lost(&mut self) -> Result<(), ApplyError> {
        loop {
            let told = self.told;
            let (names, forgotten, page) =
                self.node.read(|view| Ok((Names::read(view)?, view.forgotten()?, view.events(told, PAGE)?)))?;
            // A page that shows what was a week ago has nobody before it.
            self.told = told.max(forgotten);
            let Some((last, _)) = page.last() else { return Ok(()) };
            self.told = self.told.max(*last);
            let is_last = page.len() < PAGE;
            for (cursor, happening) in &page {
                if matches!(happening.what, Happened::ClaimLost { .. }) {
                    let data = since::to_json(*cursor, happening, &names).to_string();
                    self.waiting.push_back(Event::default().event(LOST).data(data));
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }
}
