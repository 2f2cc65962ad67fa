//! Random commands of both formats, against the reference and against what must always hold.

mod driver;
mod placement;

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::test_runner::TestCaseError;
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::invariants::Seen;
use super::reference::{Expected, Known, next};
use super::*;
use placement::{Placing, placing};

pub(super) use placement::studies_are_a_recount;

/// A random command. Exams are named by their place in the order of their making.
#[derive(Debug, Clone)]
enum Act {
    Add(Priority, bool),
    Order { priority: Priority, images: bool, regulate: bool, consent: Consent, contracted: bool },
    Images(usize),
    Regulate(usize, bool),
    Acquire(usize),
    Arrive(usize),
    ClaimNext,
    Next,
    Take(usize, bool),
    TakeOver(usize),
    Open(usize, bool),
    Release(usize, bool),
    Complete(usize, bool),
    Report(usize, bool, bool),
    Addend(usize),
    Deliver(usize, bool),
    FollowUp(usize),
    Cancel(usize),
    Prioritise(usize, Priority),
    Finding(usize, Option<Priority>),
    Note(usize),
    Critical(usize),
    Tell(usize),
    Escalate(usize),
    Discrepancy(usize),
    Ask(usize),
    Answer(usize),
    Glass(usize, bool),
    Perform(usize, u32, WorkitemState),
    AskCancel(usize, u32),
    Expire(usize),
    OpenSession(usize),
    Place(Placing),
    Wait(u64),
}

impl Act {
    fn format(&self) -> u8 {
        use Act::{Add, Cancel, ClaimNext, Complete, Expire, Images, OpenSession, Prioritise, Release, Take, Wait};
        match self {
            Add(..) | Images(_) | ClaimNext | Take(_, false) | Release(..) | Complete(..) | Cancel(_) => 1,
            Prioritise(..) | Expire(_) | OpenSession(_) | Wait(_) => 1,
            _ => 2,
        }
    }
}

fn act() -> impl Strategy<Value = Act> {
    let priority = || prop::sample::select(Priority::ALL.to_vec());
    let consent =
        prop::sample::select(vec![Consent::Undeclared, Consent::Declared, Consent::Emergency, Consent::Refused]);
    let n = || 0..6_usize;
    let state =
        prop::sample::select(vec![WorkitemState::InProgress, WorkitemState::Canceled, WorkitemState::Completed]);
    let order = (priority(), any::<bool>(), any::<bool>(), consent, prop::bool::weighted(0.2));
    let before = prop_oneof![
        2 => (priority(), any::<bool>()).prop_map(|(priority, images)| Act::Add(priority, images)),
        4 => order.prop_map(|(priority, images, regulate, consent, contracted)| Act::Order {
            priority, images, regulate, consent, contracted
        }),
        4 => n().prop_map(Act::Images),
        2 => (n(), prop::bool::weighted(0.8)).prop_map(|(n, verdict)| Act::Regulate(n, verdict)),
        1 => n().prop_map(Act::Acquire),
        1 => n().prop_map(Act::Arrive),
    ];
    let claims = prop_oneof![
        1 => Just(Act::ClaimNext),
        3 => Just(Act::Next),
        3 => (n(), any::<bool>()).prop_map(|(n, names)| Act::Take(n, names)),
        2 => n().prop_map(Act::TakeOver),
        1 => (n(), any::<bool>()).prop_map(|(n, stale)| Act::Open(n, stale)),
        1 => (n(), any::<bool>()).prop_map(|(n, stale)| Act::Release(n, stale)),
        1 => (0..3_usize).prop_map(Act::Expire),
        2 => (0..3_usize).prop_map(Act::OpenSession),
        1 => (n(), 1..4_u32, state).prop_map(|(n, number, to)| Act::Perform(n, number, to)),
        1 => (n(), any::<bool>()).prop_map(|(n, report)| Act::Glass(n, report)),
    ];
    let reports = prop_oneof![
        1 => (n(), any::<bool>()).prop_map(|(n, stale)| Act::Complete(n, stale)),
        3 => (n(), prop::bool::weighted(0.3), any::<bool>()).prop_map(|(n, stale, last)| Act::Report(n, stale, last)),
        1 => n().prop_map(Act::Addend),
        2 => (n(), any::<bool>()).prop_map(|(n, standing)| Act::Deliver(n, standing)),
        1 => n().prop_map(Act::FollowUp),
        1 => n().prop_map(Act::Cancel),
        1 => (n(), 1..4_u32).prop_map(|(n, number)| Act::AskCancel(n, number)),
    ];
    let care = prop_oneof![
        (n(), priority()).prop_map(|(n, priority)| Act::Prioritise(n, priority)),
        (n(), prop::option::of(priority())).prop_map(|(n, priority)| Act::Finding(n, priority)),
        n().prop_map(Act::Note),
        n().prop_map(Act::Critical),
        n().prop_map(Act::Tell),
        n().prop_map(Act::Escalate),
        n().prop_map(Act::Discrepancy),
        n().prop_map(Act::Ask),
        n().prop_map(Act::Answer),
        prop::sample::select(vec![5_u64, 20, 60, 600]).prop_map(Act::Wait),
    ];
    prop_oneof![3 => before, 4 => claims, 3 => reports, 2 => care, 3 => placing().prop_map(Act::Place)]
}

