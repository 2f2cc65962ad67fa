//! The audit trail: every node's chain recomputes from its entries, chains are equal at equal indexes, and
//! every command that ran is in it, refused ones included.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use maillage_consensus::View;
use maillage_consensus::audit;
use maillage_consensus::command::Envelope;
use maillage_consensus::transaction::Transaction;

use crate::cluster::Running;
use crate::world::{Owner, World, lock};

/// Entries read at once.
const PAGE: usize = 512;
/// Tags of keys, as persisted: kept outcomes, the mesh, and the entries of the trail.
const OUTCOME: u8 = 0x40;
const ENTRY: u8 = 0x50;
const CHAIN: u8 = 0x51;

#[derive(Default)]
struct Known {
    /// The chain's value at each index, and who had it first.
    chains: BTreeMap<u64, ([u8; 32], Owner)>,
    /// How far each life of a node was followed.
    followed: BTreeMap<Owner, (u64, [u8; 32])>,
}

/// See the module.
pub(crate) struct Audit {
    world: Arc<World>,
    known: Mutex<Known>,
}

impl Audit {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, known: Mutex::default() }
    }

    /// Follows the chain of a node on from where it was followed to.
    pub(crate) fn check(&self, running: &Running) {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let mut known = lock(&self.known);
        let (mut index, mut chain) = known.followed.get(&running.owner).copied().unwrap_or((0, [0; 32]));
        loop {
            let page = view.audit(index, PAGE).unwrap_or_default();
            for link in &page {
                chain = audit::chain(&chain, &link.entry);
                index = link.entry.index;
                if chain != link.chain {
                    let detail = format!("{:?}: the chain does not recompute at {index}", running.owner);
                    self.world.violation("audit", detail);
                    return;
                }
                let (first, whose) = *known.chains.entry(index).or_insert((chain, running.owner));
                if first != chain {
                    let detail = format!("{:?} and {whose:?} have other chains at {index}", running.owner);
                    self.world.violation("audit", detail);
                    return;
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        known.followed.insert(running.owner, (index, chain));
    }
}

/// Whether a command that is about to be applied is a repeat, which is answered from memory.
pub(crate) fn is_repeat(transaction: &Transaction<'_>, envelope: &Envelope) -> bool {
    let key = [&[OUTCOME], envelope.id.0.as_bytes().as_slice()].concat();
    matches!(transaction.get(&key), Ok(Some(_)))
}

/// Whether there is a trail: the first format has none.
pub(crate) fn has_begun(transaction: &Transaction<'_>) -> bool {
    matches!(transaction.get(&[CHAIN]), Ok(Some(_)))
}

/// Whether the command at `index` is in the trail.
pub(crate) fn has_entry(transaction: &Transaction<'_>, index: u64) -> bool {
    matches!(transaction.get(&entry_key(index)), Ok(Some(_)))
}

/// Where the entry of an index is kept.
pub(crate) fn entry_key(index: u64) -> Vec<u8> {
    [&[ENTRY], index.to_be_bytes().as_slice()].concat()
}
