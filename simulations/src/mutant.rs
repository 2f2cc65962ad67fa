//! Deliberate faults at the seams: each breaks one promise, and an invariant must see it.
//!
//! Nothing of the production code is changed: a mutant is a disk that lies, a wire that forges, a
//! machine wrapped around the real one, a duty not done.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use clap::ValueEnum;
use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::exam::{Patient, Priority, WorkitemState};
use maillage_consensus::ids::{Address, CommandId, ExamId, FencingToken, Line, Name, SiteId, UidText};
use maillage_consensus::machine::{ApplyError, Machine, Proposer, StampError};
use maillage_consensus::mesh::HeldPart;
use maillage_consensus::order::Consent;
use maillage_consensus::placement::{Change, Holders};
use maillage_consensus::transaction::Transaction;
use maillage_consensus::{Outcome, Queue, Refusal, View};
use maillage_host::UnixMillis;
use maillage_host::engine::Reader;

use crate::cluster::FOUNDER;
use crate::invariants::audit;
use crate::invariants::giving::Overlay;
use crate::plan::{Fault, Faults};
use crate::workload::{hospital, purging};
use crate::world::lock;

/// One way of breaking the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mutant {
    /// The log is acknowledged before it is durable.
    LogFsyncLies,
    /// A vote is answered before it is durable.
    VoteFsyncLies,
    /// An instance is acknowledged before it is durable.
    PackFsyncLies,
    /// What lands is acknowledged before it is durable.
    LandingFsyncLies,
    /// New names are never made durable.
    DirectorySyncDropped,
    /// A follower's refusal of entries that don't fit its log becomes an acknowledgement.
    RefusalsForged,
    /// Any claim's holder is believed, whatever its fencing token.
    FencingRemoved,
    /// A repeated command runs again.
    RepeatsRun,
    /// Replicas apply a command differently.
    ApplyDiffers,
    /// Linearizable reads are answered from local state.
    ReadsStale,
    /// A dead site's session never ends.
    SessionsNeverEnd,
    /// What a peer sends is taken for the chunk that was asked for.
    WrongBytesBelieved,
    /// A site is noted as a holder of studies that it does not have.
    HoldingsInvented,
    /// Images go to another patient's exam.
    OtherPatient,
    /// The state's clock waits for a leader's wall clock that is behind.
    ClockStandsStill,
    /// A claim is answered, then its exam is claimed again for somebody else.
    DoubleGrant,
    /// Now and then a claim is answered with a token that was granted before.
    TokensFall,
    /// A node of the old version says that it understands the new format.
    FormatOverstated,
    /// A take-over leaves the workitem of whoever had the exam in progress.
    TakeOverKeepsClaim,
    /// A report is taken whatever its fencing token.
    ReportUnfenced,
    /// A text under a lost claim is thrown away though it was said to be kept.
    DraftsThrownAway,
    /// An algorithm's result lowers the urgency.
    FindingLowers,
    /// A patient's refusal of the transfer is forgotten.
    ConsentForgotten,
    /// Now and then an event is left out.
    EventLost,
    /// What is refused is not in the audit trail.
    AuditSkipsRefused,
    /// A delivery is forgotten.
    DeliveryForgotten,
    /// What the outbox keeps is forgotten when its node starts.
    OutboxForgotten,
    /// What was read by break glass is told to the mesh twice, under another command id the second time.
    OutboxSendsTwice,
    /// A second read takes the place of the reports before it.
    GlassOverwrites,
    /// Any Transaction UID is taken for that of a workitem's performer.
    TransactionUnchecked,
    /// One site's disk keeps what a purge overwrites.
    PurgeForgotten,
    /// A gateway's disk keeps what has left the spool.
    SpoolForgotten,
    /// A hospital's images are kept for half of the time that it says.
    RetentionEarly,
    /// What nobody asks to be purged stays, though its time is over.
    RetentionNever,
    /// A purge that somebody asks for goes through a legal hold.
    PurgeIgnoresHold,
    /// A legal hold on images whose time ends by itself is acknowledged, and not kept.
    RetentionIgnoresHold,
    /// The mesh counts a copy as made as soon as a study is published, so that one copy is enough for a commitment.
    CommitsOneCopy,
    /// The mesh takes every other site for a holder of what a drained one has.
    GivesUpEarly,
    /// A site wipes its copies when another one is drained, without asking the mesh.
    GivesUpUnasked,
    /// Whatever a contract says, all sites may hold what its site receives.
    ContractIgnored,
    /// What is prefetched has far more room than its site gives it.
    PrefetchUnbounded,
    /// Centres tell a gateway that all is safe which they have.
    SafetyInvented,
    /// Centres tell a gateway a time long past for the mesh's: all that it has counts as left over from any purge.
    MeshTimePast,
    /// A gateway calls reports delivered before they are durable.
    InboxFsyncLies,
    /// Whoever reaches a node's port is served as its machine's administrator is, whatever name and page it comes from.
    GuardOpen,
    /// A gateway's token says another hospital, too.
    GatewayOverreaches,
    /// No file is ever closed.
    FilesStayOpen,
    /// Each write leaves tasks that never end.
    TasksPileUp,
}

