//! What this node hears of the others, and tells of itself: for people, never for decisions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use maillage_consensus::ids::SiteId;
use maillage_store::Store;
use maillage_transport::PeerId;
use maillage_transport::presence::{Presence as Swarm, PresenceEvent};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::roster::Roster;

/// Between two looks at the free disk for what is told of this node.
const REFRESH: Duration = Duration::from_secs(5);
/// The version of what is told: one byte, then postcard.
const TOLD_VERSION: u8 = 1;

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    version: String,
    free_bytes: u64,
}

/// Another site as presence shows it.
#[derive(Debug, Clone)]
pub(crate) struct PeerState {
    pub(crate) site: SiteId,
    pub(crate) connected: bool,
    /// Round trip time, as last measured.
    pub(crate) rtt: Option<Duration>,
    /// Its software's version, as it says.
    pub(crate) version: Option<String>,
    /// Free bytes on its disk, as it says.
    pub(crate) free_bytes: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    connected: bool,
    rtt: Option<Duration>,
    told: Option<Told>,
}

/// What was heard of each peer. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Presence(Arc<Mutex<BTreeMap<PeerId, Heard>>>);

impl Presence {
    /// The other members as last heard, by site.
    pub(crate) fn peers(&self, roster: &Roster) -> Vec<PeerState> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let states = heard.iter().filter_map(|(peer, heard)| {
            Some(PeerState {
                site: roster.site(peer)?,
                connected: heard.connected,
                rtt: heard.rtt,
                version: heard.told.as_ref().map(|told| told.version.clone()),
                free_bytes: heard.told.as_ref().map(|told| told.free_bytes),
            })
        });
        let mut states: Vec<_> = states.collect();
        states.sort_by_key(|state| state.site);
        states
    }

    /// Whether the peer is connected, as far as presence knows.
    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(peer).is_some_and(|heard| heard.connected)
    }

    fn hear(&self, event: PresenceEvent) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            PresenceEvent::Connected { peer } => heard.entry(peer).or_default().connected = true,
            PresenceEvent::Disconnected { peer } => {
                let heard = heard.entry(peer).or_default();
                (heard.connected, heard.rtt) = (false, None);
            }
            PresenceEvent::Rtt { peer, rtt } => heard.entry(peer).or_default().rtt = Some(rtt),
            PresenceEvent::Payload { peer, payload } => {
                if let Some(told) = decode(&payload) {
                    heard.entry(peer).or_default().told = Some(told);
                }
            }
            PresenceEvent::Observed { .. } | PresenceEvent::Discovered { .. } => {}
        }
    }

    /// Hears and tells, until `shutdown`.
    pub(crate) async fn run(
        self,
        swarm: Swarm,
        mut events: mpsc::Receiver<PresenceEvent>,
        store: Store,
        shutdown: CancellationToken,
    ) {
        let mut refresh = tokio::time::interval(REFRESH);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.recv() => match event {
                    Some(event) => self.hear(event),
                    None => return,
                },
                _ = refresh.tick() => {
                    let free_bytes = store.stats().await.map_or(0, |stats| stats.free);
                    let told = Told { version: env!("CARGO_PKG_VERSION").to_owned(), free_bytes };
                    if let Ok(bytes) = postcard::to_extend(&told, vec![TOLD_VERSION]) {
                        // Far below the bound on payloads.
                        let _ = swarm.publish(Bytes::from(bytes));
                    }
                }
            }
        }
    }
}

fn decode(payload: &[u8]) -> Option<Told> {
    let (&version, body) = payload.split_first()?;
    let told: Told = if version == TOLD_VERSION { postcard::from_bytes(body).ok()? } else { return None };
    // A peer's words go to people's screens: nothing long, nothing that steers a terminal.
    let plain = told.version.len() <= 64 && told.version.chars().all(|c| c.is_ascii_graphic());
    plain.then_some(told)
}
