//! The spool: the images in this node's store that it owes the mesh.
//!
//! What is in the store is what is owed, so that a restart forgets nothing: all of it is offered again, and
//! centres that have it say so. What is dropped goes by the store's own purge, which a crash cannot undo
//! half-way. There is no other record.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maillage_store::{Claimed, Hash, Instance, InstanceEntry, Publication, StoreError, StudyManifest};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::schedule::{Key, Spooled, State};
use crate::ingest::{Arrival, IsPast, Room};

/// Studies read from the store at once.
const STUDIES_PAGE: usize = 1_000;
/// Arrivals are let gather for so long: a burst of them is one look at the store.
const GATHER: Duration = Duration::from_millis(20);
/// Instances set apart that are read from the store at once.
const APART_PAGE: usize = 1_000;
/// Between two looks for them, who have no arrival of their own, and at what could not be looked at when it arrived.
const LOOK: Duration = Duration::from_secs(10);
/// The number of the list by which instances are dropped. It lives no longer than that.
const DROP_SEQUENCE: u64 = 1;

impl Key {
    /// Of an instance in the store.
    fn of(instance: &Instance) -> Self {
        Self { sop_instance: instance.entry.sop_instance.clone(), dataset: instance.entry.dataset_hash }
    }
}

impl Spooled {
    fn of(instance: Instance, apart: bool) -> Self {
        let Instance { entry, study_uid, received_at, source } = instance;
        Self {
            study: study_uid,
            series: entry.series_uid,
            manifest: entry.manifest,
            bytes: entry.bytes,
            received_at,
            source,
            apart,
        }
    }
}

/// What leaves the spool by one list.
#[derive(Debug, Default)]
struct Leaving {
    /// Its instances, those included that go with one that is listed.
    keys: Vec<Key>,
    listed: Vec<InstanceEntry>,
}

