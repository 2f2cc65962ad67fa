//! The planner in random worlds: holders with a pace, a part of the objects, and faults, in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;

use crate::chunk::Class;
use crate::fetch::planner::{Assignment, Failure, HolderIndex, ItemIndex, Planner, Room, Settled, Ticket, Want};

const WINDOW: usize = 4;
/// By number of requests, not by bytes.
const ROOM: Room = Room { requests: WINDOW, bytes_min: u64::MAX, bytes_max: u64::MAX };
const READER: Want = Want { class: Class::Reader, is_awaited: false, len: 1 };

#[derive(Debug, Clone)]
struct HolderModel {
    /// Time for one answer.
    pace: Duration,
    /// Has the objects whose number, in bits, shares none with this mask.
    lacks: usize,
    kind: Kind,
    is_last_resort: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Honest,
    /// Sends wrong bytes.
    Liar,
    /// Fails every request from a time on.
    DiesAt(Duration),
    /// Never answers.
    Hangs,
}

impl HolderModel {
    fn has(&self, item: usize) -> bool {
        item & self.lacks == 0
    }
}

fn holders() -> impl Strategy<Value = Vec<HolderModel>> {
    let kind = prop_oneof![
        4 => Just(Kind::Honest),
        1 => Just(Kind::Liar),
        1 => (0u64..500).prop_map(|ms| Kind::DiesAt(Duration::from_millis(ms))),
        1 => Just(Kind::Hangs),
    ];
    let holder = (1u64..300, 0usize..8, kind, any::<bool>()).prop_map(|(pace, lacks, kind, is_last_resort)| {
        HolderModel { pace: Duration::from_millis(pace), lacks, kind, is_last_resort }
    });
    vec(holder, 0..6)
}

/// A run of the planner against the model, with what is checked on the way.
struct World {
    planner: Planner,
    holders: Vec<HolderModel>,
    now: Duration,
    /// Requests under way: who, what, and when the answer comes, if ever.
    under_way: BTreeMap<Ticket, (usize, usize, Option<Duration>)>,
    had: BTreeMap<usize, usize>,
    lost: Vec<usize>,
    requests: usize,
    copies_most: usize,
}

impl World {
    fn new(items: usize, holders: Vec<HolderModel>) -> Result<Self, TestCaseError> {
        let mut planner = Planner::new(ROOM);
        let known: Vec<HolderIndex> = holders.iter().map(|_| planner.add_holder()).collect();
        for (index, _) in known.iter().zip(&holders).filter(|(_, holder)| holder.is_last_resort) {
            planner.distrust(*index, Duration::MAX);
        }
        let mut lost = Vec::new();
        for number in 0..items {
            match planner.want(READER, &known) {
                Some(item) => prop_assert_eq!(index(item), number),
                None => lost.push(number),
            }
        }
        Ok(Self {
            planner,
            holders,
            now: Duration::ZERO,
            under_way: BTreeMap::new(),
            had: BTreeMap::new(),
            lost,
            requests: 0,
            copies_most: 0,
        })
    }

    fn run(&mut self) -> Result<(), TestCaseError> {
        // Far more turns than any fetch needs; a plan that starves ends here.
        for _ in 0..100_000 {
            self.assign()?;
            if self.planner.is_finished() {
                prop_assert_eq!(self.planner.in_flight(), 0);
                return Ok(());
            }
            let answer = self.under_way.iter().filter_map(|(t, (.., at))| at.map(|at| (at, *t))).min();
            let wake = self.planner.wake(self.now);
            match (answer, wake) {
                (Some((at, ticket)), wake) if wake.is_none_or(|wake| at <= wake) => {
                    self.now = self.now.max(at);
                    self.answer(ticket)?;
                }
                (_, Some(wake)) => self.now = wake,
                // Only hanging holders are left, each asked for what it can be asked for.
                (_, None) => return Ok(()),
            }
        }
        Err(TestCaseError::fail("the plan never ends"))
    }

