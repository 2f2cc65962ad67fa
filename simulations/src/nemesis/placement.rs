//! Whoever administers the mesh while it is in trouble: sites are drained and given copies again, layouts staged, looked
//! at, applied or dropped, all through HTTP, and now and then the node that was asked dies of it at that moment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use maillage_consensus::View;
use maillage_consensus::ids::{CommandId, SiteId};
use maillage_consensus::mesh::{HeldPart, Site};
use maillage_consensus::placement::Layout;
use maillage_store::{Hash, Publication};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Running};
use crate::disk::Ending;
use crate::mutant::Mutant;
use crate::rng::Rng;
use crate::workload::http::{self, Answered};

/// How often something is changed in a run, about.
const CHANGES: u32 = 12;
/// A client that hears nothing for so long asks another node.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tries of one change while there are faults.
const TRIES: u32 = 6;
/// How often the node that was asked dies at that moment.
const DIES: f64 = 0.15;
/// How often what is drained when the faults end stays so.
const STAYS_DRAINED: f64 = 0.5;
/// How long after the faults a layout may take to be put right.
const SETTLED: Duration = Duration::from_secs(60);

/// Who administers the mesh.
pub(super) struct Administrator {
    cluster: Arc<Cluster>,
    rng: Rng,
}

/// Changes where copies may lie until `until`.
pub(super) async fn run(cluster: Arc<Cluster>, until: Duration) {
    let rng = Rng::stream(cluster.plan.seed, "placement");
    let mut administrator = Administrator { cluster, rng };
    loop {
        let pause = administrator.cluster.plan.duration / CHANGES;
        tokio::time::sleep(administrator.rng.around(pause)).await;
        let world = &administrator.cluster.world;
        if world.now() >= until || world.is_violated() {
            return;
        }
        // As the nodes have it by now, and what is new.
        administrator.cluster.look_at_layout();
        administrator.change().await;
        administrator.cluster.look_at_layout();
    }
}

/// Puts the layout right once the faults are over: every site may hold again what another receives, what is lost is
/// drained for good, and some of what was drained is so no more.
pub(crate) async fn settle(cluster: &Arc<Cluster>) {
    if !cluster.plan.is_relaid() {
        return;
    }
    let rng = Rng::stream(cluster.plan.seed, "placement at the end");
    let mut administrator = Administrator { cluster: Arc::clone(cluster), rng };
    if tokio::time::timeout(SETTLED, administrator.put_right()).await.is_err() {
        cluster.world.violation("I9", format!("{SETTLED:?} after the faults ended, the layout is not changed"));
    }
}

impl Administrator {
    async fn change(&mut self) {
        match self.rng.below(10) {
            0..=3 => self.drain().await,
            4..=5 => self.undrain().await,
            _ => self.relay().await,
        }
    }

    /// Asks a node that is up, again and again, under one key.
    async fn ask(&mut self, method: Method, path: &str, body: Option<Value>, tries: u32) -> Option<Answered> {
        let id = u128::from(self.rng.next()) << 64 | u128::from(self.rng.next());
        let key = Some(CommandId(uuid::Uuid::from_u128(id)));
        for _ in 0..tries {
            let running = self.cluster.all_running();
            if let Some(running) = self.rng.pick(&running).cloned() {
                let request = http::request(method.clone(), &format!("/api/v1{path}"), key, body.clone());
                if method != Method::GET && self.rng.chance(DIES) && tries == TRIES {
                    self.dies_soon(&running);
                }
                let answered = http::ask_on_socket(&self.cluster, &running, PATIENCE, request).await;
                // What is refused for good is the answer; a node without a quorum or a session has none.
                if let Some(answered) = answered.filter(|answered| !answered.status.is_server_error()) {
                    return Some(answered);
                }
            }
            let wait = self.rng.millis(100, 1_500);
            tokio::time::sleep(wait).await;
        }
        None
    }

    fn dies_soon(&mut self, running: &Running) {
        let (cluster, owner) = (Arc::clone(&self.cluster), running.owner);
        let (wait, power_cut) = (self.rng.millis(0, 60), self.rng.chance(0.5));
        drop(maillage_host::spawn(async move {
            tokio::time::sleep(wait).await;
            if cluster.world.is_alive(owner) {
                cluster.world.sometimes("a node died while a layout was changed at it");
                let ending = if power_cut { Ending::PowerCut } else { Ending::Killed };
                cluster.stop(owner.slot, ending, "while it was asked to change the layout");
            }
        }));
    }

