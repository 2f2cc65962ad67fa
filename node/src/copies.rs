//! Copies: every node pulls the images that it is to hold, and says when it durably does.
//!
//! Where copies belong is a pure function of the replicated state, so that all sites agree without
//! asking. A site that returns or joins finds what it lacks in the list of studies that have too few
//! copies. A hold is reported only after the fsync behind every chunk of it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use maillage_consensus::command::{Command, StudyPart};
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::mesh::{Counts, HeldPart};
use maillage_store::{Hash, Hold, StoreEvent};
use maillage_transport::chunk::Class;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

pub(crate) mod census;
pub(crate) mod choice;
pub(crate) mod confined;
pub(crate) mod leaving;
pub(crate) mod pace;
pub(crate) mod room;

use choice::Choice;

/// Changes are let settle for so long: a burst of them is one round.
const SETTLE: Duration = Duration::from_millis(200);
/// A round is done at least this often, for what failed before.
const ROUND: Duration = Duration::from_secs(10);
/// Studies read from the state at once.
const STUDIES_PER_ROUND: usize = 512;
/// Under a layout all studies are looked at so often: a copy that a reader fetched can be one of those counted
/// while another is missing where it should be.
const ALL_ROUND: Duration = Duration::from_secs(600);
/// Studies pulled at once: one that waits for a slow holder does not hold up the others.
const PULLS: usize = 4;
/// Parts whose failure is remembered as said. Of those beyond them it is said how many there are.
const WARNED_MAX: usize = 10_000;

/// Pulls and reports copies until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut events = node.store().events();
    let mut sweep = Sweep::default();
    let mut reported = false;
    loop {
        if !reported {
            match report_all(&node).await {
                Ok(()) => reported = true,
                Err(error) => tracing::debug!(error = format!("{error:#}"), "holdings not compared yet"),
            }
        }
        if let Err(error) = sweep.run(&node, &shutdown).await {
            tracing::warn!(error = format!("{error:#}"), "copies: round failed");
        }
        let pause = tokio::time::sleep(ROUND);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = &mut pause => break,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    changes.mark_unchanged();
                    if sweep.is_stale(&node) {
                        break;
                    }
                }
                event = events.recv() => if matches!(event, Ok(StoreEvent::HoldLost(_) | StoreEvent::Mended) | Err(_)) {
                    reported = false;
                    break;
                },
            }
        }
    }
}

/// Tells the mesh where its list of this site's holdings differs from what the store holds.
async fn report_all(node: &Node) -> anyhow::Result<()> {
    let (mut after, mut failed): (Option<String>, Option<anyhow::Error>) = (None, None);
    loop {
        // The state first, then the store: a study is held before it is published, so that one
        // published meanwhile is not taken for lost.
        let page = node.read(|view| view.studies(after.as_deref(), STUDIES_PER_ROUND))?;
        let held: BTreeSet<[u8; 32]> = node.store().held().await?.into_iter().map(|study| study.manifest.0).collect();
        for study in &page {
            for part in &study.parts {
                if let Err(error) = report_part(node, part, &held).await {
                    // The others are told all the same; this one in the next round.
                    failed = Some(error);
                }
            }
        }
        match page.last() {
            Some(last) if page.len() == STUDIES_PER_ROUND => after = Some(last.uid.to_string()),
            _ => return failed.map_or(Ok(()), Err),
        }
    }
}

/// … of one part: of its latest publication, and of earlier ones until one that is held here, which lists all that
/// those before it do.
async fn report_part(node: &Node, part: &HeldPart, held: &BTreeSet<[u8; 32]>) -> anyhow::Result<()> {
    for (publication, holders) in part.publications() {
        let is = held.contains(&publication.manifest);
        if holders.contains(&node.site()) != is {
            report(node, publication, is).await?;
        }
        if is {
            break;
        }
    }
    Ok(())
}

/// Tells the mesh that this site holds a publication, or does not.
///
/// # Errors
/// It holds less than that, is giving it up, or cannot tell.
pub(crate) async fn report(node: &Node, part: &StudyPart, holds: bool) -> anyhow::Result<()> {
    // Until the mesh knows it, nothing of it may be given up here.
    let _arrival = if holds {
        let arrival = node.images().arrive(part.study.as_str());
        let arrival = arrival.ok_or_else(|| anyhow::anyhow!("it is being given up here"))?;
        if matches!(node.store().hold(Hash(part.manifest)).await?, Hold::Incomplete { .. }) {
            anyhow::bail!("it is no longer whole here");
        }
        Some(arrival)
    } else {
        None
    };
    let command = Command::RecordHolding { study: part.study.clone(), manifest: part.manifest, holds };
    node.command(CommandId::random(), Name::default(), command).await?;
    Ok(())
}

