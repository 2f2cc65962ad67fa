//! A node's fetches, carried out: one task owns the plan, one task a request asks and verifies.
//!
//! What is in hand is bounded: the bytes that were asked for, have come, and that who wanted them still keeps. So
//! memory is the same for one fetch and for a hundred, and a slow reader slows its own fetch only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blake3::Hash;
use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::Wanted;
use super::driver::{Arrived, AskError, ChunkFault, FaultReason, FetchError, Holders, InHand};
use super::penalties::Penalties;
use super::planner::{Assignment, Failure, HolderIndex, ItemIndex, Planner, Room, Settled, Ticket, Want};
use crate::LinkError;
use crate::chunk::{Class, GetError, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};

/// Bytes in hand of one fetch: what several fast holders are asked for, and what a store is writing meanwhile. One
/// object is always let in, however long.
const FETCH_BYTES_MAX: u64 = 48 << 20;
/// Objects in hand of one fetch.
const FETCH_OBJECTS_MAX: usize = 512;
/// Bytes in hand of all readers' fetches together, and of all others; beyond it each has one object in hand.
const READERS_BYTES_MAX: u64 = 64 << 20;
const OTHERS_BYTES_MAX: u64 = 64 << 20;

/// Outcomes that wait for the desk; tasks with more wait in turn.
const OUTCOMES_QUEUE: usize = 256;
/// Messages taken before the plan is looked at again.
const MESSAGES_AT_ONCE: usize = 256;

/// The plan is looked at again after this long at the latest, whatever it says.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// How much one holder is asked for at a time. The least is one chunk of full length.
const ROOM: Room = Room { requests: IN_FLIGHT_MAX, bytes_min: 1 << 20, bytes_max: IN_FLIGHT_BYTES_MAX as u64 };

/// What the desk is told.
#[derive(Debug)]
pub(super) enum Message {
    Want {
        fetch: u64,
        wanted: VecDeque<Wanted>,
        holders: Vec<PeerId>,
        class: Class,
        is_awaited: bool,
        delivered: Delivered,
    },
    /// Nobody waits for what a fetch brings.
    Ended { fetch: u64 },
    /// An object is not kept any more by whom it was given to.
    LetGo { fetch: u64, hash: Hash, len: u64, class: Class },
}

type Delivered = mpsc::UnboundedSender<Result<Arrived, FetchError>>;
type Outcome = (Ticket, Result<Bytes, AskError>);

pub(super) struct Desk {
    way: Arc<dyn Holders>,
    faults: mpsc::Sender<ChunkFault>,
    /// Holders that sent wrong bytes: others are asked first.
    penalties: Arc<Mutex<Penalties>>,
    /// Weak: the desk ends when nobody can tell it anything.
    own: mpsc::WeakUnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    planner: Planner,
    started: Instant,
    holders: BTreeMap<PeerId, HolderIndex>,
    peers: Vec<PeerId>,
    items: BTreeMap<ItemIndex, Item>,
    by_hash: BTreeMap<[u8; 32], ItemIndex>,
    fetches: BTreeMap<u64, Fetch>,
    /// Fetches with objects that are not let in yet, in the order in which they are.
    waiting: BTreeSet<(Class, u64)>,
    /// What has come and somebody keeps, and how many do.
    landed: BTreeMap<[u8; 32], (Bytes, usize)>,
    in_hand: [u64; 2],
    running: Running,
    outcomes_tx: mpsc::Sender<Outcome>,
    outcomes: mpsc::Receiver<Outcome>,
}

/// An object in the plan.
struct Item {
    wanted: Wanted,
    /// Who wants it, and the most bytes that each takes.
    fetches: BTreeMap<u64, u64>,
    /// Whether a holder has it longer than was asked for.
    is_longer: bool,
}

struct Fetch {
    class: Class,
    is_awaited: bool,
    holders: Vec<HolderIndex>,
    /// Not let in yet.
    waiting: VecDeque<Wanted>,
    /// In the plan for this fetch.
    open: BTreeSet<ItemIndex>,
    /// In the plan, or given and still kept.
    in_hand: u64,
    objects: usize,
    delivered: Delivered,
}

/// The tasks of the requests under way; they end with the desk.
#[derive(Default)]
struct Running(BTreeMap<Ticket, Request>);

