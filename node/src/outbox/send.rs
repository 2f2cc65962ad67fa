//! Sending what the outbox holds, once a quorum is reached.
//!
//! Entries of one exam are sent in the order in which they were written. Each proposal's command id is
//! the entry's own or made from it, so that a repeat, also after a restart, takes effect once.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::ids::{CommandId, FencingToken, Line, Name, Paragraph};
use maillage_consensus::outcome::Refusal;
use maillage_consensus::raft::GroupStatus;
use tokio_util::sync::CancellationToken;

use super::book::{Entry, Glass, GlassReport, What};
use super::desk::{Ask, Refused};
use super::record::End;
use crate::http::rfc3339::rfc3339;
use crate::node::{CommandError, Node};

/// After a round that left something, the next one comes after this long, twice as long each time …
const RETRY: Duration = Duration::from_secs(1);
/// … but no longer than this. A new leader is tried at once.
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Sends until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let (mut book, mut group) = (node.outbox().watch(), node.group().watch());
    let mut wait = RETRY;
    loop {
        if !book.borrow_and_update().has_unsent() {
            wait = RETRY;
            match shutdown.run_until_cancelled(book.changed()).await {
                Some(Ok(())) => continue,
                _ => return,
            }
        }
        let Some(left) = shutdown.run_until_cancelled(round(&node)).await else { return };
        if !left {
            continue;
        }
        let seen = leadership(&group.borrow_and_update());
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = book.changed() => if changed.is_err() { return },
            // Somebody leads whom the last round did not know.
            led = group.wait_for(|now| now.leader.is_some() && leadership(now) != seen) => {
                if led.is_err() { return }
                wait = RETRY;
            }
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
        }
    }
}

fn leadership(status: &GroupStatus) -> (u64, Option<u64>) {
    (status.term, status.leader)
}

/// Sends all that is unsent. Returns whether anything is left that a later round could send.
async fn round(node: &Node) -> bool {
    let book = node.outbox().book();
    if node.linearize().await.is_err() {
        return true;
    }
    let (mut left, mut behind) = (false, BTreeSet::new());
    for entry in book.entries().filter(|entry| entry.end.is_none()) {
        if behind.contains(&entry.exam) {
            continue;
        }
        match send(node, entry).await {
            Ok(()) => {}
            Err(Unsent::Later) => {
                behind.insert(entry.exam);
                left = true;
            }
            Err(Unsent::NoQuorum) => return true,
        }
    }
    left
}

/// Why an entry is not settled yet.
enum Unsent {
    /// The mesh could not decide about it just now.
    Later,
    /// The mesh can decide nothing just now.
    NoQuorum,
}

async fn send(node: &Node, entry: &Entry) -> Result<(), Unsent> {
    let mut entry = entry.clone();
    if entry.is_held() {
        entry = node.outbox().ask(Ask::Try { id: entry.id }).await.map_err(|_| Unsent::Later)?;
    }
    let entry = &entry;
    let end = match &entry.what {
        What::Command(envelope) => {
            let Envelope { id, user, command, .. } = (**envelope).clone();
            Some(end_of(propose(node, id, entry, Some(user), command).await?))
        }
        What::Glass(glass) => send_glass(node, entry, glass).await?,
    };
    let Some(end) = end else { return Ok(()) };
    let (kind, state, exam, id) = (entry.kind(), end.as_str(), entry.exam.0, entry.id.0);
    match node.outbox().ask(Ask::Settle { id: entry.id, revision: entry.revision, end: end.clone() }).await {
        Ok(_) => {
            node.metrics().outbox_settled(kind, state);
            match &end {
                End::Failed { why } => {
                    tracing::error!(exam, %id, kind, %why, "the mesh refuses what was written here while it was cut off: `maillage outbox list`")
                }
                End::Draft { report } => {
                    tracing::warn!(exam, %id, kind, report, "the claim was lost meanwhile: the text is kept as a draft")
                }
                End::SecondRead { .. } => {
                    tracing::warn!(exam, %id, kind, "the exam was read elsewhere too: a second read")
                }
                _ => tracing::info!(exam, %id, kind, state, "sent from the outbox"),
            }
            Ok(())
        }
        // It was reported or given back while this was under way: the next round sends that.
        Err(Refused::Changed) => Err(Unsent::Later),
        Err(error) => {
            tracing::warn!(exam, %id, %error, "the outbox cannot settle an entry");
            Err(Unsent::Later)
        }
    }
}

