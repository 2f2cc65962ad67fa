//! What leaves the spool for being purged, and its keys.

use std::sync::atomic::AtomicU64;

use maillage_consensus::ids::ExamId;
use maillage_consensus::mesh::Study;

use super::door::{offer, offer_of};
use super::*;

impl Centre {
    /// A study as the mesh knows it.
    fn known(&self, study: &str) -> Option<Study> {
        self.site.node().read(|view| view.study(study)).expect("read")
    }

    /// Waits until the mesh knows a study. Its exam.
    async fn published(&self, study: &str) -> ExamId {
        let published = async {
            loop {
                match self.known(study) {
                    Some(study) => return study.parts[0].exam,
                    None => sleep(Duration::from_secs(1)).await,
                }
            }
        };
        timeout(Duration::from_secs(600), published).await.expect("published")
    }

    async fn purge(&self, exam: ExamId) {
        let purge = Command::Purge { exam, reason: Line::fitted("withdrawn"), withdrawn: true };
        let purged = self.site.node().command(CommandId::random(), Name::fitted("dpo"), purge).await;
        assert_eq!(purged.expect("an outcome"), Outcome::Done);
    }
}

impl Gateway {
    /// Drops what a centre says has been purged.
    async fn purge(&self, keys: &[Key]) -> Result<(), StoreError> {
        let latest = UnixMillis(u64::MAX);
        keys.iter().for_each(|key| assert!(self.schedule().purged(key, latest)));
        self.drop_instances(keys).await
    }
}

/// Other bytes that say the same of themselves.
fn changed(dataset: &Bytes) -> Bytes {
    let mut changed = dataset.to_vec();
    *changed.last_mut().expect("a byte") ^= 1;
    changed.into()
}

fn key(uid: &Uid, dataset: &Bytes) -> Key {
    Key { sop_instance: uid.to_string(), dataset: Hash::of(dataset) }
}

