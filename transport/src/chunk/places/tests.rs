//! Who is let in when, by a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;

const ANSWER: Duration = Duration::from_millis(100);
const MOMENT: Duration = Duration::from_millis(1);

fn places(limits: Limits) -> Arc<Places> {
    let places = Arc::new(Places::new(limits));
    let kept = Arc::clone(&places);
    drop(maillage_host::spawn(async move { kept.keep_time().await }));
    places
}

/// What became of those who ask.
#[derive(Default)]
struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
    done: AtomicUsize,
}

impl Seen {
    /// The most at once, and how many were done, in a time from now on.
    async fn during(&self, time: Duration) -> (usize, usize) {
        self.most.store(self.now.load(Ordering::SeqCst), Ordering::SeqCst);
        self.done.store(0, Ordering::SeqCst);
        sleep(time).await;
        (self.most.load(Ordering::SeqCst), self.done.load(Ordering::SeqCst))
    }
}

/// Asks for one chunk after another, for ever.
fn ask(places: &Arc<Places>, connection: u64, class: Class, seen: &[&Arc<Seen>]) -> JoinHandle<()> {
    let places = Arc::clone(places);
    let seen: Vec<Arc<Seen>> = seen.iter().copied().map(Arc::clone).collect();
    maillage_host::spawn(async move {
        loop {
            let place = places.take(connection, class, CHUNK_LEN_MAX).await;
            for seen in &seen {
                let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
                seen.most.fetch_max(now, Ordering::SeqCst);
            }
            sleep(ANSWER).await;
            for seen in &seen {
                seen.now.fetch_sub(1, Ordering::SeqCst);
                seen.done.fetch_add(1, Ordering::SeqCst);
            }
            drop(place);
        }
    })
}

#[tokio::test(start_paused = true)]
async fn while_a_reader_is_served_on_one_connection_copies_on_others_have_their_small_share_in_all() {
    let places = places(Limits::default());
    let [all, copies, reader] = std::array::from_fn(|_| Arc::<Seen>::default());
    for n in 0..16 {
        drop(ask(&places, n % 2, Class::Copy, &[&copies, &all]));
    }
    let (most, done) = copies.during(ANSWER * 21 / 2).await;
    assert!(most == 6 && done >= 50, "three on each connection: {most}, {done}");
    let reading: Vec<_> = (0..4).map(|_| ask(&places, 2, Class::Reader, &[&reader, &all])).collect();
    assert!(all.during(ANSWER * 2).await.0 >= 10, "the reader does not wait for copies to end");
    let ((most, done), (readers, read)) = tokio::join!(copies.during(ANSWER * 400), reader.during(ANSWER * 400));
    assert_eq!(most, 1);
    assert!((8..=11).contains(&done), "one part in forty of the time: {done}");
    assert!(readers == 4 && read >= 4 * 380, "{read} by {readers}");
    // It ends, and after a moment, in which it may come back, they have all their places again.
    reading.iter().for_each(JoinHandle::abort);
    assert!(copies.during(ANSWER * 2).await.0 <= 1);
    sleep(ANSWER).await;
    let (most, done) = copies.during(ANSWER * 10).await;
    assert!(most == 6 && done >= 48, "{most}, {done}");
}

