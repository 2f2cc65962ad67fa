//! What follows a final report: its delivery, addenda, second opinions, critical results, the outcome.

use std::time::Duration;

use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::ids::{ExamId, Line, Name, Paragraph, Prose};

use super::{Answer, Sender};
use crate::invariants::course::{Done, Kept};

/// How long each of these is tried.
pub(super) const AFTERWARDS: Duration = Duration::from_secs(3);
const DELIVERED: f64 = 0.7;
const ADDENDUM: f64 = 0.2;
const FOLLOWED_UP: f64 = 0.3;
const CRITICAL: f64 = 0.1;
const OPINION: f64 = 0.1;

/// What its reader does with a reported exam.
pub(super) struct Afterwards<'s> {
    pub(super) sender: &'s mut Sender,
    pub(super) exam: ExamId,
}

impl Afterwards<'_> {
    /// From the final report of that number on.
    pub(super) async fn follow(mut self, report: u32) {
        let exam = self.exam;
        if self.sender.cluster.is_ending() {
            return;
        }
        if self.sender.rng.chance(CRITICAL) {
            let text = Paragraph::fitted("bleeding in the brain");
            self.say(Command::RaiseCritical { exam, text }).await;
        }
        if self.sender.rng.chance(OPINION) {
            let question = Paragraph::fitted("do you see it, too?");
            self.say(Command::AskOpinion { exam, of: Name::default(), question }).await;
        }
        let mut standing = report;
        if self.sender.rng.chance(ADDENDUM) {
            standing = self.addend().await.unwrap_or(standing);
        }
        if self.sender.rng.chance(DELIVERED) && self.deliver(standing).await {
            if self.sender.rng.chance(FOLLOWED_UP) {
                let text = Paragraph::fitted("went home");
                self.say(Command::FollowUp { exam, text }).await;
            }
            if self.sender.rng.chance(ADDENDUM)
                && let Some(later) = self.addend().await
            {
                self.sender.cluster.world.sometimes("an addendum followed a delivery");
                self.deliver(later).await;
            }
        }
    }

    async fn say(&mut self, command: Command) -> Option<(u64, Outcome)> {
        let id = self.sender.new_id();
        match self.sender.send(id, command, Some(AFTERWARDS)).await {
            Answer::Given(index, outcome) => Some((index, outcome)),
            Answer::Never | Answer::Unknown => None,
        }
    }

    async fn deliver(&mut self, report: u32) -> bool {
        let (exam, to) = (self.exam, Line::fitted("the requesting physician"));
        let Some((index, Outcome::Done)) = self.say(Command::Deliver { exam, report, to }).await else { return false };
        self.sender.cluster.world.sometimes("a report was delivered");
        self.sender.cluster.watch.course.delivered(Done { exam: exam.0, number: report, index });
        true
    }

    /// The number of the addendum, if it is known to be kept.
    async fn addend(&mut self) -> Option<u32> {
        let (exam, text) = (self.exam, format!("addendum {} of {}", self.sender.rng.next(), self.sender.user));
        let command =
            Command::Addend { exam, text: Prose::new(text.clone()).unwrap_or_default(), signature: Default::default() };
        let Some((index, Outcome::Completed { report: number })) = self.say(command).await else { return None };
        self.sender.cluster.watch.course.kept(Kept { exam: exam.0, number, text, stale: false, index });
        Some(number)
    }
}
