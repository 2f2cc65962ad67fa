//! I8: no image is ever shown under another patient: an exam has the studies of its own examination.
//!
//! Hospitals here name the study of exam `n` at slot `s` `2.25.s.n` and its accession number `As-n`, so
//! that a wrong match shows in the state of every node.

use maillage_consensus::View;
use maillage_consensus::ids::ExamId;

use crate::cluster::{Cluster, Running};

/// Exams looked at each time, the newest, besides the last look at all.
const NEWEST: usize = 60;

/// Looks at the exams as the node of `running` knows them; at all of them with `all`.
pub(crate) fn check(cluster: &Cluster, running: &Running, all: bool) {
    let exams = cluster.history.exams();
    let first = if all { 0 } else { exams.len().saturating_sub(NEWEST) };
    let engine = running.group.reader();
    let view = View::new(&*engine);
    for id in exams.into_iter().skip(first) {
        // One that this node has not reached yet.
        let Ok(Some(exam)) = view.exam(ExamId(id)) else { continue };
        let Some(examination) = exam.request.accession.as_str().strip_prefix('A') else { continue };
        let own = format!("2.25.{}", examination.replace('-', "."));
        for study in exam.studies.iter().filter(|study| study.as_str() != own) {
            let detail = format!("{:?}: exam {id} of examination {examination} shows study {study}", running.owner);
            cluster.world.violation("I8", detail);
        }
        if !exam.studies.is_empty() {
            cluster.world.sometimes("an exam had its own images");
        }
    }
}
