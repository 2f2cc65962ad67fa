//! Spawning: the one place where tasks start.
//!
//! In production [`spawn`] is `tokio::spawn` and [`offload`] is tokio's blocking pool. A simulator
//! installs a [`Scheduler`] once per process; every task then belongs to the node that spawned it,
//! so that a crash ends exactly that node's tasks, and blocking work runs inline.

use std::future::Future;
use std::io;
use std::panic::{self, Location};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::thread;

use tokio::task::JoinHandle;

/// What a simulator supplies to own the tasks of its nodes.
pub trait Scheduler: Send + Sync + 'static {
    /// The scope of a task about to be spawned, at this place of the code, by the node that is running
    /// now.
    fn scope(&self, place: &'static Location<'static>) -> Box<dyn Scope>;
}

/// One task's belonging to a node.
pub trait Scope: Send + 'static {
    /// Runs `poll` as the owning node, or not at all when that node is down or paused (the task's
    /// waker, in `cx`, is then the scheduler's to keep). A task not polled stays pending.
    fn enter(&self, cx: &mut Context<'_>, poll: &mut dyn FnMut(&mut Context<'_>));
    /// Called once with the means to abort the task.
    fn started(&self, abort: tokio::task::AbortHandle);
}

static SCHEDULER: OnceLock<Box<dyn Scheduler>> = OnceLock::new();

/// Puts every later [`spawn`] and [`offload`] of this process under `scheduler`.
///
/// # Errors
/// Returns the scheduler when one is installed already.
pub fn install(scheduler: Box<dyn Scheduler>) -> Result<(), Box<dyn Scheduler>> {
    SCHEDULER.set(scheduler)
}

/// Starts a task on the current runtime.
#[expect(clippy::disallowed_methods, reason = "this is the seam that the lint points to")]
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Some(scheduler) = SCHEDULER.get() else {
        return tokio::spawn(future);
    };
    let scope = scheduler.scope(Location::caller());
    let (handle_tx, handle_rx) = mpsc::channel::<tokio::task::AbortHandle>();
    let task = tokio::spawn(Scoped { scope, future: Some(Box::pin(future)), handle: Some(handle_rx) });
    // A failed send means the task ended already; it then needs no abort handle.
    let _ = handle_tx.send(task.abort_handle());
    task
}

struct Scoped<F: Future> {
    scope: Box<dyn Scope>,
    future: Option<Pin<Box<F>>>,
    handle: Option<mpsc::Receiver<tokio::task::AbortHandle>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if let Some(handle) = this.handle.take().and_then(|rx| rx.recv().ok()) {
            this.scope.started(handle);
        }
        let mut result = Poll::Pending;
        if let Some(future) = this.future.as_mut() {
            this.scope.enter(cx, &mut |cx| result = future.as_mut().poll(cx));
        }
        result
    }
}

/// Runs blocking work (file I/O, hashing of large buffers) away from the async threads.
///
/// # Errors
/// `io::ErrorKind::Other` when the work panicked or the runtime is shutting down; otherwise what
/// `work` returned.
#[expect(clippy::disallowed_methods, reason = "this is the seam that the lint points to")]
pub async fn offload<T, W>(work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> io::Result<T> + Send + 'static,
{
    if SCHEDULER.get().is_some() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Work for the threads behind all others.
type Job = Box<dyn FnOnce() + Send>;

/// How far behind: a thread of these gets a twentieth of what another gets that wants the same processor (setpriority(2),
/// sched(7)), and all of it while none does.
const NICE: i32 = 13;

/// As [`offload`], for work that nobody waits for, or not yet: on as many threads as there are processors, which
/// leave them to all others.
///
/// # Errors
/// As [`offload`].
pub async fn offload_behind<T, W>(work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> io::Result<T> + Send + 'static,
{
    if SCHEDULER.get().is_some() {
        return work();
    }
    let Some(queue) = behind() else { return offload(work).await };
    let (reply, done) = tokio::sync::oneshot::channel();
    let job: Job = Box::new(move || drop(reply.send(work())));
    queue.send(job).map_err(|_| io::Error::other("no thread is left"))?;
    done.await.map_err(|_| io::Error::other("the work panicked"))?
}

/// The queue of the threads behind all others; none if the machine grants no thread.
fn behind() -> Option<&'static mpsc::Sender<Job>> {
    static QUEUE: OnceLock<Option<mpsc::Sender<Job>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (queue, jobs) = mpsc::channel::<Job>();
        let (jobs, mut is_served) = (Arc::new(Mutex::new(jobs)), false);
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let jobs = Arc::clone(&jobs);
            let started = thread::Builder::new().name("behind".to_owned()).spawn(move || {
                // Of this thread alone, on Linux. Where it is not granted, the work is done all the same.
                let _ = rustix::process::setpriority_process(None, NICE);
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // Who waits for it is told by the dropped reply.
                    let _ = panic::catch_unwind(panic::AssertUnwindSafe(job));
                }
            });
            match started {
                Ok(_) => is_served = true,
                Err(error) => tracing::error!(%error, "no thread for what nobody waits for"),
            }
        }
        is_served.then_some(queue)
    });
    queue.as_ref()
}
