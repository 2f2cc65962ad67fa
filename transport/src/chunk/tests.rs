//! The exchange of chunks over real connections.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blake3::Hash;
use bytes::Bytes;

use super::*;
use crate::testing::{Node, Shelf, acquaint, chunks, within};
use crate::{Alpn, Plane};

/// A holder of `shelf`, and a connection to it.
async fn holder(shelf: Arc<Shelf>, limits: Limits) -> (Node, Node, quinn::Connection) {
    let (asker, holder) = (Node::new(), Node::new());
    acquaint(&[&asker, &holder]);
    let incoming = holder.endpoint.accept(Alpn::Chunk);
    drop(maillage_host::spawn(serve(incoming, shelf, limits)));
    let connection = asker.endpoint.link(holder.peer(), Plane::Chunk).await.expect("link");
    (asker, holder, connection)
}

/// So many answers at once on a connection, by class.
fn of_places(answers: [usize; 4]) -> Limits {
    Limits { per_connection: answers.map(|answers| answers * (64 << 10)), ..Limits::default() }
}

fn hash(bytes: &Bytes) -> Hash {
    blake3::hash(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_every_length_come_as_they_are() {
    let lengths = [0, 1, 1199, 65_536, CHUNK_LEN_MAX - 1, CHUNK_LEN_MAX];
    let all: Vec<Bytes> = lengths.iter().flat_map(|len| chunks(1, *len)).collect();
    let (_a, _b, connection) = holder(Arc::new(Shelf::of(&all)), Limits::default()).await;
    for chunk in &all {
        let got = get(&connection, hash(chunk), CHUNK_LEN_MAX, Class::Reader).await.expect("get");
        assert!(got == chunk, "{} bytes differ", chunk.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_longer_than_a_chunk_comes_whole() {
    let all = chunks(1, 5 * CHUNK_LEN_MAX + 7);
    let (_a, _b, connection) = holder(Arc::new(Shelf::of(&all)), Limits::default()).await;
    let got = get(&connection, hash(&all[0]), OBJECT_LEN_MAX, Class::Copy).await.expect("get");
    assert!(got == all[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_told_apart() {
    let all = chunks(2, 1000);
    let (_a, _b, connection) = holder(Arc::new(Shelf::of(&all[..1])), Limits::default()).await;
    let absent = get(&connection, hash(&all[1]), 1000, Class::Reader).await;
    assert!(matches!(absent, Err(GetError::Absent)), "{absent:?}");
    let too_long = get(&connection, hash(&all[0]), 999, Class::Reader).await;
    assert!(matches!(too_long, Err(GetError::TooLong { len: 1000, max: 999 })), "{too_long:?}");
    let failing = Shelf { fails: true, ..Shelf::of(&all) };
    let (_a, _b, connection) = holder(Arc::new(failing), Limits::default()).await;
    let failed = get(&connection, hash(&all[0]), 1000, Class::Reader).await;
    assert!(matches!(failed, Err(GetError::Failed)), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_never_handed_out() {
    let all = [chunks(1, 1000), chunks(1, 3 * CHUNK_LEN_MAX)].concat();
    let lying = Shelf { lies: true, ..Shelf::of(&all) };
    let (_a, _b, connection) = holder(Arc::new(lying), Limits::default()).await;
    for chunk in &all {
        let got = get(&connection, hash(chunk), OBJECT_LEN_MAX, Class::Reader).await;
        assert!(matches!(got, Err(GetError::WrongBytes)), "{got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_answers_a_few_at_a_time_and_keeps_places_for_readers() {
    let all = chunks(40, 1000);
    let slow = Arc::new(Shelf { delay: Duration::from_millis(50), ..Shelf::of(&all) });
    let (_a, _b, connection) = holder(Arc::<Shelf>::clone(&slow), of_places([8, 4, 4, 2])).await;
    let copies = all.iter().map(|chunk| get(&connection, hash(chunk), 1000, Class::Copy));
    let copies = futures::future::join_all(copies);
    let reader = async {
        tokio::time::sleep(Duration::from_millis(75)).await;
        let started = tokio::time::Instant::now();
        get(&connection, hash(&all[0]), 1000, Class::Reader).await.expect("get");
        started.elapsed()
    };
    let (copies, waited) = within("copies", futures::future::join(copies, reader)).await;
    assert!(copies.iter().all(Result::is_ok));
    assert!(slow.reading_most.load(Ordering::SeqCst) <= 5, "four copies and one reader");
    // Ten rounds of copies take 500 ms; the reader is not behind them.
    assert!(waited < Duration::from_millis(250), "the reader waited {waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_class_has_its_places_whatever_those_below_it_want() {
    let all = chunks(40, 1000);
    let slow = Arc::new(Shelf { delay: Duration::from_millis(100), ..Shelf::of(&all) });
    let (_a, _b, connection) = holder(Arc::<Shelf>::clone(&slow), of_places([8, 6, 4, 2])).await;
    for (class, most) in [(Class::Repair, 2), (Class::Copy, 4), (Class::Prefetch, 6), (Class::Reader, 8)] {
        // Those below hold all that they may.
        let asked = all.iter().map(|chunk| get(&connection, hash(chunk), 1000, class));
        let asked = tokio::time::timeout(Duration::from_millis(50), futures::future::join_all(asked));
        assert!(asked.await.is_err());
        assert_eq!(slow.reading_most.swap(0, Ordering::SeqCst), most, "{}", class.as_str());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_rises_when_a_reader_wants_the_same() {
    let all = chunks(20, 1000);
    let slow = Arc::new(Shelf { delay: Duration::from_millis(100), ..Shelf::of(&all) });
    let (_a, _b, connection) = holder(slow, of_places([8, 1, 1, 1])).await;
    let (others, waits) = all.split_at(19);
    let others = futures::future::join_all(others.iter().map(|chunk| get(&connection, hash(chunk), 1000, Class::Copy)));
    let rising = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (class, now) = tokio::sync::watch::channel(Class::Repair);
        let started = tokio::time::Instant::now();
        let raise = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            class.send_replace(Class::Reader);
        };
        let got = get_while(&connection, hash(&waits[0]), 1000, now);
        let (got, ()) = within("a raised request", futures::future::join(got, raise)).await;
        got.expect("get");
        started.elapsed()
    };
    let started = tokio::time::Instant::now();
    let (others, waited) = futures::future::join(others, rising).await;
    assert!(others.iter().all(Result::is_ok));
    assert!(started.elapsed() > Duration::from_millis(1500), "one after another: {:?}", started.elapsed());
    assert!((150..500).contains(&waited.as_millis()), "waited {waited:?}, with nineteen before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_free_their_places() {
    let all = chunks(64, 1000);
    let slow = Arc::new(Shelf { delay: Duration::from_millis(100), ..Shelf::of(&all) });
    let (_a, _b, connection) = holder(Arc::<Shelf>::clone(&slow), of_places([8, 4, 4, 2])).await;
    let asked = all.iter().map(|chunk| get(&connection, hash(chunk), 1000, Class::Reader));
    let given_up = tokio::time::timeout(Duration::from_millis(50), futures::future::join_all(asked)).await;
    assert!(given_up.is_err());
    let started = tokio::time::Instant::now();
    within("get", get(&connection, hash(&all[0]), 1000, Class::Reader)).await.expect("get");
    assert!(started.elapsed() < Duration::from_millis(400), "waited {:?} behind the dead", started.elapsed());
    assert!(slow.reads.load(Ordering::SeqCst) < 30, "{} reads for nobody", slow.reads.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_requests_end_their_stream_and_nothing_else() {
    let all = chunks(1, 1000);
    let (_a, _b, connection) = holder(Arc::new(Shelf::of(&all)), Limits::default()).await;
    for garbage in [&b""[..], &[0xff; 38], &[1; 37], &[7; 100_000]] {
        let (mut send, mut recv) = connection.open_bi().await.expect("open");
        // The holder may stop the stream before all is written.
        let _ = send.write_all(garbage).await;
        let _ = send.finish();
        let answer = within("end of the stream", recv.read_to_end(1000)).await;
        assert!(answer.is_err() || answer.is_ok_and(|bytes| bytes.is_empty()));
    }
    get(&connection, hash(&all[0]), 1000, Class::Reader).await.expect("still serves");
}

/// A holder that answers with these bytes, whatever it is asked.
async fn answer(bytes: Vec<u8>) -> Result<Bytes, GetError> {
    let (asker, holder) = (Node::new(), Node::new());
    acquaint(&[&asker, &holder]);
    let mut incoming = holder.endpoint.accept(Alpn::Chunk);
    drop(maillage_host::spawn(async move {
        let connection = incoming.recv().await.expect("accepted").connection;
        let (mut send, mut recv) = connection.accept_bi().await.expect("accept");
        recv.read_to_end(100).await.expect("read");
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        connection.closed().await;
    }));
    let connection = asker.endpoint.link(holder.peer(), Plane::Chunk).await.expect("link");
    within("get", get(&connection, blake3::hash(b"abc"), 3, Class::Reader)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_out_of_form_are_refused() {
    assert_eq!(answer(b"\x01\0\0\0\0\x03abc".to_vec()).await.expect("well-formed"), "abc");
    for (what, bytes) in [
        ("nothing", b"".to_vec()),
        ("half a header", b"\x01\0\0".to_vec()),
        ("another version", b"\x02\0\0\0\0\x03abc".to_vec()),
        ("an unknown status", b"\x01\x09\0\0\0\x03abc".to_vec()),
        ("fewer bytes than announced", b"\x01\0\0\0\0\x03ab".to_vec()),
        ("more bytes than announced", b"\x01\0\0\0\0\x03abcd".to_vec()),
        ("a longer object than asked for", b"\x01\0\0\0\0\x04abcd".to_vec()),
        ("four gigabytes", [&b"\x01\0\xff\xff\xff\xff"[..], &[0; 5_000_000]].concat()),
        ("bytes without end", [&b"\x01\0\0\0\0\x03"[..], &[0; 5_000_000]].concat()),
    ] {
        let got = answer(bytes).await;
        assert!(matches!(got, Err(GetError::Malformed)), "{what}: {got:?}");
    }
}
