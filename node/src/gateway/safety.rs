//! What the mesh says is safe: it may go from the spool, and its sender may be told.
//!
//! Safe is what a centre says from a state that a quorum confirmed: two zones have these very bytes. A sender is
//! told so only after it was asked anew, for all that it named: it deletes what it has. Of what has left the spool
//! all centres are asked: the mesh knows it by its UID, as it knows what came by other ways.

use std::collections::BTreeMap;
use std::time::Duration;

use maillage_consensus::ids::UidText;
use maillage_dicom::Uid;
use maillage_host::UnixMillis;
use maillage_store::StoreError;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::ask::{AskError, ask};
use super::marks::Marks;
use super::schedule::{Key, State};
use super::wire::{Ask, Held, ITEMS_MAX, Item, Referenced, Reply, Safety};
use super::{Complaints, Gateway};
use crate::commitment::{Reference, Settled, Transaction, reason};

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(500);
/// The store's size is looked at in every so many of them.
const LOOK_EVERY: u32 = 4;
/// As often it is asked since when the mesh's time what has come is here.
const MARK_EVERY: u32 = 2;
/// Questions asked in one round, each of many instances.
const BATCHES: usize = 32;
/// Instances dropped in one round: the spool's own work goes on beside it.
const DROPPED_MAX: usize = 512;
/// Above this share of the spool, in hundredths, what is safe goes before its time.
const NEARLY_FULL: u64 = 90;

/// Between two questions to all centres of what one transaction names that is in the spool no more.
const ASK_HELD: Duration = Duration::from_secs(10);

/// Pending transactions as this process knows them.
type Pending = BTreeMap<Uid, Known>;

#[derive(Debug)]
struct Known {
    since: Instant,
    /// When the centres were last asked what they have of its instances.
    asked_at: Option<Instant>,
}

impl Known {
    fn now() -> Self {
        Self { since: Instant::now(), asked_at: None }
    }
}

/// What a centre said of an instance that came then.
#[derive(Debug)]
struct Judged {
    key: Key,
    received_at: UnixMillis,
    safety: Safety,
}

/// Why it is not known what is safe.
#[derive(Debug, thiserror::Error)]
enum SafetyError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("no centre answers")]
    Nobody,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("write it down: {0}")]
    Disk(#[from] std::io::Error),
}

/// Asks, drops and settles until `shutdown`.
pub(super) async fn run(gateway: Gateway, shutdown: CancellationToken) {
    let (mut asking, mut asking_again) = (Complaints::default(), Complaints::default());
    let (mut dropping, mut settling, mut marking) =
        (Complaints::default(), Complaints::default(), Complaints::default());
    let (mut round, mut pending) = (0_u32, Pending::new());
    while shutdown.run_until_cancelled(sleep(ROUND)).await.is_some() {
        if round.is_multiple_of(LOOK_EVERY) {
            gateway.look_at_stats().await;
        }
        let is_marked = round.is_multiple_of(MARK_EVERY);
        round = round.wrapping_add(1);
        let work = async {
            if is_marked {
                marking.hear("ask what the mesh's clock reads", gateway.mark().await);
            }
            asking.hear("ask what is safe", gateway.ask_what_is_safe().await);
            asking_again.hear("ask what has been purged", gateway.ask_what_has_been_purged().await);
            settling.hear("settle storage commitments", gateway.settle(&mut pending).await);
            dropping.hear("drop what is safe", gateway.drop_what_is_safe().await);
        };
        if shutdown.run_until_cancelled(work).await.is_none() {
            return;
        }
    }
}

impl Gateway {
    /// Asks what the mesh's clock reads, if something has come since that was asked, and keeps it.
    async fn mark(&self) -> Result<(), SafetyError> {
        let Some(latest) = self.schedule().latest() else { return Ok(()) };
        if self.marks().cover(latest) {
            return Ok(());
        }
        self.stamps().reach(latest);
        // Before the question: what comes meanwhile may be behind the answer.
        let stamp = self.stamps().now();
        let at = self.mesh_time().await?;
        let file = {
            let (schedule, mut marks) = (self.schedule(), self.marks());
            marks.add(stamp, at, schedule.received());
            marks.file()?
        };
        // One that is not kept stands until a restart, and what it covers is taken for new after that.
        Ok(Marks::save(self.disk(), file).await?)
    }

