//! The decisions of a fetch, as a state machine: events and the time go in, assignments come out.
//!
//! Time is a [`Duration`] since whatever the caller likes, never going back. Nothing here is random, so
//! a fetch that went wrong can be replayed. The cost of an event is linear in the wanted objects at
//! worst (a holder that has none of them) and constant as a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

mod holder;
mod latency;

use holder::Holder;
use latency::Latency;

/// An answer is overdue at this many tenths of the 95th percentile of the answers so far.
const OVERDUE_TENTHS: u32 = 15;

/// No answer is overdue earlier; a busy node's scheduling alone takes some of this.
const OVERDUE_MIN: Duration = Duration::from_millis(100);

/// While too few answers came to know what is usual.
const OVERDUE_UNKNOWN: Duration = Duration::from_secs(1);

/// Of the requests under way, this share (one in) may be further copies of overdue ones, and always
/// two: a slow network must not be asked for everything twice. Copies that are overdue themselves do
/// not count, or a few holders that hang would use it up.
const HEDGES_ONE_IN: usize = 8;
const HEDGES_MIN: usize = 2;

/// A wanted object, by its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemIndex(pub usize);

/// A holder, by its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderIndex(pub usize);

/// One request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// A request to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// By which its outcome is reported.
    pub ticket: Ticket,
    /// Whom to ask.
    pub holder: HolderIndex,
    /// For what.
    pub item: ItemIndex,
    /// Whether somebody else is being asked for it already.
    pub is_second: bool,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The holder does not have the object.
    Absent,
    /// The holder could not be reached or could not give it now; it may later.
    Unavailable,
    /// The holder sent wrong bytes or nonsense: it is asked for nothing more.
    Fault,
}

/// What an event settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The object that is now had, for the first time.
    pub had: Option<ItemIndex>,
    /// Objects that no holder can give.
    pub lost: Vec<ItemIndex>,
    /// Requests that are of no use any more. They are forgotten already; no outcome is expected.
    pub cancelled: Vec<Ticket>,
}

/// Plans a fetch of `items` objects from several holders.
#[derive(Debug)]
pub struct Planner {
    items: Vec<Item>,
    holders: Vec<Holder>,
    /// Objects that nobody is asked for, in the order wanted.
    pending: BTreeSet<ItemIndex>,
    requests: BTreeMap<Ticket, Request>,
    latency: Latency,
    next_ticket: u64,
    open: usize,
}

#[derive(Debug, Default)]
struct Item {
    /// Holders that were found not to have it.
    absent: BTreeSet<HolderIndex>,
    /// Holders that are being asked for it.
    asked: BTreeSet<HolderIndex>,
    is_settled: bool,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    holder: HolderIndex,
    item: ItemIndex,
    since: Duration,
    is_second: bool,
}

impl Planner {
    /// A plan for `items` objects; `holders` says of each holder whether it is only a last resort (it
    /// gave wrong bytes before). Each is asked for at most `window` objects at a time.
    pub fn new(items: usize, holders: &[bool], window: usize) -> Self {
        Self {
            items: (0..items).map(|_| Item::default()).collect(),
            holders: holders.iter().map(|is_last_resort| Holder::new(*is_last_resort, window.max(1))).collect(),
            pending: (0..items).map(ItemIndex).collect(),
            requests: BTreeMap::new(),
            latency: Latency::default(),
            next_ticket: 0,
            open: items,
        }
    }

    /// Objects that no holder can give from the start: all of them, when there is no holder.
    pub fn start(&mut self) -> Settled {
        Settled { lost: self.take_lost(), ..Settled::default() }
    }

    /// The next request to make now, if any. To be called until it gives none.
    pub fn next(&mut self, now: Duration) -> Option<Assignment> {
        if let Some((holder, item)) = self.overdue(now) {
            return Some(self.assign(now, holder, item, true));
        }
        for holder in self.free_holders(now) {
            if let Some(item) = self.first_pending(now, holder) {
                return Some(self.assign(now, holder, item, false));
            }
        }
        let (holder, item) = self.end_game(now)?;
        Some(self.assign(now, holder, item, true))
    }

    /// When to call [`Planner::next`] again though nothing was reported: an answer becomes overdue or a
    /// holder's rest ends. `None` when only a report can change anything.
    pub fn wake(&self, now: Duration) -> Option<Duration> {
        let overdue_after = self.overdue_after();
        let overdue = self.requests.values().map(|request| request.since + overdue_after);
        let rests = self.holders.iter().filter_map(Holder::rests_until);
        overdue.chain(rests).filter(|at| *at > now).min()
    }