/// Brings a break glass into the mesh's books. `None` when there is nothing to settle.
///
/// A claim may have become an ordinary one by an earlier attempt of which nothing is known. Whether it
/// did is asked first, under the same command id: a late attempt must not come after the report.
async fn send_glass(node: &Node, entry: &Entry, glass: &Glass) -> Result<Option<End>, Unsent> {
    let id = |what| derived(entry.id, what);
    let mend = |report: Option<&GlassReport>| Command::BreakGlass {
        exam: entry.exam,
        taken_at: entry.at,
        reason: glass.reason.clone(),
        report: report.map(|report| report.text.clone()),
        signature: report.map(|report| report.signature.clone()).unwrap_or_default().into(),
    };
    let claim = match glass.tried {
        true => Some(propose(node, id("claim"), entry, None, mend(None)).await?),
        false => None,
    };
    if let Some(report) = &glass.report {
        return Ok(Some(end_of(propose(node, id("report"), entry, None, mend(Some(report))).await?)));
    }
    let Some((why, at)) = &glass.given_back else { return Ok(claim.map(end_of)) };
    let end = match claim.map(end_of) {
        Some(End::Continues { token }) => give_back(node, entry, token, why).await?,
        Some(failed @ End::Failed { .. }) => failed,
        Some(_) => End::GivenBack,
        // The mesh never heard of it: that its images were looked at belongs on the record all the same.
        None => {
            let text = format!(
                "taken by break glass at {} ({}), given back at {} without a report: {why}",
                rfc3339(entry.at),
                glass.reason,
                rfc3339(*at),
            );
            let note = Command::Note { exam: entry.exam, text: Paragraph::fitted(&text) };
            match end_of(propose(node, id("note"), entry, None, note).await?) {
                End::Accepted { .. } => End::GivenBack,
                other => other,
            }
        }
    };
    Ok(Some(end))
}

async fn give_back(node: &Node, entry: &Entry, token: FencingToken, why: &Line) -> Result<End, Unsent> {
    let release = Command::Release { exam: entry.exam, token, reason: why.clone() };
    // A claim that was lost meanwhile is given back too.
    let _answer = propose(node, derived(entry.id, "release"), entry, None, release).await?;
    Ok(End::GivenBack)
}

/// Proposes a command and waits for an answer that stands.
async fn propose(
    node: &Node,
    id: CommandId,
    entry: &Entry,
    user: Option<Name>,
    command: Command,
) -> Result<Result<Outcome, String>, Unsent> {
    match node.command(id, user.unwrap_or_else(|| entry.user.clone()), command).await {
        Ok(Outcome::Refused(refusal)) if refusal.is_transient() => Err(Unsent::Later),
        Ok(outcome) => Ok(Ok(outcome)),
        Err(CommandError::Unknown(_)) => Err(Unsent::Later),
        Err(CommandError::NoQuorum(_) | CommandError::Halted(_)) => Err(Unsent::NoQuorum),
        Err(CommandError::Invalid(why)) => Ok(Err(why)),
    }
}

/// How an entry ended, by what the mesh answered.
fn end_of(answer: Result<Outcome, String>) -> End {
    let failed = |why: &str| End::Failed { why: Line::fitted(why) };
    match answer {
        Ok(Outcome::Completed { report }) => End::Accepted { number: report },
        Ok(Outcome::Remarked { remark }) => End::Accepted { number: remark },
        Ok(Outcome::GlassMended { grant: Some(grant), .. }) => End::Continues { token: grant.claim.token },
        Ok(Outcome::GlassMended { second_read: false, report: Some(number), .. }) => End::Accepted { number },
        Ok(Outcome::GlassMended { report, .. }) => End::SecondRead { report },
        Ok(Outcome::Refused(Refusal::StaleToken { kept_as: Some(report), .. })) => End::Draft { report },
        Ok(Outcome::Refused(refusal)) => failed(&refusal.to_string()),
        Ok(_) => failed("this command id named another command before"),
        Err(why) => failed(&why),
    }
}

/// The command id of one of an entry's steps: the same at every attempt.
fn derived(entry: CommandId, step: &str) -> CommandId {
    let mut hasher = blake3::Hasher::new_derive_key("maillage 2026-11 outbox command id");
    hasher.update(entry.0.as_bytes());
    hasher.update(step.as_bytes());
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    CommandId(uuid::Builder::from_random_bytes(id).into_uuid())
}

#[cfg(test)]
mod tests {
    use maillage_consensus::exam::ExamState;

    use super::*;

    #[test]
    fn a_text_that_is_no_report_is_told_from_one_that_is_and_from_one_that_was_refused() {
        let stale = |kept_as| Ok(Outcome::Refused(Refusal::StaleToken { given: FencingToken(3), kept_as }));
        assert_eq!(end_of(Ok(Outcome::Completed { report: 2 })), End::Accepted { number: 2 });
        assert_eq!(end_of(stale(Some(4))), End::Draft { report: 4 });
        for refused in [stale(None), Ok(Outcome::Refused(Refusal::WrongState { state: ExamState::Cancelled }))] {
            assert!(end_of(refused).needs_a_person());
        }
        let second = Outcome::GlassMended { second_read: true, report: Some(5), grant: None };
        assert_eq!(end_of(Ok(second)), End::SecondRead { report: Some(5) });
    }

    #[test]
    fn each_step_of_an_entry_has_one_command_id_and_no_other_step_has_it() {
        let [one, other] = [1, 2].map(|n| CommandId(uuid::Uuid::from_u128(n)));
        let ids: BTreeSet<_> =
            [one, other].iter().flat_map(|id| ["claim", "report", "note"].map(|step| derived(*id, step))).collect();
        assert_eq!(ids.len(), 6);
        assert_eq!(derived(one, "report"), derived(one, "report"));
    }
}
