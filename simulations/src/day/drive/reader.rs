//! A reader's shift: waits for the room to show something, claims the next, opens its images, reads, reports.
//!
//! All of it at the node of the reader's own centre. A centre without power stops its readers; when it is
//! back they go on with what is still theirs. A centre that is cut off is no reason to stop reading: the
//! report is handed in when it can be.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::ids::{ExamId, FencingToken, Line, Name, Prose, UidText};
use maillage_consensus::order::{Reader as Profile, Specialty};
use maillage_consensus::{Outcome, Refusal, View};

use super::stage::Stage;
use super::wires;
use crate::cluster::Running;
use crate::day::model::{Discipline, Kind, Reader as Shift};
use crate::history::{Act, Claimed, Told};
use crate::invariants::course::Done;
use crate::invariants::finality::Completed;
use crate::invariants::retrieval;
use crate::rng::Rng;
use crate::workload::{Answer, Sender};

/// How long after something shows in the worklist a reader clicks: people are not machines, and no two alike.
const REACTION_MS: (u64, u64) = (500, 8_000);
/// How long one try at the node goes on; then the reader does something else for a moment.
const PATIENCE: Duration = Duration::from_secs(10);
/// When the node did not answer, it is tried again after this time.
const AGAIN_MS: (u64, u64) = (10_000, 20_000);
/// Between two looks at a node that is down.
const DOWN: Duration = Duration::from_secs(2);
/// An idle reader's page is loaded anew this often: one of a life of the node that is over shows nothing more,
/// and does not say so.
const RELOAD: Duration = Duration::from_secs(15);
/// Between two tries at opening images.
const OPEN_AGAIN: Duration = Duration::from_secs(5);
/// Tries at opening images before the reader telephones the hospital, each time.
const OPEN_TRIES: u32 = 12;
/// Exams of the waiting room that a worklist shows.
const ROOM_SHOWN: usize = 200;
/// How long a linearizable read may take.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// The number of a reader in the history, from the index in the day.
fn user(reader: usize) -> u32 {
    u32::try_from(reader + 1).unwrap_or(u32::MAX)
}

/// A reader's name as a user of the mesh.
pub(super) fn name(reader: usize) -> String {
    format!("reader-{}", user(reader))
}

/// The index of the reader of this name.
pub(super) fn of_name(name: &str) -> Option<usize> {
    name.strip_prefix("reader-")?.parse::<usize>().ok()?.checked_sub(1)
}

/// An exam that this reader holds, or believes to hold.
#[derive(Debug, Clone, Copy)]
struct Held {
    exam: ExamId,
    token: FencingToken,
    claim: u128,
}

/// Why a reading ended.
enum End {
    /// Reported, or no longer this reader's.
    Over,
    /// The power went.
    Stopped,
}

/// One shift, to its end.
pub(super) async fn run(stage: Arc<Stage>, reader: usize) {
    let shift = stage.day.readers[reader];
    stage.sleep_until(shift.from_ms).await;
    let rng = Rng::stream(stage.day.seed, &format!("day: reader {reader}"));
    let slot = wires::slot(shift.centre);
    let sender = Sender::over_http(Arc::clone(&stage.cluster), slot, Name::fitted(&name(reader)), rng);
    let kinds = match shift.discipline {
        Discipline::Radiology => &stage.day.parameters.kinds,
        Discipline::NuclearMedicine => &stage.day.parameters.nuclear_kinds,
    };
    let modalities = modalities(kinds);
    Reader { reader, shift, modalities, sender, stage }.work().await;
}

fn modalities(kinds: &[Kind]) -> Vec<&'static str> {
    let mut modalities: Vec<&'static str> = kinds.iter().map(|kind| kind.modality).collect();
    modalities.sort_unstable();
    modalities.dedup();
    modalities
}

struct Reader {
    stage: Arc<Stage>,
    reader: usize,
    shift: Shift,
    modalities: Vec<&'static str>,
    sender: Sender,
}

