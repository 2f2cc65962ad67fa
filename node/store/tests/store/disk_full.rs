//! No room: refused with a reason, nothing half written, well again when there is room.

use std::sync::Arc;

use maillage_store::{StoreConfig, StoreError, StoreEvent, Stored};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{assert_whole, commit, config, instance, open, open_with};

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    for hides_its_space in [false, true] {
        let faulty = FaultyDisk::new();
        let store = open(&faulty.disk(), &Arc::default()).await;
        let mut events = store.events();
        // Where the volume hides its space, the first to notice is the write itself, half done.
        {
            let mut faults = faulty.faults.lock().expect("lock");
            faults.capacity = Some(150_000);
            faults.hides_its_space = hides_its_space;
        }
        let mut stored = Vec::new();
        let mut refused = Vec::new();
        for n in 0..12 {
            let instance = instance(n, n, 20_000);
            match commit(&store, &instance).await {
                Ok(_) => stored.push(instance),
                Err(StoreError::Full { .. }) => refused.push(instance),
                Err(other) => panic!("{other}"),
            }
        }
        assert!(stored.len() >= 3 && refused.len() >= 3, "{} and {}", stored.len(), refused.len());
        assert!(matches!(commit(&store, &stored[0]).await, Ok(Stored::Duplicate { .. })), "what is here needs no room");
        assert_eq!(events.recv().await, Ok(StoreEvent::Full));
        for instance in &stored {
            assert_whole(&store, instance).await;
        }
        // What was refused left nothing behind, not even half a record.
        let refused_only = open(&faulty.disk(), &Arc::default()).await;
        assert_eq!(refused_only.recovery().torn, None);
        drop(refused_only);
        faulty.faults.lock().expect("lock").capacity = None;
        for instance in &refused {
            assert!(matches!(commit(&store, instance).await, Ok(Stored::New { .. })));
        }
        assert_eq!(events.recv().await, Ok(StoreEvent::RoomAgain));
        faulty.cut_power(0);
        let store = open(&faulty.disk(), &Arc::default()).await;
        for instance in stored.iter().chain(&refused) {
            assert_whole(&store, instance).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_reserve_is_left_to_others() {
    let faulty = FaultyDisk::new();
    faulty.faults.lock().expect("lock").capacity = Some(1 << 20);
    let config = StoreConfig { reserve_bytes: 800 << 10, ..config() };
    let store = open_with(&faulty.disk(), Arc::<maillage_host::engine::MemoryHome>::default(), config).await;
    let mut is_full = false;
    for n in 0..40 {
        match commit(&store, &instance(n, n, 20_000)).await {
            Ok(_) => assert!(!is_full),
            Err(StoreError::Full { reserve, .. }) => {
                assert_eq!(reserve, 800 << 10);
                is_full = true;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(is_full);
    assert!((1 << 20) - faulty.used() >= 800 << 10, "{} are used", faulty.used());
}
