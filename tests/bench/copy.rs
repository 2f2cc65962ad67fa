//! Copying a study to a second node, beside bare quinn moving the same bytes.

use std::process::Command;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::http::{self, Client};
use crate::lab::Lab;
use crate::mesh::{Mesh, Site};
use crate::process::until;
use crate::report::{Row, Section};
use crate::study::Study;

mod quinn;

use quinn::{RawSender, Receive};
pub(crate) use quinn::{SENDER, send_raw};

const FETCH: &str = "study fetch on an empty node";
const PLACED: &str = "placed copy, publish to holder";
const RAW: &str = "bare quinn, not hashed";
const RAW_HASHED: &str = "bare quinn, BLAKE3";
const RAW_WRITTEN: &str = "limit: bare quinn, BLAKE3, disk";

/// Measures.
pub(crate) async fn run(lab: &Lab, study: &Study) -> anyhow::Result<Section> {
    let title =
        format!("{} slices, {:.0} MB, one node to another on loopback", study.slices.len(), study.bytes as f64 / 1e6);
    let mut section = Section::new("copy", title);
    let [mut fetch, mut placed, mut raw, mut hashed, mut written] = [const { Vec::new() }; 5];
    let mut sender = RawSender::start(lab, study).await.context("start the bare sender")?;
    for _ in 0..lab.rounds {
        fetch.push(fetched(lab, study).await.context(FETCH)?);
        raw.push(sender.receive(lab, Receive::Only).await.context(RAW)?);
        hashed.push(sender.receive(lab, Receive::Hash).await.context(RAW_HASHED)?);
        placed.push(placed_copy(lab, study).await.context(PLACED)?);
        written.push(sender.receive(lab, Receive::HashAndWrite).await.context(RAW_WRITTEN)?);
    }
    for (name, note, seconds) in [
        (FETCH, "durable and recorded as a copy", fetch),
        (PLACED, "durable; includes settling of 0.2 s", placed),
        (RAW, "no disk; 8 streams, same TLS and windows", raw),
        (RAW_HASHED, "no disk", hashed),
        (RAW_WRITTEN, "fdatasync each 8 MiB, preallocated", written),
    ] {
        section.push(Row::transfer(name, note, study.bytes, seconds));
    }
    for (name, peer) in [("fetch / bare quinn", RAW), ("fetch / bare quinn, BLAKE3", RAW_HASHED)] {
        section.ratio(name, section.median(FETCH, "MB/s") / section.median(peer, "MB/s"), 0.9);
    }
    Ok(section)
}

/// Seconds of `study fetch` on a node that holds nothing, until it holds the study durably and the
/// mesh knows.
async fn fetched(lab: &Lab, study: &Study) -> anyhow::Result<f64> {
    let mesh = Mesh::start(lab, 2, 1).await?;
    let [holder, empty] = mesh.sites.as_slice() else { anyhow::bail!("two nodes") };
    study.send(holder.dicom).await?;
    holder.published(&study.uid, study.slices.len()).await?;
    empty.published(&study.uid, study.slices.len()).await?;
    let before = empty.get("/api/v1/chunks").await?;
    ensure!(before["bytes"].as_u64() == Some(0), "the node to copy to holds something: {before}");
    let mut client = Client::connect(empty.http).await?;
    lab.quiet().await?;
    let since = Instant::now();
    let said = client.post(&format!("/api/v1/studies/{}/fetch", study.uid), Bytes::new()).await?;
    let seconds = since.elapsed().as_secs_f64();
    let last = said.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).context("an answer")?;
    let last: Value = serde_json::from_slice(last)?;
    ensure!(last["complete"] == json!(true), "the fetch failed: {last}");
    whole(study, empty).await?;
    Ok(seconds)
}

/// Seconds from the moment a study is known to the mesh until a second node has reported its copy.
async fn placed_copy(lab: &Lab, study: &Study) -> anyhow::Result<f64> {
    let mesh = Mesh::start(lab, 2, 2).await?;
    let [holder, other] = mesh.sites.as_slice() else { anyhow::bail!("two nodes") };
    lab.quiet().await?;
    study.send(holder.dicom).await?;
    holder.published(&study.uid, study.slices.len()).await?;
    let since = Instant::now();
    let path = format!("/api/v1/studies/{}", study.uid);
    until("a second copy", async || {
        let found = http::get(holder.http, &path).await;
        Ok(found.filter(|study| study["copies"].as_u64() == Some(2)).map(drop))
    })
    .await?;
    let seconds = since.elapsed().as_secs_f64();
    whole(study, other).await?;
    Ok(seconds)
}

/// That a node holds the study and every byte of it is right.
async fn whole(study: &Study, site: &Site) -> anyhow::Result<()> {
    let mut client = Client::connect(site.http).await?;
    let report = client.post(&format!("/api/v1/studies/{}/verify", study.uid), Bytes::new()).await?;
    let report: Value = serde_json::from_slice(&report)?;
    let is_whole = report["complete"] == json!(true) && report["instances"] == json!(study.slices.len());
    ensure!(is_whole, "the copy is not whole: {report}");
    Ok(())
}

/// This program again, as the bare sender.
fn own_program() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}
