//! A reader: claims an exam, reads it, reports it or gives it back; sometimes walks away and comes
//! back to what is still claimed in its name.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::exam::{Claim, ExamState, ReportKind};
use maillage_consensus::ids::{CommandId, ExamId, FencingToken, Line, Name, Prose, UidText};
use maillage_consensus::order::Reader as Profile;
use maillage_consensus::{Outcome, Refusal, View};

use super::afterwards::{AFTERWARDS, Afterwards};
use super::{Answer, Sender, command_of, number_of};
use crate::cluster::Cluster;
use crate::history::{Act, Claimed, Shown, Told};
use crate::invariants::course::Kept;
use crate::invariants::finality::Completed;
use crate::invariants::{patients, prefetch, retrieval};
use crate::mutant::Mutant;
use crate::rng::Rng;

/// Mean pause of a reader between two things.
const PAUSE: Duration = Duration::from_millis(700);
/// The longest reading once all is to be finished.
const READING_AT_END: Duration = Duration::from_millis(300);
/// How long a linearizable read may take.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How often a reader who gave an exam back reports it all the same.
const STALE_TRIES: f64 = 0.4;
/// How often a reader uses the words of format 2; else those of format 1. By HTTP it is the node that chooses them.
const OF_FORMAT_2: f64 = 0.5;
/// How often a preliminary report goes before the final one.
const PRELIMINARY: f64 = 0.15;
/// How often a reader looks at what was found of the patient before.
const COMPARES: f64 = 0.7;
/// Newest exams among which a reader picks one by hand.
const CHOICE: usize = 25;

#[derive(Clone, Copy)]
struct Held {
    exam: u64,
    token: u64,
    claim: u128,
}

fn written(held: Held, kind: ReportKind, text: Prose) -> Command {
    let (exam, token) = (ExamId(held.exam), FencingToken(held.token));
    Command::Report { exam, token, kind, text, signature: Default::default() }
}

/// See the module.
pub(crate) struct Reader {
    sender: Sender,
    /// Of what this reader looks at beside the exam.
    priors: Rng,
    user: u32,
    held: Option<Held>,
    reports: u64,
}

