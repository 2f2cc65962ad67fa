//! What a node does unasked, as the real node's duties do: its session, and, while it leads, the ends
//! of silent sites' sessions and the growth of the group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::raft::ProposeError;
use maillage_consensus::{Outcome, View};

use crate::cluster::{Cluster, Running};
use crate::mutant::Mutant;

/// Between two rounds of a leader's duties, and two tries at opening a session.
const ROUND: Duration = Duration::from_secs(1);
/// How long a command of the node itself may take.
const LIMIT: Duration = Duration::from_secs(5);
/// A learner this far behind, or less, may vote.
const VOTER_LAG_MAX: u64 = 100;

fn envelope(site: u64, command: Command) -> Envelope {
    Envelope { id: CommandId::random(), at: Default::default(), site: SiteId(site), user: Name::default(), command }
}

/// Opens this site's session whenever it has none.
pub(crate) async fn keep_session(cluster: Arc<Cluster>, running: Running) {
    let mut changes = running.group.changes();
    loop {
        let engine = running.group.reader();
        let site = View::new(&*engine).site(SiteId(running.site)).ok().flatten();
        drop(engine);
        let mut open = site.as_ref().is_some_and(|site| site.session_open);
        if site.is_some() && !open {
            let command = envelope(running.site, Command::OpenSession).encode();
            if let Ok(committed) = running.group.propose(command.into(), LIMIT).await {
                open = matches!(Outcome::decode(&committed.outcome), Ok(Outcome::SessionOpened { .. }));
                cluster.world.event(running.owner.slot, format_args!("session open: {open}"));
            }
        }
        if open {
            if changes.changed().await.is_err() {
                return;
            }
        } else {
            tokio::time::sleep(ROUND).await;
        }
    }
}

/// Does a leader's duties while this node leads.
pub(crate) async fn lead(cluster: Arc<Cluster>, running: Running) {
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(term) = running.group.leads() else { continue };
        if cluster.plan.mutant != Some(Mutant::SessionsNeverEnd) {
            expire_sessions(&cluster, &running, term).await;
        }
        grow(&cluster, &running).await;
    }
}

async fn expire_sessions(cluster: &Arc<Cluster>, running: &Running, term: u64) {
    let Some(heard) = running.group.heard() else { return };
    let engine = running.group.reader();
    let Ok(sites) = View::new(&*engine).sites() else { return };
    drop(engine);
    for site in sites {
        let silent = heard.get(&site.id.0).is_some_and(|at| at.elapsed() > cluster.plan.session_ttl);
        if !site.session_open || !silent {
            continue;
        }
        let command = Command::ExpireSession { site: site.id, session: site.sessions };
        let expiry = cluster.history.expiry(site.id.0, site.sessions);
        let proposed =
            running.group.propose_in_term(term, envelope(running.site, command).encode().into(), LIMIT).await;
        match proposed {
            Ok(committed) => {
                cluster.history.expired(expiry);
                if let Ok(Outcome::SessionExpired { freed }) = Outcome::decode(&committed.outcome) {
                    cluster.world.sometimes("a session ended");
                    if freed > 0 {
                        cluster.world.sometimes("a session's end freed claims");
                    }
                }
            }
            // It may yet be committed: its end stays open in the history.
            Err(ProposeError::Unknown | ProposeError::Halted(_)) => {}
            Err(_) => cluster.history.never(expiry),
        }
    }
}

/// Brings joined sites into the group, and makes as many of them voters as wanted, two at a time.
async fn grow(cluster: &Arc<Cluster>, running: &Running) {
    let status = running.group.watch().borrow().clone();
    if status.joint {
        return;
    }
    let engine = running.group.reader();
    let Ok(sites) = View::new(&*engine).sites() else { return };
    drop(engine);
    let known: BTreeSet<u64> = status.voters.union(&status.learners).copied().collect();
    for site in sites.iter().filter(|site| !known.contains(&site.id.0)) {
        if running.group.add_learner(site.id.0).await.is_err() {
            return;
        }
    }
    let caught_up = |id: u64| status.lag.get(&id).copied().flatten().is_some_and(|lag| lag <= VOTER_LAG_MAX);
    let missing = cluster.plan.voters().saturating_sub(status.voters.len());
    let candidates = sites.iter().map(|site| site.id.0).filter(|id| !status.voters.contains(id) && caught_up(*id));
    let added: Vec<u64> = candidates.take(missing.min(2)).collect();
    if added.len() == 2 || (missing == 1 && added.len() == 1) {
        let voters = status.voters.iter().copied().chain(added).collect();
        // Tried again in a second if it failed.
        let changed = running.group.set_voters(voters).await;
        cluster.world.event(running.owner.slot, format_args!("voters changed: {}", changed.is_ok()));
    }
}