    fn assign(&mut self) -> Result<(), TestCaseError> {
        while let Some(assignment) = self.planner.next(self.now) {
            let (holder, item) = (assignment.holder.0, index(assignment.item));
            self.requests += 1;
            let same = self.under_way.values().filter(|(h, i, _)| (*h, *i) == (holder, item)).count();
            prop_assert_eq!(same, 0, "one holder is asked for one thing once");
            let others = self.under_way.values().filter(|(_, i, _)| *i == item).count();
            prop_assert_eq!(assignment.is_second, others > 0);
            self.copies_most = self.copies_most.max(others + 1);
            let here = self.under_way.values().filter(|(h, ..)| *h == holder).count();
            prop_assert!(here < WINDOW, "never beyond the window");
            prop_assert!(!self.had.contains_key(&item) && !self.lost.contains(&item), "settled is settled");
            let Some(model) = self.holders.get(holder) else { return Err(TestCaseError::fail("no such holder")) };
            let at = (model.kind != Kind::Hangs).then_some(self.now + model.pace);
            self.under_way.insert(assignment.ticket, (holder, item, at));
        }
        Ok(())
    }

    fn answer(&mut self, ticket: Ticket) -> Result<(), TestCaseError> {
        let Some((holder, item, _)) = self.under_way.remove(&ticket) else { return Ok(()) };
        let Some(model) = self.holders.get(holder) else { return Ok(()) };
        let failure = match model.kind {
            Kind::DiesAt(at) if self.now >= at => Some(Failure::Unavailable),
            _ if !model.has(item) => Some(Failure::Absent),
            Kind::Liar => Some(Failure::Fault),
            _ => None,
        };
        let settled = match failure {
            Some(failure) => self.planner.on_failed(self.now, ticket, failure),
            None => self.planner.on_done(self.now, ticket),
        };
        self.settle(settled, failure.is_none().then_some((holder, item)))
    }

    fn settle(&mut self, settled: Settled, gave: Option<(usize, usize)>) -> Result<(), TestCaseError> {
        for ticket in &settled.cancelled {
            prop_assert!(self.under_way.remove(ticket).is_some(), "only what is under way is cancelled");
        }
        prop_assert_eq!(settled.had.map(index), gave.map(|(_, item)| item), "the first answer counts");
        if let Some((holder, item)) = gave {
            prop_assert!(self.had.insert(item, holder).is_none(), "had once");
        }
        for item in settled.lost {
            prop_assert!(!self.had.contains_key(&index(item)));
            self.lost.push(index(item));
        }
        Ok(())
    }
}

fn index(item: ItemIndex) -> usize {
    usize::try_from(item.0).unwrap_or(usize::MAX)
}

