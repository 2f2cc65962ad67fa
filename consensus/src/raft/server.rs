//! Our side of the streams that other nodes open.
//!
//! The peer is an authenticated member, yet nothing it sends is believed to be well formed: openraft
//! asserts what a correct leader never violates, so what it could not stomach is refused here, and the
//! stream closed.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{AppendEntriesRequest, StreamAppendError};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

mod check;

use super::group::Inner;
use super::links::Duplex;
use super::snapshot::Incoming;
use super::types::{TypeConfig, Vote};
use super::wire::{Frame, FrameReader, FrameWriter, MAX_FRAME, MAX_HELLO, split};

/// How long a peer may take to say who it is and what it wants.
const FIRST_LIMIT: Duration = Duration::from_secs(5);
/// How long a peer may take between two pieces of a snapshot.
const PIECE_LIMIT: Duration = Duration::from_secs(30);
/// Answers gathered into one write.
const ANSWERS: usize = 64;
/// The longest that a peer may ask us to work on its behalf.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Told to the peer.
    #[error("refused: {0}")]
    Refused(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves one stream from the authenticated node `from`.
pub(crate) async fn serve(inner: &Arc<Inner>, from: u64, stream: Duplex) -> Result<(), ServeError> {
    let (mut reader, mut writer) = split(stream);
    let served = tokio::select! {
        served = dispatch(inner, from, &mut reader, &mut writer) => served,
        // Not a refusal: what was asked may have been done already.
        () = inner.stop.cancelled() => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
    };
    if let Err(ServeError::Refused(reason)) = &served {
        // The peer may be gone already.
        let _ = timeout(FIRST_LIMIT, writer.send(&Frame::Refused((*reason).to_owned()))).await;
    }
    let _ = timeout(FIRST_LIMIT, writer.finish()).await;
    served
}

async fn dispatch(
    inner: &Arc<Inner>,
    from: u64,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<(), ServeError> {
    let Ok(_permit) = inner.streams.try_acquire() else { return Err(ServeError::Refused("too many streams")) };
    greet(inner, from, first(reader, MAX_HELLO).await?)?;
    if inner.halt.reason().is_some() || inner.stop.is_cancelled() {
        return Err(ServeError::Refused("this node has stopped"));
    }
    let raft = &inner.raft;
    let reply = match first(reader, MAX_FRAME).await? {
        Frame::Append(request, age) => return appends(inner, from, (request, age), reader, writer).await,
        Frame::Snapshot(vote) => return snapshot(inner, from, vote, reader, writer).await,
        Frame::Vote(request) => {
            check::vote(&request.vote, from, false)?;
            Frame::Voted(raft.vote(request).await.map_err(io::Error::other)?)
        }
        Frame::PreVote(request) => {
            check::vote(&request.vote, from, false)?;
            Frame::Voted(raft.pre_vote(request).await.map_err(io::Error::other)?)
        }
        Frame::Transfer(request) => {
            check::vote(request.from_leader(), from, true)?;
            Frame::Transferred(raft.handle_transfer_leader(request).await.map_err(io::Error::other)?)
        }
        Frame::Propose(wait, command) => inner.propose_for(from, command, Instant::now() + wait.min(WAIT_MAX)).await,
        Frame::ReadIndex(wait) => inner.read_index_for(Instant::now() + wait.min(WAIT_MAX)).await,
        Frame::KeepAlive(greeting) => inner.keep_alive_from(from, greeting),
        _ => return Err(ServeError::Refused("not a request")),
    };
    writer.send(&reply).await?;
    Ok(())
}

async fn first(reader: &mut FrameReader, max: usize) -> Result<Frame, ServeError> {
    let frame = timeout(FIRST_LIMIT, reader.next(max)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    match frame {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::debug!(%error, "a peer sent what is no frame");
            Err(ServeError::Refused("malformed frame, or of another version"))
        }
        Err(error) => Err(error.into()),
    }
}

fn greet(inner: &Inner, from: u64, frame: Frame) -> Result<(), ServeError> {
    let Frame::Hello(hello) = frame else { return Err(ServeError::Refused("a stream begins with a hello")) };
    if hello.mesh_id != inner.dialer.mesh_id {
        return Err(ServeError::Refused("another mesh"));
    }
    if hello.epoch != inner.dialer.epoch {
        return Err(ServeError::Refused("another epoch of the mesh"));
    }
    if hello.to != inner.dialer.node_id {
        return Err(ServeError::Refused("another node is meant"));
    }
    if hello.from != from {
        return Err(ServeError::Refused("not the node that was authenticated"));
    }
    Ok(())
}

/// An append as it came in: when, and how old the leader's last acknowledgement by a quorum was.
type Arrival = (Instant, Option<Duration>);

/// Serves a replication stream or a heartbeat.
async fn appends(
    inner: &Arc<Inner>,
    from: u64,
    first: (AppendEntriesRequest<TypeConfig>, Option<Duration>),
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<(), ServeError> {
    // openraft reads the requests in a task of its own, so the reader must be handed over whole.
    let (handed, source) = tokio::sync::mpsc::channel(1);
    let arrivals = Arc::new(Mutex::new(VecDeque::new()));
    let end = CancellationToken::new();
    let _end_on_return = end.clone().drop_guard();
    let answers = inner.raft.stream_append(requests(source, Arc::clone(&arrivals), end));
    let mut answers = Box::pin(answers.fuse());
    let feed = feed(first, from, reader, handed);
    tokio::pin!(feed);
    let mut fed = false;
    loop {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            result = &mut feed, if !fed => {
                result?;
                fed = true;
                continue;
            }
        };
        let Some(answer) = answer else { return Ok(()) };
        let mut next = Some(answer);
        let mut gathered = 0;
        while let Some(answer) = next.take() {
            let answer = answer.map_err(io::Error::other)?;
            let arrival = arrivals.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let (Some((at, Some(age))), Ok(_) | Err(StreamAppendError::Conflict(_))) = (arrival, &answer) {
                inner.contact.heard(at, age);
            }
            writer.queue(&match answer {
                Ok(matched) => Frame::Appended(matched),
                Err(StreamAppendError::Conflict(id)) => Frame::Conflict(id),
                Err(StreamAppendError::HigherVote(vote)) => Frame::HigherVote(vote),
            })?;
            gathered += 1;
            if gathered < ANSWERS {
                next = answers.next().now_or_never().flatten();
            }
        }
        writer.flush().await?;
    }
}

type Request = (AppendEntriesRequest<TypeConfig>, Option<Duration>);

/// Reads requests from the stream, checks them, and hands them on; ends with the stream.
async fn feed(
    first: Request,
    from: u64,
    reader: &mut FrameReader,
    handed: tokio::sync::mpsc::Sender<Request>,
) -> Result<(), ServeError> {
    let mut next = Some(first);
    while let Some((request, age)) = next.take() {
        check::append(&request, from)?;
        if handed.send((request, age)).await.is_err() {
            return Ok(());
        }
        next = match reader.next(MAX_FRAME).await? {
            None => None,
            Some(Frame::Append(request, age)) => Some((request, age)),
            Some(_) => return Err(ServeError::Refused("only appends follow an append")),
        };
    }
    Ok(())
}

fn requests(
    source: tokio::sync::mpsc::Receiver<Request>,
    arrivals: Arc<Mutex<VecDeque<Arrival>>>,
    end: CancellationToken,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    futures::stream::unfold((source, arrivals, end), |(mut source, arrivals, end)| async move {
        let (request, age) = tokio::select! {
            () = end.cancelled() => return None,
            next = source.recv() => next?,
        };
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).push_back((Instant::now(), age));
        Some((request, (source, arrivals, end)))
    })
}

/// Receives a snapshot, checks all of it, and only then shows it to openraft: an installation that
/// fails there is fatal.
async fn snapshot(
    inner: &Arc<Inner>,
    from: u64,
    vote: Vote,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<(), ServeError> {
    check::vote(&vote, from, true)?;
    let Ok(_permit) = inner.receiving.try_acquire() else {
        return Err(ServeError::Refused("a snapshot is being received"));
    };
    let mut incoming = Incoming::begin(Arc::clone(&inner.snapshots)).await?;
    let path = incoming.path().to_owned();
    if let Err(error) = receive(&mut incoming, reader).await {
        Incoming::abandon(&inner.snapshots, &path).await;
        return Err(error);
    }
    let file = match incoming.finish().await {
        Ok(file) => file,
        Err(error) => {
            Incoming::abandon(&inner.snapshots, &path).await;
            tracing::warn!(peer = from, %error, "a snapshot was refused");
            return Err(ServeError::Refused("the snapshot is not right"));
        }
    };
    let path = file.0.path.clone();
    let committed = inner.raft.metrics().borrow_watched().local_committed;
    let installed = match check::snapshot(&file.0.head.meta, &vote, committed.as_ref()) {
        Ok(()) => {
            inner.raft.install_full_snapshot(vote, file.into_snapshot()).await.map_err(|e| io::Error::other(e).into())
        }
        Err(refused) => Err(refused),
    };
    // Nothing to remove when it was adopted: it then has another name.
    Incoming::abandon(&inner.snapshots, &path).await;
    writer.send(&Frame::SnapshotTaken(installed?.vote)).await?;
    Ok(())
}

async fn receive(incoming: &mut Incoming, reader: &mut FrameReader) -> Result<(), ServeError> {
    loop {
        let frame = timeout(PIECE_LIMIT, reader.next(MAX_FRAME))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match frame {
            Some(Frame::Piece(piece)) => incoming.push(piece).await?,
            Some(Frame::SnapshotEnd) => return Ok(()),
            Some(_) => return Err(ServeError::Refused("a snapshot consists of pieces")),
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}
