//! A damaged index is made anew while the store is open: what is refused meanwhile, what a crash leaves, and that
//! nothing comes back that was purged.

use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak, mpsc};

use bytes::Bytes;
use maillage_host::engine::{FjallHome, Reader};
use maillage_host::{Batch, Disk, Engine, EngineHome};
use maillage_store::{Hold, Publication, Store, StoreError, StoreEvent, Stored};
use tempfile::TempDir;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::fixture::{
    STUDY, TestInstance, assert_whole, commit, config, flip, instance, listing, locate, open_with, read_back,
};
use crate::index_damage::{files_of, home, mended, read_all, with};
use crate::purge::{publish, study};

const GOING: &str = "1.2.2";
/// Batches that are still to come before an engine rots: it does not.
const SOUND: usize = usize::MAX;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics with a lock held")
}

/// A home on a real disk, of which the engine in use fails on demand as damaged files do, and of which another is made
/// step by step.
struct Rotting {
    home: FjallHome,
    /// The one in use.
    given: Mutex<Weak<Given>>,
    steps: Mutex<Option<Steps>>,
    /// No other can be made.
    is_full: AtomicBool,
}

/// Who is told of each step, and lets it go on.
#[derive(Clone)]
struct Steps {
    told: UnboundedSender<String>,
    go: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Steps {
    fn stop(&self, at: &str) {
        // Nobody looks any more once the test has seen enough.
        if self.told.send(at.to_owned()).is_ok() {
            let _ = lock(&self.go).recv();
        }
    }
}

impl Rotting {
    fn new(root: &TempDir) -> Arc<Self> {
        let home = FjallHome::new(root.path().join("index"), 1 << 20);
        Arc::new(Self { home, given: Mutex::default(), steps: Mutex::default(), is_full: AtomicBool::new(false) })
    }

    /// The engine in use rots once it has taken so many batches more.
    fn rot(&self, after: usize, what: Rot) {
        let given = lock(&self.given).upgrade().expect("an engine");
        *lock(&given.what) = what;
        given.left.store(after, Ordering::SeqCst);
    }

    /// Has each step of making another engine told, and wait for a word, from now on.
    fn watch(&self) -> (UnboundedReceiver<String>, mpsc::Sender<()>) {
        let ((told, steps), (go, gone)) = (unbounded_channel(), mpsc::channel());
        *lock(&self.steps) = Some(Steps { told, go: Arc::new(Mutex::new(gone)) });
        (steps, go)
    }

    fn give(&self, engine: Arc<dyn Engine>, steps: Option<Steps>) -> Arc<dyn Engine> {
        let (left, what) = (AtomicUsize::new(SOUND), Mutex::new(Rot::Reads));
        let given = Arc::new(Given { engine, left, what, steps });
        *lock(&self.given) = Arc::downgrade(&given);
        given
    }
}

impl EngineHome for Rotting {
    fn open(&self) -> io::Result<Arc<dyn Engine>> {
        Ok(self.give(self.home.open()?, None))
    }

    fn replace(&self, fill: &mut dyn FnMut(&dyn Engine) -> io::Result<()>) -> io::Result<Arc<dyn Engine>> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let steps = lock(&self.steps).clone();
        steps.iter().for_each(|steps| steps.stop("before the new one"));
        let engine = self.home.replace(fill)?;
        steps.iter().for_each(|steps| steps.stop("behind the new one"));
        Ok(self.give(engine, steps))
    }

    fn tidy(&self) -> io::Result<()> {
        self.home.tidy()
    }
}

/// What of a rotten engine fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rot {
    /// All reads.
    Reads,
    /// Reads of more than one row.
    Scans,
    /// What is written.
    Batches,
}

/// An engine that rots.
struct Given {
    engine: Arc<dyn Engine>,
    /// Batches before it does.
    left: AtomicUsize,
    what: Mutex<Rot>,
    steps: Option<Steps>,
}

impl Given {
    fn is_whole(&self, asked: Rot) -> io::Result<()> {
        let what = *lock(&self.what);
        let fails = what == asked || (what, asked) == (Rot::Reads, Rot::Scans);
        if fails && self.left.load(Ordering::SeqCst) == 0 {
            return Err(io::Error::other("a checksum does not match"));
        }
        Ok(())
    }
}

