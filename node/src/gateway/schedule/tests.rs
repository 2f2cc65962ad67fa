//! The schedule by hand, and under random failures of centres in virtual time.

use proptest::prelude::{Strategy, any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::choice::{PENALTY, STEADY};
use super::safety::{ASK_AGAIN, RESEND, RESEND_PRESENT};
use super::*;

fn key(n: u64) -> Key {
    Key { sop_instance: format!("1.{n}"), dataset: Hash([1; 32]) }
}

fn spooled(bytes: u64) -> Spooled {
    Spooled {
        study: "1.2".to_owned(),
        series: "1.3".to_owned(),
        manifest: Hash([2; 32]),
        bytes,
        received_at: UnixMillis(5),
        source: "CT1".to_owned(),
        apart: false,
    }
}

/// A schedule with so many small instances, and these centres up.
fn schedule(instances: u64, centres: &[u64], now: Instant) -> Schedule {
    let mut schedule = Schedule::default();
    for n in 0..instances {
        assert!(schedule.add(key(n), spooled(1), now));
    }
    for centre in centres {
        schedule.up(*centre, true, now);
    }
    schedule
}

#[tokio::test(start_paused = true)]
async fn several_go_at_once_first_come_first_sent_to_one_centre() {
    let now = Instant::now();
    let mut schedule = schedule(20, &[3, 7], now);
    assert!(!schedule.add(key(0), spooled(1), now), "known");
    let sent: Vec<_> = std::iter::from_fn(|| schedule.next(now)).collect();
    assert_eq!(sent, (0..8).map(|n| (key(n), 3)).collect::<Vec<_>>());
    schedule.stored(&key(5), 3, now);
    assert_eq!(schedule.next(now), Some((key(8), 3)));
    assert_eq!(schedule.next(now), None);
    let counts = schedule.counts();
    assert_eq!((counts.waiting, counts.in_flight, counts.pushed), (11, 8, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_larger_than_the_memory_for_all_goes_alone() {
    let now = Instant::now();
    let mut schedule = schedule(0, &[3], now);
    for (n, bytes) in [(0, 1 << 20), (1, 500 << 20), (2, 1)] {
        schedule.add(key(n), spooled(bytes), now);
    }
    assert_eq!(schedule.next(now), Some((key(0), 3)));
    assert_eq!(schedule.next(now), None, "the large one waits until it is alone");
    schedule.stored(&key(0), 3, now);
    assert_eq!(schedule.next(now), Some((key(1), 3)));
    assert_eq!(schedule.next(now), None);
}

#[tokio::test(start_paused = true)]
async fn a_centre_that_is_lost_is_left_at_once_and_nothing_waits_for_it() {
    let now = Instant::now();
    let mut schedule = schedule(9, &[3, 7], now);
    let first: Vec<_> = std::iter::from_fn(|| schedule.next(now)).collect();
    for (key, centre) in &first {
        schedule.lost(key, *centre, now);
    }
    let again: Vec<_> = std::iter::from_fn(|| schedule.next(now)).collect();
    assert_eq!(again, (0..8).map(|n| (key(n), 7)).collect::<Vec<_>>());
    assert_eq!(schedule.current(), Some(7));
}

#[tokio::test(start_paused = true)]
async fn the_only_centre_is_tried_again_after_a_while() {
    let now = Instant::now();
    let mut schedule = schedule(1, &[3], now);
    let (key, centre) = schedule.next(now).expect("sent");
    schedule.lost(&key, centre, now);
    assert_eq!(schedule.next(now), None);
    schedule.up(3, true, now);
    assert_eq!(schedule.next(now), None, "it answers a greeting, and has just failed");
    let wake = schedule.wake_at(now).expect("it is known when");
    assert_eq!(wake, now + PENALTY);
    assert_eq!(schedule.next(wake), Some((key, 3)));
}

#[tokio::test(start_paused = true)]
async fn home_is_preferred_and_gone_back_to_once_it_is_steady() {
    let now = Instant::now();
    let mut schedule = schedule(100, &[3, 7], now);
    schedule.set_home(Some(7));
    let (first, centre) = schedule.next(now).expect("sent");
    assert_eq!(centre, 7);
    schedule.stored(&first, 7, now);
    schedule.down(7, now);
    let (second, centre) = schedule.next(now).expect("sent");
    assert_eq!(centre, 3);
    schedule.stored(&second, 3, now);
    schedule.up(7, true, now);
    assert_eq!(schedule.next(now).expect("sent").1, 3, "it has only just come back");
    assert_eq!(schedule.next(now + STEADY).expect("sent").1, 7);
}

#[tokio::test(start_paused = true)]
async fn images_go_to_named_centres_alone_and_wait_while_none_of_them_answers() {
    let now = Instant::now();
    let mut schedule = schedule(3, &[3, 7, 9], now);
    schedule.set_home(Some(3));
    schedule.set_only(Some(BTreeSet::from([7, 9])));
    for centre in [7, 9] {
        let sent: Vec<_> = std::iter::from_fn(|| schedule.next(now)).collect();
        assert_eq!(sent, (0..3).map(|n| (key(n), centre)).collect::<Vec<_>>());
        sent.iter().for_each(|(key, centre)| schedule.lost(key, *centre, now));
    }
    let later = now + Duration::from_secs(3600);
    assert_eq!((schedule.next(now), schedule.next(later)), (None, None), "it is home, and answers, all the same");
    assert_eq!((schedule.answering(), schedule.taker_count(), schedule.current()), (vec![3], 0, None));

    // What a centre took that is gone since waits for another that is named, and is asked of meanwhile.
    schedule.up(9, true, later);
    assert_eq!(schedule.next(later), Some((key(0), 9)));
    schedule.stored(&key(0), 9, later);
    schedule.down(9, later);
    let due = later + RESEND;
    assert_eq!((schedule.resend(due), schedule.to_ask(due, 9)), (0, vec![(key(0), 9)]));
    schedule.up(7, true, due);
    assert_eq!((schedule.resend(due), schedule.next(due).map(|(_, centre)| centre)), (1, Some(7)));

    // A centre that has another name now.
    schedule.set_only(Some(BTreeSet::from([9])));
    assert_eq!((schedule.next(due + STEADY), schedule.current()), (None, None));
    schedule.set_only(None);
    assert_eq!(schedule.next(due + STEADY).map(|(_, centre)| centre), Some(3), "any, and so home");
}

#[tokio::test(start_paused = true)]
async fn a_centre_without_a_quorum_is_the_last_choice_and_still_one() {
    let now = Instant::now();
    let mut schedule = schedule(2, &[], now);
    schedule.set_home(Some(3));
    schedule.up(3, false, now);
    schedule.up(7, true, now);
    assert_eq!(schedule.answering(), [7, 3]);
    assert_eq!(schedule.next(now).expect("sent").1, 7);
    schedule.down(7, now);
    assert_eq!(schedule.next(now).expect("sent").1, 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_now_or_ever_holds_up_no_other() {
    let now = Instant::now();
    let mut schedule = schedule(3, &[3], now);
    let sent: Vec<_> = std::iter::from_fn(|| schedule.next(now)).collect();
    assert_eq!(sent.len(), 3);
    schedule.rejected(&key(0), Some(3), "other-patient");
    schedule.not_now(&key(1), 3, now);
    schedule.stored(&key(2), 3, now);
    schedule.add(key(9), spooled(1), now);
    assert_eq!(schedule.next(now), Some((key(9), 3)), "the next goes at once");
    assert_eq!(schedule.next(now), None);
    assert_eq!(schedule.next(now + AGAIN), Some((key(1), 3)));
    let rejects = schedule.rejects(10);
    assert_eq!(rejects.len(), 1);
    assert_eq!((rejects[0].0.clone(), rejects[0].2.as_str()), (key(0), "other-patient"));
    assert_eq!(schedule.retry(now), 1);
    assert_eq!(schedule.next(now), Some((key(0), 3)));
}

#[tokio::test(start_paused = true)]
async fn a_centre_that_is_no_member_any_more_is_waited_for_by_nobody() {
    let now = Instant::now();
    let mut schedule = schedule(2, &[3, 7], now);
    assert_eq!(schedule.next(now), Some((key(0), 3)));
    schedule.stored(&key(0), 3, now);
    assert_eq!(schedule.next(now), Some((key(1), 3)));
    schedule.gone(3);
    // What was under way to it comes to nothing, and does not bring it back.
    schedule.lost(&key(1), 3, now);
    assert_eq!((schedule.centre_count(), schedule.answering(), schedule.current()), (1, vec![7], None));
    assert_eq!(schedule.next(now), Some((key(1), 7)));
    assert_eq!(schedule.resend(now + RESEND), 1, "nor is what it took waited for");
    assert_eq!(schedule.next(now + RESEND), Some((key(0), 7)));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_here_just_now_waits_and_is_held_against_no_centre() {
    let now = Instant::now();
    let mut schedule = schedule(9, &[3], now);
    let sent: Vec<_> = std::iter::from_fn(|| schedule.next(now)).collect();
    assert_eq!(sent.len(), 8);
    sent.iter().for_each(|(key, _)| schedule.unread(key, now));
    assert_eq!(schedule.next(now), Some((key(8), 3)), "the next goes at once");
    assert_eq!(schedule.next(now), None);
    assert_eq!(schedule.next(now + AGAIN), Some((key(0), 3)));
    assert_eq!(schedule.counts().rejected, 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_centre_took_that_is_gone_since_is_sent_to_another_unless_it_is_safe() {
    let now = Instant::now();
    let mut schedule = schedule(2, &[3, 7], now);
    while let Some((key, centre)) = schedule.next(now) {
        schedule.stored(&key, centre, now);
    }
    schedule.safe(&key(1), now);
    assert_eq!(schedule.resend(now + RESEND), 0, "the centre is there");
    schedule.down(3, now);
    assert_eq!(schedule.resend(now + RESEND - Duration::from_millis(1)), 0);
    assert_eq!(schedule.resend(now + RESEND), 1);
    assert_eq!(schedule.next(now + RESEND), Some((key(0), 7)));
    assert_eq!(schedule.next(now + RESEND), None);
}

#[tokio::test(start_paused = true)]
async fn what_a_centre_has_had_for_very_long_and_not_made_safe_goes_to_another_and_nothing_else_does() {
    let start = Instant::now();
    for others in [&[7][..], &[]] {
        let mut schedule = schedule(1, &[3], start);
        schedule.set_home(Some(3));
        others.iter().for_each(|other| schedule.up(*other, true, start));
        assert_eq!(schedule.next(start), Some((key(0), 3)));
        schedule.stored(&key(0), 3, start);
        assert_eq!(schedule.resend(start + RESEND_PRESENT - Duration::from_millis(1)), 0);
        let now = start + RESEND_PRESENT;
        assert_eq!(schedule.resend(now), 1);
        schedule.add(key(1), spooled(1), now);
        let second = others.first().copied().unwrap_or(3);
        assert_eq!(schedule.next(now), Some((key(0), second)));
        assert_eq!(schedule.next(now), Some((key(1), 3)), "the others go where they went");
        assert_eq!(schedule.current(), Some(3));
        // The other cannot take it just now, either.
        schedule.not_now(&key(0), second, now);
        assert_eq!(schedule.next(now + AGAIN), Some((key(0), second)));
        schedule.stored(&key(0), second, now + AGAIN);
        assert_eq!(schedule.resend(now + AGAIN + RESEND_PRESENT), 1, "and so on");
        assert_eq!(schedule.next(now + AGAIN + RESEND_PRESENT), Some((key(0), 3)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_last_process_left_is_asked_of_first_and_sent_if_it_is_not_safe_or_nobody_can_say() {
    let now = Instant::now();
    let mut schedule = schedule(0, &[3], now);
    for n in 0..3 {
        schedule.add_left(key(n), spooled(1), now);
    }
    assert_eq!((schedule.counts().waiting, schedule.next(now)), (3, None));
    assert_eq!(schedule.to_ask(now, 10).len(), 3);
    schedule.safe(&key(0), now);
    schedule.not_safe(&key(1), now);
    assert_eq!(schedule.next(now), Some((key(1), 3)));
    schedule.judged(now + RESEND / 2);
    assert_eq!(schedule.resend(now + RESEND), 0, "it is being asked");
    assert_eq!(schedule.resend(now + RESEND / 2 + RESEND), 1, "nobody says anything of it");
    assert_eq!(schedule.next(now + RESEND * 2), Some((key(2), 3)));
}

#[tokio::test(start_paused = true)]
async fn only_what_is_safe_is_dropped_after_its_time_or_for_want_of_room() {
    let now = Instant::now();
    let mut schedule = schedule(4, &[3], now);
    while let Some((key, centre)) = schedule.next(now) {
        schedule.stored(&key, centre, now);
    }
    let keep = Duration::from_secs(60);
    assert_eq!(schedule.to_drop(now + keep * 9, keep, 0, 9), Vec::new(), "nothing is known to be safe");
    schedule.safe(&key(2), now);
    schedule.safe(&key(0), now + keep / 2);
    assert_eq!(schedule.to_drop(now + keep / 2, keep, 100, 9), Vec::new());
    assert_eq!(schedule.to_drop(now + keep, keep, 100, 9), [key(2)]);
    assert_eq!(schedule.to_drop(now + keep / 2, keep, 3, 9), [key(2)], "one byte too many");
    assert_eq!(schedule.to_drop(now + keep / 2, keep, 0, 9), [key(2), key(0)], "and never another");
    schedule.not_safe(&key(2), now);
    assert_eq!(schedule.next(now), Some((key(2), 3)), "safe no more: the mesh gets it again");
}

#[tokio::test(start_paused = true)]
async fn what_is_contested_stays_and_holds_up_none_of_the_others() {
    let now = Instant::now();
    let mut schedule = schedule(4, &[3], now);
    while let Some((key, centre)) = schedule.next(now) {
        schedule.stored(&key, centre, now);
        schedule.safe(&key, now);
    }
    let to_drop = |schedule: &Schedule| schedule.to_drop(now, Duration::ZERO, 0, 2);
    assert_eq!(to_drop(&schedule), [key(0), key(1)]);
    let second = Key { dataset: Hash([7; 32]), ..key(0) };
    assert!(schedule.add(second.clone(), Spooled { apart: true, ..spooled(1) }, now));
    schedule.contested(&key(0));
    schedule.contested(&key(1));
    assert_eq!(to_drop(&schedule), [key(2), key(3)], "the next ones go in their place");
    assert_eq!(schedule.remove(&second).map(|spooled| spooled.apart), Some(true));
    assert_eq!(to_drop(&schedule), [key(0), key(2)], "what contested it is gone");
}

#[tokio::test(start_paused = true)]
async fn of_what_is_safe_or_rejected_it_is_asked_each_hour_whether_it_was_purged() {
    let now = Instant::now();
    let mut schedule = schedule(3, &[3], now);
    while let Some((key, centre)) = schedule.next(now) {
        schedule.stored(&key, centre, now);
    }
    schedule.safe(&key(0), now);
    schedule.add(key(3), spooled(1), now);
    assert_eq!(schedule.next(now), Some((key(3), 3)));
    schedule.rejected(&key(3), Some(3), "uid-conflict");
    assert_eq!(schedule.to_ask_again(now, 9), [key(3)], "nobody was asked of it");
    schedule.asked_again(&key(3), now);
    let soon = now + ASK_AGAIN;
    assert_eq!(schedule.to_ask_again(soon - Duration::from_millis(1), 9), Vec::new());
    assert_eq!(schedule.to_ask_again(soon, 9), [key(0), key(3)], "others are asked of sooner");
    assert_eq!(schedule.to_ask_again(soon, 1), [key(0)]);
    schedule.asked_again(&key(0), soon);
    assert_eq!(schedule.to_ask_again(soon, 9), [key(3)]);
    assert_eq!(schedule.to_ask_again(soon + ASK_AGAIN, 9), [key(0), key(3)]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_is_sent_again_wherever_it_stood() {
    let now = Instant::now();
    let mut schedule = schedule(5, &[3], now);
    for n in 0..4 {
        let (key, centre) = schedule.next(now).expect("one to send");
        if n < 3 {
            schedule.stored(&key, centre, now);
        }
    }
    schedule.safe(&key(0), now);
    assert!(schedule.purged(&key(1), UnixMillis(5)));
    let again = || Spooled { received_at: UnixMillis(9), ..spooled(1) };
    for n in 0..5 {
        assert_eq!(schedule.add(key(n), again(), now), n != 3, "{n}");
        assert!(!schedule.add(key(n), spooled(1), now), "what came before is known");
        assert_eq!(schedule.goes(&key(n)), None);
    }
    assert_eq!(schedule.latest(), Some(UnixMillis(9)));
    assert_eq!(schedule.get(&key(3)), Some((&again(), State::InFlight(3))), "it is under way");
    assert!(!schedule.purged(&key(3), UnixMillis(5)));
    schedule.came_again(&key(3), 3, now);
    let counts = schedule.counts();
    assert_eq!((counts.waiting, counts.bytes), (5, 5), "{counts:?}");
    let mut sent: Vec<_> = std::iter::from_fn(|| schedule.next(now)).map(|(key, _)| key).collect();
    sent.sort();
    assert_eq!(sent, (0..5).map(key).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_study_is_open_until_all_of_it_is_sent() {
    let now = Instant::now();
    let mut schedule = schedule(0, &[3], now);
    let of = |study: &str| Spooled { study: study.to_owned(), ..spooled(1) };
    for (n, study) in [(0, "1.2"), (1, "1.2"), (2, "1.4"), (3, "1.6")] {
        schedule.add(key(n), of(study), now);
    }
    let asked: BTreeSet<String> = ["1.2", "1.4", "1.9"].map(str::to_owned).into();
    for n in [0, 2, 1] {
        let open = schedule.open_of(&asked);
        assert_eq!(open.into_iter().collect::<Vec<_>>(), if n == 1 { vec!["1.2"] } else { vec!["1.2", "1.4"] });
        while let Some((_, centre)) = schedule.next(now) {
            assert_eq!(centre, 3);
        }
        schedule.stored(&key(n), 3, now);
    }
    assert_eq!(schedule.open_of(&asked), BTreeSet::new());
}

#[tokio::test(start_paused = true)]
async fn what_was_purged_is_not_sent_wherever_it_stood() {
    let now = Instant::now();
    let mut schedule = schedule(3, &[3], now);
    while let Some((key, centre)) = schedule.next(now) {
        schedule.stored(&key, centre, now);
    }
    schedule.safe(&key(0), now);
    for n in 3..5 {
        schedule.add(key(n), spooled(1), now);
    }
    assert_eq!(schedule.next(now), Some((key(3), 3)));
    for n in [0, 1, 3, 4] {
        assert!(schedule.purged(&key(n), UnixMillis(5)));
    }
    // An answer that comes late.
    schedule.stored(&key(3), 3, now);
    schedule.down(3, now);
    schedule.up(7, true, now + RESEND);
    assert_eq!(schedule.resend(now + RESEND), 1, "the one that was not purged");
    assert_eq!(schedule.next(now + RESEND), Some((key(2), 7)));
    assert_eq!(schedule.next(now + RESEND), None);
    let counts = schedule.counts();
    assert_eq!((counts.waiting, counts.in_flight, counts.rejected), (0, 1, 4));
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_less_and_less_often_whether_something_is_safe() {
    let start = Instant::now();
    let mut schedule = schedule(1, &[3], start);
    let (key, centre) = schedule.next(start).expect("sent");
    schedule.stored(&key, centre, start);
    let (mut now, mut asked) = (start, 0);
    while now < start + Duration::from_secs(3600) {
        now += Duration::from_millis(500);
        for (key, _) in schedule.to_ask(now, 10) {
            schedule.not_safe(&key, now);
            asked += 1;
        }
    }
    assert!((100..140).contains(&asked), "{asked}");
}

/// What happens to a schedule.
#[derive(Debug, Clone)]
enum Act {
    Add(u64),
    Up(u64, bool),
    Down(u64),
    Wait(u64),
    /// The n-th under way ends so.
    End(usize, End),
    Ask(bool),
    Resend,
    /// Instances may go to this centre alone, or to any.
    Only(Option<u64>),
}

#[derive(Debug, Clone, Copy)]
enum End {
    Stored,
    Rejected,
    NotNow,
    Lost,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let end = prop::sample::select(vec![End::Stored, End::Stored, End::Rejected, End::NotNow, End::Lost]);
    let act = proptest::prop_oneof![
        3 => (1..90_u64).prop_map(Act::Add),
        2 => (1..4_u64, any::<bool>()).prop_map(|(centre, in_touch)| Act::Up(centre, in_touch)),
        1 => (1..4_u64).prop_map(Act::Down),
        2 => (0..20_000_u64).prop_map(Act::Wait),
        6 => (0..8_usize, end).prop_map(|(n, end)| Act::End(n, end)),
        2 => any::<bool>().prop_map(Act::Ask),
        1 => proptest::prelude::Just(Act::Resend),
        1 => prop::option::of(1..4_u64).prop_map(Act::Only),
    ];
    prop::collection::vec(act, 1..200)
}

proptest! {
    #[test]
    fn nothing_is_lost_sent_twice_at_once_or_given_to_a_centre_that_is_down_or_left_out(acts in acts()) {
        let mut now = Duration::ZERO;
        let runtime = tokio::runtime::Builder::new_current_thread().start_paused(true).enable_time().build().expect("a runtime");
        let _inside = runtime.enter();
        let start = Instant::now();
        let (mut schedule, mut known, mut flying) = (Schedule::default(), BTreeSet::new(), Vec::new());
        let mut alone = None;
        for (n, act) in (0..).zip(acts) {
            let at = start + now;
            match act {
                Act::Add(mib) => {
                    schedule.add(key(n), spooled(mib << 20), at);
                    known.insert(key(n));
                }
                Act::Up(centre, in_touch) => schedule.up(centre, in_touch, at),
                Act::Down(centre) => schedule.down(centre, at),
                Act::Wait(ms) => now += Duration::from_millis(ms),
                Act::End(n, end) if !flying.is_empty() => {
                    let (key, centre): (Key, u64) = flying.remove(n % flying.len());
                    match end {
                        End::Stored => schedule.stored(&key, centre, at),
                        End::Rejected => schedule.rejected(&key, Some(centre), "why"),
                        End::NotNow => schedule.not_now(&key, centre, at),
                        End::Lost => schedule.lost(&key, centre, at),
                    }
                }
                Act::End(..) => {}
                Act::Ask(safe) => for (key, _) in schedule.to_ask(at, 5) {
                    if safe { schedule.safe(&key, at) } else { schedule.not_safe(&key, at) }
                },
                Act::Resend => {
                    schedule.resend(at);
                }
                Act::Only(centre) => {
                    alone = centre;
                    schedule.set_only(centre.map(|centre| BTreeSet::from([centre])));
                }
            }
            while let Some((key, centre)) = schedule.next(start + now) {
                prop_assert!(schedule.is_up(centre));
                prop_assert!(alone.is_none_or(|alone| alone == centre), "{centre} is left out");
                prop_assert!(!flying.iter().any(|(other, _)| *other == key), "{key:?} is under way already");
                flying.push((key, centre));
            }
            prop_assert!(flying.len() <= IN_FLIGHT_MAX);
            let bytes: u64 = flying.iter().filter_map(|(key, _)| Some(schedule.get(key)?.0.bytes)).sum();
            prop_assert!(flying.len() <= 1 || bytes <= IN_FLIGHT_BYTES);
        }
        let counts = schedule.counts();
        let all = counts.waiting + counts.in_flight + counts.pushed + counts.safe + counts.rejected;
        prop_assert_eq!(all, known.len() as u64, "every instance is somewhere");
        prop_assert_eq!(counts.in_flight, flying.len() as u64);
        // Whatever happened: with one centre that answers and takes all, all ends there.
        schedule.set_only(None);
        for (key, centre) in flying { schedule.lost(&key, centre, start + now); }
        for centre in 1..4 { schedule.down(centre, start + now); }
        schedule.up(9, true, start + now);
        for _ in 0..2_000 {
            now += Duration::from_secs(1);
            while let Some((key, centre)) = schedule.next(start + now) { schedule.stored(&key, centre, start + now); }
        }
        let counts = schedule.counts();
        prop_assert_eq!((counts.waiting, counts.in_flight), (0, 0));
    }
}
