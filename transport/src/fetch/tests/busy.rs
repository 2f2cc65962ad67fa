//! Fetches of several classes over one busy path, measured by a paused clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::chunk::{self, Class, Limits};
use crate::fetch::{Arriving, Fetcher, Wanted};
use crate::testing::wire::{Path, Wire};
use crate::testing::{Node, Shelf, acquaint, chunks};
use crate::{Alpn, Identity, PeerId, Plane, Socket};

/// 40 Mb/s over 20 ms, with a queue of 100 ms.
const PATH: Path = Path { bytes_per_s: 5_000_000, delay: Duration::from_millis(20), queue_bytes: 500_000 };
const CHUNK: usize = 1 << 18;

/// One who asks and those who hold, each at the end of a path like that.
struct Busy {
    _nodes: Vec<Node>,
    fetcher: Fetcher,
    holders: Vec<PeerId>,
    shelves: Vec<Arc<Shelf>>,
}

impl Busy {
    fn new(shelves: Vec<Shelf>) -> Self {
        let wire = Wire::new(PATH);
        let node = || Node::at(Identity::generate(), Socket::Abstract(wire.socket()));
        let (asker, holders): (Node, Vec<Node>) = (node(), shelves.iter().map(|_| node()).collect());
        acquaint(&holders.iter().chain([&asker]).collect::<Vec<_>>());
        let shelves: Vec<Arc<Shelf>> = shelves.into_iter().map(Arc::new).collect();
        for (holder, shelf) in holders.iter().zip(&shelves) {
            let incoming = holder.endpoint.accept(Alpn::Chunk);
            drop(maillage_host::spawn(chunk::serve(incoming, Arc::<Shelf>::clone(shelf), Limits::default())));
        }
        let fetcher = Fetcher::new(Arc::new(asker.endpoint.clone()), mpsc::channel(100).0);
        let peers = holders.iter().map(Node::peer).collect();
        Self { _nodes: holders.into_iter().chain([asker]).collect(), fetcher, holders: peers, shelves }
    }

    fn fetch(&self, all: &[Bytes], class: Class) -> Arriving {
        self.fetcher.fetch(wanted(all), self.holders.clone(), class)
    }
}

fn wanted(all: &[Bytes]) -> Vec<Wanted> {
    all.iter().map(|bytes| Wanted { hash: blake3::hash(bytes), len: bytes.len() }).collect()
}

/// How long until all has come, and how much was had.
async fn taken(mut arriving: Arriving) -> (Duration, usize) {
    let (since, mut had) = (Instant::now(), 0);
    while let Some(arrived) = arriving.recv().await {
        had += usize::from(arrived.is_ok());
    }
    (since.elapsed(), had)
}

/// Seconds in which a reader gets its study, beside as much of other classes as comes.
async fn reading(others: &[Class]) -> (Duration, usize) {
    let all = chunks(440, CHUNK);
    let (study, rest) = all.split_at(40);
    let busy = Busy::new(vec![Shelf::of(&all), Shelf::of(&all)]);
    // The links are open, and the path is full of the lower classes, when the reader comes.
    taken(busy.fetch(&all[439..], Class::Reader)).await;
    let lower: Vec<_> = others
        .iter()
        .zip(rest.chunks(120))
        .map(|(class, part)| maillage_host::spawn(taken(busy.fetch(part, *class))))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (took, had) = taken(busy.fetch(study, Class::Reader)).await;
    assert_eq!(had, 40);
    let mut meanwhile = 0;
    for fetch in lower {
        meanwhile += usize::from(!fetch.is_finished());
        // What stood back is not lost.
        assert_eq!(fetch.await.expect("it runs to its end").1, 120);
    }
    (took, meanwhile)
}

#[tokio::test(start_paused = true)]
async fn no_lower_class_slows_a_reader() {
    let (alone, _) = reading(&[]).await;
    let (beside, meanwhile) = reading(&[Class::Prefetch, Class::Copy, Class::Repair]).await;
    assert_eq!(meanwhile, 3, "they had not ended before the reader came");
    let share = alone.as_secs_f64() / beside.as_secs_f64();
    assert!(share >= 0.9, "the reader took {beside:?} rather than {alone:?}: {share:.2}");
}

