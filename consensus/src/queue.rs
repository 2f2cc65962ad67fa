//! The queue: the [`Machine`] that the mesh replicates.
//!
//! `apply` is pure: time is the command's stamp, numbers are the command's log index, and nothing
//! else comes in. A repeat of a command id returns the first outcome without running again.

mod care;
mod claims;
mod exams;
mod glass;
mod placement;
mod regulation;
mod repeats;
mod reports;
mod retention;
mod sealing;
mod settings;
mod sites;
mod studies;
mod workitems;

use maillage_host::UnixMillis;
use maillage_host::engine::Reader;

use crate::audit;
use crate::command::{Command, CommandError, Envelope, UnixMillisField};
use crate::exam::ExamState;
use crate::ids::{CommandId, Line, Name, SiteId};
use crate::keys;
use crate::machine::{ApplyError, Machine, Proposer, StampError};
use crate::mesh::{Mesh, SiteRole};
use crate::outcome::{Outcome, Refusal};
use crate::record::Record as _;
use crate::state::State;
use crate::transaction::{Mark, Transaction};
use crate::view::View;

/// How long a command's outcome is kept for its repeats. A client that retries for longer than a
/// day has given up or lost its mind.
pub const OUTCOME_KEPT_MS: u64 = 24 * 3_600_000;

/// Outcomes forgotten per command, at most: more than one, so that the table shrinks after a burst;
/// few, so that no command pays for it.
const FORGET_PER_COMMAND: usize = 4;

/// What a command did: its outcome, and whether its writes stand. A refusal's usually do not.
struct Effect {
    outcome: Outcome,
    keep: bool,
}

type Applied = Result<Effect, ApplyError>;

impl From<Outcome> for Effect {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, keep: true }
    }
}

impl From<ExamState> for Effect {
    /// The refusal of a step that an exam's state does not allow.
    fn from(state: ExamState) -> Self {
        Refusal::WrongState { state }.into()
    }
}

impl From<Refusal> for Effect {
    fn from(refusal: Refusal) -> Self {
        Self { outcome: Outcome::Refused(refusal), keep: false }
    }
}

/// The replicated queue.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queue;

impl Machine for Queue {
    fn stamp(
        &self,
        state: &dyn Reader,
        command: &[u8],
        from: Proposer,
        now: UnixMillis,
    ) -> Result<Vec<u8>, StampError> {
        let mut envelope = Envelope::decode(command).map_err(|e| e.to_string())?;
        envelope.check().map_err(|e| e.to_string())?;
        // A site's number is its node's id: nobody speaks for another site, and only the leader, which
        // alone hears the keep-alives, ends a session.
        if envelope.site.0 != from.node {
            return Err(format!("site {} speaks for site {}", from.node, envelope.site).into());
        }
        if envelope.command.is_the_leaders() && !from.is_leader {
            return Err(format!("{} is for the leader alone", envelope.command.kind()).into());
        }
        // Before the log: a node that does not understand a committed command has to stop. The mesh that
        // is founded by a later format has no member yet that could not.
        let founds = matches!(envelope.command, Command::Establish { .. });
        let needs = envelope.command.format();
        let brings = founds || matches!(envelope.command, Command::RaiseFormat { .. });
        if needs > 1 && !brings && needs > View::new(state).format().map_err(|error| error.to_string())? {
            return Err(StampError::NotYet);
        }
        envelope.at = now.into();
        Ok(envelope.encode())
    }

    fn time(&self, state: &dyn Reader) -> Result<Option<UnixMillis>, ApplyError> {
        Ok(Some(View::new(state).clock()?.into()))
    }

    fn apply(&self, transaction: &mut Transaction<'_>, index: u64, command: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let envelope = Envelope::decode(command).map_err(|e| unknown(index, &e))?;
        let fingerprint = fingerprint(&envelope);
        if let Some(kept) = transaction.get(&keys::outcome(envelope.id))? {
            return match kept.split_first_chunk::<FINGERPRINT>() {
                Some((first, outcome)) if *first == fingerprint => Ok(outcome.to_vec()),
                Some(_) => {
                    // Nothing is done, and the trail says so.
                    let (now, mark) = (read_clock(transaction)?, transaction.mark());
                    let outcome = Outcome::Refused(Refusal::OtherCommand);
                    write_trail(transaction, mark, index, now, &envelope, command, &outcome)?;
                    Ok(outcome.encode())
                }
                None => Err(ApplyError::Corrupt("outcome record".into())),
            };
        }
        let before = read_clock(transaction)?;
        let now = before.max(envelope.at);
        if now > before {
            transaction.put(keys::CLOCK, now.0.to_be_bytes());
        }
        let mark = transaction.mark();
        let mut state = State::new(transaction, index, now, &envelope)?;
        let effect = run(&mut state, &envelope)?;
        if effect.keep {
            state.finish()?;
        } else {
            transaction.roll_back(mark);
        }
        write_trail(transaction, mark, index, now, &envelope, command, &effect.outcome)?;
        let outcome = effect.outcome.encode();
        // What a moment can change is asked again, not answered from memory.
        let transient = matches!(&effect.outcome, Outcome::Refused(refusal) if refusal.is_transient());
        if !transient {
            remember(transaction, envelope.id, now, &[&fingerprint[..], &outcome].concat())?;
        }
        Ok(outcome)
    }
}