#[tokio::test(start_paused = true)]
async fn a_purge_reaches_what_is_safe_and_what_no_centre_takes_and_their_keys() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (phantom, study) = (phantom(2), phantom(2).study_uid().to_string());
    for n in 0..2 {
        let (uid, dataset) = phantom.slice(n);
        running.take(&uid, dataset).await.expect("taken");
    }
    running.is_through(2).await;
    let exam = centre.published(&study).await;
    // Of the first image other bytes come, which no centre takes. It is safe, as far as this gateway was told.
    let (uid, first) = phantom.slice(0);
    running.take(&uid, changed(&first)).await.expect("kept apart");
    let rejected = async {
        while running.gateway.schedule().counts().rejected == 0 {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(600), rejected).await.expect("no centre takes it");
    running.gateway.schedule().safe(&key(&uid, &first), Instant::now());
    let counts = running.gateway.schedule().counts();
    assert_eq!((counts.safe, counts.rejected), (1, 1), "{counts:?}");

    // Since when it is here is asked every second.
    sleep(Duration::from_secs(2)).await;
    centre.purge(exam).await;
    sleep(Duration::from_secs(3600 + 180)).await;
    assert!(centre.known(&study).is_none());
    assert_eq!(running.gateway.schedule().counts(), Counts::default());
    let store = running.gateway.store();
    assert_eq!(store.studies(None, 9).await.expect("a list"), []);
    assert_eq!(store.conflicts(None, 9).await.expect("a list"), []);
    assert_eq!(disk.read("pending-keys").await.expect("the keys").len(), 8, "no key is left in the file");
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_purged_takes_nothing_along_that_nobody_else_has() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    cable.up.store(false, Ordering::SeqCst);
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (gateway, store) = (&running.gateway, running.gateway.store());
    let (uid, first) = phantom(1).slice(0);
    let second = changed(&first);
    let (one, other) = (key(&uid, &first), key(&uid, &second));
    let take_both = async || {
        running.take(&uid, first.clone()).await.expect("taken");
        running.take(&uid, second.clone()).await.expect("kept apart");
        // What is kept apart is looked for now and then.
        sleep(Duration::from_secs(20)).await;
        assert!(gateway.schedule().get(&one).is_some() && gateway.schedule().get(&other).is_some());
    };
    let here = async || {
        let first = store.instance(uid.as_str()).await.expect("a look");
        (first.is_some(), store.seconds(uid.as_str()).await.expect("a look").len())
    };
    take_both().await;
    gateway.purge(std::slice::from_ref(&one)).await.expect("no error");
    assert_eq!(here().await, (true, 1), "it waits for the other, which is neither purged nor safe");
    gateway.purge(std::slice::from_ref(&other)).await.expect("dropped");
    assert_eq!(here().await, (true, 0), "which goes alone");
    assert!(gateway.schedule().get(&one).is_some() && gateway.schedule().get(&other).is_none());

    take_both().await;
    // Another image is coming in under the UID: it would be gone with them.
    let claimed = store.landing().claim("1.2", uid.as_str()).expect("nothing is");
    gateway.purge(&[other.clone(), one.clone()]).await.expect("no error");
    assert_eq!(here().await, (true, 1));
    drop(claimed);
    gateway.purge(&[other.clone(), one.clone()]).await.expect("dropped");
    assert_eq!(here().await, (false, 0), "both go where both are purged");
    assert_eq!(gateway.schedule().counts(), Counts::default());
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_contested_is_not_dropped_for_being_safe_nor_offered_again() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let gateway = &running.gateway;
    let slices = [0, 1].map(|n| phantom(2).slice(n));
    for (uid, dataset) in &slices {
        running.take(uid, dataset.clone()).await.expect("taken");
    }
    running.is_through(2).await;
    let keys = [0, 1].map(|n: usize| key(&slices[n].0, &slices[n].1));
    keys.iter().for_each(|key| gateway.schedule().safe(key, Instant::now()));
    let to_drop = || gateway.schedule().to_drop(Instant::now(), Duration::ZERO, 0, 1);
    // Which of them was safe first is the gateway's to say.
    let first = usize::from(to_drop() == [keys[1].clone()]);
    running.take(&slices[first].0, changed(&slices[first].1)).await.expect("kept apart");
    assert_eq!(to_drop(), [keys[first].clone()]);
    gateway.drop_instances(&to_drop()).await.expect("no error");
    assert!(gateway.store().instance(slices[first].0.as_str()).await.expect("a look").is_some());
    assert_eq!(to_drop(), [keys[1 - first].clone()], "the next round goes past it");
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_forgotten_once_nothing_is_sealed_under_it_nor_will_be() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    cable.up.store(false, Ordering::SeqCst);
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (gateway, store) = (&running.gateway, running.gateway.store());
    let (phantom, study) = (phantom(2), phantom(2).study_uid().to_string());
    let slices = [0, 1].map(|n| phantom.slice(n));
    let take = async |n: usize| {
        let (uid, dataset) = &slices[n];
        running.take(uid, dataset.clone()).await.expect("taken");
        sleep(Duration::from_secs(1)).await;
        key(uid, dataset)
    };
    let purge = async |key: &Key| gateway.purge(std::slice::from_ref(key)).await.expect("dropped");
    let forget = async || {
        gateway.forget_keys().await.expect("no error");
        store.keys().pending(&study)
    };
    let (one, other) = (take(0).await, take(1).await);
    let of_both = store.keys().pending(&study);
    assert_eq!(of_both.len(), 1);
    purge(&one).await;
    assert_eq!(forget().await, of_both, "the other is sealed under it");

    let one = take(0).await;
    assert_eq!(store.keys().pending(&study).len(), 2, "what comes later is sealed under another");
    purge(&one).await;
    assert_eq!(forget().await, of_both);
    let spooled = gateway.schedule().get(&other).map(|(spooled, _)| spooled.clone()).expect("spooled");
    let manifest = store.instance_manifest(spooled.manifest).await.expect("read").expect("stored");
    assert!(store.attributes(&manifest).is_ok(), "it can be opened");

    // Something is being sealed under a new one.
    let sealing = store.keys().sealing(&study).await.expect("a key");
    gateway.dropped().insert(study.clone());
    assert_eq!(forget().await.len(), 2);
    drop(sealing);
    assert_eq!(forget().await, of_both, "nothing came of it");

    // Something may be about to take the key of what is listed under its UID.
    let claimed = store.landing().claim(&study, "1.2.3").expect("nothing is");
    purge(&other).await;
    assert_eq!(forget().await, of_both);
    drop(claimed);
    assert!(forget().await.is_empty());
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_a_process_left_behind_are_forgotten_by_the_next() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    cable.up.store(false, Ordering::SeqCst);
    let mut running = Running::start(&disk, &cable, 1 << 30).await;
    let other = CtPhantom { accession_number: "A2".to_owned(), ..phantom(1) };
    let slices = [phantom(1), other.clone()].map(|phantom| phantom.slice(0));
    for (uid, dataset) in &slices {
        running.take(uid, dataset.clone()).await.expect("taken");
    }
    sleep(Duration::from_secs(1)).await;
    running.gateway.purge(&[key(&slices[0].0, &slices[0].1)]).await.expect("dropped");
    running.kill().await;
    running = Running::start(&disk, &cable, 1 << 30).await;
    sleep(Duration::from_secs(10)).await;
    let left = running.gateway.store().keys().pending_studies();
    assert_eq!(left.into_iter().collect::<Vec<_>>(), [other.study_uid().to_string()]);
    running.kill().await;
    centre.end().await;
}

