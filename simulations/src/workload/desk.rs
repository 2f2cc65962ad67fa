//! A site's desk: regulates requests, cancels what the patient keeps to their hospital, tells physicians of
//! critical results, gives second opinions; and, on the leader's behalf, lets criticals escalate.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::exam::{ExamState, Verdict};
use maillage_consensus::ids::{ExamId, Line, Name, Paragraph};
use maillage_consensus::order::Policy;
use maillage_consensus::remark::{Concordance, What};
use maillage_consensus::{Outcome, View};

use super::{Answer, Sender};
use crate::cluster::{Cluster, FOUNDER};
use crate::invariants::course::Done;
use crate::rng::Rng;

/// Mean pause between two things.
const PAUSE: Duration = Duration::from_millis(1_200);
/// The least that a policy allows: runs are short.
const CRITICAL_MS: u64 = 60_000;
/// How often a critical result that is seen is told at once; the others wait, and some escalate.
const TELLS: f64 = 0.01;
/// How often a request is refused.
const REFUSES: f64 = 0.1;
/// Things of a kind looked at.
const SEEN: usize = 16;

/// What the desk sees on its node.
#[derive(Default)]
struct Sight {
    to_regulate: Vec<ExamId>,
    confined: Vec<ExamId>,
    criticals: Vec<(ExamId, u32, bool)>,
    opinion: Option<(ExamId, u32)>,
}

/// Forever.
pub(super) async fn run(cluster: Arc<Cluster>, slot: u32, rng: Rng) {
    let name = Name::fitted(&format!("regulator-{slot}"));
    let mut desk = Desk { sender: Sender::new(Arc::clone(&cluster), slot, name, rng) };
    if slot == FOUNDER {
        let policy = Policy { critical_ms: CRITICAL_MS, ..Policy::default() };
        desk.say(Command::SetPolicy(policy)).await;
    }
    loop {
        let pause = desk.sender.rng.around(PAUSE);
        tokio::time::sleep(pause).await;
        let Some(sight) = desk.look() else { continue };
        desk.work(sight).await;
    }
}

struct Desk {
    sender: Sender,
}

impl Desk {
    async fn say(&mut self, command: Command) -> Option<(u64, Outcome)> {
        let id = self.sender.new_id();
        let patience = Duration::from_secs(5);
        match self.sender.send(id, command, Some(patience)).await {
            Answer::Given(index, outcome) => Some((index, outcome)),
            Answer::Never | Answer::Unknown => None,
        }
    }

    fn look(&mut self) -> Option<Sight> {
        let cluster = Arc::clone(&self.sender.cluster);
        let running = cluster.running(self.sender.slot)?;
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let now = view.clock().ok()?;
        let mut sight = Sight::default();
        sight.to_regulate.extend(view.to_regulate(SEEN).ok()?.iter().map(|exam| exam.id));
        let waiting = view.waiting(now, 8 * SEEN).ok()?;
        sight.confined.extend(waiting.iter().filter(|exam| exam.is_confined()).map(|exam| exam.id));
        sight
            .criticals
            .extend(view.criticals(SEEN).ok()?.into_iter().map(|(exam, remark, due)| (exam, remark, due <= now)));
        let exams = cluster.history.exams();
        let newest = &exams[exams.len().saturating_sub(2 * SEEN)..];
        if let Some(exam) = self.sender.rng.pick(newest).map(|exam| ExamId(*exam))
            && view.exam(exam).ok()?.is_some_and(|exam| exam.course.opinions_open > 0)
        {
            let remarks = view.remarks(exam).ok()?;
            let open =
                remarks.iter().find(|remark| matches!(&remark.what, What::Opinion(asked) if asked.answer.is_none()));
            sight.opinion = open.map(|remark| (exam, remark.number));
        }
        Some(sight)
    }

    async fn work(&mut self, sight: Sight) {
        let cluster = Arc::clone(&self.sender.cluster);
        if let Some(exam) = self.sender.rng.pick(&sight.to_regulate).copied() {
            let verdict = if self.sender.rng.chance(REFUSES) {
                Verdict::Refused { reason: Line::fitted("no sign of it") }
            } else {
                Verdict::Validated { protocol: Line::fitted("head without contrast") }
            };
            if let Some((_, Outcome::Done)) = self.say(Command::Regulate { exam, verdict }).await {
                cluster.world.sometimes("a request was regulated");
            }
        }
        if let Some(exam) = self.sender.rng.pick(&sight.confined).copied() {
            let reason = Line::fitted("the patient keeps it to the hospital");
            self.say(Command::Cancel { exam, reason }).await;
        }
        for (exam, remark, is_due) in sight.criticals {
            if is_due && cluster.leader() == Some(self.sender.slot) {
                self.escalate(exam, remark).await;
            }
            if cluster.is_ending() || self.sender.rng.chance(TELLS) {
                let whom = Line::fitted("the physician on call");
                let told = self.say(Command::Tell { exam, remark, whom, read_back: true }).await;
                if let Some((index, Outcome::Done)) = told {
                    cluster.watch.course.told(Done { exam: exam.0, number: remark, index });
                }
            }
        }
        if let Some((exam, remark)) = sight.opinion {
            let (text, concordance) = (Paragraph::fitted("I see it, too"), Concordance::Agrees);
            if let Some((_, Outcome::Done)) = self.say(Command::GiveOpinion { exam, remark, text, concordance }).await {
                cluster.world.sometimes("a second opinion was given");
            }
        }
    }

    /// As the leader does by itself; one that leads no more is refused, and the next does it.
    async fn escalate(&mut self, exam: ExamId, remark: u32) {
        let cluster = Arc::clone(&self.sender.cluster);
        let Some(running) = cluster.running(self.sender.slot) else { return };
        let id = self.sender.new_id();
        let asked = cluster.world.spawn_on(running.owner, async move {
            let command = Command::Escalate { exam, remark };
            let limit = Duration::from_secs(5);
            tokio::time::timeout(limit, running.node.propose(id, Name::default(), command)).await
        });
        drop(asked.await);
    }
}

/// Where an exam stands, as the node of `slot` shows it; `None` while that is down or has not come so far.
pub(super) fn state_at(cluster: &Cluster, slot: u32, exam: ExamId) -> Option<ExamState> {
    let running = cluster.running(slot)?;
    let engine = running.group.reader();
    View::new(&*engine).exam(exam).ok().flatten().map(|exam| exam.state)
}
