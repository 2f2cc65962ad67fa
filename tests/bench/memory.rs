//! The most memory a node ever takes: with 1, 10 and 100 studies at once, of as many bytes in all.
//!
//! Each figure is of nodes of their own: a peak never goes down again. What grows with the number of studies
//! at once, and not with their bytes, shows as a peak that is not flat.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::http::Client;
use crate::lab::Lab;
use crate::mesh::Mesh;
use crate::report::{Figure, Row, Section};
use crate::study::Study;

/// Studies at once.
const AT_ONCE: [u32; 3] = [1, 10, 100];
/// Until a fetch that was turned away is asked for again.
const AGAIN: Duration = Duration::from_millis(100);
/// What 100 at once may take beside 1.
const FLAT: f64 = 2.0;
const SEED: u64 = 5000;

/// The peaks of one round, in MiB.
struct Peaks {
    /// Of a node that takes them in by C-STORE, an association each.
    taking: f64,
    /// How fast it does, in MB/s: memory that is flat since senders wait for nothing would be no gain.
    taking_mb_s: f64,
    /// Of a node that brings them from another.
    bringing: f64,
    /// Of that other, which took them in before.
    giving: f64,
}

/// Measures.
pub(crate) async fn run(lab: &Lab, slices: u32) -> anyhow::Result<Section> {
    let title = format!("the peak of a node with {slices} slices of 512 x 512 in 1, 10 and 100 studies at once");
    let mut section = Section::new("memory", title);
    for at_once in AT_ONCE {
        let mut rounds = Vec::new();
        for _ in 0..lab.rounds {
            let peaks = measure(lab, at_once, (slices / at_once).max(1)).await;
            rounds.push(peaks.with_context(|| format!("{at_once} at once"))?);
        }
        let mib = |value: fn(&Peaks) -> f64| Figure::less_is_better("MiB", rounds.iter().map(value).collect());
        let mut push = |what: &str, note, figures| section.push(Row { name: row(what, at_once), note, figures });
        let speed = Figure::more_is_better("MB/s", rounds.iter().map(|peaks| peaks.taking_mb_s).collect());
        push("taken in", "an association each", vec![mib(|peaks| peaks.taking), speed]);
        push("brought", "study fetch, all at once", vec![mib(|peaks| peaks.bringing)]);
        push("given", "after they were taken in", vec![mib(|peaks| peaks.giving)]);
    }
    for what in ["taken in", "brought", "given"] {
        let [least, .., most] = AT_ONCE;
        let of = |at_once| section.median(&row(what, at_once), "MiB");
        section.ratio(&format!("{FLAT} x peak of {least} / of {most}, {what}"), FLAT * of(least) / of(most), 1.0);
    }
    Ok(section)
}

fn row(what: &str, at_once: u32) -> String {
    format!("{what}, {at_once} at once")
}

async fn measure(lab: &Lab, at_once: u32, slices: u32) -> anyhow::Result<Peaks> {
    let mesh = Mesh::start(lab, 2, 1).await?;
    let [holder, empty] = mesh.sites.as_slice() else { anyhow::bail!("two nodes") };
    let made = (0..at_once).map(|n| Study::in_memory(slices, SEED + u64::from(n)));
    let studies: Vec<Arc<Study>> = try_join_all(made).await?.into_iter().map(Arc::new).collect();
    lab.quiet().await?;
    // One after the other: of too many that negotiate at once, a node turns the oldest away.
    let mut associations = Vec::new();
    for _ in &studies {
        associations.push(Study::associate(holder.dicom).await.context("associate")?);
    }
    let sending = studies.iter().zip(associations).map(|(study, association)| study.send_over(association));
    let started = Instant::now();
    try_join_all(sending).await.context("send")?;
    let bytes: u64 = studies.iter().map(|study| study.bytes).sum();
    let taking_mb_s = bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
    let taking = holder.memory_peak_mib()?;
    for study in &studies {
        empty.published(&study.uid, study.slices.len()).await?;
    }
    let brought = studies.iter().map(|study| async {
        let path = format!("/api/v1/studies/{}/fetch", study.uid);
        let mut client = Client::connect(empty.http).await?;
        let said = loop {
            match client.send(Method::POST, &path, Bytes::new()).await? {
                (200, said) => break said,
                // A node does so many at once and says so: who is turned away comes back.
                (503, _) => sleep(AGAIN).await,
                (status, said) => bail!("{path}: {status} {}", String::from_utf8_lossy(&said)),
            }
        };
        let last = said.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).context("an answer")?;
        let last: Value = serde_json::from_slice(last)?;
        ensure!(last["complete"] == json!(true), "the fetch failed: {last}");
        Ok(())
    });
    try_join_all(brought).await.context("fetch")?;
    Ok(Peaks { taking, taking_mb_s, bringing: empty.memory_peak_mib()?, giving: holder.memory_peak_mib()? })
}
