//! One run: a mesh is built, worked and harmed, heals, and is judged.

use std::collections::BTreeMap;
use std::panic;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::View;

use crate::cluster::{Cluster, FOUNDER};
use crate::disk::Ending;
use crate::invariants::{
    claims, commitments, copies, events, gateway, limits, liveness, outbox, patients, prefetch, purges, retrieval,
    tokens,
};
use crate::plan::{Fault, Faults, Plan, Settings};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::world::{Tasks, Violation, World};
use crate::{nemesis, workload};

/// How long building the mesh may take.
const BUILD: Duration = Duration::from_secs(120);

/// A fault that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Its number, the same however many others are left out.
    pub number: u64,
    /// Its kind.
    pub fault: Fault,
    /// Simulated time.
    pub at: Duration,
}

/// What a run showed.
#[derive(Debug, Clone)]
pub struct Report {
    /// Broken invariants, in the order in which they were seen; the first matters most.
    pub violations: Vec<Violation>,
    /// The hash of all events.
    pub digest: String,
    /// Events in the trace.
    pub events: u64,
    /// Polls of tasks.
    pub polls: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// From the last fault to the last report.
    pub recovered: Duration,
    /// Exams, completions and instances acknowledged, histories checked, states compared.
    pub counts: [usize; 5],
    /// Rare paths, and how often each was reached.
    pub reached: BTreeMap<&'static str, u64>,
    /// The kinds of fault of the run.
    pub faults: String,
    /// Those of them that last for the whole run.
    pub throughout: Vec<Fault>,
    /// The faults done, in order.
    pub begun: Vec<Begun>,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The trace file can't be written.
    #[error("write the trace: {0}")]
    Trace(#[source] std::io::Error),
    /// The runtime can't be built.
    #[error("start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    /// A process holds one world.
    #[error("this process has had a run already")]
    Second,
}

/// Runs `settings` to the end. Once per process: the scheduler is installed for good.
///
/// The same settings give the same events only if the caller has made the process's randomness
/// deterministic first, as the binary does.
///
/// # Errors
/// [`RunError`]; a broken invariant is no error but in the report.
pub fn run(settings: &Settings) -> Result<Report, RunError> {
    let cluster_of = |world| Cluster::new(world, Plan::draw(settings));
    in_a_world(settings.seed, settings.trace.as_deref(), Plan::draw(settings).shake, cluster_of, |cluster| async move {
        let recovered = maillage_host::spawn(play(Arc::clone(&cluster))).await.unwrap_or_default();
        note_panics(&cluster.world);
        judge(&cluster, recovered)
    })
}

/// Plays in a world of its own, which this process can have once.
pub(crate) fn in_a_world<T, F>(
    seed: u64,
    trace: Option<&Path>,
    shake: f64,
    cluster_of: impl FnOnce(Arc<World>) -> Arc<Cluster>,
    play: impl FnOnce(Arc<Cluster>) -> F,
) -> Result<T, RunError>
where
    F: Future<Output = T>,
{
    let trace = Trace::new(trace).map_err(RunError::Trace)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(RunError::Runtime)?;
    let played = runtime.block_on(async move {
        let world = World::new(seed, trace, shake);
        let installed = maillage_host::task::install(Box::new(Tasks(Arc::clone(&world))));
        installed.map_err(|_| RunError::Second)?;
        watch_panics();
        Ok(play(cluster_of(world)).await)
    });
    // What is left of the nodes is not to be run any more.
    runtime.shutdown_background();
    played
}

/// Panics anywhere in the process, which tokio would keep to the task.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn watch_panics() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        crate::world::lock(&PANICS).push(info.to_string());
        default(info);
    }));
}

/// Makes violations of the panics so far.
pub(crate) fn note_panics(world: &World) {
    for panic in std::mem::take(&mut *crate::world::lock(&PANICS)) {
        world.violation("panic", panic);
    }
}

async fn play(cluster: Arc<Cluster>) -> Duration {
    let world = Arc::clone(&cluster.world);
    if !begin(&cluster, BUILD).await {
        return Duration::ZERO;
    }
    if let Some(gateway) = cluster.gateway_slot() {
        cluster.invite(gateway).await;
        cluster.boot(gateway);
    }
    let clients = workload::start(&cluster);
    drop(maillage_host::spawn(look_around(Arc::clone(&cluster))));
    drop(maillage_host::spawn(limits::watch(Arc::clone(&cluster))));
    drop(maillage_host::spawn(events::follow(Arc::clone(&cluster), Rng::stream(cluster.plan.seed, "events"))));
    let until = world.now() + cluster.plan.duration;
    nemesis::run(Arc::clone(&cluster), until).await;
    if world.now() < until && !world.is_violated() {
        tokio::time::sleep_until(world.instant(until)).await;
    }
    world.event(0, format_args!("the faults are over"));
    nemesis::upgrade::is_done(&cluster).await;
    nemesis::placement::settle(&cluster).await;
    if world.is_violated() {
        return Duration::ZERO;
    }
    finish(&cluster, clients).await
}