/// Adds the command to the audit trail, from format 2 on.
fn write_trail(
    transaction: &mut Transaction<'_>,
    mark: Mark,
    index: u64,
    now: UnixMillisField,
    envelope: &Envelope,
    command: &[u8],
    outcome: &Outcome,
) -> Result<(), ApplyError> {
    let mesh = transaction.get(&keys::MESH)?.map(|bytes| Mesh::decode(&bytes)).transpose()?;
    let format = mesh.map_or(1, |mesh| mesh.format);
    if format < 2 {
        return Ok(());
    }
    let entry = audit::Entry {
        index,
        at: now,
        site: envelope.site,
        user: envelope.user.clone(),
        id: envelope.id,
        kind: Name::fitted(envelope.command.kind()),
        exam: envelope.command.exam().or_else(|| outcome.exam()),
        why: envelope.command.reason(),
        outcome: match outcome {
            // Without the token: who reads the trail holds no claim by it.
            Outcome::Refused(Refusal::StaleToken { kept_as, .. }) => Line::fitted(match kept_as {
                Some(_) => "the claim no longer holds; the text is kept as a draft",
                None => "the claim no longer holds",
            }),
            Outcome::Refused(refusal) => Line::fitted(&refusal.to_string()),
            Outcome::NothingWaiting => Line::fitted("nothing waiting"),
            _ => Line::fitted("done"),
        },
        command: *blake3::hash(command).as_bytes(),
        writes: transaction.digest_since(mark),
    };
    let before = transaction.get(&keys::CHAIN)?.unwrap_or_else(|| vec![0; 32]);
    let before = before.try_into().map_err(|_| ApplyError::Corrupt("audit chain".into()))?;
    let chain = audit::chain(&before, &entry);
    transaction.put(keys::CHAIN, chain);
    transaction.put(keys::audit(index), audit::Link { entry, chain }.encode(format));
    Ok(())
}

/// What tells two commands under one id apart, in bytes.
const FINGERPRINT: usize = 16;

/// Scheduled Procedure Step Modification DateTime (0040,4010): when a client's update came to its node.
const MODIFIED_AT: u32 = 0x0040_4010;

/// A digest of who asked for what, without when, and without where: a client whose site died repeats
/// its command at another, which signs the same report with a key of its own, at its own time.
fn fingerprint(envelope: &Envelope) -> [u8; FINGERPRINT] {
    let mut timeless = Envelope { at: UnixMillisField::default(), site: SiteId(0), ..envelope.clone() };
    if let Command::Report { signature, .. }
    | Command::Addend { signature, .. }
    | Command::BreakGlass { signature, .. } = &mut timeless.command
    {
        signature.clear();
    }
    if let Command::UpdateWorkitem { attributes, .. } = &mut timeless.command {
        attributes.remove(&MODIFIED_AT);
    }
    let digest = blake3::hash(&timeless.encode());
    let mut short = [0; FINGERPRINT];
    short.copy_from_slice(&digest.as_bytes()[..FINGERPRINT]);
    short
}

fn unknown(index: u64, error: &CommandError) -> ApplyError {
    ApplyError::Unknown { index, detail: error.to_string() }
}

fn read_clock(transaction: &Transaction<'_>) -> Result<UnixMillisField, ApplyError> {
    let Some(bytes) = transaction.get(&keys::CLOCK)? else {
        return Ok(UnixMillisField(0));
    };
    let bytes = bytes.try_into().map_err(|_| ApplyError::Corrupt("clock record".into()))?;
    Ok(UnixMillisField(u64::from_be_bytes(bytes)))
}

