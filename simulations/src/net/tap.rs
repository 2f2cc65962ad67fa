//! What passes on the wire, read by a second decoder.
//!
//! Promises are made on the wire: a granted vote, an acknowledged entry. This reads just enough of
//! the mesh's frames (`[length u32][tag u8][body]`, version 1) to see them, written apart from the
//! production decoder on purpose: an invariant that trusts the code it checks sees less.

use crate::world::Owner;

const VOTE_REQUEST: u8 = 3;
const APPEND: u8 = 2;
const SNAPSHOT: u8 = 6;
const APPENDED: u8 = 129;
const CONFLICT: u8 = 130;
const HIGHER_VOTE: u8 = 131;
const VOTED: u8 = 132;
const COMMITTED: u8 = 135;

/// Which half of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From who opened it.
    Request,
    /// From who was asked.
    Answer,
}

/// An election term and the candidate or leader in it.
pub(crate) type Ballot = (u64, u64);

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// A candidate asks for a vote.
    AsksVote(Ballot),
    /// A leader sends entries, or a heartbeat.
    Appends(Ballot),
    /// A leader sends a snapshot.
    SendsSnapshot(Ballot),
    /// To the leader of this ballot: the log holds everything up to this index.
    Acknowledges(Ballot, u64),
    /// Entries do not fit.
    Conflicts,
    /// The leader is of the past.
    KnowsHigher(Ballot),
    /// The voter's ballot, and whether the vote is granted.
    Votes(Ballot, bool),
    /// A forwarded command is committed.
    Commits,
}

/// A frame seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) from: Owner,
    pub(crate) to: Owner,
    /// Whether it arrived; else it was just sent.
    pub(crate) arrived: bool,
    pub(crate) said: Said,
}

/// Reads the frames of one pipe.
pub(super) struct Tap {
    from: Owner,
    to: Owner,
    direction: Direction,
    arrived: bool,
    buffer: Vec<u8>,
    /// What was asked on the stream: an answer alone does not say whether a vote was a real one.
    asked: Option<Said>,
}

impl Tap {
    pub(super) fn new(from: Owner, to: Owner, direction: Direction, arrived: bool) -> Self {
        Self { from, to, direction, arrived, buffer: Vec::new(), asked: None }
    }

    /// Tells an answer's tap what it answers.
    pub(super) fn asked(&mut self, said: Said) {
        self.asked = Some(said);
    }

    pub(super) fn pass(&mut self, bytes: &[u8], seen: &mut Vec<Seen>) {
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((frame, next)) = frame(&self.buffer, at) {
            if let Some(said) = said(self.direction, self.asked, frame) {
                seen.push(Seen { from: self.from, to: self.to, arrived: self.arrived, said });
            }
            at = next;
        }
        self.buffer.drain(..at);
    }
}

fn frame(buffer: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let len = u32::from_le_bytes(buffer.get(at..at + 4)?.try_into().ok()?) as usize;
    Some((buffer.get(at + 4..at + 4 + len)?, at + 4 + len))
}

fn said(direction: Direction, asked: Option<Said>, frame: &[u8]) -> Option<Said> {
    let (&tag, body) = frame.split_first()?;
    Some(match (direction, tag) {
        (Direction::Request, VOTE_REQUEST) => Said::AsksVote(ballot(body)?),
        // The age of the quorum's last acknowledgement comes first.
        (Direction::Request, APPEND) => Said::Appends(ballot(body.get(4..)?)?),
        (Direction::Request, SNAPSHOT) => Said::SendsSnapshot(ballot(body)?),
        (Direction::Answer, APPENDED) => match (asked, body.split_first()?) {
            (Some(Said::Appends(leader)), (1, id)) => Said::Acknowledges(leader, number(id, 16)?),
            _ => return None,
        },
        (Direction::Answer, CONFLICT) => Said::Conflicts,
        (Direction::Answer, HIGHER_VOTE) => Said::KnowsHigher(ballot(body)?),
        // The answer to a pre-vote promises nothing.
        (Direction::Answer, VOTED) if matches!(asked, Some(Said::AsksVote(_))) => {
            Said::Votes(ballot(body)?, *body.get(17)? == 1)
        }
        (Direction::Answer, COMMITTED) => Said::Commits,
        _ => return None,
    })
}

fn ballot(body: &[u8]) -> Option<Ballot> {
    Some((number(body, 0)?, number(body, 8)?))
}

fn number(body: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::HARNESS;

    #[test]
    fn a_vote_is_seen_however_its_bytes_are_cut() {
        let mut bytes = 20_u32.to_le_bytes().to_vec();
        bytes.push(VOTED);
        bytes.extend_from_slice(&7_u64.to_le_bytes());
        bytes.extend_from_slice(&3_u64.to_le_bytes());
        bytes.extend_from_slice(&[0, 1, 0]);
        for cut in 0..bytes.len() {
            let mut tap = Tap::new(HARNESS, HARNESS, Direction::Answer, false);
            tap.asked(Said::AsksVote((7, 3)));
            let mut seen = Vec::new();
            tap.pass(&bytes[..cut], &mut seen);
            tap.pass(&bytes[cut..], &mut seen);
            assert_eq!(seen.iter().map(|seen| seen.said).collect::<Vec<_>>(), [Said::Votes((7, 3), true)]);
        }
        let mut tap = Tap::new(HARNESS, HARNESS, Direction::Answer, false);
        let mut seen = Vec::new();
        tap.pass(&bytes, &mut seen);
        assert!(seen.is_empty(), "a pre-vote is no promise");
    }
}
