//! The planner in random worlds: holders with a pace, a part of the objects, and faults, in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;

use crate::fetch::planner::{Failure, Planner, Settled, Ticket};

const WINDOW: usize = 4;

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
        let last_resorts: Vec<bool> = holders.iter().map(|holder| holder.is_last_resort).collect();
        let mut planner = Planner::new(items, &last_resorts, WINDOW);
        let settled = planner.start();
        let mut world = Self {
            planner,
            holders,
            now: Duration::ZERO,
            under_way: BTreeMap::new(),
            had: BTreeMap::new(),
            lost: Vec::new(),
            requests: 0,
            copies_most: 0,
        };
        world.settle(settled, None)?;
        Ok(world)
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
            let (holder, item) = (assignment.holder.0, assignment.item.0);
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
        prop_assert_eq!(settled.had.map(|item| item.0), gave.map(|(_, item)| item), "the first answer counts");
        if let Some((holder, item)) = gave {
            prop_assert!(self.had.insert(item, holder).is_none(), "had once");
        }
        for item in settled.lost {
            prop_assert!(!self.had.contains_key(&item.0));
            self.lost.push(item.0);
        }
        Ok(())
    }
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

#[test]
fn a_holder_that_broke_off_rests_and_is_asked_again() {
    let mut planner = Planner::new(1, &[false], 1);
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
    let mut planner = Planner::new(8, &[false], 8);
    let tickets: Vec<Ticket> = std::iter::from_fn(|| planner.next(Duration::ZERO)).map(|a| a.ticket).collect();
    assert_eq!(tickets.len(), 8);
    for ticket in tickets {
        let settled = planner.on_failed(Duration::from_millis(10), ticket, Failure::Unavailable);
        assert!(settled.lost.is_empty(), "it is not given up for one failure");
    }
    assert!(!planner.is_finished());
}
