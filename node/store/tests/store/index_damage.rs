//! Damage of the index: whatever file of it is flipped in, cut short or gone, all that was acknowledged is there
//! again, once the index is made anew: when the store opens, or while it is open.

use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use maillage_host::engine::{FjallHome, MemoryHome};
use maillage_host::{Disk, Engine, EngineHome};
use maillage_store::{Hold, Publication, Store, StoreError, StoreEvent, StudyManifest};
use tempfile::TempDir;
use tokio::sync::{Notify, broadcast};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{STUDY, TestInstance, assert_whole, commit, config, instance, open, open_with, read_back};
use crate::fixture::{listing, try_listing};

/// Where an index lies.
const INDEX: &str = "index/";
/// What each batch of a fjall journal ends with. The next begins with its tag and its count, then its number.
const BATCH_END: &[u8] = b"FJL\x03";
const BEFORE_NUMBER: usize = 1 + 4;

/// All files of a closed store, by path.
pub(crate) type Files = Vec<(String, Bytes)>;

pub(crate) fn home(root: &TempDir) -> Arc<FjallHome> {
    Arc::new(FjallHome::new(root.path().join("index"), 1 << 20))
}

/// A store of which the index has tables and a journal, closed; what is in it, and what it lists.
async fn filled() -> (TempDir, Vec<TestInstance>, String) {
    let root = tempfile::tempdir().expect("temporary directory");
    let (disk, memory) = (Disk::real(root.path()), Arc::<MemoryHome>::default());
    let instances: Vec<TestInstance> = (0..24).map(|number| instance(number, number, 2_000)).collect();
    let (first, rest) = instances.split_at(14);
    let store = open(&disk, &memory).await;
    for instance in first {
        commit(&store, instance).await.expect("commit");
    }
    store.close().await.expect("close");
    let view = memory.open().expect("open").view();
    let filled = home(&root).replace(&mut |fresh| {
        fresh.ingest(&mut |take| {
            let mut taken = Ok(());
            view.scan(Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
                taken = take(key, value);
                taken.is_ok()
            })?;
            taken
        })
    });
    drop(filled.expect("fill"));
    let store = open_with(&disk, home(&root), config()).await;
    for instance in rest {
        commit(&store, instance).await.expect("commit");
    }
    hold(&store).await;
    let listed = listing(&store).await;
    store.close().await.expect("close");
    (root, instances, listed)
}

/// Publishes and holds the study; its publication.
async fn hold(store: &Store) -> Publication {
    let listed = store.instances(STUDY).await.expect("instances");
    let study = StudyManifest::new(STUDY.into(), 1, 1, listed.into_iter().map(|instance| instance.entry).collect());
    let manifest = store.put_manifest(study.encode().expect("encode")).await.expect("put");
    assert_eq!(store.hold(manifest).await.expect("hold"), Hold::Held);
    Publication { study_uid: STUDY.into(), origin: 1, sequence: 1, manifest }
}

pub(crate) async fn files_of(root: &TempDir) -> Files {
    let disk = Disk::real(root.path());
    let (mut files, mut paths) = (Files::new(), disk.list("").await.expect("list"));
    while let Some(path) = paths.pop() {
        match disk.list(&path).await {
            Ok(names) => paths.extend(names.into_iter().map(|name| format!("{path}/{name}"))),
            Err(_) => files.push((path.clone(), disk.read(&path).await.expect("read"))),
        }
    }
    files
}

/// The same files elsewhere, but for the content of one, or without it.
pub(crate) async fn with(files: &Files, path: &str, content: Option<&Bytes>) -> TempDir {
    let root = tempfile::tempdir().expect("temporary directory");
    let disk = Disk::real(root.path());
    for (name, bytes) in files {
        let Some(bytes) = (if name == path { content } else { Some(bytes) }) else { continue };
        disk.create_dir(name.rsplit_once('/').map_or("", |(parent, _)| parent)).await.expect("make");
        let file = disk.create(name).await.expect("create");
        file.write_at(0, vec![bytes.clone()], false).await.expect("write");
    }
    root
}

