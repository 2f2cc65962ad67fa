//! The world that all simulated nodes share: their lives, the trace, and what went wrong in it.
//!
//! A node is a *slot*; each time it starts is an *incarnation*. Every task belongs to one incarnation
//! (through `maillage_host::spawn`), so that a crash ends exactly that node's tasks at one instant.
//! Slot 0 is the harness: clients, faults and observers, which never crash.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Arguments;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use maillage_host::task::{Scheduler, Scope};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use crate::rng::Rng;
use crate::trace::Trace;

/// Polls at one simulated instant after which the world counts as stuck.
const POLLS_AT_ONE_INSTANT_MAX: u64 = 3_000_000;
/// Polls of one task at one simulated instant after which it is made to wait: work takes time, and
/// code that spins until something changes would otherwise stop the clock for all.
const POLLS_OF_A_TASK_MAX: u32 = 50;
/// The longest that a spinning task is made to wait, milliseconds.
const SPIN_WAIT_MS_MAX: u64 = 50;
/// Abort handles of ended tasks are dropped each time so many gathered.
const ABORTS_KEPT: usize = 512;
/// Violations kept; those that follow the first ones say little more.
const VIOLATIONS_KEPT: usize = 20;

/// One life of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) slot: u32,
    pub(crate) incarnation: u32,
}

/// The harness itself.
pub(crate) const HARNESS: Owner = Owner { slot: 0, incarnation: 0 };

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Simulated time at which it was seen.
    pub at: Duration,
    /// The invariant's name: `I1` … or `panic`, `startup`.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

#[derive(Default)]
struct Life {
    incarnation: u32,
    up: bool,
    paused: bool,
    parked: Vec<Waker>,
    aborts: Vec<AbortHandle>,
    prune_at: usize,
    /// What the node's wall clock is ahead (milliseconds).
    clock_ahead_ms: i64,
    /// … and gains each second (parts per million).
    clock_drift_ppm: i64,
}

struct State {
    lives: BTreeMap<u32, Life>,
    polls: u64,
    polls_here: (Duration, u64),
    /// How often a task that could run is made to wait a turn, to explore other orders.
    shake: f64,
    shaking: Rng,
    sometimes: BTreeMap<&'static str, u64>,
    violations: Vec<Violation>,
    crash_requests: VecDeque<(u32, &'static str)>,
}

/// See the module.
pub(crate) struct World {
    start: Instant,
    state: Mutex<State>,
    trace: Mutex<Trace>,
    crash_asked: Notify,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A world that begins now; call it inside the paused runtime.
    pub(crate) fn new(seed: u64, trace: Trace, shake: f64) -> Arc<Self> {
        let state = State {
            lives: BTreeMap::new(),
            polls: 0,
            polls_here: (Duration::ZERO, 0),
            shake,
            shaking: Rng::stream(seed, "shake"),
            sometimes: BTreeMap::new(),
            violations: Vec::new(),
            crash_requests: VecDeque::new(),
        };
        Arc::new(Self {
            start: Instant::now(),
            state: Mutex::new(state),
            trace: Mutex::new(trace),
            crash_asked: Notify::new(),
        })
    }