    /// Reports that a request gave the right bytes.
    pub fn on_done(&mut self, now: Duration, ticket: Ticket) -> Settled {
        let Some(request) = self.forget(ticket) else { return Settled::default() };
        let took = now.saturating_sub(request.since);
        self.latency.add(took);
        if let Some(holder) = self.holders.get_mut(request.holder.0) {
            holder.on_answer(took);
        }
        let Some(item) = self.items.get_mut(request.item.0) else { return Settled::default() };
        if std::mem::replace(&mut item.is_settled, true) {
            return Settled::default();
        }
        self.open -= 1;
        self.pending.remove(&request.item);
        let others = self.requests.iter().filter(|(_, other)| other.item == request.item);
        let cancelled: Vec<Ticket> = others.map(|(ticket, _)| *ticket).collect();
        for other in &cancelled {
            // A holder that lost the race is known to take at least this long.
            if let Some(slow) = self.forget(*other)
                && let Some(holder) = self.holders.get_mut(slow.holder.0)
            {
                holder.on_outrun(now.saturating_sub(slow.since));
            }
        }
        Settled { had: Some(request.item), lost: Vec::new(), cancelled }
    }

    /// Reports that a request came to nothing.
    pub fn on_failed(&mut self, now: Duration, ticket: Ticket, failure: Failure) -> Settled {
        let Some(request) = self.forget(ticket) else { return Settled::default() };
        let Some(holder) = self.holders.get_mut(request.holder.0) else { return Settled::default() };
        match failure {
            Failure::Absent => {
                if let Some(item) = self.items.get_mut(request.item.0) {
                    item.absent.insert(request.holder);
                }
            }
            Failure::Unavailable => holder.on_unavailable(now, request.since),
            Failure::Fault => holder.give_up(),
        }
        let mut cancelled = Vec::new();
        if failure == Failure::Fault {
            let others = self.requests.iter().filter(|(_, other)| other.holder == request.holder);
            cancelled.extend(others.map(|(ticket, _)| *ticket));
            for other in &cancelled {
                self.forget(*other);
            }
        }
        Settled { had: None, lost: self.take_lost(), cancelled }
    }

