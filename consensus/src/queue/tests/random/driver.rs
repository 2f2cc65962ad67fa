//! How a random act becomes a command, and how its outcome and the state are compared with the reference.

use proptest::prop_assert_eq;
use proptest::test_runner::TestCaseError;

use super::super::*;
use super::{Act, Expected, Known, Life};
use crate::remark::{Concordance, Finding};

impl Life {
    pub(super) fn command_on(&self, act: &Act, exam: &Known) -> Command {
        let id = exam.id;
        match act {
            Act::Regulate(_, true) => validated(id),
            Act::Regulate(..) => {
                Command::Regulate { exam: id, verdict: Verdict::Refused { reason: Line::fitted("not needed") } }
            }
            Act::Acquire(_) => Command::Acquire { exam: id },
            Act::Arrive(_) => Command::Arrive { exam: id },
            Act::Take(_, false) => Command::ClaimTake { exam: id },
            Act::Take(..) => Command::Take { exam: id, transaction_uid: UidText::default() },
            Act::TakeOver(_) => Command::TakeOver { exam: id, reason: Line::fitted("now") },
            Act::Open(_, stale) => Command::Open { exam: id, token: self.token(exam, *stale) },
            Act::Release(_, stale) => {
                Command::Release { exam: id, token: self.token(exam, *stale), reason: Line::default() }
            }
            Act::Complete(_, stale) => {
                Command::Complete { exam: id, token: self.token(exam, *stale), report: report("final") }
            }
            Act::Report(_, stale, true) => written(id, self.token(exam, *stale), ReportKind::Final, "final"),
            Act::Report(_, stale, false) => written(id, self.token(exam, *stale), ReportKind::Preliminary, "first"),
            Act::Addend(_) => addendum(id, "a word more"),
            Act::Deliver(_, standing) => {
                let report = if *standing { exam.standing.unwrap_or(1) } else { exam.reports + 1 };
                Command::Deliver { exam: id, report, to: Line::fitted("Dr Martin") }
            }
            Act::FollowUp(_) => Command::FollowUp { exam: id, text: says("well") },
            Act::Cancel(_) => Command::Cancel { exam: id, reason: Line::fitted("a mistake") },
            Act::Prioritise(_, priority) => Command::Prioritise { exam: id, priority: *priority },
            Act::Finding(_, priority) => {
                let (algorithm, version) = (Name::fitted("bleeds"), Text8::fitted("1"));
                let (finding, location) = (Line::fitted("bleeding"), Line::default());
                let finding = Finding { algorithm, version, finding, score: 9, location, priority: *priority };
                Command::AddFinding { exam: id, finding }
            }
            Act::Note(_) => Command::Note { exam: id, text: says("a note") },
            Act::Critical(_) => Command::RaiseCritical { exam: id, text: says("bleeding") },
            Act::Tell(_) => {
                let remark = exam.critical.map_or(1_000, |critical| critical.0);
                Command::Tell { exam: id, remark, whom: Line::fitted("Dr Martin"), read_back: true }
            }
            Act::Escalate(_) => {
                Command::Escalate { exam: id, remark: exam.critical.map_or(1_000, |critical| critical.0) }
            }
            Act::Discrepancy(_) => Command::RaiseDiscrepancy { exam: id, grade: 2, text: says("missed") },
            Act::Ask(_) => Command::AskOpinion { exam: id, of: Name::default(), question: says("?") },
            Act::Answer(_) => Command::GiveOpinion {
                exam: id,
                remark: exam.opinion.map_or(1_000, |opinion| opinion.0),
                text: says("well"),
                concordance: Concordance::Agrees,
            },
            Act::Glass(_, has_report) => Command::BreakGlass {
                exam: id,
                taken_at: UnixMillisField(self.bench.now),
                reason: Line::fitted("cut off"),
                report: has_report.then(|| report("by glass")),
                signature: ByteBuf::default(),
            },
            other => panic!("{other:?}"),
        }
    }

    /// A workitem that is no reading changes its state: what is left behind is for the invariants to judge.
    pub(super) fn perform(&mut self, n: usize, number: u32, to: WorkitemState, at: usize) -> Result<(), TestCaseError> {
        let Some(n) = self.at(n) else { return Ok(()) };
        let exam = self.exams[n].id;
        let item = self.bench.view(|view| view.workitem(exam, number));
        if item.is_none_or(|item| item.step.kind == WorkitemKind::Read) {
            return Ok(());
        }
        let transaction_uid = UidText::fitted("2.25.9");
        self.run(at, Command::ChangeWorkitem { exam, number, transaction_uid, to });
        Ok(())
    }

    pub(super) fn ask_cancel(&mut self, n: usize, number: u32, at: usize) -> Result<(), TestCaseError> {
        let Some(n) = self.at(n) else { return Ok(()) };
        let exam = self.exams[n].id;
        let Some(item) = self.bench.view(|view| view.workitem(exam, number)) else { return Ok(()) };
        let outcome = self.run(at, Command::AskCancel { exam, number, reason: Line::fitted("no more") });
        if (item.step.kind, item.state) == (WorkitemKind::Read, WorkitemState::Scheduled) {
            let expected = self.exams[n].cancel();
            self.came_to(expected, &outcome, at)?;
        }
        Ok(())
    }

    /// Whether the outcome is what was expected; a claim is noted.
    pub(super) fn came_to(&mut self, expected: Expected, outcome: &Outcome, at: usize) -> Result<(), TestCaseError> {
        let came = match outcome {
            Outcome::Done => Expected::Done,
            Outcome::Claimed(grant) => Expected::Granted(grant.exam),
            Outcome::NothingWaiting => Expected::NothingWaiting,
            Outcome::Refused(Refusal::StaleToken { kept_as: Some(number), .. }) => Expected::Draft(*number),
            Outcome::Refused(_) => Expected::Refused,
            Outcome::Completed { report } => Expected::Report(*report),
            Outcome::Remarked { remark } => Expected::Remark(*remark),
            Outcome::GlassMended { second_read, .. } => Expected::Mended(*second_read),
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!(came, expected, "{:?}", outcome);
        if let Outcome::Claimed(grant) = outcome {
            let site = self.sites[at];
            prop_assert_eq!(grant.claim.site, site);
            let exam = self.exams.iter_mut().find(|exam| exam.id == grant.exam);
            exam.expect("a known exam").granted(site, grant.claim.token);
        }
        Ok(())
    }

    /// Whether the state is what the reference says, and what must always hold does.
    pub(super) fn check(&mut self) -> Result<(), TestCaseError> {
        self.seen.check(&self.bench)?;
        for known in &self.exams {
            let exam = self.bench.exam(known.id);
            prop_assert_eq!(exam.state, known.state, "exam {}", known.id);
            prop_assert_eq!(exam.claim.map(|claim| (claim.site, claim.token)), known.holder);
            prop_assert_eq!(exam.request.priority, known.priority);
            prop_assert_eq!(exam.ready_at.map(|at| at.0), known.ready_at);
            prop_assert_eq!((exam.reports, exam.course.report), (known.reports, known.standing));
            prop_assert_eq!((exam.course.remarks, exam.course.read_twice), (known.remarks, known.is_read_twice));
        }
        Ok(())
    }
}
