//! I3 for images: an instance that a sender was told is stored is there after every crash, whole.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::TryStreamExt as _;
use maillage_store::{Recovery, Store, StoreError};

use crate::cluster::Running;
use crate::rng::Rng;
use crate::world::{Owner, World, lock};

/// Instances looked at when a node starts, the newest and some others: a store is larger than what a
/// crash can have touched.
const NEWEST: usize = 40;
const OTHERS: usize = 20;

/// An instance that a sender was told is stored.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) sop_instance: String,
    pub(crate) dataset: Bytes,
}

/// See the module.
pub(crate) struct Instances {
    world: Arc<World>,
    by_slot: Mutex<BTreeMap<u32, Vec<Acknowledged>>>,
    rng: Mutex<Rng>,
}

impl Instances {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        Self { world, by_slot: Mutex::default(), rng: Mutex::new(Rng::stream(seed, "instances")) }
    }

    pub(crate) fn acknowledged(&self, slot: u32, instance: Acknowledged) {
        lock(&self.by_slot).entry(slot).or_default().push(instance);
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.by_slot).values().map(Vec::len).sum()
    }

    /// A store says that bytes which were durable are damaged, though no disk here rots.
    pub(crate) fn damaged(&self, owner: Owner, recovery: &Recovery) {
        self.world.violation("I3", format!("{owner:?} finds damage in its packs: {recovery:?}"));
    }

    /// Looks at a part of what the node of `running` acknowledged in its earlier lives.
    pub(crate) async fn check(&self, running: &Running) {
        let mut wanted = lock(&self.by_slot).get(&running.owner.slot).cloned().unwrap_or_default();
        let newest = wanted.split_off(wanted.len().saturating_sub(NEWEST));
        lock(&self.rng).shuffle(&mut wanted);
        wanted.truncate(OTHERS);
        self.check_these(running, &newest).await;
        self.check_these(running, &wanted).await;
    }

    /// Looks at everything.
    pub(crate) async fn check_all(&self, running: &Running) {
        let wanted = lock(&self.by_slot).get(&running.owner.slot).cloned().unwrap_or_default();
        self.check_these(running, &wanted).await;
    }

    async fn check_these(&self, running: &Running, wanted: &[Acknowledged]) {
        for instance in wanted {
            let why = match read(&running.store, &instance.sop_instance).await {
                Ok(Some(bytes)) if bytes == instance.dataset => continue,
                Ok(Some(_)) => "has other bytes".to_owned(),
                Ok(None) => "is not listed".to_owned(),
                Err(error) => error.to_string(),
            };
            let detail = format!("{:?}: acknowledged instance {} {why}", running.owner, instance.sop_instance);
            self.world.violation("I3", detail);
        }
    }
}

async fn read(store: &Store, sop_instance: &str) -> Result<Option<Bytes>, StoreError> {
    let Some(listed) = store.instance(sop_instance).await? else { return Ok(None) };
    let Some(manifest) = store.instance_manifest(listed.entry.manifest).await? else {
        return Err(StoreError::Missing(listed.entry.manifest));
    };
    let pieces: Vec<Bytes> = store.read_instance(&manifest).try_collect().await?;
    Ok(Some(pieces.concat().into()))
}
