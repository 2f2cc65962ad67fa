//! A reader who goes on when the site is cut off: takes exams whose images are here by break glass, reads
//! them, reports or gives them back, and after the heal goes on under the ordinary claim that the mesh made
//! of it. All through the node's own HTTP, whose outbox does the rest.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use maillage_consensus::View;
use maillage_consensus::ids::{CommandId, Name};
use serde_json::{Value, json};

use super::http::{self, Answered};
use super::{APART, new_id};
use crate::cluster::{Cluster, Running};
use crate::invariants::finality::Completed;
use crate::invariants::outbox;
use crate::rng::Rng;

/// Mean pause between two things.
const PAUSE: Duration = Duration::from_millis(1_500);
/// … once all is to be finished.
const PAUSE_AT_END: Duration = Duration::from_millis(300);
/// A node that has not heard of a quorum for so long is cut off, as its page shows.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Exams among which one is picked.
const CHOICE: usize = 24;
/// Exams tried one after the other, until one's images are all here.
const TRIED: usize = 4;
/// How often an exam is given back without a report.
const GIVEN_BACK: f64 = 0.15;
/// How often the reader leaves it for later: it may still be in hand when the mesh is reached again.
const LATER: f64 = 0.5;
/// How often a report that was answered is sent again.
const AGAIN: f64 = 0.2;
/// Tries of one report: a node that is down is waited for.
const TRIES_MAX: u32 = 200;

struct Glass {
    cluster: Arc<Cluster>,
    slot: u32,
    user: Name,
    rng: Rng,
    reports: u64,
}

/// Forever.
pub(super) async fn run(cluster: Arc<Cluster>, slot: u32, rng: Rng) {
    let user = Name::fitted(&format!("reader-{}", slot * 100 + APART));
    let mut glass = Glass { cluster, slot, user, rng, reports: 0 };
    loop {
        let pause = if glass.cluster.is_ending() { PAUSE_AT_END } else { glass.rng.around(PAUSE) };
        tokio::time::sleep(pause).await;
        let Some(running) = glass.cluster.running(slot) else { continue };
        glass.work(&running).await;
    }
}

impl Glass {
    async fn work(&mut self, running: &Running) {
        let entries = outbox::entries(&self.cluster, running).await.unwrap_or_default();
        let mine = |entry: &&Value| entry["user"] == self.user.as_str();
        if let Some(held) = entries.iter().filter(mine).find(|entry| entry["state"] == "held") {
            let exam = held["exam"].as_u64().unwrap_or_default();
            if !self.cluster.is_ending() && self.rng.chance(LATER) {
                return;
            }
            if self.rng.chance(GIVEN_BACK) {
                return self.give_back(exam, &held["token"]).await;
            }
            return self.report(exam, held["token"].clone()).await;
        }
        if let Some((exam, token)) = self.claimed(running) {
            self.cluster.world.sometimes("a break glass went on as an ordinary claim");
            return self.report(exam, json!(token)).await;
        }
        let silent = running.group.freshness().age.is_none_or(|age| age >= SILENCE);
        if silent && !self.cluster.is_ending() {
            self.take(running).await;
        }
    }

    /// What the mesh shows as claimed by this reader.
    fn claimed(&self, running: &Running) -> Option<(u64, u64)> {
        let engine = running.group.reader();
        let claimed = View::new(&*engine).claimed(usize::MAX).ok()?;
        let mine = claimed.into_iter().filter_map(|exam| Some((exam.id.0, exam.claim?)));
        mine.filter(|(_, claim)| claim.user == self.user).map(|(exam, claim)| (exam, claim.token.0)).next()
    }

    async fn take(&mut self, running: &Running) {
        let mut exams: Vec<u64> = {
            let engine = running.group.reader();
            let view = View::new(&*engine);
            let newest = view.exams_back(maillage_consensus::ids::ExamId(u64::MAX), CHOICE).unwrap_or_default();
            let open = newest.into_iter().filter(|exam| !exam.state.is_reported() && !exam.state.is_off());
            open.filter(|exam| exam.request.awaits_images).map(|exam| exam.id.0).collect()
        };
        self.rng.shuffle(&mut exams);
        for exam in exams.into_iter().take(TRIED) {
            if self.break_glass(exam).await {
                return;
            }
        }
    }