struct Request {
    task: AbortHandle,
    holder: HolderIndex,
    item: ItemIndex,
    class: watch::Sender<Class>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.values().for_each(|request| request.task.abort());
    }
}

impl Desk {
    pub(super) fn new(
        way: Arc<dyn Holders>,
        faults: mpsc::Sender<ChunkFault>,
        penalties: Arc<Mutex<Penalties>>,
        own: mpsc::WeakUnboundedSender<Message>,
        messages: mpsc::UnboundedReceiver<Message>,
    ) -> Self {
        let (outcomes_tx, outcomes) = mpsc::channel(OUTCOMES_QUEUE);
        Self {
            way,
            faults,
            penalties,
            own,
            messages,
            planner: Planner::new(ROOM),
            started: Instant::now(),
            holders: BTreeMap::new(),
            peers: Vec::new(),
            items: BTreeMap::new(),
            by_hash: BTreeMap::new(),
            fetches: BTreeMap::new(),
            waiting: BTreeSet::new(),
            landed: BTreeMap::new(),
            in_hand: [0; 2],
            running: Running::default(),
            outcomes_tx,
            outcomes,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.let_in();
            let now = self.started.elapsed();
            while let Some(assignment) = self.planner.next(now) {
                self.ask(assignment);
            }
            let wake = self.planner.wake(now).unwrap_or(now + IDLE_CHECK).min(now + IDLE_CHECK);
            tokio::select! {
                biased;
                message = self.messages.recv() => match message {
                    Some(message) => self.on_message(message),
                    None => return,
                },
                Some(outcome) = self.outcomes.recv() => self.on_outcome(outcome),
                () = sleep_until(self.started + wake), if !self.planner.is_finished() => {}
            }
            for _ in 0..MESSAGES_AT_ONCE {
                let Ok(message) = self.messages.try_recv() else { break };
                self.on_message(message);
            }
            while let Ok(outcome) = self.outcomes.try_recv() {
                self.on_outcome(outcome);
            }
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Want { fetch, wanted, holders, class, is_awaited, delivered } => {
                if wanted.is_empty() {
                    return;
                }
                let holders = holders.into_iter().map(|peer| self.holder(peer)).collect();
                let (waiting, open) = (wanted, BTreeSet::new());
                let begun = Fetch { class, is_awaited, holders, waiting, open, in_hand: 0, objects: 0, delivered };
                self.fetches.insert(fetch, begun);
                self.waiting.insert((class, fetch));
            }
            Message::Ended { fetch } => self.end(fetch),
            Message::LetGo { fetch, hash, len, class } => {
                if let Some((_, kept)) = self.landed.get_mut(hash.as_bytes()) {
                    *kept -= 1;
                    if *kept == 0 {
                        self.landed.remove(hash.as_bytes());
                    }
                }
                self.out_of_hand(fetch, class, len);
            }
        }
    }

    fn holder(&mut self, peer: PeerId) -> HolderIndex {
        let (planner, peers) = (&mut self.planner, &mut self.peers);
        *self.holders.entry(peer).or_insert_with(|| {
            peers.push(peer);
            planner.add_holder()
        })
    }

    fn out_of_hand(&mut self, fetch: u64, class: Class, len: u64) {
        self.in_hand[pool(class)] -= len;
        if let Some(fetch) = self.fetches.get_mut(&fetch) {
            fetch.in_hand -= len;
            fetch.objects -= 1;
        }
    }

    fn end(&mut self, number: u64) {
        let Some(fetch) = self.fetches.remove(&number) else { return };
        self.waiting.remove(&(fetch.class, number));
        for index in fetch.open {
            let Some(item) = self.items.get_mut(&index) else { continue };
            let len = item.fetches.remove(&number).unwrap_or_default();
            self.in_hand[pool(fetch.class)] -= len;
            if item.fetches.is_empty() {
                self.by_hash.remove(item.wanted.hash.as_bytes());
                self.items.remove(&index);
                for ticket in self.planner.forget(index) {
                    self.abort(ticket);
                }
            }
        }
    }

    /// Lets into the plan what there is room for.
    fn let_in(&mut self) {
        let mut after = None;
        while let Some((class, number)) = self.next_waiting(after) {
            after = Some((class, number));
            while self.has_room_for(number) {
                let Some(wanted) = self.fetches.get_mut(&number).and_then(|fetch| fetch.waiting.pop_front()) else {
                    break;
                };
                self.want(number, wanted);
            }
            if self.fetches.get(&number).is_none_or(|fetch| fetch.waiting.is_empty()) {
                self.waiting.remove(&(class, number));
                self.finish(number);
            }
        }
    }

