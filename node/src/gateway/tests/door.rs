//! A centre's door, asked as a gateway asks.

use super::*;

/// One offer on a stream of its own, with whatever is sent behind it.
pub(super) async fn offer(cable: &Cable, offer: Offer, data_set: &[u8]) -> Reply {
    let mut line = ask::open(cable, 1, &Ask::Offer(offer)).await.expect("a stream");
    match ask::answer(&mut line.reader).await.expect("an answer") {
        Reply::Send => {}
        reply => return reply,
    }
    // A door that has seen enough may have closed.
    let _ = line.writer.write_all(data_set).await;
    let _ = line.writer.shutdown().await;
    ask::answer(&mut line.reader).await.expect("an answer")
}

pub(super) fn offer_of(phantom: &CtPhantom, n: u32) -> (Offer, Bytes) {
    let (uid, data_set) = phantom.slice(n);
    let text = |uid: &str| maillage_consensus::ids::UidText::fitted(uid);
    let offer = Offer {
        study: text(phantom.study_uid().as_str()),
        sop_instance: text(uid.as_str()),
        sop_class: text(CtPhantom::SOP_CLASS.as_str()),
        transfer_syntax: text(CtPhantom::TRANSFER_SYNTAX.as_str()),
        dataset: *blake3::hash(&data_set).as_bytes(),
        bytes: data_set.len() as u64,
        source: Name::fitted("CT1"),
        here_by: 5,
        foreign_preamble: false,
    };
    (offer, data_set)
}

#[tokio::test(start_paused = true)]
async fn a_door_takes_what_is_right_once_and_says_what_is_wrong_with_the_rest() {
    let centre = centre().await;
    let cable = Cable::to(&centre);
    let phantom = phantom(3);
    let (first, data_set) = offer_of(&phantom, 0);
    assert_eq!(offer(&cable, first.clone(), &data_set).await, Reply::Stored(Kept::New));
    assert_eq!(offer(&cable, first.clone(), &data_set).await, Reply::Have, "and is not sent twice");
    // Other bytes than were offered: nothing is kept of them.
    let (second, data_set) = offer_of(&phantom, 1);
    let mut wrong = data_set.to_vec();
    *wrong.last_mut().expect("a byte") ^= 1;
    assert!(matches!(offer(&cable, second.clone(), &wrong).await, Reply::NotNow { .. }));
    assert_eq!(centre.instances(phantom.study_uid().as_str()).await.len(), 1);
    assert_eq!(offer(&cable, second, &data_set).await, Reply::Stored(Kept::New));
    // Another patient under the study's UID is set apart for a person, for good.
    let (mut third, data_set) = offer_of(&phantom, 2);
    let mut data_set = data_set.to_vec();
    let id = phantom.patient_id.as_bytes();
    let at = data_set.windows(id.len()).position(|window| window == id).expect("the patient's id");
    data_set[at] ^= 1;
    third.dataset = *blake3::hash(&data_set).as_bytes();
    assert_eq!(offer(&cable, third, &data_set).await, Reply::Rejected { reason: Name::fitted("other-patient") });
    let huge = Offer { bytes: u64::MAX, ..first.clone() };
    assert_eq!(offer(&cable, huge, b"").await, Reply::Rejected { reason: Name::fitted("too-large") });
    // One that stops half-way is given up, and another is served meanwhile.
    let (half, _) = offer_of(&phantom, 2);
    let mut line = ask::open(&*cable, 1, &Ask::Offer(half)).await.expect("a stream");
    assert_eq!(ask::answer(&mut line.reader).await.expect("an answer"), Reply::Send);
    line.writer.write_all(&data_set[..100]).await.expect("sent");
    assert_eq!(offer(&cable, first.clone(), b"").await, Reply::Have);
    assert!(ask::answer(&mut line.reader).await.is_err(), "it is closed without an answer");

    // One zone has it, which is not safe; and garbage closes a stream, not the door.
    let item = Item {
        study: first.study.clone(),
        sop_instance: first.sop_instance.clone(),
        dataset: first.dataset,
        here_by: 5,
    };
    let says = ask::ask(&*cable, 1, &Ask::Safe { items: vec![item] }).await.expect("an answer");
    assert_eq!(says, Reply::Safety(vec![Safety::Pending]));
    let mut line = cable.open(1).await.expect("a stream");
    let garbage = wire::encode(&Reply::Done).expect("encodes");
    frame::write(&mut line.writer, &[9, 9], 100).await.expect("written");
    frame::write(&mut line.writer, &garbage, 100).await.expect("written");
    assert!(ask::answer(&mut line.reader).await.is_err());
    assert_eq!(offer(&cable, first, b"").await, Reply::Have);
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_centre_whose_store_has_stopped_writing_takes_nothing_and_claims_to_have_nothing() {
    let centre = centre().await;
    let (cable, phantom) = (Cable::to(&centre), phantom(2));
    let (first, data_set) = offer_of(&phantom, 0);
    assert_eq!(offer(&cable, first.clone(), &data_set).await, Reply::Stored(Kept::New));
    assert_eq!(offer(&cable, first.clone(), b"").await, Reply::Have);
    // What is written to a file that has no name any more is not durable. What is there can be read on.
    let disk = Disk::real(centre.directory.path());
    for name in disk.list("packs").await.expect("a list") {
        // Directories stay.
        let _ = disk.remove(&format!("packs/{name}")).await;
    }
    let (second, data_set) = offer_of(&phantom, 1);
    assert!(matches!(offer(&cable, second.clone(), &data_set).await, Reply::NotNow { .. }));
    assert!(centre.site.store().has_stopped_writing());
    for offered in [first, second] {
        assert!(matches!(offer(&cable, offered, b"").await, Reply::NotNow { .. }));
    }
    centre.end().await;
}
