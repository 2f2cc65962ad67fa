//! The driver: plays a drawn day on the simulated mesh of production nodes.
//!
//! Each centre and the cloud is a node; hospitals and readers are clients that speak to nodes as in
//! production (`hospital`, `reader`); the scenario harms the mesh (`harm`). When all is read the invariants
//! are asked a last time (`ending`), and what happened is read from the replicated state (`account`), so that
//! times are those at which the queue decided.

mod account;
mod ending;
mod harm;
mod hospital;
mod reader;
mod stage;
mod wires;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::raft::Timing;
use stage::Stage;

use super::model::{Day, Parameters};
use super::record::Run;
use super::scenario::Scenario;
use super::{HORIZON_MS, HOUR_MS};
use crate::cluster::Cluster;
use crate::invariants::events;
use crate::plan::{Fault, Faults, Plan, SWARM, Storage, Transport};
use crate::rng::Rng;
use crate::run::{RunError, begin, in_a_world, look_around, note_panics};
use crate::world::Violation;

/// How long building a mesh of seventeen sites may take.
const BUILD: Duration = Duration::from_secs(600);
/// Between two looks at whether the day is over.
const LOOK: Duration = Duration::from_secs(20);
/// Kinds of fault that a day's mixture leaves out: what bends the stamps from which records are read
/// (clocks), and what changes which sites there are.
const NOT_IN_A_DAY: [Fault; 4] = [Fault::ClockJump, Fault::ClockDrift, Fault::Replace, Fault::JoinLate];

/// What is asked of a day on the mesh.
#[derive(Debug, Clone)]
pub struct DaySettings {
    /// Everything random comes from it.
    pub seed: u64,
    /// Whether it is a day of a weekend.
    pub weekend: bool,
    /// The scenario's name, one of [`Scenario::NAMES`].
    pub scenario: String,
    /// Only what is requested in the first so many hours; 24 is the whole day.
    pub hours: u64,
    /// Whether a random mixture of faults goes on besides the scenario.
    pub faults: bool,
    /// Where the events go, besides their hash.
    pub trace: Option<PathBuf>,
}

impl DaySettings {
    /// The arguments of `simulate mesh-day` that repeat this run.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "mesh-day".to_owned(),
            format!("--seed={}", self.seed),
            format!("--scenario={}", self.scenario),
            format!("--hours={}", self.hours),
        ];
        arguments.extend(self.weekend.then(|| "--weekend".to_owned()));
        arguments.extend(self.faults.then(|| "--faults".to_owned()));
        arguments
    }

    /// The day that is played.
    pub fn day(&self) -> Day {
        let mut day = Day::draw(&Parameters::default(), self.seed, self.weekend);
        day.exams.retain(|exam| exam.requested_ms < self.hours.saturating_mul(HOUR_MS));
        day
    }
}

/// What a day on the mesh showed.
#[derive(Debug, Clone)]
pub struct DayReport {
    /// What became of each exam.
    pub run: Run,
    /// Broken invariants, in the order in which they were seen.
    pub violations: Vec<Violation>,
    /// The hash of all events.
    pub digest: String,
    /// Events in the trace.
    pub events: u64,
    /// Polls of tasks.
    pub polls: u64,
    /// Simulated time, building and ending included.
    pub simulated: Duration,
    /// Nodes of the mesh.
    pub nodes: u32,
    /// Exams requested, completions and instances acknowledged, histories checked, states compared.
    pub counts: [usize; 5],
    /// Rare paths, and how often each was reached.
    pub reached: BTreeMap<&'static str, u64>,
}

