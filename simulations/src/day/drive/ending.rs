//! What must hold once all is read: images on as many sites as wanted, every study to be had, replicas equal.

use std::time::Duration;

use super::stage::Stage;
use crate::day::HOUR_MS;
use crate::day::model::{Day, Discipline};
use crate::day::record::Run;
use crate::invariants::{copies, liveness, patients, retrieval};
use crate::rng::Rng;

/// How long until every site that was down is up again.
const UP: Duration = Duration::from_secs(120);
/// A study must be had from any node within this time.
const HAD: Duration = Duration::from_secs(180);
/// Between two tries.
const AGAIN: Duration = Duration::from_secs(2);

/// No radiology exam may lie unclaimed for longer while readers are on duty day and night, or, if that is longer,
/// beyond its urgency's target: where a morning is busier than its readers, what is least urgent comes last.
/// Nuclear physicians go home at night.
const UNCLAIMED_MAX_MS: u64 = 2 * HOUR_MS;

/// The exam that lay unclaimed for too long, if any did: all is read in the end even when most have stopped.
pub(super) fn neglected(day: &Day, run: &Run) -> Option<String> {
    let of = day.exams.iter().zip(&run.records).filter(|(exam, _)| exam.discipline == Discipline::Radiology);
    let late = of.filter_map(|(exam, record)| {
        let waited_ms = record.wait_ms()?;
        (waited_ms > UNCLAIMED_MAX_MS.max(exam.priority.target_ms())).then_some((waited_ms, exam, record))
    });
    let (waited_ms, exam, record) = late.max_by_key(|(ms, ..)| *ms)?;
    let minutes = waited_ms / 60_000;
    Some(format!("exam {} was ready for {minutes} min unclaimed: {exam:?}, {record:?}", exam.accession))
}

/// The checks of the end; what fails is a violation.
pub(super) async fn check(stage: &Stage) {
    let cluster = &stage.cluster;
    cluster.end_work();
    let all = cluster.count();
    let up = async {
        while cluster.all_running().len() < all {
            tokio::time::sleep(AGAIN).await;
        }
    };
    if tokio::time::timeout(UP, up).await.is_err() {
        let up = cluster.all_running().len();
        return cluster.world.violation("I9", format!("{UP:?} after the day {up} of {all} nodes are up"));
    }
    copies::all_are_made(cluster).await;
    every_study_is_had(stage).await;
    liveness::replicas_converge(cluster, all).await;
    for running in cluster.all_running() {
        cluster.watch.finality.check(&running, true);
        cluster.watch.course.check(&running, true);
        cluster.watch.audit.check(&running);
        cluster.watch.events.check_all(&running);
        patients::check(cluster, &running, true);
        if cluster.rotten() != Some(running.owner.slot) {
            cluster.watch.instances.check_all(&running).await;
        }
    }
}

/// Every study, at one node drawn for it: all at all nodes would take longer than the day.
async fn every_study_is_had(stage: &Stage) {
    let cluster = &stage.cluster;
    let slots: Vec<u32> = cluster.slots().collect();
    let mut rng = Rng::stream(stage.day.seed, "day: last looks");
    for study in cluster.watch.instances.studies() {
        let slot = rng.pick(&slots).copied().unwrap_or(1);
        let deadline = cluster.world.now() + HAD;
        loop {
            let missing = match cluster.running(slot) {
                Some(running) => retrieval::look(cluster, &running, &study, true).await,
                None => Some("the node is down".to_owned()),
            };
            let Some(missing) = missing else { break };
            if cluster.world.now() > deadline {
                let detail = format!("{HAD:?} after the day, slot {slot} lacks of study {study}: {missing}");
                return cluster.world.violation("I3", detail);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::neglected;
    use crate::day::HOUR_MS;
    use crate::day::central;
    use crate::day::model::{Day, Discipline, Parameters};
    use crate::day::scenario::Scenario;

    #[test]
    fn a_day_whose_readers_stopped_is_seen_though_all_is_read_later() {
        let day = Day::draw(&Parameters::default(), 2, false);
        let mut run = central::run(&day, &Scenario::none());
        assert_eq!(neglected(&day, &run), None);
        let at = day.exams.iter().position(|exam| exam.discipline == Discipline::Radiology && exam.refused.is_none());
        let at = at.expect("a radiology exam");
        run.records[at].claims[0].claimed_ms += 3 * HOUR_MS;
        let seen = neglected(&day, &run).expect("seen");
        assert!(seen.contains(&day.exams[at].accession), "{seen}");
    }
}
