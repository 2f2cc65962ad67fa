//! Taking in a study by C-STORE: seconds until the sender has every slice confirmed.
//!
//! Each receiver starts empty in each round, because what a store has already it need not write.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use tokio::time::Instant;

use crate::lab::{Lab, program};
use crate::mesh::Mesh;
use crate::process::run as run_program;
use crate::report::{Row, Section};
use crate::study::Study;

mod disk;
mod orthanc;
mod storescp;

pub(crate) use disk::preallocated;

/// Rounds in which a receiver that stalls is measured: it takes 20 s, of which nearly all is waiting.
const STALLED_ROUNDS: usize = 2;

const NODE: &str = "node <- storescu";
const NODE_OWN: &str = "node <- our sender";
const STORESCP: &str = "storescp <- storescu";
const STORESCP_NODELAY: &str = "storescp, TCP_NODELAY=1 <- storescu";
const ORTHANC: &str = "Orthanc <- storescu";
const ORTHANC_NODELAY: &str = "Orthanc, TCP_NODELAY=1 <- storescu";
const DISK: &str = "limit: the disk, fdatasync a slice";

/// A receiver built on dcmtk, which by default leaves Nagle's algorithm on: each message then waits
/// for the sender's delayed acknowledgement, and the figure is of that wait more than of the receiver.
#[derive(Debug, Clone, Copy)]
enum Nagle {
    /// As it comes.
    Default,
    /// `TCP_NODELAY=1` in the receiver's environment: what it can do when set up with care.
    Off,
}

impl Nagle {
    /// Sets the receiver's environment.
    fn apply(self, receiver: &mut Command) {
        match self {
            Self::Default => receiver.env_remove("TCP_NODELAY"),
            Self::Off => receiver.env("TCP_NODELAY", "1"),
        };
    }
}

/// Who sends.
#[derive(Debug, Clone, Copy)]
enum Sender<'a> {
    /// dcmtk's, with its default settings.
    Storescu(&'a Path),
    /// `maillage_dicom`'s.
    Own,
}

impl Sender<'_> {
    /// Seconds until the receiver has confirmed the whole study; a sender's start is part of it.
    async fn send(self, study: &Study, to: SocketAddr) -> anyhow::Result<f64> {
        let since = Instant::now();
        match self {
            Self::Storescu(program) => {
                let mut command = Command::new(program);
                command.args(["+sd", "+r", "127.0.0.1", &to.port().to_string()]).arg(study.dir());
                run_program(command).await?;
            }
            Self::Own => study.send(to).await?,
        }
        Ok(since.elapsed().as_secs_f64())
    }
}

/// Measures.
pub(crate) async fn run(lab: &Lab, study: &Study) -> anyhow::Result<Section> {
    let title = format!(
        "{} slices, {:.0} MB, one association on loopback, until all is confirmed",
        study.slices.len(),
        study.bytes as f64 / 1e6
    );
    let mut section = Section::new("ingest", title);
    let (storescu, storescp, orthanc) = (program("storescu"), program("storescp"), program("Orthanc"));
    let storescu = storescu.as_deref().map(Sender::Storescu);
    let [mut node, mut node_own, mut bare] = [const { Vec::new() }; 3];
    let [mut scp, mut scp_off, mut other, mut other_off] = [const { Vec::new() }; 4];
    for round in 0..lab.rounds {
        node_own.push(into_node(lab, study, Sender::Own).await.context(NODE_OWN)?);
        if let Some(sender) = storescu {
            node.push(into_node(lab, study, sender).await.context(NODE)?);
            for (nagle, scp, other) in
                [(Nagle::Off, &mut scp_off, &mut other_off), (Nagle::Default, &mut scp, &mut other)]
            {
                if matches!(nagle, Nagle::Default) && round >= STALLED_ROUNDS {
                    continue;
                }
                if let Some(storescp) = &storescp {
                    scp.push(storescp::measure(lab, study, storescp, sender, nagle).await.context(STORESCP)?);
                }
                if let Some(orthanc) = &orthanc {
                    other.push(orthanc::measure(lab, study, orthanc, sender, nagle).await.context(ORTHANC)?);
                }
            }
        }
        bare.push(disk::measure(lab, study).await.context(DISK)?);
    }
    for (name, note, seconds) in [
        (NODE, "durable when confirmed", node),
        (NODE_OWN, "durable when confirmed", node_own),
        (STORESCP, "NOT durable: no fsync; Nagle stalls", scp),
        (STORESCP_NODELAY, "NOT durable: no fsync", scp_off),
        (ORTHANC, "each file synced; Nagle stalls", other),
        (ORTHANC_NODELAY, "each file synced", other_off),
        (DISK, "preallocated, zeroed, one file, no network", bare),
    ] {
        if !seconds.is_empty() {
            section.push(Row::transfer(name, note, study.bytes, seconds));
        }
    }
    for (name, found) in
        [("storescu", storescu.is_some()), ("storescp", storescp.is_some()), ("Orthanc", orthanc.is_some())]
    {
        if !found {
            section.skip(name);
        }
    }
    section.ratio("node, MB/s from storescu", section.median(NODE, "MB/s"), 150.0);
    for (name, peer) in [("node / Orthanc as it comes", ORTHANC), ("node / Orthanc, TCP_NODELAY=1", ORTHANC_NODELAY)] {
        section.ratio(name, section.median(NODE, "MB/s") / section.median(peer, "MB/s"), 4.0);
    }
    Ok(section)
}

async fn into_node(lab: &Lab, study: &Study, sender: Sender<'_>) -> anyhow::Result<f64> {
    let mesh = Mesh::start(lab, 1, 1).await?;
    let site = mesh.sites.first().context("a node")?;
    lab.quiet().await?;
    let seconds = sender.send(study, site.dicom).await?;
    site.published(&study.uid, study.slices.len()).await?;
    Ok(seconds)
}

/// That a receiver has the whole study; else its time means nothing.
fn is_whole(study: &Study, received: u64) -> anyhow::Result<()> {
    ensure!(received == study.slices.len() as u64, "{received} slices arrived of {}", study.slices.len());
    Ok(())
}