/// The journal, and where its batches end.
fn journal_of(files: &Files) -> (&str, &Bytes, Vec<usize>) {
    let (path, journal) = files.iter().find(|(path, _)| path.ends_with(".jnl")).expect("a journal");
    let windows = journal.windows(BATCH_END.len()).enumerate();
    let ends = windows.filter(|(_, window)| *window == BATCH_END).map(|(at, _)| at + BATCH_END.len());
    (path, journal, ends.collect())
}

fn flipped(bytes: &Bytes, bit: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes.into()
}

/// Everything that was acknowledged, or the first error of the index.
pub(crate) async fn read_all(store: &Store, instances: &[TestInstance]) -> Result<String, StoreError> {
    for instance in instances {
        assert_eq!(read_back(store, instance).await?, instance.dataset);
    }
    try_listing(store).await
}

/// Waits until a damaged index was made anew.
pub(crate) async fn mended(events: &mut broadcast::Receiver<StoreEvent>) {
    loop {
        match events.recv().await.expect("an event") {
            StoreEvent::Mended => return,
            StoreEvent::WriterFailed(why) => panic!("{why}"),
            _ => {}
        }
    }
}

/// Opens what is damaged. Whether all was there at once: if not, the index is made anew, and all is there then.
async fn is_whole_at_once(root: &TempDir, instances: &[TestInstance], listed: &str, case: &str) -> bool {
    let disk = Disk::real(root.path());
    let store = open_with(&disk, home(root), config()).await;
    let mut events = store.events();
    match read_all(&store, instances).await {
        Ok(text) => {
            assert_eq!(text, listed, "{case}");
            return true;
        }
        Err(error) => assert!(matches!(error, StoreError::Index(_)), "{case}: {error}"),
    }
    mended(&mut events).await;
    assert!(store.recovery().index_rebuilt, "{case}");
    assert_eq!(read_all(&store, instances).await.expect(case), listed, "{case}");
    let more = instance(99, 99, 500);
    commit(&store, &more).await.expect(case);
    let listed = listing(&store).await;
    store.close().await.expect("close");
    drop(store);
    let store = open_with(&disk, home(root), config()).await;
    assert!(!store.recovery().index_rebuilt, "{case}: once");
    assert_eq!(read_all(&store, instances).await.expect(case), listed, "{case}");
    assert_whole(&store, &more).await;
    false
}

/// A file cut short, and with one bit flipped in each of its parts.
fn damaged(bytes: &Bytes) -> Vec<Bytes> {
    let parts = if bytes.len() > 1000 { 8 } else { 3 };
    let flips = (0..8 * bytes.len()).step_by((8 * bytes.len() / parts).max(1)).map(|bit| flipped(bytes, bit));
    [bytes.slice(..bytes.len() / 2)].into_iter().chain(flips).collect()
}

#[tokio::test(start_paused = true)]
async fn damage_of_any_file_of_the_index_loses_nothing() {
    let (root, instances, listed) = filled().await;
    let files = files_of(&root).await;
    let mut is_met_late = false;
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with(INDEX)) {
        for (number, content) in [None].into_iter().chain(damaged(bytes).into_iter().map(Some)).enumerate() {
            let root = with(&files, path, content.as_ref()).await;
            let case = format!("{path}, damage {number}");
            is_met_late |= !is_whole_at_once(&root, &instances, &listed, &case).await;
        }
    }
    assert!(is_met_late, "some damage is met by reads only");
}

