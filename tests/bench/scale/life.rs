//! What one whole life leaves in the state, and what it would have left as another exam's.

use anyhow::Context as _;
use maillage_consensus::View;
use maillage_consensus::audit::Link;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Exam, Report, Workitem};
use maillage_consensus::ids::{ExamId, Line};
use maillage_consensus::mesh::Study;
use maillage_consensus::statistics::Turnaround;
use maillage_consensus::study_key::{KeptKey, StudyKey};
use serde::Serialize;

use super::identity::{self, What, random};
use super::lives::{COMMANDS, STEP_MS};

/// Tags of the tables that grow with exams, in ascending order: `consensus/src/keys.rs`. The rows that are compared
/// say whether they are right.
pub(super) const EXAMS: u8 = 0x20;
pub(super) const ENDED: u8 = 0x23;
pub(super) const WORKITEMS: u8 = 0x24;
pub(super) const REPORTS: u8 = 0x25;
pub(super) const ACCESSIONS: u8 = 0x26;
pub(super) const TURNAROUNDS: u8 = 0x2a;
pub(super) const STUDIES: u8 = 0x30;
pub(super) const COUNTED: u8 = 0x36;
pub(super) const STUDY_KEYS: u8 = 0x39;
pub(super) const STUDY_KEYS_OF: u8 = 0x3a;
pub(super) const AUDIT: u8 = 0x50;
/// Those of which every exam that was lived to its end has one row.
pub(super) const ONE_EACH: [u8; 9] =
    [EXAMS, ENDED, REPORTS, ACCESSIONS, TURNAROUNDS, STUDIES, COUNTED, STUDY_KEYS, STUDY_KEYS_OF];
/// Versions of the records in format 2.
pub(super) const VERSION: u8 = 2;
pub(super) const STUDY_VERSION: u8 = 1;

/// Which of a life's commands keeps the key, and which brings the report, from 0.
const KEY_KEPT: u64 = 1;
const REPORTED: u64 = 6;

/// What one whole life left.
pub(super) struct Life {
    exam: Exam,
    workitems: Vec<Workitem>,
    report: Report,
    turnaround: Turnaround,
    study: Study,
    key: StudyKey,
    pub(super) trail: Vec<Link>,
}

impl Life {
    pub(super) fn read(view: &View<'_>, id: ExamId) -> anyhow::Result<Self> {
        let exam = view.exam(id)?.context("no exam")?;
        let workitems = view.workitems(id)?;
        let [report] = <[_; 1]>::try_from(view.reports(id)?).ok().context("not one report")?;
        let (mut turnaround, at) = (None, report.at);
        view.turnarounds(at, UnixMillisField(at.0 + 1), &mut |found| turnaround = Some(found))?;
        let uid = exam.studies.first().context("no study")?;
        let study = view.study(uid.as_str())?.context("no such study")?;
        let origin = study.parts.first().context("no part")?.origin;
        let [key] = <[_; 1]>::try_from(view.study_keys_of(uid.as_str(), origin)?).ok().context("not one key")?;
        let trail = view.audit(id.0 - 1, usize::try_from(COMMANDS)?)?;
        let turnaround = turnaround.context("no turnaround")?;
        Ok(Self { exam, workitems, report, turnaround, study, key, trail })
    }

    /// The key and value of the row in a table of [`ONE_EACH`] that the exam `n`, whose number is `id`, has by such
    /// a life. Records are changed in place: what is far from one exam is near the next.
    pub(super) fn row(&mut self, table: u8, n: u64, id: ExamId, row: &mut (Vec<u8>, Vec<u8>)) -> anyhow::Result<()> {
        let (key, value) = row;
        key.clear();
        key.push(table);
        value.clear();
        let (number, first) = (id.0.to_be_bytes(), 1_u32.to_be_bytes());
        match table {
            EXAMS => {
                self.move_exam(n, id);
                key.extend(number);
                encode(VERSION, &self.exam, value)
            }
            ENDED => {
                let mut ended_at = self.exam.ended_at.context("not ended")?;
                Shift::between(self.exam.id.0, id.0).time(&mut ended_at);
                key.extend((u64::MAX - ended_at.0).to_be_bytes().into_iter().chain(number));
                Ok(())
            }
            REPORTS => {
                self.move_report(n, id);
                key.extend(number.into_iter().chain(first));
                encode(VERSION, &self.report, value)
            }
            ACCESSIONS => {
                key.extend(blake3::hash(identity::accession(n).as_str().as_bytes()).as_bytes());
                key.extend(number);
                Ok(())
            }
            TURNAROUNDS => {
                self.move_turnaround(id);
                key.extend(self.turnaround.reported_at.0.to_be_bytes().into_iter().chain(number));
                encode(VERSION, &self.turnaround, value)
            }
            STUDIES => {
                self.move_study(n, id);
                key.extend(self.study.uid.as_str().as_bytes());
                encode(STUDY_VERSION, &self.study, value)
            }
            COUNTED => {
                key.extend(identity::study_uid(n).as_str().as_bytes());
                value.push(0);
                Ok(())
            }
            STUDY_KEYS => {
                self.move_key(n, id);
                key.extend(self.key.id.0);
                encode(VERSION, &self.key, value)
            }
            _ => {
                key.extend(blake3::hash(identity::study_uid(n).as_str().as_bytes()).as_bytes());
                key.extend(self.key.origin.0.to_be_bytes().into_iter().chain(identity::key_id(n).0));
                Ok(())
            }
        }
    }