    /// Whether the exam is this reader's.
    async fn break_glass(&mut self, exam: u64) -> bool {
        let id = new_id(&mut self.rng);
        let body = json!({ "user": self.user, "reason": "no quorum, and the patient cannot wait" });
        let answered = self.ask(&format!("/api/v1/exams/{exam}/break-glass"), id, &body).await;
        let Some(answered) = answered else { return false };
        let said = answered.json();
        match (answered.status.as_u16(), said["code"].as_str().unwrap_or_default()) {
            (200 | 201, _) => {
                self.cluster.watch.outbox.taken(self.slot, exam, said["id"].as_str().unwrap_or_default());
                return true;
            }
            (409, "quorum-reached" | "images-incomplete" | "conflict" | "stale-token" | "wrong-state")
            | (403, "consent-refused")
            | (404, "no-such-exam")
            // Its disk fails it.
            | (500 | 503 | 507, _) => {}
            _ => self.wrong("break glass", &answered),
        }
        false
    }

    async fn give_back(&mut self, exam: u64, token: &Value) {
        let id = new_id(&mut self.rng);
        let body = json!({ "user": self.user, "token": token, "reason": "called away" });
        let Some(answered) = self.ask(&format!("/api/v1/exams/{exam}/release"), id, &body).await else { return };
        match answered.status.as_u16() {
            200 => self.cluster.world.sometimes("a break glass was given back"),
            // It ended, or went on as an ordinary claim, or could not be decided or taken down now.
            409 | 500 | 503 | 504 | 507 => {}
            _ => self.wrong("a break glass given back", &answered),
        }
    }

    /// Reports under a claim of either kind, repeating until it is answered.
    async fn report(&mut self, exam: u64, token: Value) {
        self.reports += 1;
        let text = format!("report {} of {} behind the glass: nothing abnormal", self.reports, self.user);
        let (id, path) = (new_id(&mut self.rng), format!("/api/v1/exams/{exam}/report"));
        let body = json!({ "user": self.user, "token": token, "text": text });
        let mut again = token.is_string() && self.rng.chance(AGAIN);
        for _ in 0..TRIES_MAX {
            let answered = self.ask(&path, id, &body).await;
            let is_answered = answered.is_some_and(|answered| self.is_answer(exam, &text, &token, &answered));
            if is_answered && !std::mem::take(&mut again) {
                return;
            }
            let wait = self.rng.millis(100, 1_500);
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether an answer ends the report; what it promises is noted.
    fn is_answer(&self, exam: u64, text: &str, token: &Value, answered: &Answered) -> bool {
        let said = answered.json();
        let number = said["report"].as_u64().and_then(|number| u32::try_from(number).ok());
        match (answered.status.as_u16(), said["code"].as_str().unwrap_or_default()) {
            (202, _) => {
                if token.is_string() {
                    self.cluster.world.sometimes("a report was written by break glass");
                }
                self.cluster.watch.outbox.kept(self.slot, exam, text);
                true
            }
            (200, _) => {
                // An ordinary claim's: the report that stands, by a token that only the mesh gave.
                if let (Some(report), Some(token)) = (number, token.as_u64()) {
                    let index = self.cluster.newest_index();
                    let text = text.to_owned();
                    self.cluster.watch.finality.completed(Completed { exam, index, token, report, text });
                }
                true
            }
            // The claim does not hold, is another's, or was reported already.
            (409 | 404, _) => true,
            (500 | 503 | 504 | 507, _) => false,
            _ => {
                self.wrong("a report", answered);
                true
            }
        }
    }

    async fn ask(&mut self, path: &str, id: CommandId, body: &Value) -> Option<Answered> {
        let running = self.cluster.running(self.slot)?;
        let request = http::request(Method::POST, path, Some(id), Some(body.clone()));
        http::ask(&self.cluster, &running, PATIENCE, request).await
    }

    fn wrong(&self, what: &str, answered: &Answered) {
        let detail = format!("{what} of the workload is refused: {} {}", answered.status, answered.json());
        self.cluster.world.violation("startup", detail);
    }
}
