//! openraft's own suite for storage.

use std::sync::Arc;

use maillage_host::Disk;
use maillage_host::engine::FjallHome;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::raft::halt::Halt;
use crate::raft::log::{Identity, Limits, Log};
use crate::raft::snapshot::SnapshotStore;
use crate::raft::state::State;
use crate::raft::testing::{Toy, real_disk};
use crate::raft::types::TypeConfig;

/// Each store has its own log and state. They share the directory of snapshots, emptied for each,
/// because the suite hands one node's snapshot to another without carrying it.
struct Stores {
    _directory: tempfile::TempDir,
    snapshots: Disk,
}

impl StoreBuilder<TypeConfig, Log, State, tempfile::TempDir> for Stores {
    async fn build(&self) -> Result<(tempfile::TempDir, Log, State), StorageError<TypeConfig>> {
        let (directory, disk) = real_disk();
        let identity = Identity { node_id: 0, mesh_id: [1; 32] };
        let log = Log::open(&disk, identity, Limits::default(), Halt::default()).await.expect("log");
        self.snapshots.remove_dir("raft").await.expect("emptied");
        let snapshots = Arc::new(SnapshotStore::open(self.snapshots.clone(), [1; 32]).await.expect("snapshots"));
        let home = Arc::new(FjallHome::new(directory.path().join("state"), 1 << 20));
        let state = State::open(home, Arc::new(Toy), snapshots, Halt::default()).await.expect("state");
        Ok((directory, log, state))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_the_state_pass_openrafts_suite() {
    let (directory, snapshots) = real_disk();
    Suite::test_all(Stores { _directory: directory, snapshots }).await.expect("the suite passes");
}