    fn next_waiting(&self, after: Option<(Class, u64)>) -> Option<(Class, u64)> {
        match after {
            None => self.waiting.first().copied(),
            Some(after) => self.waiting.range(after..).find(|next| **next != after).copied(),
        }
    }

    fn has_room_for(&self, number: u64) -> bool {
        let Some(fetch) = self.fetches.get(&number) else { return false };
        let all = if fetch.class == Class::Reader { READERS_BYTES_MAX } else { OTHERS_BYTES_MAX };
        let there_is = fetch.in_hand < FETCH_BYTES_MAX && self.in_hand[pool(fetch.class)] < all;
        fetch.objects == 0 || (fetch.objects < FETCH_OBJECTS_MAX && there_is)
    }

    fn want(&mut self, number: u64, wanted: Wanted) {
        let Some(fetch) = self.fetches.get_mut(&number) else { return };
        let len = wanted.len as u64;
        fetch.in_hand += len;
        fetch.objects += 1;
        self.in_hand[pool(fetch.class)] += len;
        if let Some((bytes, _)) = self.landed.get(wanted.hash.as_bytes()) {
            let bytes = bytes.clone();
            return self.deliver(number, wanted.hash, len, bytes, true);
        }
        let want = Want { class: fetch.class, is_awaited: fetch.is_awaited, len };
        if let Some((index, item)) =
            self.by_hash.get(wanted.hash.as_bytes()).and_then(|index| Some((*index, self.items.get_mut(index)?)))
        {
            item.fetches.insert(number, len);
            item.wanted.len = item.wanted.len.max(wanted.len);
            fetch.open.insert(index);
            for ticket in self.planner.join(index, want, &fetch.holders) {
                if let Some(request) = self.running.0.get(&ticket) {
                    request.class.send_replace(want.class);
                }
            }
            return;
        }
        match self.planner.want(want, &fetch.holders) {
            Some(index) => {
                fetch.open.insert(index);
                self.by_hash.insert(*wanted.hash.as_bytes(), index);
                self.items.insert(index, Item { wanted, fetches: BTreeMap::from([(number, len)]), is_longer: false });
            }
            None => self.lose(number, FetchError::Nowhere(wanted.hash), len),
        }
    }

    /// Gives an object to a fetch that has it in the plan no more.
    fn deliver(&mut self, number: u64, hash: Hash, len: u64, bytes: Bytes, is_shared: bool) {
        let Some((fetch, desk)) = self.fetches.get(&number).zip(self.own.upgrade()) else { return };
        let (class, delivered) = (fetch.class, fetch.delivered.clone());
        self.landed.entry(*hash.as_bytes()).or_insert_with(|| (bytes.clone(), 0)).1 += 1;
        let in_hand = InHand { fetch: number, hash, len, class, desk };
        // One that nobody takes is let go at once.
        let _ = delivered.send(Ok(Arrived { hash, bytes, is_shared, in_hand }));
        self.finish(number);
    }

    fn lose(&mut self, number: u64, error: FetchError, len: u64) {
        let Some(fetch) = self.fetches.get(&number) else { return };
        let _ = fetch.delivered.send(Err(error));
        let class = fetch.class;
        self.out_of_hand(number, class, len);
        self.finish(number);
    }

    /// Ends a fetch of which everything has come.
    fn finish(&mut self, number: u64) {
        if self.fetches.get(&number).is_some_and(|fetch| fetch.waiting.is_empty() && fetch.open.is_empty()) {
            self.fetches.remove(&number);
        }
    }

    fn ask(&mut self, assignment: Assignment) {
        let Assignment { ticket, holder, item, class, is_second } = assignment;
        let (Some(peer), Some(wanted)) = (self.peers.get(holder.0), self.items.get(&item).map(|item| item.wanted))
        else {
            return;
        };
        let peer = *peer;
        if is_second && let Some(slow) = self.running.0.values().find(|request| request.item == item) {
            tracing::debug!(%peer, hash = %wanted.hash, "asking a second holder");
            self.report(slow.holder, wanted.hash, FaultReason::Slow);
        }
        let (way, outcomes) = (Arc::clone(&self.way), self.outcomes_tx.clone());
        let (class, class_now) = watch::channel(class);
        let task = maillage_host::spawn(async move {
            let result = way.ask(peer, wanted, class_now).await;
            // Nobody listens when the desk has ended.
            let _ = outcomes.send((ticket, result)).await;
        });
        self.running.0.insert(ticket, Request { task: task.abort_handle(), holder, item, class });
    }

