//! The decisions of a node's fetches, as a state machine: events and the time go in, assignments come out.
//!
//! One plan for all fetches, since they share the holders and the way to them: what several want is asked
//! for once, and a lower class waits while a higher one is being answered. Time is a [`Duration`] since
//! whatever the caller likes, never going back. Nothing here is random, so a fetch that went wrong can be
//! replayed. The cost of an event is linear in the requests under way at worst, and in the wanted objects
//! when a holder drops out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::chunk::{Class, Turns};

mod holder;
mod latency;

pub use holder::Room;
use holder::{Holder, Place};
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

/// A wanted object, by its number, which is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemIndex(pub u64);

/// A holder, in the order in which they became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderIndex(pub usize);

/// One request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// How an object is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// What for.
    pub class: Class,
    /// Whether somebody waits for this very object: it goes before what is only part of something larger.
    pub is_awaited: bool,
    /// Its length in bytes, or the most it may be.
    pub len: u64,
}

/// A request to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// By which its outcome is reported.
    pub ticket: Ticket,
    /// Whom to ask.
    pub holder: HolderIndex,
    /// For what.
    pub item: ItemIndex,
    /// In which class.
    pub class: Class,
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
    /// The holder sent wrong bytes or nonsense: it is asked for nothing more of what is wanted now.
    Fault,
}

/// What an event settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The object that is now had.
    pub had: Option<ItemIndex>,
    /// Objects that no holder can give.
    pub lost: Vec<ItemIndex>,
    /// Requests that are of no use any more. They are forgotten already; no outcome is expected.
    pub cancelled: Vec<Ticket>,
}

/// Plans the fetches of a node.
#[derive(Debug)]
pub struct Planner {
    room: Room,
    holders: Vec<Holder>,
    items: BTreeMap<ItemIndex, Item>,
    requests: BTreeMap<Ticket, Request>,
    /// Of each class, since the lower ones may wait behind the higher.
    latency: [Latency; Class::ALL.len()],
    turns: Turns,
    next_item: u64,
    next_ticket: u64,
}

/// An object that is neither had nor lost.
#[derive(Debug)]
struct Item {
    place: Place,
    len: u64,
    /// Who may give it.
    holders: BTreeSet<HolderIndex>,
    /// Who is being asked. Nobody: it stands in the queues of all that may give it.
    asked: BTreeSet<HolderIndex>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    holder: HolderIndex,
    item: ItemIndex,
    /// Now, and when it was made.
    class: Class,
    began_as: Class,
    len: u64,
    since: Duration,
    /// Bytes that its holder was asked for when it was made, its own included.
    behind: u64,
    is_second: bool,
}

impl Planner {
    /// An empty plan; `room` says how much one holder is asked for at a time.
    pub fn new(room: Room) -> Self {
        Self {
            room,
            holders: Vec::new(),
            items: BTreeMap::new(),
            requests: BTreeMap::new(),
            latency: Default::default(),
            turns: Turns::default(),
            next_item: 0,
            next_ticket: 0,
        }
    }

    /// Makes a holder known.
    pub fn add_holder(&mut self) -> HolderIndex {
        self.holders.push(Holder::new(self.room));
        HolderIndex(self.holders.len() - 1)
    }

    /// Until `until`, a holder is asked only for what no other can give.
    pub fn distrust(&mut self, holder: HolderIndex, until: Duration) {
        if let Some(holder) = self.holders.get_mut(holder.0) {
            holder.distrusted_until = Some(until);
        }
    }

    /// An object is wanted that `holders` may give. `None` when there are none.
    pub fn want(&mut self, want: Want, holders: &[HolderIndex]) -> Option<ItemIndex> {
        let holders: BTreeSet<HolderIndex> = holders.iter().copied().filter(|h| h.0 < self.holders.len()).collect();
        if holders.is_empty() {
            return None;
        }
        let item = ItemIndex(self.next_item);
        self.next_item += 1;
        let place = Place::of(want, item);
        self.items.insert(item, Item { place, len: want.len, holders, asked: BTreeSet::new() });
        self.line_up(item);
        Some(item)
    }