    /// Simulated time since the world began.
    pub(crate) fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.start)
    }

    pub(crate) fn instant(&self, at: Duration) -> Instant {
        self.start + at
    }

    pub(crate) fn event(&self, slot: u32, what: Arguments<'_>) {
        let now = self.now();
        lock(&self.trace).event(now, slot, what);
    }

    /// Notes that a rare path was reached.
    pub(crate) fn sometimes(&self, what: &'static str) {
        *lock(&self.state).sometimes.entry(what).or_default() += 1;
    }

    pub(crate) fn violation(&self, invariant: &'static str, detail: String) {
        self.event(0, format_args!("VIOLATION {invariant}: {detail}"));
        let at = self.now();
        let mut state = lock(&self.state);
        if state.violations.len() < VIOLATIONS_KEPT {
            state.violations.push(Violation { at, invariant, detail });
        }
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        lock(&self.state).violations.clone()
    }

    pub(crate) fn is_violated(&self) -> bool {
        !lock(&self.state).violations.is_empty()
    }

    pub(crate) fn reached(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.state).sometimes.clone()
    }

    /// The trace's digest, its events, and the polls so far.
    pub(crate) fn account(&self) -> (String, u64, u64) {
        let polls = lock(&self.state).polls;
        let mut trace = lock(&self.trace);
        (trace.digest(), trace.events(), polls)
    }

    // ---- lives

    /// Begins a life of `slot`.
    pub(crate) fn boot(&self, slot: u32) -> Owner {
        let mut state = lock(&self.state);
        let life = state.lives.entry(slot).or_default();
        life.incarnation += 1;
        life.up = true;
        life.paused = false;
        let owner = Owner { slot, incarnation: life.incarnation };
        drop(state);
        self.event(slot, format_args!("boot {}", owner.incarnation));
        owner
    }

    /// Ends the life of `slot` now: from here on nothing of it runs, and what its tasks drop has no
    /// effect on the world.
    pub(crate) fn end(&self, slot: u32) {
        let mut state = lock(&self.state);
        let Some(life) = state.lives.get_mut(&slot) else { return };
        life.up = false;
        life.paused = false;
        life.parked.clear();
        let aborts = std::mem::take(&mut life.aborts);
        life.prune_at = 0;
        drop(state);
        for abort in aborts {
            abort.abort();
        }
    }

    pub(crate) fn is_alive(&self, owner: Owner) -> bool {
        owner == HARNESS
            || lock(&self.state)
                .lives
                .get(&owner.slot)
                .is_some_and(|life| life.up && life.incarnation == owner.incarnation)
    }

    pub(crate) fn is_up(&self, slot: u32) -> bool {
        lock(&self.state).lives.get(&slot).is_some_and(|life| life.up)
    }

    /// The life that `slot` is in, or was in last.
    pub(crate) fn owner(&self, slot: u32) -> Owner {
        Owner { slot, incarnation: lock(&self.state).lives.get(&slot).map_or(0, |life| life.incarnation) }
    }

    /// How many tasks the node of `slot` has that have begun and not ended.
    pub(crate) fn tasks_alive(&self, slot: u32) -> usize {
        let state = lock(&self.state);
        let alive = |life: &Life| life.aborts.iter().filter(|abort| !abort.is_finished()).count();
        state.lives.get(&slot).map_or(0, alive)
    }

    /// Stops the node's tasks where they are, as SIGSTOP does.
    pub(crate) fn pause(&self, slot: u32) {
        self.event(slot, format_args!("pause"));
        if let Some(life) = lock(&self.state).lives.get_mut(&slot) {
            life.paused = life.up;
        }
    }

    pub(crate) fn resume(&self, slot: u32) {
        let parked = {
            let mut state = lock(&self.state);
            let Some(life) = state.lives.get_mut(&slot) else { return };
            if !std::mem::take(&mut life.paused) {
                return;
            }
            std::mem::take(&mut life.parked)
        };
        self.event(slot, format_args!("resume"));
        parked.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn set_clock_ahead(&self, slot: u32, ms: i64) {
        lock(&self.state).lives.entry(slot).or_default().clock_ahead_ms = ms;
    }

    pub(crate) fn set_clock_drift(&self, slot: u32, ppm: i64) {
        lock(&self.state).lives.entry(slot).or_default().clock_drift_ppm = ppm;
    }

    /// What the wall clock of `slot` shows, milliseconds since the Unix epoch.
    pub(crate) fn wall_ms(&self, slot: u32) -> u64 {
        /// 2026-01-01T00:00:00Z.
        const EPOCH_MS: u64 = 1_767_225_600_000;
        let state = lock(&self.state);
        let (ahead, drift) = state.lives.get(&slot).map_or((0, 0), |life| (life.clock_ahead_ms, life.clock_drift_ppm));
        drop(state);
        let now = i64::try_from(self.now().as_millis()).unwrap_or(i64::MAX);
        let gained = now.saturating_mul(drift) / 1_000_000;
        EPOCH_MS.saturating_add_signed(now.saturating_add(gained).saturating_add(ahead))
    }

    /// Asks the harness to crash `slot` at this instant (a power cut inside an operation).
    pub(crate) fn request_crash(&self, slot: u32, why: &'static str) {
        lock(&self.state).crash_requests.push_back((slot, why));
        self.crash_asked.notify_one();
    }

    pub(crate) async fn next_crash_request(&self) -> (u32, &'static str) {
        loop {
            let next = lock(&self.state).crash_requests.pop_front();
            match next {
                Some(next) => return next,
                None => self.crash_asked.notified().await,
            }
        }
    }

    // ---- tasks

    /// Starts a task that belongs to `owner`.
    pub(crate) fn spawn_on<F>(&self, owner: Owner, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _as_owner = self.act_as(owner);
        maillage_host::spawn(future)
    }

    fn act_as(&self, owner: Owner) -> Acting<'_> {
        let (_, before) = ACTING.replace((Some(self.start), owner));
        Acting { world: self, before }
    }

    /// Lets a task of `owner` be polled at `now`, unless it is over. One that is paused, or made to wait a turn, is
    /// woken later.
    fn admit(&self, owner: Owner, cx: &Context<'_>, now: Duration) -> Option<Acting<'_>> {
        let mut state = lock(&self.state);
        state.polls += 1;
        state.polls_here = if state.polls_here.0 == now { (now, state.polls_here.1 + 1) } else { (now, 0) };
        assert!(
            state.polls_here.1 < POLLS_AT_ONE_INSTANT_MAX,
            "the world is stuck at {now:?}: tasks of slot {} wake each other forever",
            owner.slot
        );
        let State { lives, shake, shaking, .. } = &mut *state;
        if owner != HARNESS {
            let life = lives.get_mut(&owner.slot)?;
            if !life.up || life.incarnation != owner.incarnation {
                return None;
            }
            if life.paused {
                life.parked.push(cx.waker().clone());
                return None;
            }
        }
        if shaking.chance(*shake) {
            cx.waker().wake_by_ref();
            return None;
        }
        Some(self.act_as(owner))
    }

    fn adopt(&self, owner: Owner, abort: AbortHandle) {
        if owner == HARNESS {
            return;
        }
        let mut state = lock(&self.state);
        let Some(life) = state.lives.get_mut(&owner.slot) else { return };
        if !life.up || life.incarnation != owner.incarnation {
            drop(state);
            abort.abort();
            return;
        }
        if life.aborts.len() >= life.prune_at.max(ABORTS_KEPT) {
            life.aborts.retain(|abort| !abort.is_finished());
            life.prune_at = life.aborts.len() * 2;
        }
        life.aborts.push(abort);
    }
}

