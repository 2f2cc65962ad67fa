//! Who sees what no client of the workload tells of: commands that a node's outbox sends by itself, and those
//! of clients that speak in workitems. Seen where the leader stamps them and where replicas apply them, they
//! stand in the history between these two moments.

use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::exam::{ReportKind, WorkitemState};
use maillage_consensus::ids::UidText;
use maillage_consensus::{Outcome, Refusal};

use crate::history::{Act, Claimed, History, Mended, Told};
use crate::workload::{command_of, is_apart, number_of, transaction};

/// A claim that is given back by its Transaction UID: no token was shown that could be stale.
const NO_TOKEN: u64 = u64::MAX;

fn claimed(envelope: &Envelope, command: u128) -> Claimed {
    Claimed { command, user: number_of(&envelope.user), site: envelope.site.0, session: None }
}

fn by_uid(uid: &UidText) -> u128 {
    transaction(uid.as_str())
}

/// What a command asks of which exam, if it is one of those.
fn asks(history: &History, envelope: &Envelope) -> Option<(u64, Act)> {
    if !is_apart(&envelope.user) {
        return None;
    }
    Some(match &envelope.command {
        Command::BreakGlass { exam, report, .. } => {
            let by = claimed(envelope, envelope.id.0.as_u128());
            (exam.0, Act::Glass { by, reports: report.is_some(), told: None })
        }
        Command::ChangeWorkitem { exam, transaction_uid, to: WorkitemState::InProgress, .. } => {
            (exam.0, Act::Claim { by: claimed(envelope, by_uid(transaction_uid)), told: None })
        }
        Command::ChangeWorkitem { exam, transaction_uid, to: WorkitemState::Canceled, .. } => {
            (exam.0, Act::Release { claim: by_uid(transaction_uid), token: NO_TOKEN, done: None })
        }
        Command::Release { exam, token, .. } => {
            let claim = history.claim_of(exam.0, token.0);
            (exam.0, Act::Release { claim, token: token.0, done: None })
        }
        Command::Complete { exam, token, .. } | Command::Report { exam, token, kind: ReportKind::Final, .. } => {
            let claim = history.claim_of(exam.0, token.0);
            (exam.0, Act::Complete { claim, token: token.0, done: None })
        }
        _ => return None,
    })
}

/// The same with its answer; `None` when it had no effect on who holds the exam.
fn answered(act: Act, outcome: &Outcome) -> Option<Act> {
    let done = match outcome {
        Outcome::Done | Outcome::Completed { .. } => Some(true),
        Outcome::Refused(Refusal::StaleToken { .. } | Refusal::WrongTransaction) => Some(false),
        _ => None,
    };
    match (act, outcome) {
        (Act::Glass { .. }, Outcome::GlassMended { grant: Some(grant), .. }) => {
            let claim = &grant.claim;
            let session = (claim.session > 0).then_some(claim.session);
            let by = Claimed { command: command_of(claim), user: number_of(&claim.user), site: claim.site.0, session };
            Some(Act::Glass { by, reports: false, told: Some(Mended::Holds) })
        }
        (Act::Glass { by, .. }, Outcome::GlassMended { second_read, report: Some(_), .. }) => {
            let told = if *second_read { Mended::SecondRead } else { Mended::Reported };
            Some(Act::Glass { by, reports: true, told: Some(told) })
        }
        (Act::Claim { by, .. }, Outcome::Claimed(grant)) => {
            let session = (grant.claim.session > 0).then_some(grant.claim.session);
            let told = Told::Granted { token: grant.claim.token.0 };
            Some(Act::Claim { by: Claimed { session, ..by }, told: Some(told) })
        }
        (Act::Claim { by, .. }, Outcome::Refused(Refusal::AlreadyClaimed(holder))) => {
            let told = Told::Held { user: number_of(&holder.user), site: holder.site.0 };
            Some(Act::Claim { by, told: Some(told) })
        }
        (Act::Release { claim, token, .. }, _) if done.is_some() => Some(Act::Release { claim, token, done }),
        (Act::Complete { claim, token, .. }, _) if done.is_some() => Some(Act::Complete { claim, token, done }),
        _ => None,
    }
}

/// The leader is about to propose a command.
pub(crate) fn stamped(history: &History, envelope: &Envelope) {
    if let Some((exam, act)) = asks(history, envelope) {
        history.asked(envelope.id.0.as_u128(), exam, act);
    }
}

/// A replica applied a command that is no repeat, at `index`.
pub(crate) fn applied(history: &History, envelope: &Envelope, outcome: &Outcome, index: u64) {
    let grant = match outcome {
        Outcome::Claimed(grant) | Outcome::GlassMended { grant: Some(grant), .. } => Some(grant),
        _ => None,
    };
    if let Some(grant) = grant {
        let claim = &grant.claim;
        history.granted(grant.exam.0, claim.token.0, command_of(claim), claim.session);
    }
    if let Some((exam, act)) = asks(history, envelope) {
        history.decided(envelope.id.0.as_u128(), exam, index, answered(act, outcome));
    }
}
