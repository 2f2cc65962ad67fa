//! The frames that nodes exchange, and nothing of how they travel.
//!
//! A frame is `[length u32][tag u8][body]`. A stream begins with a hello, which names the version, the
//! mesh, its epoch and both ends; the first request follows at once, so a hello costs no round trip,
//! and a mismatch is answered by a refusal with its reason. Tags are on the wire: never reuse one.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use maillage_host::UnixMillis;
use openraft::raft::{
    AppendEntriesRequest, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

mod greeting;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use greeting::Greeting;
pub(crate) use stream::{FrameReader, FrameWriter, split};

use super::codec::{Decoder, Encode, Malformed};
use super::types::{LogId, TypeConfig, Vote};

/// The version of this protocol. A node speaks only its own.
const VERSION: u8 = 1;
/// The longest frame: a page of entries (1 MiB) or one entry with the longest command, and room.
pub(crate) const MAX_FRAME: usize = 4 << 20;
/// The longest hello, read before anything is known of the peer.
pub(crate) const MAX_HELLO: usize = 256;
/// Entries in one append, as counted on the wire.
const MAX_ENTRIES: usize = 1 << 16;

/// How a stream introduces itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) mesh_id: [u8; 32],
    pub(crate) epoch: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Why the leader did not commit a forwarded command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Not proposed; another attempt may succeed.
    NotProposed,
    /// Perhaps proposed.
    Unknown,
    /// Not proposed, and never will be.
    Invalid(String),
}

/// Everything that is said on a stream.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    Hello(Hello),
    /// Entries, a heartbeat, a commit. With the age of the quorum's last acknowledgement of the
    /// sender, so that a follower knows how fresh what it hears is.
    Append(AppendEntriesRequest<TypeConfig>, Option<Duration>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
    /// A snapshot follows, in pieces.
    Snapshot(Vote),
    Piece(Bytes),
    SnapshotEnd,
    /// A command for the leader, and how long the asker waits.
    Propose(Duration, Bytes),
    /// Asks the leader which index a linearizable read must have applied.
    ReadIndex(Duration),
    /// The sender is there. With what it says of itself; nothing from a node of the first version, which
    /// refuses a body too.
    KeepAlive(Option<Greeting>),

    Appended(Option<LogId>),
    Conflict(LogId),
    HigherVote(Vote),
    Voted(VoteResponse<TypeConfig>),
    Transferred(TransferLeaderResponse<TypeConfig>),
    SnapshotTaken(Vote),
    Committed(u64, Bytes),
    NotLeader(Option<u64>),
    Failed(Failure),
    ReadAt(u64),
    /// The answer to a keep-alive; to one with a body, with the leader's wall clock.
    Heard(Option<UnixMillis>),
    /// The stream is refused; the reason is for people.
    Refused(String),
}

