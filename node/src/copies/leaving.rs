//! Giving up copies: those that a drained site has, those that lie where the layout has no place for them, and
//! those beyond what it wants.
//!
//! The mesh decides, one copy after the other, whether it does without this one (`GiveUp`); only behind its yes
//! do bytes go. So two sites never give up what only the other has, whatever each of them had seen. What this site
//! received itself is only counted no more: its bytes stay until their retention ends, since what comes later of
//! the same study is published together with them.

use std::collections::BTreeMap;
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_consensus::outcome::{Outcome, Refusal};
use maillage_store::{Hash, Publication, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::choice::Choice;
use super::{SETTLE, STUDIES_PER_ROUND};
use crate::images::Leave;
use crate::node::Node;

/// Between two looks at what a drained site, or one that has too much, still has: the others pull it meanwhile.
const ROUND: Duration = Duration::from_secs(5);
/// Rounds are so many times rarer, at most, while nothing can be given up: copies may wait for long for a site that can take
/// them, and a look reads every study.
const IDLE_MAX: u32 = 11;
/// Between two looks for what is too much while nothing of the layout changes: copies that readers had fetched,
/// and those of a site that came back. A look reads every study.
const SURPLUS_ROUND: Duration = Duration::from_secs(600);
/// Copies given up in one round: each is a command, and the queue's own go first.
const GIVEN_UP_A_ROUND: usize = 64;
/// Surplus copies whose grace is counted at once; the rest is counted when they are gone.
const GRACES_MAX: usize = 100_000;

/// Since when copies are surplus, by manifest.
type Since = BTreeMap<[u8; 32], Instant>;

/// Gives up copies until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut leaving = Leaving::default();
    loop {
        changes.mark_unchanged();
        let pause = match leaving.round(&node, &shutdown).await {
            Ok(true) => ROUND.saturating_mul(1 + leaving.idle.min(IDLE_MAX)),
            Ok(false) => SURPLUS_ROUND.min(node_grace(&node).max(ROUND)),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "copies to give up: round failed");
                ROUND
            }
        };
        let until = Instant::now() + pause;
        loop {
            let wait = async {
                match tokio::time::timeout_at(until, changes.changed()).await {
                    Ok(Ok(())) => {
                        tokio::time::sleep(SETTLE).await;
                        changes.mark_unchanged();
                        Some(leaving.is_stale(&node))
                    }
                    Ok(Err(_)) => None,
                    Err(_) => Some(true),
                }
            };
            match shutdown.run_until_cancelled(wait).await {
                Some(Some(true)) => break,
                Some(Some(false)) => {}
                _ => return,
            }
        }
    }
}

fn node_grace(node: &Node) -> Duration {
    Duration::from_secs(node.config().storage.surplus_grace_s)
}

#[derive(Debug, Default)]
struct Leaving {
    /// By what the last round went.
    by: Option<Choice>,
    since: Since,
    /// When what the mesh does not know of was last looked for, by that choice.
    strays_at: Option<Instant>,
    /// Given up by the mesh's word, and still on this site's disk.
    unfinished: Vec<HeldPart>,
    /// Rounds by the same choice that gave up nothing.
    idle: u32,
}

impl Leaving {
    fn is_stale(&self, node: &Node) -> bool {
        node.read(|view| Choice::now(node, view)).is_ok_and(|now| self.by.as_ref() != Some(&now))
    }

