//! What is left of destroyed keys on this node's disk goes, too.
//!
//! A purge takes a key out of the state at once. Its bytes still lie in older snapshots, in the Raft log if they
//! came lately, and in what the engine has not compacted yet. So a while after a purge this node makes a snapshot,
//! begins a new file of the log and purges it up to there if a destroyed key may be in it, and has the engine compact
//! itself. Purges come in batches, at the end of retention: many share one round. A process that ends in the middle
//! begins anew. What remains after it is in docs/operations.md.

use std::time::Duration;

use maillage_host::offload;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Looks between the beginnings of two rounds: each reads and writes the whole state, some gigabytes at the largest.
/// A round itself takes four: log file, snapshot, log, engine.
const ROUND_LOOKS: u32 = 10;

/// What was wiped, and the round under way.
#[derive(Debug, Default)]
struct Rounds {
    /// The log index of a destruction after which everything was wiped.
    wiped: u64,
    /// Up to where nothing of the log is left on this disk.
    cleared: u64,
    began: Option<Instant>,
    under_way: Option<Round>,
}

/// What a round is for.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// The log index of the destruction.
    destroyed_at: u64,
    /// Up to where the log goes.
    clear: u64,
}

/// Wipes until `shutdown`.
pub(super) async fn run(node: Node, shutdown: CancellationToken) {
    let look = Duration::from_secs(node.config().storage.wipe_s);
    let mut rounds = Rounds::default();
    while shutdown.run_until_cancelled(tokio::time::sleep(look)).await.is_some() {
        if let Err(error) = rounds.go_on(&node, look * ROUND_LOOKS).await {
            tracing::warn!(error = format!("{error:#}"), "what is left of destroyed keys was not wiped yet");
        }
    }
}

impl Rounds {
    /// The next step of a round, if there is one to take.
    async fn go_on(&mut self, node: &Node, between: Duration) -> anyhow::Result<()> {
        let destruction = node.read(|view| view.destruction())?;
        let group = node.group();
        let Some(round) = self.under_way else {
            let rests = self.began.is_some_and(|began| began.elapsed() < between);
            if destruction.at > self.wiped && !rests {
                // Mostly the key is months old, and was in no file of the log for as long.
                let clear = if destruction.brought_at > self.cleared { group.begin_log_file().await? } else { 0 };
                self.began = Some(Instant::now());
                // What is destroyed while a round goes on is for the next one.
                self.under_way = Some(Round { destroyed_at: destruction.at, clear });
                group.trigger_snapshot().await?;
            }
            return Ok(());
        };
        let status = node.group_status();
        if status.snapshot.is_none_or(|snapshot| snapshot < round.destroyed_at.max(round.clear)) {
            // One that was under way when it was asked for may be of before.
            group.trigger_snapshot().await?;
            return Ok(());
        }
        if round.clear > 0 && status.purged.is_none_or(|purged| purged < round.clear) {
            group.purge_log(round.clear).await?;
            return Ok(());
        }
        let engine = group.reader();
        offload(move || engine.compact()).await?;
        self.wiped = round.destroyed_at;
        self.cleared = self.cleared.max(round.clear);
        self.under_way = None;
        tracing::info!(keys = destruction.keys, "what was left of destroyed keys is wiped");
        Ok(())
    }
}