impl Reader for Given {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.is_whole(Rot::Reads)?;
        self.engine.get(key)
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.is_whole(Rot::Scans)?;
        self.engine.scan(from, to, each)
    }
}

impl Engine for Given {
    fn commit(&self, batch: Batch) -> io::Result<()> {
        self.steps.iter().for_each(|steps| steps.stop("a batch"));
        self.is_whole(Rot::Batches)?;
        self.engine.commit(batch)?;
        if self.left.load(Ordering::SeqCst) != SOUND {
            let _ = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        }
        Ok(())
    }

    fn persist(&self) -> io::Result<()> {
        self.engine.persist()
    }

    fn view(&self) -> Box<dyn Reader> {
        self.engine.view()
    }
}

/// What a study's latest publication here is known by.
async fn publication(store: &Store, uid: &str, instances: &[TestInstance]) -> Publication {
    let manifest = publish(store, uid, instances, 1, 1).await;
    Publication { study_uid: uid.into(), origin: 1, sequence: 1, manifest }
}

/// The file in which something of these instances is that no other instance has.
async fn file_with(root: &TempDir, instances: &[TestInstance]) -> Option<String> {
    let needles: Vec<Bytes> = instances.iter().map(|instance| instance.dataset.slice(..32)).collect();
    let has = |bytes: &Bytes| bytes.windows(32).any(|window| needles.iter().any(|needle| needle == window));
    let mut files = files_of(root).await.into_iter().filter(|(path, _)| path.starts_with("images/"));
    files.find(|(_, bytes)| has(bytes)).map(|(path, _)| path)
}

#[tokio::test]
async fn nothing_is_written_while_the_index_is_made_anew_and_what_can_be_read_is() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (disk, rotting) = (Disk::real(root.path()), Rotting::new(&root));
    let store = open_with(&disk, Arc::<Rotting>::clone(&rotting), config()).await;
    let instances: Vec<TestInstance> = (0..30).map(|number| instance(number, number, 20_000)).collect();
    for instance in &instances {
        commit(&store, instance).await.expect("commit");
    }
    let listed = listing(&store).await;
    let (mut steps, go) = rotting.watch();
    let mut events = store.events();
    rotting.rot(0, Rot::Scans);
    let met = futures::future::join_all((0..10).map(|_| store.instances(STUDY))).await;
    assert!(met.iter().all(|met| matches!(met, Err(StoreError::Index(_)))));

    assert_eq!(steps.recv().await.as_deref(), Some("before the new one"));
    assert!(store.is_mending() && !store.has_stopped_writing());
    let late = instance(99, 99, 20_000);
    assert!(matches!(commit(&store, &late).await, Err(StoreError::Mending)));
    assert!(matches!(commit(&store, &instances[0]).await, Err(StoreError::Mending)));
    assert!(matches!(store.discard(Vec::new()).await, Err(StoreError::Mending)));
    for instance in &instances {
        assert_eq!(read_back(&store, instance).await.expect("read meanwhile"), instance.dataset);
    }
    assert!(store.instances(STUDY).await.is_err(), "damage is met again");
    assert_eq!(store.mends(), 0);
    drop((steps, go));
    while store.instances(STUDY).await.is_err() {}
    assert_eq!((store.mends(), store.recovery().index_rebuilt), (1, true), "told as soon as the new one answers");
    mended(&mut events).await;

    assert!(!store.is_mending());
    assert_eq!(store.mends(), 1);
    assert_eq!((&store.recovery().damage, &store.recovery().missing), (&vec![], &vec![]));
    assert_eq!(read_all(&store, &instances).await.expect("index"), listed);
    assert!(matches!(commit(&store, &instances[0]).await, Ok(Stored::Duplicate { .. })));
    assert!(matches!(commit(&store, &late).await, Ok(Stored::New { .. })));
    assert!(matches!(events.try_recv(), Err(TryRecvError::Empty)), "it was made anew once");
    let listed = listing(&store).await;
    store.close().await.expect("close");
    drop(store);
    let store = open_with(&disk, home(&root), config()).await;
    assert!(!store.recovery().index_rebuilt);
    assert_eq!(read_all(&store, &instances).await.expect("index"), listed);
    assert_whole(&store, &late).await;
}

