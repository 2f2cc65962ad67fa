//! Nodes in network namespaces: holders of a study, and the centre that claims it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hyper::Method;
use maillage_tests::wan::{Counts, Shape, Wan, address};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use super::peers::Echoes;
use crate::http::{self, Client};
use crate::lab::Lab;
use crate::process::{Server, run, until};
use crate::study::Study;

/// Where each node listens, in its own namespace.
const HTTP: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 7480);
const DICOM: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 11112);
const MESH_PORT: u16 = 7400;
/// The reader's share of copies beside the holders': as good as none.
const WEIGHTS: (u16, u16) = (60_000, 1);
/// Between two looks whether a slice is there.
const LOOK: Duration = Duration::from_millis(5);

/// Some holders and a reader, one mesh. Dropped, the processes go first.
pub(super) struct Sites {
    servers: Vec<Server>,
    wan: Arc<Wan>,
    /// How many hold a study before it is claimed; the reader is the site after them.
    pub(super) holders: usize,
    root: TempDir,
    binary: PathBuf,
}

impl Sites {
    /// Nodes on lines of this shape, settled.
    pub(super) async fn start(lab: &Lab, holders: usize, line: &Shape, congestion: &str) -> anyhow::Result<Self> {
        let wan = Arc::new(Wan::new(holders + 1, line, 1)?);
        let root = lab.dir("wan")?;
        let mut sites = Self { servers: Vec::new(), wan, holders, root, binary: lab.binary.clone() };
        for number in 0..=holders {
            sites.configure(number, congestion)?;
            sites.join(number).await?;
        }
        sites.settled().await?;
        Ok(sites)
    }

    fn configure(&self, number: usize, congestion: &str) -> anyhow::Result<()> {
        let weight = if number == self.holders { WEIGHTS.1 } else { WEIGHTS.0 };
        // Images are to come with the claim, not before.
        let text = format!(
            "[node]\nname = \"site-{number}\"\nweight = {weight}\ndata_dir = {:?}\n\
             [mesh]\nlisten = \"{}:{MESH_PORT}\"\ncongestion = \"{congestion}\"\n\
             [http]\nlisten = \"{}:{}\"\n[storage]\ncopies = {}\nprefetch_mib_max = 0\n\
             [dicom]\nlisten = \"{}:{}\"\nany_caller = true\ncheck_called = false\nquiet_seconds = 1\n",
            self.root.path().join(format!("site-{number}")),
            address(number),
            HTTP.0,
            HTTP.1,
            self.holders,
            DICOM.0,
            DICOM.1,
        );
        Ok(std::fs::write(self.config(number), text)?)
    }

    fn config(&self, number: usize) -> PathBuf {
        self.root.path().join(format!("site-{number}.toml"))
    }

