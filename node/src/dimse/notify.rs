//! Reports to subscribers (PS3.4 section CC.2.4): N-EVENT-REPORTs by an association to the subscriber's
//! configured address.
//!
//! **Who sends.** The site through which the application subscribed, while its session is open: it knows the
//! address, and is likely nearest. While it is away the leader sends, if the subscriber is among its own
//! peers. Two may send for a moment; a report may come twice, and bears the UID (0040,A124) of its event by
//! which that is seen.
//!
//! **Nothing is lost.** How far a subscriber was told is replicated with its subscription, after its
//! confirmations, so that a restart or another sender goes on from there. A subscriber that does not answer is
//! called again, ever more seldom, and told everything then, as far as events are kept (seven days).
//!
//! One task looks which subscribers are this node's to tell; one a subscriber tells it, so that none waits for
//! another.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use maillage_consensus::command::{Command, Subscription};
use maillage_consensus::event::Cursor;
use maillage_consensus::exam::Text8;
use maillage_consensus::ids::{CommandId, Name};
use maillage_dicom::Uid;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::call;
use super::ups::scene;
use crate::config::DicomPeer;
use crate::node::Node;
use crate::ups::dataset::Dataset;
use crate::ups::describe::UPS_PUSH;
use crate::ups::feed::{Feed, FeedError, Page};
use crate::ups::tags;

/// UPS Event SOP Class.
const EVENT: &str = "1.2.840.10008.5.1.4.34.6.4";
/// How often it is looked who is to be told by whom; a session that ended shows within this.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Changes closer together than this are told in one association.
const COALESCE: Duration = Duration::from_millis(200);
/// The first pause after a failed call, doubled each time …
const RETRY_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often at most it is replicated how far a subscriber was told: what may come twice after a failover.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// A subscriber that refuses for want of resources is asked again (PS3.7 annex C.5.9).
const RESOURCE_LIMITATION: u16 = 0x0213;

/// Tells the subscribers that are this node's to tell.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    if node.config().dicom.peers.is_empty() {
        return;
    }
    let mut telling: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    loop {
        telling.retain(|_, task| !task.is_finished());
        for peer in &node.config().dicom.peers {
            let aet = peer.ae_title.as_str();
            if !telling.contains_key(aet) && is_ours(&node, aet) {
                let (stop, teller) = (shutdown.clone(), Teller::new(node.clone(), peer.clone()));
                let task = maillage_host::spawn(async move {
                    stop.run_until_cancelled(teller.run()).await;
                });
                telling.insert(aet.to_owned(), task);
            }
        }
        if shutdown.run_until_cancelled(sleep(LOOK_EVERY)).await.is_none() {
            break;
        }
    }
    for (_, task) in telling {
        let _ = task.await;
    }
}

/// A subscriber's subscriptions.
fn subscriptions(node: &Node, aet: &str) -> Vec<Subscription> {
    let all = node.read(|view| view.subscriptions()).unwrap_or_default();
    all.into_iter().filter(|subscription| subscription.aet.as_str() == aet).collect()
}

/// Whether this node is to tell a subscriber.
fn is_ours(node: &Node, aet: &str) -> bool {
    let reporters = subscriptions(node, aet).into_iter().filter_map(|subscription| subscription.reporter);
    let Some(reporter) = reporters.min() else { return false };
    if reporter == node.site() {
        return true;
    }
    let is_there = node.read(|view| view.site(reporter)).is_ok_and(|site| site.is_some_and(|site| site.session_open));
    !is_there && node.group_status().leader == Some(node.site().0)
}

/// Tells one subscriber.
struct Teller {
    node: Node,
    peer: DicomPeer,
    aet: Text8,
    /// How far it was told, and how far that is replicated.
    told: u64,
    saved: u64,
    saved_at: Option<Instant>,
}

impl Teller {
    fn new(node: Node, peer: DicomPeer) -> Self {
        let aet = Text8::fitted(peer.ae_title.as_str());
        Self { node, peer, aet, told: 0, saved: 0, saved_at: None }
    }