    fn sites(&self) -> Vec<Site> {
        let Some(running) = self.cluster.newest() else { return Vec::new() };
        let engine = running.group.reader();
        let mut sites = View::new(&*engine).sites().unwrap_or_default();
        sites.retain(|site| !site.is_gateway());
        sites
    }

    /// The sites that are drained, as a node knows it.
    fn drained(&self) -> BTreeSet<SiteId> {
        let Some(running) = self.cluster.newest() else { return BTreeSet::new() };
        let engine = running.group.reader();
        let standings = View::new(&*engine).standings().unwrap_or_default();
        standings.into_iter().filter(|standing| standing.draining.is_some()).map(|standing| standing.site).collect()
    }

    async fn drain(&mut self) {
        let sites = self.sites();
        let Some(site) = self.rng.pick(&sites).cloned() else { return };
        let force = self.rng.chance(0.2);
        let body = json!({ "reason": "the disk is to be replaced", "force": force, "user": "admin" });
        let path = format!("/placement/sites/{}/drain", site.description.name);
        let answered = self.ask(Method::POST, &path, Some(body), TRIES).await;
        match answered.map(|answered| answered.status) {
            Some(StatusCode::OK) => {
                self.cluster.world.sometimes("a site was drained");
                if self.cluster.plan.mutant == Some(Mutant::GivesUpUnasked) {
                    wipe_without_asking(&self.cluster, site.id).await;
                }
            }
            Some(StatusCode::CONFLICT) => self.cluster.world.sometimes("a drain was refused"),
            _ => {}
        }
    }

    async fn undrain(&mut self) {
        for site in self.sites() {
            if self.drained().contains(&site.id) && self.rng.chance(0.7) {
                self.undrain_one(&site, TRIES).await;
            }
        }
    }

    async fn undrain_one(&mut self, site: &Site, tries: u32) -> bool {
        let path = format!("/placement/sites/{}/undrain", site.description.name);
        let body = json!({ "reason": "the disk is replaced", "user": "admin" });
        let answered = self.ask(Method::POST, &path, Some(body), tries).await;
        answered.is_some_and(|answered| answered.status.is_success() || answered.status == StatusCode::CONFLICT)
    }

    /// Stages one or two changes, perhaps looks at what they would move, and applies or drops them.
    async fn relay(&mut self) {
        let mut version = None;
        for _ in 0..=self.rng.below(2) {
            let Some((path, body)) = self.drawn() else { return };
            let answered = self.ask(Method::PUT, &path, Some(body), TRIES).await;
            version = answered.and_then(|answered| answered.json()["version"].as_u64()).or(version);
        }
        let Some(version) = version else { return };
        if self.rng.chance(0.5) {
            self.ask(Method::GET, "/placement/diff", None, 1).await;
        }
        if self.rng.chance(0.2) {
            let body = json!({ "version": version, "user": "admin" });
            if self.ask(Method::POST, "/placement/revert", Some(body), TRIES).await.is_some() {
                self.cluster.world.sometimes("a staged layout was dropped");
            }
            return;
        }
        let force = if self.rng.chance(0.2) { "there is no other way" } else { "" };
        let stale = self.rng.chance(0.1);
        // One that no changes lead to whose answers were lost.
        let asked = if stale { version + 1_000 } else { version };
        let body = json!({ "version": asked, "force": force, "user": "admin" });
        let answered = self.ask(Method::POST, "/placement/apply", Some(body), TRIES).await;
        match answered.map(|answered| answered.status) {
            Some(StatusCode::OK) if stale => {
                self.cluster.world.violation("I5", format!("a layout is applied that nobody staged, after {version}"));
            }
            Some(StatusCode::OK) => self.cluster.world.sometimes("a layout was applied"),
            Some(StatusCode::CONFLICT) => self.cluster.world.sometimes("a layout was refused"),
            _ => {}
        }
    }