proptest! {
    #[test]
    fn everything_is_had_that_an_honest_holder_has_and_the_rest_is_lost(items in 0usize..60, holders in holders()) {
        let mut world = World::new(items, holders)?;
        world.run()?;
        let hangs = world.holders.iter().any(|h| h.kind == Kind::Hangs);
        for item in 0..items {
            let honest = world.holders.iter().any(|h| h.kind == Kind::Honest && h.has(item));
            if honest {
                prop_assert!(world.had.contains_key(&item), "object {} was to be had", item);
            } else if !hangs {
                prop_assert!(world.had.contains_key(&item) != world.lost.contains(&item), "object {} hangs", item);
            }
        }
    }

    #[test]
    fn the_same_world_is_planned_the_same_way(items in 0usize..40, holders in holders()) {
        let run = |holders: Vec<HolderModel>| -> Result<_, TestCaseError> {
            let mut world = World::new(items, holders)?;
            world.run()?;
            Ok((world.now, world.had, world.lost, world.requests))
        };
        prop_assert_eq!(run(holders.clone())?, run(holders)?);
    }

    #[test]
    fn equal_holders_share_the_work_and_little_is_asked_twice(items in 20usize..200, count in 1usize..5, pace in 1u64..300) {
        let holder = HolderModel { pace: Duration::from_millis(pace), lacks: 0, kind: Kind::Honest, is_last_resort: false };
        let mut world = World::new(items, vec![holder; count])?;
        world.run()?;
        let turns = u32::try_from(items.div_ceil(count * WINDOW)).unwrap_or(u32::MAX);
        prop_assert_eq!(world.now, Duration::from_millis(pace) * turns);
        prop_assert_eq!(world.requests, items, "nobody was slow, so nothing was asked twice");
    }

    #[test]
    fn nothing_is_asked_of_many_at_once(items in 1usize..100, paces in vec(1u64..90, 1..6)) {
        let holder = |ms: &u64| HolderModel {
            pace: Duration::from_millis(*ms), lacks: 0, kind: Kind::Honest, is_last_resort: false,
        };
        let mut world = World::new(items, paces.iter().map(holder).collect())?;
        world.run()?;
        // Nothing is overdue below 100 ms, so only the end game asks twice, for what is last under way.
        prop_assert!(world.requests <= items + paces.len() * WINDOW, "{} requests", world.requests);
        prop_assert!(world.copies_most <= 2);
    }

    #[test]
    fn a_last_resort_is_asked_only_for_what_no_other_has(items in 1usize..60, lacks in 0usize..8) {
        let model = |lacks, is_last_resort| HolderModel {
            pace: Duration::from_millis(10), lacks, kind: Kind::Honest, is_last_resort,
        };
        let mut world = World::new(items, vec![model(0, true), model(lacks, false)])?;
        world.run()?;
        for (item, from) in &world.had {
            prop_assert_eq!(*from, usize::from(item & lacks == 0), "object {}", item);
        }
        prop_assert_eq!(world.had.len(), items);
    }
}

fn world(items: usize, paces_ms: &[u64]) -> World {
    let holder = |ms: &u64| HolderModel {
        pace: Duration::from_millis(*ms),
        lacks: 0,
        kind: Kind::Honest,
        is_last_resort: false,
    };
    World::new(items, paces_ms.iter().map(holder).collect()).expect("a world")
}

#[test]
fn holders_give_by_their_pace() {
    let mut world = world(200, &[100, 300]);
    world.run().expect("runs");
    let slow = world.had.values().filter(|from| **from == 1).count();
    assert!((40..=55).contains(&slow), "a third as fast gives a quarter, gave {slow} of 200");
}

#[test]
fn the_end_is_not_left_to_the_slowest() {
    let mut world = world(20, &[10, 10_000]);
    world.run().expect("runs");
    assert!(world.now < Duration::from_millis(500), "took {:?}", world.now);
    assert!(world.had.values().all(|from| *from == 0));
}

