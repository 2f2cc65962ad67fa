//! Claims a second on three nodes, beside put-if-absent transactions a second on three etcd members.
//!
//! Both over HTTP with JSON on kept-alive connections, by the same client code. The clusters take turns,
//! each alone on the machine. "Spread" clients go to the nodes in turn, followers
//! first, so that a single client speaks to a follower in both.
//!
//! For each load and each round both clusters are new: what one load leaves behind in a store must not
//! be taken for the next load's cost. What it does cost is a row of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::lab::{Lab, program};
use crate::mesh::Mesh;
use crate::report::{Figure, Row, Section};

mod etcd;
mod load;

use load::{Answer, Load, Run};

/// How many clients at once.
const CLIENTS: [usize; 3] = [1, 16, 256];
/// How long each load lasts.
const DURATION: Duration = Duration::from_secs(2);
/// Claims per second to have exams for, until a load has shown its rate: by clients.
const FIRST_GUESS: [u64; 3] = [1_500, 3_000, 4_000];
/// More than the rate seen before, in percent. A load that runs out of exams ends early, at its true rate.
const HEADROOM_PERCENT: u64 = 140;
/// Clients that add exams beforehand.
const ADDERS: usize = 64;
/// The row that shows what claims already made cost the next.
const LATER: &str = "mesh, 1 clients, leader, later";

/// One system under one load, over the rounds.
struct Series {
    name: String,
    loads: Vec<Load>,
}

/// Measures.
pub(crate) async fn run(lab: &Lab) -> anyhow::Result<Section> {
    let title = "three nodes on this disk, fsync before every answer, HTTP and JSON, kept alive".to_owned();
    let mut section = Section::new("claims", title);
    let program = program("etcd");
    let mut rates = FIRST_GUESS;
    let mut series: Vec<Series> = Vec::new();
    let mut note = |name: String, load: Load| match series.iter_mut().find(|series| series.name == name) {
        Some(series) => series.loads.push(load),
        None => series.push(Series { name, loads: vec![load] }),
    };
    for _ in 0..lab.rounds {
        for (place, clients) in CLIENTS.into_iter().enumerate() {
            for (variant, spread) in [("spread", true), ("leader", false)] {
                let mesh = Mesh::start(lab, 3, 1).await.context("start a mesh")?;
                let mut queue = Queue { mesh, added: 0, tokens: BTreeSet::new() };
                let load = queue.claim(lab, clients, rates[place], spread).await.context("claims on the mesh")?;
                rates[place] = load.whole_rate().max(FIRST_GUESS[place] / 4);
                note(row("mesh", clients, variant), load);
                if place + 1 == CLIENTS.len() && !spread {
                    note(LATER.to_owned(), queue.claim(lab, 1, rates[0], false).await.context(LATER)?);
                }
                drop(queue);
                if let Some(program) = &program {
                    let etcd = etcd::Cluster::start(lab, program).await.context("start etcd")?;
                    lab.quiet().await?;
                    note(row("etcd", clients, variant), etcd.load(clients, DURATION, spread).await.context("etcd")?);
                }
            }
        }
    }
    for Series { name, loads } in series {
        let of = |value: fn(&Load) -> f64| loads.iter().map(value).collect();
        let note = if name == LATER { "after the load of 256 clients" } else { "" };
        section.push(Row {
            name,
            note,
            figures: vec![
                Figure::more_is_better("/s", of(Load::rate)),
                Figure::less_is_better("ms p50", of(|load| load.percentile_ms(50))),
                Figure::less_is_better("ms p99", of(|load| load.percentile_ms(99))),
            ],
        });
    }
    if program.is_none() {
        section.skip("etcd");
    }
    for clients in CLIENTS {
        for variant in ["spread", "leader"] {
            let rate = |system| section.median(&row(system, clients, variant), "/s");
            let ratio = rate("mesh") / rate("etcd");
            section.ratio(&format!("mesh / etcd, {clients} clients, {variant}"), ratio, 1.0);
        }
    }
    Ok(section)
}

fn row(system: &str, clients: usize, variant: &str) -> String {
    format!("{system}, {clients} clients, {variant}")
}

/// The mesh under load, and what it has been asked so far.
struct Queue {
    mesh: Mesh,
    added: u64,
    /// Of every grant: none may come twice.
    tokens: BTreeSet<u64>,
}

impl Queue {
    /// Claims under one load. Exams for `rate` claims a second wait before the clock starts.
    async fn claim(&mut self, lab: &Lab, clients: usize, rate: u64, spread: bool) -> anyhow::Result<Load> {
        let targets = self.mesh.leader_last().await?;
        let leader = targets.last().copied().context("a leader")?;
        let waiting = self.added - self.tokens.len() as u64;
        let needed = rate * DURATION.as_secs() * HEADROOM_PERCENT / 100;
        self.add(leader, needed.saturating_sub(waiting)).await.context("add exams")?;
        lab.quiet().await?;
        let targets = if spread { targets } else { vec![leader] };
        let run = Run { targets, clients, duration: DURATION, requests: u64::MAX };
        let body = Bytes::from(json!({ "user": "dr-bench" }).to_string());
        let load = run.go(move |_| ("/api/v1/claims/next", body.clone()), granted).await?;
        for token in &load.numbers {
            ensure!(self.tokens.insert(*token), "the token {token} was granted twice");
        }
        Ok(load)
    }

    async fn add(&mut self, leader: SocketAddr, exams: u64) -> anyhow::Result<()> {
        let from = self.added;
        let run = Run { targets: vec![leader], clients: ADDERS, duration: Duration::from_secs(60), requests: exams };
        let exam = move |n: u64| {
            let accession = format!("B{}", from + n);
            let exam = json!({
                "accession": accession,
                "patient": { "id": format!("P-{accession}"), "name": "TEST^NOBODY", "sex": "O" },
                "modality": "CT",
                "description": "CT head",
                "awaits_images": false,
            });
            ("/api/v1/exams", Bytes::from(exam.to_string()))
        };
        let load = run.go(exam, added).await?;
        self.added += load.done();
        ensure!(load.done() == exams, "{} exams were added of {exams}", load.done());
        Ok(())
    }
}

fn granted(answer: &Value) -> Answer {
    match (answer["granted"].as_bool(), answer["token"].as_u64()) {
        (Some(true), Some(token)) => Answer::Done(token),
        (Some(false), _) => Answer::NothingLeft,
        _ => Answer::Wrong,
    }
}

fn added(answer: &Value) -> Answer {
    match (answer["existed"].as_bool(), answer["id"].as_u64()) {
        (Some(false), Some(id)) => Answer::Done(id),
        _ => Answer::Wrong,
    }
}