impl Reader {
    async fn work(mut self) {
        while self.stage.now_ms() < self.shift.until_ms {
            if !self.has_power() {
                self.until_power(true).await;
                self.go_on().await;
                continue;
            }
            if !self.sees_something().await {
                continue;
            }
            let mut held = self.claim_next().await;
            while let Some(exam) = held.take() {
                if matches!(self.read(exam).await, End::Stopped) {
                    self.until_power(true).await;
                    held = self.still_held().await;
                }
            }
        }
    }

    /// Back from a lost centre with nothing in hand: perhaps a claim was made whose grant nobody saw.
    async fn go_on(&mut self) {
        let mut held = self.still_held().await;
        while let Some(exam) = held.take() {
            if matches!(self.read(exam).await, End::Stopped) {
                self.until_power(true).await;
                held = self.still_held().await;
            }
        }
    }

    fn has_power(&self) -> bool {
        self.stage.outages().borrow().has_power(self.shift.centre)
    }

    /// Waits until the centre has power, or has none.
    async fn until_power(&self, on: bool) {
        let mut outages = self.stage.outages();
        // The stage outlives its readers.
        let _ = outages.wait_for(|outages| outages.has_power(self.shift.centre) == on).await;
    }

    async fn pause(&mut self) {
        let wait = self.sender.rng.millis(AGAIN_MS.0, AGAIN_MS.1);
        tokio::time::sleep(wait).await;
    }