/// A plan of this many holders and objects, all wanted in one class.
fn plan(holders: usize, items: usize, want: Want) -> (Planner, Vec<HolderIndex>, Vec<ItemIndex>) {
    let mut planner = Planner::new(ROOM);
    let holders: Vec<HolderIndex> = (0..holders).map(|_| planner.add_holder()).collect();
    let items = (0..items).map(|_| planner.want(want, &holders).expect("somebody may give it")).collect();
    (planner, holders, items)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn assigned(planner: &mut Planner, now: Duration) -> Vec<Assignment> {
    std::iter::from_fn(|| planner.next(now)).collect()
}

#[test]
fn a_holder_that_broke_off_rests_and_is_asked_again() {
    let (mut planner, ..) = plan(1, 1, READER);
    let first = planner.next(Duration::ZERO).expect("asks");
    let failed_at = Duration::from_millis(10);
    assert_eq!(planner.on_failed(failed_at, first.ticket, Failure::Unavailable), Settled::default());
    assert_eq!(planner.next(failed_at), None, "it rests");
    let wake = planner.wake(failed_at).expect("a rest ends");
    let second = planner.next(wake).expect("asks again");
    assert_eq!(planner.on_done(wake, second.ticket).had, Some(second.item));
    assert!(planner.is_finished());
}

#[test]
fn one_broken_connection_counts_once() {
    let (mut planner, ..) = plan(1, 8, READER);
    let tickets = assigned(&mut planner, Duration::ZERO);
    assert_eq!(tickets.len(), WINDOW);
    for assignment in tickets {
        let settled = planner.on_failed(Duration::from_millis(10), assignment.ticket, Failure::Unavailable);
        assert!(settled.lost.is_empty(), "it is not given up for one failure");
    }
    assert!(!planner.is_finished());
}

#[test]
fn who_failed_too_often_is_asked_again_for_what_is_wanted_later() {
    let (mut planner, holders, items) = plan(1, 1, READER);
    let mut now = Duration::ZERO;
    let lost = loop {
        let asked = assigned(&mut planner, now);
        now += ms(1);
        match asked.first() {
            Some(asked) => {
                let settled = planner.on_failed(now, asked.ticket, Failure::Unavailable);
                if !settled.lost.is_empty() {
                    break settled.lost;
                }
            }
            None => now = planner.wake(now).expect("a rest ends"),
        }
    };
    assert_eq!(lost, items);
    assert!(now > ms(1000), "a process that restarts is given its time: {now:?}");
    let later = planner.want(READER, &holders).expect("it may give it");
    let asked = loop {
        now = planner.wake(now).expect("its rest ends");
        if let Some(asked) = planner.next(now) {
            break asked;
        }
    };
    assert_eq!(asked.item, later);
}

#[test]
fn a_slow_answer_is_asked_of_another_after_the_usual_time_and_the_first_to_come_counts() {
    let (mut planner, _, _) = plan(2, 40, READER);
    let mut now = Duration::ZERO;
    // Ten answers of 20 ms each tell what is usual.
    for _ in 0..10 {
        let asked = assigned(&mut planner, now);
        now += ms(20);
        asked.iter().for_each(|asked| drop(planner.on_done(now, asked.ticket)));
        if planner.is_finished() {
            break;
        }
    }
    let holders = [HolderIndex(0), HolderIndex(1)];
    let slow = planner.want(READER, &holders).expect("wanted");
    let first = planner.next(now).expect("asks");
    assert_eq!((first.item, first.is_second), (slow, false));
    let asked_at = now;
    let second = loop {
        now = planner.wake(now).expect("it becomes overdue");
        if let Some(second) = planner.next(now) {
            break second;
        }
    };
    assert!(second.is_second && second.holder != first.holder);
    assert!(now - asked_at <= ms(110), "hedged after {:?}", now - asked_at);
    let settled = planner.on_done(now + ms(20), second.ticket);
    assert_eq!((settled.had, settled.cancelled), (Some(slow), vec![first.ticket]));
}

#[test]
fn a_lower_class_stands_back_while_a_higher_one_is_at_work_and_has_its_small_share() {
    let copy = Want { class: Class::Copy, ..READER };
    let (mut planner, holders, _) = plan(2, 1000, copy);
    let mut now = ms(1000);
    let copies = assigned(&mut planner, now);
    assert_eq!(copies.len(), 2 * WINDOW / 2, "half the room is for those below a reader");
    let reader = |planner: &mut Planner| planner.want(READER, &holders).expect("wanted");
    for _ in 0..4 {
        reader(&mut planner);
    }
    let mut under_way = assigned(&mut planner, now);
    assert!(under_way.iter().all(|asked| asked.class == Class::Reader) && under_way.len() == 4);
    copies.iter().for_each(|asked| drop(planner.on_done(now + ms(10), asked.ticket)));
    // A reader that never ends: each answer is followed by the next request.
    let (mut copies, mut readers, began) = (0, 0, now);
    while now - began < ms(20_000) {
        now += ms(10);
        for asked in std::mem::take(&mut under_way) {
            planner.on_done(now, asked.ticket);
            if asked.class == Class::Reader {
                reader(&mut planner);
            }
        }
        under_way = assigned(&mut planner, now);
        let of_copies = under_way.iter().filter(|asked| asked.class == Class::Copy).count();
        assert!(of_copies <= 1);
        copies += of_copies;
        readers += under_way.len() - of_copies;
    }
    assert!((30..=60).contains(&copies), "{copies} copies beside {readers}");
    // It ends, and after a moment copies have all their room again.
    for asked in under_way {
        planner.on_done(now, asked.ticket);
    }
    while assigned(&mut planner, now).iter().filter(|asked| asked.class == Class::Copy).count() < 2 {
        let wake = planner.wake(now).expect("their turn comes");
        assert!(wake - now <= ms(500), "after {:?}", wake - now);
        now = wake;
    }
}

#[test]
fn a_holder_that_hangs_with_a_readers_request_does_not_hold_up_copies_for_ever() {
    let (mut planner, holders, _) = plan(1, 1, READER);
    let hanging = planner.next(Duration::ZERO).expect("asks");
    let other = planner.add_holder();
    planner.want(Want { class: Class::Copy, ..READER }, &[other]).expect("wanted");
    let mut now = Duration::ZERO;
    // Its share first; then, when the reader's request is overdue, as much as there is room for.
    for _ in 0..4 {
        planner.want(Want { class: Class::Repair, ..READER }, &[other]).expect("wanted");
    }
    assigned(&mut planner, now);
    for _ in 0..10 {
        let Some(wake) = planner.wake(now) else { break };
        now = wake;
        assigned(&mut planner, now);
    }
    assert_eq!((planner.in_flight(), holders.len()), (1 + 1 + WINDOW / 2, 1), "{hanging:?} hangs");
}

#[test]
fn what_waits_at_a_holder_leaves_those_of_other_classes_their_room_there() {
    let (mut planner, holders, _) = plan(1, 10, Want { class: Class::Repair, ..READER });
    let now = ms(1000);
    let mut asked = assigned(&mut planner, now);
    // The lowest waits there, then the next.
    for (class, most) in [(Class::Copy, WINDOW / 2), (Class::Prefetch, WINDOW / 2), (Class::Reader, WINDOW)] {
        for _ in 0..10 {
            planner.want(Want { class, ..READER }, &holders).expect("wanted");
        }
        let of_class = assigned(&mut planner, now);
        assert!(of_class.iter().all(|asked| asked.class == class) && of_class.len() == most, "{class:?}: {of_class:?}");
        asked.extend(of_class);
    }
    // Among those below a reader, too, none is without its share as long as there is a higher one.
    let (mut now, mut copies) = (now, 0);
    for _ in 0..1000 {
        now += ms(10);
        for asked in std::mem::take(&mut asked) {
            planner.on_done(now, asked.ticket);
            if asked.class == Class::Prefetch {
                planner.want(Want { class: Class::Prefetch, ..READER }, &holders).expect("wanted");
            }
        }
        asked = assigned(&mut planner, now);
        copies += asked.iter().filter(|asked| asked.class == Class::Copy).count();
    }
    assert_eq!(copies, 8, "all that are left, beside prefetching without end");
}

#[test]
fn what_waited_at_a_holder_says_nothing_of_how_fast_it_gives_to_a_reader() {
    let mut planner = Planner::new(Room { requests: 128, bytes_min: 1 << 20, bytes_max: 8 << 20 });
    let holder = [planner.add_holder()];
    let want = |planner: &mut Planner, want: Want, count: usize| {
        for _ in 0..count {
            planner.want(want, &holder).expect("wanted");
        }
    };
    want(&mut planner, Want { class: Class::Copy, len: 1 << 14, ..READER }, 64);
    let mut now = Duration::ZERO;
    let copies = assigned(&mut planner, now);
    assert_eq!(copies.len(), 64);
    want(&mut planner, Want { len: 1 << 18, ..READER }, 400);
    for _ in 0..5 {
        let asked = assigned(&mut planner, now);
        // 300 MB/s.
        now += Duration::from_micros((1 << 18) / 300 * asked.len() as u64);
        asked.iter().for_each(|asked| drop(planner.on_done(now, asked.ticket)));
    }
    // The copies waited for others' readers meanwhile, and longer.
    now += ms(60_000);
    copies.iter().for_each(|asked| drop(planner.on_done(now, asked.ticket)));
    assert_eq!(assigned(&mut planner, now).len(), 32, "all the room");
}

#[test]
fn what_a_reader_wants_too_rises_and_goes_before_the_rest() {
    let copy = Want { class: Class::Copy, ..READER };
    let (mut planner, holders, items) = plan(1, 10, copy);
    let under_way = assigned(&mut planner, Duration::ZERO);
    assert_eq!(under_way.iter().map(|asked| asked.item).collect::<Vec<_>>(), items[..WINDOW / 2]);
    assert_eq!(planner.join(items[0], READER, &holders), [under_way[0].ticket], "asked for already: it is raised");
    assert_eq!(planner.join(items[0], READER, &holders), [], "once");
    assert_eq!(planner.join(items[8], READER, &holders), [], "not asked for yet");
    let awaited = Want { is_awaited: true, ..READER };
    assert_eq!(planner.join(items[9], awaited, &holders), []);
    let next: Vec<_> = assigned(&mut planner, Duration::ZERO).iter().map(|a| (a.item, a.class)).collect();
    assert_eq!(next, [(items[9], Class::Reader), (items[8], Class::Reader)], "somebody waits for the very last");
    // Nobody wants it any more: nothing is left of it.
    assert_eq!(planner.forget(items[0]), [under_way[0].ticket]);
    assert_eq!(planner.on_done(ms(5), under_way[0].ticket), Settled::default());
}

#[test]
fn a_fast_path_is_asked_for_more_and_a_slow_one_for_little() {
    // Answers come one after another at this rate, each a chunk, after a round trip.
    let under_way_at = |rate: u64, round: Duration| {
        let room = Room { requests: 128, bytes_min: 1 << 20, bytes_max: 8 << 20 };
        let want = Want { len: 1 << 18, ..READER };
        let mut planner = Planner::new(room);
        let holder = [planner.add_holder()];
        for _ in 0..4000 {
            planner.want(want, &holder).expect("wanted");
        }
        let (mut now, mut link, mut queue) = (Duration::ZERO, Duration::ZERO, std::collections::VecDeque::new());
        for _ in 0..2000 {
            for asked in assigned(&mut planner, now) {
                link = link.max(now) + Duration::from_micros((1 << 18) * 1_000_000 / rate);
                queue.push_back((link + round, asked.ticket));
            }
            let (at, ticket) = queue.pop_front().expect("something is under way");
            now = now.max(at);
            planner.on_done(now, ticket);
        }
        (planner.in_flight() as u64) << 18
    };
    let mib = |bytes: u64| bytes >> 20;
    assert_eq!(mib(under_way_at(300_000_000, ms(1))), 7, "a LAN: all the room");
    let wan = under_way_at(12_500_000, ms(50));
    assert!((1_500_000..3_000_000).contains(&wan), "100 Mb/s over 50 ms: {wan} bytes, its product and 100 ms");
    let far = under_way_at(12_500_000, ms(200));
    assert!((3_500_000..7_000_000).contains(&far), "… over 200 ms: {far}");
    let slow = under_way_at(1_000_000, ms(50));
    assert!((1 << 19..=1 << 20).contains(&slow), "8 Mb/s: the least, {slow}");
}
