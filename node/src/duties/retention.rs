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

/// Rounds of duties, one a second, in which all exams are looked at …
const ROUNDS: usize = 30;
/// … with no more than so many in one: a million of them take two hours, of a retention of months.
const EXAMS_A_ROUND_MAX: usize = 128;
/// … and no fewer than so many.
const EXAMS_A_ROUND_MIN: usize = 32;
/// Purges proposed in one round: the queue's own commands go first.
const PURGES_A_ROUND: usize = 32;

/// How far the leader has come.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// The last exam looked at; the next round goes on behind it. None: from the start.
    after: Option<ExamId>,
    /// Exams looked at since the start.
    seen: usize,
    /// … in all, when the end was last reached. None before: there may be any number.
    all: Option<usize>,
}

impl Retention {
    /// Proposes the purges of one round.
    ///
    /// # Errors
    /// The state cannot be read, or nothing can be proposed.
    pub(super) async fn end(&mut self, node: &Node, term: u64) -> anyhow::Result<()> {
        let (after, at_once) = (self.after, exams_a_round(self.all));
        let looked = node.read(|view| look(view, node.state_time(view)?.0, after, at_once))?;
        for exam in looked.over {
            let command = Command::Purge { exam, reason: Line::default(), withdrawn: false };
            match node.command_in_term(term, command).await? {
                Outcome::Done => tracing::info!(exam = exam.0, "the retention of the images is over: they are purged"),
                other => tracing::debug!(exam = exam.0, ?other, "not purged"),
            }
        }
        self.go_on(looked.seen, looked.last);
        Ok(())
    }

    /// A round is done: the next begins behind `last`, or from the start.
    fn go_on(&mut self, seen: usize, last: Option<ExamId>) {
        self.after = last;
        self.seen += seen;
        if last.is_none() {
            self.all = Some(std::mem::take(&mut self.seen));
        }
    }
}

/// How many exams of so many are looked at in one round.
fn exams_a_round(all: Option<usize>) -> usize {
    all.map_or(EXAMS_A_ROUND_MAX, |all| all.div_ceil(ROUNDS).clamp(EXAMS_A_ROUND_MIN, EXAMS_A_ROUND_MAX))
}

/// What a look at some exams found.
struct Looked {
    /// Those whose time is over.
    over: Vec<ExamId>,
    /// How many were looked at.
    seen: usize,
    /// The last one; none when there are no more behind it.
    last: Option<ExamId>,
}

/// Looks at up to `at_once` exams behind `after`.
fn look(view: &View<'_>, now: u64, after: Option<ExamId>, at_once: usize) -> Result<Looked, ApplyError> {
    let exams = view.exams(after, None, at_once)?;
    let mut over = Vec::new();
    for (seen, exam) in (1..).zip(&exams) {
        if is_over(view, exam, now)? {
            over.push(exam.id);
            if over.len() == PURGES_A_ROUND {
                return Ok(Looked { over, seen, last: Some(exam.id) });
            }
        }
    }
    let last = exams.last().filter(|_| exams.len() == at_once).map(|exam| exam.id);
    Ok(Looked { over, seen: exams.len(), last })
}

fn is_over(view: &View<'_>, exam: &Exam, now: u64) -> Result<bool, ApplyError> {
    let may = exam.after(Step::Purge).is_ok() && exam.course.legal_hold.is_none() && !exam.studies.is_empty();
    Ok(may && view.retained_until(exam)?.0 <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_takes_half_a_minute_in_a_small_mesh_and_has_a_bounded_cost_in_a_large_one() {
        assert_eq!(exams_a_round(Some(0)), EXAMS_A_ROUND_MIN);
        assert_eq!(exams_a_round(Some(1_900)), 64);
        assert_eq!(exams_a_round(Some(1_000_000)), EXAMS_A_ROUND_MAX);
    }

    #[test]
    fn the_first_pass_goes_at_full_speed_and_counts_the_exams_for_the_next() {
        let mut retention = Retention::default();
        for last in [Some(ExamId(200)), Some(ExamId(400)), None] {
            assert_eq!(exams_a_round(retention.all), EXAMS_A_ROUND_MAX);
            retention.go_on(640, last);
            assert_eq!(retention.after, last);
        }
        assert_eq!((retention.all, exams_a_round(retention.all)), (Some(1_920), 64));
        retention.go_on(64, Some(ExamId(40)));
        assert_eq!(retention.all, Some(1_920), "until the end is reached again");
        retention.go_on(1, None);
        assert_eq!(retention.all, Some(65));
    }
}