#[tokio::test(start_paused = true)]
async fn damage_that_is_met_while_the_index_is_completed_does_not_keep_the_store_closed() {
    let (root, instances, listed) = filled().await;
    let mut files = files_of(&root).await;
    // What was committed last is to be replayed, over the rows in the table.
    files.iter_mut().filter(|(path, _)| path.ends_with(".jnl")).for_each(|(_, journal)| journal.clear());
    let (path, table) = files.iter().find(|(path, _)| path.ends_with("1/tables/0")).expect("a table");
    for (number, content) in damaged(table).into_iter().enumerate() {
        let root = with(&files, path, Some(&content)).await;
        is_whole_at_once(&root, &instances, &listed, &format!("damage {number}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_loses_or_moves_a_batch_is_no_index() {
    let (root, instances, listed) = filled().await;
    let files = files_of(&root).await;
    let (path, journal, ends) = journal_of(&files);
    assert!(ends.len() > 12, "{}", ends.len());
    // fjall's checksums do not cover the numbers that put its batches in order.
    for end in [ends[1], ends[6], ends[ends.len() - 3]] {
        for bit in [0, 1, 2, 3, 4, 5, 6, 13] {
            let root = with(&files, path, Some(&flipped(journal, 8 * (end + BEFORE_NUMBER) + bit))).await;
            assert!(is_whole_at_once(&root, &instances, &listed, &format!("bit {bit} behind {end}")).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_that_falls_behind_a_purge_does_not_bring_it_back() {
    let root = tempfile::tempdir().expect("temporary directory");
    let disk = Disk::real(root.path());
    let store = open_with(&disk, home(&root), config()).await;
    for number in 0..6 {
        commit(&store, &instance(number, number, 2_000)).await.expect("commit");
    }
    let publication = hold(&store).await;
    store.purge(&publication, true).await.expect("purge");
    let mut kept = instance(7, 7, 2_000);
    kept.manifest.study_uid = "1.2.250.2".into();
    commit(&store, &kept).await.expect("commit");
    let listed = listing(&store).await;
    store.close().await.expect("close");
    drop(store);
    let files = files_of(&root).await;
    let (path, journal, ends) = journal_of(&files);
    for len in ends {
        let root = with(&files, path, Some(&journal.slice(..len))).await;
        let store = open_with(&Disk::real(root.path()), home(&root), config()).await;
        assert_eq!(listing(&store).await, listed, "{len} bytes");
        assert_whole(&store, &kept).await;
        assert_eq!(store.recovery().missing, [], "{len} bytes");
    }
}

/// A home of which no opening ends.
struct Stuck {
    home: MemoryHome,
    begun: Notify,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl EngineHome for Stuck {
    fn open(&self) -> io::Result<Arc<dyn Engine>> {
        self.begun.notify_one();
        let _ = self.gate.lock().expect("lock").recv();
        Err(io::Error::other("let go of"))
    }

    fn replace(&self, fill: &mut dyn FnMut(&dyn Engine) -> io::Result<()>) -> io::Result<Arc<dyn Engine>> {
        self.home.replace(fill)
    }
}

#[tokio::test]
async fn an_index_that_ends_the_process_at_every_opening_is_made_anew() {
    let faulty = FaultyDisk::new();
    let disk = faulty.disk();
    let one = instance(1, 1, 2_000);
    let store = open(&disk, &Arc::default()).await;
    commit(&store, &one).await.expect("commit");
    store.close().await.expect("close");
    let (release, gate) = mpsc::channel();
    let stuck = Arc::new(Stuck { home: MemoryHome::default(), begun: Notify::new(), gate: Mutex::new(gate) });
    for _ in 0..3 {
        tokio::select! {
            _ = open_with(&disk, Arc::<Stuck>::clone(&stuck), config()) => panic!("opened"),
            () = stuck.begun.notified() => {}
        }
    }
    let opened = open_with(&disk, Arc::<Stuck>::clone(&stuck), config());
    let store = tokio::time::timeout(Duration::from_secs(10), opened).await.expect("not tried again");
    assert!(store.recovery().index_rebuilt);
    assert_whole(&store, &one).await;
    drop(release);
}
