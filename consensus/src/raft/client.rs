//! Our side of the streams that this node opens: openraft's network, and our own requests.
//!
//! Replication is pipelined: one stream carries many appends before the first is answered. Heartbeats
//! have streams of their own, so that no page of entries delays them.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Instant as _, OptionalSend};
use tokio::time::timeout;

mod ledger;
mod pipeline;

pub(crate) use ledger::Ledger;
use pipeline::{AbortOnDrop, Answers, Sent, append_result, send_appends};

use super::halt::Halt;
use super::links::Links;
use super::snapshot::{SnapshotFile, SnapshotStore};
use super::types::{Metrics, Snapshot, TypeConfig, Vote};
use super::wire::{Frame, FrameReader, FrameWriter, Hello, MAX_FRAME, split};

/// The shortest time given to opening a replication stream, whatever the heartbeat: a connection
/// may have to be made first.
const OPEN_MIN: Duration = Duration::from_secs(1);
/// How long one piece of a snapshot may take to be sent.
const PIECE_LIMIT: Duration = Duration::from_secs(30);
/// How long a follower may take to check and install a snapshot of many gigabytes.
const INSTALL_LIMIT: Duration = Duration::from_mins(15);
/// Bytes of a snapshot in one frame.
const SNAPSHOT_PIECE: usize = 256 << 10;

/// Opens streams and introduces this node on them.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) links: Arc<dyn Links>,
    pub(crate) node_id: u64,
    pub(crate) mesh_id: [u8; 32],
    pub(crate) epoch: u64,
}

impl Dialer {
    /// A stream to `target`, with the hello waiting to be sent before the first frame.
    pub(crate) async fn open(&self, target: u64, limit: Duration) -> io::Result<(FrameReader, FrameWriter)> {
        let stream = timeout(limit, self.links.open(target)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let (reader, mut writer) = split(stream);
        let hello = Hello { mesh_id: self.mesh_id, epoch: self.epoch, from: self.node_id, to: target };
        writer.queue(&Frame::Hello(hello))?;
        Ok((reader, writer))
    }

    /// One request, one answer.
    pub(crate) async fn call(&self, target: u64, request: &Frame, limit: Duration) -> io::Result<Frame> {
        let exchange = async {
            let (mut reader, mut writer) = self.open(target, limit).await?;
            writer.send(request).await?;
            answer(&mut reader).await
        };
        timeout(limit, exchange).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

/// The peer refused a stream before it did anything asked on it.
#[derive(Debug, thiserror::Error)]
#[error("refused: {0}")]
pub(crate) struct Refusal(String);

/// Whether an error is a [`Refusal`].
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refusal>())
}

/// The next frame, which must come, and must not be a refusal.
pub(crate) async fn answer(reader: &mut FrameReader) -> io::Result<Frame> {
    match reader.next(MAX_FRAME).await? {
        Some(Frame::Refused(reason)) => Err(io::Error::other(Refusal(reason))),
        Some(frame) => Ok(frame),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What this node, if it leads, knows of its quorum. Filled once openraft runs.
#[derive(Clone, Default)]
pub(crate) struct QuorumView(Arc<OnceLock<WatchReceiverOf<TypeConfig, Metrics>>>);

impl QuorumView {
    pub(crate) fn attach(&self, metrics: WatchReceiverOf<TypeConfig, Metrics>) {
        // A second attachment would be of the same metrics.
        let _ = self.0.set(metrics);
    }

    /// Time since a quorum last acknowledged this node as leader; `None` when it does not lead, or
    /// was never acknowledged.
    pub(crate) fn age(&self) -> Option<Duration> {
        quorum_age(&self.0.get()?.borrow_watched())
    }
}

/// See [`QuorumView::age`].
pub(crate) fn quorum_age(metrics: &Metrics) -> Option<Duration> {
    if !metrics.state.is_leader() {
        return None;
    }
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    if voters.len() == 1 && voters.contains(&metrics.id) {
        return Some(Duration::ZERO);
    }
    metrics.last_quorum_acked.map(|acked| acked.into_inner().elapsed())
}

/// Makes openraft's clients.
pub(crate) struct Network {
    pub(crate) dialer: Dialer,
    pub(crate) quorum: QuorumView,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) halt: Halt,
    pub(crate) ledger: Ledger,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &openraft::EmptyNode) -> Peer {
        Peer {
            target,
            dialer: self.dialer.clone(),
            quorum: self.quorum.clone(),
            snapshots: Arc::clone(&self.snapshots),
            halt: self.halt.clone(),
            ledger: self.ledger.clone(),
        }
    }
}

/// openraft's client of one other node.
pub(crate) struct Peer {
    target: u64,
    dialer: Dialer,
    quorum: QuorumView,
    snapshots: Arc<SnapshotStore>,
    halt: Halt,
    ledger: Ledger,
}

/// The node cannot be reached: openraft waits before it tries again.
fn unreachable(error: &io::Error) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

/// Something went wrong with a node that can be reached: openraft tries again at once, at first.
fn failed(error: &io::Error) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(error))
}

