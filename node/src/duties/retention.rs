//! The leader's duty to end the retention of images.
//!
//! It goes through all exams, some at a time, and proposes the purge of those whose time is over by the rules of
//! that moment. Whether it really is, `apply` decides by the state's clock. What is refused, or under legal hold,
//! is passed over: it holds up none of the others.

use maillage_consensus::View;
use maillage_consensus::command::Command;
use maillage_consensus::exam::Exam;
use maillage_consensus::ids::{ExamId, Line};
use maillage_consensus::life::Step;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::outcome::Outcome;

use crate::node::Node;

/// Exams looked at in one round of duties: at a round a second, a million of them in two hours, of a retention of
/// months.
const EXAMS_A_ROUND: usize = 128;
/// Purges proposed in one round: the queue's own commands go first.
const PURGES_A_ROUND: usize = 32;

/// How far the leader has come.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// The last exam looked at; the next round goes on behind it. None: from the start.
    after: Option<ExamId>,
}

impl Retention {
    /// Proposes the purges of one round.
    ///
    /// # Errors
    /// The state cannot be read, or nothing can be proposed.
    pub(super) async fn end(&mut self, node: &Node, term: u64) -> anyhow::Result<()> {
        let after = self.after;
        let (over, last) = node.read(|view| look(view, node.state_time(view)?.0, after))?;
        for exam in over {
            let command = Command::Purge { exam, reason: Line::default(), withdrawn: false };
            match node.command_in_term(term, command).await? {
                Outcome::Done => tracing::info!(exam = exam.0, "the retention of the images is over: they are purged"),
                other => tracing::debug!(exam = exam.0, ?other, "not purged"),
            }
        }
        self.after = last;
        Ok(())
    }
}

/// The exams behind `after` whose time is over, and where to go on: from the start again behind the last.
fn look(view: &View<'_>, now: u64, after: Option<ExamId>) -> Result<(Vec<ExamId>, Option<ExamId>), ApplyError> {
    let exams = view.exams(after, None, EXAMS_A_ROUND)?;
    let mut over = Vec::new();
    for exam in &exams {
        if is_over(view, exam, now)? {
            over.push(exam.id);
            if over.len() == PURGES_A_ROUND {
                return Ok((over, Some(exam.id)));
            }
        }
    }
    let last = exams.last().filter(|_| exams.len() == EXAMS_A_ROUND).map(|exam| exam.id);
    Ok((over, last))
}

fn is_over(view: &View<'_>, exam: &Exam, now: u64) -> Result<bool, ApplyError> {
    let may = exam.after(Step::Purge).is_ok() && exam.course.legal_hold.is_none() && !exam.studies.is_empty();
    Ok(may && view.retained_until(exam)?.0 <= now)
}
