//! What must hold of the queue's state after every command, whatever it was.

use std::collections::BTreeSet;

use proptest::test_runner::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};

use super::*;
use crate::audit;
use crate::exam::{Report, Workitem};
use crate::mesh::Counts;
use crate::remark::What;

/// What was seen before the last command.
#[derive(Default)]
pub(super) struct Seen {
    exams: BTreeMap<ExamId, Exam>,
    workitems: BTreeMap<(ExamId, u32), WorkitemState>,
    reports: BTreeMap<(ExamId, u32), Report>,
    greatest: Option<FencingToken>,
    cursor: Cursor,
    chain: ([u8; 32], u64),
    commands: u64,
}

type Held = Result<(), TestCaseError>;

impl Seen {
    /// Checks the state after one more command.
    pub(super) fn check(&mut self, bench: &Bench) -> Held {
        let exams = bench.view(|view| view.exams(None, None, usize::MAX));
        let format = bench.view(|view| view.format());
        self.changes_have_their_events(bench, &exams, format)?;
        for exam in &exams {
            self.nothing_written_changes(bench, exam)?;
            one_workitem_is_the_reading(bench, exam)?;
            remarks_are_counted(bench, exam)?;
        }
        self.tokens_rise(&exams)?;
        counts_and_indexes_are_a_recount(bench, &exams)?;
        claims_are_of_open_sessions(bench, &exams)?;
        random::studies_are_a_recount(bench, format)?;
        self.chain_recomputes(bench, format)?;
        self.exams = exams.into_iter().map(|exam| (exam.id, exam)).collect();
        Ok(())
    }

    /// States go only along the table; every change of an exam or a workitem has exactly its event.
    fn changes_have_their_events(&mut self, bench: &Bench, exams: &[Exam], format: u8) -> Held {
        let events = bench.view(|view| view.events(self.cursor, usize::MAX));
        if let Some((cursor, _)) = events.last() {
            self.cursor = *cursor;
        }
        for exam in exams {
            let before = self.exams.get(&exam.id).map(|exam| exam.state);
            if format < 2 {
                let leads = before.is_none_or(|before| before == exam.state || crate::life::leads(before, exam.state));
                prop_assert!(leads, "{before:?} to {}", exam.state);
                continue;
            }
            let mut at = before;
            for (_, event) in events.iter().filter(|(_, event)| event.exam == exam.id) {
                if let Happened::Exam { from, to } = &event.what {
                    prop_assert_eq!(*from, at, "an event that follows no other");
                    let leads =
                        at.is_none_or(|from| crate::life::TRANSITIONS.iter().any(|one| (one.0, one.2) == (from, *to)));
                    prop_assert!(leads, "{at:?} to {to} is no step of the table");
                    at = Some(*to);
                }
            }
            prop_assert_eq!(at, Some(exam.state), "a change of state without its event");
        }
        for exam in exams {
            for item in bench.view(|view| view.workitems(exam.id)) {
                let mut at = self.workitems.insert((item.exam, item.number), item.state);
                for (_, event) in events.iter().filter(|(_, event)| event.exam == exam.id && format >= 2) {
                    if let Happened::Workitem { number, state, .. } = event.what
                        && number == item.number
                    {
                        prop_assert!(workitem_may(at, state), "workitem {:?} to {state:?}", at);
                        at = Some(state);
                    }
                }
                prop_assert!(format < 2 || at == Some(item.state), "a workitem's change without its event");
            }
        }
        Ok(())
    }