fn remember(
    transaction: &mut Transaction<'_>,
    id: CommandId,
    now: UnixMillisField,
    kept: &[u8],
) -> Result<(), ApplyError> {
    transaction.put(keys::outcome(id), kept);
    transaction.put(keys::outcome_end(now, id), []);
    // From where the last one was forgotten: what was removed before it would be walked over again.
    let cursor = transaction.get(&keys::OUTCOME_CURSOR)?.unwrap_or_else(|| keys::OUTCOME_ENDS.to_vec());
    for (key, _) in transaction.scan_prefix_after(&keys::OUTCOME_ENDS, &cursor, FORGET_PER_COMMAND)? {
        let (Some(at), Some(id)) = (key.get(1..9), key.get(9..25)) else {
            return Err(ApplyError::Corrupt("outcome index".into()));
        };
        let at = u64::from_be_bytes(at.try_into().unwrap_or_default());
        if now.0.saturating_sub(at) <= OUTCOME_KEPT_MS {
            break;
        }
        let id = uuid::Uuid::from_slice(id).map_err(|_| ApplyError::Corrupt("outcome index".into()))?;
        transaction.remove(keys::outcome(CommandId(id)));
        transaction.put(keys::OUTCOME_CURSOR, key.clone());
        transaction.remove(key);
    }
    Ok(())
}

fn run(state: &mut State<'_, '_>, envelope: &Envelope) -> Applied {
    if !matches!(envelope.command, Command::Found { .. } | Command::Establish { .. }) {
        if state.mesh()?.is_none() {
            return Ok(Refusal::MeshState(Name::fitted("the mesh is not founded yet")).into());
        }
        // A gateway proposes nothing itself: centres do, for what it is allowed.
        if state.site(envelope.site)?.is_none_or(|site| site.is_gateway()) {
            return Ok(Refusal::NotAMember.into());
        }
    }
    if state.format >= 2
        && let Some(outcome) = repeats::first_outcome(state, envelope)?
    {
        return Ok(Effect { outcome, keep: false });
    }
    match &envelope.command {
        Command::Found { mesh, name, copies, founder } => sites::found(state, mesh, name, *copies, founder, 1),
        Command::CreateToken { key, lifetime_ms } => sites::create_token(state, key, *lifetime_ms, SiteRole::Centre),
        Command::RevokeToken { key } => sites::revoke_token(state, key),
        Command::Join { token, joiner } => sites::join(state, token, joiner, false),
        Command::Describe { description } => sites::describe(state, envelope.site, description),
        Command::OpenSession => sites::open_session(state, envelope.site),
        Command::ExpireSession { site, session } => sites::expire_session(state, *site, *session),
        Command::AddExam(request) => exams::add(state, request, None),
        Command::Cancel { exam, reason } => exams::cancel(state, *exam, reason),
        Command::Prioritise { exam, priority } => exams::prioritise(state, *exam, *priority),
        Command::Reconcile { unsolicited, into } => exams::reconcile(state, *unsolicited, *into),
        Command::ClaimNext { modalities } => claims::first(state, envelope, modalities),
        Command::ClaimTake { exam } => claims::take(state, envelope, *exam, None),
        Command::Release { exam, token, reason } => claims::release(state, *exam, *token, reason),
        Command::Complete { exam, token, report } => {
            reports::write(state, envelope, *exam, *token, &reports::Text::plain(report))
        }
        Command::RecordStudy(part) => studies::record(state, envelope.site, part),
        Command::RecordHolding { study, manifest, holds } => {
            studies::record_holding(state, envelope.site, study, manifest, *holds)
        }
        command => {
            if state.format < 2 && !matches!(command, Command::Establish { .. } | Command::RaiseFormat { .. }) {
                return Ok(Refusal::Format { format: state.format }.into());
            }
            run_2(state, envelope)
        }
    }
}

