//! `maillage spool`, and `maillage status` on a hospital's gateway.

use clap::Subcommand;
use hyper::Method;
use serde_json::Value;

use super::{Context, Repeatable, status};
use crate::output::{Table, bytes, duration_ms, field, items, number};

#[derive(Debug, Subcommand)]
pub(super) enum SpoolCommand {
    /// What no centre takes, and why
    List,
    /// Offer again what no centre took
    Retry {
        #[command(flatten)]
        repeatable: Repeatable,
    },
}

pub(super) async fn run(context: &Context, command: SpoolCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        SpoolCommand::List => {
            let spool = client.get("/api/v1/spool").await?;
            context.print(&spool, |spool| {
                let mut table = Table::new(&["INSTANCE", "STUDY", "REASON", "SOURCE", "RECEIVED"]);
                for rejected in items(spool, "rejected") {
                    let column = |name: &str| field(rejected, &[name]);
                    table.row(["sop_instance", "study", "reason", "source", "received_at"].map(column));
                }
                table.render("every instance is taken")
            })?;
        }
        SpoolCommand::Retry { repeatable } => {
            let path = "/admin/v1/spool/retry";
            let done = client.command(Method::POST, path, None, repeatable.id()).await?;
            context.print(&done, |done| format!("{} instances are offered again\n", field(done, &["instances"])))?;
        }
    }
    Ok(())
}

/// A gateway's status.
pub(super) fn screen(status: &Value) -> String {
    let get = |path: &[&str]| field(status, path);
    let spool = |name: &str| field(status, &["spool", name]);
    let size = |name: &str| bytes(number(status, &["spool", name]));
    let mut text = format!(
        "mesh     {}\nsite     {} {}, gateway, version {}\n",
        get(&["mesh", "name"]),
        get(&["site", "id"]),
        get(&["site", "name"]),
        get(&["version"]),
    );
    text.push_str(&format!(
        "spool    {} instances, {} of {}, {} free; oldest not safe {}\n",
        spool("instances"),
        size("bytes"),
        size("bytes_max"),
        size("free_bytes"),
        duration_ms(number(status, &["spool", "oldest_ms"])),
    ));
    text.push_str(&format!(
        "         {} waiting, {} in flight, {} pushed, {} safe, {} rejected\n",
        spool("waiting"),
        spool("in_flight"),
        spool("pushed"),
        spool("safe"),
        spool("rejected"),
    ));
    text.push_str(&format!(
        "feed     at {}, asked {} ago; {} reports since the start, {} not acknowledged\n\n",
        get(&["feed", "cursor"]),
        duration_ms(number(status, &["feed", "heard_ms"])),
        get(&["feed", "delivered"]),
        get(&["feed", "unacknowledged"]),
    ));
    let mut table = Table::new(&["SITE", "NAME", "STATE", "ALLOWED", "USED", "QUORUM", "HEARD", "ADDRESSES"]);
    for centre in items(status, "centres") {
        let column = |name: &str| field(centre, &[name]);
        table.row([
            column("site"),
            column("name"),
            column("state"),
            column("allowed"),
            column("used"),
            column("quorum"),
            duration_ms(number(centre, &["heard_ms"])),
            column("addresses"),
        ]);
    }
    text.push_str(&table.render("no centres"));
    let warnings = items(status, "warnings");
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        text.push_str(&status::warning_lines(warning));
    }
    text
}