/// A mesh, what the reference knows of it, and what was seen of it.
struct Life {
    bench: Bench,
    sites: [SiteId; 3],
    sessions: [(u64, bool); 3],
    exams: Vec<Known>,
    seen: Seen,
    format: u8,
}

impl Life {
    fn new(format: u8) -> Self {
        let mut bench = Bench::of_format(format);
        let mut seen = Seen::default();
        seen.check(&bench).expect("a new mesh");
        let sites = [PARIS, bench.join("lyon"), bench.join("nantes")];
        seen.check(&bench).expect("three sites");
        if format >= 2 {
            let contract = Hospital { sites: vec![PARIS], ..hospital("contracted", Place::default()) };
            bench.run(PARIS, Command::SetHospital(contract));
        }
        Self { bench, sites, sessions: [(1, true); 3], exams: Vec::new(), seen, format }
    }

    fn rise(&mut self) {
        assert_eq!(self.bench.run(PARIS, Command::RaiseFormat { to: 2 }), Outcome::Done);
        let contract = Hospital { sites: vec![PARIS], ..hospital("contracted", Place::default()) };
        self.bench.run(PARIS, Command::SetHospital(contract));
        self.format = 2;
    }

    /// The exam of that place, in turn.
    fn at(&self, n: usize) -> Option<usize> {
        (!self.exams.is_empty()).then(|| n % self.exams.len())
    }

    fn run(&mut self, at: usize, command: Command) -> Outcome {
        let site = self.sites[at];
        self.bench.by(site, &format!("dr-{site}"), command)
    }

    /// When the next command will be applied.
    fn then(&self) -> u64 {
        self.bench.now + 1_000
    }

    /// The exam's current token, or one that holds no more, or never did.
    fn token(&self, exam: &Known, stale: bool) -> FencingToken {
        let granted = exam.tokens.len();
        let at = granted.checked_sub(if stale { 2 } else { 1 });
        at.and_then(|at| exam.tokens.get(at)).copied().unwrap_or(FencingToken(3))
    }

    fn step(&mut self, act: &Act, at: usize) -> Result<(), TestCaseError> {
        if act.format() > self.format {
            return Ok(());
        }
        match act {
            Act::Wait(minutes) => self.bench.now += minutes * 60_000,
            Act::Add(..) | Act::Order { .. } => self.add(act)?,
            Act::Images(n) => self.images(*n, at)?,
            Act::Expire(n) => self.expire(*n)?,
            Act::OpenSession(n) => {
                let (session, open) = &mut self.sessions[*n];
                *session += u64::from(!*open);
                *open = true;
                let expected = Outcome::SessionOpened { session: *session };
                prop_assert_eq!(self.run(*n, Command::OpenSession), expected);
            }
            Act::Next | Act::ClaimNext => self.next(matches!(act, Act::Next), at)?,
            Act::Perform(n, number, to) => self.perform(*n, *number, *to, at)?,
            Act::AskCancel(n, number) => self.ask_cancel(*n, *number, at)?,
            Act::Place(placing) => self.place(placing, at)?,
            other => self.of_one_exam(other, at)?,
        }
        Ok(())
    }