/// The commands of format 2.
fn run_2(state: &mut State<'_, '_>, envelope: &Envelope) -> Applied {
    match &envelope.command {
        Command::Establish { mesh, name, copies, founder, format } => {
            sites::found(state, mesh, name, *copies, founder, *format)
        }
        Command::RaiseFormat { to } => settings::raise_format(state, *to),
        Command::Attest { index, chain } => settings::attest(state, envelope.site, *index, chain),
        Command::SetHospital(hospital) => settings::set_hospital(state, hospital),
        Command::Situate { place } => settings::situate(state, envelope.site, place),
        Command::SetPolicy(policy) => settings::set_policy(state, policy),
        Command::Order { request, order } => exams::add(state, request, Some(order)),
        Command::Regulate { exam, verdict } => regulation::regulate(state, envelope, *exam, verdict),
        Command::Acquire { exam } => regulation::acquire(state, *exam),
        Command::Arrive { exam } => regulation::arrive(state, *exam),
        Command::Next(reader) => claims::next(state, envelope, reader),
        Command::Take { exam, transaction_uid } => claims::take(state, envelope, *exam, Some(transaction_uid)),
        Command::TakeOver { exam, reason } => claims::take_over(state, envelope, *exam, reason),
        Command::Open { exam, token } => claims::open(state, *exam, *token),
        Command::Report { exam, token, kind, text, signature } => {
            reports::write(state, envelope, *exam, *token, &reports::Text { kind: *kind, text, signature })
        }
        Command::Addend { exam, text, signature } => reports::addend(state, envelope, *exam, text, signature),
        Command::Deliver { exam, report, to } => reports::deliver(state, envelope, *exam, *report, to),
        Command::BreakGlass { exam, taken_at, reason, report, signature } => {
            let taken = glass::Glass { taken_at: *taken_at, reason, report: report.as_ref(), signature };
            glass::mend(state, envelope, *exam, &taken)
        }
        Command::FollowUp { exam, text } => care::follow_up(state, envelope, *exam, text),
        Command::Note { exam, text } => care::note(state, envelope, *exam, text),
        Command::AskOpinion { exam, of, question } => care::ask_opinion(state, envelope, *exam, of, question),
        Command::GiveOpinion { exam, remark, text, concordance } => {
            care::give_opinion(state, envelope, *exam, *remark, text, *concordance)
        }
        Command::AddFinding { exam, finding } => care::add_finding(state, envelope, *exam, finding),
        Command::RaiseCritical { exam, text } => care::raise_critical(state, envelope, *exam, text),
        Command::Tell { exam, remark, whom, read_back } => {
            care::tell(state, envelope, *exam, *remark, whom, *read_back)
        }
        Command::Escalate { exam, remark } => care::escalate(state, *exam, *remark),
        Command::RaiseDiscrepancy { exam, grade, text } => {
            care::raise_discrepancy(state, envelope, *exam, *grade, text)
        }
        Command::CreateWorkitem { uid, request, order, attributes } => {
            workitems::create(state, uid, request, order, attributes)
        }
        Command::UpdateWorkitem { exam, number, transaction_uid, attributes } => {
            workitems::update(state, *exam, *number, transaction_uid, attributes)
        }
        Command::ChangeWorkitem { exam, number, transaction_uid, to } => {
            workitems::change(state, envelope, *exam, *number, transaction_uid, *to)
        }
        Command::AskCancel { exam, number, reason } => workitems::ask_cancel(state, envelope, *exam, *number, reason),
        Command::Subscribe(subscription) => workitems::subscribe(state, subscription),
        Command::Unsubscribe { aet, workitem } => workitems::unsubscribe(state, aet.as_str(), *workitem),
        Command::LegalHold { exam, reason } => retention::hold(state, *exam, reason),
        Command::ReleaseHold { exam, reason } => retention::release(state, *exam, reason),
        Command::Purge { exam, reason, withdrawn } => retention::purge(state, *exam, reason, *withdrawn),
        Command::RecordPurged { exam, study, manifest } => retention::confirm(state, *exam, study, manifest),
        Command::StagePlacement(change) => placement::stage(state, change),
        Command::ApplyPlacement { version, force } => placement::apply(state, *version, force),
        Command::RevertPlacement { version } => placement::revert(state, *version),
        Command::Drain { site, reason, force } => placement::drain(state, *site, reason, *force),
        Command::Undrain { site, .. } => placement::undrain(state, *site),
        Command::ReportRoom { full } => placement::report_room(state, *full),
        Command::GiveUp { study, manifest } => placement::give_up(state, study, manifest),
        Command::CreateGatewayToken { key, lifetime_ms, hospitals } => {
            sites::create_token(state, key, *lifetime_ms, SiteRole::Gateway { hospitals: hospitals.clone() })
        }
        Command::JoinGateway { token, joiner } => sites::join(state, token, joiner, true),
        Command::SetGateway { gateway, hospitals } => sites::set_gateway(state, *gateway, hospitals),
        Command::KeepKey { study, id, sequence, secret } => sealing::keep(state, study, *id, *sequence, secret),
        // Format 1's, which `run` has taken.
        _ => Ok(Refusal::Format { format: state.format }.into()),
    }
}

#[cfg(test)]
mod tests;
