//! I3 for images: an instance that a sender was told is stored is there after every crash, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use maillage_store::{Recovery, Store, StoreError};
use tokio::time::Instant;

use crate::cluster::Running;
use crate::gateway::Gatehouse;
use crate::rng::Rng;
use crate::world::{Owner, World, lock};

/// Instances looked at when a node starts, the newest and some others: a store is larger than what a
/// crash can have touched.
const NEWEST: usize = 40;
const OTHERS: usize = 20;

/// How long what landed may take to be coded before it is not looked at.
const CODED_WITHIN: Duration = Duration::from_secs(60);
/// How long a damaged index may take to be made anew.
const MENDED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(100);

/// An instance that a sender was told is stored.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) study: String,
    pub(crate) sop_instance: String,
    pub(crate) data_set: Bytes,
}

/// See the module.
pub(crate) struct Instances {
    world: Arc<World>,
    by_slot: Mutex<BTreeMap<u32, Vec<Acknowledged>>>,
    /// Acknowledged by nodes that are lost, and held by others.
    elsewhere: Mutex<Vec<Acknowledged>>,
    /// BLAKE3 of study, SOP Instance UID and data set of all that was ever sent.
    offered: Mutex<BTreeSet<[u8; 32]>>,
    /// UIDs under which other bytes came as well.
    contested: Mutex<BTreeSet<String>>,
    /// Studies of which all images were acknowledged, by slot.
    sent: Mutex<BTreeMap<u32, Vec<String>>>,
    rng: Mutex<Rng>,
}

