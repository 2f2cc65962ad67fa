//! `maillage verify`, `scrub` and `repair`: whether what is stored here is right, and what is done about it.

use std::sync::Arc;

use clap::Subcommand;
use hyper::Method;
use maillage_host::engine::FjallHome;
use maillage_host::{Clock, Disk};
use maillage_store::{Store, StoreConfig};
use serde_json::{Value, json};

use super::Context;
use super::study::{incomplete, progress};
use crate::client::{Client, ClientError, with_query};
use crate::data_dir::DataDir;
use crate::exit::{ExitCode, Failure};
use crate::output::{bytes, field, items, number};
use crate::verify;

/// Memory for the index while it is only gone through once.
const INDEX_CACHE_BYTES: u64 = 8 << 20;

#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum ScrubCommand {
    /// Go on, or begin a pass over all packs now
    Start,
    /// Stop until it is started again, over restarts too
    Pause,
    /// Where it stands, and what it found
    Status,
}

pub(super) async fn scrub(context: &Context, command: ScrubCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    let status = match command {
        ScrubCommand::Start => client.post_long("/admin/v1/scrub/start").await?,
        ScrubCommand::Pause => client.post_long("/admin/v1/scrub/pause").await?,
        ScrubCommand::Status => client.get("/admin/v1/scrub").await?,
    };
    context.print(&status, |status| {
        let mut text = format!(
            "scrub    {}, at most {} a second\n",
            field(status, &["state"]),
            bytes(number(status, &["rate_bytes_s"])),
        );
        for (name, pass) in [("now", "under_way"), ("last", "last")] {
            if status[pass].is_object() {
                text.push_str(&pass_line(name, &status[pass]));
            }
        }
        if number(status, &["unrepaired"]) != Some(0) {
            text.push_str(&format!("ALARM    {} damaged chunks are nowhere else\n", field(status, &["unrepaired"])));
        }
        text
    })?;
    Ok(())
}

fn pass_line(name: &str, pass: &Value) -> String {
    let get = |name: &str| field(pass, &[name]);
    let size = bytes(number(pass, &["bytes"]));
    format!(
        "{name:<8} {size} read, {} damaged, {} written anew, {} packs lost; began {}, ended {}\n",
        get("found"),
        get("rewritten"),
        get("lost_packs"),
        get("began_at"),
        get("ended_at"),
    )
}

/// Reads everything here; also while the node does not run.
pub(super) async fn verify(context: &Context) -> anyhow::Result<ExitCode> {
    let report = match long(context, &context.client()?, "/admin/v1/verify").await {
        Err(error) if matches!(error.downcast_ref(), Some(ClientError::NotRunning(_))) => offline(context).await?,
        answered => answered?,
    };
    context.print(&report, |report| {
        let get = |name: &str| field(report, &[name]);
        let mut text = format!("{} of packs were read\n", bytes(number(report, &["bytes"])));
        for hash in items(&report["damaged_hashes"], "") {
            text.push_str(&format!("damaged       {}\n", field(hash, &[])));
        }
        for pack in items(&report["lost_packs"], "") {
            text.push_str(&format!("lost pack     {}\n", field(pack, &[])));
        }
        text.push_str(&format!(
            "{} damaged objects found, {} quarantined now, {} records written anew\n\
             {} parts of studies should be here, {} are not whole, {} objects are missing\n",
            get("damaged"),
            get("bad"),
            get("rewritten"),
            get("parts"),
            get("incomplete"),
            get("missing"),
        ));
        if let Some(lost @ 1..) = number(report, &["landing_lost"]) {
            text.push_str(&format!("{lost} images that were acknowledged cannot be read from the landing\n"));
        }
        text + if report["complete"] == json!(true) {
            "complete: every byte is as it was stored; no image was opened, as `study verify UID` does\n"
        } else {
            "NOT complete\n"
        }
    })?;
    let is_some = |name: &str| number(&report, &[name]) != Some(0);
    if matches!(number(&report, &["landing_lost"]), Some(1..)) {
        let failure = Failure::new(ExitCode::Corrupt, "images that were acknowledged are lost here");
        return Err(failure.with_hint("the log names their studies: have them sent again").into());
    }
    if is_some("damaged") || is_some("bad") {
        let failure = Failure::new(ExitCode::Corrupt, "some bytes here are not what was received");
        return Err(failure.with_hint("`maillage repair` brings them back from the other sites").into());
    }
    Ok(if report["complete"] == json!(true) { ExitCode::Ok } else { ExitCode::Degraded })
}

/// The same of a data directory that no node has.
async fn offline(context: &Context) -> anyhow::Result<Value> {
    let config = context.config()?;
    let directory = DataDir::open(&config.node.data_dir)?;
    let index = Arc::new(FjallHome::new(directory.index(), INDEX_CACHE_BYTES));
    let images = StoreConfig { reserve_bytes: config.storage.reserve_mib << 20, ..StoreConfig::default() };
    let store = Store::open(Disk::real(directory.root()), "", index, Clock::system(), images).await?;
    let bar = progress(context);
    let found = verify::offline(&store, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    let found = found.await;
    bar.finish_and_clear();
    store.close().await?;
    Ok(found?.to_json())
}

/// Brings back what is damaged or missing. What is still missing then is degraded.
pub(super) async fn repair(context: &Context, study: Option<String>) -> anyhow::Result<ExitCode> {
    let path = with_query("/admin/v1/repair", &[("study", study)]);
    let report = long(context, &context.client()?, &path).await?;
    context.print(&report, |report| {
        let get = |name: &str| field(report, &[name]);
        let mut text = format!(
            "{} studies looked at, {} parts of them here\n{} objects brought back, {}; {} that nothing needed discarded\n",
            get("studies"),
            get("parts"),
            get("brought"),
            bytes(number(report, &["bytes"])),
            get("discarded"),
        );
        for lost in items(&report["nowhere"], "") {
            let (object, study) = (field(lost, &["object"]), field(lost, &["study"]));
            text.push_str(&format!("nowhere       {object} of study {study}\n"));
        }
        for failure in items(&report["failed"], "") {
            text.push_str(&format!("failed        {}: {}\n", field(failure, &["study"]), field(failure, &["why"])));
        }
        if report["recorded"] == json!(false) {
            text.push_str("note: no quorum was told yet what is here again; that follows by itself\n");
        }
        text + &match number(report, &["nowhere_count"]) {
            Some(0) if report["complete"] == json!(true) => "complete: nothing is left to repair\n".to_owned(),
            Some(left) => format!("NOT complete: no site that can be asked has {left} objects\n"),
            None => "NOT complete\n".to_owned(),
        }
    })?;
    Ok(if report["complete"] == json!(true) { ExitCode::Ok } else { ExitCode::Degraded })
}

/// Asks for long work, shows its progress, and returns its report.
async fn long(context: &Context, client: &Client, path: &str) -> anyhow::Result<Value> {
    let mut lines = client.stream(Method::POST, path, "application/x-ndjson, application/problem+json").await?;
    let bar = progress(context);
    loop {
        let Some(line) = lines.next_line().await? else {
            return Err(ClientError::Broken("it ended before the work was done".to_owned()).into());
        };
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        if let (Some(done), Some(total)) = (number(&value, &["done"]), number(&value, &["total"])) {
            bar.set_length(total);
            bar.set_position(done);
        }
        if value.get("problem").is_some() {
            return Err(incomplete(&value).into());
        }
        if value.get("complete").is_some() {
            bar.finish_and_clear();
            return Ok(value);
        }
    }
}