#[tokio::test(start_paused = true)]
async fn no_class_is_without_its_share_where_readers_always_fill_the_node_and_no_two_shares_are_taken_at_once() {
    const MIB: usize = 1 << 20;
    let places = places(Limits { total: [2 * MIB, MIB, MIB, MIB], ..Limits::default() });
    let [all, reader, prefetch, copy, repair] = std::array::from_fn(|_| Arc::<Seen>::default());
    for connection in 0..3 {
        for _ in 0..2 {
            drop(ask(&places, connection, Class::Reader, &[&reader]));
        }
    }
    sleep(ANSWER * 2).await;
    for (connection, class, seen) in
        [(1, Class::Prefetch, &prefetch), (4, Class::Copy, &copy), (5, Class::Repair, &repair)]
    {
        for _ in 0..3 {
            drop(ask(&places, connection, class, &[seen, &all]));
        }
    }
    let ((most, _), (_, prefetch), (_, copy), (_, repair)) = tokio::join!(
        all.during(ANSWER * 400),
        prefetch.during(ANSWER * 400),
        copy.during(ANSWER * 400),
        repair.during(ANSWER * 400),
    );
    assert_eq!(most, 1);
    for done in [prefetch, copy, repair] {
        assert!((8..=11).contains(&done), "{prefetch}, {copy}, {repair}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_class_stands_back_for_those_above_it() {
    for lower in 1..Class::ALL.len() {
        let places = places(Limits::default());
        let [above, below] = std::array::from_fn(|_| Arc::<Seen>::default());
        for n in 0..4 {
            drop(ask(&places, n, Class::ALL[lower - 1], &[&above]));
            drop(ask(&places, 4 + n, Class::ALL[lower], &[&below]));
        }
        let (most, done) = below.during(ANSWER * 100).await;
        assert!(most == 1 && (2..=4).contains(&done), "{done} of {:?}", Class::ALL[lower]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_that_took_long_is_not_the_last_for_long() {
    let places = places(Limits::default());
    drop(ask(&places, 0, Class::Reader, &[&Arc::default()]));
    let slow = places.take(1, Class::Copy, CHUNK_LEN_MAX).await;
    sleep(Duration::from_secs(30)).await;
    drop(slow);
    let next = timeout(Duration::from_secs(59), places.take(2, Class::Copy, CHUNK_LEN_MAX)).await;
    assert!(next.is_err(), "it has its share, no more");
    timeout(Duration::from_secs(2), places.take(2, Class::Copy, CHUNK_LEN_MAX)).await.expect("its share");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_frees_its_place_and_its_place_in_the_line() {
    let one = [CHUNK_LEN_MAX; Class::ALL.len()];
    let places = places(Limits { total: one, ..Limits::default() });
    let take = |connection| places.take(connection, Class::Reader, CHUNK_LEN_MAX);
    let first = take(0).await;
    // One leaves the line; one is let in and leaves before it has seen it.
    assert!(timeout(ANSWER, take(1)).await.is_err());
    let mut unseen = Box::pin(take(2));
    assert!(futures::poll!(unseen.as_mut()).is_pending());
    let mut last = Box::pin(take(3));
    assert!(futures::poll!(last.as_mut()).is_pending());
    drop(first);
    assert!(futures::poll!(last.as_mut()).is_pending(), "the other is first");
    drop(unseen);
    drop(timeout(MOMENT, last).await.expect("it is let in"));
    let line = places.lock();
    assert!(line.waiting.is_empty() && line.own.is_empty());
    assert_eq!((line.all, line.large), ([0; 4], [0; 4]));
}

#[tokio::test(start_paused = true)]
async fn one_connection_that_is_full_holds_up_no_other_and_nobody_is_overtaken_by_who_needs_less() {
    let one = [CHUNK_LEN_MAX; Class::ALL.len()];
    let places = places(Limits { per_connection: one, ..Limits::default() });
    let take = |connection, len| places.take(connection, Class::Reader, len);
    let first = take(0, CHUNK_LEN_MAX / 2).await;
    let mut long = Box::pin(take(0, CHUNK_LEN_MAX));
    assert!(futures::poll!(long.as_mut()).is_pending());
    assert!(timeout(ANSWER, take(0, 1)).await.is_err(), "it would fit, and is not its turn");
    drop(timeout(MOMENT, take(1, CHUNK_LEN_MAX)).await.expect("another connection"));
    drop(first);
    drop(timeout(MOMENT, long).await.expect("its turn"));
}

#[tokio::test(start_paused = true)]
async fn long_answers_of_lower_classes_leave_some_for_a_reader_and_hold_up_no_short_ones() {
    let places = places(Limits::default());
    let take = |class, len| places.take(0, class, len);
    let _copies = [take(Class::Copy, CHUNK_LEN_MAX + 1).await, take(Class::Copy, CHUNK_LEN_MAX + 1).await];
    assert!(timeout(ANSWER, take(Class::Copy, CHUNK_LEN_MAX + 1)).await.is_err());
    let mut waits = Box::pin(take(Class::Copy, CHUNK_LEN_MAX + 1));
    assert!(futures::poll!(waits.as_mut()).is_pending());
    drop(timeout(MOMENT, take(Class::Copy, CHUNK_LEN_MAX)).await.expect("a short one"));
    drop(timeout(MOMENT, take(Class::Reader, CHUNK_LEN_MAX + 1)).await.expect("a reader's"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_rises_is_a_readers_from_then_on() {
    let places = places(Limits::default());
    let copy = |connection| places.take(connection, Class::Copy, CHUNK_LEN_MAX);
    let mut risen = copy(0).await;
    let _beside = [copy(1).await, copy(2).await];
    risen.rise(Class::Reader);
    assert!(timeout(Duration::from_secs(10), copy(3)).await.is_err(), "two are there below it");
    drop(risen);
    timeout(Duration::from_secs(1), copy(3)).await.expect("it has gone");
}