/// One who holds, whose line those who ask share.
fn shared(asking: usize, shelf: Shelf) -> (Node, Vec<Node>) {
    let wire = Wire::new(PATH);
    let holder = Node::at(Identity::generate(), Socket::Abstract(wire.socket_behind_a_line()));
    let askers: Vec<Node> =
        (0..asking).map(|_| Node::at(Identity::generate(), Socket::Abstract(wire.socket()))).collect();
    acquaint(&askers.iter().chain([&holder]).collect::<Vec<_>>());
    let incoming = holder.endpoint.accept(Alpn::Chunk);
    drop(maillage_host::spawn(chunk::serve(incoming, Arc::new(shelf), Limits::default())));
    (holder, askers)
}

/// The time in which a site gets a study from the only one that has it, while others make copies of others.
async fn reading_beside(copying: usize) -> Duration {
    let all = chunks(120 + copying * 160, CHUNK);
    let (study, rest) = all.split_at(120);
    let (holder, askers) = shared(1 + copying, Shelf::of(&all));
    let fetchers: Vec<Fetcher> =
        askers.iter().map(|asker| Fetcher::new(Arc::new(asker.endpoint.clone()), mpsc::channel(100).0)).collect();
    let fetch = |n: usize, all: &[Bytes], class: Class| fetchers[n].fetch(wanted(all), vec![holder.peer()], class);
    // Each has its link, and the line is full of copies, when the reader comes.
    taken(fetch(0, &all[119..120], Class::Reader)).await;
    let parts = rest.chunks(160).enumerate();
    let copies: Vec<_> = parts.map(|(n, part)| maillage_host::spawn(taken(fetch(1 + n, part, Class::Copy)))).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (took, had) = taken(fetch(0, study, Class::Reader)).await;
    assert_eq!(had, 120);
    for copy in copies {
        assert!(!copy.is_finished(), "they had not ended before the reader came, nor been let by");
        assert_eq!(copy.await.expect("it runs to its end").1, 160, "what stood back is not lost");
    }
    took
}

#[tokio::test(start_paused = true)]
async fn copies_of_other_sites_do_not_slow_a_reader() {
    let (alone, beside) = (reading_beside(0).await, reading_beside(2).await);
    let share = alone.as_secs_f64() / beside.as_secs_f64();
    assert!(share >= 0.8, "the reader took {beside:?} rather than {alone:?}: {share:.2}");
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_reader_elsewhere_is_not_given_up() {
    let all = chunks(4, 1000);
    let slow = Shelf { delay: Duration::from_millis(500), ..Shelf::of(&all) };
    let (holder, askers) = shared(2, slow);
    let link = async |n: usize| askers[n].endpoint.link(holder.peer(), Plane::Chunk).await.expect("a link");
    let (reader, copier) = (link(0).await, link(1).await);
    let get = |n: usize, from: &quinn::Connection, class: Class| {
        let (from, hash) = (from.clone(), blake3::hash(&all[n]));
        async move { chunk::get(&from, hash, 1000, class).await }
    };
    let since = Instant::now();
    let reading = async {
        while since.elapsed() < Duration::from_secs(60) {
            get(0, &reader, Class::Reader).await.expect("read");
        }
    };
    let copying = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let copies = [1, 2, 3].map(|n| get(n, &copier, Class::Copy));
        let copies = futures::future::join_all(copies).await;
        (copies.iter().filter(|copy| copy.is_ok()).count(), since.elapsed())
    };
    let ((), (had, after)) = futures::future::join(reading, copying).await;
    assert_eq!(had, 3);
    assert!((35..60).contains(&after.as_secs()), "each a share, while the reader was there: {after:?}");
}

#[tokio::test(start_paused = true)]
async fn three_holders_of_which_one_stalls() {
    let all = chunks(120, CHUNK);
    let stalls = Shelf { delay: Duration::from_secs(3600), ..Shelf::of(&all) };
    let busy = Busy::new(vec![Shelf::of(&all), stalls, Shelf::of(&all)]);
    let (took, had) = taken(busy.fetch(&all, Class::Reader)).await;
    assert_eq!(had, 120);
    // The path to the asker alone takes 6.3 s.
    assert!(took < Duration::from_millis(9500), "took {took:?}");
}