    /// What the mesh's clock reads, by the first centre that can tell.
    async fn mesh_time(&self) -> Result<u64, SafetyError> {
        let mut said = Err(SafetyError::Nobody);
        let answering = self.schedule().answering();
        for centre in answering {
            said = match ask(self.lines(), centre, &Ask::Time).await {
                Ok(Reply::Time { at }) => return Ok(at),
                Ok(_) => Err(AskError::Unexpected.into()),
                Err(error) => Err(error.into()),
            };
        }
        said
    }

    /// Asks of what was sent, or left by the last process, whether it is safe.
    async fn ask_what_is_safe(&self) -> Result<(), SafetyError> {
        for _ in 0..BATCHES {
            let due = self.schedule().to_ask(Instant::now(), ITEMS_MAX);
            if due.is_empty() {
                break;
            }
            self.ask_of(due).await?;
            self.stir();
        }
        Ok(())
    }

    async fn ask_of(&self, due: Vec<(Key, u64)>) -> Result<(), SafetyError> {
        let mut by_centre: BTreeMap<u64, Vec<Key>> = BTreeMap::new();
        for (key, centre) in due {
            // Who has it can tell best; any other can, too, and one that hears no quorum cannot.
            let asked = if self.schedule().is_in_touch(centre) { centre } else { self.any_centre()? };
            by_centre.entry(asked).or_default().push(key);
        }
        for (centre, keys) in by_centre {
            self.judge(centre, &keys).await?;
        }
        Ok(())
    }

    fn any_centre(&self) -> Result<u64, SafetyError> {
        self.schedule().answering().first().copied().ok_or(SafetyError::Nobody)
    }

    /// Asks of what is safe, or taken by no centre, whether it has been purged since. What else is said of it changes
    /// nothing: that the copies stay is the mesh's to see to.
    async fn ask_what_has_been_purged(&self) -> Result<(), SafetyError> {
        let due = self.schedule().to_ask_again(Instant::now(), ITEMS_MAX);
        if due.is_empty() {
            return Ok(());
        }
        let says = self.says(self.any_centre()?, &due).await?;
        {
            let (now, mut schedule) = (Instant::now(), self.schedule());
            says.iter().for_each(|judged| schedule.asked_again(&judged.key, now));
        }
        self.drop_purged(says).await
    }

    /// What a centre says of those instances that are in the spool, or, while it cannot, another that hears a quorum.
    async fn says(&self, centre: u64, keys: &[Key]) -> Result<Vec<Judged>, SafetyError> {
        let (mut known, mut items) = (Vec::new(), Vec::new());
        for key in keys {
            let Some(spooled) = self.schedule().get(key).map(|(spooled, _)| spooled.clone()) else { continue };
            items.push(Item {
                study: UidText::fitted(&spooled.study),
                sop_instance: UidText::fitted(&key.sop_instance),
                dataset: key.dataset.0,
                here_by: self.marks().here_by(spooled.received_at),
            });
            known.push((key.clone(), spooled.received_at));
        }
        let mut others = self.schedule().answering();
        others.retain(|other| *other != centre && self.schedule().is_in_touch(*other));
        let mut says = self.safety_of(centre, &items).await;
        for other in others {
            let Err(error) = &says else { break };
            tracing::debug!(centre, other, %error, "another centre is asked what is safe");
            says = self.safety_of(other, &items).await;
        }
        let judged = known.into_iter().zip(says?);
        Ok(judged.map(|((key, received_at), safety)| Judged { key, received_at, safety }).collect())
    }