/// Keeps the parts that may leave the sites that received them, and lie here.
pub(crate) fn retain_allowed(node: &Node, parts: &mut Vec<HeldPart>) -> anyhow::Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    let allowed = node.read(|view| {
        let plan = view.plan()?;
        let may = |held: &HeldPart| Ok(view.may_hold(node.site(), held)? && plan.allows(held.origin, node.site()));
        parts.iter().map(may).collect::<Result<Vec<_>, _>>()
    })?;
    let mut allowed = allowed.into_iter();
    parts.retain(|_| allowed.next().unwrap_or(false));
    Ok(())
}

/// What a pass over the studies looked at, so that the next knows whether there is anything new.
#[derive(Debug, Default)]
struct Sweep {
    /// By what copies lay when all studies were last looked at and no copy failed, and how many copies had
    /// been lost by then.
    looked_at_all: Option<(Choice, u64)>,
    /// … and at the last pass, whatever became of it.
    attempted: Option<Choice>,
    /// When all were last looked at.
    all_at: Option<Instant>,
    seen: Option<Counts>,
    failures: Failures,
}

impl Sweep {
    /// Whether studies, sites or the layout have changed since the last pass.
    fn is_stale(&self, node: &Node) -> bool {
        let now = node.read(|view| Ok((view.counts()?, Choice::now(node, view)?)));
        now.is_ok_and(|(counts, choice)| {
            self.attempted.as_ref() != Some(&choice)
                || self.seen.is_none_or(|seen| copies_of(&seen) != copies_of(&counts))
        })
    }

    /// Pulls what belongs here: of the studies with too few copies, or of all when the layout or the sites that
    /// can hold copies have changed or one lost a copy, since the state counts a holder that is gone until it
    /// says otherwise: a study may have too few without being in the list.
    async fn run(&mut self, node: &Node, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let (counts, choice) = node.read(|view| Ok((view.counts()?, Choice::now(node, view)?)))?;
        let as_of = Some((choice.clone(), counts.more.copies_lost));
        let is_due = choice.plan().layout().version > 0 && self.all_at.is_none_or(|at| at.elapsed() >= ALL_ROUND);
        let all = self.looked_at_all != as_of || is_due;
        if all {
            self.all_at = Some(Instant::now());
        }
        self.failures.begin_pass();
        let mut whole = true;
        let mut after: Option<String> = None;
        loop {
            let page = node.read(|view| {
                if all {
                    return view.studies(after.as_deref(), STUDIES_PER_ROUND);
                }
                let uids = view.studies_below_wanted(after.as_deref(), STUDIES_PER_ROUND)?;
                Ok(uids
                    .iter()
                    .map(|uid| view.study(uid))
                    .collect::<Result<Vec<_>, _>>()?
                    .into_iter()
                    .flatten()
                    .collect())
            })?;
            let mut lacking: Vec<HeldPart> = page
                .iter()
                .flat_map(|study| &study.parts)
                .filter(|held| !held.holders.contains(&node.site()))
                .filter(|held| choice.holders(held).contains(&node.site()))
                .cloned()
                .collect();
            retain_allowed(node, &mut lacking)?;
            let pulls: Vec<_> = lacking.into_iter().map(|held| pull(node.clone(), held)).collect();
            let mut pulls = stream::iter(pulls).buffer_unordered(PULLS);
            while let Some(Some((held, result))) = shutdown.run_until_cancelled(pulls.next()).await {
                whole &= result.is_ok();
                self.tell(&held, result);
            }
            match page.last() {
                Some(last) if page.len() == STUDIES_PER_ROUND && !shutdown.is_cancelled() => {
                    after = Some(last.uid.to_string());
                }
                _ => break,
            }
        }
        if let Some(parts) = self.failures.end_pass(all) {
            tracing::warn!(parts, "copies of so many more parts are not made yet");
        }
        // After a failure the next pass looks at all again: a study that counts a lost holder is in no list.
        if whole && !shutdown.is_cancelled() {
            self.looked_at_all = as_of;
        }
        (self.attempted, self.seen) = (Some(choice), Some(counts));
        Ok(())
    }

    /// Says why a copy was not made, once for each part.
    fn tell(&mut self, held: &HeldPart, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.failures.mended(held.part.manifest),
            Err(error) => {
                if self.failures.is_news(held.part.manifest) {
                    tracing::warn!(study = %held.part.study, error = format!("{error:#}"), "copy not made yet");
                }
            }
        }
    }
}