impl Frame {
    /// A word for errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Append(..) => "append",
            Self::Vote(_) => "vote",
            Self::PreVote(_) => "pre-vote",
            Self::Transfer(_) => "transfer",
            Self::Snapshot(_) => "snapshot",
            Self::Piece(_) => "piece",
            Self::SnapshotEnd => "snapshot end",
            Self::Propose(..) => "propose",
            Self::ReadIndex(_) => "read index",
            Self::KeepAlive(_) => "keep-alive",
            Self::Appended(_) => "appended",
            Self::Conflict(_) => "conflict",
            Self::HigherVote(_) => "higher vote",
            Self::Voted(_) => "voted",
            Self::Transferred(_) => "transferred",
            Self::SnapshotTaken(_) => "snapshot taken",
            Self::Committed(..) => "committed",
            Self::NotLeader(_) => "not leader",
            Self::Failed(_) => "failed",
            Self::ReadAt(_) => "read at",
            Self::Heard(_) => "heard",
            Self::Refused(_) => "refused",
        }
    }

    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(hello) => {
                out.put_u8(1);
                out.put_u8(VERSION);
                out.put_slice(&hello.mesh_id);
                out.put_u64_le(hello.epoch);
                out.put_u64_le(hello.from);
                out.put_u64_le(hello.to);
            }
            Self::Append(request, age) => {
                out.put_u8(2);
                out.put_u32_le(age.map_or(u32::MAX, millis));
                put_append(out, request);
            }
            Self::Vote(request) => put_vote_request(out, 3, request),
            Self::PreVote(request) => put_vote_request(out, 4, request),
            Self::Transfer(request) => {
                out.put_u8(5);
                out.put_vote(request.from_leader());
                out.put_u64_le(*request.to_node_id());
                out.put_option_log_id(request.last_log_id());
            }
            Self::Snapshot(vote) => {
                out.put_u8(6);
                out.put_vote(vote);
            }
            Self::Piece(bytes) => {
                out.put_u8(7);
                out.put_slice(bytes);
            }
            Self::SnapshotEnd => out.put_u8(8),
            Self::Propose(wait, command) => {
                out.put_u8(9);
                out.put_u32_le(millis(*wait));
                out.put_slice(command);
            }
            Self::ReadIndex(wait) => {
                out.put_u8(10);
                out.put_u32_le(millis(*wait));
            }
            Self::KeepAlive(greeting) => {
                out.put_u8(11);
                greeting.iter().for_each(|greeting| greeting.encode(out));
            }
            reply => reply.encode_reply(out),
        }
    }

    fn encode_reply(&self, out: &mut BytesMut) {
        match self {
            Self::Appended(matched) => {
                out.put_u8(129);
                out.put_option_log_id(matched.as_ref());
            }
            Self::Conflict(id) => {
                out.put_u8(130);
                out.put_log_id(id);
            }
            Self::HigherVote(vote) => {
                out.put_u8(131);
                out.put_vote(vote);
            }
            Self::Voted(response) => {
                out.put_u8(132);
                out.put_vote(&response.vote);
                out.put_u8(u8::from(response.vote_granted));
                out.put_option_log_id(response.last_log_id.as_ref());
            }
            Self::Transferred(response) => {
                out.put_u8(133);
                match response {
                    Ok(()) => out.put_u8(0),
                    Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                        out.put_u8(1);
                        out.put_vote(expected);
                        out.put_vote(actual);
                    }
                    Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                        out.put_u8(2);
                        out.put_option_log_id(expected.as_ref());
                        out.put_option_log_id(actual.as_ref());
                    }
                }
            }
            Self::SnapshotTaken(vote) => {
                out.put_u8(134);
                out.put_vote(vote);
            }
            Self::Committed(index, outcome) => {
                out.put_u8(135);
                out.put_u64_le(*index);
                out.put_slice(outcome);
            }
            Self::NotLeader(leader) => {
                out.put_u8(136);
                out.put_u8(u8::from(leader.is_some()));
                out.put_u64_le(leader.unwrap_or_default());
            }
            Self::Failed(failure) => {
                out.put_u8(137);
                let (code, text) = match failure {
                    Failure::NotProposed => (1, ""),
                    Failure::Unknown => (2, ""),
                    Failure::Invalid(reason) => (3, reason.as_str()),
                };
                out.put_u8(code);
                out.put_block(text.as_bytes());
            }
            Self::ReadAt(index) => {
                out.put_u8(138);
                out.put_u64_le(*index);
            }
            Self::Heard(clock) => {
                out.put_u8(139);
                clock.iter().for_each(|clock| out.put_u64_le(clock.0));
            }
            Self::Refused(reason) => {
                out.put_u8(140);
                out.put_block(reason.as_bytes());
            }
            // Requests are encoded by `encode`.
            _ => {}
        }
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let tag = decoder.u8()?;
        let frame = match tag {
            1 => {
                if decoder.u8()? != VERSION {
                    return Err(Malformed("hello: of another version"));
                }
                Self::Hello(Hello {
                    mesh_id: decoder.array()?,
                    epoch: decoder.u64()?,
                    from: decoder.u64()?,
                    to: decoder.u64()?,
                })
            }
            2 => {
                let age = Some(decoder.u32()?).filter(|age| *age != u32::MAX);
                Self::Append(append(&mut decoder)?, age.map(|age| Duration::from_millis(age.into())))
            }
            3 => Self::Vote(vote_request(&mut decoder)?),
            4 => Self::PreVote(vote_request(&mut decoder)?),
            5 => {
                let (vote, to) = (decoder.vote()?, decoder.u64()?);
                Self::Transfer(TransferLeaderRequest::new(vote, to, decoder.option_log_id()?))
            }
            6 => Self::Snapshot(decoder.vote()?),
            7 => return Ok(Self::Piece(decoder.rest())),
            8 => Self::SnapshotEnd,
            9 => {
                let wait = Duration::from_millis(decoder.u32()?.into());
                return Ok(Self::Propose(wait, decoder.rest()));
            }
            10 => Self::ReadIndex(Duration::from_millis(decoder.u32()?.into())),
            // Fields that a later version adds behind these are not for this one.
            11 => return Ok(Self::KeepAlive(Greeting::decode(&mut decoder)?)),
            139 => {
                let clock = if decoder.is_empty() { None } else { Some(UnixMillis(decoder.u64()?)) };
                return Ok(Self::Heard(clock));
            }
            135 => {
                let index = decoder.u64()?;
                return Ok(Self::Committed(index, decoder.rest()));
            }
            tag => Self::decode_reply(tag, &mut decoder)?,
        };
        decoder.finish()?;
        Ok(frame)
    }

    fn decode_reply(tag: u8, decoder: &mut Decoder) -> Result<Self, Malformed> {
        Ok(match tag {
            129 => Self::Appended(decoder.option_log_id()?),
            130 => Self::Conflict(decoder.log_id()?),
            131 => Self::HigherVote(decoder.vote()?),
            132 => {
                let (vote, granted) = (decoder.vote()?, decoder.flag()?);
                Self::Voted(VoteResponse { vote, vote_granted: granted, last_log_id: decoder.option_log_id()? })
            }
            133 => Self::Transferred(match decoder.u8()? {
                0 => Ok(()),
                1 => Err(TransferLeaderError::VoteChanged { expected: decoder.vote()?, actual: decoder.vote()? }),
                2 => Err(TransferLeaderError::LogNotFlushed {
                    expected: decoder.option_log_id()?,
                    actual: decoder.option_log_id()?,
                }),
                _ => return Err(Malformed("transfer reply")),
            }),
            134 => Self::SnapshotTaken(decoder.vote()?),
            136 => {
                let (known, leader) = (decoder.flag()?, decoder.u64()?);
                Self::NotLeader(known.then_some(leader))
            }
            137 => {
                let (code, text) = (decoder.u8()?, decoder.text()?);
                Self::Failed(match code {
                    1 => Failure::NotProposed,
                    2 => Failure::Unknown,
                    3 => Failure::Invalid(text),
                    _ => return Err(Malformed("failure")),
                })
            }
            138 => Self::ReadAt(decoder.u64()?),
            140 => Self::Refused(decoder.text()?),
            _ => return Err(Malformed("frame: unknown tag")),
        })
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).min(u32::MAX - 1)
}