    fn abort(&mut self, ticket: Ticket) {
        if let Some(request) = self.running.0.remove(&ticket) {
            request.task.abort();
        }
    }

    fn on_outcome(&mut self, (ticket, result): Outcome) {
        // Else cancelled, and done before it noticed.
        let Some(request) = self.running.0.remove(&ticket) else { return };
        let now = self.started.elapsed();
        match result {
            Ok(bytes) => {
                let settled = self.planner.on_done(now, ticket);
                self.settle(settled, Some(bytes));
            }
            Err(error) => {
                let failure = self.judge(now, &request, &error);
                let settled = self.planner.on_failed(now, ticket, failure);
                self.settle(settled, None);
            }
        }
    }

    fn judge(&mut self, now: Duration, request: &Request, error: &AskError) -> Failure {
        let Some(item) = self.items.get_mut(&request.item) else { return Failure::Unavailable };
        item.is_longer |= matches!(error, AskError::Get(GetError::TooLong { .. }));
        let hash = item.wanted.hash;
        tracing::debug!(holder = request.holder.0, %hash, %error, "a holder did not give a chunk");
        let reason = match error {
            AskError::Get(GetError::Absent | GetError::TooLong { .. }) => return Failure::Absent,
            AskError::Get(GetError::WrongBytes) => FaultReason::WrongBytes,
            AskError::Get(error) if error.is_fault_of_holder() => FaultReason::Malformed,
            AskError::Get(_) | AskError::Link(_) => FaultReason::Unavailable,
        };
        self.report(request.holder, hash, reason);
        match (reason, error) {
            (reason, _) if reason.is_an_offence() => {
                self.penalise(now, request.holder);
                Failure::Fault
            }
            // No waiting makes a member of it.
            (_, AskError::Link(LinkError::NotAMember(_) | LinkError::NoAddress(_))) => Failure::Fault,
            _ => Failure::Unavailable,
        }
    }

    /// For a while a holder is asked only for what no other has.
    fn penalise(&mut self, now: Duration, holder: HolderIndex) {
        let Some(peer) = self.peers.get(holder.0).copied() else { return };
        let mut penalties = self.penalties.lock().unwrap_or_else(PoisonError::into_inner);
        penalties.note(peer, Instant::now());
        let left = penalties.of(&peer, Instant::now()).map_or(Duration::ZERO, |penalty| penalty.left);
        self.planner.distrust(holder, now + left);
    }

    fn report(&self, holder: HolderIndex, hash: Hash, reason: FaultReason) {
        let Some(peer) = self.peers.get(holder.0).copied() else { return };
        if reason.is_an_offence() {
            tracing::warn!(%peer, %hash, reason = reason.as_str(), "a holder did not give what it should");
        }
        // Full: whoever counts is behind. The log has the ones that matter.
        let _ = self.faults.try_send(ChunkFault { peer, hash, reason });
    }

    fn settle(&mut self, settled: Settled, bytes: Option<Bytes>) {
        for ticket in settled.cancelled {
            self.abort(ticket);
        }
        let had = settled.had.into_iter().zip(bytes.map(Some));
        for (index, bytes) in had.chain(settled.lost.into_iter().map(|index| (index, None))) {
            let Some(Item { wanted, fetches, is_longer }) = self.items.remove(&index) else { continue };
            self.by_hash.remove(wanted.hash.as_bytes());
            for (place, (number, len)) in fetches.into_iter().enumerate() {
                if let Some(fetch) = self.fetches.get_mut(&number) {
                    fetch.open.remove(&index);
                }
                match &bytes {
                    Some(bytes) => self.deliver(number, wanted.hash, len, bytes.clone(), place > 0),
                    None if is_longer => self.lose(number, FetchError::TooLong(wanted.hash), len),
                    None => self.lose(number, FetchError::Nowhere(wanted.hash), len),
                }
            }
        }
    }
}

/// Readers' fetches have bytes in hand of their own.
fn pool(class: Class) -> usize {
    usize::from(class != Class::Reader)
}