    /// A wanted object is wanted by another too, who knows these holders. Returns the requests under way that
    /// are of a higher class now.
    pub fn join(&mut self, item: ItemIndex, want: Want, holders: &[HolderIndex]) -> Vec<Ticket> {
        self.step_out(item);
        let known_holders = self.holders.len();
        let Some(known) = self.items.get_mut(&item) else { return Vec::new() };
        known.holders.extend(holders.iter().copied().filter(|holder| holder.0 < known_holders));
        known.len = known.len.max(want.len);
        known.place = known.place.min(Place::of(want, item));
        let class = known.place.class;
        if known.asked.is_empty() {
            self.line_up(item);
            return Vec::new();
        }
        let risen = self.requests.iter_mut().filter(|(_, request)| request.item == item && class < request.class);
        risen
            .map(|(ticket, request)| {
                request.class = class;
                *ticket
            })
            .collect()
    }

    /// Nobody wants an object any more. Returns the requests that are of no use.
    pub fn forget(&mut self, item: ItemIndex) -> Vec<Ticket> {
        self.step_out(item);
        self.items.remove(&item);
        let cancelled: Vec<Ticket> = self.requests_for(item).collect();
        for ticket in &cancelled {
            self.take(*ticket);
        }
        cancelled
    }

    /// The next request to make now, if any. To be called until it gives none.
    pub fn next(&mut self, now: Duration) -> Option<Assignment> {
        if let Some((holder, item)) = self.overdue(now) {
            return self.assign(now, holder, item);
        }
        for class in Class::ALL.into_iter().filter(|class| self.may_begin(now, *class)) {
            for holder in self.free_holders(now, class) {
                if let Some(item) = self.first_of(now, holder, class) {
                    return self.assign(now, holder, item);
                }
            }
        }
        let (holder, item) = self.end_game(now)?;
        self.assign(now, holder, item)
    }

    /// When to call [`Planner::next`] again though nothing was reported: an answer becomes overdue, a
    /// holder's rest ends or a lower class has its turn. `None` when only a report can change anything.
    pub fn wake(&self, now: Duration) -> Option<Duration> {
        if self.items.is_empty() {
            return None;
        }
        let overdue = self.requests.values().map(|request| request.since + self.overdue_after(request.class));
        let rests = self.holders.iter().filter_map(Holder::rests_until);
        overdue.chain(rests).chain(self.turns.wakes()).filter(|at| *at > now).min()
    }

    /// Reports that a request gave the right bytes.
    pub fn on_done(&mut self, now: Duration, ticket: Ticket) -> Settled {
        let Some(request) = self.take(ticket) else { return Settled::default() };
        let took = now.saturating_sub(request.since);
        // One that has risen waited as what it was.
        self.latency[request.began_as.rank()].add(took);
        self.turns.ended(now, request.class, took);
        if let Some(holder) = self.holders.get_mut(request.holder.0) {
            holder.on_answer(request.began_as, took, request.behind);
        }
        self.items.remove(&request.item);
        let cancelled: Vec<Ticket> = self.requests_for(request.item).collect();
        for other in &cancelled {
            // A holder that lost the race is known to take at least this long.
            if let Some(slow) = self.take(*other)
                && let Some(holder) = self.holders.get_mut(slow.holder.0)
            {
                holder.on_outrun(slow.began_as, now.saturating_sub(slow.since));
            }
        }
        Settled { had: Some(request.item), lost: Vec::new(), cancelled }
    }

    /// Reports that a request came to nothing.
    pub fn on_failed(&mut self, now: Duration, ticket: Ticket, failure: Failure) -> Settled {
        let Some(request) = self.take(ticket) else { return Settled::default() };
        self.turns.ended(now, request.class, now.saturating_sub(request.since));
        let mut settled = Settled::default();
        let drops_out = match failure {
            Failure::Absent => {
                if let Some(item) = self.items.get_mut(&request.item) {
                    item.holders.remove(&request.holder);
                }
                false
            }
            Failure::Unavailable => {
                let holder = self.holders.get_mut(request.holder.0);
                holder.is_some_and(|holder| holder.on_unavailable(now, request.since))
            }
            Failure::Fault => {
                let of_holder = self.requests.iter().filter(|(_, other)| other.holder == request.holder);
                settled.cancelled = of_holder.map(|(ticket, _)| *ticket).collect();
                true
            }
        };
        let mut loose = vec![request.item];
        loose.extend(settled.cancelled.iter().filter_map(|ticket| Some(self.take(*ticket)?.item)));
        if drops_out {
            loose.extend(self.drop_out(request.holder));
        }
        for item in loose {
            if self.is_lost(item) {
                self.items.remove(&item);
                settled.lost.push(item);
            } else {
                self.line_up(item);
            }
        }
        settled
    }