    /// Whether every object is had or lost.
    pub fn is_finished(&self) -> bool {
        self.open == 0
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    fn assign(&mut self, now: Duration, holder: HolderIndex, item: ItemIndex, is_second: bool) -> Assignment {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.pending.remove(&item);
        self.requests.insert(ticket, Request { holder, item, since: now, is_second });
        if let Some(item) = self.items.get_mut(item.0) {
            item.asked.insert(holder);
        }
        if let Some(holder) = self.holders.get_mut(holder.0) {
            holder.in_flight += 1;
        }
        Assignment { ticket, holder, item, is_second }
    }

    /// Takes a request off the books; its object is pending again when nobody else is asked for it.
    fn forget(&mut self, ticket: Ticket) -> Option<Request> {
        let request = self.requests.remove(&ticket)?;
        if let Some(holder) = self.holders.get_mut(request.holder.0) {
            holder.in_flight -= 1;
        }
        let item = self.items.get_mut(request.item.0)?;
        item.asked.remove(&request.holder);
        if item.asked.is_empty() && !item.is_settled {
            self.pending.insert(request.item);
        }
        Some(request)
    }

    /// Settles as lost what nobody can give and nobody is asked for.
    fn take_lost(&mut self) -> Vec<ItemIndex> {
        let lost: Vec<ItemIndex> = self
            .pending
            .iter()
            .filter(|item| !self.holder_indices().any(|holder| self.may_give(holder, **item)))
            .copied()
            .collect();
        for item in &lost {
            self.pending.remove(item);
            if let Some(item) = self.items.get_mut(item.0) {
                item.is_settled = true;
            }
            self.open -= 1;
        }
        lost
    }

    fn holder_indices(&self) -> impl Iterator<Item = HolderIndex> + use<> {
        (0..self.holders.len()).map(HolderIndex)
    }

    /// Whether the holder is in play and not known to lack the object.
    fn may_give(&self, holder: HolderIndex, item: ItemIndex) -> bool {
        self.holders.get(holder.0).is_some_and(|h| !h.is_given_up())
            && self.items.get(item.0).is_some_and(|i| !i.absent.contains(&holder))
    }

    /// Whether the holder should be asked: a last resort only when no other may give the object, or
    /// those that may are stuck.
    fn should_ask(&self, now: Duration, holder: HolderIndex, item: ItemIndex) -> bool {
        let is_last_resort = |h: HolderIndex| self.holders.get(h.0).is_some_and(|h| h.is_last_resort);
        let is_better = |h: HolderIndex| !is_last_resort(h) && self.may_give(h, item) && !self.is_stuck(now, h);
        self.may_give(holder, item) && (!is_last_resort(holder) || !self.holder_indices().any(is_better))
    }

    /// Whether all that the holder has room for is overdue.
    fn is_stuck(&self, now: Duration, holder: HolderIndex) -> bool {
        let after = self.overdue_after();
        self.holders.get(holder.0).is_some_and(Holder::is_full)
            && self.requests.values().filter(|r| r.holder == holder).all(|r| now.saturating_sub(r.since) >= after)
    }

    /// Holders with room, the one that would answer soonest first.
    fn free_holders(&self, now: Duration) -> Vec<HolderIndex> {
        let mut free: Vec<HolderIndex> =
            self.holder_indices().filter(|h| self.holders.get(h.0).is_some_and(|h| h.has_room(now))).collect();
        free.sort_by_key(|h| self.holders.get(h.0).map(|h| (h.expects().unwrap_or_default(), h.in_flight)));
        free
    }

    fn first_pending(&self, now: Duration, holder: HolderIndex) -> Option<ItemIndex> {
        self.pending.iter().find(|item| self.should_ask(now, holder, **item)).copied()
    }

    fn overdue_after(&self) -> Duration {
        match self.latency.p95() {
            Some(p95) => (p95 * OVERDUE_TENTHS / 10).max(OVERDUE_MIN),
            None => OVERDUE_UNKNOWN,
        }
    }

    /// Since when each object that is asked for was asked for last.
    fn newest_copies(&self) -> BTreeMap<ItemIndex, Duration> {
        // Tickets rise with time, so the last one stays.
        self.requests.values().map(|request| (request.item, request.since)).collect()
    }

    fn is_asked(&self, holder: HolderIndex, item: ItemIndex) -> bool {
        self.items.get(item.0).is_some_and(|i| i.asked.contains(&holder))
    }

    /// The object that is overdue from all who are asked for it, the longest, and who else could give it:
    /// a last resort too, when no other has room.
    fn overdue(&self, now: Duration) -> Option<(HolderIndex, ItemIndex)> {
        let after = self.overdue_after();
        let is_overdue = |since: Duration| now.saturating_sub(since) >= after;
        let hedges = self.requests.values().filter(|request| request.is_second && !is_overdue(request.since)).count();
        if hedges >= (self.requests.len() / HEDGES_ONE_IN).max(HEDGES_MIN) {
            return None;
        }
        let newest = self.newest_copies();
        let free = self.free_holders(now);
        let overdue = self.requests.values().map(|request| request.item);
        overdue.filter(|item| newest.get(item).is_some_and(|since| is_overdue(*since))).find_map(|item| {
            let others = || free.iter().filter(|holder| !self.is_asked(**holder, item));
            let holder = others()
                .find(|holder| self.should_ask(now, **holder, item))
                .or_else(|| others().find(|holder| self.may_give(**holder, item)))?;
            Some((*holder, item))
        })
    }

    /// When nothing is left to begin, an idle holder takes over the request that seems furthest from
    /// its end, if it expects to be sooner.
    fn end_game(&self, now: Duration) -> Option<(HolderIndex, ItemIndex)> {
        let remaining = |request: &Request| {
            let age = now.saturating_sub(request.since);
            match self.holders.get(request.holder.0).and_then(Holder::expects) {
                Some(expects) if expects > age => expects - age,
                // Past its time, or nothing known: as long again as it has taken.
                _ => age,
            }
        };
        let is_alone = |request: &Request| self.items.get(request.item.0).is_some_and(|i| i.asked.len() == 1);
        self.free_holders(now).into_iter().find_map(|holder| {
            let expects = self.holders.get(holder.0)?.expects()?;
            let may_take =
                |r: &&Request| is_alone(r) && !self.is_asked(holder, r.item) && self.should_ask(now, holder, r.item);
            let slowest = self.requests.values().filter(may_take).max_by_key(|request| remaining(request))?;
            (expects < remaining(slowest)).then_some((holder, slowest.item))
        })
    }
}
