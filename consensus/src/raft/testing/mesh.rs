//! Several groups in one process, joined by streams in memory that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use maillage_host::{Clock, Disk, EngineHome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::Toy;
use crate::raft::wire::{Frame, split};
use crate::raft::{
    Committed, Duplex, Group, GroupConfig, Links, MembershipError, ProposeError, ReadError, StartError, Timing,
};

/// How long the tests wait for what must come, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The network.
#[derive(Clone, Default)]
pub(crate) struct Mesh(Arc<Mutex<Fabric>>);

#[derive(Default)]
struct Fabric {
    groups: BTreeMap<u64, Group>,
    /// Nodes that reach nobody and are reached by nobody.
    cut: BTreeSet<u64>,
    /// Nodes that refuse what the first version refused.
    first_version: BTreeSet<u64>,
    streams: Vec<(u64, u64, AbortHandle)>,
}

/// What a node is started on.
pub(crate) struct Site {
    pub(crate) disk: Disk,
    pub(crate) home: Arc<dyn EngineHome>,
    pub(crate) snapshot_every: u64,
    pub(crate) keep_log: u64,
    pub(crate) format: u8,
    pub(crate) clock: Clock,
}

impl Site {
    pub(crate) fn new(disk: Disk, home: Arc<dyn EngineHome>) -> Self {
        Self { disk, home, snapshot_every: 10_000, keep_log: 1000, format: 2, clock: Clock::system() }
    }
}

impl Mesh {
    fn fabric(&self) -> std::sync::MutexGuard<'_, Fabric> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn config(&self, node_id: u64, site: Site) -> GroupConfig {
        GroupConfig {
            node_id,
            mesh_id: [9; 32],
            epoch: 1,
            timing: Timing {
                heartbeat: Duration::from_millis(100),
                election_min: Duration::from_millis(1000),
                election_max: Duration::from_millis(2000),
            },
            keepalive: Duration::from_millis(500),
            format: site.format,
            snapshot_every: site.snapshot_every,
            keep_log: site.keep_log,
            disk: site.disk,
            home: site.home,
            machine: Arc::new(Toy),
            links: Arc::new(Port { mesh: self.clone(), node_id }),
            clock: site.clock,
        }
    }

    pub(crate) async fn try_start(&self, node_id: u64, site: Site) -> Result<Group, StartError> {
        let group = Group::start(self.config(node_id, site)).await?;
        self.fabric().groups.insert(node_id, group.clone());
        Ok(group)
    }

    pub(crate) async fn start(&self, node_id: u64, site: Site) -> Group {
        self.try_start(node_id, site).await.expect("the group starts")
    }

    /// Starts node 1 as founder, and the others as its voters.
    pub(crate) async fn found(&self, sites: Vec<Site>) -> Vec<Group> {
        let mut groups = Vec::new();
        for (node_id, site) in (1..).zip(sites) {
            groups.push(self.start(node_id, site).await);
        }
        groups[0].initialize().await.expect("the founder leads");
        for node_id in 2..=groups.len() as u64 {
            // The founder's own membership may not be committed yet.
            while let Err(error) = groups[0].add_learner(node_id).await {
                assert_eq!(error, MembershipError::InProgress, "a learner is added");
                sleep(Duration::from_millis(20)).await;
            }
        }
        groups[0].set_voters((1..=groups.len() as u64).collect()).await.expect("learners become voters");
        for group in &groups {
            // The others hear who leads with the next heartbeat.
            group.watch().wait_for(|status| status.leader == Some(1)).await.expect("the group runs");
        }
        groups
    }

    /// Lets a node refuse a keep-alive with a body, as the first version does.
    pub(crate) fn make_first_version(&self, node_id: u64) {
        self.fabric().first_version.insert(node_id);
    }

    /// Cuts a node off, or joins it again.
    pub(crate) fn cut(&self, node_id: u64, cut: bool) {
        let mut fabric = self.fabric();
        if cut {
            fabric.cut.insert(node_id);
            fabric.streams.retain(|(from, to, stream)| {
                let broken = *from == node_id || *to == node_id;
                if broken {
                    stream.abort();
                }
                !broken
            });
        } else {
            fabric.cut.remove(&node_id);
        }
    }

    /// A node vanishes: nobody reaches it, and its streams break.
    pub(crate) fn forget(&self, node_id: u64) -> Option<Group> {
        self.cut(node_id, true);
        let mut fabric = self.fabric();
        fabric.cut.remove(&node_id);
        fabric.groups.remove(&node_id)
    }
}

struct Port {
    mesh: Mesh,
    node_id: u64,
}

impl Links for Port {
    fn open(&self, target: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        let opened = (|| {
            let mut fabric = self.mesh.fabric();
            if fabric.cut.contains(&self.node_id) || fabric.cut.contains(&target) {
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let group = fabric.groups.get(&target).cloned().ok_or(io::ErrorKind::HostUnreachable)?;
            let (near, mut far) = tokio::io::duplex(256 << 10);
            let from = self.node_id;
            if fabric.first_version.contains(&target) {
                let (inner, outer) = tokio::io::duplex(256 << 10);
                drop(maillage_host::spawn(as_first_version(far, outer)));
                far = inner;
            }
            let serving = maillage_host::spawn(async move { group.serve(from, duplex(far)).await });
            fabric.streams.retain(|(_, _, stream)| !stream.is_finished());
            fabric.streams.push((from, target, serving.abort_handle()));
            Ok(duplex(near))
        })();
        Box::pin(std::future::ready(opened))
    }
}

/// Passes a stream on, unless it asks what the first version of the protocol has no word for.
async fn as_first_version(mut asker: DuplexStream, mut group: DuplexStream) -> io::Result<()> {
    /// A hello, and the length and tag of the frame behind it.
    const START: usize = 4 + 58 + 4 + 1;
    const KEEP_ALIVE: u8 = 11;
    let mut start = [0; START];
    asker.read_exact(&mut start).await?;
    let len = u32::from_le_bytes(start[62..66].try_into().unwrap_or_default());
    if start[66] == KEEP_ALIVE && len > 1 {
        let (_, mut writer) = split(duplex(asker));
        return writer.send(&Frame::Refused("malformed frame, or of another version".to_owned())).await;
    }
    group.write_all(&start).await?;
    tokio::io::copy_bidirectional(&mut asker, &mut group).await.map(drop)
}

fn duplex(stream: DuplexStream) -> Duplex {
    let (reader, writer) = tokio::io::split(stream);
    Duplex { reader: Box::new(reader), writer: Box::new(writer) }
}

/// Waits until `condition` holds; fails the test when it does not in time.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Proposes a command to whoever leads. A refusal for want of a leader means that it is in no log: on a
/// busy machine an election takes a while.
pub(crate) async fn commit(group: &Group, command: Bytes) -> Committed {
    let end = Instant::now() + PATIENCE;
    loop {
        match group.propose(command.clone(), PATIENCE).await {
            Err(ProposeError::NoQuorum) if Instant::now() < end => {}
            other => return other.expect("committed"),
        }
    }
}

/// Waits until a group's state is as fresh as the leader's, whoever that becomes.
pub(crate) async fn linearize(group: &Group) -> u64 {
    let end = Instant::now() + PATIENCE;
    loop {
        match group.linearize(PATIENCE).await {
            Err(ReadError::NoQuorum) if Instant::now() < end => {}
            other => return other.expect("linearizable"),
        }
    }
}
