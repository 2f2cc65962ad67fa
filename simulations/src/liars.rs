//! Peers that serve wrong bytes: a member whose memory, disk or intentions are bad.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use maillage_transport::chunk::ChunkSource;

use crate::cluster::Running;
use crate::rng::Rng;
use crate::world::{World, lock};

/// The slots that lie, and how often.
pub(crate) struct Liars {
    world: Arc<World>,
    shares: Arc<Mutex<BTreeMap<u32, f64>>>,
    rng: Arc<Mutex<Rng>>,
}

impl Liars {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        Self { world, shares: Arc::default(), rng: Arc::new(Mutex::new(Rng::stream(seed, "liars"))) }
    }

    /// From now on `slot` answers this share of requests with wrong bytes; honest with `None`.
    pub(crate) fn set(&self, slot: u32, share: Option<f64>) {
        match share {
            Some(share) => drop(lock(&self.shares).insert(slot, share)),
            None => drop(lock(&self.shares).remove(&slot)),
        }
    }

    /// What the others read of `running`.
    pub(crate) fn source(&self, running: &Running) -> Arc<dyn ChunkSource> {
        Arc::new(Source {
            honest: running.node.chunks(),
            slot: running.owner.slot,
            world: Arc::clone(&self.world),
            shares: Arc::clone(&self.shares),
            rng: Arc::clone(&self.rng),
        })
    }
}

struct Source {
    honest: Arc<dyn ChunkSource>,
    slot: u32,
    world: Arc<World>,
    shares: Arc<Mutex<BTreeMap<u32, f64>>>,
    rng: Arc<Mutex<Rng>>,
}

impl ChunkSource for Source {
    fn read(&self, hash: blake3::Hash) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(async move {
            let honest = self.honest.read(hash).await?;
            let share = lock(&self.shares).get(&self.slot).copied();
            let (Some(share), Some(bytes)) = (share, &honest) else { return Ok(honest) };
            let mut rng = lock(&self.rng);
            if bytes.is_empty() || !rng.chance(share) {
                return Ok(honest);
            }
            self.world.sometimes("a peer served wrong bytes");
            let mut wrong = bytes.to_vec();
            match rng.below(3) {
                0 => wrong.truncate(rng.index(bytes.len())),
                1 => wrong.push(0),
                _ => wrong[rng.index(bytes.len())] ^= 1 << rng.below(8),
            }
            Ok(Some(wrong.into()))
        })
    }
}