impl Mutant {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What it must break, and within how many seeds that is seen (measured, with a margin).
    pub fn expected(self) -> (&'static [&'static str], u64) {
        match self {
            Self::LogFsyncLies => (&["I12", "I1", "I2", "I3", "I4", "I7", "startup"], 5),
            Self::VoteFsyncLies => (&["I12", "I7", "I3", "startup"], 20),
            Self::PackFsyncLies => (&["I3", "I5"], 5),
            Self::LandingFsyncLies => (&["I3"], 10),
            Self::DirectorySyncDropped => (&["I3", "I5", "I12", "startup"], 5),
            Self::RefusalsForged => (&["I12", "I7", "I1", "I3", "I4", "I9", "panic"], 20),
            Self::FencingRemoved => (&["I1", "I2", "I3", "I4"], 10),
            Self::RepeatsRun => (&["I1", "I2", "I4", "outbox", "startup"], 10),
            Self::ApplyDiffers => (&["I7"], 2),
            Self::ReadsStale => (&["I1", "I4"], 20),
            Self::SessionsNeverEnd => (&["I9"], 5),
            Self::WrongBytesBelieved => (&["I3", "I5", "I9", "I8", "I6"], 20),
            Self::HoldingsInvented => (&["I5", "I9", "I3"], 5),
            Self::OtherPatient => (&["I8"], 5),
            Self::ClockStandsStill => (&["time", "I9", "startup"], 10),
            Self::DoubleGrant => (&["I1", "I2", "I7", "events"], 5),
            Self::TokensFall => (&["I2"], 5),
            Self::FormatOverstated => (&["format"], 5),
            Self::TakeOverKeepsClaim => (&["I1"], 5),
            Self::ReportUnfenced => (&["I1", "I2", "I3", "I4"], 10),
            Self::DraftsThrownAway => (&["I3"], 10),
            Self::FindingLowers => (&["care", "events"], 5),
            Self::ConsentForgotten => (&["consent"], 10),
            Self::EventLost => (&["events"], 3),
            Self::AuditSkipsRefused => (&["audit"], 2),
            Self::DeliveryForgotten => (&["I4"], 5),
            Self::OutboxForgotten => (&["I3"], 5),
            Self::OutboxSendsTwice => (&["outbox", "I1"], 5),
            Self::GlassOverwrites => (&["I3", "outbox"], 5),
            Self::TransactionUnchecked => (&["steps", "I1"], 5),
            Self::PurgeForgotten => (&["I6"], 5),
            // A start finds damage in the pack that is still there, or the search its bytes.
            Self::SpoolForgotten => (&["I6", "I3"], 5),
            Self::RetentionEarly => (&["I6"], 5),
            Self::RetentionNever => (&["I9"], 5),
            Self::PurgeIgnoresHold => (&["I6"], 5),
            Self::RetentionIgnoresHold => (&["I6"], 5),
            Self::CommitsOneCopy => (&["I5"], 5),
            Self::GivesUpEarly => (&["I5"], 5),
            Self::GivesUpUnasked => (&["I5"], 5),
            Self::ContractIgnored => (&["I5"], 10),
            Self::PrefetchUnbounded => (&["prefetch"], 10),
            Self::SafetyInvented => (&["I5"], 5),
            Self::MeshTimePast => (&["I5", "I3"], 10),
            Self::InboxFsyncLies => (&["I3", "startup"], 5),
            Self::GuardOpen => (&["I10"], 2),
            Self::GatewayOverreaches => (&["I10", "I8"], 5),
            Self::FilesStayOpen | Self::TasksPileUp => (&["I11"], 2),
        }
    }

    /// The faults under which it is looked for; a swarm unless only some can show it.
    pub fn faults(self) -> Faults {
        match self {
            Self::VoteFsyncLies => Faults::These(vec![Fault::CrashVoting, Fault::CrashLeader, Fault::IsolateLeader]),
            Self::ReadsStale => Faults::These(vec![Fault::IsolateLeader, Fault::OneWay]),
            Self::WrongBytesBelieved => Faults::These(vec![Fault::WrongBytes, Fault::Kill, Fault::Breaks]),
            Self::ClockStandsStill => Faults::These(vec![Fault::ClockJump, Fault::Replace, Fault::CrashLeader]),
            Self::OutboxForgotten | Self::OutboxSendsTwice | Self::GlassOverwrites => {
                Faults::These(vec![Fault::CutOff, Fault::Kill, Fault::IsolateLeader])
            }
            Self::SafetyInvented
            | Self::MeshTimePast
            | Self::InboxFsyncLies
            | Self::GatewayOverreaches
            | Self::SpoolForgotten => Faults::These(vec![Fault::Gateway, Fault::Kill, Fault::CutOff]),
            Self::LandingFsyncLies => Faults::These(vec![Fault::Crash, Fault::CrashMany, Fault::CrashWriting]),
            Self::FormatOverstated => Faults::These(vec![Fault::Upgrade, Fault::Kill]),
            Self::GivesUpEarly | Self::GivesUpUnasked | Self::ContractIgnored => {
                Faults::These(vec![Fault::Relayout, Fault::Kill])
            }
            // Whatever is left goes with the process.
            Self::FilesStayOpen | Self::TasksPileUp => Faults::These(vec![Fault::Pause]),
            _ => Faults::Swarm,
        }
    }

    /// A frame as it travels, changed if the mutant forges such frames. Tags as in the mesh's wire
    /// format, version 1: 130 refuses entries, 129 acknowledges them.
    pub(crate) fn forge(self, bytes: &[u8]) -> Option<Vec<u8>> {
        const LOG_ID: usize = 24;
        let tag = *bytes.get(4)?;
        match (self, tag) {
            (Self::RefusalsForged, 130) if bytes.len() == 4 + 1 + LOG_ID => {
                let mut forged = Vec::with_capacity(bytes.len() + 1);
                forged.extend_from_slice(&26_u32.to_le_bytes());
                forged.extend_from_slice(&[129, 1]);
                forged.extend_from_slice(bytes.get(5..)?);
                Some(forged)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// The real machine, with commands or outcomes changed on the way.
pub(crate) struct Mutated {
    mutant: Mutant,
    slot: u32,
    /// The newest token granted for each exam, and its transaction, as far as this life saw.
    grants: Mutex<BTreeMap<ExamId, (FencingToken, UidText)>>,
    /// The examinations asked for: accession numbers and patients.
    requests: Mutex<Vec<(Line, Patient)>>,
}

impl Mutated {
    /// Whether the mutant is one of the machine.
    pub(crate) fn is_of(mutant: Mutant) -> bool {
        matches!(
            mutant,
            Mutant::FencingRemoved
                | Mutant::RepeatsRun
                | Mutant::ApplyDiffers
                | Mutant::DoubleGrant
                | Mutant::HoldingsInvented
                | Mutant::OtherPatient
                | Mutant::ClockStandsStill
                | Mutant::TokensFall
                | Mutant::TakeOverKeepsClaim
                | Mutant::ReportUnfenced
                | Mutant::DraftsThrownAway
                | Mutant::FindingLowers
                | Mutant::ConsentForgotten
                | Mutant::EventLost
                | Mutant::AuditSkipsRefused
                | Mutant::DeliveryForgotten
                | Mutant::OutboxSendsTwice
                | Mutant::GlassOverwrites
                | Mutant::TransactionUnchecked
                | Mutant::RetentionEarly
                | Mutant::PurgeIgnoresHold
                | Mutant::RetentionIgnoresHold
                | Mutant::CommitsOneCopy
                | Mutant::GivesUpEarly
                | Mutant::ContractIgnored
                | Mutant::GatewayOverreaches
        )
    }

    pub(crate) fn new(mutant: Mutant, slot: u32) -> Self {
        Self { mutant, slot, grants: Mutex::default(), requests: Mutex::default() }
    }

    fn change(&self, index: u64, envelope: &mut Envelope) {
        match (self.mutant, &mut envelope.command) {
            (Mutant::RepeatsRun, _) => envelope.id = CommandId(uuid::Uuid::from_u128(u128::from(index))),
            (
                Mutant::FencingRemoved,
                Command::Release { exam, token, .. }
                | Command::Complete { exam, token, .. }
                | Command::Report { exam, token, .. },
            )
            | (Mutant::ReportUnfenced, Command::Report { exam, token, .. } | Command::Complete { exam, token, .. }) => {
                if let Some((newest, _)) = lock(&self.grants).get(exam) {
                    *token = *newest;
                }
            }
            (
                Mutant::TransactionUnchecked,
                Command::UpdateWorkitem { exam, transaction_uid, .. }
                | Command::ChangeWorkitem {
                    exam,
                    transaction_uid,
                    to: WorkitemState::Canceled | WorkitemState::Completed,
                    ..
                },
            ) => {
                if let Some((_, newest)) = lock(&self.grants).get(exam) {
                    *transaction_uid = newest.clone();
                }
            }
            (Mutant::ConsentForgotten, Command::Order { order, .. }) => order.consent = Consent::Declared,
            (Mutant::ContractIgnored, Command::StagePlacement(Change::Contract(contract))) => {
                contract.holders = Holders::Any;
            }
            (Mutant::GatewayOverreaches, Command::CreateGatewayToken { hospitals, .. }) => {
                hospitals.push(hospital::name(FOUNDER));
            }
            (Mutant::RetentionEarly, Command::SetHospital(hospital)) => {
                hospital.retention.iter_mut().for_each(|keep| keep.ms /= 2);
            }
            (Mutant::OtherPatient, Command::AddExam(request) | Command::Order { request, .. }) => {
                lock(&self.requests).push((request.accession.clone(), request.patient.clone()));
            }
            (Mutant::OtherPatient, Command::RecordStudy(part)) if index.is_multiple_of(4) => {
                let requests = lock(&self.requests);
                let other = requests.iter().rev().find(|(accession, _)| *accession != part.says.accession);
                if let Some((accession, patient)) = other {
                    (part.says.accession, part.says.patient) = (accession.clone(), patient.clone());
                }
            }
            _ => {}
        }
    }
}

/// The answer to a claim with the first token that there ever was.
fn with_an_old_token(outcome: &[u8]) -> Result<Option<Vec<u8>>, ApplyError> {
    let Outcome::Claimed(mut grant) = Outcome::decode(outcome)? else { return Ok(None) };
    grant.claim.token = FencingToken(1);
    Ok(Some(Outcome::Claimed(grant).encode()))
}

/// Tags of keys, as persisted.
const COUNTS: u8 = 0x03;
const EXAM: u8 = 0x20;
const WORKITEM: u8 = 0x24;
const REPORT: u8 = 0x25;
const CHAIN: u8 = 0x51;
const EVENT: u8 = 0x52;
/// Events of a command, at most.
const EVENTS: u16 = 16;
/// Workitems of an exam that are looked at.
const WORKITEMS: u32 = 16;

/// What a mutant puts back.
struct Before {
    workitems: Vec<(Vec<u8>, Vec<u8>)>,
    chain: Option<Vec<u8>>,
    exam: Option<Vec<u8>>,
    counts: Option<Vec<u8>>,
}

fn key_of(tag: u8, exam: ExamId, number: Option<u32>) -> Vec<u8> {
    let mut key = vec![tag];
    key.extend_from_slice(&exam.0.to_be_bytes());
    key.extend(number.iter().flat_map(|number| number.to_be_bytes()));
    key
}

impl Before {
    fn of(transaction: &Transaction<'_>, command: &Command) -> Result<Self, ApplyError> {
        let mut workitems = Vec::new();
        let exam = command.exam().unwrap_or(ExamId(0));
        for number in 1..=WORKITEMS {
            let key = key_of(WORKITEM, exam, Some(number));
            if let Some(value) = transaction.get(&key)? {
                workitems.push((key, value));
            }
        }
        let (chain, exam) = (transaction.get(&[CHAIN])?, transaction.get(&key_of(EXAM, exam, None))?);
        Ok(Self { workitems, chain, exam, counts: transaction.get(&[COUNTS])? })
    }
}

/// Puts an exam's record, and how many exams there are of which kind, back as they were.
fn put_back(transaction: &mut Transaction<'_>, exam: ExamId, record: Option<Vec<u8>>, counts: Option<Vec<u8>>) {
    let rest = [(key_of(EXAM, exam, None), record), (vec![COUNTS], counts)];
    for (key, value) in rest.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        transaction.put(key, value);
    }
}

/// Whether the images of an exam go by themselves within a run.
fn is_kept_for_a_time(transaction: &Transaction<'_>, exam: ExamId) -> bool {
    let state = Overlay(transaction);
    let exam = View::new(&state).exam(exam).ok().flatten();
    exam.is_some_and(|exam| purging::kept_ms(&exam.request.hospital).is_some())
}

fn event_keys(index: u64) -> Vec<Vec<u8>> {
    let key = |place: u16| [&[EVENT], index.to_be_bytes().as_slice(), &place.to_be_bytes()].concat();
    (0..EVENTS).map(key).collect()
}

/// Applies one more command at an index, unseen: the trail, and what else is `hidden`, is as before.
fn aside(
    transaction: &mut Transaction<'_>,
    index: u64,
    envelope: &Envelope,
    hidden: &[Vec<u8>],
) -> Result<(), ApplyError> {
    let trail = [audit::entry_key(index), vec![CHAIN]];
    let mut before = Vec::new();
    for key in trail.iter().chain(hidden) {
        before.push((key.clone(), transaction.get(key)?));
    }
    Queue.apply(transaction, index, &envelope.encode())?;
    for (key, value) in before {
        match value {
            Some(value) => transaction.put(key, value),
            None => transaction.remove(key),
        }
    }
    Ok(())
}

/// Copies that are not there: which site is to have which part of which study.
type Invented = (SiteId, UidText, Address);

/// Notes copies as made.
fn invent(transaction: &mut Transaction<'_>, index: u64, of: &Envelope, copies: &[Invented]) -> Result<(), ApplyError> {
    for (number, (site, study, manifest)) in (0_u128..).zip(copies) {
        let id = CommandId(uuid::Uuid::from_u128(number << 64 | u128::from(index)));
        let command = Command::RecordHolding { study: study.clone(), manifest: *manifest, holds: true };
        let holds = Envelope { id, at: of.at, site: *site, user: Name::default(), command };
        aside(transaction, index, &holds, &event_keys(index))?;
    }
    Ok(())
}

/// Every part that `site` holds, at every other site.
fn holders_but(transaction: &Transaction<'_>, site: SiteId) -> Result<Vec<Invented>, ApplyError> {
    let state = Overlay(transaction);
    let view = View::new(&state);
    let (sites, studies) = (view.sites()?, view.studies(None, usize::MAX)?);
    let parts = studies.iter().flat_map(|study| &study.parts).filter(|held| held.holders.contains(&site));
    let at = |held: &HeldPart, other: SiteId| (other, held.part.study.clone(), held.part.manifest);
    let others = |held| {
        sites
            .iter()
            .filter(|one| !one.is_gateway())
            .map(|one| one.id)
            .filter(|other| *other != site)
            .map(move |other| at(held, other))
    };
    Ok(parts.flat_map(others).collect())
}

impl Mutated {
    /// Undoes some of what a command has just done.
    fn spoil(
        &self,
        transaction: &mut Transaction<'_>,
        index: u64,
        envelope: &Envelope,
        outcome: &[u8],
        before: Before,
    ) -> Result<(), ApplyError> {
        let outcome = Outcome::decode(outcome)?;
        match (self.mutant, &envelope.command, &outcome) {
            (Mutant::TakeOverKeepsClaim, Command::TakeOver { .. }, Outcome::Claimed(_)) => {
                before.workitems.into_iter().for_each(|(key, value)| transaction.put(key, value));
            }
            (
                Mutant::DraftsThrownAway,
                command,
                Outcome::Refused(Refusal::StaleToken { kept_as: Some(number), .. }),
            ) => {
                let exam = command.exam().unwrap_or(ExamId(0));
                transaction.remove(key_of(REPORT, exam, Some(*number)));
            }
            (Mutant::DeliveryForgotten, Command::Deliver { exam, .. }, Outcome::Done) => {
                before.workitems.into_iter().for_each(|(key, value)| transaction.put(key, value));
                put_back(transaction, *exam, before.exam, before.counts);
                event_keys(index).into_iter().for_each(|key| transaction.remove(key));
            }
            (
                Mutant::GlassOverwrites,
                Command::BreakGlass { exam, .. },
                Outcome::GlassMended { second_read: true, report: Some(number), .. },
            ) => {
                if let Some(text) = transaction.get(&key_of(REPORT, *exam, Some(*number)))? {
                    (1..*number).for_each(|before| transaction.put(key_of(REPORT, *exam, Some(before)), text.clone()));
                }
            }
            (Mutant::OutboxSendsTwice, Command::BreakGlass { report: Some(_), .. }, Outcome::GlassMended { .. }) => {
                let again = CommandId(uuid::Uuid::from_u128(u128::from(index)));
                aside(transaction, index, &Envelope { id: again, ..envelope.clone() }, &event_keys(index))?;
            }
            (Mutant::RetentionIgnoresHold, Command::LegalHold { exam, .. }, Outcome::Done)
                if is_kept_for_a_time(transaction, *exam) =>
            {
                put_back(transaction, *exam, before.exam, before.counts);
            }
            (Mutant::EventLost, ..) if index.is_multiple_of(16) => {
                transaction.remove([&[EVENT], index.to_be_bytes().as_slice(), &[0, 0]].concat());
            }
            (Mutant::AuditSkipsRefused, _, Outcome::Refused(_)) => {
                transaction.remove(audit::entry_key(index));
                if let Some(chain) = before.chain {
                    transaction.put([CHAIN], chain);
                }
            }
            (Mutant::FindingLowers, Command::AddFinding { exam, finding }, Outcome::Remarked { .. }) => {
                let id = CommandId(uuid::Uuid::from_u128(u128::from(index)));
                let command = Command::Prioritise { exam: *exam, priority: Priority::Scheduled };
                let (site, user) = (envelope.site, finding.algorithm.clone());
                let lowers = Envelope { id, at: envelope.at, site, user, command };
                aside(transaction, index, &lowers, &[])?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Machine for Mutated {
    fn stamp(
        &self,
        state: &dyn Reader,
        command: &[u8],
        from: Proposer,
        now: UnixMillis,
    ) -> Result<Vec<u8>, StampError> {
        Queue.stamp(state, command, from, now)
    }

    fn time(&self, state: &dyn Reader) -> Result<Option<UnixMillis>, ApplyError> {
        if self.mutant == Mutant::ClockStandsStill { Ok(None) } else { Queue.time(state) }
    }

    fn apply(&self, transaction: &mut Transaction<'_>, index: u64, command: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let Ok(mut envelope) = Envelope::decode(command) else { return Queue.apply(transaction, index, command) };
        self.change(index, &mut envelope);
        if let (Mutant::PurgeIgnoresHold, Command::Purge { exam, reason, .. }) = (self.mutant, &envelope.command)
            && !reason.is_empty()
        {
            let id = CommandId(uuid::Uuid::from_u128(u128::from(index)));
            let command = Command::ReleaseHold { exam: *exam, reason: reason.clone() };
            aside(transaction, index, &Envelope { id, command, ..envelope.clone() }, &[])?;
        }
        let before = Before::of(transaction, &envelope.command)?;
        let outcome = Queue.apply(transaction, index, &envelope.encode())?;
        self.spoil(transaction, index, &envelope, &outcome, before)?;
        match (self.mutant, &envelope.command, Outcome::decode(&outcome)) {
            (Mutant::HoldingsInvented, Command::RecordStudy(part), _) => {
                // The founder: it exists in every mesh.
                invent(transaction, index, &envelope, &[(SiteId(1), part.study.clone(), part.manifest)])?;
            }
            (Mutant::CommitsOneCopy, Command::RecordStudy(part), _) => {
                let other = SiteId(if envelope.site == SiteId(1) { 2 } else { 1 });
                invent(transaction, index, &envelope, &[(other, part.study.clone(), part.manifest)])?;
            }
            (Mutant::GivesUpEarly, Command::Drain { site, .. }, Ok(Outcome::Done)) => {
                let all = holders_but(transaction, *site)?;
                invent(transaction, index, &envelope, &all)?;
            }
            _ => {}
        }
        if self.mutant == Mutant::ApplyDiffers && index.is_multiple_of(16) {
            transaction.put([0xff], self.slot.to_be_bytes());
        }
        if let Ok(Outcome::Claimed(grant) | Outcome::GlassMended { grant: Some(grant), .. }) = Outcome::decode(&outcome)
        {
            if self.mutant == Mutant::DoubleGrant && index.is_multiple_of(8) {
                // Given back behind its holder's back, by a command of nobody.
                let id = CommandId(uuid::Uuid::from_u128(u128::from(index)));
                let reason = Line::default();
                let command = Command::Release { exam: grant.exam, token: grant.claim.token, reason };
                let release = Envelope { id, at: envelope.at, site: envelope.site, user: envelope.user, command };
                aside(transaction, index, &release, &event_keys(index))?;
            }
            lock(&self.grants).insert(grant.exam, (grant.claim.token, grant.claim.transaction_uid));
        }
        if self.mutant == Mutant::TokensFall && index.is_multiple_of(8) {
            return Ok(with_an_old_token(&outcome)?.unwrap_or(outcome));
        }
        Ok(outcome)
    }
}
