//! I7: replicas are equal at equal indexes, across nodes and across lives of one node.
//!
//! The hash chain covers every command; the hash of the whole engine covers what they did.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use crate::cluster::Running;
use crate::world::{Owner, World, lock};

/// Whole states remembered, by index.
const STATES_KEPT: usize = 4_096;
/// Bytes of rows that are hashed together.
const ROWS_AT_ONCE: usize = 64 << 10;

#[derive(Default)]
struct Known {
    chains: BTreeMap<u64, ([u8; 32], Owner)>,
    states: BTreeMap<u64, (blake3::Hash, Owner)>,
    compared: u64,
}

/// See the module.
pub(crate) struct Replicas {
    world: Arc<World>,
    known: Mutex<Known>,
}

impl Replicas {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, known: Mutex::default() }
    }

    pub(crate) fn applied(&self, owner: Owner, index: u64, chain: [u8; 32]) {
        let mut known = lock(&self.known);
        match known.chains.entry(index) {
            Entry::Vacant(new) => {
                new.insert((chain, owner));
            }
            Entry::Occupied(old) if old.get().0 != chain => {
                let other = old.get().1;
                drop(known);
                self.world.violation("I7", format!("{owner:?} and {other:?} applied other commands up to {index}"));
            }
            Entry::Occupied(_) => {}
        }
    }

    /// Compares the whole state of a node with what others had at its index. Returns both.
    pub(crate) fn compare(&self, running: &Running) -> (u64, blake3::Hash) {
        let index = running.group.applied();
        let view = running.group.reader().view();
        let mut hasher = blake3::Hasher::new();
        // Hashed many rows at a time, which the hash does several times as fast as one after the other.
        let mut rows = Vec::with_capacity(2 * ROWS_AT_ONCE);
        let scanned = view.scan(Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
            for part in [key, value] {
                rows.extend_from_slice(&(part.len() as u64).to_le_bytes());
                rows.extend_from_slice(part);
            }
            if rows.len() >= ROWS_AT_ONCE {
                hasher.update(&rows);
                rows.clear();
            }
            true
        });
        hasher.update(&rows);
        if let Err(error) = scanned {
            self.world.violation("I7", format!("{:?} can't read its state: {error}", running.owner));
        }
        let hash = hasher.finalize();
        let mut known = lock(&self.known);
        while known.states.len() >= STATES_KEPT {
            known.states.pop_first();
        }
        match known.states.entry(index) {
            Entry::Vacant(new) => {
                new.insert((hash, running.owner));
            }
            Entry::Occupied(old) if old.get().0 != hash => {
                let other = old.get().1;
                drop(known);
                let detail = format!("{:?} and {other:?} have other states at {index}", running.owner);
                self.world.violation("I7", detail);
            }
            Entry::Occupied(old) => {
                let other = old.get().1 != running.owner;
                known.compared += u64::from(other);
            }
        }
        (index, hash)
    }

    /// How many states of one node equalled another's.
    pub(crate) fn compared(&self) -> u64 {
        lock(&self.known).compared
    }
}
