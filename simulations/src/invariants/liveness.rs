//! I9: after the faults end, everything finishes within a bound.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::exam::{Exam, ExamState};
use maillage_consensus::ids::Line;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Running};
use crate::workload::hospital;

/// From the last fault to the last report. It covers a session's end, an election, and the reading of
/// what waited.
const FINISH: Duration = Duration::from_secs(240);
/// From then on until all replicas are where the first is.
const CONVERGE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until every exam is reported; a violation when that takes too long.
///
/// With a site `away`, exams that wait for its hospital, and for that of the gateway, which may ask there, are not to be
/// read yet.
pub(crate) async fn everything_is_read(cluster: &Arc<Cluster>, away: Option<u32>) -> Duration {
    let start = cluster.world.now();
    loop {
        let left =
            cluster.all_running().iter().map(|running| unread(cluster, running, away)).collect::<Option<Vec<_>>>();
        let most = left.as_ref().and_then(|left| left.iter().max().copied());
        let took = cluster.world.now() - start;
        if most == Some(0) {
            return took;
        }
        if took > FINISH {
            let nodes: Vec<String> = cluster.all_running().iter().map(|running| describe(cluster, running)).collect();
            let detail = format!("{FINISH:?} after the faults ended, {most:?} exams are unread; {}", nodes.join("; "));
            cluster.world.violation("I9", detail);
            return took;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn unread(cluster: &Cluster, running: &Running, away: Option<u32>) -> Option<u64> {
    let engine = running.group.reader();
    let view = View::new(&*engine);
    let counts = view.counts().ok()?;
    let more = &counts.more;
    let mut before = counts.requested + more.validated + more.acquiring + more.receiving;
    if let Some(away) = away.filter(|_| before > 0) {
        // Nobody asks further for these, nor sends their images, until it is back.
        let silent: Vec<Line> =
            [Some(away), cluster.gateway_slot()].into_iter().flatten().map(hospital::name).collect();
        let is_before = |exam: &Exam| {
            use ExamState::{Acquiring, Receiving, Requested, Validated};
            matches!(exam.state, Requested | Validated | Acquiring | Receiving)
                && !silent.contains(&exam.request.hospital)
        };
        let (exams, _) = view.exams_where(None, usize::MAX, usize::MAX, &is_before).ok()?;
        before = exams.len() as u64;
    }
    // Somebody must be told of every critical result.
    let untold = more.critical_open;
    Some(before + counts.waiting + counts.claimed + more.reading + untold)
}

fn describe(cluster: &Cluster, running: &Running) -> String {
    let status = running.group.watch().borrow().clone();
    let engine = running.group.reader();
    let claimed = View::new(&*engine).claimed(3).unwrap_or_default();
    let held: Vec<String> = claimed
        .iter()
        .filter_map(|exam| exam.claim.as_ref().map(|claim| format!("{} by site {}", exam.id, claim.site)))
        .collect();
    format!(
        "slot {}: {:?} of term {} applied {:?} of {:?}, unread {:?}, held {held:?}",
        running.owner.slot,
        status.role,
        status.term,
        status.applied,
        status.last_log,
        unread(cluster, running, None),
    )
}

/// Hospitals and scanners, by slot.
pub(crate) type Senders = Vec<(u32, JoinHandle<()>)>;

/// Waits until hospitals and scanners are answered, but for those of a site that is `away`, which are given back; a
/// violation when that takes too long.
pub(crate) async fn senders_finish(cluster: &Arc<Cluster>, senders: Senders, away: Option<u32>) -> Senders {
    let deadline = cluster.world.instant(cluster.world.now() + FINISH);
    let (later, now): (Senders, Senders) = senders.into_iter().partition(|(slot, _)| away == Some(*slot));
    for (slot, mut sender) in now {
        if tokio::time::timeout_at(deadline, &mut sender).await.is_err() {
            cluster.world.violation("I9", format!("a hospital or scanner of slot {slot} is still not answered"));
            sender.abort();
        }
    }
    later
}

/// Waits until all replicas that are up have applied the same and hold equal states.
pub(crate) async fn replicas_converge(cluster: &Arc<Cluster>, wanted: usize) {
    let start = cluster.world.now();
    loop {
        let states: Vec<_> =
            cluster.all_running().iter().map(|running| cluster.watch.replicas.compare(running)).collect();
        if states.len() == wanted && states.windows(2).all(|pair| pair[0] == pair[1]) {
            return;
        }
        if cluster.world.now() - start > CONVERGE {
            let nodes: Vec<String> = cluster.all_running().iter().map(|running| describe(cluster, running)).collect();
            let detail = format!("replicas differ {CONVERGE:?} after the last work: {}", nodes.join("; "));
            cluster.world.violation("I9", detail);
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
