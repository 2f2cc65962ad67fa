//! Telling the result: N-EVENT-REPORT on the requester's own association while that is open, else on a new
//! one to the address that the configuration gives its title, with back-off until it acknowledges. Who does not
//! answer holds up nobody else's: one result at a time goes to each place.
//!
//! That a result was told is recorded after the acknowledgement: a crash in between tells it twice, which
//! a requester knows by the Transaction UID, and never not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use maillage_dicom::commitment::{PUSH_MODEL, PUSH_MODEL_INSTANCE, encode_result};
use maillage_dicom::{AeTitle, Uid};
use maillage_host::Clock;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Commitments;
use super::record::{Report, Requester, Transaction};
use crate::config::DicomPeer;
use crate::dimse::call;
use crate::metrics::Metrics;
use crate::node::Node;

/// Results being told at once, each to another place: more than a hospital has modalities that are down together.
/// One of 20,000 instances takes some 6 MB.
const AT_ONCE: usize = 32;
/// A result that could not be told is told again after this long, twice as long each time …
const RETRY: Duration = Duration::from_secs(2);
/// … but no longer than this.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// How long the requester's own association is waited for: it may be sending images meanwhile.
const OWN_LINE: Duration = Duration::from_secs(30);
/// A result is told for as long as it is kept, counted from when it was found: a week.
const TOLD_FOR_MS: u64 = 7 * 24 * 3600 * 1000;
/// Nothing to tell is looked at again after this long, whatever changed.
const ROUND: Duration = Duration::from_secs(60);

/// Event types of PS3.4 section J.3.3.1.2: all committed, or not all.
const ALL_COMMITTED: u16 = 1;
const FAILURES_EXIST: u16 = 2;

/// What telling takes of a node.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    /// What there is to tell.
    pub(crate) commitments: Commitments,
    /// How long ago it was found.
    pub(crate) clock: Clock,
    /// Where it is counted.
    pub(crate) metrics: Metrics,
    /// Where requesters listen.
    pub(crate) peers: Vec<DicomPeer>,
}

impl Teller {
    /// Of a node.
    pub(crate) fn of(node: &Node) -> Self {
        Self {
            commitments: node.commitments().clone(),
            clock: node.clock().clone(),
            metrics: node.metrics().clone(),
            peers: node.config().dicom.peers.clone(),
        }
    }

    /// Where a title listens, if the configuration says it.
    fn peer(&self, title: &AeTitle) -> Option<&DicomPeer> {
        self.peers.iter().find(|peer| peer.ae_title == *title)
    }

    /// Where a result is to be told next, to a requester with this title.
    fn place_of(&self, uid: &Uid, title: &AeTitle) -> Place {
        if self.commitments.has_line(uid) {
            return Place::Own(title.clone());
        }
        Place::Listener(self.peer(title).map(|peer| (peer.host.clone(), peer.port)))
    }
}

/// Where a result is told. Who does not answer takes a place for as long as an attempt lasts, and so no more than one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// The association by which a requester of this title asked.
    Own(AeTitle),
    /// Where the requester listens, by host and port; without them an attempt fails at once.
    Listener(Option<(String, u16)>),
}

#[derive(Debug)]
struct Try {
    next: Instant,
    failures: u32,
}

/// Tells results until `shutdown`.
pub(crate) async fn run(teller: Teller, shutdown: CancellationToken) {
    let mut changes = teller.commitments.changes();
    let mut tries: BTreeMap<Uid, Try> = BTreeMap::new();
    let mut under_way: BTreeMap<Uid, Place> = BTreeMap::new();
    let mut telling = FuturesUnordered::new();
    loop {
        changes.mark_unchanged();
        let untold = teller.commitments.untold();
        tries.retain(|uid, _| untold.contains_key(uid));
        let now = Instant::now();
        let mut due = Vec::new();
        for (uid, title) in untold.iter().filter(|(uid, _)| !under_way.contains_key(*uid)) {
            let place = teller.place_of(uid, title);
            let before = match place {
                // A requester that asks again has a new association: it need not wait for the next try.
                Place::Own(_) => None,
                Place::Listener(_) => tries.get(uid).map(|before| before.next),
            };
            if before.is_none_or(|next| next <= now) {
                due.push((before, uid, place));
            }
        }
        // What has not failed yet goes first.
        due.sort_by_key(|(before, ..)| *before);
        for (_, uid, place) in due {
            if telling.len() >= AT_ONCE {
                break;
            }
            if under_way.values().any(|taken| *taken == place) {
                continue;
            }
            if let Some(transaction) = teller.commitments.get(uid) {
                under_way.insert(uid.clone(), place.clone());
                telling.push(tell(&teller, transaction, place));
            }
        }
        // One that is due and not under way waits for another to end.
        let next = tries.values().map(|before| before.next).filter(|next| *next > now).min();
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some((uid, told)) = telling.next() => {
                let place = under_way.remove(&uid);
                match told {
                    Ok(()) => drop(tries.remove(&uid)),
                    // Where it listens is next. It may have taken it: telling it again does no harm.
                    Err(error) if matches!(place, Some(Place::Own(_))) => {
                        let error = format!("{error:#}");
                        tracing::debug!(transaction = %uid, error, "not told on its own association");
                    }
                    Err(error) => failed(&mut tries, uid, &error),
                }
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or(now + ROUND)) => {}
        }
    }
}

