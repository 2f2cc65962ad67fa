//! What a correct peer never sends.
//!
//! openraft takes these for granted and asserts some of them; a peer that breaks one is refused
//! before openraft sees it.

use openraft::raft::AppendEntriesRequest;

use super::ServeError;
use crate::raft::types::{LogId, SnapshotMeta, TypeConfig, Vote};

/// A vote must be the sender's own: of a leader (`committed`) or a candidate.
pub(super) fn vote(vote: &Vote, from: u64, committed: bool) -> Result<(), ServeError> {
    if vote.leader_id.node_id == from && vote.committed == committed {
        Ok(())
    } else {
        Err(ServeError::Refused("a vote that is not the sender's"))
    }
}

/// Entries must follow each other and the one before them, and none may be of a later leader.
pub(super) fn append(request: &AppendEntriesRequest<TypeConfig>, from: u64) -> Result<(), ServeError> {
    vote(&request.vote, from, true)?;
    let mut previous = request.prev_log_id;
    for entry in &request.entries {
        let id = entry.log_id;
        let follows = match previous {
            None => id.index == 0,
            Some(previous) => previous.index.checked_add(1) == Some(id.index) && previous < id,
        };
        if !follows {
            return Err(ServeError::Refused("entries that do not follow each other"));
        }
        previous = Some(id);
    }
    let known = |id: Option<&LogId>| id.is_none_or(|id| id.leader_id <= request.vote.leader_id);
    if known(previous.as_ref()) && known(request.leader_commit.as_ref()) {
        Ok(())
    } else {
        Err(ServeError::Refused("entries of a later leader"))
    }
}

/// A snapshot must hold something, nothing of a later leader, and not contradict what is committed.
pub(super) fn snapshot(meta: &SnapshotMeta, vote: &Vote, committed: Option<&LogId>) -> Result<(), ServeError> {
    let Some(last) = &meta.last_log_id else { return Err(ServeError::Refused("an empty snapshot")) };
    if last.leader_id > vote.leader_id {
        return Err(ServeError::Refused("a snapshot of a later leader"));
    }
    if meta.last_membership.membership().get_joint_config().is_empty() {
        return Err(ServeError::Refused("a snapshot without a membership"));
    }
    if committed.is_some_and(|committed| last > committed && last.index <= committed.index) {
        return Err(ServeError::Refused("a snapshot that contradicts what is committed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::types::{Entry, LeaderId};

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: 1 }, index }
    }

    fn request(term: u64, previous: Option<LogId>, entries: &[LogId]) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote { leader_id: LeaderId { term, node_id: 1 }, committed: true },
            prev_log_id: previous,
            entries: entries.iter().map(|id| Entry { log_id: *id, payload: EntryPayload::Blank }).collect(),
            leader_commit: None,
        }
    }

    #[test]
    fn appends_that_a_correct_leader_sends_are_let_through() {
        assert!(append(&request(2, None, &[id(1, 0), id(1, 1), id(2, 2)]), 1).is_ok());
        assert!(append(&request(2, Some(id(1, 4)), &[id(2, 5)]), 1).is_ok());
        assert!(append(&request(2, Some(id(1, 4)), &[]), 1).is_ok());
    }

    #[test]
    fn appends_with_holes_or_from_the_future_or_in_another_name_are_refused() {
        assert!(append(&request(2, None, &[id(1, 1)]), 1).is_err(), "no start");
        assert!(append(&request(2, Some(id(1, 1)), &[id(1, 3)]), 1).is_err(), "a hole");
        assert!(append(&request(2, Some(id(2, 1)), &[id(1, 2)]), 1).is_err(), "terms fall");
        assert!(append(&request(2, Some(id(1, u64::MAX)), &[id(1, 0)]), 1).is_err(), "the index overflows");
        assert!(append(&request(2, None, &[id(3, 0)]), 1).is_err(), "a later leader");
        assert!(append(&request(2, None, &[id(1, 0)]), 7).is_err(), "another sender");
    }
}
