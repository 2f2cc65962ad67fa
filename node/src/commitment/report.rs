//! Telling the result: N-EVENT-REPORT on the requester's own association while that is open, else on a new
//! one to the address that the configuration gives its title, with back-off until it acknowledges.
//!
//! That a result was told is recorded after the acknowledgement: a crash in between tells it twice, which
//! a requester knows by the Transaction UID, and never not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use maillage_dicom::commitment::{PUSH_MODEL, PUSH_MODEL_INSTANCE, encode_result};
use maillage_dicom::dimse::scp::EventLine;
use maillage_dicom::dimse::scu::{Association, ScuTimeouts};
use maillage_dicom::dimse::status::Status;
use maillage_dicom::{AeTitle, Uid};
use maillage_host::Clock;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Commitments;
use super::record::{Report, Requester, Transaction};
use crate::config::DicomPeer;
use crate::metrics::Metrics;
use crate::node::Node;

/// Results being told at once: one requester that is down does not hold up the others.
const AT_ONCE: usize = 8;
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
}

/// Tells results until `shutdown`.
pub(crate) async fn run(teller: Teller, shutdown: CancellationToken) {
    let mut changes = teller.commitments.changes();
    let mut tries: BTreeMap<Uid, Try> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let untold = teller.commitments.select(|one| one.settled.is_some() && !one.is_told());
        tries.retain(|uid, _| untold.iter().any(|one| one.uid == *uid));
        let now = Instant::now();
        let is_due = |one: &&Transaction| {
            let waits = tries.get(&one.uid).is_some_and(|before| before.next > now);
            // A requester that asks again has a new association: it need not wait for the next try.
            !waits || teller.commitments.has_line(&one.uid)
        };
        let due = untold.iter().filter(is_due);
        let due: Vec<_> = due.cloned().map(|one| tell(&teller, one)).collect();
        let mut telling = stream::iter(due).buffer_unordered(AT_ONCE);
        while let Some(Some((uid, told))) = shutdown.run_until_cancelled(telling.next()).await {
            match told {
                Ok(()) => drop(tries.remove(&uid)),
                Err(error) => {
                    let again = tries.get(&uid).map_or(0, |before| before.failures + 1);
                    let wait = RETRY.saturating_mul(1 << again.min(12)).min(RETRY_MAX);
                    tries.insert(uid.clone(), Try { next: Instant::now() + wait, failures: again });
                    let error = format!("{error:#}");
                    if again == 0 {
                        tracing::warn!(transaction = %uid, error, "storage commitment not told yet");
                    } else {
                        tracing::debug!(transaction = %uid, error, "storage commitment not told yet");
                    }
                }
            }
        }
        let next = tries.values().map(|before| before.next).min().unwrap_or_else(|| Instant::now() + ROUND);
        let changed = async {
            tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                () = tokio::time::sleep_until(next) => true,
            }
        };
        if shutdown.run_until_cancelled(changed).await != Some(true) {
            return;
        }
    }
}

#[derive(Debug)]
struct Try {
    next: Instant,
    failures: u32,
}

/// Tells one result, and records that it was told or that it is too late.
async fn tell(teller: &Teller, transaction: Transaction) -> (Uid, anyhow::Result<()>) {
    let uid = transaction.uid.clone();
    let told = async {
        let report = match deliver(teller, &transaction).await {
            Ok(()) => Report::Acknowledged,
            Err(_) if is_too_late(teller, &transaction) => Report::GivenUp,
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

async fn deliver(teller: &Teller, transaction: &Transaction) -> anyhow::Result<()> {
    let Requester::Dimse { calling, called } = &transaction.by else { return Ok(()) };
    if let Some((line, syntax)) = teller.commitments.take_line(&transaction.uid) {
        match timeout(OWN_LINE, on_line(&line, transaction, &syntax)).await {
            Ok(Some(status)) if status.code() == 0 => return Ok(()),
            // It may have been taken: telling it again does no harm.
            other => tracing::debug!(transaction = %transaction.uid, ?other, "not told on its own association"),
        }
    }
    on_new_association(teller, transaction, called, calling).await
}

/// On the association by which it was asked for.
async fn on_line(line: &EventLine, transaction: &Transaction, syntax: &Uid) -> Option<Status> {
    let (class, instance) = push_model()?;
    let (event, dataset) = (event_of(transaction), dataset(transaction, syntax));
    line.report_event(&class, (class.clone(), instance), event, dataset).await
}

/// On a new association, as the provider of the class (role selection, PS3.7 annex D.3.3.4).
async fn on_new_association(
    teller: &Teller,
    transaction: &Transaction,
    ours: &AeTitle,
    theirs: &AeTitle,
) -> anyhow::Result<()> {
    let peer = teller.peers.iter().find(|peer| peer.ae_title == *theirs);
    let Some(peer) = peer else { anyhow::bail!("{} is not among dicom.peers", theirs.as_str()) };
    let addresses = lookup_host((peer.host.as_str(), peer.port)).await?;
    let Some(address) = addresses.into_iter().next() else { anyhow::bail!("{} has no address", peer.host) };
    let Some((class, instance)) = push_model() else { anyhow::bail!("the class has no UID") };
    let contexts = [(class.clone(), vec![Uid::EXPLICIT_LE, Uid::IMPLICIT_LE])];
    let timeouts = ScuTimeouts::default();
    let mut association = Association::connect_as_provider(address, ours, theirs, &contexts, timeouts).await?;
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
