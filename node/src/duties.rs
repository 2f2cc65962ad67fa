//! What a node does unasked: its session, its roster, and, while it leads, the mesh's upkeep.
//!
//! `format`, `clocks` and `attest` are what keeps versions, clocks and states together. The leader ends the sessions of sites it no longer hears, and brings joined sites into the Raft
//! group: every site as a learner with the whole queue, up to five of them as voters in distinct
//! zones. The number of voters is odd and never shrinks by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maillage_consensus::Outcome;
use maillage_consensus::command::{ADDRESSES_MAX, Command};
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::mesh::Site;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::situation;

pub(crate) mod attest;
pub(crate) mod clocks;
mod format;
mod retention;
mod wipe;

/// The most voters: more would slow every commit and bear no likelier loss.
const VOTERS_MAX: usize = 5;
/// A learner this many entries behind, or fewer, may become a voter.
const VOTER_LAG_MAX: u64 = 100;
/// Critical results escalated in one round.
const ESCALATED_AT_ONCE: usize = 100;
/// Between two rounds of a leader's duties.
const ROUND: Duration = Duration::from_secs(1);
/// Between two tries at opening this site's session.
const SESSION_RETRY: Duration = Duration::from_secs(1);

/// Keeps roster and session current, and does the leader's duties while this node leads.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let follow = maillage_host::spawn(follow_state(node.clone(), shutdown.clone()));
    let session = maillage_host::spawn(keep_session(node.clone(), shutdown.clone()));
    let attest = maillage_host::spawn(attest::run(node.clone(), shutdown.clone()));
    let wipe = maillage_host::spawn(wipe::run(node.clone(), shutdown.clone()));
    let mut failed: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut retention = retention::Retention::default();
    while shutdown.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_some() {
        let Some(term) = node.group().leads() else { continue };
        for (duty, result) in [
            ("expire sessions", expire_sessions(&node, term).await),
            ("admit sites to the Raft group", admit(&node).await),
            ("raise the mesh's format", format::raise(&node, term).await),
            ("escalate critical results", escalate(&node, term).await),
            ("end the retention of images", retention.end(&node, term).await),
            ("lead with a right clock", clocks::mind(&node).await),
        ] {
            // Said once for each new reason, not once a second.
            match result {
                Ok(()) => drop(failed.remove(duty)),
                Err(error) => {
                    let reason = format!("{error:#}");
                    if failed.get(duty) != Some(&reason) {
                        tracing::warn!(duty, reason, "leader's duty failed");
                        failed.insert(duty, reason);
                    }
                }
            }
        }
    }
    let _ = tokio::join!(follow, session, attest, wipe);
}

