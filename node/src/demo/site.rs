//! One site of the demonstration: a data directory, a configuration, and a child process.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the demonstration is a program beside the nodes: it prepares their files and is never simulated"
)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::http;

/// A node that is not ready by then will not be.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// The directory that holds the sites' data.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    remove: bool,
}

impl Root {
    /// `keep`, which stays, or a directory of its own, which does not.
    pub(super) fn new(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        let remove = keep.is_none();
        let path = keep.unwrap_or_else(|| std::env::temp_dir().join(format!("maillage-demo-{}", std::process::id())));
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        ensure!(fs::read_dir(&path)?.next().is_none(), "{} is not empty", path.display());
        Ok(Self { path: path.canonicalize()?, remove })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory for whoever looks for what went wrong.
    pub(super) fn keep(&mut self) {
        self.remove = false;
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.remove {
            // What cannot be removed is in a temporary directory; there is nobody left to tell.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// This program.
pub(super) fn executable() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("maillage"))
}

/// A site.
#[derive(Debug)]
pub(super) struct Site {
    name: String,
    config: PathBuf,
    log: PathBuf,
    http: SocketAddr,
    dicom: SocketAddr,
    child: Option<Child>,
    token: Option<u64>,
}

impl Site {
    /// Chooses ports and writes the configuration.
    pub(super) async fn prepare(root: &Path, name: &str) -> anyhow::Result<Self> {
        let (http, dicom, mesh) = (free_tcp()?, free_tcp()?, free_udp()?);
        let data = root.join(name);
        let config = root.join(format!("{name}.toml"));
        let text = format!(
            "[node]\nname = \"{name}\"\nzone = \"{name}\"\ndata_dir = {data:?}\n\
             [mesh]\nlisten = \"{mesh}\"\n[http]\nlisten = \"{http}\"\n\
             [dicom]\nlisten = \"{dicom}\"\nany_caller = true\nquiet_seconds = 2\n\
             [storage]\nreserve_mib = 64\n"
        );
        tokio::task::yield_now().await;
        fs::write(&config, text)?;
        let log = root.join(format!("{name}.log"));
        Ok(Self { name: name.to_owned(), config, log, http, dicom, child: None, token: None })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    pub(super) fn http(&self) -> SocketAddr {
        self.http
    }

    pub(super) fn dicom(&self) -> SocketAddr {
        self.dicom
    }

    pub(super) fn token(&self) -> Option<u64> {
        self.token
    }

    pub(super) fn set_token(&mut self, token: u64) {
        self.token = Some(token);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(executable());
        command.arg("-c").arg(&self.config).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs a command of this site to its end.
    pub(super) async fn run_to_end(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.output(arguments).await.map(drop)
    }

    /// As [`Site::run_to_end`], for the JSON it prints.
    pub(super) async fn run_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["-o", "json"];
        all.extend_from_slice(arguments);
        Ok(serde_json::from_slice(&self.output(&all).await?)?)
    }

    async fn output(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = self.command(arguments).output().await?;
        // The arguments may hold a token: only the command's name is told.
        let what = arguments.iter().find(|argument| !argument.starts_with('-') && **argument != "json");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} at {}: {}", what.unwrap_or(&""), self.name, said.trim());
        Ok(output.stdout)
    }

    /// Starts the node.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = self.command(&["serve"]).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the node says that it is ready and hears a leader.
    pub(super) async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                bail!("{} ended with {status}; see {}", self.name, self.log.display());
            }
            if let Ok(status) = self.get("/api/v1/status").await
                && status["leader_site"].is_number()
            {
                return Ok(());
            }
            ensure!(since.elapsed() < READY_DEADLINE, "{} is not ready; see {}", self.name, self.log.display());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// `kill -9`.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        child.wait().await?;
        Ok(())
    }

    /// GET, as JSON.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (_, body) = http::request(self.http, Method::GET, path, "application/json", None).await?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// POST of JSON, answered by JSON.
    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (_, body) = http::request(self.http, Method::POST, path, "application/json", Some(body)).await?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// WADO-RS: the files of a `multipart/related` answer.
    pub(super) async fn retrieve(&self, path: &str) -> anyhow::Result<Vec<Bytes>> {
        let accept = "multipart/related; type=\"application/dicom\"; transfer-syntax=*";
        let (kind, body) = http::request(self.http, Method::GET, path, accept, None).await?;
        http::parts(&kind, &body)
    }
}

fn free_tcp() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn free_udp() -> anyhow::Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
