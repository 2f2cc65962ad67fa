//! Exams that live from their order to their delivery, as commands applied in batches.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use maillage_consensus::command::{Command, Envelope, FORMAT, SiteDescription, StudyPart, UnixMillisField};
use maillage_consensus::exam::ReportKind;
use maillage_consensus::ids::{ExamId, FencingToken, Line, Name, PeerKey, Prose, SiteId, UidText};
use maillage_consensus::machine::Machine as _;
use maillage_consensus::order::{Consent, Order, Reader};
use maillage_consensus::transaction::Transaction;
use maillage_consensus::{Outcome, Queue};
use maillage_host::Engine;

use super::identity;

/// Commands applied in one batch of the engine, as a busy replica does.
const BATCH: usize = 64;
/// Commands of a whole life.
pub(super) const COMMANDS: u64 = 8;
/// Between two commands, in milliseconds: 3,600 exams a day, so that 24 million take eighteen years.
pub(super) const STEP_MS: u64 = 3_000;
const BEGAN_MS: u64 = 1_700_000_000_000;
const FIRST: SiteId = SiteId(1);

/// A state and the commands that make it.
pub(super) struct Lives {
    pub(super) engine: Arc<dyn Engine>,
    /// The last log index.
    index: u64,
    /// Exams ordered.
    exams: u64,
    /// A reader who gives an exam back is given others for a while: each claim that is timed is another reader's.
    turn: u64,
    /// Exams read to the end by those readers.
    read: u64,
    second: SiteId,
    pending: Vec<(SiteId, Name, Command)>,
}

/// The state's time once the command at a log index is applied.
fn at(index: u64) -> UnixMillisField {
    UnixMillisField(BEGAN_MS + index * STEP_MS)
}

impl Lives {
    /// A mesh of two sites in session.
    pub(super) fn begin(engine: Arc<dyn Engine>) -> anyhow::Result<Self> {
        let mut lives = Self { engine, index: 1, exams: 0, turn: 0, read: 0, second: FIRST, pending: Vec::new() };
        let (mesh, name, founder) = ([7; 32], Name::fitted("scale"), site("paris", 1)?);
        lives.one(FIRST, Command::Establish { mesh, name, copies: 2, founder, format: FORMAT })?;
        lives.one(FIRST, Command::OpenSession)?;
        let key = PeerKey::new(vec![9; 38])?;
        lives.one(FIRST, Command::CreateToken { key: key.clone(), lifetime_ms: 3_600_000 })?;
        match lives.one(FIRST, Command::Join { token: key, joiner: site("lyon", 2)? })? {
            Outcome::Joined { site } => lives.second = site,
            other => bail!("the second site did not join: {other:?}"),
        }
        lives.one(lives.second, Command::OpenSession)?;
        Ok(lives)
    }

    /// The state's time.
    pub(super) fn now(&self) -> UnixMillisField {
        at(self.index)
    }

    /// The log index of the next command.
    pub(super) fn next_index(&self) -> u64 {
        self.index + self.pending.len() as u64 + 1
    }

    /// Exams that were read to the end between claims.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// Exams ordered so far, numbered from 1.
    pub(super) fn exams(&self) -> u64 {
        self.exams
    }

    /// Goes on in another engine, which has `exams` more whole lives behind these.
    pub(super) fn go_on(&mut self, engine: Arc<dyn Engine>, exams: u64) {
        self.engine = engine;
        self.index += exams * COMMANDS;
        self.exams += exams;
    }

    /// Makes what was applied durable.
    pub(super) fn checkpoint(&mut self) -> anyhow::Result<()> {
        self.flush()?;
        Ok(self.engine.persist()?)
    }

    /// One exam from its order to its delivery. Numbers are log indexes, so that each is known beforehand.
    pub(super) fn live_one(&mut self) -> anyhow::Result<()> {
        let exam = ExamId(self.next_index());
        let (n, study) = self.order()?;
        let by = identity::reader(n);
        let token = FencingToken(self.next_index() + 1);
        let manifest = identity::manifest(n);
        self.later(self.second, &by, Command::RecordHolding { study, manifest, holds: true })?;
        let transaction_uid = UidText::default();
        self.later(FIRST, &by, Command::Take { exam, transaction_uid })?;
        self.later(FIRST, &by, Command::Open { exam, token })?;
        self.later(FIRST, &by, report(exam, token, n))?;
        self.later(FIRST, &by, deliver(exam))
    }

