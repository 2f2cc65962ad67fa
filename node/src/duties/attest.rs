//! Whether the replicas still agree: every site says what its audit chain is, and all compare.
//!
//! The chain covers what every command wrote, so that it differs for ever from the first difference
//! between two states on. A site that disagrees with this one is said so loudly: in the log, in metrics,
//! in `/readyz` and in `status`. Which of the two is wrong, the others show: it disagrees with all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::audit::{Attestation, Link};
use maillage_consensus::command::{Command, UnixMillisField};
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::machine::ApplyError;
use maillage_host::UnixMillis;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Between two attestations of one site.
const PERIOD_MS: u64 = 10 * 60_000;
/// Entries after which a site attests without waiting for its time.
const ENTRIES: u64 = 1_000;
/// Sites attest at different moments within so many seconds, and entries: one at a time is enough.
const STAGGER: u64 = 60;
/// Moves neighbours far apart within [`STAGGER`].
const STRIDE: u64 = 37;
/// Between two looks at whether it is time to attest.
const LOOK: Duration = Duration::from_secs(2);
/// Others attest each ten minutes: what they said is compared at every so many looks.
const COMPARED_EACH: u32 = 5;

/// Sites whose chain was another than this replica's where both had one.
///
/// # Errors
/// When the state cannot be read.
pub(crate) fn disagreeing(view: &View<'_>) -> Result<Vec<SiteId>, ApplyError> {
    let attestations = view.attestations()?;
    Ok(attestations.iter().filter(|said| said.agrees == Some(false)).map(|said| said.site).collect())
}

/// Attests, and compares what the others attested, until the node stops.
pub(super) async fn run(node: Node, shutdown: CancellationToken) {
    let started = node.clock().now();
    let mut known = BTreeSet::new();
    let mut looks = (0..COMPARED_EACH).cycle();
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if looks.next() == Some(0) {
            compare(&node, &mut known);
        }
        match due(&node, started) {
            Ok(Some(link)) => {
                let command = Command::Attest { index: link.entry.index, chain: link.chain };
                match node.command(CommandId::random(), Name::default(), command).await {
                    Ok(outcome) => tracing::debug!(index = link.entry.index, ?outcome, "audit chain attested"),
                    Err(error) => tracing::debug!(%error, "audit chain not attested yet"),
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "read the audit trail"),
        }
    }
}

fn compare(node: &Node, known: &mut BTreeSet<SiteId>) {
    let Ok(now) = node.read(disagreeing) else { return };
    let now: BTreeSet<SiteId> = now.into_iter().collect();
    for site in now.difference(known) {
        tracing::error!(
            site = site.0,
            "ALARM: the audit chain of this site is another than this node's: their replicated states differ"
        );
    }
    *known = now;
}

/// The entry to attest, when it is time.
fn due(node: &Node, started: UnixMillis) -> Result<Option<Link>, ApplyError> {
    let applied = node.group().applied();
    let site = node.site();
    let since_start_ms = node.clock().now().since(started);
    node.read(|view| {
        let last = view.attestation(site)?;
        let now = node.state_time(view)?.into();
        // Entries are large, and most of the time it is not: no entry is newer than what was applied.
        let is_due = |newest| is_due(site, newest, last.as_ref(), now, since_start_ms);
        if !is_due(applied) || !view.site(site)?.is_some_and(|site| site.session_open) {
            return Ok(None);
        }
        let newest = view.audit_back(applied.saturating_add(1), 1)?.pop();
        Ok(newest.filter(|newest| is_due(newest.entry.index)))
    })
}

fn is_due(site: SiteId, newest: u64, last: Option<&Attestation>, now: UnixMillisField, since_start_ms: u64) -> bool {
    let stagger = site.0.wrapping_mul(STRIDE) % STAGGER;
    match last {
        None => since_start_ms >= stagger * 1000,
        Some(last) => {
            let since = now.0.saturating_sub(last.at.0);
            newest.saturating_sub(last.index) >= ENTRIES + stagger
                || newest > last.index && since >= PERIOD_MS + stagger * 1000
        }
    }
}

#[cfg(test)]
mod tests {
    use maillage_consensus::machine::{Machine as _, Proposer};
    use maillage_consensus::transaction::Transaction;
    use maillage_consensus::{Envelope, Queue};
    use maillage_host::engine::{EngineHome as _, MemoryHome};

    use super::*;

    #[test]
    fn a_site_attests_each_ten_minutes_and_after_a_thousand_entries_and_not_with_the_others() {
        let last = Attestation { site: SiteId(2), index: 500, agrees: Some(true), at: UnixMillisField(1_000_000) };
        let due = |newest, after_ms| is_due(SiteId(2), newest, Some(&last), UnixMillisField(1_000_000 + after_ms), 0);
        // 2 x 37 mod 60 = 14.
        assert!(!due(600, PERIOD_MS) && due(600, PERIOD_MS + 14_000));
        assert!(!due(500, 10 * PERIOD_MS), "nothing new to attest");
        assert!(!due(1_513, 1) && due(1_514, 1));
        let first = |site, after_ms| is_due(SiteId(site), 5, None, UnixMillisField(9), after_ms);
        assert!(!first(2, 13_999) && first(2, 14_000) && first(60, 0));
        let staggers: BTreeSet<u64> = (1..=17).map(|site| site * STRIDE % STAGGER).collect();
        assert_eq!(staggers.len(), 17, "seventeen neighbours attest at seventeen moments");
    }

    #[test]
    fn an_attestation_of_another_chain_is_a_disagreement_and_a_right_one_is_none() {
        let engine = MemoryHome::default().open().expect("open");
        let (mut index, from) = (1, Proposer { node: 1, is_leader: true });
        let mut run = |command: Command| {
            index += 1;
            let (id, at) = (CommandId::random(), UnixMillisField::default());
            let envelope = Envelope { id, at, site: SiteId(1), user: Name::default(), command };
            let stamped = Queue.stamp(&*engine, &envelope.encode(), from, UnixMillis(index * 1000)).expect("stamped");
            let view = engine.view();
            let mut transaction = Transaction::new(&*view);
            Queue.apply(&mut transaction, index, &stamped).expect("applied");
            engine.commit(transaction.into_batch()).expect("committed");
            index
        };
        let founder = crate::roster::testing::site(1, "a").description;
        run(Command::Establish { mesh: [9; 32], name: Name::fitted("test"), copies: 1, founder, format: 2 });
        let opened = run(Command::OpenSession);
        let view = engine.view();
        let chain = View::new(&*view).audit_entry(opened).expect("read").expect("an entry").chain;
        run(Command::Attest { index: opened, chain });
        assert_eq!(disagreeing(&View::new(&*engine.view())).expect("read"), []);
        run(Command::Attest { index: opened, chain: [7; 32] });
        assert_eq!(disagreeing(&View::new(&*engine.view())).expect("read"), [SiteId(1)]);
    }
}
