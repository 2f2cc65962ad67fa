//! Clients that ask one thing after another on connections that stay open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::http::Client;

/// What is to be run.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// Whom the clients ask, in turn.
    pub(super) targets: Vec<SocketAddr>,
    /// How many ask at once.
    pub(super) clients: usize,
    /// For how long.
    pub(super) duration: Duration,
    /// How often at most, all together.
    pub(super) requests: u64,
}

/// What an answer means.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// Done, with a number that must be the only one of its kind.
    Done(u64),
    /// Nothing was left to do: the run ends.
    NothingLeft,
    /// Not what may be answered.
    Wrong,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// The numbers of what was done.
    pub(super) numbers: Vec<u64>,
    micros: Vec<u64>,
    took: Duration,
}

impl Load {
    /// How much was done.
    pub(super) fn done(&self) -> u64 {
        self.numbers.len() as u64
    }

    /// Done a second.
    pub(super) fn rate(&self) -> f64 {
        self.done() as f64 / self.took.as_secs_f64()
    }

    /// As [`Load::rate`], without its fraction.
    pub(super) fn whole_rate(&self) -> u64 {
        self.done() * 1000 / u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// A percentile of the time from a request to its answer, in milliseconds.
    pub(super) fn percentile_ms(&self, percent: usize) -> f64 {
        let place = (self.micros.len() * percent / 100).min(self.micros.len().saturating_sub(1));
        self.micros.get(place).map_or(f64::NAN, |micros| *micros as f64 / 1e3)
    }
}

impl Run {
    /// Connects all clients, then lets them ask `what`, numbered from 0.
    pub(super) async fn go<W>(&self, what: W, judge: fn(&Value) -> Answer) -> anyhow::Result<Load>
    where
        W: Fn(u64) -> (&'static str, Bytes) + Clone + Send + 'static,
    {
        let start = Arc::new(Barrier::new(self.clients + 1));
        let asked = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for number in 0..self.clients {
            let target = self.targets.get(number % self.targets.len().max(1)).copied().context("whom to ask")?;
            let mut connection = Client::connect(target).await?;
            let (start, asked, what) = (Arc::clone(&start), Arc::clone(&asked), what.clone());
            let (duration, requests) = (self.duration, self.requests);
            clients.spawn(async move {
                let mut load = Load::default();
                start.wait().await;
                let begun = Instant::now();
                while begun.elapsed() < duration {
                    let n = asked.fetch_add(1, Ordering::Relaxed);
                    if n >= requests {
                        break;
                    }
                    let (path, body) = what(n);
                    let since = Instant::now();
                    let answer = connection.post(path, body).await?;
                    let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                    match judge(&serde_json::from_slice(&answer)?) {
                        Answer::Done(number) => {
                            load.numbers.push(number);
                            load.micros.push(micros);
                        }
                        Answer::NothingLeft => break,
                        Answer::Wrong => bail!("{path}: {}", String::from_utf8_lossy(&answer)),
                    }
                }
                anyhow::Ok(load)
            });
        }
        start.wait().await;
        let begun = Instant::now();
        let mut all = Load::default();
        while let Some(load) = clients.join_next().await {
            let load = load??;
            all.numbers.extend(load.numbers);
            all.micros.extend(load.micros);
        }
        all.took = begun.elapsed();
        all.micros.sort_unstable();
        Ok(all)
    }
}