    /// One exam that waits.
    pub(super) fn order_one(&mut self) -> anyhow::Result<()> {
        self.order().map(drop)
    }

    fn claim_next(&mut self) -> anyhow::Result<(ExamId, FencingToken)> {
        self.flush()?;
        self.turn += 1;
        match self.one(FIRST, Command::Next(Reader::default()))? {
            Outcome::Claimed(grant) => Ok((grant.exam, grant.claim.token)),
            other => bail!("no claim: {other:?}"),
        }
    }

    /// A reader takes the next exam and reads it to the end, and another comes in its place: however many claims
    /// are timed, each exam has no more of them than a night may bring.
    pub(super) fn read_next(&mut self) -> anyhow::Result<()> {
        let (exam, token) = self.claim_next()?;
        self.one(FIRST, Command::Open { exam, token })?;
        self.one(FIRST, report(exam, token, self.turn))?;
        self.one(FIRST, deliver(exam))?;
        self.read += 1;
        self.order_one()?;
        self.flush()
    }

    /// A reader claims the next exam and gives it back.
    pub(super) fn claim_and_release(&mut self) -> anyhow::Result<()> {
        let (exam, token) = self.claim_next()?;
        let reason = Line::fitted("measured");
        match self.one(FIRST, Command::Release { exam, token, reason })? {
            Outcome::Done => Ok(()),
            other => bail!("not given back: {other:?}"),
        }
    }

    /// An order, the key of its images and their publication; the exam's number and the study's UID.
    fn order(&mut self) -> anyhow::Result<(u64, UidText)> {
        self.exams += 1;
        let n = self.exams;
        let (by, study, request) = (identity::reader(n), identity::study_uid(n), identity::request(n)?);
        let received_at = at(self.next_index());
        let part = StudyPart {
            study: study.clone(),
            manifest: identity::manifest(n),
            sequence: 1,
            instances: 400,
            bytes: 210_000_000,
            first_received_at: received_at,
            last_received_at: received_at,
            says: request.clone(),
        };
        let order = Order { consent: Consent::Declared, question: Line::fitted("Bleeding?"), ..Order::default() };
        self.later(FIRST, &by, Command::Order { request, order })?;
        let (id, secret) = (identity::key_id(n), identity::secret(n));
        self.later(FIRST, &by, Command::KeepKey { study: study.clone(), id, sequence: 1, secret })?;
        self.later(FIRST, &by, Command::RecordStudy(part))?;
        Ok((n, study))
    }

    fn later(&mut self, site: SiteId, by: &Name, command: Command) -> anyhow::Result<()> {
        self.pending.push((site, by.clone(), command));
        if self.pending.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Applies the pending commands in one batch; each must be done.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        let commands = std::mem::take(&mut self.pending);
        self.apply(commands).map(drop)
    }

    fn one(&mut self, site: SiteId, command: Command) -> anyhow::Result<Outcome> {
        let by = identity::reader(self.turn);
        self.apply(vec![(site, by, command)])?.context("no outcome")
    }

    fn apply(&mut self, commands: Vec<(SiteId, Name, Command)>) -> anyhow::Result<Option<Outcome>> {
        let mut transaction = Transaction::new(&*self.engine);
        let mut last = None;
        for (site, user, command) in commands {
            self.index += 1;
            let (id, at) = (identity::command_id(self.index), at(self.index));
            let envelope = Envelope { id, at, site, user, command };
            let outcome = Queue.apply(&mut transaction, self.index, &envelope.encode())?;
            let outcome = Outcome::decode(&outcome)?;
            if let Outcome::Refused(refusal) = &outcome {
                bail!("{} was refused: {refusal}", envelope.command.kind());
            }
            last = Some(outcome);
        }
        self.engine.commit(transaction.into_batch())?;
        Ok(last)
    }
}

fn report(exam: ExamId, token: FencingToken, n: u64) -> Command {
    let text = Prose::fitted(
        "No acute intracranial abnormality. No fracture. Age-related atrophy. Comparison: none available.",
    );
    Command::Report { exam, token, kind: ReportKind::Final, text, signature: identity::signature(n) }
}

fn deliver(exam: ExamId) -> Command {
    Command::Deliver { exam, report: 1, to: Line::fitted("requesting physician, by HL7") }
}

fn site(name: &str, key: u8) -> anyhow::Result<SiteDescription> {
    let key = PeerKey::new(vec![key; 38])?;
    Ok(SiteDescription { key, name: Name::fitted(name), zone: Name::fitted(name), addresses: Vec::new(), weight: 1 })
}
