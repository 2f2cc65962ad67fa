//! What is left of destroyed keys on this node's disk goes, too.
//!
//! A purge takes a key out of the state at once. Its bytes still lie in older snapshots, in the Raft log if they
//! came lately, and in what the engine has not compacted yet. So a while after a purge this node makes a snapshot,
//! purges the log up to where the last destroyed key was brought, and has the engine compact itself. Purges come
//! in batches, at the end of retention: many share one round. What remains after it is in docs/operations.md.

use std::time::Duration;

use maillage_host::offload;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Between two looks. A round takes three of them: snapshot, log, engine.
const LOOK: Duration = Duration::from_secs(60);
/// Between the beginnings of two rounds: each reads and writes the whole state, some gigabytes at the largest.
const ROUND: Duration = Duration::from_secs(600);

/// What the last round was for, and when it began.
#[derive(Debug, Default)]
struct Rounds {
    /// The log index of a destruction after which everything was wiped.
    wiped: u64,
    began: Option<Instant>,
}

/// Wipes until `shutdown`.
pub(super) async fn run(node: Node, shutdown: CancellationToken) {
    let mut rounds = Rounds::default();
    while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        if let Err(error) = rounds.go_on(&node).await {
            tracing::warn!(error = format!("{error:#}"), "what is left of destroyed keys was not wiped yet");
        }
    }
}

impl Rounds {
    /// The next step of a round, if there is one to take.
    async fn go_on(&mut self, node: &Node) -> anyhow::Result<()> {
        let destruction = node.read(|view| view.destruction())?;
        if destruction.at <= self.wiped {
            return Ok(());
        }
        let (group, status) = (node.group(), node.group_status());
        if status.snapshot.is_none_or(|snapshot| snapshot < destruction.at) {
            // What is destroyed while a round goes on is for the next one.
            if self.began.is_none_or(|began| began.elapsed() >= ROUND) {
                self.began = Some(Instant::now());
                group.trigger_snapshot().await?;
            }
            return Ok(());
        }
        if status.purged.is_none_or(|purged| purged < destruction.brought_at) {
            group.purge_log(destruction.brought_at).await?;
            return Ok(());
        }
        let engine = group.reader();
        offload(move || engine.compact()).await?;
        self.wiped = destruction.at;
        tracing::info!(keys = destruction.keys, "what was left of destroyed keys is wiped");
        Ok(())
    }
}