fn unexpected(frame: &Frame) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer ({})", frame.name()))
}

impl Peer {
    async fn call(&self, request: &Frame, option: &RPCOption) -> Result<Frame, RPCError<TypeConfig>> {
        self.dialer.call(self.target, request, option.soft_ttl()).await.map_err(|error| unreachable(&error))
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let frame = Frame::Append(request, self.quorum.age());
        match append_result(self.call(&frame, &option).await?) {
            Ok(Ok(_)) => Ok(AppendEntriesResponse::Success),
            Ok(Err(StreamAppendError::Conflict(_))) => Ok(AppendEntriesResponse::Conflict),
            Ok(Err(StreamAppendError::HigherVote(vote))) => Ok(AppendEntriesResponse::HigherVote(vote)),
            Err(error) => Err(failed(&error)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let limit = option.soft_ttl().max(OPEN_MIN);
            let (reader, writer) = self.dialer.open(self.target, limit).await.map_err(|error| unreachable(&error))?;
            let sent = Arc::new(Sent::default());
            let writing = maillage_host::spawn(send_appends(input, writer, self.quorum.clone(), Arc::clone(&sent)));
            let answers = Answers {
                target: self.target,
                reader,
                sent,
                answered: 0,
                ledger: self.ledger.clone(),
                _writing: AbortOnDrop(writing),
            };
            let stream = futures::stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                match answers.next().await {
                    Ok(None) => None,
                    Ok(Some(Ok(matched))) => Some((Ok(Ok(matched)), Some(answers))),
                    Ok(Some(Err(refusal))) => Some((Ok(Err(refusal)), None)),
                    // A node that answered nothing on this stream refuses us or is going away: trying at once
                    // again would only ask it in a tight loop.
                    Err(error) if answers.answered == 0 => Some((Err(unreachable(&error)), None)),
                    Err(error) => Some((Err(failed(&error)), None)),
                }
            });
            let stream: BoxStream<'s, _> = Box::pin(stream);
            Ok(stream)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(&Frame::Vote(request), &option).await? {
            Frame::Voted(response) => Ok(response),
            other => Err(failed(&unexpected(&other))),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(&Frame::PreVote(request), &option).await? {
            Frame::Voted(response) => Ok(response),
            other => Err(failed(&unexpected(&other))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(&Frame::Transfer(request), &option).await? {
            Frame::Transferred(response) => Ok(response),
            other => Err(failed(&unexpected(&other))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, &snapshot.snapshot) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => {
                    tracing::warn!(target = self.target, %error, "a snapshot was not delivered");
                    Err(StreamingError::Unreachable(Unreachable::from_string(error)))
                }
            }
        }
    }
}

impl Peer {
    /// Sends a snapshot and waits until it is installed. Returns the target's vote.
    async fn send_snapshot(&self, vote: Vote, snapshot: &SnapshotFile) -> io::Result<Vote> {
        let stored = &snapshot.0;
        let file = self.snapshots.open_file(stored).await?;
        let (mut reader, mut writer) = self.dialer.open(self.target, PIECE_LIMIT).await?;
        writer.queue(&Frame::Snapshot(vote))?;
        let (mut at, mut hasher, mut trailer) = (0, blake3::Hasher::new(), Vec::new());
        let content_len = stored.len.saturating_sub(blake3::OUT_LEN as u64);
        while at < stored.len {
            let piece: Bytes = file.read_at(at, SNAPSHOT_PIECE).await?;
            if piece.is_empty() {
                break;
            }
            let of_content = usize::try_from(content_len.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            hasher.update(&piece[..of_content]);
            trailer.extend_from_slice(&piece[of_content..]);
            at += piece.len() as u64;
            writer.queue(&Frame::Piece(piece))?;
            tokio::select! {
                sent = timeout(PIECE_LIMIT, writer.flush()) => sent.map_err(|_| io::ErrorKind::TimedOut)??,
                // The receiver speaks early only to refuse.
                early = answer(&mut reader) => return Err(early.map_or_else(|error| error, |frame| unexpected(&frame))),
            }
        }
        if trailer != hasher.finalize().as_bytes() {
            let corrupt = "the snapshot on disk is corrupt";
            self.halt.halt(corrupt);
            return Err(io::Error::new(io::ErrorKind::InvalidData, corrupt));
        }
        timeout(PIECE_LIMIT, writer.send(&Frame::SnapshotEnd)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        match timeout(INSTALL_LIMIT, answer(&mut reader)).await.map_err(|_| io::ErrorKind::TimedOut)?? {
            Frame::SnapshotTaken(vote) => Ok(vote),
            other => Err(unexpected(&other)),
        }
    }
}