impl Gateway {
    /// Takes up what the last process left.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(super) async fn take_up(&self) -> Result<(), StoreError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.store().studies(after.as_deref(), STUDIES_PAGE).await?;
            for study in &page {
                let instances = self.store().instances(&study.study_uid).await?;
                let (now, mut schedule) = (Instant::now(), self.schedule());
                for instance in instances {
                    schedule.add_left(Key::of(&instance), Spooled::of(instance, false), now);
                }
            }
            match page.last() {
                Some(last) if page.len() == STUDIES_PAGE => after = Some(last.study_uid.clone()),
                _ => break,
            }
        }
        self.take_up_apart().await
    }

    /// Takes up what came of these studies. Returns those that could not be looked at.
    async fn take_up_studies(&self, studies: BTreeSet<String>) -> BTreeSet<String> {
        let mut missed = BTreeSet::new();
        for study in studies {
            if let Err(error) = self.take_up_study(&study).await {
                tracing::error!(%error, "take up what arrived");
                missed.insert(study);
            }
        }
        missed
    }

    async fn take_up_study(&self, study: &str) -> Result<(), StoreError> {
        let instances = self.store().instances(study).await?;
        let stamp = self.stamps().now();
        let (now, mut schedule) = (Instant::now(), self.schedule());
        for mut instance in instances {
            let key = Key::of(&instance);
            if schedule.get(&key).is_none() && self.marks().cover(instance.received_at) {
                // It took its time to become durable: when it was asked what came by then, its sender had not been told.
                instance.received_at = stamp;
            }
            schedule.add(key, Spooled::of(instance, false), now);
        }
        Ok(())
    }

    async fn take_up_apart(&self) -> Result<(), StoreError> {
        let mut after: Option<Instance> = None;
        loop {
            let page = self.store().conflicts(after.as_ref(), APART_PAGE).await?;
            after = page.last().filter(|_| page.len() == APART_PAGE).map(|last| last.second.clone());
            {
                let (now, mut schedule) = (Instant::now(), self.schedule());
                for conflict in page {
                    schedule.add(Key::of(&conflict.second), Spooled::of(conflict.second, true), now);
                }
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Drops of these instances those from the disk that the mesh has made safe or has purged, and that did not come again
    /// since. One under whose UID other bytes are kept apart stays, unless it was purged: they go with it, and it waits
    /// until they may.
    ///
    /// # Errors
    /// What was not dropped then is by the next call.
    pub(super) async fn drop_instances(&self, keys: &[Key]) -> Result<(), StoreError> {
        let mut these: Vec<(&Key, Spooled, bool)> = {
            let schedule = self.schedule();
            let of = |key| Some((key, schedule.get(key)?.0.clone(), schedule.goes(key)?));
            keys.iter().filter_map(of).collect()
        };
        these.sort_by_key(|(_, spooled, _)| spooled.apart);
        let (mut claims, mut with_another) = (BTreeMap::<&str, Claimed>::new(), BTreeSet::<Key>::new());
        // By study, and each that is apart by itself: a list names a UID once.
        let mut lists: BTreeMap<(String, Option<Hash>), Leaving> = BTreeMap::new();
        for (key, spooled, purged) in these {
            // Nothing comes in under its UID meanwhile: it would be acknowledged, and go along.
            if let Entry::Vacant(vacant) = claims.entry(&key.sop_instance) {
                let Some(claimed) = self.store().landing().claim(&spooled.study, &key.sop_instance) else { continue };
                vacant.insert(claimed);
            }
            let (first, seconds) =
                (self.store().instance(&key.sop_instance).await?, self.store().seconds(&key.sop_instance).await?);
            let came_again = |listed: &Instance| Key::of(listed) == *key && listed.received_at > spooled.received_at;
            if first.iter().chain(&seconds).any(came_again) {
                continue;
            }
            if !purged && !seconds.is_empty() {
                self.schedule().contested(key);
                continue;
            }
            let seconds: Vec<Key> = seconds.iter().map(Key::of).collect();
            if with_another.contains(key) || (!spooled.apart && !self.may_all_go(&seconds, keys)) {
                continue;
            }
            let Spooled { study, series, manifest, bytes, apart, .. } = spooled;
            let leaving = lists.entry((study, apart.then_some(key.dataset))).or_default();
            leaving.keys.push(key.clone());
            if !apart {
                with_another.extend(seconds.iter().cloned());
                leaving.keys.extend(seconds);
            }
            leaving.listed.push(InstanceEntry {
                sop_instance: key.sop_instance.clone(),
                series_uid: series,
                manifest,
                bytes,
                dataset_hash: key.dataset,
            });
        }
        let origin = self.mesh().site_id;
        for ((study_uid, _), Leaving { keys, listed }) in lists {
            let list = StudyManifest::new(study_uid.clone(), origin, DROP_SEQUENCE, listed);
            let manifest = self.store().put_manifest(list.encode()?).await?;
            let publication = Publication { study_uid, origin, sequence: DROP_SEQUENCE, manifest };
            self.store().purge(&publication, false).await?;
            let gone: Vec<Spooled> = {
                let mut schedule = self.schedule();
                keys.iter().filter_map(|key| schedule.remove(key)).collect()
            };
            self.dropped().extend(gone.into_iter().map(|spooled| spooled.study));
        }
        Ok(())
    }

    /// Whether each of some data sets is one of those that were purged, or is safe in the mesh.
    fn may_all_go(&self, these: &[Key], purged: &[Key]) -> bool {
        let schedule = self.schedule();
        let is_safe = |key: &Key| schedule.get(key).is_some_and(|(_, state)| matches!(state, State::Safe(_)));
        these.iter().all(|key| purged.contains(key) || is_safe(key))
    }

    /// What the ingest asks of an instance that comes again: whether the mesh may have purged what came before.
    pub(super) fn is_past(&self) -> IsPast {
        let gateway = self.clone();
        Box::new(move |stamp| gateway.marks().cover(stamp))
    }

    /// What the ingest asks before it takes an instance: whether the spool and the disk have room.
    pub(super) fn room(&self) -> Room {
        let gateway = self.clone();
        Box::new(move |bytes| {
            let (used, stats) = (gateway.schedule().bytes(), gateway.stats());
            let max = gateway.config().gateway.spool_bytes_max;
            if used.saturating_add(bytes) > max {
                return Err(StoreError::Full { free: max.saturating_sub(used), reserve: 0 });
            }
            let reserve = gateway.config().storage.reserve_mib << 20;
            if stats.total > 0 && stats.free < reserve.saturating_add(bytes) {
                return Err(StoreError::Full { free: stats.free, reserve });
            }
            Ok(())
        })
    }
}

/// Takes up what arrives until `shutdown`, and tells `done` of studies whose sender is.
pub(super) async fn run(
    gateway: Gateway,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    done: mpsc::UnboundedSender<String>,
    shutdown: CancellationToken,
) {
    let mut look = tokio::time::interval(LOOK);
    let mut mends = gateway.store().mends();
    // What could not be looked at is durable and owed, and nothing else may come of it.
    let mut missed = BTreeSet::new();
    loop {
        let first = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {
                let now = gateway.store().mends();
                if now != mends {
                    // What was refused when the damage was met may be durable, listed by the new index alone, and a
                    // duplicate when it comes again, of which nobody tells.
                    match gateway.take_up().await {
                        Ok(()) => mends = now,
                        Err(error) => tracing::error!(%error, "take up what the new index lists"),
                    }
                }
                if let Err(error) = gateway.take_up_apart().await {
                    tracing::error!(%error, "look for instances set apart");
                }
                missed = gateway.take_up_studies(missed).await;
                gateway.stir();
                continue;
            }
            first = arrivals.recv() => first,
        };
        let Some(first) = first else { return };
        sleep(GATHER).await;
        let (mut studies, mut over) = (BTreeSet::new(), Vec::new());
        let mut next = Some(first);
        while let Some(arrival) = next {
            match arrival {
                Arrival::Instance { study } | Arrival::Later { study } => {
                    studies.insert(study);
                }
                Arrival::SenderDone { study } => over.push(study),
            }
            next = arrivals.try_recv().ok();
        }
        missed.extend(gateway.take_up_studies(studies).await);
        gateway.stir();
        for study in over {
            // The pusher ends with the node.
            let _ = done.send(study);
        }
    }
}
