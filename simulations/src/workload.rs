//! What the sites' people and machines do: hospitals add exams and send images, readers claim, read
//! and report. All of it goes through the node of their own site, as in production.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::raft::{Committed, ProposeError};
use tokio::task::JoinHandle;

mod hospital;
mod images;
mod reader;

use crate::cluster::Cluster;
use crate::rng::Rng;

/// Between two tries of one command.
const RETRY_MS: (u64, u64) = (50, 1_000);

/// The clients of all sites.
pub(crate) struct Clients {
    /// Hospitals and scanners by slot: they end soon after work does.
    pub(crate) senders: Vec<(u32, JoinHandle<()>)>,
    /// Readers never end.
    pub(crate) readers: Vec<JoinHandle<()>>,
}

/// Starts the clients of every site.
pub(crate) fn start(cluster: &Arc<Cluster>) -> Clients {
    let mut clients = Clients { senders: Vec::new(), readers: Vec::new() };
    for slot in cluster.slots() {
        let rng = |name: &str| Rng::stream(cluster.plan.seed, &format!("{name} {slot}"));
        let hospital = hospital::run(Arc::clone(cluster), slot, rng("hospital"));
        clients.senders.push((slot, maillage_host::spawn(hospital)));
        let scanner = images::run(Arc::clone(cluster), slot, rng("images"));
        clients.senders.push((slot, maillage_host::spawn(scanner)));
        for number in 1..=cluster.plan.readers_per_site {
            let reader = reader::Reader::new(Arc::clone(cluster), slot, number, rng(&format!("reader {number}")));
            clients.readers.push(maillage_host::spawn(reader.run()));
        }
    }
    clients
}

/// What became of a command.
pub(crate) enum Answer {
    Given(Committed, Outcome),
    /// It is in no log, and never will be.
    Never,
    /// It may have happened, or may happen yet.
    Unknown,
}

/// One command of one client, repeated under its id until it is answered.
pub(crate) struct Sender {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) slot: u32,
    pub(crate) user: Name,
    pub(crate) rng: Rng,
}

impl Sender {
    /// A fresh id, from this client's own stream.
    pub(crate) fn new_id(&mut self) -> CommandId {
        let id = u128::from(self.rng.next()) << 64 | u128::from(self.rng.next());
        CommandId(uuid::Uuid::from_u128(id))
    }

    /// Sends `command` until it is answered, or `patience` ends.
    pub(crate) async fn send(&mut self, id: CommandId, command: Command, patience: Option<Duration>) -> Answer {
        let world = Arc::clone(&self.cluster.world);
        let start = world.now();
        let (mut perhaps, mut tries) = (false, 0_u32);
        loop {
            if patience.is_some_and(|patience| world.now() - start > patience) {
                world.sometimes("a client gave up");
                return if perhaps { Answer::Unknown } else { Answer::Never };
            }
            tries += 1;
            match self.try_once(id, command.clone()).await {
                Some(Ok(committed)) => {
                    let Ok(outcome) = Outcome::decode(&committed.outcome) else {
                        world.violation("I7", "an outcome that nobody can read".to_owned());
                        return Answer::Unknown;
                    };
                    if perhaps {
                        world.sometimes("a repeated command was answered");
                    }
                    if tries > 3 {
                        world.sometimes("a command took more than three tries");
                    }
                    return Answer::Given(committed, outcome);
                }
                Some(Err(ProposeError::NoQuorum)) => world.sometimes("a command was refused for want of a quorum"),
                Some(Err(ProposeError::Busy | ProposeError::NotLeader)) | None => {}
                Some(Err(ProposeError::Unknown | ProposeError::Halted(_))) => perhaps = true,
                Some(Err(error @ (ProposeError::Invalid(_) | ProposeError::TooLarge(_)))) => {
                    world.violation("startup", format!("a command of the workload is refused: {error}"));
                    return Answer::Never;
                }
            }
            let wait = self.rng.millis(RETRY_MS.0, RETRY_MS.1);
            tokio::time::sleep(wait).await;
        }
    }

    /// One try at the site's node; `None` when that is down.
    async fn try_once(&mut self, id: CommandId, command: Command) -> Option<Result<Committed, ProposeError>> {
        let running = self.cluster.running(self.slot)?;
        let site = SiteId(running.site);
        let envelope = Envelope { id, at: Default::default(), site, user: self.user.clone(), command };
        let limit = self.rng.millis(500, 8_000);
        let asked = self
            .cluster
            .world
            .spawn_on(running.owner, async move { running.group.propose(envelope.encode().into(), limit).await });
        // The node died with the question.
        Some(asked.await.unwrap_or(Err(ProposeError::Unknown)))
    }
}