    /// Reports keep their number and text; a final one stays final; none is lost.
    fn nothing_written_changes(&mut self, bench: &Bench, exam: &Exam) -> Held {
        let reports = bench.view(|view| view.reports(exam.id));
        prop_assert_eq!(reports.len(), exam.reports as usize);
        for report in reports {
            let before = self.reports.entry((exam.id, report.number)).or_insert_with(|| report.clone());
            prop_assert_eq!(&*before, &report, "a report changed");
        }
        if let Some(before) = self.exams.get(&exam.id) {
            prop_assert!(exam.reports >= before.reports, "a report was lost");
            prop_assert!(!before.state.is_reported() || exam.state.is_reported(), "a final report was taken back");
            prop_assert!(exam.course.remarks >= before.course.remarks);
        }
        let finals = self
            .reports
            .range((exam.id, 0)..=(exam.id, u32::MAX))
            .filter(|(_, report)| report.signed.kind == ReportKind::Final && !report.stale);
        prop_assert_eq!(finals.count(), usize::from(exam.state.is_reported()), "one final report, and only then");
        if let Some(standing) = exam.course.report {
            prop_assert!(!self.reports[&(exam.id, standing)].stale, "a draft stands for the report");
        }
        prop_assert!(exam.course.report.is_some() || !exam.state.is_reported(), "reported, but which is the report?");
        Ok(())
    }

    fn tokens_rise(&mut self, exams: &[Exam]) -> Held {
        let before = self.greatest;
        for claim in exams.iter().filter_map(|exam| exam.claim.as_ref().map(|claim| (exam.id, claim))) {
            let (id, claim) = claim;
            let held = self.exams.get(&id).and_then(|exam| exam.claim.as_ref());
            if held.is_none_or(|held| held.token != claim.token) {
                prop_assert!(Some(claim.token) > before, "a later grant has the greater token");
                self.greatest = self.greatest.max(Some(claim.token));
            }
        }
        Ok(())
    }

    /// Each entry's chain value is the hash of it and the one before; each command has one.
    fn chain_recomputes(&mut self, bench: &Bench, format: u8) -> Held {
        let new = bench.view(|view| view.audit(self.chain.1, usize::MAX));
        self.commands += u64::from(format >= 2);
        for link in new {
            let value = audit::chain(&self.chain.0, &link.entry);
            prop_assert_eq!(value, link.chain);
            self.chain = (value, link.entry.index);
        }
        if format >= 2 {
            prop_assert_eq!(self.chain.1, bench.index, "the last command is in the trail");
            prop_assert_eq!(bench.engine.get(&keys::CHAIN).expect("read"), Some(self.chain.0.to_vec()));
        }
        Ok(())
    }
}

fn workitem_may(from: Option<WorkitemState>, to: WorkitemState) -> bool {
    use WorkitemState::{Canceled, Completed, InProgress, Scheduled};
    matches!(
        (from, to),
        (None, Scheduled) | (Some(Scheduled), _) | (Some(InProgress), InProgress | Canceled | Completed)
    )
}

/// The exam's state and its reading workitem say the same, and no other reading is open.
fn one_workitem_is_the_reading(bench: &Bench, exam: &Exam) -> Held {
    use WorkitemState::{Canceled, Completed, InProgress, Scheduled};
    let items = bench.view(|view| view.workitems(exam.id));
    let numbers: Vec<u32> = items.iter().map(|item| item.number).collect();
    let expected: Vec<u32> = (1..).take(items.len()).collect();
    prop_assert_eq!(numbers, expected, "workitems are numbered from 1");
    prop_assert_eq!(exam.claim.is_some(), exam.state.is_held(), "who holds it is known, and only then");
    let state = match exam.state {
        state if state.is_off() => Canceled,
        state if state.is_held() => InProgress,
        state if state.is_reported() => Completed,
        _ => Scheduled,
    };
    let ended = |item: &&Workitem| matches!(item.state, Canceled | Completed);
    for item in items.iter().filter(|item| item.step.kind == WorkitemKind::Read) {
        if item.number == exam.workitem {
            prop_assert_eq!(item.state, state, "exam {} is {}", exam.id, exam.state);
            prop_assert!(exam.claim.is_none() || item.performer == exam.claim);
        } else {
            prop_assert!(ended(&item), "two readings are open");
        }
    }
    let deliveries = items.iter().filter(|item| item.step.kind == WorkitemKind::Deliver && !ended(item)).count();
    prop_assert!(deliveries <= usize::from(exam.state == ExamState::Reported), "what is to be delivered, once");
    Ok(())
}

