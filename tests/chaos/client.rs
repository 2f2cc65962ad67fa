//! A client of the mesh: asks for one thing until it knows what became of it.
//!
//! As people and machines at a site do, it asks its own site first, repeats the same command under the
//! same id whatever goes wrong, and goes to another site when its own stays silent.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use maillage_tests::draw::Draw;
use maillage_tests::http::{Answer, NoAnswer};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::history::{Act, Op, Told};
use crate::site::Site;
use crate::world::World;

/// A request without an answer by then is repeated.
const ATTEMPT: Duration = Duration::from_secs(12);
/// A client whose site gives no certain answer for so long walks over to another.
const PATIENCE: Duration = Duration::from_secs(10);
/// Part of the commands that are repeated after their answer, which must then be the same.
const REPEATED: f64 = 0.08;

/// Where a command is given.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// POST of JSON.
    Http { path: String, body: Value },
    /// The site's command line; only for what cannot be refused, because its refusals are for people.
    CommandLine(Vec<String>),
}

impl Door {
    /// POST of JSON.
    pub(crate) fn http(path: impl Into<String>, body: Value) -> Self {
        Self::Http { path: path.into(), body }
    }
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) world: Arc<World>,
    pub(crate) user: String,
    pub(crate) draw: Draw,
    site: usize,
}

impl Client {
    /// A client at a site.
    pub(crate) fn new(world: &Arc<World>, site: usize, user: String) -> Self {
        let draw = Draw::fork(world.seed, &user);
        Self { world: Arc::clone(world), user, draw, site }
    }

    /// Where it is.
    pub(crate) fn site(&self) -> &Site {
        &self.world.sites[self.site]
    }

    /// Goes to another site that lives, if there is one.
    pub(crate) fn walk(&mut self) {
        let world = Arc::clone(&self.world);
        let others: Vec<usize> =
            world.living().iter().map(|site| site.number).filter(|number| *number != self.site).collect();
        if let Some(other) = self.draw.pick(&others) {
            self.site = *other;
        }
    }

    /// Leaves a site that is gone for good.
    pub(crate) fn leave_lost(&mut self) {
        if !self.site().is_living() {
            self.walk();
        }
    }