impl Instances {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        Self {
            world,
            by_slot: Mutex::default(),
            elsewhere: Mutex::default(),
            offered: Mutex::default(),
            contested: Mutex::default(),
            sent: Mutex::default(),
            rng: Mutex::new(Rng::stream(seed, "instances")),
        }
    }

    /// Something is about to be sent.
    pub(crate) fn offer(&self, study: &str, sop_instance: &str, data_set: &[u8]) {
        lock(&self.offered).insert(offer(study, sop_instance, data_set));
    }

    /// Whether these very bytes were ever sent under that UID as of that study.
    pub(crate) fn was_offered(&self, study: &str, sop_instance: &str, data_set: &[u8]) -> bool {
        lock(&self.offered).contains(&offer(study, sop_instance, data_set))
    }

    pub(crate) fn acknowledged(&self, slot: u32, instance: Acknowledged) {
        lock(&self.by_slot).entry(slot).or_default().push(instance);
    }

    /// The disk of `slot` is lost: what is not in `safe` was nowhere else, and its senders have to send it
    /// again. Returns those.
    pub(crate) fn lost(&self, slot: u32, safe: &BTreeSet<String>) -> Vec<Acknowledged> {
        let all = lock(&self.by_slot).remove(&slot).unwrap_or_default();
        let (safe, lost): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|instance| safe.contains(&instance.sop_instance));
        lock(&self.elsewhere).extend(safe);
        lost
    }

    /// One that was acknowledged at `slot` is nowhere any more, and that was laid out so.
    pub(crate) fn forgo(&self, slot: u32, sop_instance: &str) {
        if let Some(all) = lock(&self.by_slot).get_mut(&slot) {
            all.retain(|instance| instance.sop_instance != sop_instance);
        }
    }

    /// All images of a study were acknowledged at `slot`, at first; more may come.
    pub(crate) fn sent(&self, slot: u32, study: &str) {
        lock(&self.sent).entry(slot).or_default().push(study.to_owned());
    }

    /// What the node of `slot` acknowledged.
    pub(crate) fn acknowledged_at(&self, slot: u32) -> Vec<Acknowledged> {
        lock(&self.by_slot).get(&slot).cloned().unwrap_or_default()
    }

    pub(crate) fn is_acknowledged_at(&self, slot: u32, sop_instance: &str) -> bool {
        let by_slot = lock(&self.by_slot);
        by_slot.get(&slot).is_some_and(|all| all.iter().any(|instance| instance.sop_instance == sop_instance))
    }

    /// Other bytes come under a UID.
    pub(crate) fn contest(&self, sop_instance: &str) {
        lock(&self.contested).insert(sop_instance.to_owned());
    }

    /// Whether nobody can tell any more which bytes are meant by a UID.
    pub(crate) fn is_contested(&self, sop_instance: &str) -> bool {
        lock(&self.contested).contains(sop_instance)
    }

    /// The studies sent to `slot`.
    pub(crate) fn studies_of(&self, slot: u32) -> Vec<String> {
        lock(&self.sent).get(&slot).cloned().unwrap_or_default()
    }

    /// What was acknowledged of a study, anywhere: data sets by SOP Instance UID.
    pub(crate) fn of_study(&self, study: &str) -> BTreeMap<String, Bytes> {
        let (by_slot, elsewhere) = (lock(&self.by_slot), lock(&self.elsewhere));
        let all = by_slot.values().flatten().chain(elsewhere.iter());
        let of_study = all.filter(|instance| instance.study == study);
        of_study.map(|instance| (instance.sop_instance.clone(), instance.data_set.clone())).collect()
    }

    /// Every study of which something was acknowledged.
    pub(crate) fn studies(&self) -> BTreeSet<String> {
        let (by_slot, elsewhere) = (lock(&self.by_slot), lock(&self.elsewhere));
        by_slot.values().flatten().chain(elsewhere.iter()).map(|instance| instance.study.clone()).collect()
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
        self.check_in(running.owner, &running.store, &newest, false).await;
        self.check_in(running.owner, &running.store, &wanted, false).await;
    }

    /// Looks at everything.
    pub(crate) async fn check_all(&self, running: &Running) {
        let wanted = lock(&self.by_slot).get(&running.owner.slot).cloned().unwrap_or_default();
        self.check_in(running.owner, &running.store, &wanted, true).await;
    }

    /// Looks at what must be in a spool.
    pub(crate) async fn check_spooled(&self, gatehouse: &Gatehouse, wanted: &[Acknowledged]) {
        self.check_in(gatehouse.owner, &gatehouse.store, wanted, true).await;
    }

    /// `lives`: the node goes on until this is done.
    async fn check_in(&self, owner: Owner, store: &Store, wanted: &[Acknowledged], lives: bool) {
        for instance in wanted {
            // One that landed is listed soon, unless the node ends first.
            let coded = tokio::time::timeout(CODED_WITHIN, store.landing().until_done(&instance.sop_instance));
            if !matches!(coded.await, Ok(Ok(()))) && !lives {
                self.world.sometimes("an image was not coded yet when it was looked for");
                continue;
            }
            let why = match read_behind_mending(store, &instance.sop_instance).await {
                Ok(Some(bytes)) if bytes == instance.data_set => continue,
                Ok(Some(_)) => "has other bytes".to_owned(),
                Ok(None) => "is not listed".to_owned(),
                // The node ended before it was made anew.
                Err(StoreError::Index(_)) if !lives => continue,
                Err(error) => error.to_string(),
            };
            let detail = format!("{owner:?}: acknowledged instance {} {why}", instance.sop_instance);
            self.world.violation("I3", detail);
        }
    }
}

fn offer(study: &str, sop_instance: &str, data_set: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for field in [study.as_bytes(), sop_instance.as_bytes(), data_set] {
        hasher.update(&(field.len() as u64).to_be_bytes()).update(field);
    }
    *hasher.finalize().as_bytes()
}

/// Reads an instance, once a damaged index that is in the way is made anew.
async fn read_behind_mending(store: &Store, sop_instance: &str) -> Result<Option<Bytes>, StoreError> {
    let deadline = Instant::now() + MENDED_WITHIN;
    loop {
        match read(store, sop_instance).await {
            Err(StoreError::Index(_)) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            read => return read,
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
