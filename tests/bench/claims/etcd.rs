//! Three etcd members with their default settings, asked through their JSON gateway.
//!
//! A claim there is a transaction that puts a key if nobody has: one log entry and one fsync by a
//! majority, as a claim here.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::load::{Answer, Load, Run};
use crate::http::{self, Client};
use crate::lab::Lab;
use crate::process::{Server, free_address, until};

/// Members, as many as the mesh has nodes.
const MEMBERS: usize = 3;

/// A running cluster; gone when dropped, processes first.
#[derive(Debug)]
pub(super) struct Cluster {
    _servers: Vec<Server>,
    _dir: TempDir,
    /// The clients' addresses, the leader's last.
    targets: Vec<SocketAddr>,
    keys: AtomicU64,
}

impl Cluster {
    /// Starts the members and waits for a leader.
    pub(super) async fn start(lab: &Lab, program: &Path) -> anyhow::Result<Self> {
        let dir = lab.dir("etcd")?;
        let mut addresses = Vec::new();
        for _ in 0..MEMBERS {
            addresses.push((free_address()?, free_address()?));
        }
        let members: Vec<String> =
            addresses.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://{peer}")).collect();
        let mut servers = Vec::new();
        for (n, (client, peer)) in addresses.iter().enumerate() {
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let mut command = Command::new(program);
            command.args(["--name", &format!("m{n}"), "--log-level", "warn", "--data-dir"]);
            command.arg(dir.path().join(format!("m{n}")));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &members.join(","), "--initial-cluster-state", "new"]);
            servers.push(Server::start("etcd", &mut command, &dir.path().join(format!("m{n}.log")))?);
        }
        for (server, (client, _)) in servers.iter_mut().zip(&addresses) {
            server
                .ready(async || http::get(*client, "/health").await.is_some_and(|h| h["health"] == json!("true")))
                .await?;
        }
        let clients: Vec<SocketAddr> = addresses.iter().map(|(client, _)| *client).collect();
        let targets = until("an etcd member leads", async || leader_last(&clients).await).await?;
        Ok(Self { _servers: servers, _dir: dir, targets, keys: AtomicU64::new(0) })
    }

    /// Transactions under one load, each for a key of its own.
    pub(super) async fn load(&self, clients: usize, duration: Duration, spread: bool) -> anyhow::Result<Load> {
        // No run gets near so many.
        let from = self.keys.fetch_add(1 << 32, Ordering::Relaxed);
        let leader = *self.targets.last().context("a leader")?;
        let targets = if spread { self.targets.clone() } else { vec![leader] };
        let run = Run { targets, clients, duration, requests: u64::MAX };
        run.go(move |n| ("/v3/kv/txn", put_if_absent(from + n)), succeeded).await
    }
}

async fn leader_last(clients: &[SocketAddr]) -> anyhow::Result<Option<Vec<SocketAddr>>> {
    let (mut followers, mut leaders) = (Vec::new(), Vec::new());
    for client in clients {
        let mut connection = Client::connect(*client).await?;
        let status = connection.post("/v3/maintenance/status", Bytes::from_static(b"{}")).await?;
        let status: Value = serde_json::from_slice(&status)?;
        let leads = status["leader"].is_string() && status["leader"] == status["header"]["member_id"];
        if leads { leaders.push(*client) } else { followers.push(*client) }
    }
    followers.extend_from_slice(&leaders);
    Ok((leaders.len() == 1).then_some(followers))
}

/// Keys and values are base64 in etcd's JSON: 16 digits and a few bytes, made without a library.
fn put_if_absent(n: u64) -> Bytes {
    // 16 characters of the base64 alphabet are 12 bytes of key.
    let key = format!("{n:016X}");
    let put = json!({
        "compare": [{ "key": key, "target": "CREATE", "createRevision": "0", "result": "EQUAL" }],
        "success": [{ "requestPut": { "key": key, "value": "ZHItYmVuY2gsc2l0ZS0xLGRyLWJlbmNoLHNpdGUtMQ==" } }],
    });
    Bytes::from(put.to_string())
}

fn succeeded(answer: &Value) -> Answer {
    // The gateway leaves out what is false.
    match (answer["succeeded"].as_bool(), answer["header"]["revision"].as_str().and_then(|text| text.parse().ok())) {
        (Some(true), Some(revision)) => Answer::Done(revision),
        _ => Answer::Wrong,
    }
}
