//! Exams that were not lived: the rows that lived ones left, with other identifiers, numbers and times.
//!
//! A cohort is lived twice. The rows of the first, moved to where the second lived, must be the second's own, byte
//! for byte, in every table that grows with exams; only what the trail keeps of commands' and writes' digests, and
//! with them its chain, is not known without running the commands. Copies have random digests there, and a chain
//! that is right for them. What retention bounds (outcomes, events) is not copied: those who live afterwards fill it.

use anyhow::{Context as _, ensure};
use maillage_consensus::View;
use maillage_consensus::audit::{Link, chain};
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Exam, Report, Workitem};
use maillage_consensus::ids::{Address, ExamId, Line};
use maillage_consensus::mesh::{Counts, Study};
use maillage_consensus::statistics::Turnaround;
use maillage_consensus::study_key::{KeptKey, StudyKey};
use maillage_host::Engine;
use maillage_host::engine::{Pair, Reader, Take};
use serde::Serialize;

use super::identity::{self, COHORT, What, random};
use super::lives::{COMMANDS, Lives, STEP_MS};

/// Tags of the tables that grow with exams, in ascending order: `consensus/src/keys.rs`. The rows that are compared
/// say whether they are right.
const EXAMS: u8 = 0x20;
const ENDED: u8 = 0x23;
const WORKITEMS: u8 = 0x24;
const REPORTS: u8 = 0x25;
const ACCESSIONS: u8 = 0x26;
const TURNAROUNDS: u8 = 0x2a;
const STUDIES: u8 = 0x30;
const COUNTED: u8 = 0x36;
const STUDY_KEYS: u8 = 0x39;
const STUDY_KEYS_OF: u8 = 0x3a;
pub(super) const AUDIT: u8 = 0x50;
/// Those of which every exam that was lived to its end has one row.
pub(super) const ONE_EACH: [u8; 9] =
    [EXAMS, ENDED, REPORTS, ACCESSIONS, TURNAROUNDS, STUDIES, COUNTED, STUDY_KEYS, STUDY_KEYS_OF];
const COUNTS_KEY: [u8; 1] = [0x03];
const CLOCK_KEY: [u8; 1] = [0x02];
const CHAIN_KEY: [u8; 1] = [0x51];
/// Versions of the records in format 2.
const VERSION: u8 = 2;
const STUDY_VERSION: u8 = 1;

/// Which of a life's commands keeps the key, and which brings the report, from 0.
const KEY_KEPT: u64 = 1;
const REPORTED: u64 = 6;

/// Of how many exams of the second cohort all rows are compared.
const COMPARED: usize = 300;

/// What one whole life left.
struct Life {
    exam: Exam,
    workitems: Vec<Workitem>,
    report: Report,
    turnaround: Turnaround,
    study: Study,
    key: StudyKey,
    trail: Vec<Link>,
}