    /// Whether every object is had or lost.
    pub fn is_finished(&self) -> bool {
        self.items.is_empty()
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    fn assign(&mut self, now: Duration, holder: HolderIndex, item: ItemIndex) -> Option<Assignment> {
        self.step_out(item);
        let (index, ticket) = (item, Ticket(self.next_ticket));
        let item = self.items.get_mut(&index)?;
        let is_second = !item.asked.is_empty();
        item.asked.insert(holder);
        let (class, len) = (item.place.class, item.len);
        let behind = self.holders.get_mut(holder.0)?.begin(class, len);
        self.next_ticket += 1;
        let began_as = class;
        let request = Request { holder, item: index, class, began_as, len, since: now, behind, is_second };
        self.requests.insert(ticket, request);
        Some(Assignment { ticket, holder, item: index, class, is_second })
    }

    /// Takes a request off the books. Where its object stands then is the caller's to see to.
    fn take(&mut self, ticket: Ticket) -> Option<Request> {
        let request = self.requests.remove(&ticket)?;
        if let Some(holder) = self.holders.get_mut(request.holder.0) {
            holder.end(request.began_as, request.len);
        }
        if let Some(item) = self.items.get_mut(&request.item) {
            item.asked.remove(&request.holder);
        }
        Some(request)
    }

    /// Puts an object that nobody is asked for into the queues of all that may give it.
    fn line_up(&mut self, index: ItemIndex) {
        let Some(item) = self.items.get(&index).filter(|item| item.asked.is_empty()) else { return };
        for holder in &item.holders {
            if let Some(holder) = self.holders.get_mut(holder.0) {
                holder.queue.insert(item.place);
            }
        }
    }

    /// … and out of them.
    fn step_out(&mut self, index: ItemIndex) {
        let Some(item) = self.items.get(&index).filter(|item| item.asked.is_empty()) else { return };
        for holder in &item.holders {
            if let Some(holder) = self.holders.get_mut(holder.0) {
                holder.queue.remove(&item.place);
            }
        }
    }

    /// A holder is asked for nothing more of what is wanted now. Returns the objects that lose it and are not
    /// being asked for.
    fn drop_out(&mut self, holder: HolderIndex) -> Vec<ItemIndex> {
        if let Some(holder) = self.holders.get_mut(holder.0) {
            holder.queue.clear();
        }
        let mut loose = Vec::new();
        for (index, item) in &mut self.items {
            if item.holders.remove(&holder) && item.asked.is_empty() {
                loose.push(*index);
            }
        }
        loose
    }

    /// Whether nobody can give an open object and nobody is asked for it.
    fn is_lost(&self, item: ItemIndex) -> bool {
        self.items.get(&item).is_some_and(|item| item.asked.is_empty() && item.holders.is_empty())
    }

    fn requests_for(&self, item: ItemIndex) -> impl Iterator<Item = Ticket> {
        self.requests.iter().filter(move |(_, request)| request.item == item).map(|(ticket, _)| *ticket)
    }

    fn is_overdue(&self, now: Duration, request: &Request) -> bool {
        now.saturating_sub(request.since) >= self.overdue_after(request.class)
    }

    /// Whether a class may begin a request: no higher one is at work, or this one has its small share. What is
    /// overdue is not at work, or a holder that hangs would hold up all classes below.
    fn may_begin(&self, now: Duration, class: Class) -> bool {
        let is_busy = |higher: Class| {
            self.requests.values().any(|request| request.class == higher && !self.is_overdue(now, request))
        };
        let is_alone = || !self.requests.values().any(|request| request.class == class);
        self.turns.ahead_of(now, class, is_busy).is_none() || (self.turns.has_share(now, class) && is_alone())
    }

    /// The first object of a class that a holder should be asked for.
    fn first_of(&self, now: Duration, holder: HolderIndex, class: Class) -> Option<ItemIndex> {
        let known = self.holders.get(holder.0)?;
        let of_class = known.queue.range(Place::first_of(class)..).take_while(|place| place.class == class);
        of_class.map(|place| place.item).find(|item| self.should_ask(now, holder, *item))
    }

    /// Whether a holder should be asked: a distrusted one only when no other may give the object, or
    /// those that may are stuck.
    fn should_ask(&self, now: Duration, holder: HolderIndex, item: ItemIndex) -> bool {
        let is_distrusted = |h: HolderIndex| self.holders.get(h.0).is_some_and(|h| h.is_distrusted(now));
        let Some(item) = self.items.get(&item).filter(|item| item.holders.contains(&holder)) else { return false };
        let is_better = |h: &HolderIndex| !is_distrusted(*h) && !self.is_stuck(now, *h, item.place.class);
        !is_distrusted(holder) || !item.holders.iter().any(is_better)
    }

    /// Whether all that the holder has room for in a class is overdue.
    fn is_stuck(&self, now: Duration, holder: HolderIndex, class: Class) -> bool {
        let mut of_class = self.requests.values().filter(|r| r.holder == holder && r.began_as == class);
        self.holders.get(holder.0).is_some_and(|h| h.is_full_for(class))
            && of_class.all(|request| self.is_overdue(now, request))
    }

    /// Holders with room for a class, the one that would answer soonest first.
    fn free_holders(&self, now: Duration, class: Class) -> Vec<HolderIndex> {
        let known = self.holders.iter().enumerate().filter(|(_, holder)| holder.has_room(now, class));
        let mut free: Vec<_> =
            known.map(|(at, h)| (h.expects(class).unwrap_or_default(), h.in_flight(), HolderIndex(at))).collect();
        free.sort_unstable();
        free.into_iter().map(|(_, _, holder)| holder).collect()
    }

    fn overdue_after(&self, class: Class) -> Duration {
        match self.latency[class.rank()].p95() {
            Some(p95) => (p95 * OVERDUE_TENTHS / 10).max(OVERDUE_MIN),
            None => OVERDUE_UNKNOWN,
        }
    }

    fn is_asked(&self, holder: HolderIndex, item: ItemIndex) -> bool {
        self.items.get(&item).is_some_and(|item| item.asked.contains(&holder))
    }

    /// The object that is overdue from all who are asked for it, the longest, and who else could give it:
    /// a distrusted holder too, when no other has room.
    fn overdue(&self, now: Duration) -> Option<(HolderIndex, ItemIndex)> {
        if !self.requests.values().any(|request| self.is_overdue(now, request)) {
            return None;
        }
        let hedges = self.requests.values().filter(|r| r.is_second && !self.is_overdue(now, r)).count();
        if hedges >= (self.requests.len() / HEDGES_ONE_IN).max(HEDGES_MIN) {
            return None;
        }
        // Tickets rise with time, so the last request for each object stays.
        let newest: BTreeMap<ItemIndex, &Request> = self.requests.values().map(|r| (r.item, r)).collect();
        let free = Class::ALL.map(|class| self.free_holders(now, class));
        self.requests.values().find_map(|request| {
            let newest = newest.get(&request.item).filter(|newest| self.is_overdue(now, newest))?;
            let others = || free[newest.class.rank()].iter().filter(|holder| !self.is_asked(**holder, request.item));
            let may_give =
                |holder: HolderIndex| self.items.get(&request.item).is_some_and(|item| item.holders.contains(&holder));
            let holder = others()
                .find(|holder| self.should_ask(now, **holder, request.item))
                .or_else(|| others().find(|holder| may_give(**holder)))?;
            self.may_begin(now, newest.class).then_some((*holder, request.item))
        })
    }

    /// When nothing is left to begin, an idle holder takes over the request that seems furthest from
    /// its end, if it expects to be sooner.
    fn end_game(&self, now: Duration) -> Option<(HolderIndex, ItemIndex)> {
        let remaining = |request: &Request| {
            let age = now.saturating_sub(request.since);
            match self.holders.get(request.holder.0).and_then(|holder| holder.expects(request.class)) {
                // A little late is usual.
                Some(expects) if 2 * expects > age => expects.saturating_sub(age),
                // Past its time, or nothing known: as long again as it has taken.
                _ => age,
            }
        };
        let is_alone = |request: &Request| self.items.get(&request.item).is_some_and(|item| item.asked.len() == 1);
        let take_over = |class: Class, holder: HolderIndex| {
            let expects = self.holders.get(holder.0)?.expects(class)?;
            let may_take = |r: &&Request| {
                r.class == class
                    && is_alone(r)
                    && !self.is_asked(holder, r.item)
                    && self.should_ask(now, holder, r.item)
            };
            let slowest = self.requests.values().filter(may_take).max_by_key(|request| remaining(request))?;
            (expects < remaining(slowest)).then_some((holder, slowest.item))
        };
        let mut classes = Class::ALL.into_iter().filter(|class| self.may_begin(now, *class));
        classes.find_map(|class| self.free_holders(now, class).into_iter().find_map(|holder| take_over(class, holder)))
    }
}