fn put_append(out: &mut BytesMut, request: &AppendEntriesRequest<TypeConfig>) {
    out.put_vote(&request.vote);
    out.put_option_log_id(request.prev_log_id.as_ref());
    out.put_option_log_id(request.leader_commit.as_ref());
    out.put_u32_le(u32::try_from(request.entries.len()).unwrap_or(u32::MAX));
    request.entries.iter().for_each(|entry| out.put_entry(entry));
}

fn append(decoder: &mut Decoder) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let (vote, prev_log_id, leader_commit) = (decoder.vote()?, decoder.option_log_id()?, decoder.option_log_id()?);
    let count = decoder.u32()? as usize;
    if count > MAX_ENTRIES {
        return Err(Malformed("append: too many entries"));
    }
    let entries = (0..count).map(|_| decoder.entry()).collect::<Result<_, _>>()?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

fn put_vote_request(out: &mut BytesMut, tag: u8, request: &VoteRequest<TypeConfig>) {
    out.put_u8(tag);
    out.put_vote(&request.vote);
    out.put_option_log_id(request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
}

fn vote_request(decoder: &mut Decoder) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let mut request = VoteRequest::new(decoder.vote()?, decoder.option_log_id()?);
    request.leadership_transfer = decoder.flag()?;
    Ok(request)
}