    fn move_exam(&mut self, n: u64, id: ExamId) {
        let (shift, exam) = (Shift::between(self.exam.id.0, id.0), &mut self.exam);
        exam.id = id;
        identity::identify(&mut exam.request, n);
        let course = &mut exam.course;
        let times = [&mut exam.ready_at, &mut exam.due_at, &mut exam.ended_at];
        let more = [&mut course.images_at, &mut course.opened_at, &mut course.delivered_at];
        times.into_iter().chain(more).flatten().for_each(|at| shift.time(at));
        shift.time(&mut exam.added_at);
        exam.studies.iter_mut().for_each(|study| *study = identity::study_uid(n));
    }

    /// The rows of its workitems, each given to `put`.
    pub(super) fn workitems(
        &mut self,
        id: ExamId,
        mut put: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for workitem in &mut self.workitems {
            let shift = Shift::between(workitem.exam.0, id.0);
            workitem.exam = id;
            if let Some(claim) = &mut workitem.performer {
                shift.time(&mut claim.since);
                shift.number(&mut claim.token.0);
                // A claim's token is the log index of its grant, and its transaction has the name of that command.
                claim.transaction_uid = identity::transaction_uid(claim.token.0);
            }
            shift.time(&mut workitem.at);
            shift.time(&mut workitem.step.made_at);
            key.clear();
            key.push(WORKITEMS);
            key.extend(id.0.to_be_bytes().into_iter().chain(workitem.number.to_be_bytes()));
            value.clear();
            encode(VERSION, workitem, &mut value)?;
            put(&key, &value)?;
        }
        Ok(())
    }

    fn move_report(&mut self, n: u64, id: ExamId) {
        let (shift, report) = (Shift::between(self.report.exam.0, id.0), &mut self.report);
        report.exam = id;
        shift.time(&mut report.at);
        shift.number(&mut report.token.0);
        report.signed.signature = identity::signature(n);
        report.signed.command = identity::command_id(id.0 + REPORTED);
    }

    fn move_turnaround(&mut self, id: ExamId) {
        let (shift, turnaround) = (Shift::between(self.turnaround.exam.0, id.0), &mut self.turnaround);
        turnaround.exam = id;
        for at in [&mut turnaround.ready_at, &mut turnaround.claimed_at, &mut turnaround.reported_at] {
            shift.time(at);
        }
    }

    fn move_study(&mut self, n: u64, id: ExamId) {
        let uid = identity::study_uid(n);
        for held in &mut self.study.parts {
            let shift = Shift::between(held.exam.0, id.0);
            held.exam = id;
            held.part.study.clone_from(&uid);
            held.part.manifest = identity::manifest(n);
            shift.time(&mut held.part.first_received_at);
            shift.time(&mut held.part.last_received_at);
            identity::identify(&mut held.part.says, n);
        }
        self.study.uid = uid;
    }

    fn move_key(&mut self, n: u64, id: ExamId) {
        let (shift, key) = (Shift::between(self.key.index, id.0 + KEY_KEPT), &mut self.key);
        key.id = identity::key_id(n);
        key.study = identity::study_uid(n);
        shift.time(&mut key.kept_at);
        shift.number(&mut key.index);
        key.what = KeptKey::Kept(identity::secret(n));
    }

    pub(super) fn move_trail(&mut self, n: u64, id: ExamId) {
        let first = self.trail.first().map_or(0, |link| link.entry.index);
        let shift = Shift::between(first, id.0);
        for (command, Link { entry, .. }) in (0..).zip(&mut self.trail) {
            if command == KEY_KEPT {
                entry.why = Line::fitted(&format!("key {}", identity::key_id(n)));
            }
            shift.number(&mut entry.index);
            shift.time(&mut entry.at);
            entry.id = identity::command_id(entry.index);
            entry.exam = entry.exam.map(|_| id);
            entry.command = random(What::Command, entry.index);
            entry.writes = random(What::Writes, entry.index);
        }
    }
}

/// How far one life is from another: in log indexes, and in the time that these took.
#[derive(Clone, Copy)]
struct Shift(u64);

impl Shift {
    fn between(from: u64, to: u64) -> Self {
        Self(to.wrapping_sub(from))
    }

    fn number(self, number: &mut u64) {
        *number = number.wrapping_add(self.0);
    }

    fn time(self, at: &mut UnixMillisField) {
        at.0 = at.0.wrapping_add(self.0.wrapping_mul(STEP_MS));
    }
}

/// A record as the state keeps it.
pub(super) fn encode<T: Serialize>(version: u8, record: &T, into: &mut Vec<u8>) -> anyhow::Result<()> {
    into.push(version);
    *into = postcard::to_extend(record, std::mem::take(into))?;
    Ok(())
}