/// Lets everything end, then compares.
async fn finish(cluster: &Arc<Cluster>, clients: workload::Clients) -> Duration {
    cluster.end_work();
    let mut rng = Rng::stream(cluster.plan.seed, "end");
    // One voter of three may be away, or lost; not both.
    let stays_away = cluster.plan.one_stays_away && (!cluster.has_lost_one() || cluster.plan.voters() >= 5);
    let away = stays_away.then(|| u32::try_from(rng.between(1, u64::from(cluster.plan.sites))).unwrap_or(1));
    if let Some(slot) = away {
        cluster.hold_down(slot);
        cluster.stop(slot, Ending::PowerCut, "and stays away");
    }
    let later = liveness::senders_finish(cluster, clients.senders, away).await;
    let recovered = liveness::everything_is_read(cluster, away).await;
    if let Some(slot) = away {
        cluster.world.sometimes("a site stayed away while the others finished");
        cluster.let_up(slot);
        liveness::senders_finish(cluster, later, None).await;
        liveness::everything_is_read(cluster, None).await;
    }
    for reader in &clients.readers {
        reader.abort();
    }
    outbox::all_are_sent(cluster).await;
    for client in &clients.apart {
        client.abort();
    }
    gateway::owes_nothing(cluster).await;
    copies::all_are_made(cluster).await;
    cluster.set_healed();
    commitments::all_are_answered(cluster, clients.committing).await;
    retrieval::everything_is_there(cluster).await;
    gateway::reports_are_delivered(cluster).await;
    cluster.watch.gateway.check_all(cluster).await;
    purges::all_are_over(cluster).await;
    liveness::replicas_converge(cluster, cluster.count()).await;
    purges::all_are_gone(cluster).await;
    gateway::is_wiped(cluster).await;
    patients::priors_are_there(cluster).await;
    cluster.watch.outbox.check_all(cluster).await;
    for running in cluster.all_running() {
        cluster.watch.finality.check(&running, true);
        cluster.watch.course.check(&running, true);
        cluster.watch.outbox.check(&running, true);
        cluster.watch.steps.check(&running, true);
        cluster.watch.purges.check(&running);
        cluster.watch.audit.check(&running);
        cluster.watch.events.check_all(&running);
        patients::check(cluster, &running, true);
        if cluster.rotten() != Some(running.owner.slot) {
            cluster.watch.instances.check_all(&running).await;
        }
    }
    recovered
}

/// Looks at every node now and then.
pub(crate) async fn look_around(cluster: Arc<Cluster>) {
    let mut last_leader = None;
    loop {
        tokio::time::sleep(cluster.plan.look_every).await;
        for running in cluster.all_running() {
            cluster.watch.finality.check(&running, false);
            cluster.watch.course.check(&running, false);
            cluster.watch.outbox.check(&running, false);
            cluster.watch.steps.check(&running, false);
            cluster.watch.purges.check(&running);
            cluster.watch.audit.check(&running);
            patients::check(&cluster, &running, false);
            cluster.watch.replicas.compare(&running);
            prefetch::check(&cluster, &running).await;
        }
        cluster.watch.giving.sample(&cluster).await;
        cluster.watch.gateway.check(&cluster).await;
        let leader = cluster.leader();
        if leader.is_some() && leader != last_leader {
            if last_leader.is_some() {
                cluster.world.sometimes("the leader changed");
            }
            last_leader = leader;
        }
    }
}

fn judge(cluster: &Arc<Cluster>, recovered: Duration) -> Report {
    let world = &cluster.world;
    // The simplest first: a token that falls also makes histories that nothing explains.
    tokens::check_all(world, &cluster.history);
    let histories = claims::check_all(world, &cluster.history);
    let (exams, completed) = cluster.watch.finality.counts();
    let compared = usize::try_from(cluster.watch.replicas.compared()).unwrap_or(usize::MAX);
    let simulated = world.now();
    let (digest, events, polls) = world.account();
    Report {
        violations: world.violations(),
        digest,
        events,
        polls,
        simulated,
        recovered,
        counts: [exams, completed, cluster.watch.instances.count(), histories, compared],
        reached: world.reached(),
        faults: Faults::These(cluster.plan.faults.clone()).to_string(),
        throughout: cluster.plan.throughout().collect(),
        begun: cluster.begun(),
    }
}

// ---- building the mesh

/// Starts the machines and builds the mesh; a violation when that takes longer than `limit`.
pub(crate) async fn begin(cluster: &Arc<Cluster>, limit: Duration) -> bool {
    drop(maillage_host::spawn(cluster.fabric.clone().pump()));
    drop(maillage_host::spawn(Arc::clone(cluster).supervise()));
    drop(maillage_host::spawn(Arc::clone(cluster).carry_out_crashes()));
    let built = build(cluster, limit).await;
    if built {
        cluster.world.event(0, format_args!("the mesh is built"));
    } else {
        cluster.world.violation("I9", format!("the mesh was not built within {limit:?}"));
    }
    built
}

/// Founds the mesh at slot 1 and lets the others join; waits until all vote who shall.
async fn build(cluster: &Arc<Cluster>, limit: Duration) -> bool {
    cluster.boot(FOUNDER);
    let building = async {
        for slot in 2..=cluster.plan.sites {
            cluster.invite(slot).await;
            cluster.boot(slot);
        }
        while !is_complete(cluster) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(limit, building).await.is_ok()
}

/// Whether every site is up with an open session, and as many vote as planned.
fn is_complete(cluster: &Arc<Cluster>) -> bool {
    let all = cluster.all_running();
    let wanted = usize::try_from(cluster.plan.sites).unwrap_or(0);
    all.len() == wanted
        && all.iter().all(|running| {
            let voters = running.group.watch().borrow().voters.len();
            let engine = running.group.reader();
            let sites = View::new(&*engine).sites().unwrap_or_default();
            voters == cluster.plan.voters() && sites.len() == wanted && sites.iter().all(|site| site.session_open)
        })
}