    fn add(&mut self, act: &Act) -> Result<(), TestCaseError> {
        let number = self.bench.index;
        let request = |priority, awaits_images| Request {
            awaits_images,
            priority,
            ..request(&format!("A{number}"), &format!("P{number}"))
        };
        let (command, mut known, images) = match act {
            Act::Add(priority, images) => {
                (Command::AddExam(request(*priority, !images)), Known::new(ExamId(0), *priority), *images)
            }
            Act::Order { priority, images, regulate, consent, contracted } => {
                let mut request = request(*priority, !images);
                if *contracted {
                    request.hospital = Line::fitted("contracted");
                }
                let order = Order { regulate: *regulate, consent: *consent, ..Order::default() };
                let known = Known {
                    unregulated: *regulate,
                    consent: *consent,
                    contracted: *contracted,
                    ..Known::new(ExamId(0), *priority)
                };
                (Command::Order { request, order }, known, *images)
            }
            other => panic!("{other:?}"),
        };
        let outcome = self.run(0, command);
        let Outcome::ExamAdded { exam, existed: false } = outcome else {
            return Err(TestCaseError::fail(format!("{outcome:?}")));
        };
        known.id = exam;
        if images {
            known.images(self.bench.now);
        }
        self.exams.push(known);
        Ok(())
    }

    fn images(&mut self, n: usize, at: usize) -> Result<(), TestCaseError> {
        let Some(n) = self.at(n) else { return Ok(()) };
        let (id, was_off) = (self.exams[n].id, self.exams[n].is_off());
        let says = self.bench.exam(id).request;
        let outcome = self.run(at, Command::RecordStudy(part(&format!("1.2.{id}"), says, 1)));
        let Outcome::StudyRecorded { exam: to, .. } = outcome else {
            return Err(TestCaseError::fail(format!("{outcome:?}")));
        };
        let known = self.exams.iter().position(|exam| exam.id == to);
        let target = known.unwrap_or_else(|| {
            // The images of what is not to be read are not thrown away: they stand apart.
            let Known { priority, contracted, .. } = self.exams[n];
            self.exams.push(Known { contracted, ..Known::new(to, priority) });
            self.exams.len() - 1
        });
        prop_assert!(was_off || target == n, "images of another exam");
        let (now, site) = (self.bench.now, self.sites[at]);
        let target = &mut self.exams[target];
        if !target.origins.contains(&site) {
            target.origins.push(site);
            target.images(now);
        }
        Ok(())
    }

    fn expire(&mut self, n: usize) -> Result<(), TestCaseError> {
        let (site, (session, open)) = (self.sites[n], self.sessions[n]);
        let outcome = self.run(0, Command::ExpireSession { site, session });
        if !open {
            prop_assert_eq!(outcome, Outcome::Refused(Refusal::SessionOver));
            return Ok(());
        }
        self.sessions[n].1 = false;
        let now = self.bench.now;
        let held: Vec<&mut Known> =
            self.exams.iter_mut().filter(|exam| exam.holder.is_some_and(|(at, _)| at == site)).collect();
        prop_assert_eq!(outcome, Outcome::SessionExpired { freed: u32::try_from(held.len()).expect("few") });
        held.into_iter().for_each(|exam| exam.lose(now));
        Ok(())
    }

    fn next(&mut self, is_of_2: bool, at: usize) -> Result<(), TestCaseError> {
        let site = self.sites[at];
        let given = next(&self.exams, site, self.then(), is_of_2);
        let expected = match given {
            None => Expected::NothingWaiting,
            Some(_) if !self.sessions[at].1 => Expected::Refused,
            Some(exam) => Expected::Granted(exam),
        };
        let command =
            if is_of_2 { Command::Next(Reader::default()) } else { Command::ClaimNext { modalities: vec![] } };
        let outcome = self.run(at, command);
        self.came_to(expected, &outcome, at)
    }