/// While there is more to ask for, no holder is idle, and nothing but a hedge asks another for what one hangs with.
#[tokio::test(start_paused = true)]
async fn what_a_holder_hangs_with_is_asked_of_another_long_before_the_rest_is_had() {
    let all = chunks(160, CHUNK);
    let hangs = Shelf { delay: Duration::from_secs(3600), ..Shelf::of(&all) };
    let busy = Busy::new(vec![hangs, Shelf::of(&all)]);
    let mut arriving = busy.fetch(&all, Class::Reader);
    let since = Instant::now();
    // What both are asked for at first: a reader opens the study with it.
    let mut first: Vec<_> = wanted(&all[..8]).into_iter().map(|wanted| wanted.hash).collect();
    while !first.is_empty() {
        let arrived = arriving.recv().await.expect("more").expect("had");
        first.retain(|hash| *hash != arrived.hash);
    }
    let took = since.elapsed();
    assert!(busy.shelves[0].reads.load(Ordering::SeqCst) >= 4, "the holder that hangs was asked for a part of it");
    assert!(took < Duration::from_millis(2500), "the first came after {took:?}");
    // The path takes 8.4 s for all of it.
    let rest = taken(arriving).await.0;
    assert!(took + rest > Duration::from_secs(8), "there was more to ask for: {rest:?}");
}

/// Of one who asks for the same object again after it was let go, a further request is right: so what the copy has
/// is kept to the end here, as by a store that is writing it, and each object is asked for exactly once.
#[tokio::test(start_paused = true)]
async fn what_two_fetches_want_is_asked_for_once_and_what_a_reader_waits_for_comes_first() {
    let all = chunks(100, CHUNK);
    let busy = Busy::new(vec![Shelf::of(&all)]);
    let (mut copy, (keep, mut kept)) = (busy.fetch(&all, Class::Copy), mpsc::unbounded_channel());
    let copying = maillage_host::spawn(async move {
        while let Some(arrived) = copy.recv().await {
            keep.send(arrived.expect("had")).expect("kept");
        }
    });
    let mut in_hand = vec![kept.recv().await.expect("one")];
    let reader = maillage_host::spawn(taken(busy.fetch(&all, Class::Reader)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Of one that is far from its turn.
    let since = Instant::now();
    let last = busy.fetcher.get(wanted(&all[99..])[0], busy.holders.clone()).await.expect("had");
    assert!(since.elapsed() < Duration::from_secs(1), "the very last came after {:?}", since.elapsed());
    assert_eq!(last.bytes, all[99]);
    copying.await.expect("copied");
    in_hand.extend(std::iter::from_fn(|| kept.try_recv().ok()));
    let (read, b) = reader.await.expect("read");
    assert_eq!((in_hand.len(), b), (100, 100), "{read:?}");
    assert_eq!(busy.shelves[0].reads.load(Ordering::SeqCst), 100, "each was asked for once");
}

#[tokio::test(start_paused = true)]
async fn what_is_still_in_hand_is_not_asked_for_again() {
    let all = chunks(2, CHUNK);
    let busy = Busy::new(vec![Shelf::of(&all)]);
    let mut pull = busy.fetch(&all, Class::Copy);
    // It has come, and is on its way to the disk.
    let kept = [pull.recv().await.expect("one").expect("had"), pull.recv().await.expect("two").expect("had")];
    assert!(pull.recv().await.is_none());
    drop(pull);
    for wanted in wanted(&all) {
        busy.fetcher.get(wanted, busy.holders.clone()).await.expect("had");
    }
    assert_eq!(busy.shelves[0].reads.load(Ordering::SeqCst), 2);
    drop(kept);
    tokio::time::sleep(Duration::from_millis(10)).await;
    busy.fetcher.get(wanted(&all)[0], busy.holders.clone()).await.expect("had");
    assert_eq!(busy.shelves[0].reads.load(Ordering::SeqCst), 3, "let go, it is nobody's");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_nobody_waits_for_ends_and_takes_nothing_from_others() {
    let all = chunks(200, CHUNK);
    let busy = Busy::new(vec![Shelf::of(&all)]);
    let mut first = busy.fetch(&all, Class::Reader);
    first.recv().await.expect("one").expect("had");
    let mut second = busy.fetch(&all[..40], Class::Reader);
    second.recv().await.expect("one").expect("had");
    drop(first);
    let (took, had) = taken(second).await;
    assert_eq!(had, 39);
    assert!(took < Duration::from_secs(4), "{took:?}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let reads = busy.shelves[0].reads.load(Ordering::SeqCst);
    assert!(reads < 120, "{reads} were asked for, for nobody");
}