impl Life {
    fn read(view: &View<'_>, id: ExamId) -> anyhow::Result<Self> {
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
    fn row(&mut self, table: u8, n: u64, id: ExamId, row: &mut (Vec<u8>, Vec<u8>)) -> anyhow::Result<()> {
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
    fn workitems(&mut self, id: ExamId, mut put: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
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

    fn move_trail(&mut self, n: u64, id: ExamId) {
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

fn encode<T: Serialize>(version: u8, record: &T, into: &mut Vec<u8>) -> anyhow::Result<()> {
    into.push(version);
    *into = postcard::to_extend(record, std::mem::take(into))?;
    Ok(())
}

/// Exams to be copied from a lived cohort.
pub(super) struct Copies {
    cohort: Vec<Life>,
    /// The number of the first copy, and of the first that is none.
    first: u64,
    end: u64,
    /// The log index of the first copy's first command.
    index: u64,
    /// The trail's chain before it.
    chain: Address,
    /// Everything that was lived before.
    lived: Vec<Pair>,
    /// Bytes of keys and values that the copies and the lived have together.
    pub(super) bytes: u64,
}

impl Copies {
    /// Lives two cohorts, and compares the second with what the first becomes in its place.
    pub(super) fn prepare(lives: &mut Lives, exams: u64) -> anyhow::Result<Self> {
        let began = lives.next_index();
        for _ in 0..2 * COHORT {
            lives.live_one()?;
        }
        lives.flush()?;
        let engine = std::sync::Arc::clone(&lives.engine);
        let view = View::new(&*engine);
        let id = |n: u64| ExamId(began + (n - 1) * COMMANDS);
        let mut cohort = Vec::new();
        for n in 1..=COHORT {
            cohort.push(Life::read(&view, id(n)).with_context(|| format!("the life of exam {n}"))?);
        }
        let (first, index) = (lives.exams() + 1, lives.next_index());
        let (chain, end) = (view.audit_chain()?, first + exams);
        let mut copies = Self { cohort, first, end, index, chain, lived: Vec::new(), bytes: 0 };
        for n in (COHORT + 1..=2 * COHORT).step_by(usize::try_from(COHORT)? / COMPARED) {
            copies.compare(&*engine, n, id(n)).with_context(|| format!("exam {n} as a copy"))?;
        }
        engine.scan(std::ops::Bound::Unbounded, std::ops::Bound::Unbounded, &mut |key, value| {
            copies.lived.push((key.to_vec(), value.to_vec()));
            true
        })?;
        Ok(copies)
    }

    /// The copies' numbers, which are exams lived nowhere.
    pub(super) fn numbers(&self) -> std::ops::Range<u64> {
        self.first..self.end
    }

    /// The exam that a copy is.
    pub(super) fn id(&self, n: u64) -> ExamId {
        ExamId(self.index + (n - self.first) * COMMANDS)
    }

    /// The life that the exam `n` has, of whatever exam it now is.
    fn life(&mut self, n: u64) -> anyhow::Result<&mut Life> {
        self.cohort.get_mut(usize::try_from((n - 1) % COHORT)?).context("no such life")
    }

    /// Compares all rows of a lived exam with those that another of its cohort's place would have in its stead.
    fn compare(&mut self, engine: &dyn Reader, n: u64, id: ExamId) -> anyhow::Result<()> {
        let (life, mut row) = (self.life(n)?, (Vec::new(), Vec::new()));
        for table in ONE_EACH {
            life.row(table, n, id, &mut row)?;
            ensure!(engine.get(&row.0)?.as_ref() == Some(&row.1), "the row of table {table:#04x} is another");
        }
        life.workitems(id, |key, value| {
            ensure!(engine.get(key)?.as_deref() == Some(value), "the row of a workitem is another");
            Ok(())
        })?;
        life.move_trail(n, id);
        let lived = View::new(engine).audit(id.0 - 1, usize::try_from(COMMANDS)?)?;
        for (copy, lived) in life.trail.iter().zip(&lived) {
            let mut copy = copy.clone();
            (copy.entry.command, copy.entry.writes) = (lived.entry.command, lived.entry.writes);
            ensure!(copy.entry == lived.entry, "the trail has {:?}, not {:?}", lived.entry, copy.entry);
        }
        Ok(())
    }

    /// Gives an empty engine what was lived and all copies, merged in the order of keys.
    pub(super) fn ingest(&mut self, engine: &dyn Engine) -> anyhow::Result<()> {
        let lived = std::mem::take(&mut self.lived);
        engine.ingest(&mut |take| {
            let mut merged = Merged { lived: lived.iter().peekable(), take, bytes: 0 };
            self.tables(&mut merged).map_err(std::io::Error::other)?;
            self.bytes = merged.finish()?;
            Ok(())
        })?;
        let counts = View::new(engine).counts()?;
        let exams = self.end - self.first;
        let (mut counts, mut encoded) = (Counts { studies: counts.studies + exams, ..counts }, Vec::new());
        counts.more.delivered += exams;
        encode(VERSION, &counts, &mut encoded)?;
        let last = self.index + exams * COMMANDS - 1;
        let at = View::new(engine).audit_entry(last)?.context("no last entry")?.entry.at;
        let mut batch = maillage_host::Batch::default();
        batch.put(COUNTS_KEY, encoded);
        batch.put(CLOCK_KEY, at.0.to_be_bytes());
        batch.put(CHAIN_KEY, self.chain);
        engine.commit(batch)?;
        Ok(engine.persist()?)
    }

    fn tables(&mut self, merged: &mut Merged<'_, '_>) -> anyhow::Result<()> {
        let (first, end) = (self.first, self.end);
        self.table(EXAMS, first..end, merged)?;
        self.table(ENDED, (first..end).rev(), merged)?;
        self.workitems(merged)?;
        self.table(REPORTS, first..end, merged)?;
        let sorted = by_hash(first..end, |n| identity::accession(n).as_str().to_owned());
        self.table(ACCESSIONS, sorted.into_iter().map(|(_, n)| n.into()), merged)?;
        self.table(TURNAROUNDS, first..end, merged)?;
        for table in [STUDIES, COUNTED, STUDY_KEYS] {
            self.table(table, identity::by_place(first, end), merged)?;
        }
        let sorted = by_hash(first..end, |n| identity::study_uid(n).as_str().to_owned());
        self.table(STUDY_KEYS_OF, sorted.into_iter().map(|(_, n)| n.into()), merged)?;
        self.trail(merged)
    }

    fn table(
        &mut self,
        table: u8,
        numbers: impl Iterator<Item = u64>,
        merged: &mut Merged<'_, '_>,
    ) -> anyhow::Result<()> {
        let mut row = (Vec::new(), Vec::new());
        eprintln!("scale: copying table {table:#04x}");
        for n in numbers {
            let id = self.id(n);
            self.life(n)?.row(table, n, id, &mut row)?;
            merged.put(&row.0, &row.1)?;
        }
        Ok(())
    }

    fn workitems(&mut self, merged: &mut Merged<'_, '_>) -> anyhow::Result<()> {
        for n in self.first..self.end {
            let id = self.id(n);
            self.life(n)?.workitems(id, |key, value| Ok(merged.put(key, value)?))?;
        }
        Ok(())
    }

    fn trail(&mut self, merged: &mut Merged<'_, '_>) -> anyhow::Result<()> {
        eprintln!("scale: copying the trail");
        let (mut key, mut value) = (Vec::new(), Vec::new());
        for n in self.first..self.end {
            let (mut before, id) = (self.chain, self.id(n));
            let life = self.life(n)?;
            life.move_trail(n, id);
            for link in &mut life.trail {
                link.chain = chain(&before, &link.entry);
                before = link.chain;
                key.clear();
                key.push(AUDIT);
                key.extend(link.entry.index.to_be_bytes());
                value.clear();
                encode(VERSION, link, &mut value)?;
                merged.put(&key, &value)?;
            }
            self.chain = before;
        }
        Ok(())
    }
}

/// The numbers in ascending order of the BLAKE3 hashes of what `text` says of each.
fn by_hash(numbers: std::ops::Range<u64>, text: impl Fn(u64) -> String) -> Vec<(u64, u32)> {
    let hash = |n| {
        let head = blake3::hash(text(n).as_bytes()).as_bytes().first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(head)
    };
    let mut sorted: Vec<(u64, u32)> = numbers.filter_map(|n| Some((hash(n), u32::try_from(n).ok()?))).collect();
    sorted.sort_unstable();
    sorted
}

/// Pairs that come in order, with those that were lived between them.
struct Merged<'a, 't> {
    lived: std::iter::Peekable<std::slice::Iter<'a, Pair>>,
    take: &'a mut Take<'t>,
    bytes: u64,
}

impl Merged<'_, '_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> std::io::Result<()> {
        while let Some((lived, value)) = self.lived.next_if(|(lived, _)| lived.as_slice() < key) {
            self.give(lived, value)?;
        }
        self.give(key, value)
    }

    fn give(&mut self, key: &[u8], value: &[u8]) -> std::io::Result<()> {
        self.bytes += (key.len() + value.len()) as u64;
        (self.take)(key, value)
    }

    /// The rest of what was lived; bytes of all.
    fn finish(mut self) -> std::io::Result<u64> {
        while let Some((key, value)) = self.lived.next() {
            self.give(key, value)?;
        }
        Ok(self.bytes)
    }
}
