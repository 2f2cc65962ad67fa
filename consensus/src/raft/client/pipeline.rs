//! The two halves of a replication stream: requests go out without waiting for answers, and answers
//! come back in the same order.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Ledger, QuorumView, Refusal, unexpected};
use crate::raft::types::{LeaderId, TypeConfig};
use crate::raft::wire::{Frame, FrameReader, FrameWriter, MAX_FRAME};

/// A replication stream with requests unanswered for this long, twice over, is given up.
const STALL: Duration = Duration::from_secs(3);

/// What the sending half of a replication stream has done.
#[derive(Default)]
pub(super) struct Sent {
    requests: AtomicU64,
    /// openraft has no more requests for this stream.
    ended: AtomicBool,
    /// In whose name they are.
    leader: OnceLock<LeaderId>,
}

pub(super) async fn send_appends<S>(mut input: S, mut writer: FrameWriter, quorum: QuorumView, sent: Arc<Sent>)
where
    S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    while let Some(request) = input.next().await {
        // All requests of a stream are of one leadership.
        sent.leader.get_or_init(|| request.vote.leader_id);
        sent.requests.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = writer.send(&Frame::Append(request, quorum.age())).await {
            tracing::debug!(%error, "a replication stream broke");
            return;
        }
    }
    sent.ended.store(true, Ordering::Release);
    // If it fails, the reading half finds out.
    let _ = writer.finish().await;
}

pub(super) struct AbortOnDrop(pub(super) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The reading half of a replication stream.
pub(super) struct Answers {
    pub(super) target: u64,
    pub(super) reader: FrameReader,
    pub(super) sent: Arc<Sent>,
    pub(super) answered: u64,
    pub(super) ledger: Ledger,
    pub(super) _writing: AbortOnDrop,
}

impl Answers {
    /// The next answer; `None` when every request was answered and there are no more.
    pub(super) async fn next(&mut self) -> io::Result<Option<StreamAppendResult<TypeConfig>>> {
        let reading = self.reader.next(MAX_FRAME);
        tokio::pin!(reading);
        let mut waited = false;
        let frame = loop {
            match timeout(STALL, &mut reading).await {
                Ok(frame) => break frame?,
                Err(_) => {
                    let waits = self.sent.requests.load(Ordering::Acquire) > self.answered;
                    if waits && waited {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    waited = waits;
                }
            }
        };
        let Some(frame) = frame else {
            // A stream that served all its requests ends so; reporting that as an error would make
            // openraft back off.
            let complete =
                self.sent.ended.load(Ordering::Acquire) && self.sent.requests.load(Ordering::Acquire) == self.answered;
            return if complete { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        };
        self.answered += 1;
        let result = append_result(frame)?;
        if let Some(leader) = self.sent.leader.get() {
            self.ledger.check(self.target, *leader, &result)?;
        }
        Ok(Some(result))
    }
}

pub(super) fn append_result(frame: Frame) -> io::Result<StreamAppendResult<TypeConfig>> {
    match frame {
        Frame::Appended(matched) => Ok(Ok(matched)),
        Frame::Conflict(id) => Ok(Err(StreamAppendError::Conflict(id))),
        Frame::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
        Frame::Refused(reason) => Err(io::Error::other(Refusal(reason))),
        other => Err(unexpected(&other)),
    }
}
