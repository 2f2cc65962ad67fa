//! Storage commitment, and what holds up none.

use super::door::{offer, offer_of};
use super::*;

/// A gateway, and a centre that says so.
async fn beside_a_centre(disk: &Disk, says: fn(u64, &Ask) -> Option<Reply>) -> Running {
    Running::start_among(&["paris"], SiteId(9), host(disk, Arc::new(Scripted(says))), "").await
}

/// The same, with one image in its spool that the centre has.
async fn with_one_image(disk: &Disk, says: fn(u64, &Ask) -> Option<Reply>) -> (Running, Uid) {
    let running = beside_a_centre(disk, says).await;
    let (uid, dataset) = phantom(1).slice(0);
    running.take(&uid, dataset).await.expect("taken");
    running.is_through(1).await;
    (running, uid)
}

async fn rot_manifest(store: &Store, directory: &tempfile::TempDir, uid: &Uid) {
    let listed = store.instance(uid.as_str()).await.expect("index").expect("listed");
    let manifest = store.get_manifest(listed.entry.manifest).await.expect("read").expect("stored");
    rot(&Disk::real(directory.path()), &manifest).await;
}

/// A sender's request, by the last number of its UID.
async fn request_commitment(commitments: &Commitments, number: u32, sop_instance: &Uid) -> Uid {
    let uid = Uid::parse(&format!("1.9.{number}")).expect("a UID");
    let reference = Reference { sop_class: CtPhantom::SOP_CLASS, sop_instance: sop_instance.clone() };
    commitments.request(uid.clone(), Requester::Web, vec![reference]).await.expect("taken");
    uid
}

fn settled(commitments: &Commitments, uid: &Uid) -> Option<Vec<(u32, u16)>> {
    let Settled { failed, .. } = commitments.get(uid).expect("known").settled?;
    Some(failed)
}

#[tokio::test(start_paused = true)]
async fn a_damaged_image_in_the_spool_holds_up_no_request_for_commitment() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    let running = beside_a_centre(&disk, |_, asked| Some(has_all(asked, Safety::Safe))).await;
    let slices = [0, 1].map(|n| phantom(2).slice(n));
    for (uid, dataset) in &slices {
        running.take(uid, dataset.clone()).await.expect("taken");
    }
    running.is_through(2).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.gateway.schedule().counts().safe, 2);
    rot_manifest(running.gateway.store(), &directory, &slices[0].0).await;
    let commitments = running.gateway.commitments();
    let damaged = request_commitment(commitments, 1, &slices[0].0).await;
    let sound = request_commitment(commitments, 2, &slices[1].0).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(settled(commitments, &sound), Some(Vec::new()));
    assert_eq!(settled(commitments, &damaged), Some(Vec::new()), "the mesh has it");
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn other_bytes_under_its_uid_do_not_make_a_damaged_image_safe() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    // Something is safe under the UID, and not these bytes.
    let (running, uid) = with_one_image(&disk, |_, asked| Some(has_all(asked, Safety::Pending))).await;
    rot_manifest(running.gateway.store(), &directory, &uid).await;
    let commitments = running.gateway.commitments();
    let asked = request_commitment(commitments, 1, &uid).await;
    sleep(Duration::from_secs(610)).await;
    assert_eq!(settled(commitments, &asked), Some(vec![(0, reason::PROCESSING)]));
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_for_commitment_is_answered_in_time_though_the_wall_clock_stands() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    let (running, uid) = with_one_image(&disk, |_, asked| Some(has_all(asked, Safety::Pending))).await;
    let commitments = running.gateway.commitments();
    // The machine's own clock knows nothing of the time that passes here.
    let asked = request_commitment(commitments, 1, &uid).await;
    sleep(Duration::from_secs(590)).await;
    assert_eq!(settled(commitments, &asked), None);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(settled(commitments, &asked), Some(vec![(0, reason::PROCESSING)]));
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_image_at_a_centre_holds_up_no_other_request_for_commitment() {
    let centre = centre().await;
    let (cable, phantom) = (Cable::to(&centre), phantom(1));
    let (first, data_set) = offer_of(&phantom, 0);
    assert_eq!(offer(&cable, first, &data_set).await, Reply::Stored(Kept::New));
    let uid = phantom.slice(0).0;
    rot_manifest(centre.site.store(), &centre.directory, &uid).await;
    let commitments = centre.site.node().commitments();
    let damaged = request_commitment(commitments, 1, &uid).await;
    let unknown = request_commitment(commitments, 2, &Uid::parse("1.2.3").expect("a UID")).await;
    sleep(Duration::from_secs(60)).await;
    for uid in [unknown, damaged] {
        assert_eq!(settled(commitments, &uid), Some(vec![(0, reason::NO_SUCH_INSTANCE)]), "{uid}");
    }
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_centre_that_answers_something_else_holds_up_no_request_and_makes_nothing_known_to_be_nowhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let says = |centre: u64, asked: &Ask| match (centre, asked) {
        (1, Ask::Held { .. }) => Some(Reply::Held(Vec::new())),
        (2, Ask::Held { .. }) => Some(Reply::Done),
        (_, Ask::Held { references }) if references[0].sop_instance.as_str() == "1.2.4" => {
            Some(Reply::Held(vec![Held::No]))
        }
        _ => Some(has_all(asked, Safety::Safe)),
    };
    let host = host(&Disk::real(directory.path()), Arc::new(Scripted(says)));
    let running = Running::start_among(&["paris", "lyon", "brest"], SiteId(9), host, "").await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(running.gateway.schedule().answering(), [1, 2, 3]);
    let commitments = running.gateway.commitments();
    let uid = |text: &str| Uid::parse(text).expect("a UID");
    let unknown = request_commitment(commitments, 1, &uid("1.2.4")).await;
    let known = request_commitment(commitments, 2, &uid("1.2.3")).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(settled(commitments, &known), Some(Vec::new()));
    assert_eq!(settled(commitments, &unknown), None, "those that did not say may have it");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(settled(commitments, &unknown), Some(vec![(0, reason::PROCESSING)]));
    running.kill().await;
}