/// A machine whose clock is set by hand, in milliseconds since 1970.
fn with_clock(disk: &Disk, cable: &Arc<Cable>, clock: &Arc<AtomicU64>) -> Host {
    let clock = Arc::clone(clock);
    let clock = Clock::from_fn(move || UnixMillis(clock.load(Ordering::SeqCst)));
    Host { clock, ..host(disk, Arc::<Cable>::clone(cable)) }
}

/// One image is purged, and another of its study comes after that, or while nobody can tell. It is taken, though the
/// gateway's clock was set back by decades.
async fn comes_after_a_purge(is_cut_off: bool, is_restarted: bool) {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let clock = Arc::new(AtomicU64::new(Clock::system().now().0));
    let mut running = Running::start_on(with_clock(&disk, &cable, &clock), &cable, "").await;
    let (phantom, study) = (phantom(2), phantom(2).study_uid().to_string());
    let [(first, first_bytes), (second, second_bytes)] = [0, 1].map(|n| phantom.slice(n));
    running.take(&first, first_bytes).await.expect("taken");
    running.is_through(1).await;
    let exam = centre.published(&study).await;
    cable.up.store(!is_cut_off, Ordering::SeqCst);
    centre.purge(exam).await;
    sleep(Duration::from_secs(3600)).await;
    assert!(centre.known(&study).is_none());

    clock.store(1_000, Ordering::SeqCst);
    if is_restarted {
        running.kill().await;
        running = Running::start_on(with_clock(&disk, &cable, &clock), &cable, "").await;
    }
    running.take(&second, second_bytes).await.expect("taken");
    sleep(Duration::from_secs(60)).await;
    cable.up.store(true, Ordering::SeqCst);
    centre.published(&study).await;
    assert_eq!(centre.instances(&study).await, [second.to_string()]);
    assert!(running.gateway.schedule().named(second.as_str()).is_some());
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_came_after_a_purge_is_taken_though_the_clock_fell_back() {
    comes_after_a_purge(false, false).await;
    comes_after_a_purge(false, true).await;
}

#[tokio::test(start_paused = true)]
async fn what_came_after_a_purge_of_which_nobody_told_is_taken_though_the_clock_fell_back() {
    comes_after_a_purge(true, false).await;
    comes_after_a_purge(true, true).await;
}

/// What was here before a purge goes for it, though the gateway's clock was years ahead, and the line down meanwhile.
async fn is_purged_meanwhile(is_restarted: bool) {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let now = Clock::system().now().0;
    let clock = Arc::new(AtomicU64::new(now + 400_000_000_000));
    let mut running = Running::start_on(with_clock(&disk, &cable, &clock), &cable, "").await;
    let (phantom, study) = (phantom(1), phantom(1).study_uid().to_string());
    let (uid, dataset) = phantom.slice(0);
    running.take(&uid, dataset).await.expect("taken");
    running.is_through(1).await;
    let exam = centre.published(&study).await;
    cable.up.store(false, Ordering::SeqCst);
    centre.purge(exam).await;
    if is_restarted {
        running.kill().await;
        clock.store(now, Ordering::SeqCst);
        running = Running::start_on(with_clock(&disk, &cable, &clock), &cable, "").await;
    }
    sleep(Duration::from_secs(3600)).await;
    assert!(running.gateway.store().instance(uid.as_str()).await.expect("a look").is_some());
    cable.up.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(600)).await;
    assert!(centre.known(&study).is_none(), "it does not come back");
    assert_eq!(running.gateway.schedule().counts(), Counts::default());
    assert!(running.gateway.store().instance(uid.as_str()).await.expect("a look").is_none());
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_here_before_a_purge_goes_though_the_clock_was_ahead() {
    is_purged_meanwhile(false).await;
    is_purged_meanwhile(true).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_purged_does_not_come_back_with_what_came_later_of_its_study() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (phantom, study) = (phantom(2), phantom(2).study_uid().to_string());
    let (uid, dataset) = phantom.slice(0);
    running.take(&uid, dataset).await.expect("taken");
    running.is_through(1).await;
    let exam = centre.published(&study).await;
    running.kill().await;
    centre.purge(exam).await;
    let (later, data_set) = offer_of(&phantom, 1);
    assert_eq!(offer(&cable, Offer { here_by: u64::MAX, ..later.clone() }, &data_set).await, Reply::Stored(Kept::New));
    assert_ne!(centre.published(&study).await, exam);
    let running = Running::start(&disk, &cable, 1 << 30).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(centre.instances(&study).await, [later.sop_instance.to_string()]);
    assert_eq!(running.gateway.schedule().counts(), Counts::default());
    running.kill().await;
    centre.end().await;
}

/// An image comes again after its purge, of which the gateway cannot know, and goes to the mesh again.
async fn comes_again(is_restarted: bool) {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let mut running = Running::start(&disk, &cable, 1 << 30).await;
    let (phantom, study) = (phantom(1), phantom(1).study_uid().to_string());
    let (uid, dataset) = phantom.slice(0);
    running.take(&uid, dataset.clone()).await.expect("taken");
    running.is_through(1).await;
    let exam = centre.published(&study).await;
    let written = running.gateway.store().stats().await.expect("stats").bytes;
    cable.up.store(false, Ordering::SeqCst);
    centre.purge(exam).await;
    sleep(Duration::from_secs(60)).await;
    assert!(centre.known(&study).is_none());
    running.take(&uid, dataset).await.expect("taken again");
    assert_eq!(running.gateway.store().stats().await.expect("stats").bytes, written, "its bytes are not written twice");
    if is_restarted {
        running.kill().await;
        running = Running::start(&disk, &cable, 1 << 30).await;
    }
    cable.up.store(true, Ordering::SeqCst);
    assert_ne!(centre.published(&study).await, exam);
    assert_eq!(centre.instances(&study).await, [uid.to_string()]);
    sleep(Duration::from_secs(600)).await;
    assert!(running.gateway.store().instance(uid.as_str()).await.expect("a look").is_some());
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_after_its_purge_goes_to_the_mesh_again() {
    comes_again(false).await;
    comes_again(true).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_while_it_is_judged_is_not_dropped_for_what_was_said_before() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (gateway, store) = (&running.gateway, running.gateway.store());
    let (uid, dataset) = phantom(1).slice(0);
    running.take(&uid, dataset.clone()).await.expect("taken");
    running.is_through(1).await;
    sleep(Duration::from_secs(5)).await;
    let key = key(&uid, &dataset);
    let came = store.instance(uid.as_str()).await.expect("a look").expect("listed").received_at;
    // Judged, then again here, and the schedule does not know yet.
    assert!(gateway.schedule().purged(&key, came));
    running.take(&uid, dataset).await.expect("taken again");
    assert!(store.instance(uid.as_str()).await.expect("a look").expect("listed").received_at > came);
    gateway.drop_instances(std::slice::from_ref(&key)).await.expect("no error");
    assert!(store.instance(uid.as_str()).await.expect("a look").is_some());
    // … and once it does, what was said of the first is as good as nothing.
    sleep(Duration::from_secs(1)).await;
    assert!(!gateway.schedule().purged(&key, came));
    assert_eq!(gateway.schedule().counts().rejected, 0);
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_door_tells_what_is_left_over_from_what_may_have_come_as_late_as_the_purge() {
    let centre = centre().await;
    let (cable, phantom) = (Cable::to(&centre), phantom(1));
    let (first, data_set) = offer_of(&phantom, 0);
    assert_eq!(offer(&cable, first.clone(), &data_set).await, Reply::Stored(Kept::New));
    centre.purge(centre.published(first.study.as_str()).await).await;
    sleep(Duration::from_secs(60)).await;
    let purged_at =
        centre.site.node().read(|view| view.purged_at(first.study.as_str())).expect("read").expect("purged").0;
    let Ok(Reply::Time { at }) = ask::ask(&*cable, 1, &Ask::Time).await else { panic!("it knows the time") };
    assert!(at >= purged_at);
    let here_by = |here_by| Offer { here_by, ..first.clone() };
    assert_eq!(offer(&cable, here_by(purged_at - 1), &data_set).await, Reply::Purged);
    assert_eq!(offer(&cable, here_by(purged_at), &data_set).await, Reply::Stored(Kept::New));
    centre.end().await;
}