    fn command(&self, number: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(self.config(number)).args(arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MAILLAGE") {
                command.env_remove(name);
            }
        }
        command
    }

    async fn run(&self, number: usize, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let command = self.command(number, arguments);
        Ok(self.wan.sites[number].run(run(command)).await??.stdout)
    }

    async fn join(&mut self, number: usize) -> anyhow::Result<()> {
        if number == 0 {
            self.run(0, &["init", "--mesh", "bench"]).await?;
        } else {
            let made = self.run(0, &["-o", "json", "token", "create", "--lifetime", "10m"]).await?;
            let made: Value = serde_json::from_slice(&made)?;
            self.run(number, &["join", made["token"].as_str().context("a token")?]).await?;
        }
        let mut command = self.command(number, &["serve"]);
        let log = self.root.path().join(format!("site-{number}.log"));
        let started = async move {
            let mut server = Server::start("a node", &mut command, &log)?;
            let leads =
                async || http::get(HTTP.into(), "/api/v1/status").await.is_some_and(|s| s["leader_site"].is_number());
            server.ready(leads).await?;
            anyhow::Ok(server)
        };
        self.servers.push(self.wan.sites[number].run(started).await??);
        Ok(())
    }

    async fn settled(&self) -> anyhow::Result<()> {
        let voters = if self.servers.len() < 3 { 1 } else { 3 };
        until("the mesh is settled", async || {
            for number in 0..self.servers.len() {
                let status = self.get(number, "/api/v1/status").await?.unwrap_or_default();
                let open = |peer: &&Value| peer["session_open"] == json!(true);
                let sessions = status["peers"].as_array().map_or(0, |peers| peers.iter().filter(open).count());
                if sessions < self.servers.len() || status["quorum"]["voters"].as_u64() != Some(voters) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    async fn get(&self, number: usize, path: &str) -> anyhow::Result<Option<Value>> {
        let path = path.to_owned();
        Ok(self.wan.sites[number].run(async move { http::get(HTTP.into(), &path).await }).await?)
    }

    async fn post(&self, number: usize, path: &str, body: Value) -> anyhow::Result<Value> {
        let path = path.to_owned();
        let asked = async move {
            let mut client = Client::connect(HTTP.into()).await?;
            client.post(&path, body.to_string().into()).await
        };
        Ok(serde_json::from_slice(&self.wan.sites[number].run(asked).await??)?)
    }

    /// Requests the examination of a study.
    pub(super) async fn request(&self, study: &Study) -> anyhow::Result<()> {
        let exam = json!({
            "accession": study.accession,
            "patient": { "id": study.patient, "name": "PHANTOM^HEAD", "sex": "O" },
            "modality": "CT",
            "description": "CT head",
            "priority": "urgent",
        });
        self.post(0, "/api/v1/exams", exam).await.map(drop)
    }

    /// Sends a study to the first holder, from its own hospital.
    pub(super) async fn store(&self, study: &Arc<Study>) -> anyhow::Result<()> {
        let study = Arc::clone(study);
        self.wan.sites[0].run(async move { study.send(DICOM.into()).await }).await?
    }

    /// Waits until the reader's node knows all of a study, on so many sites.
    pub(super) async fn published(&self, study: &Study, copies: usize) -> anyhow::Result<()> {
        let path = format!("/api/v1/studies/{}", study.uid);
        until("the study is on its sites", async || {
            let found = self.get(self.holders, &path).await?;
            let is_it = |found: &Value| {
                found["instances"].as_u64() == Some(study.slices.len() as u64)
                    && found["copies"].as_u64() == Some(copies as u64)
            };
            Ok(found.filter(is_it).map(drop))
        })
        .await
    }

    /// Claims the next exam at the reader's node.
    pub(super) async fn claim(&self, user: &str) -> anyhow::Result<()> {
        let granted = self.post(self.holders, "/api/v1/claims/next", json!({ "user": user })).await?;
        ensure!(granted["granted"] == json!(true), "nothing to claim: {granted}");
        Ok(())
    }

    /// Reads one slice by WADO-RS at the reader's node, as soon as it can be.
    pub(super) async fn slice(&self, study: &Study, number: usize) -> anyhow::Result<()> {
        let (instance, dataset) = study.slices.get(number).context("a slice")?;
        let path = format!("/dicom-web/studies/{}/series/{}/instances/{instance}", study.uid, study.series);
        let least = dataset.len();
        let read = async move {
            loop {
                let mut client = Client::connect(HTTP.into()).await?;
                let (status, body) = client.send(Method::GET, &path, Bytes::new()).await?;
                if status == 200 && body.len() >= least {
                    return anyhow::Ok(());
                }
                sleep(LOOK).await;
            }
        };
        let limited = async move { tokio::time::timeout(Duration::from_secs(60), read).await };
        self.wan.sites[self.holders].run(limited).await?.context("the slice cannot be read")?
    }

    /// That the reader's node holds a study and every byte of it is right.
    pub(super) async fn whole(&self, study: &Study) -> anyhow::Result<()> {
        let report = self.post(self.holders, &format!("/api/v1/studies/{}/verify", study.uid), json!(null)).await?;
        let is_whole = report["complete"] == json!(true) && report["instances"] == json!(study.slices.len());
        ensure!(is_whole, "the copy is not whole: {report}");
        Ok(())
    }

    /// What became of the packets on the first holder's line to the reader.
    pub(super) fn counts(&self) -> Counts {
        self.wan.router.counts(0, self.holders)
    }

    /// Somebody else on that line.
    pub(super) async fn neighbour(&self) -> anyhow::Result<Echoes> {
        Echoes::start(&self.wan, 0, self.holders).await
    }
}
