//! Lives and datagrams without a mesh: for tests of what runs over this network, and for measuring it.
//!
//! A run of the simulator owns its process's scheduler; scenes share one, a scene to a thread.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::Duration;

use maillage_host::task::{Scheduler, Scope};
use maillage_host::{Clock, UnixMillis};
use maillage_transport::quinn::AsyncUdpSocket;
use tokio::task::{AbortHandle, JoinHandle};

use super::{Datagrams, Flaws, Traffic, address};
use crate::net::Quality;
use crate::run::RunError;
use crate::trace::Trace;
use crate::world::{Tasks, World};

thread_local! {
    static HERE: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

/// A world of nothing but lives and their datagrams.
pub struct Scene {
    world: Arc<World>,
    network: Arc<Datagrams>,
}

impl Scene {
    /// A scene on this thread; call it inside a paused `current_thread` runtime. `shake` is how often a
    /// task that could run is made to wait a turn.
    ///
    /// # Errors
    /// [`RunError::Second`] when this process has had a run, or this thread has a scene.
    pub fn open(seed: u64, shake: f64) -> Result<Self, RunError> {
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        let is_ours = *INSTALLED.get_or_init(|| maillage_host::task::install(Box::new(OfThisThread)).is_ok());
        if !is_ours || HERE.with_borrow(Option::is_some) {
            return Err(RunError::Second);
        }
        let world = World::new(seed, Trace::new(None).map_err(RunError::Trace)?, shake);
        HERE.set(Some(Arc::clone(&world)));
        let network = Datagrams::new(Arc::clone(&world), seed);
        drop(maillage_host::spawn(Arc::clone(&network).pump()));
        Ok(Self { world, network })
    }

    // ---- lives

    /// Begins a life of `slot`; slots count from 1.
    pub fn begin(&self, slot: u32) {
        self.world.boot(slot);
    }

    /// Ends the life of `slot` at this instant, with all its tasks.
    pub fn end(&self, slot: u32) {
        let owner = self.world.owner(slot);
        self.world.end(slot);
        self.network.node_ended(owner);
    }

    /// Stops the tasks of `slot` where they are.
    pub fn pause(&self, slot: u32) {
        self.world.pause(slot);
    }

    /// Lets them go on.
    pub fn resume(&self, slot: u32) {
        self.world.resume(slot);
    }

    /// Runs `future` as the present life of `slot`. It is cancelled when that life ends.
    pub fn run<F>(&self, slot: u32, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.world.spawn_on(self.world.owner(slot), future)
    }

    /// The wall clock of `slot`.
    pub fn clock(&self, slot: u32) -> Clock {
        let world = Arc::clone(&self.world);
        Clock::from_fn(move || UnixMillis(world.wall_ms(slot)))
    }

    /// Simulated time since the scene began.
    pub fn now(&self) -> Duration {
        self.world.now()
    }

    /// The digest of all events, their number, and the polls of tasks so far.
    pub fn account(&self) -> (String, u64, u64) {
        self.world.account()
    }

    // ---- the network

    /// The address of a socket of `slot`.
    pub fn address(&self, slot: u32, port: u16) -> SocketAddr {
        address(slot, port)
    }

    /// A socket of the present life of `slot`; port 0 gives any free one.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn socket(&self, slot: u32, port: u16) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(self.network.bind(self.world.owner(slot), port)?)
    }

    /// Makes links of this latency, jitter and rate between all of `slots`, both ways.
    pub fn join(&self, slots: &[u32], latency: Duration, jitter: Duration, bytes_per_second: u64) {
        let ways = slots.iter().flat_map(|from| slots.iter().map(move |to| (*from, *to)));
        for (from, to) in ways.filter(|(from, to)| from != to) {
            self.network.set_quality(from, to, Quality { latency, jitter, bytes_per_second });
        }
    }

    /// Gives a directed link its flaws.
    pub fn set_flaws(&self, from: u32, to: u32, flaws: Flaws) {
        self.network.set_flaws(from, to, flaws);
    }

    /// Adds to a directed link's latency.
    pub fn set_extra_latency(&self, from: u32, to: u32, extra: Duration) {
        self.network.set_extra_latency(from, to, extra);
    }

    /// Cuts a directed link, until it was mended as often.
    pub fn cut(&self, from: u32, to: u32) {
        self.network.cut(from, to);
    }

    /// Takes one cut back.
    pub fn mend(&self, from: u32, to: u32) {
        self.network.mend(from, to);
    }

    /// Takes back every cut, darkness and extra latency.
    pub fn heal(&self) {
        self.network.heal();
    }

    /// Darkens a link both ways for longer than a connection lasts in silence.
    pub fn break_connection(&self, a: u32, b: u32) {
        self.network.break_connection(a, b);
    }

    /// What the network carried so far.
    pub fn traffic(&self) -> Traffic {
        self.network.traffic()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        HERE.set(None);
    }
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene").field("now", &self.now()).field("traffic", &self.traffic()).finish_non_exhaustive()
    }
}

/// The tasks of each thread belong to that thread's scene, if it has one.
struct OfThisThread;

impl Scheduler for OfThisThread {
    fn scope(&self, place: &'static std::panic::Location<'static>) -> Box<dyn Scope> {
        match HERE.with_borrow(Clone::clone) {
            Some(world) => Tasks(world).scope(place),
            None => Box::new(Unowned),
        }
    }
}

struct Unowned;

impl Scope for Unowned {
    fn enter(&self, cx: &mut Context<'_>, poll: &mut dyn FnMut(&mut Context<'_>)) {
        poll(cx);
    }

    fn started(&self, _abort: AbortHandle) {}
}
