//! *Open Notification Connection* and *Send Event Report* (PS3.18 sections 8.10.4 and 8.10.5): a
//! WebSocket by which an AE title is told of what it subscribed to.
//!
//! `GET /subscribers/{aet}` tells everything since the subscription began. With `?after=`, the UID
//! (0040,A124) of the last report that the client saw, it tells what came after it; the client may have
//! seen it at any node. Events older than the mesh keeps them are gone: such a client is told so (410)
//! before the connection is opened, and searches the worklist anew.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, interval, sleep};

use super::answer::Refused;
use super::{host, scene, subscription};
use crate::http::app::{App, try_place};
use crate::http::extract::{UrlPath, UrlQuery};
use crate::http::problem::Problem;
use crate::ups::feed::{Feed, FeedError, Page};
use crate::ups::tags;

/// How often a ping is sent, so that each end notices that the other is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A client that has not answered three pings is gone.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// Changes closer together than this are looked at once: a busy queue has thousands a second.
const COALESCE: Duration = Duration::from_millis(50);
/// Clients have nothing to say here but that they close.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The query.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Resume {
    after: Option<String>,
}

/// `GET /subscribers/{aet}`
pub(super) async fn open(
    State(app): State<App>,
    UrlPath(aet): UrlPath<String>,
    UrlQuery(resume): UrlQuery<Resume>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refused> {
    let upgrade = upgrade.map_err(|error| Problem::invalid(format!("a WebSocket is opened here: {error}")))?;
    let aet = subscription::subscriber(&aet)?;
    check_origin(&headers)?;
    let place = try_place(&app.limits.event_streams, "event streams")?;
    let scene = scene(&app, &headers)?;
    let after = match resume.after.as_deref() {
        None => None,
        Some(text) => {
            Some(scene.uids.cursor(text).ok_or_else(|| Problem::invalid("after: no UID of an event of this mesh"))?)
        }
    };
    // Before the events are looked at, so that none that comes meanwhile goes unnoticed.
    let changes = app.node.changes();
    let feed = Feed::new(&app.node, aet, scene, after).map_err(|error| match error {
        FeedError::Forgotten => Problem::gone(error.to_string()),
        FeedError::State(error) => error.into(),
    })?;
    let teller = Teller { feed, changes, messages: 0, _place: place };
    Ok(upgrade.max_message_size(MESSAGE_BYTES_MAX).on_upgrade(|socket| teller.run(socket)))
}

/// Browsers let every page open WebSockets to anywhere, and say which page it is.
fn check_origin(headers: &HeaderMap) -> Result<(), Refused> {
    let host = host(headers);
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, name)| name.eq_ignore_ascii_case(&host));
    if headers.get_all(header::ORIGIN).iter().all(|origin| origin.to_str().is_ok_and(own)) {
        return Ok(());
    }
    Err(Problem::cross_site("only this node's own pages may open this").into())
}

/// Tells one subscriber, over one connection.
struct Teller {
    feed: Feed,
    changes: watch::Receiver<u64>,
    messages: u16,
    _place: OwnedSemaphorePermit,
}

impl Teller {
    /// Tells, until the client leaves or the node ends.
    async fn run(mut self, mut socket: WebSocket) {
        let mut pings = interval(KEEP_ALIVE);
        let mut heard = Instant::now();
        while self.tell(&mut socket).await.is_some() {
            tokio::select! {
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    sleep(COALESCE).await;
                }
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE_MAX || socket.send(Message::Ping(Bytes::new())).await.is_err() {
                        break;
                    }
                }
                received = socket.recv() => match received {
                    None | Some(Err(_) | Ok(Message::Close(_))) => break,
                    Some(Ok(_)) => heard = Instant::now(),
                },
            }
        }
    }

    /// Sends everything that there is to tell; `None` when that failed.
    async fn tell(&mut self, socket: &mut WebSocket) -> Option<()> {
        loop {
            self.changes.borrow_and_update();
            let Page { reports, more, .. } = match self.feed.next_page() {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, "read events for a subscriber");
                    return None;
                }
            };
            for mut report in reports {
                self.messages = self.messages.checked_add(1).unwrap_or(1);
                report.put_number(tags::MESSAGE_ID, "US", u64::from(self.messages));
                socket.send(Message::Text(report.into_json().to_string().into())).await.ok()?;
            }
            if !more {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_opens_no_socket() {
        let check = |origin: Option<&str>| {
            let mut headers = HeaderMap::from_iter([(header::HOST, "node:8080".parse().expect("a value"))]);
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().expect("a value"));
            }
            check_origin(&headers).is_ok()
        };
        assert!(check(None), "a program");
        assert!(check(Some("http://node:8080")), "our own page");
        for origin in ["http://node:8081", "https://evil.example", "null", ""] {
            assert!(!check(Some(origin)), "{origin}");
        }
    }
}
