//! Exams that live from their order to their delivery, as commands applied in batches.

use anyhow::{Context as _, bail};
use maillage_consensus::command::{Command, Envelope, FORMAT, SiteDescription, StudyPart, UnixMillisField};
use maillage_consensus::exam::{Patient, Priority, ReportKind, Request, Text8};
use maillage_consensus::ids::{CommandId, ExamId, FencingToken, Line, Name, PeerKey, Prose, SiteId, UidText};
use maillage_consensus::machine::Machine as _;
use maillage_consensus::order::{Consent, Order, Reader};
use maillage_consensus::transaction::Transaction;
use maillage_consensus::{Outcome, Queue};

use super::Shared;

/// Commands applied in one batch of the engine, as a busy replica does.
const BATCH: usize = 64;
/// Partner hospitals, readers and modalities, as the service has them.
const HOSPITALS: u64 = 100;
const READERS: u64 = 360;
const MODALITIES: [&str; 4] = ["CT", "CT", "MR", "CR"];
/// Between two commands, in milliseconds: 24 million exams of seven commands are some two and a half years
/// of a country.
const STEP_MS: u64 = 500;
const FIRST: SiteId = SiteId(1);

/// A state and the commands that make it.
pub(super) struct Lives {
    pub(super) engine: Shared,
    index: u64,
    now: u64,
    exams: u64,
    /// Whose turn it is. A reader who gives an exam back is given others for a while: each claim that is timed
    /// is another reader's.
    turn: u64,
    second: SiteId,
    pending: Vec<Command>,
    /// Where the pending commands come from.
    sites: Vec<SiteId>,
}

impl Lives {
    /// A mesh of two sites in session.
    pub(super) fn begin(engine: Shared) -> anyhow::Result<Self> {
        let (now, second) = (1_700_000_000_000, SiteId(1));
        let mut lives =
            Self { engine, index: 1, now, exams: 0, turn: 0, second, pending: Vec::new(), sites: Vec::new() };
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

    /// The state's time, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Commands applied so far.
    pub(super) fn commands(&self) -> u64 {
        self.index - 1
    }

    /// Makes what was applied durable.
    pub(super) fn checkpoint(&mut self) -> anyhow::Result<()> {
        self.flush()?;
        Ok(self.engine.persist()?)
    }

    /// One exam from its order to its delivery. Numbers are log indexes, so that each is known beforehand.
    pub(super) fn live_one(&mut self) -> anyhow::Result<()> {
        let exam = ExamId(self.next_index());
        let study = self.order()?;
        let token = FencingToken(self.next_index() + 1);
        self.later(self.second, Command::RecordHolding { study, manifest: address(self.exams), holds: true })?;
        let transaction_uid = UidText::default();
        self.later(FIRST, Command::Take { exam, transaction_uid })?;
        self.later(FIRST, Command::Open { exam, token })?;
        let text = Prose::fitted(
            "No acute intracranial abnormality. No fracture. Age-related atrophy. Comparison: none available.",
        );
        let signature = serde_bytes::ByteBuf::from([5; 64]);
        self.later(FIRST, Command::Report { exam, token, kind: ReportKind::Final, text, signature })?;
        self.later(FIRST, Command::Deliver { exam, report: 1, to: Line::fitted("requesting physician, by HL7") })
    }

    /// One exam that waits.
    pub(super) fn order_one(&mut self) -> anyhow::Result<()> {
        self.order().map(drop)
    }

    /// A reader claims the next exam and gives it back.
    pub(super) fn claim_and_release(&mut self) -> anyhow::Result<()> {
        self.flush()?;
        self.turn += 1;
        let grant = match self.one(FIRST, Command::Next(Reader::default()))? {
            Outcome::Claimed(grant) => grant,
            other => bail!("no claim: {other:?}"),
        };
        let (exam, token, reason) = (grant.exam, grant.claim.token, Line::fitted("measured"));
        match self.one(FIRST, Command::Release { exam, token, reason })? {
            Outcome::Done => Ok(()),
            other => bail!("not given back: {other:?}"),
        }
    }

    fn next_index(&self) -> u64 {
        self.index + self.pending.len() as u64 + 1
    }

    /// An order and its images; the study's UID.
    fn order(&mut self) -> anyhow::Result<UidText> {
        self.exams += 1;
        self.turn += 1;
        let n = self.exams;
        let lot = usize::try_from(n)?;
        let request = Request {
            accession: Line::fitted(&format!("A{n:010}")),
            patient: Patient {
                id: Line::fitted(&format!("{:015}", n * 7)),
                issuer: Line::fitted("1.2.250.1.213.1.4.8"),
                name: Line::fitted(&format!("PATIENT{n}^GIVEN")),
                birth_date: Text8::fitted("19700101"),
                sex: Text8::fitted("F"),
            },
            modality: Text8::fitted(MODALITIES[lot % MODALITIES.len()]),
            description: Line::fitted("Head without contrast"),
            hospital: Line::fitted(&format!("Hospital {}", n % HOSPITALS)),
            physician: Line::fitted("Dr Requester"),
            priority: Priority::ALL[lot % Priority::ALL.len()],
            awaits_images: true,
        };
        let study = UidText::fitted(&format!("2.25.{}", u128::from(n) << 64));
        let at = UnixMillisField(self.now);
        let part = StudyPart {
            study: study.clone(),
            manifest: address(n),
            sequence: 1,
            instances: 400,
            bytes: 210_000_000,
            first_received_at: at,
            last_received_at: at,
            says: request.clone(),
        };
        let order = Order { consent: Consent::Declared, question: Line::fitted("Bleeding?"), ..Order::default() };
        self.later(FIRST, Command::Order { request, order })?;
        self.later(FIRST, Command::RecordStudy(part))?;
        Ok(study)
    }

    fn later(&mut self, site: SiteId, command: Command) -> anyhow::Result<()> {
        self.pending.push(command);
        self.sites.push(site);
        if self.pending.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Applies the pending commands in one batch; each must be done.
    fn flush(&mut self) -> anyhow::Result<()> {
        let (commands, sites) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.sites));
        self.apply(sites.into_iter().zip(commands)).map(drop)
    }

    fn one(&mut self, site: SiteId, command: Command) -> anyhow::Result<Outcome> {
        self.apply([(site, command)].into_iter())?.context("no outcome")
    }

    fn apply(&mut self, commands: impl Iterator<Item = (SiteId, Command)>) -> anyhow::Result<Option<Outcome>> {
        let mut transaction = Transaction::new(&*self.engine);
        let mut last = None;
        for (site, command) in commands {
            self.index += 1;
            self.now += STEP_MS;
            let id = CommandId(uuid::Uuid::from_u128((u128::from(self.index) << 64) | 1));
            let user = Name::fitted(&format!("dr-{}", self.turn % READERS));
            let envelope = Envelope { id, at: UnixMillisField(self.now), site, user, command };
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

fn site(name: &str, key: u8) -> anyhow::Result<SiteDescription> {
    let key = PeerKey::new(vec![key; 38])?;
    Ok(SiteDescription { key, name: Name::fitted(name), zone: Name::fitted(name), addresses: Vec::new(), weight: 1 })
}

fn address(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}