/// Sets when a result that could not be told is told again.
fn failed(tries: &mut BTreeMap<Uid, Try>, uid: Uid, error: &anyhow::Error) {
    let error = format!("{error:#}");
    let failures = tries.get(&uid).map_or(0, |before| before.failures) + 1;
    if failures == 1 {
        tracing::warn!(transaction = %uid, error, "storage commitment not told yet");
    } else {
        tracing::debug!(transaction = %uid, error, "storage commitment not told yet");
    }
    tries.insert(uid, Try { next: Instant::now() + pause_after(failures), failures });
}

/// How long a result that could not be told so often waits.
fn pause_after(failures: u32) -> Duration {
    RETRY.saturating_mul(1 << failures.saturating_sub(1).min(12)).min(RETRY_MAX)
}

/// Tells one result, and records that it was told or that it is too late.
async fn tell(teller: &Teller, transaction: Transaction, place: Place) -> (Uid, anyhow::Result<()>) {
    let uid = transaction.uid.clone();
    let told = async {
        let report = match deliver(teller, &transaction, &place).await {
            Ok(()) => Report::Acknowledged,
            Err(_) if matches!(place, Place::Listener(_)) && is_too_late(teller, &transaction) => Report::GivenUp,
            Err(error) => return Err(error),
        };
        teller.commitments.change(&uid, |one| one.report = report).await?;
        let outcome = if report == Report::Acknowledged { "acknowledged" } else { "given-up" };
        teller.metrics.commitment(outcome);
        tracing::info!(transaction = %uid, outcome, "storage commitment told");
        Ok(())
    };
    let told = told.await;
    (uid, told)
}

fn is_too_late(teller: &Teller, transaction: &Transaction) -> bool {
    let since = transaction.settled.as_ref().map_or(0, |settled| settled.at.0);
    teller.clock.now().0.saturating_sub(since) >= TOLD_FOR_MS
}

async fn deliver(teller: &Teller, transaction: &Transaction, place: &Place) -> anyhow::Result<()> {
    let Requester::Dimse { calling, called } = &transaction.by else { return Ok(()) };
    match place {
        Place::Own(_) => on_its_own(teller, transaction).await,
        Place::Listener(_) => on_new_association(teller, transaction, called, calling).await,
    }
}

/// On the association by which it was asked for.
async fn on_its_own(teller: &Teller, transaction: &Transaction) -> anyhow::Result<()> {
    let line = teller.commitments.take_line(&transaction.uid);
    let (line, syntax) = line.context("its association has ended")?;
    let (class, instance) = push_model().context("the class has no UID")?;
    let (event, dataset) = (event_of(transaction), dataset(transaction, &syntax));
    let answer = timeout(OWN_LINE, line.report_event(&class, (class.clone(), instance), event, dataset)).await;
    let status = answer.context("no answer in time")?.context("its association has ended")?;
    anyhow::ensure!(status.code() == 0, "the answer is {status}");
    Ok(())
}

/// On a new association, as the provider of the class (role selection, PS3.7 annex D.3.3.4).
async fn on_new_association(
    teller: &Teller,
    transaction: &Transaction,
    ours: &AeTitle,
    theirs: &AeTitle,
) -> anyhow::Result<()> {
    let peer = teller.peer(theirs).with_context(|| format!("{} is not among dicom.peers", theirs.as_str()))?;
    let (class, instance) = push_model().context("the class has no UID")?;
    let contexts = [(class.clone(), vec![Uid::EXPLICIT_LE, Uid::IMPLICIT_LE])];
    let mut association = call(peer, ours, &contexts).await?;
    let Some(syntax) = association.transfer_syntax(&class).cloned() else {
        association.abort().await;
        anyhow::bail!("{} does not take storage commitment results", theirs.as_str());
    };
    let (event, dataset) = (event_of(transaction), dataset(transaction, &syntax));
    let status = association.report_event(&class, (class.clone(), instance), event, dataset).await?;
    // The answer is there: how the association ends changes nothing.
    let _ = association.release().await;
    anyhow::ensure!(status.code() == 0, "{} answers {status}", theirs.as_str());
    Ok(())
}

fn push_model() -> Option<(Uid, Uid)> {
    Some((Uid::parse(PUSH_MODEL).ok()?, Uid::parse(PUSH_MODEL_INSTANCE).ok()?))
}

fn event_of(transaction: &Transaction) -> u16 {
    if transaction.failed().next().is_none() { ALL_COMMITTED } else { FAILURES_EXIST }
}

fn dataset(transaction: &Transaction, syntax: &Uid) -> Bytes {
    let committed = transaction.committed().map(|one| (&one.sop_class, &one.sop_instance));
    let failed = transaction.failed().map(|(one, why)| (&one.sop_class, &one.sop_instance, why));
    encode_result(syntax, &transaction.uid, committed, failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_could_not_be_told_is_told_again_ever_more_rarely() {
        let pauses = [1, 2, 3, 9, 10, 11, u32::MAX].map(|failures| pause_after(failures).as_secs());
        assert_eq!(pauses, [2, 4, 8, 512, 600, 600, 600]);
    }
}
