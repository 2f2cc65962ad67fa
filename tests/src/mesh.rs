//! Several sites that are one mesh, joined as a sysadmin does: by `init`, `token create` and `join`.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::settings::Settings;
use crate::site::Site;
use crate::wait::until;

/// Meshes that run at once, where there are threads for as many tests. Two leave half of two cores idle, for they mostly
/// wait (measured: 9 minutes of processor time in 8.6 minutes).
const MESHES_AT_ONCE: usize = 3;

/// Names of sites, in the order in which they join.
const NAMES: [&str; 7] = ["paris", "lyon", "nantes", "lille", "brest", "nice", "metz"];

/// Waits for a place for a mesh, for tests that start one by other means.
///
/// # Panics
/// Never: the semaphore is not closed.
pub async fn turn() -> OwnedSemaphorePermit {
    static TURNS: OnceLock<Arc<Semaphore>> = OnceLock::new();
    let turns = TURNS.get_or_init(|| Arc::new(Semaphore::new(MESHES_AT_ONCE)));
    Arc::clone(turns).acquire_owned().await.expect("never closed")
}

/// A mesh. Dropped, its processes and files are gone.
#[derive(Debug)]
pub struct Mesh {
    /// Its sites, the founder first.
    pub sites: Vec<Site>,
    binary: std::path::PathBuf,
    // Removed after the processes are gone: fields are dropped in their order.
    root: TempDir,
    _turn: OwnedSemaphorePermit,
}

impl Mesh {
    /// An empty mesh: a directory and a place.
    ///
    /// # Panics
    /// Without a directory for temporary files.
    pub async fn empty(binary: &Path) -> Self {
        let turn = turn().await;
        let root = tempfile::Builder::new().prefix("mesh-").tempdir().expect("a temporary directory");
        Self { sites: Vec::new(), binary: binary.to_owned(), root, _turn: turn }
    }

    /// A mesh of `n` sites, all running, in session and in touch with the leader; 3 of them vote, 5
    /// from 5 on. `settings` is asked for each site by its number.
    ///
    /// # Panics
    /// When it does not come about.
    pub async fn start(binary: &Path, n: usize, settings: impl Fn(usize) -> Settings) -> Self {
        let mut mesh = Self::empty(binary).await;
        for number in 0..n {
            mesh.join(&settings(number)).await;
        }
        mesh.settled().await;
        mesh
    }

    /// One more site, started.
    ///
    /// # Panics
    /// When it cannot join.
    pub async fn join(&mut self, settings: &Settings) {
        let mut site = self.prepare(NAMES[self.sites.len()], settings);
        match self.sites.first() {
            None => drop(site.run(&["init", "--mesh", "test"]).await.ended(0)),
            Some(_) => {
                let token = self.token("10m").await;
                site.run(&["join", &token]).await.ended(0);
            }
        }
        site.start();
        site.ready().await;
        self.sites.push(site);
        if self.sites.len() == 1 {
            // A token needs a leader.
            until("the founder leads", async || {
                (self.sites[0].http().json("/api/v1/status").await["role"] == json!("leader")).then_some(())
            })
            .await;
        }
    }

    /// A site in this mesh's directory that is no member yet.
    pub fn prepare(&self, name: &str, settings: &Settings) -> Site {
        Site::prepare(&self.binary, self.root.path(), name, settings)
    }

    /// The directory that holds all sites' files.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A join token from the founder.
    ///
    /// # Panics
    /// When it gives none.
    pub async fn token(&self, lifetime: &str) -> String {
        let made = self.sites[0].run_json(&["token", "create", "--lifetime", lifetime]).await;
        made["token"].as_str().expect("a token").to_owned()
    }

    /// Waits until every running site votes or follows, has a session and sees the same leader.
    ///
    /// # Panics
    /// When that does not come about.
    pub async fn settled(&self) {
        let running: Vec<&Site> = self.sites.iter().filter(|site| site.runs()).collect();
        let voters = match self.sites.len() {
            0..3 => 1,
            3..5 => 3,
            _ => 5,
        };
        until("the mesh is settled", async || {
            for site in &running {
                let status = site.http().json("/api/v1/status").await;
                let open = |peer: &&Value| peer["session_open"] == json!(true);
                let sessions = status["peers"].as_array().map_or(0, |peers| peers.iter().filter(open).count());
                let voting = status["quorum"]["voters"].as_u64();
                if status["leader_site"].is_null() || sessions < running.len() || voting != Some(voters) {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// The leader's place among the sites, once a running site leads.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn leader(&self) -> usize {
        until("a site leads", async || {
            for (number, site) in self.sites.iter().enumerate().filter(|(_, site)| site.runs()) {
                if site.http().json("/api/v1/status").await["role"] == json!("leader") {
                    return Some(number);
                }
            }
            None
        })
        .await
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for site in &self.sites {
                site.print_log();
            }
        }
    }
}