fn remarks_are_counted(bench: &Bench, exam: &Exam) -> Held {
    let remarks = bench.view(|view| view.remarks(exam.id));
    prop_assert_eq!(remarks.len(), exam.course.remarks as usize);
    let open = |is: fn(&What) -> bool| remarks.iter().filter(|remark| is(&remark.what)).count();
    let critical = open(|what| matches!(what, What::Critical(critical) if critical.told.is_none()));
    let opinions = open(|what| matches!(what, What::Opinion(opinion) if opinion.answer.is_none()));
    let differ = open(|what| matches!(what, What::Discrepancy(discrepancy) if discrepancy.told.is_none()));
    let course = &exam.course;
    let kept = [course.critical_open, course.opinions_open, course.discrepancies_open].map(|count| count as usize);
    prop_assert_eq!(kept, [critical, opinions, differ]);
    Ok(())
}

fn counts_and_indexes_are_a_recount(bench: &Bench, exams: &[Exam]) -> Held {
    let mut recount = Counts::default();
    for exam in exams {
        *recount.of(exam.state) += 1;
        recount.unsolicited += u64::from(exam.unsolicited.is_some());
        recount.more.critical_open += u64::from(exam.course.critical_open > 0);
    }
    let mut counts = bench.view(|view| view.counts());
    for state in ExamState::ALL {
        prop_assert_eq!(*counts.of(state), *recount.of(state), "{}", state);
    }
    prop_assert_eq!(counts.unsolicited, recount.unsolicited);
    prop_assert_eq!(counts.more.critical_open, recount.more.critical_open);
    let ids = |exams: Vec<Exam>| exams.into_iter().map(|exam| exam.id).collect::<Vec<_>>();
    let those = |is: &dyn Fn(&Exam) -> bool| exams.iter().filter(|exam| is(exam)).map(|exam| exam.id).collect();
    let sorted = |mut ids: Vec<ExamId>| {
        ids.sort();
        ids
    };
    let waiting: Vec<ExamId> = those(&|exam| exam.state == ExamState::Waiting);
    prop_assert_eq!(sorted(ids(bench.view(|view| view.waiting(UnixMillisField(bench.now), usize::MAX)))), waiting);
    let held: Vec<ExamId> = those(&|exam| exam.state.is_held());
    prop_assert_eq!(sorted(ids(bench.view(|view| view.claimed(usize::MAX)))), held);
    let regulate: Vec<ExamId> = those(&|exam| {
        use ExamState::{Acquiring, Receiving, Requested};
        exam.course.order.regulate
            && exam.course.regulation.is_none()
            && matches!(exam.state, Requested | Acquiring | Receiving)
    });
    prop_assert_eq!(ids(bench.view(|view| view.to_regulate(usize::MAX))), regulate);
    let ended: Vec<ExamId> = those(&|exam| exam.ended_at.is_some());
    prop_assert_eq!(sorted(ids(bench.view(|view| view.ended(usize::MAX)))), ended);
    let mut critical = BTreeSet::new();
    for exam in exams {
        for remark in bench.view(|view| view.remarks(exam.id)) {
            if let What::Critical(what) = remark.what
                && what.told.is_none()
            {
                critical.insert((exam.id, remark.number, what.due_at));
            }
        }
    }
    let listed: BTreeSet<_> = bench.view(|view| view.criticals(usize::MAX)).into_iter().collect();
    prop_assert_eq!(listed, critical);
    Ok(())
}

/// The end of a session has freed everything that was held under it.
fn claims_are_of_open_sessions(bench: &Bench, exams: &[Exam]) -> Held {
    let sites = bench.view(|view| view.sites());
    let open: BTreeSet<(SiteId, u64)> =
        sites.iter().filter(|site| site.session_open).map(|site| (site.id, site.sessions)).collect();
    for exam in exams {
        for item in bench.view(|view| view.workitems(exam.id)) {
            if let (WorkitemState::InProgress, Some(claim)) = (item.state, &item.performer) {
                prop_assert!(open.contains(&(claim.site, claim.session)), "held by a site that is away");
            }
        }
    }
    Ok(())
}
