//! Who acknowledged what to the leadership of this node.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::raft::{StreamAppendError, StreamAppendResult};

use crate::raft::types::{LeaderId, TypeConfig};

/// What each node has acknowledged to this leadership, to notice one that lost its log.
///
/// A node that says it lacks what it acknowledged to the very same leader was wiped, or its disk
/// lies. openraft asserts that this cannot be; here it is kept out of the group instead, and counts
/// for no quorum.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<BTreeMap<u64, Acknowledged>>>);

#[derive(Debug)]
struct Acknowledged {
    leader: LeaderId,
    index: u64,
    lost: bool,
}

impl Ledger {
    pub(super) fn check(&self, node: u64, leader: LeaderId, result: &StreamAppendResult<TypeConfig>) -> io::Result<()> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(None) | Err(StreamAppendError::HigherVote(_)) => Ok(()),
            Ok(Some(matched)) => {
                let known = nodes.entry(node).or_insert(Acknowledged { leader, index: 0, lost: false });
                if known.leader != leader {
                    *known = Acknowledged { leader, index: 0, lost: false };
                }
                known.index = known.index.max(matched.index);
                Ok(())
            }
            Err(StreamAppendError::Conflict(conflict)) => match nodes.get_mut(&node) {
                Some(known) if known.leader == leader && conflict.index <= known.index => {
                    if !std::mem::replace(&mut known.lost, true) {
                        tracing::error!(node, index = known.index, "a node lost what it acknowledged; it must leave");
                    }
                    Err(io::Error::other("the node lost what it had acknowledged"))
                }
                _ => Ok(()),
            },
        }
    }
}