/// Parts of which copies fail, by their manifests: each is told once for as long as it does.
#[derive(Debug, Default)]
struct Failures {
    /// Told. At most [`WARNED_MAX`].
    told: BTreeSet<[u8; 32]>,
    /// Those of them that failed in this pass.
    again: BTreeSet<[u8; 32]>,
    /// How many others failed in this pass …
    more: usize,
    /// … and in the last.
    more_before: usize,
}

impl Failures {
    fn begin_pass(&mut self) {
        self.again.clear();
        self.more = 0;
    }

    /// Takes in a failure. Whether it is to be told.
    fn is_news(&mut self, manifest: [u8; 32]) -> bool {
        let is_new = !self.told.contains(&manifest);
        if is_new && self.told.len() >= WARNED_MAX {
            self.more += 1;
            return false;
        }
        self.told.insert(manifest);
        self.again.insert(manifest);
        is_new
    }

    fn mended(&mut self, manifest: [u8; 32]) {
        self.told.remove(&manifest);
    }

    /// A pass has come to its end, over all studies or some. How many parts failed that are told in no other way, if
    /// that is news.
    fn end_pass(&mut self, all: bool) -> Option<usize> {
        if all || self.told.len() >= WARNED_MAX {
            // Parts that were purged meanwhile, or are another site's now, would be kept for ever.
            self.told = std::mem::take(&mut self.again);
        }
        let before = std::mem::replace(&mut self.more_before, self.more);
        (self.more > 0 && self.more != before).then_some(self.more)
    }
}

fn copies_of(counts: &Counts) -> [u64; 4] {
    [counts.studies, counts.studies_below_two, counts.studies_below_wanted, counts.more.copies_lost]
}

async fn pull(node: Node, held: HeldPart) -> (HeldPart, anyhow::Result<()>) {
    let result = pull_one(&node, &held).await;
    if result.is_err() {
        // Who has the latest may be gone for good: what the others have is not to depend on one of them.
        let mut before = held.as_before();
        while let Some(earlier) = before.filter(|earlier| !earlier.holders.contains(&node.site())) {
            match pull_one(&node, &earlier).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(error = format!("{error:#}"), "an earlier publication was not copied"),
            }
            before = earlier.as_before();
        }
    }
    (held, result)
}

async fn pull_one(node: &Node, held: &HeldPart) -> anyhow::Result<()> {
    let started = Instant::now();
    node.images().pull_part(held, Class::Copy, None).await?;
    report(node, &held.part, true).await?;
    let (bytes, seconds) = (held.part.bytes, started.elapsed().as_secs_f64());
    tracing::info!(study = %held.part.study, bytes, seconds, "copy made");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(n: usize) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    /// The failures of one pass. How many were told, and how many it was said to be besides.
    fn pass(failures: &mut Failures, all: bool, parts: impl Iterator<Item = usize>) -> (usize, Option<usize>) {
        failures.begin_pass();
        let told = parts.filter(|n| failures.is_news(manifest(*n))).count();
        (told, failures.end_pass(all))
    }

    #[test]
    fn failures_are_told_once_and_never_in_silence_however_many_there_are() {
        let (mut failures, most) = (Failures::default(), WARNED_MAX);
        assert_eq!(pass(&mut failures, true, 0..most), (most, None));
        assert_eq!(pass(&mut failures, true, 0..most), (0, None));
        assert_eq!(pass(&mut failures, true, 0..most + 7), (0, Some(7)), "there is no room to remember them");
        assert_eq!(pass(&mut failures, true, 0..most + 7), (0, None), "it was said");
        assert_eq!(pass(&mut failures, true, 0..most + 8), (0, Some(8)));
        // Some are purged: nobody says of them that they were made.
        assert_eq!(pass(&mut failures, true, 5..most + 8), (0, None));
        assert_eq!(pass(&mut failures, true, 5..most + 8), (5, Some(3)));
        assert_eq!(failures.told.len(), most);
        // All of them are, and only some studies are looked at from now on.
        assert_eq!(pass(&mut failures, false, 0..1), (0, Some(1)));
        assert_eq!(pass(&mut failures, false, 0..1), (1, None));
        assert_eq!(pass(&mut failures, false, 1..2), (1, None));
        assert_eq!(pass(&mut failures, false, 0..1), (0, None), "it was said, and it is not known to be over");
        assert_eq!(pass(&mut failures, true, 0..1), (0, None));
        assert_eq!(pass(&mut failures, true, 0..2), (1, None), "it was over");
        failures.mended(manifest(0));
        assert_eq!(pass(&mut failures, true, 0..2), (1, None));
    }
}