/// Why a day could not be played.
#[derive(Debug, thiserror::Error)]
pub enum DayError {
    /// There is no such scenario.
    #[error("there is no scenario {0:?}")]
    Scenario(String),
    /// The world cannot be made.
    #[error(transparent)]
    World(#[from] RunError),
}

/// Plays a day on the mesh. Once per process; see [`crate::run()`] for what makes it deterministic.
///
/// # Errors
/// [`DayError`]; a broken invariant is no error but in the report.
pub fn play(settings: &DaySettings) -> Result<DayReport, DayError> {
    let day = Arc::new(settings.day());
    let scenario = Scenario::named(&settings.scenario, &day);
    let mut scenario = scenario.ok_or_else(|| DayError::Scenario(settings.scenario.clone()))?;
    // What begins after the last request of a shortened day has nobody to harm.
    scenario.failures.retain(|failure| failure.from_ms < settings.hours.saturating_mul(HOUR_MS));
    let plan = plan(settings, &day);
    let hours = settings.hours;
    let cluster_day = Arc::clone(&day);
    let cluster_of = move |world| {
        let cluster = Cluster::new(world, plan);
        wires::lay(&cluster, &cluster_day);
        cluster
    };
    let played = in_a_world(settings.seed, settings.trace.as_deref(), 0.0, cluster_of, |cluster| async move {
        let playing = maillage_host::spawn(whole(Arc::clone(&cluster), Arc::clone(&day), scenario, hours));
        let run = playing.await.unwrap_or_default();
        note_panics(&cluster.world);
        report(&cluster, run)
    })?;
    Ok(played)
}

async fn whole(cluster: Arc<Cluster>, day: Arc<Day>, scenario: Scenario, hours: u64) -> Run {
    if !begin(&cluster, BUILD).await {
        return Run::default();
    }
    // Midnight strikes at a whole second, so that its stamps and ours agree to the millisecond.
    let midnight = Duration::from_secs(cluster.world.now().as_secs() + 1);
    tokio::time::sleep_until(cluster.world.instant(midnight)).await;
    let stage = Stage::new(Arc::clone(&cluster), Arc::clone(&day), midnight);
    drop(maillage_host::spawn(look_around(Arc::clone(&cluster))));
    drop(maillage_host::spawn(events::follow(Arc::clone(&cluster), Rng::stream(day.seed, "day: events"))));
    for exam in 0..day.exams.len() {
        drop(maillage_host::spawn(hospital::run(Arc::clone(&stage), exam)));
    }
    let readers: Vec<_> =
        (0..day.readers.len()).map(|reader| maillage_host::spawn(reader::run(Arc::clone(&stage), reader))).collect();
    let harm = maillage_host::spawn(harm::run(Arc::clone(&stage), scenario, hours.min(24)));
    let over = hours.min(24) * HOUR_MS;
    loop {
        tokio::time::sleep(LOOK).await;
        let now_ms = stage.now_ms();
        if cluster.world.is_violated() || now_ms >= HORIZON_MS {
            break;
        }
        if now_ms >= over && harm.is_finished() && stage.is_all_read() {
            break;
        }
    }
    let ended_ms = stage.now_ms();
    if !cluster.world.is_violated() {
        if !stage.is_all_read() {
            cluster.world.violation("I9", format!("at the end of the day {}", stage.what_is_left()));
        }
        ending::check(&stage).await;
    }
    readers.into_iter().for_each(|reader| reader.abort());
    let mut run = account::run(&stage);
    run.ended_ms = ended_ms;
    if let Some(neglected) = ending::neglected(&day, &run) {
        cluster.world.violation("I9", neglected);
    }
    run
}

fn report(cluster: &Cluster, run: Run) -> DayReport {
    let histories = crate::invariants::claims::check_all(&cluster.world, &cluster.history);
    crate::invariants::tokens::check_all(&cluster.world, &cluster.history);
    let (exams, completed) = cluster.watch.finality.counts();
    let compared = usize::try_from(cluster.watch.replicas.compared()).unwrap_or(usize::MAX);
    let simulated = cluster.world.now();
    let (digest, events, polls) = cluster.world.account();
    DayReport {
        run,
        violations: cluster.world.violations(),
        digest,
        events,
        polls,
        simulated,
        nodes: cluster.plan.sites,
        counts: [exams, completed, cluster.watch.instances.count(), histories, compared],
        reached: cluster.world.reached(),
    }
}

/// Timings as sites in several cities have them, slow enough that a day of seventeen nodes is cheap.
fn plan(settings: &DaySettings, day: &Day) -> Plan {
    let mut rng = Rng::stream(settings.seed, "day: plan");
    let share = [0.2, 0.4, 0.7][rng.index(3)];
    let drawn = SWARM.into_iter().filter(|_| rng.chance(share)).filter(|fault| !NOT_IN_A_DAY.contains(fault));
    let faults: Vec<Fault> = if settings.faults { drawn.collect() } else { Vec::new() };
    Plan {
        seed: settings.seed,
        sites: wires::cloud(day),
        duration: Duration::from_millis(HORIZON_MS),
        faults,
        without: Vec::new(),
        only_faults: None,
        transport: Transport::Messages,
        mutant: None,
        timing: Timing {
            heartbeat: Duration::from_millis(1_000),
            election_min: Duration::from_millis(3_000),
            election_max: Duration::from_millis(6_000),
        },
        latency_ms_max: 20,
        snapshot_every: 2_000,
        keep_log: 1_000,
        session_ttl: Duration::from_secs(30),
        grace: Duration::from_secs(600),
        // Some seventy faults a day, of minutes and not of seconds.
        fault_every: Duration::from_secs(20 * 60),
        fault_lasts: Duration::from_secs(90),
        look_every: Duration::from_secs(600),
        supervise_every: Duration::from_secs(1),
        shake: 0.0,
        // Clients of the swarm's kind, which a day has none of.
        readers_per_site: 0,
        exam_every: Duration::from_secs(3_600),
        instance_every: Duration::from_secs(3_600),
        reading: Duration::from_secs(60),
        one_stays_away: false,
        storage: Storage::CALM,
        limits: None,
    }
}

impl DayReport {
    /// The kinds of fault that a day of this seed has besides its scenario.
    pub fn faults(settings: &DaySettings) -> String {
        Faults::These(plan(settings, &settings.day()).faults).to_string()
    }
}