    /// Waits until the worklist shows an exam for this reader, who then needs a moment, and whether it still
    /// does. Also returns when the shift ends or the power goes.
    async fn sees_something(&mut self) -> bool {
        let Some(running) = self.stage.node(self.shift.centre) else {
            tokio::time::sleep(DOWN).await;
            return false;
        };
        let mut changes = running.group.changes();
        while !self.is_shown(&running) {
            tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() {
                    return false;
                },
                () = self.stage.sleep_until(self.shift.until_ms) => return false,
                () = self.until_power(false) => return false,
                () = tokio::time::sleep(RELOAD) => return false,
            }
        }
        let reaction = self.sender.rng.millis(REACTION_MS.0, REACTION_MS.1);
        tokio::time::sleep(reaction).await;
        self.has_power() && self.is_shown(&running)
    }

    fn is_shown(&self, running: &Running) -> bool {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let now = view.clock().unwrap_or_default();
        let waiting = view.waiting(now, ROOM_SHOWN).unwrap_or_default();
        waiting.iter().any(|exam| self.modalities.contains(&exam.request.modality.as_str()))
    }

    /// Claims the next exam under one id until that is answered.
    async fn claim_next(&mut self) -> Option<Held> {
        let history = Arc::clone(&self.stage.cluster.history);
        let id = self.sender.new_id();
        let site = self.stage.cluster.site(self.sender.slot).unwrap_or(0);
        let by = Claimed { command: id.0.as_u128(), user: user(self.reader), site, session: None };
        let call = history.call(None, Act::Claim { by, told: None });
        let command = Command::Next(self.profile());
        let mut perhaps = false;
        loop {
            match self.sender.send(id, command.clone(), Some(PATIENCE)).await {
                Answer::Given(_, Outcome::Claimed(grant)) => {
                    let token = grant.claim.token;
                    let told = Some(Told::Granted { token: token.0 });
                    history.answer(call, grant.exam.0, Act::Claim { by, told });
                    return Some(Held { exam: grant.exam, token, claim: by.command });
                }
                Answer::Given(..) => {
                    history.never(call);
                    return None;
                }
                Answer::Unknown => perhaps = true,
                Answer::Never => {}
            }
            if !self.has_power() {
                if !perhaps {
                    history.never(call);
                }
                return None;
            }
            self.pause().await;
        }
    }

    /// What this reader reads.
    fn profile(&self) -> Profile {
        let specialty = match self.shift.discipline {
            Discipline::Radiology => Specialty::Radiology,
            Discipline::NuclearMedicine => Specialty::NuclearMedicine,
        };
        Profile { specialties: vec![specialty], ..Profile::default() }
    }

    /// Reads an exam and reports it, if it is this reader's.
    async fn read(&mut self, held: Held) -> End {
        let Some(exam) = self.drawn(held.exam) else {
            let detail = format!("exam {} was claimed and is none of this day", held.exam);
            self.stage.cluster.world.violation("I8", detail);
            return End::Over;
        };
        let (reading, report) = {
            let drawn = &self.stage.day.exams[exam];
            (Duration::from_millis(drawn.reading_ms), drawn.report.clone())
        };
        let began = self.stage.cluster.world.now();
        let id = self.sender.new_id();
        // That it is being read shows on the others' worklists.
        let open = Command::Open { exam: held.exam, token: held.token };
        self.sender.send(id, open, Some(PATIENCE)).await;
        if let Some(end) = self.open(held, exam).await {
            return end;
        }
        // Opening is part of the reading, as the readings' times were measured.
        let left = reading.saturating_sub(self.stage.cluster.world.now() - began);
        if tokio::time::timeout(left, self.until_power(false)).await.is_ok() {
            return End::Stopped;
        }
        self.report(held, report).await
    }

    /// The index of an exam of the day, as the node shows it.
    fn drawn(&self, exam: ExamId) -> Option<usize> {
        // A node that is down now was up a moment ago; any shows the same.
        let running = self.stage.node(self.shift.centre).or_else(|| self.stage.cluster.all_running().pop())?;
        let engine = running.group.reader();
        let shown = View::new(&*engine).exam(exam).ok().flatten()?;
        self.stage.day.exams.iter().position(|drawn| drawn.accession == shown.request.accession.as_str())
    }

    /// Opens the images; says why the reading ends when they can't be opened any more.
    async fn open(&mut self, held: Held, exam: usize) -> Option<End> {
        let mut tries = 0_u32;
        loop {
            if !self.has_power() {
                return Some(End::Stopped);
            }
            if let Some(running) = self.stage.node(self.shift.centre) {
                match self.studies_of(&running, held) {
                    None => {
                        self.stage.cluster.world.sometimes("a reader found that the exam was another's");
                        return Some(End::Over);
                    }
                    Some(studies) if self.can_open(&running, &studies).await => return None,
                    Some(_) => {}
                }
            }
            tries += 1;
            if tries.is_multiple_of(OPEN_TRIES) {
                self.stage.asked_again[exam].notify_one();
            }
            tokio::time::sleep(OPEN_AGAIN).await;
        }
    }

    async fn can_open(&self, running: &Running, studies: &[UidText]) -> bool {
        for study in studies {
            if retrieval::look(&self.stage.cluster, running, study.as_str(), true).await.is_some() {
                return false;
            }
        }
        !studies.is_empty()
    }

    /// The exam's studies, while the node shows it as claimed under this token.
    fn studies_of(&self, running: &Running, held: Held) -> Option<Vec<UidText>> {
        let engine = running.group.reader();
        let shown = View::new(&*engine).exam(held.exam).ok().flatten()?;
        // A node that has not come as far as the grant shows nothing against it.
        let is_behind = running.group.applied() < held.token.0;
        let is_ours = shown.claim.as_ref().is_some_and(|claim| claim.token == held.token);
        (is_ours || is_behind).then_some(shown.studies)
    }

    async fn report(&mut self, held: Held, text: String) -> End {
        let Held { exam, token, claim } = held;
        // Two readers of one exam may conclude alike, and what each wrote is to be told apart.
        let text = format!("{text} (Under claim {token}.)");
        let cluster = Arc::clone(&self.stage.cluster);
        let id = self.sender.new_id();
        let call = cluster.history.call(Some(exam.0), Act::Complete { claim, token: token.0, done: None });
        let command = Command::Complete { exam, token, report: Prose::new(text.clone()).unwrap_or_default() };
        let (mut perhaps, mut reported) = (false, None);
        let done = loop {
            match self.sender.send(id, command.clone(), Some(PATIENCE)).await {
                Answer::Given(index, Outcome::Completed { report }) => {
                    reported = Some(report);
                    cluster.watch.finality.completed(Completed { exam: exam.0, index, token: token.0, report, text });
                    break true;
                }
                Answer::Given(_, Outcome::Refused(Refusal::StaleToken { .. })) => {
                    cluster.world.sometimes("a report came after its claim had gone back");
                    break false;
                }
                Answer::Given(..) => break false,
                Answer::Unknown => perhaps = true,
                Answer::Never => {}
            }
            if !self.has_power() {
                if !perhaps {
                    cluster.history.never(call);
                }
                return End::Stopped;
            }
            self.pause().await;
        };
        cluster.history.answer(call, exam.0, Act::Complete { claim, token: token.0, done: Some(done) });
        if let Some(report) = reported {
            self.deliver(exam, report).await;
        }
        End::Over
    }

    /// The report goes to the requesting physician; one that cannot go now is left to be delivered.
    async fn deliver(&mut self, exam: ExamId, report: u32) {
        let (cluster, id) = (Arc::clone(&self.stage.cluster), self.sender.new_id());
        let to = Line::fitted("the requesting physician");
        match self.sender.send(id, Command::Deliver { exam, report, to }, Some(PATIENCE)).await {
            Answer::Given(index, Outcome::Done) => {
                cluster.watch.course.delivered(Done { exam: exam.0, number: report, index });
            }
            _ => cluster.world.sometimes("a report was not delivered at once"),
        }
    }

    /// What is claimed in this reader's name, asked of the mesh once the centre's node is back in it.
    async fn still_held(&mut self) -> Option<Held> {
        loop {
            if !self.has_power() {
                return None;
            }
            if let Some(running) = self.stage.node(self.shift.centre)
                && let Some(held) = self.mine(running).await
            {
                if held.is_some() {
                    self.stage.cluster.world.sometimes("a reader went on with an exam after the power came back");
                }
                return held;
            }
            self.pause().await;
        }
    }

    /// `None` when the node can't tell.
    async fn mine(&self, running: Running) -> Option<Option<Held>> {
        let user = self.sender.user.clone();
        let asked = self.stage.cluster.world.spawn_on(running.owner, async move {
            running.group.linearize(READ_LIMIT).await.ok()?;
            let engine = running.group.reader();
            let claimed = View::new(&*engine).claimed(usize::MAX).ok()?;
            let mine = claimed
                .into_iter()
                .find(|exam| exam.state.is_held() && exam.claim.as_ref().is_some_and(|claim| claim.user == user));
            Some(mine.and_then(|exam| {
                let claim = exam.claim?;
                let command = claim.transaction_uid.as_str().strip_prefix("2.25.")?.parse().ok()?;
                Some(Held { exam: exam.id, token: claim.token, claim: command })
            }))
        });
        asked.await.ok()?
    }
}

#[cfg(test)]
mod tests {
    use super::{modalities, name, of_name};
    use crate::day::model::Parameters;

    #[test]
    fn a_reader_is_found_by_the_name_that_the_mesh_knows() {
        assert_eq!(of_name(&name(0)), Some(0));
        assert_eq!(of_name(&name(41)), Some(41));
        assert_eq!((of_name("reader-0"), of_name("somebody")), (None, None));
    }

    #[test]
    fn radiologists_and_nuclear_physicians_share_no_modality() {
        let parameters = Parameters::default();
        assert_eq!(modalities(&parameters.kinds), ["CT", "DX", "MR"]);
        assert_eq!(modalities(&parameters.nuclear_kinds), ["NM", "PT"]);
    }
}
