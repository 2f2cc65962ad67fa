//! Judging what is pending, at every change of the replicated state.
//!
//! A look at the local state is cheap and may be late: it can only say that something *seems* safe. What
//! is told to a sender is judged anew, from nothing remembered, after the state was confirmed by a quorum.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maillage_dicom::Uid;
use maillage_store::StoreError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::judge::{Coverage, Here, Publication, Verdict, publications, verdict};
use super::record::{Reference, Settled, Transaction, reason};
use crate::node::Node;

/// Changes are let settle for so long: a burst of them is one round.
const SETTLE: Duration = Duration::from_millis(200);
/// A round is done at least this often: time-outs, and what failed before.
const ROUND: Duration = Duration::from_secs(10);

/// Judges pending transactions until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let (mut state, mut asked) = (node.changes(), node.commitments().changes());
    let mut looks = Looks::new();
    loop {
        state.mark_unchanged();
        asked.mark_unchanged();
        let done = shutdown.run_until_cancelled(round(&node, &mut looks)).await;
        if let Some(Err(error)) = done {
            tracing::warn!(error = format!("{error:#}"), "storage commitments not judged");
        }
        let changed = async {
            // Without anything pending the state's changes are nobody's.
            let pending = !looks.is_empty();
            tokio::select! {
                changed = state.changed(), if pending => changed.is_ok(),
                changed = asked.changed() => changed.is_ok(),
                () = tokio::time::sleep(ROUND) => true,
            }
        };
        match shutdown.run_until_cancelled(changed).await {
            Some(true) => tokio::time::sleep(SETTLE).await,
            _ => return,
        }
    }
}

/// What each pending transaction looked like at the last round.
type Looks = BTreeMap<Uid, Look>;

#[derive(Debug)]
struct Look {
    /// When this process looked first.
    since: Instant,
    /// What is here of each reference.
    here: Vec<Option<Here>>,
    /// The publications from which it was judged.
    from: BTreeMap<String, Vec<Publication>>,
    seems: Vec<Verdict>,
}

impl Default for Look {
    fn default() -> Self {
        Self { since: Instant::now(), here: Vec::new(), from: BTreeMap::new(), seems: Vec::new() }
    }
}

async fn round(node: &Node, looks: &mut Looks) -> anyhow::Result<()> {
    let commitments = node.commitments();
    let pending = commitments.select(|one| one.settled.is_none());
    looks.retain(|uid, _| pending.iter().any(|one| one.uid == *uid));
    let timeout = Duration::from_secs(node.config().storage.commitment_timeout_s);
    // Asked at most once a round: without a quorum each question takes seconds.
    let mut confirmed = None;
    for transaction in &pending {
        let look = looks.entry(transaction.uid.clone()).or_default();
        look.again(node, transaction).await?;
        let over = transaction.is_late(node.clock().now(), look.since.elapsed(), timeout);
        if !over && look.seems.contains(&Verdict::Pending) {
            continue;
        }
        let confirmed = match confirmed {
            Some(confirmed) => confirmed,
            None => *confirmed.insert(node.linearize().await.is_ok()),
        };
        if let Some(settled) = settle(node, transaction, confirmed, over).await? {
            let (failed, all) = (settled.failed.len(), transaction.references.len());
            commitments.change(&transaction.uid, |one| one.settled = Some(settled)).await?;
            looks.remove(&transaction.uid);
            node.metrics().commitment(if failed == 0 { "committed" } else { "failed" });
            tracing::info!(transaction = %transaction.uid, instances = all, failed, "storage commitment settled");
        }
    }
    commitments.forget_old().await?;
    Ok(())
}

/// The end of a transaction, if this is it. Nothing is said to be safe from a state that no quorum has
/// confirmed: a copy may be gone since.
async fn settle(
    node: &Node,
    transaction: &Transaction,
    confirmed: bool,
    over: bool,
) -> anyhow::Result<Option<Settled>> {
    let mut look = Look::default();
    look.again(node, transaction).await?;
    let mut failed = Vec::new();
    for (place, seems) in (0..).zip(&look.seems) {
        match seems {
            Verdict::Safe if confirmed => {}
            Verdict::Failed(why) => failed.push((place, *why)),
            Verdict::Safe | Verdict::Pending if over => failed.push((place, reason::PROCESSING)),
            Verdict::Safe | Verdict::Pending => return Ok(None),
        }
    }
    Ok(Some(Settled { at: node.clock().now().into(), failed }))
}

impl Look {
    /// Looks again, as far as anything may have changed.
    async fn again(&mut self, node: &Node, transaction: &Transaction) -> anyhow::Result<()> {
        self.here.resize(transaction.references.len(), None);
        let mut found = false;
        for (reference, known) in transaction.references.iter().zip(&mut self.here) {
            if known.is_none() {
                *known = here(node, reference).await?;
                found |= known.is_some();
            }
        }
        let studies: BTreeSet<&str> = self.here.iter().flatten().map(|here| here.study.as_str()).collect();
        let grace_ms = node.config().storage.placement_grace_s.saturating_mul(1000);
        let from = node.read(|view| {
            let (sites, plan, now) = (view.sites()?, view.plan()?, node.state_time(view)?);
            let mut from = BTreeMap::new();
            for uid in studies {
                if let Some(study) = view.study(uid)? {
                    from.insert(uid.to_owned(), publications(&study, &sites, &plan, now.0, grace_ms));
                }
            }
            Ok(from)
        })?;
        if !found && from == self.from && !self.seems.is_empty() {
            return Ok(());
        }
        let mut coverage = Coverage::default();
        for publication in from.values().flatten() {
            // One that this node has not fetched cannot be looked into: it does not count.
            match node.store().study_manifest(publication.manifest).await {
                Ok(Some(manifest)) => coverage.add(&publication.zones, &manifest),
                Ok(None) | Err(StoreError::Corrupt(_) | StoreError::Manifest(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let judged = transaction.references.iter().zip(&self.here);
        self.seems = judged.map(|(reference, here)| judge(node, reference, here.as_ref(), &coverage)).collect();
        self.from = from;
        Ok(())
    }
}

/// What is to be said of a reference. What has landed is listed soon, and is safe some time after.
pub(super) fn judge(node: &Node, reference: &Reference, here: Option<&Here>, coverage: &Coverage) -> Verdict {
    if here.is_none() && node.store().landing().is_under_way(reference.sop_instance.as_str()) {
        return Verdict::Pending;
    }
    verdict(reference, here, coverage)
}

/// What this node's store has of a reference.
pub(super) async fn here(node: &Node, reference: &Reference) -> Result<Option<Here>, StoreError> {
    let store = node.store();
    let sop_instance = reference.sop_instance.as_str();
    let Some(instance) = store.instance(sop_instance).await? else { return Ok(None) };
    let manifest = match store.instance_manifest(instance.entry.manifest).await {
        Ok(Some(manifest)) => manifest,
        // It alone says the class. One that is damaged says nothing: the sender keeps its images.
        Ok(None) | Err(StoreError::Corrupt(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(Here {
        sop_class: manifest.sop_class,
        study: instance.study_uid,
        dataset: instance.entry.dataset_hash,
        contested: store.is_contested(sop_instance).await?,
    }))
}
