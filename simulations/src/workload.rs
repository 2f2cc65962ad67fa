//! What the sites' people and machines do: hospitals add exams and send images, regulators validate them,
//! readers claim, read and report, desks deliver and telephone. All of it goes through the node of their own
//! site, as in production. And what a stranger does, who tries every node.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::Claim;
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::raft::ProposeError;
use tokio::task::JoinHandle;

mod afterwards;
mod committing;
mod desk;
pub(crate) mod dicom;
mod glass;
pub(crate) mod hospital;
pub(crate) mod http;
pub(crate) mod images;
mod intruder;
mod limited;
pub(crate) mod purging;
mod reader;
mod steps;

use crate::cluster::Cluster;
use crate::invariants::instances::Acknowledged;
use crate::rng::Rng;

/// The share of clients that speak HTTP, for all that it has addresses for. The others are told of what HTTP leaves out.
const BY_HTTP: f64 = 0.8;
/// Between two tries of one command.
const RETRY_MS: (u64, u64) = (50, 1_000);

/// Readers of a site with this number or a higher one tell of nothing themselves: see `witness`.
const APART: u32 = 90;
/// Readers' numbers of each site.
const READERS: u32 = 100;

/// The clients of all sites.
pub(crate) struct Clients {
    /// Hospitals and scanners by slot: they end soon after work does.
    pub(crate) senders: Vec<(u32, JoinHandle<()>)>,
    /// Readers and desks never end.
    pub(crate) readers: Vec<JoinHandle<()>>,
    /// Those whose site may be away for longer than that, and the intruder: they never end, either.
    pub(crate) apart: Vec<JoinHandle<()>>,
    /// Who asks for storage commitment, by slot: they end once the mesh has healed and all is safe.
    pub(crate) committing: Vec<(u32, JoinHandle<()>)>,
}

/// Starts the clients of every site.
pub(crate) fn start(cluster: &Arc<Cluster>) -> Clients {
    let mut clients = Clients { senders: Vec::new(), readers: Vec::new(), apart: Vec::new(), committing: Vec::new() };
    for slot in cluster.slots() {
        let rng = |name: &str| Rng::stream(cluster.plan.seed, &format!("{name} {slot}"));
        let hospital = hospital::run(Arc::clone(cluster), slot, slot, rng("hospital"));
        clients.senders.push((slot, maillage_host::spawn(hospital)));
        let scanner = images::run(Arc::clone(cluster), slot, rng("images"));
        clients.senders.push((slot, maillage_host::spawn(scanner)));
        clients.readers.push(maillage_host::spawn(desk::run(Arc::clone(cluster), slot, rng("desk"))));
        clients.apart.push(maillage_host::spawn(glass::run(Arc::clone(cluster), slot, rng("glass"))));
        clients.apart.push(maillage_host::spawn(steps::run(Arc::clone(cluster), slot, rng("steps"))));
        clients.apart.push(maillage_host::spawn(purging::run(Arc::clone(cluster), slot, slot, rng("archive"))));
        let retention = purging::keep_until_over(Arc::clone(cluster), slot, rng("retention"));
        clients.apart.push(maillage_host::spawn(retention));
        let committing = committing::run(Arc::clone(cluster), slot, rng("commitments"));
        clients.committing.push((slot, maillage_host::spawn(committing)));
        for number in 1..=cluster.plan.readers_per_site {
            let reader = reader::Reader::new(Arc::clone(cluster), slot, number, rng(&format!("reader {number}")));
            clients.readers.push(maillage_host::spawn(reader.run()));
        }
    }
    let intruder = intruder::run(Arc::clone(cluster), Rng::stream(cluster.plan.seed, "intruder"));
    clients.apart.push(maillage_host::spawn(intruder));
    if let Some(limits) = cluster.plan.limits {
        let rng = Rng::stream(cluster.plan.seed, "bulk");
        clients.apart.push(maillage_host::spawn(limited::run(Arc::clone(cluster), limits, rng)));
    }
    if let Some(gateway) = cluster.gateway_slot() {
        let rng = |name: &str| Rng::stream(cluster.plan.seed, &format!("{name} of the gateway"));
        // It requests at a site, as the others do.
        let slot = u32::try_from(rng("requests").between(1, u64::from(cluster.plan.sites))).unwrap_or(1);
        let hospital = hospital::run(Arc::clone(cluster), slot, gateway, rng("hospital"));
        clients.senders.push((slot, maillage_host::spawn(hospital)));
        let scanner = images::run(Arc::clone(cluster), gateway, rng("images"));
        clients.senders.push((gateway, maillage_host::spawn(scanner)));
        let archive = purging::run(Arc::clone(cluster), slot, gateway, rng("archive"));
        clients.apart.push(maillage_host::spawn(archive));
        let committing = committing::run(Arc::clone(cluster), gateway, rng("commitments"));
        clients.committing.push((gateway, maillage_host::spawn(committing)));
    }
    clients
}

