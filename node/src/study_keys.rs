//! The keys of images: from this site's file of pending keys to the replicated state, with the publication that
//! first lists what they seal; and from the state to whoever opens images.
//!
//! ```text
//! rotate ─ list what was here ─ KeepKey for each key that sealed some of it ─ RecordStudy ─ state persisted here ─
//! out of the file
//! ```
//! A crash between any two of these leaves keys in the file, and the next start takes it up again. A key is in the
//! file, or in the state, or in both; never in neither, unless a purge destroyed it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use maillage_consensus::command::Command;
use maillage_consensus::ids::{self, CommandId, Name, Secret, UidText};
use maillage_consensus::raft::Group;
use maillage_consensus::study_key::KeptKey;
use maillage_consensus::{Outcome, Refusal, View};
use maillage_host::offload;
use maillage_store::{Instance, KeyId, SharedKey, SharedKeys, StoreError, StudyKey};

use crate::node::Node;

/// The keys in the replicated state, as this node knows it.
pub(crate) struct StateKeys(pub(crate) Group);

impl SharedKeys for StateKeys {
    fn find(&self, id: KeyId) -> io::Result<SharedKey> {
        let frozen = self.0.reader().view();
        let found = View::new(&*frozen).study_key(ids::KeyId(id.0))?;
        Ok(match found.map(|key| key.what) {
            Some(KeptKey::Kept(Secret(secret))) => SharedKey::Kept(secret),
            Some(KeptKey::Destroyed { .. }) => SharedKey::Destroyed,
            None => SharedKey::Unknown,
        })
    }
}

/// How long a publication waits for what is being sealed.
const ROTATE_WITHIN: Duration = Duration::from_secs(2);

/// The pending keys of a study that seal nothing new: a publication lists what they have sealed.
pub(crate) struct Closing {
    /// All of them.
    before: BTreeSet<KeyId>,
    /// Those that sealed something that is here.
    used: Vec<Arc<StudyKey>>,
    /// Those that did not: what they were made for was not stored, or is gone.
    unused: BTreeSet<KeyId>,
}

impl Closing {
    /// Rotates the study's key, and looks which of those before have sealed anything that is here.
    pub(crate) async fn of(node: &Node, study: &str) -> anyhow::Result<Self> {
        // Something of the study may be on its way in, and wait for room: other studies are not to wait for that.
        let rotated = tokio::time::timeout(ROTATE_WITHIN, node.store().keys().rotate(study)).await;
        let pending = rotated.context("an image of the study is still to be coded")?;
        let before: BTreeSet<KeyId> = pending.iter().map(|key| key.id()).collect();
        if pending.is_empty() {
            return Ok(Self { before, used: pending, unused: BTreeSet::new() });
        }
        let (store, mends) = (node.store(), node.store().mends());
        // Listed behind the rotation: whatever was sealed under these keys is durable by now.
        let (named, is_all) = node.store().keys_of_study(study).await?;
        let (used, unused): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|key| !is_all || named.contains(&key.id()));
        // What a failed write left may be found when the index is made anew, though the one of before lists nothing of it.
        let is_doubtful = store.has_stopped_writing() || store.is_mending() || store.mends() != mends;
        if is_doubtful || store.landing().size().1 > 0 {
            // What cannot be read or coded may be sealed under any of them, and may be mended.
            return Ok(Self { before, used, unused: BTreeSet::new() });
        }
        Ok(Self { before, used, unused: unused.iter().map(|key| key.id()).collect() })
    }

    /// Leaves out what has come since the rotation: it is sealed under a key that the mesh would not have.
    pub(crate) async fn of_before(
        &self,
        node: &Node,
        study: &str,
        instances: Vec<Instance>,
    ) -> anyhow::Result<Vec<Instance>> {
        let mut since = node.store().keys().pending(study);
        since.retain(|id| !self.before.contains(id));
        if since.is_empty() {
            return Ok(instances);
        }
        let mut of_before = Vec::with_capacity(instances.len());
        for instance in instances {
            let key = match node.store().instance_manifest(instance.entry.manifest).await {
                Ok(manifest) => manifest.and_then(|manifest| manifest.key),
                Err(StoreError::Corrupt(_)) => None,
                Err(error) => return Err(error.into()),
            };
            if key.is_none_or(|key| !since.contains(&key)) {
                of_before.push(instance);
            }
        }
        Ok(of_before)
    }

    /// Has the mesh keep the keys, before it knows what they seal: a purge of the publication `sequence`, the
    /// first to list it, destroys them.
    pub(crate) async fn keep(&self, node: &Node, study: &str, sequence: u64) -> anyhow::Result<()> {
        for key in &self.used {
            let (study, id) = (UidText::filled(study)?, ids::KeyId(key.id().0));
            let command = Command::KeepKey { study, id, sequence, secret: Secret(*key.secret()) };
            match node.command(keep_id(key.id(), sequence), Name::default(), command).await? {
                // Of a destroyed one the file knew too late: what it seals is to go, and the rest is wanted.
                Outcome::Done | Outcome::Refused(Refusal::KeyDestroyed) => {}
                other => anyhow::bail!("keep a key: {other:?}"),
            }
        }
        Ok(())
    }

    /// Takes the keys that the mesh has, and those that seal nothing, out of the file.
    pub(crate) async fn settle(&self, node: &Node) -> anyhow::Result<()> {
        if self.used.is_empty() && self.unused.is_empty() {
            return Ok(());
        }
        // A state that is on this disk, so that what is here can be opened after a power cut, too, and without
        // a quorum.
        node.linearize().await?;
        let engine = node.group().reader();
        offload(move || engine.persist()).await?;
        let mut gone = self.unused.clone();
        for key in &self.used {
            if node.read(|view| view.study_key(ids::KeyId(key.id().0)))?.is_some() {
                gone.insert(key.id());
            }
        }
        Ok(node.store().keys().forget(&gone).await?)
    }
}

/// The same key for the same publication is the same command, also after a restart.
fn keep_id(key: KeyId, sequence: u64) -> CommandId {
    let mut hasher = blake3::Hasher::new_derive_key("maillage 2026-11 keep key id");
    hasher.update(&key.0);
    hasher.update(&sequence.to_be_bytes());
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    CommandId(uuid::Builder::from_random_bytes(id).into_uuid())
}

#[cfg(test)]
pub(crate) mod tests;