    /// Tells until it is another's to do, or nobody's.
    async fn run(mut self) {
        let mut changes = self.node.changes();
        let Some(mut feed) = self.feed() else { return };
        while is_ours(&self.node, self.aet.as_str()) {
            changes.borrow_and_update();
            let page = match feed.next_page() {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, "read events for a subscriber");
                    return;
                }
            };
            let Page { reports, through, more } = page;
            if !reports.is_empty() {
                if !self.deliver(reports).await {
                    return;
                }
                self.told = self.told.max(through);
            }
            self.save().await;
            if !more {
                // Looked at again without a change, too: whose it is to tell, and what is to be saved.
                let _ = timeout(LOOK_EVERY, changes.changed()).await;
                sleep(COALESCE).await;
            }
        }
    }

    /// The events that it was not told yet.
    fn feed(&mut self) -> Option<Feed> {
        let own = subscriptions(&self.node, self.aet.as_str());
        let told = own.iter().map(|subscription| subscription.told).max().unwrap_or(0);
        (self.told, self.saved) = (told, told);
        let after = (told > 0).then_some(Cursor { index: told, place: u16::MAX });
        let scene = |node: &Node| scene(node).map_err(|error| tracing::error!(%error, "read the sites")).ok();
        let feed = match Feed::new(&self.node, self.aet.clone(), scene(&self.node)?, after) {
            Err(FeedError::Forgotten { .. }) => {
                tracing::warn!(subscriber = self.aet.as_str(), "events since its last report are no longer kept");
                Feed::new(&self.node, self.aet.clone(), scene(&self.node)?, None)
            }
            other => other,
        };
        feed.map_err(|error| tracing::error!(%error, "read events for a subscriber")).ok()
    }

    /// Sends all of them, calling again until it is done; false when it is another's to do meanwhile.
    async fn deliver(&self, reports: Vec<Dataset>) -> bool {
        let mut left = reports.into_iter().collect::<std::collections::VecDeque<_>>();
        let mut pause = RETRY_MIN;
        loop {
            let before = left.len();
            match self.send(&mut left).await {
                Ok(()) => return true,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        subscriber = self.aet.as_str(),
                        error,
                        waiting = left.len(),
                        "report to a subscriber"
                    );
                }
            }
            // One that took something is there.
            pause = if left.len() < before { RETRY_MIN } else { pause };
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
            if !is_ours(&self.node, self.aet.as_str()) {
                return false;
            }
        }
    }

    /// One association; what was confirmed is taken from `left`.
    async fn send(&self, left: &mut std::collections::VecDeque<Dataset>) -> anyhow::Result<()> {
        let (class, push) = (Uid::parse(EVENT)?, Uid::parse(UPS_PUSH)?);
        let contexts = [(class.clone(), vec![Uid::EXPLICIT_LE, Uid::IMPLICIT_LE])];
        let mut association = call(&self.peer, &self.node.config().dicom.ae_title, &contexts).await?;
        while let Some(report) = left.front() {
            let syntax = association.transfer_syntax(&class).context("UPS Event was not accepted")?.clone();
            let uid = report.text(tags::AFFECTED_SOP_INSTANCE_UID);
            let event_type = report.text(tags::EVENT_TYPE_ID).parse().context("event type")?;
            let bytes = maillage_dicom::json::write(&report.clone().into_map(), &syntax)?;
            let instance = (push.clone(), Uid::parse(&uid)?);
            let status = association.report_event(&class, instance, event_type, bytes).await?;
            anyhow::ensure!(status.code() != RESOURCE_LIMITATION, "the subscriber has no resources");
            if !status.is_stored() {
                // It was told, and would say the same again.
                tracing::warn!(subscriber = self.aet.as_str(), %status, "a subscriber refused a report");
            }
            left.pop_front();
        }
        // All was confirmed, whether or not it says goodbye.
        let _ = association.release().await;
        Ok(())
    }

    /// Replicates how far it was told.
    async fn save(&mut self) {
        let is_due = self.saved_at.is_none_or(|at| at.elapsed() >= SAVE_EVERY);
        if self.told <= self.saved || !is_due {
            return;
        }
        let mut own = subscriptions(&self.node, self.aet.as_str());
        // That of the worklist outlives those of single steps.
        own.sort_by_key(|subscription| (subscription.workitem, subscription.since));
        let Some(carrier) = own.into_iter().next() else { return };
        let command = Command::Subscribe(Subscription { told: self.told, ..carrier });
        self.saved_at = Some(Instant::now());
        match self.node.command(CommandId::random(), Name::fitted(self.aet.as_str()), command).await {
            Ok(_) => self.saved = self.told,
            // Tried again; until then a failover would tell some of it twice.
            Err(error) => tracing::debug!(%error, "save how far a subscriber was told"),
        }
    }
}