    /// A change to stage.
    fn drawn(&mut self) -> Option<(String, Value)> {
        let sites = self.sites();
        let site = self.rng.pick(&sites)?.description.name.to_string();
        Some(match self.rng.below(10) {
            0 => {
                // What everybody took for two buildings is one.
                let zone = self.rng.pick(&sites)?.description.zone.to_string();
                (format!("/placement/sites/{site}"), json!({ "zone": zone, "user": "admin" }))
            }
            1..=4 => {
                let weight = [0, 1, 50, 100, 400, 10_000][self.rng.index(6)];
                (format!("/placement/sites/{site}"), json!({ "weight": weight, "user": "admin" }))
            }
            5..=6 => ("/placement/copies".to_owned(), json!({ "copies": self.rng.between(2, 4), "user": "admin" })),
            7 => ("/placement/zones".to_owned(), json!({ "zones": self.rng.between(0, 3), "user": "admin" })),
            _ => {
                let other = self.rng.pick(&sites)?.description.name.to_string();
                let path = format!("/placement/contracts/site:{site}");
                (path, json!({ "all_but": [other], "copies": self.rng.between(0, 3), "user": "admin" }))
            }
        })
    }

    async fn put_right(&mut self) {
        for site in self.sites() {
            let drained = self.drained().contains(&site.id);
            if self.cluster.is_lost(site.id.0) && !drained {
                // Else what it had would be waited for for ever.
                let path = format!("/placement/sites/{}/drain", site.description.name);
                let body = json!({ "reason": "it is lost", "force": true, "user": "admin" });
                self.until_answered(Method::POST, &path, body).await;
            } else if drained && !self.cluster.is_lost(site.id.0) {
                if self.rng.chance(STAYS_DRAINED) {
                    self.cluster.world.sometimes("a site stayed drained to the end");
                } else {
                    while !self.undrain_one(&site, 1).await {}
                }
            }
        }
        let applied = self.applied().await;
        if applied.contracts.is_empty() && applied.zones == 0 {
            return;
        }
        let mut version = 0;
        for site in self.sites() {
            let path = format!("/placement/contracts/site:{}/end", site.description.name);
            let answered = self.until_answered(Method::POST, &path, json!({ "user": "admin" })).await;
            version = answered.json()["version"].as_u64().unwrap_or(version);
        }
        let answered =
            self.until_answered(Method::PUT, "/placement/zones", json!({ "zones": 0, "user": "admin" })).await;
        version = answered.json()["version"].as_u64().unwrap_or(version);
        let body = json!({ "version": version, "force": "the faults are over", "user": "admin" });
        self.until_answered(Method::POST, "/placement/apply", body).await;
    }

    /// The layout that holds, as the node knows it that leads: one that was just started may know an earlier one.
    async fn applied(&self) -> Layout {
        loop {
            // By then it has applied what was decided before it led.
            tokio::time::sleep(Duration::from_secs(2)).await;
            if let Some(leader) = self.cluster.leader().and_then(|slot| self.cluster.running(slot)) {
                return View::new(&*leader.group.reader()).placement().unwrap_or_default().applied;
            }
        }
    }

    async fn until_answered(&mut self, method: Method, path: &str, body: Value) -> Answered {
        loop {
            if let Some(answered) = self.ask(method.clone(), path, Some(body.clone()), TRIES - 1).await {
                return answered;
            }
        }
    }
}

/// What a mutant's site does when another is drained: it is rid of its own copies, and asks nobody.
async fn wipe_without_asking(cluster: &Cluster, drained: SiteId) {
    let up = cluster.all_running();
    let Some(running) = up.iter().find(|running| running.site != drained.0) else { return };
    let site = SiteId(running.site);
    let parts: Vec<HeldPart> = {
        let engine = running.group.reader();
        let studies = View::new(&*engine).studies(None, usize::MAX).unwrap_or_default();
        studies.into_iter().flat_map(|study| study.parts).collect()
    };
    for held in parts.into_iter().filter(|held| held.origin != site && held.holders.contains(&site)) {
        let publication = Publication {
            study_uid: held.part.study.to_string(),
            origin: held.origin.0,
            sequence: held.part.sequence,
            manifest: Hash(held.part.manifest),
        };
        let store = running.store.clone();
        let wiped = cluster.world.spawn_on(running.owner, async move { store.purge(&publication, false).await });
        // What fails is still there.
        let _ = wiped.await;
    }
}