thread_local! {
    /// When the world of this thread began, and whose task runs.
    static ACTING: Cell<(Option<Instant>, Owner)> = const { Cell::new((None, HARNESS)) };
}

/// The simulated time, and the slot whose task runs (0 outside of all): for log lines.
pub fn acting() -> (Duration, u32) {
    let (start, owner) = ACTING.get();
    (start.map_or(Duration::ZERO, |start| start.elapsed()), owner.slot)
}

struct Acting<'a> {
    world: &'a World,
    before: Owner,
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        ACTING.set((Some(self.world.start), self.before));
    }
}

/// What `maillage_host::spawn` asks.
pub(crate) struct Tasks(pub(crate) Arc<World>);

impl Scheduler for Tasks {
    fn scope(&self, place: &'static Location<'static>) -> Box<dyn Scope> {
        let (_, owner) = ACTING.get();
        Box::new(TaskScope { world: Arc::clone(&self.0), owner, place, pace: Mutex::default() })
    }
}

struct TaskScope {
    world: Arc<World>,
    owner: Owner,
    /// Where the task was started.
    place: &'static Location<'static>,
    pace: Mutex<Pace>,
}

/// How often a task ran at one instant, and how long it was made to wait for it.
#[derive(Default)]
struct Pace {
    at: Duration,
    polls: u32,
    wait_ms: u64,
    waits: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl TaskScope {
    /// Whether the task may run on at `now`; if not, it is woken when its wait is over.
    fn paces(&self, cx: &mut Context<'_>, now: Duration) -> bool {
        let mut pace = lock(&self.pace);
        if let Some(wait) = &mut pace.waits {
            if wait.as_mut().poll(cx).is_pending() {
                return false;
            }
            pace.waits = None;
        }
        if pace.at != now {
            // One that spins again right after its wait waits longer.
            let spins = pace.polls > POLLS_OF_A_TASK_MAX;
            pace.wait_ms = if spins { (pace.wait_ms * 2).clamp(1, SPIN_WAIT_MS_MAX) } else { 0 };
            (pace.at, pace.polls) = (now, 0);
        }
        pace.polls += 1;
        if pace.polls <= POLLS_OF_A_TASK_MAX {
            return true;
        }
        self.world.sometimes("a task span without waiting");
        self.world.event(self.owner.slot, format_args!("spins: the task of {}", self.place));
        let mut wait = Box::pin(tokio::time::sleep(Duration::from_millis(pace.wait_ms.max(1))));
        let ready = wait.as_mut().poll(cx).is_ready();
        pace.waits = Some(wait);
        ready
    }
}

impl Scope for TaskScope {
    fn enter(&self, cx: &mut Context<'_>, poll: &mut dyn FnMut(&mut Context<'_>)) {
        let now = self.world.now();
        if let Some(_acting) = self.world.admit(self.owner, cx, now)
            && (self.owner == HARNESS || self.paces(cx, now))
        {
            poll(cx);
        }
    }

    fn started(&self, abort: AbortHandle) {
        self.world.adopt(self.owner, abort);
    }
}