impl Reader {
    pub(crate) fn new(cluster: Arc<Cluster>, slot: u32, number: u32, rng: Rng) -> Self {
        let user = slot * 100 + number;
        let name = Name::fitted(&format!("reader-{user}"));
        let priors = Rng::stream(cluster.plan.seed, &format!("priors of {name}"));
        Self { sender: Sender::new(cluster, slot, name, rng), priors, user, held: None, reports: 0 }
    }

    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.sender.cluster)
    }

    pub(crate) async fn run(mut self) {
        loop {
            let pause = self.sender.rng.around(PAUSE);
            tokio::time::sleep(pause).await;
            if self.held.is_some() {
                self.read_and_end().await;
                continue;
            }
            match self.sender.rng.below(20) {
                0..=3 => self.look().await,
                4..=5 => self.come_back().await,
                6..=8 => self.take().await,
                9 => self.take_over().await,
                _ => self.next().await,
            }
        }
    }

    /// Most wait for an answer as long as it takes; some lose patience.
    fn patience(&mut self) -> Option<Duration> {
        (!self.cluster().is_ending() && self.sender.rng.chance(0.2)).then(|| self.sender.rng.millis(500, 6_000))
    }

    fn claimed(&self, id: CommandId) -> Claimed {
        let site = self.cluster().site(self.sender.slot).unwrap_or(0);
        Claimed { command: id.0.as_u128(), user: self.user, site, session: None }
    }

    async fn next(&mut self) {
        let (cluster, id, patience) = (self.cluster(), self.sender.new_id(), self.patience());
        let by = self.claimed(id);
        let call = cluster.history.call(None, Act::Claim { by, told: None });
        let command = if self.sender.rng.chance(OF_FORMAT_2) {
            Command::Next(Profile::default())
        } else {
            Command::ClaimNext { modalities: Vec::new() }
        };
        match self.sender.send(id, command, patience).await {
            Answer::Given(_, Outcome::Claimed(grant)) => self.granted(call, by, grant.exam, &grant.claim),
            Answer::Given(..) | Answer::Never => cluster.history.never(call),
            Answer::Unknown => {}
        }
    }

    async fn take(&mut self) {
        let cluster = self.cluster();
        let exams = cluster.history.exams();
        let newest = &exams[exams.len().saturating_sub(CHOICE)..];
        let Some(exam) = self.sender.rng.pick(newest).copied() else { return };
        let (id, patience) = (self.sender.new_id(), self.patience());
        let by = self.claimed(id);
        let call = cluster.history.call(Some(exam), Act::Claim { by, told: None });
        let command = if self.sender.rng.chance(OF_FORMAT_2) {
            Command::Take { exam: ExamId(exam), transaction_uid: UidText::default() }
        } else {
            Command::ClaimTake { exam: ExamId(exam) }
        };
        let told = match self.sender.send(id, command, patience).await {
            Answer::Given(_, Outcome::Claimed(grant)) => return self.granted(call, by, grant.exam, &grant.claim),
            Answer::Given(_, Outcome::Refused(Refusal::AlreadyClaimed(holder))) => {
                cluster.world.sometimes("a claim was refused because another holds the exam");
                Told::Held { user: number_of(&holder.user), site: holder.site.0 }
            }
            Answer::Given(_, Outcome::Refused(Refusal::WrongState { state })) if is_over(state) => Told::Over,
            // Its images are awaited, or the site has no session: not a question of who holds it.
            Answer::Given(..) | Answer::Never => return cluster.history.never(call),
            Answer::Unknown => return,
        };
        cluster.history.answer(call, exam, Act::Claim { by, told: Some(told) });
    }

    /// Takes over what somebody holds; from here on the other's report is a draft.
    async fn take_over(&mut self) {
        let cluster = self.cluster();
        if cluster.is_ending() {
            return;
        }
        let Some(running) = cluster.running(self.sender.slot) else { return };
        let held: Vec<u64> = {
            let engine = running.group.reader();
            View::new(&*engine).claimed(CHOICE).unwrap_or_default().iter().map(|exam| exam.id.0).collect()
        };
        let Some(exam) = self.sender.rng.pick(&held).copied() else { return };
        let (id, patience) = (self.sender.new_id(), self.patience());
        let by = self.claimed(id);
        let call = cluster.history.call(Some(exam), Act::TakeOver { by, told: None });
        let reason = Line::fitted("the patient is in the theatre");
        let told = match self.sender.send(id, Command::TakeOver { exam: ExamId(exam), reason }, patience).await {
            Answer::Given(_, Outcome::Claimed(grant)) => {
                cluster.world.sometimes("an exam was taken over");
                let by = self.note_grant(by, grant.exam, &grant.claim);
                let told = Some(Told::Granted { token: grant.claim.token.0 });
                return cluster.history.answer(call, exam, Act::TakeOver { by, told });
            }
            Answer::Given(_, Outcome::Refused(Refusal::WrongState { state })) if is_over(state) => Told::Over,
            Answer::Given(..) | Answer::Never => return cluster.history.never(call),
            Answer::Unknown => return,
        };
        cluster.history.answer(call, exam, Act::TakeOver { by, told: Some(told) });
    }

    fn granted(&mut self, call: u64, by: Claimed, exam: ExamId, claim: &Claim) {
        let by = self.note_grant(by, exam, claim);
        let token = claim.token.0;
        self.cluster().history.answer(call, exam.0, Act::Claim { by, told: Some(Told::Granted { token }) });
    }

    fn note_grant(&mut self, by: Claimed, exam: ExamId, claim: &Claim) -> Claimed {
        let token = claim.token.0;
        self.held = Some(Held { exam: exam.0, token, claim: by.command });
        // HTTP does not tell the session; who applied it has. The site may be a new one since it was asked.
        let told = (claim.session > 0).then_some(claim.session);
        let session = told.or_else(|| self.cluster().history.session_of(exam.0, token));
        Claimed { site: claim.site.0, session, ..by }
    }

    async fn read_and_end(&mut self) {
        let mut reading = self.sender.rng.around(self.cluster().plan.reading);
        if self.cluster().is_ending() {
            // The bound on finishing is the mesh's, not that of few readers before a full room.
            reading = reading.min(READING_AT_END);
        }
        if let Some(held) = self.held {
            prefetch::claimed(&self.cluster(), self.sender.slot, held.exam).await;
            self.open(held).await;
            self.look_at_images(held.exam).await;
            self.compare(held.exam).await;
        }
        tokio::time::sleep(reading).await;
        let Some(held) = self.held.take() else { return };
        let ending = self.cluster().is_ending();
        if !ending && self.sender.rng.chance(0.05) {
            self.cluster().world.sometimes("a reader walked away");
        } else if !ending && self.sender.rng.chance(0.15) {
            self.release(held).await;
            if self.sender.rng.chance(STALE_TRIES) {
                // The report was under way on another screen.
                let wait = self.sender.rng.around(PAUSE * 4);
                tokio::time::sleep(wait).await;
                self.complete(held).await;
            }
        } else {
            self.complete(held).await;
            if self.sender.rng.chance(STALE_TRIES / 4.0) {
                self.complete(held).await;
            }
        }
    }

    /// Opens the exam's images at the site's node, wherever they are.
    async fn look_at_images(&mut self, exam: u64) {
        let cluster = self.cluster();
        let Some(running) = cluster.running(self.sender.slot) else { return };
        let studies = {
            let engine = running.group.reader();
            View::new(&*engine).exam(ExamId(exam)).ok().flatten().map(|exam| exam.studies).unwrap_or_default()
        };
        for study in studies {
            retrieval::look(&cluster, &running, study.as_str(), false).await;
        }
    }

    /// Looks up the patient's other exams at the site's node, and opens the images of one.
    async fn compare(&mut self, exam: u64) {
        let cluster = self.cluster();
        if cluster.is_ending() || !self.priors.chance(COMPARES) {
            return;
        }
        let Some(running) = cluster.running(self.sender.slot) else { return };
        let priors = patients::priors_of(&cluster, &running, exam).await;
        let Some(prior) = self.priors.pick(&priors) else { return };
        cluster.world.sometimes("a reader was shown a patient's priors");
        for study in &prior.studies {
            let was_prefetched = prefetch::has_brought(&running, study).await;
            if retrieval::look(&cluster, &running, study, false).await.is_none() {
                cluster.world.sometimes("a reader opened a prior");
                if was_prefetched {
                    cluster.world.sometimes("a reader found a prior prefetched");
                }
            }
        }
    }

    async fn release(&mut self, held: Held) {
        let (cluster, id, patience) = (self.cluster(), self.sender.new_id(), self.patience());
        let Held { exam, token, claim } = held;
        let call = cluster.history.call(Some(exam), Act::Release { claim, token, done: None });
        let command = Command::Release { exam: ExamId(exam), token: FencingToken(token), reason: Line::default() };
        let done = match self.sender.send(id, command, patience).await {
            Answer::Given(_, Outcome::Done) => true,
            Answer::Given(..) => false,
            Answer::Never => return cluster.history.never(call),
            Answer::Unknown => return,
        };
        cluster.history.answer(call, exam, Act::Release { claim, token, done: Some(done) });
    }

    async fn complete(&mut self, held: Held) {
        let (cluster, id, patience) = (self.cluster(), self.sender.new_id(), self.patience());
        let Held { exam, token, claim } = held;
        if self.sender.rng.chance(PRELIMINARY) {
            self.say_first(held).await;
        }
        let text = self.new_text();
        let call = cluster.history.call(Some(exam), Act::Complete { claim, token, done: None });
        let report = Prose::new(text.clone()).unwrap_or_default();
        let command = if self.sender.rng.chance(OF_FORMAT_2) {
            written(held, ReportKind::Final, report)
        } else {
            Command::Complete { exam: ExamId(exam), token: FencingToken(token), report }
        };
        let mut reported = None;
        let done = match self.sender.send(id, command, patience).await {
            Answer::Given(index, Outcome::Completed { report }) => {
                cluster.watch.finality.completed(Completed { exam, index, token, report, text });
                reported = Some(report);
                true
            }
            Answer::Given(index, Outcome::Refused(Refusal::StaleToken { kept_as, .. })) => {
                cluster.world.sometimes("a report under a lost claim was refused");
                if let Some(number) = kept_as {
                    cluster.watch.course.kept(Kept { exam, number, text, stale: true, index });
                }
                false
            }
            Answer::Given(..) => false,
            Answer::Never => return cluster.history.never(call),
            Answer::Unknown => return,
        };
        cluster.history.answer(call, exam, Act::Complete { claim, token, done: Some(done) });
        if let Some(report) = reported {
            Afterwards { sender: &mut self.sender, exam: ExamId(exam) }.follow(report).await;
        }
    }

    /// A text that nobody else writes.
    fn new_text(&mut self) -> String {
        self.reports += 1;
        format!("report {} of {}: nothing abnormal", self.reports, self.user)
    }

    async fn open(&mut self, held: Held) {
        if self.sender.rng.chance(OF_FORMAT_2) {
            let (id, patience) = (self.sender.new_id(), Some(AFTERWARDS));
            let command = Command::Open { exam: ExamId(held.exam), token: FencingToken(held.token) };
            // Whether the claim still holds shows when the report is signed.
            self.sender.send(id, command, patience).await;
        }
    }

    /// A preliminary report, before the final one.
    async fn say_first(&mut self, held: Held) {
        let (cluster, id, text) = (self.cluster(), self.sender.new_id(), self.new_text());
        let command = written(held, ReportKind::Preliminary, Prose::new(text.clone()).unwrap_or_default());
        let (exam, patience) = (held.exam, Some(AFTERWARDS));
        match self.sender.send(id, command, patience).await {
            Answer::Given(index, Outcome::Completed { report: number }) => {
                cluster.world.sometimes("a preliminary report was kept");
                cluster.watch.course.kept(Kept { exam, number, text, stale: false, index });
            }
            Answer::Given(index, Outcome::Refused(Refusal::StaleToken { kept_as: Some(number), .. })) => {
                cluster.watch.course.kept(Kept { exam, number, text, stale: true, index });
            }
            _ => {}
        }
    }

    /// Looks at one exam by a linearizable read.
    async fn look(&mut self) {
        let cluster = self.cluster();
        let exams = cluster.history.exams();
        let newest = &exams[exams.len().saturating_sub(CHOICE)..];
        let Some(exam) = self.sender.rng.pick(newest).copied() else { return };
        let call = cluster.history.call(Some(exam), Act::Read(Shown::Waiting));
        let read = self.read(move |view| {
            let found = view.exam(ExamId(exam)).ok()??;
            match (found.state, found.claim) {
                (ExamState::Waiting, _) => Some(Shown::Waiting),
                (state, Some(claim)) if state.is_held() => {
                    let (command, user, site) = (command_of(&claim), number_of(&claim.user), claim.site.0);
                    Some(Shown::Claimed { command, user, site })
                }
                (state, _) if is_over(state) => Some(Shown::Reported),
                _ => None,
            }
        });
        match read.await {
            Some(shown) => cluster.history.answer(call, exam, Act::Read(shown)),
            None => cluster.history.never(call),
        }
    }

    /// Comes back to an exam that is still claimed in this reader's name.
    async fn come_back(&mut self) {
        let user = self.sender.user.clone();
        let mine = self.read(move |view| {
            let claimed = view.claimed(usize::MAX).ok()?;
            let mine = claimed.into_iter().find(|exam| exam.claim.as_ref().is_some_and(|claim| claim.user == user))?;
            let claim = mine.claim?;
            Some(Held { exam: mine.id.0, token: claim.token.0, claim: command_of(&claim) })
        });
        self.held = mine.await;
        if self.held.is_some() {
            self.cluster().world.sometimes("a reader came back to its claim");
        }
    }

    /// Reads at the site's node what was committed before now.
    async fn read<T: Send + 'static>(&self, ask: impl FnOnce(&View<'_>) -> Option<T> + Send + 'static) -> Option<T> {
        let cluster = self.cluster();
        let running = cluster.running(self.sender.slot)?;
        let stale = cluster.plan.mutant == Some(Mutant::ReadsStale);
        let asked = cluster.world.spawn_on(running.owner, async move {
            if !stale {
                running.group.linearize(READ_LIMIT).await.ok()?;
            }
            let engine = running.group.reader();
            ask(&View::new(&*engine))
        });
        asked.await.ok()?
    }
}

/// Whether that says that somebody reported it: an archive has exams purged that nobody did.
fn is_over(state: ExamState) -> bool {
    state.is_reported() && state != ExamState::Purged
}