    /// Gives up what can be. Whether something is left that should go soon.
    async fn round(&mut self, node: &Node, shutdown: &CancellationToken) -> anyhow::Result<bool> {
        for held in std::mem::take(&mut self.unfinished) {
            self.finish(node, held).await;
        }
        let choice = node.read(|view| Choice::now(node, view))?;
        let is_usual = choice.plan().layout().version == 0
            && !choice.plan().ground(node.site()).is_some_and(|ground| ground.is_draining);
        if self.by.as_ref() != Some(&choice) {
            (self.by, self.strays_at, self.idle) = (Some(choice.clone()), None, 0);
        }
        if is_usual {
            self.since.clear();
            return Ok(!self.unfinished.is_empty());
        }
        let (mut given, mut left, mut surplus) = (0, false, Since::new());
        let mut after: Option<String> = None;
        loop {
            let page = node.read(|view| view.studies(after.as_deref(), STUDIES_PER_ROUND))?;
            for held in self.goes(node, &choice, &page, &mut surplus, &mut left)? {
                if given == GIVEN_UP_A_ROUND || shutdown.is_cancelled() {
                    return Ok(true);
                }
                match self.give_up(node, held).await? {
                    Gone::Yes => given += 1,
                    Gone::Later => left = true,
                    Gone::Never => {}
                }
            }
            match page.last() {
                Some(last) if page.len() == STUDIES_PER_ROUND => after = Some(last.uid.to_string()),
                _ => break,
            }
            tokio::task::yield_now().await;
        }
        self.since = surplus;
        self.idle = if given > 0 { 0 } else { self.idle.saturating_add(1) };
        // A look reads the manifest of every study here.
        if self.strays_at.is_none_or(|at| at.elapsed() >= SURPLUS_ROUND) {
            end_strays(node, &choice, shutdown).await?;
            self.strays_at = Some(Instant::now());
        }
        Ok(left || !self.unfinished.is_empty())
    }

    /// The copies of a page that are to go now.
    fn goes(
        &self,
        node: &Node,
        choice: &Choice,
        page: &[Study],
        surplus: &mut Since,
        left: &mut bool,
    ) -> anyhow::Result<Vec<HeldPart>> {
        let (now, grace) = (Instant::now(), node_grace(node));
        let plan = node.read(|view| view.plan())?;
        let mut goes = Vec::new();
        let mine = page.iter().flat_map(|study| &study.parts).filter(|held| held.holders.contains(&node.site()));
        for held in mine {
            if !choice.is_out_of_place(held, node.site()) {
                if !choice.is_beyond(held, node.site()) || !choice.is_settled(held) {
                    continue;
                }
                let manifest = held.part.manifest;
                let since = self.since.get(&manifest).copied().unwrap_or(now);
                if surplus.len() < GRACES_MAX {
                    surplus.insert(manifest, since);
                }
                if now.duration_since(since) < grace {
                    continue;
                }
            }
            let exam = node.read(|view| view.exam(held.exam))?;
            if exam.as_ref().is_some_and(|exam| exam.is_confined()) {
                // What was received here stays; what was not goes another way.
                continue;
            }
            let is_read_here = exam.and_then(|exam| exam.claim).is_some_and(|claim| claim.site == node.site());
            if !is_read_here && plan.spares(held, node.site()) {
                goes.push(held.clone());
            } else {
                *left = true;
            }
        }
        Ok(goes)
    }

    /// Gives up one copy, if the mesh does without it.
    async fn give_up(&mut self, node: &Node, held: HeldPart) -> anyhow::Result<Gone> {
        // Over the command and what follows it: what is brought here meanwhile would go with it.
        let Some(leave) = node.images().leave(held.part.study.as_str()) else { return Ok(Gone::Later) };
        let command = Command::GiveUp { study: held.part.study.clone(), manifest: held.part.manifest };
        match node.command(CommandId::random(), Name::default(), command).await? {
            Outcome::Done => {}
            Outcome::Refused(Refusal::ConsentRefused | Refusal::NoSuchPart | Refusal::DoneAlready) => {
                return Ok(Gone::Never);
            }
            Outcome::Refused(Refusal::CopyNeeded) => return Ok(Gone::Later),
            other => anyhow::bail!("give up a copy: {other:?}"),
        }
        self.wipe(node, held, &leave).await;
        Ok(Gone::Yes)
    }