/// Takes over sites and tokens from the replicated state at every change.
async fn follow_state(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut known = None;
    loop {
        let members = node.read(|view| {
            let hash = view.members_hash()?;
            let is_new = known != Some(hash);
            is_new.then(|| Ok((hash, view.sites()?, view.tokens()?))).transpose()
        });
        match members {
            Ok(Some((hash, sites, tokens))) => {
                if node.roster().update(&sites, &tokens)
                    && let Err(error) = node.save_members(&sites).await
                {
                    tracing::error!(error = format!("{error:#}"), "save the members");
                }
                known = Some(hash);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "read the sites"),
        }
        match shutdown.run_until_cancelled(changes.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}

/// Opens this site's session when it has none, and describes the site anew when its configuration
/// changed. Keep-alives are the Raft layer's.
async fn keep_session(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let (mut described, mut situated) = (false, false);
    loop {
        let site = node.read(|view| view.site(node.site())).ok().flatten();
        let done = match site {
            None => false,
            Some(site) => {
                described = described || describe_if_changed(&node, &site).await;
                situated = situated || situation::propose_if_changed(&node).await;
                described && (site.session_open || open_session(&node).await) && situated
            }
        };
        let wait = async {
            if done {
                changes.changed().await.is_ok()
            } else {
                tokio::time::sleep(SESSION_RETRY).await;
                true
            }
        };
        match shutdown.run_until_cancelled(wait).await {
            Some(true) => {}
            _ => return,
        }
    }
}

async fn open_session(node: &Node) -> bool {
    match node.command(CommandId::random(), Name::default(), Command::OpenSession).await {
        Ok(Outcome::SessionOpened { session }) => {
            tracing::info!(session, "session open");
            true
        }
        Ok(other) => {
            tracing::warn!(?other, "session not opened");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "session not opened yet");
            false
        }
    }
}

async fn describe_if_changed(node: &Node, site: &Site) -> bool {
    let Ok(mut now) = crate::joining::describe(node.config(), node.identity()) else { return true };
    // Addresses that others saw when the site joined are kept beside those it knows itself.
    for address in &site.description.addresses {
        if node.config().mesh.announce.is_empty()
            && !now.addresses.contains(address)
            && now.addresses.len() < ADDRESSES_MAX
        {
            now.addresses.push(*address);
        }
    }
    let same = now.addresses.iter().all(|address| site.description.addresses.contains(address));
    if same && now.addresses.len() == site.description.addresses.len() {
        now.addresses.clone_from(&site.description.addresses);
    }
    if now == site.description {
        return true;
    }
    let command = Command::Describe { description: now };
    match node.command(CommandId::random(), Name::default(), command).await {
        Ok(Outcome::Refused(refusal)) => {
            tracing::warn!(%refusal, "the mesh keeps this site's old description");
            true
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Ends the sessions of sites that this leader has not heard for a session's time to live.
async fn expire_sessions(node: &Node, term: u64) -> anyhow::Result<()> {
    let Some(heard) = node.group().heard() else { return Ok(()) };
    let ttl = Duration::from_secs(node.config().raft.session_ttl_s);
    for site in node.read(|view| view.sites())? {
        let silent = heard.get(&site.id.0).is_some_and(|at| at.elapsed() > ttl);
        if site.session_open && silent {
            let command = Command::ExpireSession { site: site.id, session: site.sessions };
            let outcome = node.command_in_term(term, command).await?;
            tracing::warn!(site = site.id.0, ?outcome, "session ended: the site is silent");
        }
    }
    Ok(())
}

/// Tells critical results again that nobody acknowledged in time.
async fn escalate(node: &Node, term: u64) -> anyhow::Result<()> {
    let (criticals, now) = node.read(|view| Ok((view.criticals(ESCALATED_AT_ONCE)?, node.state_time(view)?)))?;
    // In the order in which they are due.
    for (exam, remark, _) in criticals.into_iter().take_while(|(_, _, due_at)| due_at.0 <= now.0) {
        match node.command_in_term(term, Command::Escalate { exam, remark }).await? {
            Outcome::Done => tracing::warn!(exam = exam.0, remark, "a critical result was not acknowledged in time"),
            // Acknowledged meanwhile.
            other => tracing::debug!(exam = exam.0, remark, ?other, "not escalated"),
        }
    }
    Ok(())
}

/// Brings joined sites into the group.
async fn admit(node: &Node) -> anyhow::Result<()> {
    let status = node.group_status();
    if status.joint {
        return Ok(());
    }
    let mut sites = node.read(|view| view.sites())?;
    // Gateways are no replicas.
    sites.retain(|site| !site.is_gateway());
    for site in &sites {
        if !status.voters.contains(&site.id.0) && !status.learners.contains(&site.id.0) {
            node.group().add_learner(site.id.0).await?;
            tracing::info!(site = site.id.0, "site added to the Raft group as a learner");
        }
    }
    let caught_up =
        |id: u64| id == node.site().0 || status.lag.get(&id).copied().flatten().is_some_and(|lag| lag <= VOTER_LAG_MAX);
    if let Some(voters) = grown_voters(&status.voters, &sites, caught_up) {
        node.group().set_voters(voters.clone()).await?;
        tracing::info!(?voters, "voters changed");
    }
    Ok(())
}

/// The voters to have instead, if the mesh has grown enough for two more: an odd number, at most
/// five, new ones from the zones that vote least.
fn grown_voters(voters: &BTreeSet<u64>, sites: &[Site], caught_up: impl Fn(u64) -> bool) -> Option<BTreeSet<u64>> {
    let target = sites.len().clamp(1, VOTERS_MAX);
    let target = if target.is_multiple_of(2) { target - 1 } else { target };
    if voters.is_empty() || voters.len() >= target {
        return None;
    }
    let mut grown = voters.clone();
    let zone_of = |id: u64| sites.iter().find(|site| site.id == SiteId(id)).map(|site| &site.description.zone);
    while grown.len() < target {
        let votes_of_zone =
            |site: &Site| grown.iter().filter(|id| zone_of(**id) == Some(&site.description.zone)).count();
        let candidate = sites
            .iter()
            .filter(|site| !grown.contains(&site.id.0) && site.session_open && caught_up(site.id.0))
            .min_by_key(|site| (votes_of_zone(site), site.id))?;
        grown.insert(candidate.id.0);
        // Two at a time keeps the number odd; a mesh of five grows in two steps.
        if grown.len() % 2 == 1 {
            break;
        }
    }
    Some(grown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::testing::site;

    #[test]
    fn voters_stay_odd_prefer_other_zones_and_never_shrink() {
        let grow = |voters: &[u64], sites: &[Site]| {
            grown_voters(&voters.iter().copied().collect(), sites, |_| true).map(|v| v.into_iter().collect::<Vec<_>>())
        };
        let sites = [site(1, "a"), site(5, "a"), site(7, "b"), site(9, "c"), site(11, "d"), site(13, "e")];
        assert_eq!(grow(&[1], &sites[..2]), None, "two voters bear no loss that one does not");
        assert_eq!(grow(&[1], &sites[..4]), Some(vec![1, 7, 9]), "distinct zones first");
        assert_eq!(grow(&[1, 7, 9], &sites), Some(vec![1, 7, 9, 11, 13]));
        assert_eq!(grow(&[1, 7, 9, 11, 13], &sites), None);
        assert_eq!(grow(&[1, 7, 9], &sites[..1]), None);
    }

    #[test]
    fn a_learner_that_lags_is_no_voter_yet() {
        let sites = [site(1, "a"), site(5, "b"), site(7, "c")];
        let voters = BTreeSet::from([1]);
        assert_eq!(grown_voters(&voters, &sites, |id| id != 7), None);
        let mut away = sites.clone();
        away[1].session_open = false;
        assert_eq!(grown_voters(&voters, &away, |_| true), None);
    }
}
