//! Exams that were not lived: the rows that lived ones left, with other identifiers, numbers and times.
//!
//! A cohort is lived twice. The rows of the first, moved to where the second lived, must be the second's own, byte
//! for byte, in every table that grows with exams; only what the trail keeps of commands' and writes' digests, and
//! with them its chain, is not known without running the commands. Copies have random digests there, and a chain
//! that is right for them. What retention bounds (outcomes, events) is not copied: those who live afterwards fill it.

use anyhow::{Context as _, ensure};
use maillage_consensus::View;
use maillage_consensus::audit::chain;
use maillage_consensus::ids::{Address, ExamId};
use maillage_consensus::mesh::Counts;
use maillage_host::Engine;
use maillage_host::engine::{Pair, Reader, Take};

use super::identity::{self, COHORT};
use super::life::{
    ACCESSIONS, AUDIT, COUNTED, ENDED, EXAMS, Life, ONE_EACH, REPORTS, STUDIES, STUDY_KEYS, STUDY_KEYS_OF, TURNAROUNDS,
    VERSION, encode,
};
use super::lives::{COMMANDS, Lives};

/// Rows of which there is one.
const COUNTS_KEY: [u8; 1] = [0x03];
const CLOCK_KEY: [u8; 1] = [0x02];
const CHAIN_KEY: [u8; 1] = [0x51];

/// Of how many exams of the second cohort all rows are compared.
const COMPARED: usize = 300;

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