#[tokio::test]
async fn a_crash_at_any_step_of_making_an_index_anew_loses_nothing_and_brings_nothing_back() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (disk, rotting) = (Disk::real(root.path()), Rotting::new(&root));
    let store = open_with(&disk, Arc::<Rotting>::clone(&rotting), config()).await;
    let instances: Vec<TestInstance> = (0..30).map(|number| instance(number, number, 20_000)).collect();
    let going = study(GOING, 5);
    for instance in &instances[..15] {
        commit(&store, instance).await.expect("commit");
    }
    let publication = publication(&store, GOING, &going).await;
    for instance in &instances[15..] {
        commit(&store, instance).await.expect("commit");
    }
    assert!(file_with(&root, &going).await.is_some(), "the search finds what is there");
    store.purge(&publication, true).await.expect("purge");
    let listed = listing(&store).await;
    let (mut steps, go) = rotting.watch();
    let mut events = store.events();
    rotting.rot(0, Rot::Reads);
    assert!(matches!(store.instances(STUDY).await, Err(StoreError::Index(_))));
    let mut is_mended = std::pin::pin!(mended(&mut events));
    let mut seen = 0;
    loop {
        let step = tokio::select! {
            step = steps.recv() => step.expect("a step"),
            () = &mut is_mended => break,
        };
        seen += 1;
        let crashed = with(&files_of(&root).await, "", None).await;
        let case = format!("step {seen}, {step}");
        for opening in 0..2 {
            let after = open_with(&Disk::real(crashed.path()), home(&crashed), config()).await;
            // Until it is known that the new one is the current one the old one is not to be used.
            assert_eq!(after.recovery().index_rebuilt, opening == 0 && seen <= 3, "{case}");
            assert_eq!(read_all(&after, &instances).await.expect(&case), listed, "{case}");
            assert_eq!(file_with(&crashed, &going).await, None, "{case}");
            after.close().await.expect("close");
        }
        go.send(()).expect("it waits");
    }
    assert!(seen > 6, "{seen} steps");
    assert_eq!(read_all(&store, &instances).await.expect("index"), listed);
    assert_eq!(file_with(&root, &going).await, None);
    let left = disk.list("index").await.expect("list").into_iter().filter(|name| name.parse::<u64>().is_ok());
    assert_eq!(left.count(), 1, "the damaged one is gone");
}

#[tokio::test]
async fn a_purge_that_meets_the_damage_at_any_batch_brings_nothing_back_and_is_done_when_asked_for_again() {
    let mut is_through = false;
    for after in 0..9 {
        let root = tempfile::tempdir().expect("temporary directory");
        let (disk, rotting) = (Disk::real(root.path()), Rotting::new(&root));
        let store = open_with(&disk, Arc::<Rotting>::clone(&rotting), config()).await;
        let (kept, going) = (study("1.2.1", 5), study(GOING, 5));
        publish(&store, "1.2.1", &kept, 1, 1).await;
        let publication = publication(&store, GOING, &going).await;
        let mut events = store.events();
        rotting.rot(after, Rot::Reads);
        match store.purge(&publication, true).await {
            Ok(()) => {
                is_through = true;
                rotting.rot(0, Rot::Reads);
                assert!(store.instances(GOING).await.is_err(), "behind it");
            }
            Err(StoreError::Index(_) | StoreError::Mending) => {}
            Err(error) => panic!("{after} batches: {error}"),
        }
        mended(&mut events).await;
        let listed = store.instances(GOING).await.expect("index");
        assert_eq!(listed.len(), if after == 0 { going.len() } else { 0 }, "{after} batches");
        store.purge(&publication, true).await.expect("purge again");
        assert_eq!(file_with(&root, &going).await, None, "{after} batches");
        let intents = disk.list("images/packs").await.expect("list");
        assert!(!intents.iter().any(|name| name.ends_with(".purge")), "{after} batches: {intents:?}");
        assert_eq!(store.instances(GOING).await.expect("index"), []);
        for instance in &kept {
            assert_whole(&store, instance).await;
        }
        commit(&store, &going[0]).await.expect("what is sent again is new");
        assert_whole(&store, &going[0]).await;
        store.close().await.expect("close");
        drop(store);
        let store = open_with(&disk, home(&root), config()).await;
        assert!(!store.recovery().index_rebuilt, "{after} batches");
        assert_eq!(store.instances(GOING).await.expect("index").len(), 1, "{after} batches");
        for instance in &kept {
            assert_whole(&store, instance).await;
        }
        if is_through {
            return;
        }
    }
    panic!("a purge takes fewer batches");
}