    /// A command about one exam: what the reference says of it, and what the queue says.
    fn of_one_exam(&mut self, act: &Act, at: usize) -> Result<(), TestCaseError> {
        let (n, command) = match self.command_of(act) {
            Some(both) => both,
            None => return Ok(()),
        };
        let (site, in_session, then, format) = (self.sites[at], self.sessions[at].1, self.then(), self.format);
        let exam = &mut self.exams[n];
        let expected = match (act, &command) {
            (Act::Regulate(_, verdict), _) => exam.regulate(*verdict),
            (Act::Acquire(_), _) => exam.acquire(),
            (Act::Arrive(_), _) => exam.arrive(),
            (Act::Take(..), _) => exam.take(site, in_session),
            (Act::TakeOver(_), _) => exam.take_over(site, in_session, then),
            (_, Command::Open { token, .. }) => exam.open(*token),
            (_, Command::Release { token, .. }) => exam.release(*token, then),
            (_, Command::Complete { token, .. }) => exam.report(*token, true, format),
            (Act::Report(_, _, last), Command::Report { token, .. }) => exam.report(*token, *last, format),
            (Act::Addend(_), _) => exam.addend(),
            (_, Command::Deliver { report, .. }) => exam.deliver(*report),
            (Act::FollowUp(_), _) => exam.follow_up(),
            (Act::Cancel(_), _) => exam.cancel(),
            (Act::Prioritise(_, priority), _) => exam.prioritise(*priority),
            (Act::Finding(_, priority), _) => {
                if let Some(priority) = priority.filter(|priority| *priority < exam.priority) {
                    exam.prioritise(priority);
                }
                exam.remark(true)
            }
            (Act::Note(_), _) => exam.remark(true),
            (Act::Critical(_), _) => {
                let expected = exam.remark(true);
                exam.critical = Some((exam.remarks, then + 15 * 60_000, false));
                expected
            }
            (Act::Tell(_), _) => match &mut exam.critical {
                Some((.., told @ false)) => {
                    *told = true;
                    Expected::Done
                }
                _ => Expected::Refused,
            },
            (Act::Escalate(_), _) => match &mut exam.critical {
                Some((_, due, false)) if *due <= then => {
                    *due = then + 15 * 60_000;
                    Expected::Done
                }
                _ => Expected::Refused,
            },
            (Act::Discrepancy(_), _) => {
                let may = exam.standing.is_some();
                exam.remark(may)
            }
            (Act::Ask(_), _) => {
                let may = !exam.is_off();
                let expected = exam.remark(may);
                exam.opinion = if may { Some((exam.remarks, false)) } else { exam.opinion };
                expected
            }
            (Act::Answer(_), _) => match &mut exam.opinion {
                Some((_, given @ false)) => {
                    *given = true;
                    Expected::Done
                }
                _ => Expected::Refused,
            },
            (Act::Glass(_, report), _) => exam.mend(site, in_session, *report, then),
            other => panic!("{other:?}"),
        };
        let outcome = self.run(at, command);
        self.came_to(expected, &outcome, at)?;
        if let Outcome::GlassMended { grant: Some(grant), .. } = outcome
            && self.exams[n].holder.is_none()
        {
            self.exams[n].granted(site, grant.claim.token);
        }
        Ok(())
    }

    fn command_of(&self, act: &Act) -> Option<(usize, Command)> {
        let (Act::Regulate(n, _)
        | Act::Acquire(n)
        | Act::Arrive(n)
        | Act::Take(n, _)
        | Act::TakeOver(n)
        | Act::Open(n, _)
        | Act::Release(n, _)
        | Act::Complete(n, _)
        | Act::Report(n, ..)
        | Act::Addend(n)
        | Act::Deliver(n, _)
        | Act::FollowUp(n)
        | Act::Cancel(n)
        | Act::Prioritise(n, _)
        | Act::Finding(n, _)
        | Act::Note(n)
        | Act::Critical(n)
        | Act::Tell(n)
        | Act::Escalate(n)
        | Act::Discrepancy(n)
        | Act::Ask(n)
        | Act::Answer(n)
        | Act::Glass(n, _)) = act
        else {
            return None;
        };
        let n = self.at(*n)?;
        Some((n, self.command_on(act, &self.exams[n])))
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(150))]

    #[test]
    fn random_lives_agree_with_the_reference_and_keep_every_invariant(
        acts in prop::collection::vec((act(), 0..3_usize), 1..90),
        // A mesh of format 1 that rises, or one that is founded at format 2.
        rises_at in prop::option::of(0..40_usize),
    ) {
        let mut life = Life::new(if rises_at.is_some() { 1 } else { 2 });
        for (number, (act, at)) in acts.iter().enumerate() {
            if rises_at == Some(number) {
                life.rise();
                life.seen.check(&life.bench)?;
            }
            life.step(act, *at)?;
            life.check()?;
        }
    }
}