    /// A new command's id, of version 4.
    pub(crate) fn command_id(&mut self) -> String {
        let (a, b) = (self.draw.bits(), self.draw.bits());
        let (a, b) = (a & !0xf000 | 0x4000, b & !(3 << 62) | 1 << 63);
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            a >> 32,
            a >> 16 & 0xffff,
            a & 0xffff,
            b >> 48,
            b & 0xffff_ffff_ffff
        )
    }

    /// Changes the queue: asks until the answer is certain, and records what was told. `None` when the
    /// run ended before.
    pub(crate) async fn command(&mut self, act: Act, door: &Door) -> Option<(Told, Value)> {
        let id = self.command_id();
        let (call, first) = (self.world.history.now(), self.site().name.to_owned());
        let (mut attempts, mut since) = (0, Instant::now());
        let (told, answer) = loop {
            attempts += 1;
            if let Some(certain) = self.ask(&act, door, &id).await {
                break certain;
            }
            if self.world.is_over() {
                self.record(Op { attempts, ..self.op(act, id, call, first) });
                return None;
            }
            sleep(Duration::from_millis(self.draw.within(100..900))).await;
            if since.elapsed() > PATIENCE || !self.site().is_living() {
                self.walk();
                since = Instant::now();
            }
        };
        let answered = self.world.history.now();
        let mut op =
            Op { answer: Some(answered), told: Some(told.clone()), attempts, ..self.op(act, id.clone(), call, first) };
        if self.draw.chance(REPEATED) {
            self.walk();
            op.again = self.ask(&op.act, door, &id).await.map(|(told, _)| told);
        }
        self.record(op);
        Some((told, answer))
    }

    /// One try at one door.
    async fn ask(&self, act: &Act, door: &Door, id: &str) -> Option<(Told, Value)> {
        match door {
            Door::Http { path, body } => certain(act, &self.post(path, body, id).await.ok()?),
            Door::CommandLine(words) => {
                let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
                words.extend(["--command-id", id]);
                let ran = self.site().run(&[&["-o", "json"], &words[..]].concat()).await;
                let said =
                    ran.as_ref().map_or_else(|error| format!("{error:#}"), |(code, said)| format!("{code} {said}"));
                self.world.history.attempt(id, self.site().name, "command line", &said);
                let (_, said) = ran.ok().filter(|(code, _)| *code == 0)?;
                let body: Value = serde_json::from_str(&said).ok()?;
                if body["queued"] == json!(true) {
                    return None;
                }
                let told = match act {
                    Act::Add { .. } => Told::Added { exam: body["id"].as_u64()? },
                    _ => Told::Done,
                };
                Some((told, body))
            }
        }
    }

    fn op(&self, act: Act, command: String, call: u64, site: String) -> Op {
        let user = self.user.clone();
        Op { user, command, act, call, answer: None, told: None, again: None, attempts: 0, site }
    }

    fn record(&self, op: Op) {
        self.world.history.add(op);
    }

    /// Asks once, and does not wait for what comes of it: its workstation dies.
    pub(crate) async fn ask_and_die(mut self, act: Act, path: &str, body: &Value, dies_after: Duration) {
        let id = self.command_id();
        let (call, site) = (self.world.history.now(), self.site().name.to_owned());
        let _ = tokio::time::timeout(dies_after, self.post(path, body, &id)).await;
        self.record(Op { attempts: 1, ..self.op(act, id, call, site) });
        self.world.bury(self.user.clone());
    }

    async fn post(&self, path: &str, body: &Value, id: &str) -> Result<Answer, NoAnswer> {
        let headers = vec![("content-type", "application/json".to_owned()), ("idempotency-key", id.to_owned())];
        let site = self.site();
        let answer = site.http(ATTEMPT, Method::POST, path.to_owned(), headers, body.to_string()).await;
        let said = match &answer {
            Ok(answer) => format!("{} {}", answer.status, code(answer)),
            Err(error) => error.0.clone(),
        };
        self.world.history.attempt(id, site.name, path, &said);
        answer
    }

    /// A fresh read of an exam, recorded if it was answered.
    pub(crate) async fn look(&mut self, exam: u64) -> Option<Value> {
        let call = self.world.history.now();
        let shown = self.site().get(ATTEMPT, &format!("/api/v1/exams/{exam}?fresh=true")).await?;
        let answer = Some(self.world.history.now());
        let claim = &shown["claim"];
        let holder = claim["user"].as_str().map(str::to_owned).zip(claim["token"].as_u64());
        let told = Told::Shown { state: shown["state"].as_str()?.to_owned(), holder };
        let site = self.site().name.to_owned();
        let op = self.op(Act::Read { exam }, String::new(), call, site);
        self.record(Op { answer, told: Some(told), attempts: 1, ..op });
        Some(shown)
    }
}

/// A problem's code, or what a success says in short.
fn code(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if let Some(code) = body["code"].as_str() {
        return code.to_owned();
    }
    json!({ "exam": body["exam"]["id"], "id": body["id"], "token": body["token"] }).to_string()
}

/// What an answer says of a command, if it is certain.
pub(crate) fn certain(act: &Act, answer: &Answer) -> Option<(Told, Value)> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    let told = match (answer.status, act) {
        (200 | 201, Act::Add { .. }) => Told::Added { exam: body["id"].as_u64()? },
        (200, Act::Claim { .. }) => match (body["exam"]["id"].as_u64(), body["token"].as_u64()) {
            (Some(exam), Some(token)) => Told::Granted { exam, token },
            _ => Told::Nothing,
        },
        (200, _) => Told::Done,
        // Kept by that node's outbox, and not committed yet.
        (202, _) => return None,
        (409, _) if code == "conflict" => Told::Held { user: body["holder"]["user"].as_str()?.to_owned() },
        (409, _) if code == "wrong-state" => Told::WrongState { state: body["state"].as_str()?.to_owned() },
        (409, _) if code == "stale-token" => Told::Stale { kept_as: body["kept_as"].as_u64() },
        // Time-outs and everything that a node's own trouble brings: not certain.
        (408 | 500.., _) => return None,
        (status, _) => Told::Refused { status, code },
    };
    Some((told, body))
}
