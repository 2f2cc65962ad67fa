//! Nodes as an operator starts them: default settings but for names, ports and who may send images.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http;
use crate::lab::Lab;
use crate::process::{Server, free_address, run, until};

/// One node.
#[derive(Debug)]
pub(crate) struct Site {
    /// Its HTTP side.
    pub(crate) http: SocketAddr,
    /// Its DICOM port.
    pub(crate) dicom: SocketAddr,
    config: PathBuf,
    binary: PathBuf,
    // Killed when dropped.
    server: Option<Server>,
}

/// Nodes that are one mesh; gone when dropped, processes first.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// The nodes, the founder first.
    pub(crate) sites: Vec<Site>,
    root: TempDir,
}

impl Mesh {
    /// A mesh of `n` nodes that keeps `copies` of each image, settled.
    pub(crate) async fn start(lab: &Lab, n: usize, copies: u8) -> anyhow::Result<Self> {
        let mut mesh = Self { sites: Vec::new(), root: lab.dir("mesh")? };
        for number in 0..n {
            mesh.join(lab, number, copies).await?;
        }
        mesh.settled().await?;
        Ok(mesh)
    }

    async fn join(&mut self, lab: &Lab, number: usize, copies: u8) -> anyhow::Result<()> {
        let name = format!("site-{number}");
        let mut site = Site::prepare(&lab.binary, self.root.path(), &name, copies)?;
        match self.sites.first() {
            None => drop(run(site.command(&["init", "--mesh", "bench"])).await?),
            Some(founder) => {
                let made = run(founder.command(&["-o", "json", "token", "create", "--lifetime", "10m"])).await?;
                let made: Value = serde_json::from_slice(&made.stdout)?;
                let token = made["token"].as_str().context("a token")?;
                run(site.command(&["join", token])).await?;
            }
        }
        site.serve(&self.root.path().join(format!("{name}.log"))).await?;
        self.sites.push(site);
        Ok(())
    }

    /// Waits until every node follows the leader with a session and as many vote as can.
    async fn settled(&self) -> anyhow::Result<()> {
        let voters = if self.sites.len() < 3 { 1 } else { 3 };
        until("the mesh is settled", async || {
            for site in &self.sites {
                let status = site.get("/api/v1/status").await?;
                let open = |peer: &&Value| peer["session_open"] == json!(true);
                let sessions = status["peers"].as_array().map_or(0, |peers| peers.iter().filter(open).count());
                let voting = status["quorum"]["voters"].as_u64();
                if status["leader_site"].is_null() || sessions < self.sites.len() || voting != Some(voters) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    /// The HTTP addresses, the leader's last.
    pub(crate) async fn leader_last(&self) -> anyhow::Result<Vec<SocketAddr>> {
        until("a node leads", async || {
            let (mut followers, mut leaders) = (Vec::new(), Vec::new());
            for site in &self.sites {
                let leads = site.get("/api/v1/status").await?["role"] == json!("leader");
                if leads { leaders.push(site.http) } else { followers.push(site.http) }
            }
            followers.extend_from_slice(&leaders);
            Ok((leaders.len() == 1).then_some(followers))
        })
        .await
    }
}

impl Site {
    fn prepare(binary: &Path, root: &Path, name: &str, copies: u8) -> anyhow::Result<Self> {
        let (http, dicom, mesh) = (free_address()?, free_address()?, free_address()?);
        let config = root.join(format!("{name}.toml"));
        let text = format!(
            "[node]\nname = \"{name}\"\ndata_dir = {:?}\n[mesh]\nlisten = \"{mesh}\"\n[http]\nlisten = \"{http}\"\n\
             [dicom]\nlisten = \"{dicom}\"\nany_caller = true\ncheck_called = false\nmax_associations = 128\n[storage]\ncopies = {copies}\n",
            root.join(name)
        );
        std::fs::write(&config, text)?;
        Ok(Self { http, dicom, config, binary: binary.to_owned(), server: None })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(&self.config).args(arguments);
        // The environment must not set what a figure is of.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MAILLAGE") {
                command.env_remove(name);
            }
        }
        command
    }

    async fn serve(&mut self, log: &Path) -> anyhow::Result<()> {
        let mut server = Server::start("a node", &mut self.command(&["serve"]), log)?;
        let http = self.http;
        let leads = async || http::get(http, "/api/v1/status").await.is_some_and(|s| s["leader_site"].is_number());
        server.ready(leads).await?;
        self.server = Some(server);
        Ok(())
    }

    /// The most memory that its process ever had resident, in MiB.
    pub(crate) fn memory_peak_mib(&self) -> anyhow::Result<f64> {
        self.server.as_ref().and_then(Server::memory_peak_mib).context("the memory of a node")
    }

    /// GET of JSON that must be there.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        http::get(self.http, path).await.with_context(|| format!("GET {path}"))
    }

    /// Waits until the mesh knows all `instances` of a study.
    pub(crate) async fn published(&self, study: &str, instances: usize) -> anyhow::Result<()> {
        let path = format!("/api/v1/studies/{study}");
        until("the study is published whole", async || {
            let study = http::get(self.http, &path).await;
            Ok(study.filter(|study| study["instances"].as_u64() == Some(instances as u64)).map(drop))
        })
        .await
    }
}