    /// Takes a copy off this site's disk that it gave up before, unless it has come again since.
    async fn finish(&mut self, node: &Node, held: HeldPart) {
        let Some(leave) = node.images().leave(held.part.study.as_str()) else { return self.unfinished.push(held) };
        if node.linearize().await.is_err() {
            return self.unfinished.push(held);
        }
        match is_listed(node, &held) {
            Ok(true) => {}
            Ok(false) => self.wipe(node, held, &leave).await,
            Err(error) => {
                tracing::error!(%error, "read who holds a copy");
                self.unfinished.push(held);
            }
        }
    }

    /// Takes a copy off this site's disk that the mesh counts on no more; what fails is tried again.
    async fn wipe(&mut self, node: &Node, held: HeldPart, _leave: &Leave) {
        let study = held.part.study.as_str();
        match wipe(node, &held).await {
            Ok(()) => tracing::info!(study, bytes = held.part.bytes, "copy given up: others hold it"),
            Err(error) => {
                tracing::warn!(study, %error, "a copy that was given up is still here");
                self.unfinished.push(held);
            }
        }
    }
}

/// What became of a copy.
enum Gone {
    Yes,
    /// Not now.
    Later,
    /// It stays where it is.
    Never,
}

/// Whether the mesh counts this site among a part's holders.
fn is_listed(node: &Node, held: &HeldPart) -> Result<bool, ApplyError> {
    let study = node.read(|view| view.study(held.part.study.as_str()))?;
    let same = |part: &&HeldPart| part.part.manifest == held.part.manifest;
    Ok(study.is_some_and(|study| study.parts.iter().find(same).is_some_and(|part| part.holders.contains(&node.site()))))
}

/// Wipes what is here though it must not lie here, and of which the mesh does not know: publications that were
/// replaced before this site could give them up.
async fn end_strays(node: &Node, choice: &Choice, shutdown: &CancellationToken) -> anyhow::Result<()> {
    for here in node.store().held().await? {
        let Ok(Some(manifest)) = node.store().study_manifest(here.manifest).await else { continue };
        let origin = SiteId(manifest.origin);
        if origin == node.site() || choice.plan().counts(origin, node.site()) {
            continue;
        }
        let Some(_leave) = node.images().leave(&here.study_uid) else { continue };
        // As of now: the state of a node that has just started, or was cut off, may be of before the copy came.
        node.linearize().await?;
        let is_wanted = node.read(|view| {
            // With a publication go all before it: none of them may be one that the mesh counts on.
            let known = view.study(&here.study_uid)?;
            let mut parts = known.iter().flat_map(|study| &study.parts).filter(|held| held.origin == origin);
            let is_counted = parts.any(|held| held.all_holders().contains(&node.site()));
            Ok(is_counted || view.plan()?.counts(origin, node.site()))
        })?;
        if is_wanted {
            continue;
        }
        if shutdown.is_cancelled() {
            return Ok(());
        }
        let (sequence, manifest) = (manifest.sequence, here.manifest);
        let publication = Publication { study_uid: here.study_uid.clone(), origin: origin.0, sequence, manifest };
        node.store().purge(&publication, false).await?;
        tracing::info!(study = here.study_uid, "an earlier publication that must not lie here is wiped");
    }
    Ok(())
}

/// Takes off this site's disk what it has of a part, and the mesh does without; what it received stays, and is held no
/// more.
///
/// # Errors
/// [`StoreError`]; what is left then goes by the next call.
pub(crate) async fn wipe(node: &Node, held: &HeldPart) -> Result<(), StoreError> {
    if held.origin == node.site() {
        for (part, _) in held.publications() {
            node.store().release(Hash(part.manifest)).await?;
        }
        return Ok(());
    }
    let publication = Publication {
        study_uid: held.part.study.to_string(),
        origin: held.origin.0,
        sequence: held.part.sequence,
        manifest: Hash(held.part.manifest),
    };
    node.store().purge(&publication, false).await
}
