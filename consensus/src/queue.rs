//! The queue: the [`Machine`] that the mesh replicates.
//!
//! `apply` is pure: time is the command's stamp, numbers are the command's log index, and nothing
//! else comes in. A repeat of a command id returns the first outcome without running again.

mod claims;
mod exams;
mod sites;
mod studies;

use maillage_host::UnixMillis;
use maillage_host::engine::Reader;

use crate::command::{Command, CommandError, Envelope, UnixMillisField};
use crate::ids::{CommandId, Name, SiteId};
use crate::keys;
use crate::machine::{ApplyError, Machine, Proposer};
use crate::outcome::{Outcome, Refusal};
use crate::state::State;
use crate::transaction::Transaction;
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

impl From<Refusal> for Effect {
    fn from(refusal: Refusal) -> Self {
        Self { outcome: Outcome::Refused(refusal), keep: false }
    }
}

/// The replicated queue.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queue;

impl Machine for Queue {
    fn stamp(&self, command: &[u8], from: Proposer, now: UnixMillis) -> Result<Vec<u8>, String> {
        let mut envelope = Envelope::decode(command).map_err(|e| e.to_string())?;
        envelope.check().map_err(|e| e.to_string())?;
        // A site's number is its node's id: nobody speaks for another site, and only the leader, which
        // alone hears the keep-alives, ends a session.
        if envelope.site.0 != from.node {
            return Err(format!("site {} speaks for site {}", from.node, envelope.site));
        }
        if matches!(envelope.command, Command::ExpireSession { .. }) && !from.is_leader {
            return Err("only the leader ends a session".to_owned());
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
                Some(_) => Ok(Outcome::Refused(Refusal::OtherCommand).encode()),
                None => Err(ApplyError::Corrupt("outcome record".into())),
            };
        }
        let before = read_clock(transaction)?;
        let now = before.max(envelope.at);
        if now > before {
            transaction.put(keys::CLOCK, now.0.to_be_bytes());
        }
        let mark = transaction.mark();
        let mut state = State { transaction, index, now };
        let effect = run(&mut state, &envelope)?;
        if !effect.keep {
            transaction.roll_back(mark);
        }
        let outcome = effect.outcome.encode();
        // What a moment can change is asked again, not answered from memory.
        let transient = matches!(&effect.outcome, Outcome::Refused(refusal) if refusal.is_transient());
        if !transient {
            remember(transaction, envelope.id, now, &[&fingerprint[..], &outcome].concat())?;
        }
        Ok(outcome)
    }
}

/// What tells two commands under one id apart, in bytes.
const FINGERPRINT: usize = 16;

/// A digest of who asked for what, without when, and without where: a client whose site died repeats
/// its command at another.
fn fingerprint(envelope: &Envelope) -> [u8; FINGERPRINT] {
    let timeless = Envelope { at: UnixMillisField::default(), site: SiteId(0), ..envelope.clone() };
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
    if !matches!(envelope.command, Command::Found { .. }) {
        if state.mesh()?.is_none() {
            return Ok(Refusal::MeshState(Name::fitted("the mesh is not founded yet")).into());
        }
        if state.site(envelope.site)?.is_none() {
            return Ok(Refusal::NotAMember.into());
        }
    }
    match &envelope.command {
        Command::Found { mesh, name, copies, founder } => sites::found(state, mesh, name, *copies, founder),
        Command::CreateToken { key, lifetime_ms } => sites::create_token(state, key, *lifetime_ms),
        Command::RevokeToken { key } => sites::revoke_token(state, key),
        Command::Join { token, joiner } => sites::join(state, token, joiner),
        Command::Describe { description } => sites::describe(state, envelope.site, description),
        Command::OpenSession => sites::open_session(state, envelope.site),
        Command::ExpireSession { site, session } => sites::expire_session(state, *site, *session),
        Command::AddExam(request) => exams::add(state, request),
        Command::Cancel { exam, reason } => exams::cancel(state, *exam, reason),
        Command::Prioritise { exam, priority } => exams::prioritise(state, *exam, *priority),
        Command::Reconcile { unsolicited, into } => exams::reconcile(state, *unsolicited, *into),
        Command::ClaimNext { modalities } => claims::next(state, envelope, modalities),
        Command::ClaimTake { exam } => claims::take(state, envelope, *exam),
        Command::Release { exam, token, reason } => claims::release(state, *exam, *token, reason),
        Command::Complete { exam, token, report } => claims::complete(state, envelope, *exam, *token, report),
        Command::RecordStudy(part) => studies::record(state, envelope.site, part),
        Command::RecordHolding { study, manifest, holds } => {
            studies::record_holding(state, envelope.site, study, manifest, *holds)
        }
    }
}

#[cfg(test)]
mod tests;
