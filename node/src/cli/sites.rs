//! `maillage peers` and `maillage chunks`: the other sites, and this one's store.

use clap::Subcommand;
use serde_json::Value;

use super::{Context, age_note, placement};
use crate::output::{Table, bytes, duration_ms, field, items, number};

#[derive(Debug, Subcommand)]
pub(super) enum PeersCommand {
    /// Every site, and how it is reached
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum ChunksCommand {
    /// How much this node stores, and how many copies the mesh has and lacks
    Stats,
    /// Who holds a study's images, and who should
    Locate {
        /// Study Instance UID
        uid: String,
    },
}

pub(super) async fn peers(context: &Context, command: PeersCommand) -> anyhow::Result<()> {
    let PeersCommand::List = command;
    let peers = context.client()?.get("/api/v1/peers").await?;
    context.print(&peers, |peers| table(items(peers, "peers")).render("no sites") + &age_note(peers))?;
    Ok(())
}

/// A row a site; `status` shows the same.
pub(super) fn table(peers: &[Value]) -> Table {
    let mut table =
        Table::new(&["SITE", "NAME", "ZONE", "ROLE", "STATE", "RTT", "LAG", "SESSION", "VERSION", "ADDRESSES"]);
    for peer in peers {
        let column = |name: &str| field(peer, &[name]);
        table.row([
            column("site"),
            column("name"),
            column("zone"),
            column("role"),
            column("state"),
            rtt(peer),
            column("lag"),
            match peer.get("session_open").and_then(Value::as_bool) {
                Some(true) => "open".to_owned(),
                Some(false) => "closed".to_owned(),
                None => "-".to_owned(),
            },
            column("version"),
            column("addresses"),
        ]);
    }
    table
}

/// Round trips on a local network are fractions of a millisecond.
fn rtt(peer: &Value) -> String {
    match peer.get("rtt_ms").and_then(Value::as_f64) {
        Some(milliseconds) if milliseconds < 10.0 => format!("{milliseconds:.1} ms"),
        _ => duration_ms(number(peer, &["rtt_ms"]).or_else(|| whole(peer.get("rtt_ms")?.as_f64()?))),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
fn whole(milliseconds: f64) -> Option<u64> {
    milliseconds.is_finite().then_some(milliseconds as u64)
}

pub(super) async fn chunks(context: &Context, command: ChunksCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    if let ChunksCommand::Locate { uid } = command {
        return placement::locate(context, &uid).await;
    }
    let mut stats = client.get("/api/v1/chunks").await?;
    stats["mesh"] = client.get_long("/api/v1/placement/counts").await?;
    context.print(&stats, |stats| {
        let mut text = format!(
            "chunks   {} in {} packs\nstored   {}\nfree     {} of {}\ndamaged  {}\n",
            field(stats, &["chunks"]),
            field(stats, &["packs"]),
            bytes(number(stats, &["bytes"])),
            bytes(number(stats, &["free_bytes"])),
            bytes(number(stats, &["total_bytes"])),
            field(stats, &["bad"]),
        );
        for hash in items(&stats["bad_hashes"], "") {
            text.push_str(&format!("         {}\n", field(hash, &[])));
        }
        let conflicts = items(&stats["conflicts"], "");
        text.push_str(&format!("apart    {} instances: other data came first under their UIDs\n", conflicts.len()));
        for conflict in conflicts {
            let [uid, study, source] = ["sop_instance", "study", "source"].map(|name| field(conflict, &[name]));
            text.push_str(&format!("         {uid} of study {study}, from {source}\n"));
        }
        if let Some(true) = stats.get("writer_failed").and_then(Value::as_bool) {
            text.push_str("warning: nothing can be stored since a write failed; restart the node\n");
        }
        text.push_str(&placement::copies(&stats["mesh"]));
        text
    })?;
    Ok(())
}
