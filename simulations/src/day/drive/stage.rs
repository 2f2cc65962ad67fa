//! What hospitals, readers and failures of a day share: the time, who can reach whom, what is known of each
//! exam.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::exam::ExamState;
use maillage_consensus::ids::ExamId;
use tokio::sync::{Notify, watch};

use super::wires;
use crate::cluster::{Cluster, Running};
use crate::day::model::{CentreId, Day, HospitalId};
use crate::day::scenario::Harm;
use crate::world::{HARNESS, lock};

/// What is down or cut, by how many failures at once.
#[derive(Debug, Clone)]
pub(super) struct Outages {
    lost: Vec<u32>,
    cut: Vec<u32>,
    territories: Vec<u32>,
}

impl Outages {
    /// Whether a centre has power: its workstations as well as its node.
    pub(super) fn has_power(&self, centre: CentreId) -> bool {
        self.lost[centre.0] == 0
    }
}

/// What a hospital knows of its exam.
#[derive(Debug, Default, Clone)]
pub(super) struct Known {
    /// Its number, once a node answered.
    pub(super) exam: Option<u64>,
    /// Refused, and the mesh told so.
    pub(super) is_refused: bool,
    /// When all images had first arrived, in ms, and where.
    pub(super) received: Option<(u64, CentreId)>,
}

/// See the module.
pub(super) struct Stage {
    pub(super) cluster: Arc<Cluster>,
    pub(super) day: Arc<Day>,
    midnight: Duration,
    midnight_wall_ms: u64,
    outages: watch::Sender<Outages>,
    known: Mutex<Vec<Known>>,
    /// A hospital's line carries one study after another.
    pub(super) lines: Vec<tokio::sync::Mutex<()>>,
    /// Readers who could not open an exam's images ask its hospital to send them again.
    pub(super) asked_again: Vec<Notify>,
}

impl Stage {
    pub(super) fn new(cluster: Arc<Cluster>, day: Arc<Day>, midnight: Duration) -> Arc<Self> {
        let outages = Outages {
            lost: vec![0; day.centres.len()],
            cut: vec![0; day.centres.len()],
            territories: vec![0; day.territories.len()],
        };
        Arc::new(Self {
            midnight,
            // No clock of a day jumps: what the harness's shows is what the nodes' show.
            midnight_wall_ms: cluster.world.wall_ms(HARNESS.slot),
            outages: watch::Sender::new(outages),
            known: Mutex::new(vec![Known::default(); day.exams.len()]),
            lines: day.hospitals.iter().map(|_| tokio::sync::Mutex::new(())).collect(),
            asked_again: day.exams.iter().map(|_| Notify::new()).collect(),
            cluster,
            day,
        })
    }

    /// Time of day, in ms.
    pub(super) fn now_ms(&self) -> u64 {
        let since = self.cluster.world.now().saturating_sub(self.midnight);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Time of day of a stamp of the replicated state, in ms.
    pub(super) fn of_stamp(&self, wall_ms: u64) -> u64 {
        wall_ms.saturating_sub(self.midnight_wall_ms)
    }

    pub(super) async fn sleep_until(&self, at_ms: u64) {
        let at = self.cluster.world.instant(self.midnight + Duration::from_millis(at_ms));
        tokio::time::sleep_until(at).await;
    }

    // ---- who can reach whom

    pub(super) fn outages(&self) -> watch::Receiver<Outages> {
        self.outages.subscribe()
    }

    /// A failure begins, or ends.
    pub(super) fn turn(&self, harm: Harm, begins: bool) {
        let change = |count: &mut u32| *count = if begins { *count + 1 } else { count.saturating_sub(1) };
        self.outages.send_modify(|outages| match harm {
            Harm::CentreLost(centre) => change(&mut outages.lost[centre.0]),
            Harm::CentreCut(centre) => change(&mut outages.cut[centre.0]),
            Harm::TerritoryCut(territory) => change(&mut outages.territories[territory.0]),
            Harm::CloudLost => {}
        });
    }

    /// Whether a hospital's line leads to a centre that is there.
    pub(super) fn reaches(&self, outages: &Outages, hospital: HospitalId, centre: CentreId) -> bool {
        let (from, to) = (self.day.hospitals[hospital.0].territory, self.day.centres[centre.0].territory);
        let is_far = from != to;
        outages.has_power(centre)
            && outages.cut[centre.0] == 0
            && !(is_far && (outages.territories[from.0] > 0 || outages.territories[to.0] > 0))
    }

    // ---- what is known

    pub(super) fn know(&self, exam: usize, change: impl FnOnce(&mut Known)) {
        change(&mut lock(&self.known)[exam]);
    }

    pub(super) fn known(&self, exam: usize) -> Known {
        lock(&self.known)[exam].clone()
    }

    /// The node of a centre, if its process is up.
    pub(super) fn node(&self, centre: CentreId) -> Option<Running> {
        self.cluster.running(wires::slot(centre))
    }

    /// Where an exam stands as a node shows it without asking others.
    pub(super) fn shown(&self, running: &Running, exam: u64) -> Option<ExamState> {
        let engine = running.group.reader();
        View::new(&*engine).exam(ExamId(exam)).ok().flatten().map(|exam| exam.state)
    }

    /// Whether all that was requested is reported or refused, on the node that has come furthest.
    pub(super) fn is_all_read(&self) -> bool {
        self.left().is_some_and(|left| left == 0)
    }

    fn left(&self) -> Option<usize> {
        let furthest = self.cluster.newest()?;
        let known = lock(&self.known).clone();
        let is_over = |at: usize, known: &Known| {
            let state = known.exam.and_then(|exam| self.shown(&furthest, exam));
            match self.day.exams[at].refused {
                Some(_) => known.is_refused && state == Some(ExamState::Refused),
                None => state.is_some_and(ExamState::is_reported),
            }
        };
        Some(known.iter().enumerate().filter(|(at, known)| !is_over(*at, known)).count())
    }

    pub(super) fn what_is_left(&self) -> String {
        let unknown = lock(&self.known).iter().filter(|known| known.exam.is_none()).count();
        format!("{:?} exams are not read, of these {unknown} never requested", self.left())
    }
}
