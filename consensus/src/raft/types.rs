//! openraft's type parameters, chosen once. Nothing outside `raft/` sees them.

use std::fmt;

use bytes::Bytes;
use openraft::type_config::alias;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::runtime::MeshRuntime;
use super::snapshot::SnapshotFile;
use super::state::State;

openraft::declare_raft_types!(
    /// A command and an outcome are opaque bytes; a node is known by its id alone, because its
    /// addresses live in the replicated state.
    pub(crate) TypeConfig:
        D = Payload,
        R = Payload,
        NodeId = u64,
        Node = openraft::EmptyNode,
        AsyncRuntime = MeshRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, State>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type LeaderId = alias::LeaderIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, openraft::EmptyNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, SnapshotFile>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// Opaque bytes of a command or an outcome, cheap to clone. Never shown: they may name patients.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Payload(pub(crate) Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// openraft asks for serde; what is stored and sent is encoded by `codec`, so these serve only it.
impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: serde_bytes::ByteBuf = serde_bytes::deserialize(deserializer)?;
        Ok(Self(Bytes::from(bytes.into_vec())))
    }
}

/// A log id's index, `0` for none: openraft's first entry has index 0 and is always the founder's
/// membership, so no command is mistaken for "nothing applied".
pub(crate) fn index_or_zero(log_id: Option<&LogId>) -> u64 {
    log_id.map_or(0, |id| id.index)
}
