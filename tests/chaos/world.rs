//! The world of a run: the sites, the network between them, the history, and which part of the run it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use maillage_tests::Slices;
use maillage_tests::draw::Draw;
use maillage_tests::wan::{Router, Shape, Wan};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::history::{History, Violation};
use crate::site::{Machine, Site};

/// What a site must answer within to be asked anything in passing.
pub(crate) const GLANCE: Duration = Duration::from_secs(3);
/// Founding and joining take a few seconds a site; a busy machine gets more.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// A node that ends by itself more often has shown what it has to show.
const RESTARTS_MAX: u32 = 3;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// Which part of a run it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Requests come and faults happen.
    Faults = 0,
    /// Neither: what is there must finish.
    Finish = 1,
    /// Everybody stops.
    Over = 2,
}

/// A study of the workload.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) accession: String,
    pub(crate) patient: String,
    pub(crate) slices: Slices,
    /// Instances whose storage was acknowledged.
    pub(crate) acknowledged: Mutex<BTreeSet<String>>,
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    // Dropped in this order: processes end before their network goes.
    pub(crate) sites: Vec<Site>,
    pub(crate) router: Router,
    pub(crate) history: History,
    pub(crate) seed: u64,
    /// What every line is like without faults.
    pub(crate) base: Shape,
    /// How many sites the mesh begins with.
    pub(crate) founders: usize,
    phase: AtomicU8,
    cases: Mutex<BTreeMap<String, Arc<Case>>>,
    dead: Mutex<BTreeSet<String>>,
    excused: Mutex<BTreeSet<usize>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Namespaces, disks and configurations; nothing runs. `spares` sites are ready to replace lost ones.
    pub(crate) fn new(
        seed: u64,
        founders: usize,
        spares: usize,
        machine: &Machine,
        history: History,
    ) -> anyhow::Result<Self> {
        // Two cities on a good line.
        let base = Shape {
            delay: Duration::from_millis(8),
            jitter: Duration::from_millis(2),
            rate: Some(100_000_000),
            ..Shape::default()
        };
        let Wan { sites, router } = Wan::new(founders + spares, &base, seed)?;
        let sites = sites.into_iter().enumerate();
        let sites = sites.map(|(number, namespace)| Site::prepare(number, Arc::new(namespace), machine));
        Ok(Self {
            sites: sites.collect::<Result<_, _>>()?,
            router,
            history,
            seed,
            base,
            founders,
            phase: AtomicU8::new(Phase::Faults as u8),
            cases: Mutex::default(),
            dead: Mutex::default(),
            excused: Mutex::default(),
        })
    }

    /// Founds the mesh and joins its first sites; returns when all vote that can.
    pub(crate) async fn found(&self) -> anyhow::Result<()> {
        let founder = self.sites.first().context("no sites")?;
        let (code, said) = founder.run(&["init", "--mesh", "chaos"]).await?;
        ensure!(code == 0, "init: {said}");
        founder.start().await?;
        self.ready(founder).await?;
        for site in &self.sites[1..self.founders] {
            self.join(site).await?;
        }
        let voters = match self.founders {
            0..3 => 1,
            3..5 => 3,
            _ => 5,
        };
        let since = Instant::now();
        loop {
            let status = founder.get(GLANCE, "/api/v1/status").await.unwrap_or_default();
            let peers = status["peers"].as_array().cloned().unwrap_or_default();
            let open = peers.iter().filter(|peer| peer["session_open"] == json!(true)).count();
            if status["quorum"]["voters"] == json!(voters) && open == self.founders {
                return Ok(());
            }
            ensure!(since.elapsed() < SETTLED_WITHIN, "the mesh does not settle: {status}");
            sleep(LOOK).await;
        }
    }

    /// Makes a site a member, with a token from any other, and starts it. May be tried again.
    pub(crate) async fn join(&self, site: &Site) -> anyhow::Result<()> {
        let mut draw = Draw::new(self.history.now());
        let from = self.any_running(&mut draw).context("no site runs")?;
        let (code, said) = from.run(&["-o", "json", "token", "create", "--lifetime", "1d"]).await?;
        ensure!(code == 0, "token at {}: {said}", from.name);
        let made: Value = serde_json::from_str(&said)?;
        let token = made["token"].as_str().context("a token")?;
        let (code, said) = site.run(&["join", token]).await?;
        ensure!(code == 0, "join of {}: {said}", site.name);
        site.start().await?;
        self.ready(site).await
    }

    /// Waits until a site serves and knows its number.
    pub(crate) async fn ready(&self, site: &Site) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            if let Some(id) = site.get(GLANCE, "/api/v1/status").await.and_then(|status| status["site"]["id"].as_u64())
            {
                site.set_id(id);
                return Ok(());
            }
            ensure!(since.elapsed() < SETTLED_WITHIN, "{} does not serve", site.name);
            ensure!(site.is_running(), "{} ended", site.name);
            sleep(LOOK).await;
        }
    }

    /// Which part of the run it is.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Faults,
            1 => Phase::Finish,
            _ => Phase::Over,
        }
    }

    /// Goes on to the next part.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Whether everybody must stop.
    pub(crate) fn is_over(&self) -> bool {
        self.phase() == Phase::Over
    }

    /// Sites whose disks are there.
    pub(crate) fn living(&self) -> Vec<&Site> {
        self.sites.iter().filter(|site| site.is_living()).collect()
    }

    /// One of the sites that run.
    pub(crate) fn any_running(&self, draw: &mut Draw) -> Option<&Site> {
        let running: Vec<&Site> = self.sites.iter().filter(|site| site.is_running()).collect();
        draw.pick(&running).copied()
    }

    /// The site that says it leads, of the highest term when several do.
    pub(crate) async fn leader(&self) -> Option<&Site> {
        let asked = self.living().into_iter().map(|site| async move {
            let status = site.get(GLANCE, "/api/v1/status").await?;
            (status["role"] == json!("leader")).then(|| (status["term"].as_u64().unwrap_or(0), site))
        });
        let leaders = futures::future::join_all(asked).await;
        leaders.into_iter().flatten().max_by_key(|(term, _)| *term).map(|(_, site)| site)
    }

    /// Adds a study to the workload.
    pub(crate) fn add_case(&self, case: Arc<Case>) {
        locked(&self.cases).insert(case.accession.clone(), case);
    }

    /// All studies of the workload.
    pub(crate) fn cases(&self) -> Vec<Arc<Case>> {
        locked(&self.cases).values().cloned().collect()
    }

    /// The study of an accession number.
    pub(crate) fn case(&self, accession: &str) -> Option<Arc<Case>> {
        locked(&self.cases).get(accession).cloned()
    }

    /// A reader's workstation died.
    pub(crate) fn bury(&self, user: String) {
        self.history.event("workstations died", &json!(user));
        locked(&self.dead).insert(user);
    }

    /// Whether a reader's workstation died.
    pub(crate) fn is_dead(&self, user: &str) -> bool {
        locked(&self.dead).contains(user)
    }

    /// Whether a site may end by itself, because its disk is full.
    pub(crate) fn excuse(&self, site: usize, may: bool) {
        if may {
            locked(&self.excused).insert(site)
        } else {
            locked(&self.excused).remove(&site)
        };
    }

    /// Notices processes that ended by themselves, and starts them again, a few times.
    pub(crate) async fn watch(&self) {
        let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
        while !self.is_over() {
            for site in &self.sites {
                let Some(status) = site.ended() else { continue };
                if locked(&self.excused).contains(&site.number) {
                    self.history.event("nodes ended on a full disk", &json!([site.name, status.to_string()]));
                    continue;
                }
                let what = format!("{} ended by itself: {status}", site.name);
                self.history.violation(Violation::new("no node ends by itself", what));
                let ends = ends.entry(site.name).or_default();
                *ends += 1;
                if *ends <= RESTARTS_MAX {
                    let _turn = site.turn.lock().await;
                    let _ = site.start().await;
                }
            }
            sleep(LOOK).await;
        }
    }
}