    async fn safety_of(&self, centre: u64, items: &[Item]) -> Result<Vec<Safety>, AskError> {
        match ask(self.lines(), centre, &Ask::Safe { items: items.to_vec() }).await? {
            Reply::Safety(says) if says.len() == items.len() => Ok(says),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Asks a centre of instances, and takes over what it says. Whether all are safe.
    async fn judge(&self, centre: u64, keys: &[Key]) -> Result<bool, SafetyError> {
        let says = self.says(centre, keys).await?;
        {
            let (now, mut schedule) = (Instant::now(), self.schedule());
            schedule.judged(now);
            for Judged { key, safety, .. } in &says {
                match safety {
                    Safety::Safe => schedule.safe(key, now),
                    Safety::Pending => schedule.not_safe(key, now),
                    Safety::Purged => {}
                }
            }
        }
        let are_safe = says.len() == keys.len() && says.iter().all(|judged| judged.safety == Safety::Safe);
        self.drop_purged(says).await?;
        Ok(are_safe)
    }

    /// Drops what has been purged, by what a centre said.
    async fn drop_purged(&self, says: Vec<Judged>) -> Result<(), SafetyError> {
        // Set apart first: whatever happens to the disk, none is sent.
        let purged: Vec<Key> = {
            let mut schedule = self.schedule();
            let purged = says.into_iter().filter(|judged| judged.safety == Safety::Purged);
            purged.filter(|judged| schedule.purged(&judged.key, judged.received_at)).map(|judged| judged.key).collect()
        };
        if purged.is_empty() {
            return Ok(());
        }
        tracing::info!(instances = purged.len(), "the mesh has purged what is in the spool: it goes");
        Ok(self.drop_instances(&purged).await?)
    }

    /// Drops what is safe and has been kept for long enough, or is in the way.
    async fn drop_what_is_safe(&self) -> Result<(), SafetyError> {
        let config = self.config();
        let (keep, max) = (Duration::from_secs(config.gateway.keep_s), config.gateway.spool_bytes_max);
        let stats = self.stats();
        // New images are worth more than a late commitment.
        let disk_is_short = stats.total > 0 && stats.free < (config.storage.reserve_mib << 20).saturating_mul(2);
        let bytes_max = if disk_is_short { 0 } else { max / 100 * NEARLY_FULL };
        let going = self.schedule().to_drop(Instant::now(), keep, bytes_max, DROPPED_MAX);
        if going.is_empty() {
            return Ok(());
        }
        self.drop_instances(&going).await?;
        tracing::debug!(instances = going.len(), "dropped from the spool: the mesh has made them safe");
        Ok(())
    }

    /// Settles the storage commitments that can be, and those whose time is over.
    async fn settle(&self, pending: &mut Pending) -> Result<(), SafetyError> {
        let transactions = self.commitments().select(|one| one.settled.is_none());
        let timeout = Duration::from_secs(self.config().storage.commitment_timeout_s);
        // Of all, before one fails: each is known from now on.
        *pending = transactions
            .iter()
            .map(|one| (one.uid.clone(), pending.remove(&one.uid).unwrap_or_else(Known::now)))
            .collect();
        for transaction in transactions {
            let Some(known) = pending.get_mut(&transaction.uid) else { continue };
            let over = transaction.is_late(self.clock().now(), known.since.elapsed(), timeout);
            let Some(failed) = self.verdict(&transaction, over, known).await? else { continue };
            let (all, count) = (transaction.references.len(), failed.len());
            let settled = Settled { at: self.clock().now().into(), failed };
            self.commitments().change(&transaction.uid, |one| one.settled = Some(settled)).await?;
            self.metrics().commitment(if count == 0 { "committed" } else { "failed" });
            tracing::info!(transaction = %transaction.uid, instances = all, failed = count, "storage commitment settled");
        }
        self.commitments().forget_old().await?;
        Ok(())
    }

    /// What is not committed of a transaction, and why; none while that is not known.
    async fn verdict(
        &self,
        transaction: &Transaction,
        over: bool,
        known: &mut Known,
    ) -> Result<Option<Vec<(u32, u16)>>, SafetyError> {
        let is_open = |sop_instance: &str| {
            let schedule = self.schedule();
            schedule.named(sop_instance).is_some_and(|(.., state)| !matches!(state, State::Safe(_) | State::Rejected))
        };
        // Cheap, and mostly the end of it.
        if !over && transaction.references.iter().any(|reference| is_open(reference.sop_instance.as_str())) {
            return Ok(None);
        }
        let (mut failed, mut to_ask, mut gone, mut damaged) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, reference) in (0..).zip(&transaction.references) {
            let sop_instance = reference.sop_instance.as_str();
            let found = {
                let schedule = self.schedule();
                schedule.named(sop_instance).map(|(key, spooled, state)| (key.clone(), spooled.manifest, state))
            };
            let Some((key, manifest, state)) = found else {
                gone.push((place, reference));
                continue;
            };
            let class = match self.store().instance_manifest(manifest).await {
                Ok(Some(manifest)) => manifest.sop_class,
                // The mesh may have it. Of two data sets nobody can tell which is meant.
                Ok(None) | Err(StoreError::Corrupt(_)) => {
                    match self.store().is_contested(sop_instance).await? {
                        true => failed.push((place, reason::PROCESSING)),
                        false => damaged.push((place, reference, key)),
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if class != reference.sop_class.as_str() {
                failed.push((place, reason::CLASS_CONFLICT));
            } else if state == State::Rejected || self.store().is_contested(sop_instance).await? {
                failed.push((place, reason::PROCESSING));
            } else if matches!(state, State::Safe(_)) {
                to_ask.push((place, key));
            } else if over {
                failed.push((place, reason::PROCESSING));
            } else {
                return Ok(None);
            }
        }
        // Of these very bytes first: other ones may be safe under their UID.
        for chunk in damaged.chunks(ITEMS_MAX) {
            let keys: Vec<Key> = chunk.iter().map(|(_, _, key)| key.clone()).collect();
            let says = match self.any_centre() {
                Ok(centre) => self.says(centre, &keys).await,
                Err(error) => Err(error),
            };
            let safe: Vec<Key> = match says {
                Ok(says) => {
                    says.into_iter().filter(|judged| judged.safety == Safety::Safe).map(|judged| judged.key).collect()
                }
                Err(_) if over => Vec::new(),
                Err(error) => return Err(error),
            };
            for (place, reference, key) in chunk {
                if safe.contains(key) {
                    gone.push((*place, *reference));
                } else if over {
                    failed.push((*place, reason::PROCESSING));
                } else {
                    return Ok(None);
                }
            }
        }
        for chunk in to_ask.chunks(ITEMS_MAX) {
            let keys: Vec<Key> = chunk.iter().map(|(_, key)| key.clone()).collect();
            let asked = match self.any_centre() {
                Ok(centre) => self.judge(centre, &keys).await,
                Err(error) => Err(error),
            };
            match asked {
                Ok(true) => {}
                Ok(false) | Err(_) if over => {
                    failed.extend(chunk.iter().map(|(place, _)| (*place, reason::PROCESSING)))
                }
                Ok(false) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        if !gone.is_empty() && !over && known.asked_at.is_some_and(|at| at.elapsed() < ASK_HELD) {
            return Ok(None);
        }
        known.asked_at = Some(Instant::now());
        for chunk in gone.chunks(ITEMS_MAX) {
            let references: Vec<Reference> = chunk.iter().map(|(_, reference)| (*reference).clone()).collect();
            for ((place, _), found) in chunk.iter().zip(self.held(&references).await) {
                match found {
                    Some(Held::Safe) => {}
                    Some(Held::No) => failed.push((*place, reason::NO_SUCH_INSTANCE)),
                    Some(Held::OtherClass) => failed.push((*place, reason::CLASS_CONFLICT)),
                    Some(Held::Contested) => failed.push((*place, reason::PROCESSING)),
                    Some(Held::Pending) | None if over => failed.push((*place, reason::PROCESSING)),
                    Some(Held::Pending) | None => return Ok(None),
                }
            }
        }
        failed.sort_unstable();
        Ok(Some(failed))
    }

    /// What the centres have of instances that are in the spool no more, or never were: what those that answer say
    /// together. None of one that they do not have, as long as others may that do not answer.
    async fn held(&self, references: &[Reference]) -> Vec<Option<Held>> {
        let named = |one: &Reference| Referenced {
            sop_class: UidText::fitted(one.sop_class.as_str()),
            sop_instance: UidText::fitted(one.sop_instance.as_str()),
        };
        let asked: Vec<Referenced> = references.iter().map(named).collect();
        let mut all = vec![Held::No; asked.len()];
        let (answering, known) = {
            let schedule = self.schedule();
            (schedule.answering(), schedule.centre_count())
        };
        // None known yet: somebody has to be asked first.
        let mut silent = known.max(1).saturating_sub(answering.len());
        for centre in answering {
            let said = match ask(self.lines(), centre, &Ask::Held { references: asked.clone() }).await {
                Ok(Reply::Held(says)) if says.len() == all.len() => Ok(says),
                Ok(_) => Err(AskError::Unexpected),
                Err(error) => Err(error),
            };
            match said {
                Ok(says) => all.iter_mut().zip(says).for_each(|(known, says)| *known = (*known).max(says)),
                Err(error) => {
                    tracing::debug!(centre, %error, "it does not say what it has");
                    silent += 1;
                }
            }
        }
        all.into_iter().map(|held| (held != Held::No || silent == 0).then_some(held)).collect()
    }
}