/// A user's number, from the name.
pub(crate) fn number_of(user: &Name) -> u32 {
    user.as_str().strip_prefix("reader-").and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether what this user does is seen by the witness alone.
pub(crate) fn is_apart(user: &Name) -> bool {
    number_of(user) % READERS >= APART
}

/// The command that made a claim, or the number in the Transaction UID that its client chose.
pub(crate) fn command_of(claim: &Claim) -> u128 {
    transaction(claim.transaction_uid.as_str())
}

/// The number in a UID below 2.25; zero if it is none.
pub(crate) fn transaction(uid: &str) -> u128 {
    uid.strip_prefix("2.25.").and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A fresh id, from a client's own stream.
fn new_id(rng: &mut Rng) -> CommandId {
    let id = u128::from(rng.next()) << 64 | u128::from(rng.next());
    CommandId(uuid::Uuid::from_u128(id))
}

/// A hospital sends again what was lost with the node of `slot`, until the new one has it.
pub(crate) async fn send_again(cluster: &Arc<Cluster>, slot: u32, lost: Vec<Acknowledged>, rng: &mut Rng) {
    for Acknowledged { study, sop_instance, data_set } in lost {
        let sample = dicom::Sample { study, sop_instance, data_set };
        while !images::store(cluster, slot, &sample, rng).await {
            let wait = rng.millis(200, 2_000);
            tokio::time::sleep(wait).await;
        }
    }
}

/// What became of a command.
pub(crate) enum Answer {
    /// The outcome, and an index of the log at which it had been applied.
    Given(u64, Outcome),
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
    /// Whether it speaks HTTP, as clients do; else its commands go in behind it.
    by_http: bool,
}

/// How one try ended.
enum Tried {
    Given(u64, Outcome),
    /// It was not proposed.
    Refused(&'static str),
    Unknown,
    /// Nothing that the workload sends deserves this.
    Wrong(String),
}

impl Sender {
    pub(crate) fn new(cluster: Arc<Cluster>, slot: u32, user: Name, mut rng: Rng) -> Self {
        let by_http = rng.chance(BY_HTTP);
        Self { cluster, slot, user, rng, by_http }
    }

    /// A client that speaks HTTP alone.
    pub(crate) fn over_http(cluster: Arc<Cluster>, slot: u32, user: Name, rng: Rng) -> Self {
        Self { cluster, slot, user, rng, by_http: true }
    }

    /// A fresh id, from this client's own stream.
    pub(crate) fn new_id(&mut self) -> CommandId {
        new_id(&mut self.rng)
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
                Some(Tried::Given(_, Outcome::Refused(refusal))) if perhaps && refusal.is_transient() => {
                    // It is kept for no repeat: an earlier try may be done yet.
                    world.sometimes("a repeated command was refused for now");
                    return Answer::Unknown;
                }
                Some(Tried::Given(index, outcome)) => {
                    if perhaps {
                        world.sometimes("a repeated command was answered");
                    }
                    if tries > 3 {
                        world.sometimes("a command took more than three tries");
                    }
                    return Answer::Given(index, outcome);
                }
                Some(Tried::Refused(why)) => world.sometimes(why),
                None => {}
                Some(Tried::Unknown) => perhaps = true,
                Some(Tried::Wrong(why)) => {
                    let what = format!("{command:?}");
                    let what = what.split([' ', '(']).next().unwrap_or_default();
                    world.violation("startup", format!("a command of the workload, {what} {id:?}, is refused: {why}"));
                    return Answer::Never;
                }
            }
            let wait = self.rng.millis(RETRY_MS.0, RETRY_MS.1);
            tokio::time::sleep(wait).await;
        }
    }

    /// One try at the site's node; `None` when that is down.
    async fn try_once(&mut self, id: CommandId, command: Command) -> Option<Tried> {
        let running = self.cluster.running(self.slot)?;
        let limit = self.rng.millis(500, 8_000);
        let by_http = self.by_http.then(|| http::of_command(id, &self.user, &command)).flatten();
        self.cluster.world.sometimes(if by_http.is_some() {
            "a command went in by HTTP"
        } else {
            "a command went in behind HTTP"
        });
        if let Some(request) = by_http {
            let answered = http::ask(&self.cluster, &running, limit, request).await;
            let means = answered.map(|answered| http::outcome(&command, &answered));
            if let (Some(http::Means::Kept), Some((exam, text))) = (&means, http::text_of(&command)) {
                self.cluster.watch.outbox.kept(self.slot, exam.0, text);
            }
            return Some(match means {
                // It may be anywhere up to the newest entry that any node has.
                Some(http::Means::Outcome(outcome)) => Tried::Given(self.cluster.newest_index(), outcome),
                Some(http::Means::NotNow(why)) => Tried::Refused(why),
                Some(http::Means::Wrong(why)) => Tried::Wrong(why),
                Some(http::Means::Kept | http::Means::Unknown) | None => Tried::Unknown,
            });
        }
        let user = self.user.clone();
        let asked = self.cluster.world.spawn_on(running.owner, async move {
            tokio::time::timeout(limit, running.node.propose(id, user, command)).await
        });
        // The node died with the question, or the client hung up.
        let Ok(Ok(proposed)) = asked.await else { return Some(Tried::Unknown) };
        Some(match proposed {
            Ok(committed) => match Outcome::decode(&committed.outcome) {
                Ok(outcome) => Tried::Given(committed.index, outcome),
                Err(error) => Tried::Wrong(format!("an outcome that nobody can read: {error}")),
            },
            Err(ProposeError::NoQuorum) => Tried::Refused("a command was refused for want of a quorum"),
            Err(ProposeError::Busy | ProposeError::NotLeader) => Tried::Refused("a command was refused for now"),
            Err(ProposeError::Unknown | ProposeError::Halted(_)) => Tried::Unknown,
            Err(error @ (ProposeError::Invalid(_) | ProposeError::TooLarge(_))) => Tried::Wrong(error.to_string()),
        })
    }
}