#[tokio::test]
async fn what_was_found_damaged_before_is_not_whole_behind_the_new_index() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (disk, rotting) = (Disk::real(root.path()), Rotting::new(&root));
    let store = open_with(&disk, Arc::<Rotting>::clone(&rotting), config()).await;
    let (rotten, sound) = (study("1.2.1", 2), study(GOING, 2));
    let manifests = [publish(&store, "1.2.1", &rotten, 1, 1).await, publish(&store, GOING, &sound, 1, 2).await];
    let mut events = store.events();
    let (path, at) = locate(&disk, &rotten[0].dataset).await;
    flip(&disk, &path, at, 3).await;
    assert!(matches!(store.get(rotten[0].manifest.chunks[0].hash).await, Err(StoreError::Corrupt(_))));
    while !matches!(events.recv().await.expect("an event"), StoreEvent::HoldLost(_)) {}
    let bad = store.bad_chunks(10).await.expect("index");
    assert_eq!(bad.len(), 1);
    let held = store.held().await.expect("index");
    assert_eq!(held.len(), 1);

    rotting.rot(0, Rot::Batches);
    assert!(matches!(commit(&store, &instance(99, 99, 2_000)).await, Err(StoreError::Mending)));
    mended(&mut events).await;

    assert_eq!(store.bad_chunks(10).await.expect("index"), bad);
    assert_eq!(store.held().await.expect("index"), held);
    assert!(matches!(store.get(bad[0]).await, Err(StoreError::Corrupt(_))));
    assert_eq!(store.hold(manifests[0]).await.expect("hold"), Hold::Incomplete { missing: bad });
    assert_eq!(store.hold(manifests[1]).await.expect("hold"), Hold::Held);
}

#[tokio::test]
async fn writing_ends_when_the_index_is_damaged_again_and_again_or_cannot_be_made_anew() {
    for is_full in [false, true] {
        let root = tempfile::tempdir().expect("temporary directory");
        let (disk, rotting) = (Disk::real(root.path()), Rotting::new(&root));
        let store = open_with(&disk, Arc::<Rotting>::clone(&rotting), config()).await;
        let mut events = store.events();
        let mut instances = Vec::new();
        // Whoever meets it: who reads, or who writes, before it is in a pack and after.
        for (number, what) in (0..).zip([Rot::Scans, Rot::Reads, Rot::Batches]) {
            instances.push(instance(number, number, 2_000));
            commit(&store, &instances[instances.len() - 1]).await.expect("commit");
            if is_full {
                continue;
            }
            rotting.rot(0, what);
            let more = instance(50 + number, 50 + number, 2_000);
            if what == Rot::Scans {
                assert!(matches!(store.instances(STUDY).await, Err(StoreError::Index(_))));
            } else {
                let refused = commit(&store, &more).await;
                assert!(matches!(refused, Err(StoreError::Mending)), "{refused:?}");
            }
            mended(&mut events).await;
            let again = commit(&store, &more).await.expect("commit");
            assert_eq!(matches!(again, Stored::Duplicate { .. }), what == Rot::Batches, "{again:?}");
            instances.push(more);
        }
        rotting.is_full.store(is_full, Ordering::SeqCst);
        rotting.rot(0, Rot::Reads);
        assert!(matches!(store.instances(STUDY).await, Err(StoreError::Index(_))));
        while !matches!(events.recv().await.expect("an event"), StoreEvent::WriterFailed(_)) {}
        assert_eq!(store.mends(), if is_full { 0 } else { 3 });
        assert!(matches!(commit(&store, &instance(60, 60, 2_000)).await, Err(StoreError::Failed(_))));
        assert!(store.has_stopped_writing());
        let _ = store.close().await;
        drop(store);
        let store = open_with(&disk, home(&root), config()).await;
        assert!(store.recovery().index_rebuilt, "the next start was told");
        assert_eq!(store.mends(), 0, "none since");
        for instance in &instances {
            assert_whole(&store, instance).await;
        }
        commit(&store, &instance(60, 60, 2_000)).await.expect("commit");
    }
}
