//! The holding side: answers requests for chunks and manifests, within bounds.
//!
//! A task accepts connections, one task a connection accepts streams, one task a stream answers. An
//! answer holds its places (of its connection, of its class, of the node) from before the first read of
//! the disk until the asker has acknowledged the last byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::wire::{HEADER_LEN, Header, REQUEST_LEN, Request};
use super::{CHUNK_LEN_MAX, ChunkSource, Class, IN_FLIGHT_MAX, OBJECT_LEN_MAX};
use crate::{Accepted, Incoming};

/// Time for a request's 38 bytes to arrive once its stream is open.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Time for an asker to take an answer. A chunk in this time is 35 kB/s, a path on which nobody reads.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// More for a manifest of full length.
const LARGE_ANSWER_DEADLINE: Duration = Duration::from_secs(300);

/// Stream error code that tells the asker that the holder gives the request up.
const GAVE_UP: quinn::VarInt = quinn::VarInt::from_u32(1);

/// How much is served at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Answers in flight on a connection.
    pub per_connection: usize,
    /// Of those, for the background class.
    pub background_per_connection: usize,
    /// Answers in flight in the node; memory is at most this many chunks.
    pub total: usize,
    /// Of those, for the background class.
    pub background_total: usize,
    /// Answers that may be longer than a chunk, in the node; each may hold 64 MiB.
    pub large_total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_connection: IN_FLIGHT_MAX,
            background_per_connection: IN_FLIGHT_MAX / 2,
            total: 64,
            background_total: 32,
            large_total: 4,
        }
    }
}

/// The places of the node.
struct Places {
    total: Semaphore,
    background: Semaphore,
    large: Semaphore,
}

/// One connection being served.
struct Serving {
    peer: PeerId,
    source: Arc<dyn ChunkSource>,
    node: Arc<Places>,
    own: Semaphore,
    own_background: Semaphore,
    /// Falls with each answer, so that answers go out one after another within their class: the asker
    /// gets the first early and asks on, instead of getting all eight late and at once.
    rank: AtomicI32,
}

/// Serves `source` on the connections that come, until no more can come.
pub async fn serve(mut incoming: Accepted, source: Arc<dyn ChunkSource>, limits: Limits) {
    let node = Arc::new(Places {
        total: Semaphore::new(limits.total),
        background: Semaphore::new(limits.background_total),
        large: Semaphore::new(limits.large_total),
    });
    while let Some(Incoming { peer, connection, .. }) = incoming.recv().await {
        let serving = Arc::new(Serving {
            peer,
            source: Arc::clone(&source),
            node: Arc::clone(&node),
            own: Semaphore::new(limits.per_connection),
            own_background: Semaphore::new(limits.background_per_connection),
            rank: AtomicI32::new(0),
        });
        // The task ends with the connection, which the endpoint closes at the latest when it is closed.
        drop(maillage_host::spawn(serve_connection(serving, connection)));
    }
}

async fn serve_connection(serving: Arc<Serving>, connection: quinn::Connection) {
    let mut answers: Vec<AbortHandle> = Vec::new();
    // Streams are bounded by the transport's limit, and so are these tasks.
    while let Ok((send, recv)) = connection.accept_bi().await {
        answers.retain(|task| !task.is_finished());
        let serving = Arc::clone(&serving);
        let answer = async move {
            if let Err(error) = serving.answer(send, recv).await {
                tracing::debug!(peer = %serving.peer, %error, "gave up an answer");
            }
        };
        answers.push(maillage_host::spawn(answer).abort_handle());
    }
    answers.iter().for_each(AbortHandle::abort);
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("request is malformed")]
    Malformed,
    #[error("request came too slowly")]
    SlowRequest,
    #[error("answer was taken too slowly")]
    SlowAnswer,
    #[error("stream was given up: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("places are closed: {0}")]
    Places(#[from] AcquireError),
}

impl Serving {
    async fn answer(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) -> Result<(), AnswerError> {
        let mut request = [0; REQUEST_LEN];
        match timeout(REQUEST_DEADLINE, recv.read_exact(&mut request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(AnswerError::Malformed),
            Err(_) => return Err(AnswerError::SlowRequest),
        }
        let request = Request::decode(&request).ok_or(AnswerError::Malformed)?;
        let len_max = usize::try_from(request.len_max).unwrap_or(usize::MAX).min(OBJECT_LEN_MAX);
        let is_large = len_max > CHUNK_LEN_MAX;
        // An asker that gives up while it waits for a place frees it at once.
        let _places = tokio::select! {
            places = self.places(request.class, is_large) => places?,
            _ = send.stopped() => return Ok(()),
        };
        let (header, bytes) = self.look_up(&request, len_max).await;
        // Fails when the asker has gone, which the write tells as well.
        let _ = send.set_priority(self.rank(request.class));
        let deadline = if is_large { LARGE_ANSWER_DEADLINE } else { ANSWER_DEADLINE };
        match timeout(deadline, write(&mut send, header, bytes)).await {
            Ok(written) => written,
            Err(_) => {
                // Dropping the stream would finish it and let the rest drain: it is reset instead.
                let _ = send.reset(GAVE_UP);
                Err(AnswerError::SlowAnswer)
            }
        }
    }

    /// Waits for the places of an answer: narrowest first, so that nobody waits while holding a place
    /// that others could use, except one behind its own kind.
    async fn places(&self, class: Class, is_large: bool) -> Result<Vec<SemaphorePermit<'_>>, AcquireError> {
        let mut wanted = Vec::with_capacity(5);
        if class == Class::Background {
            wanted.extend([&self.own_background, &self.node.background]);
        }
        if is_large {
            wanted.push(&self.node.large);
        }
        wanted.extend([&self.own, &self.node.total]);
        let mut places = Vec::with_capacity(wanted.len());
        for semaphore in wanted {
            places.push(semaphore.acquire().await?);
        }
        Ok(places)
    }

    async fn look_up(&self, request: &Request, len_max: usize) -> (Header, Bytes) {
        match self.source.read(request.hash).await {
            Ok(Some(bytes)) => match u32::try_from(bytes.len()) {
                Ok(len) if bytes.len() <= len_max => (Header::Found { len }, bytes),
                len => (Header::TooLong { len: len.unwrap_or(u32::MAX) }, Bytes::new()),
            },
            Ok(None) => (Header::Absent, Bytes::new()),
            Err(error) => {
                tracing::warn!(peer = %self.peer, hash = %request.hash, %error, "could not read a chunk to serve it");
                (Header::Failed, Bytes::new())
            }
        }
    }

    /// Urgent above background, earlier above later. Wraps after a billion answers, which then get a
    /// wrong order among eight, once.
    fn rank(&self, class: Class) -> i32 {
        const HALF: i32 = 1 << 30;
        let later = self.rank.fetch_add(1, Ordering::Relaxed).rem_euclid(HALF);
        match class {
            Class::Urgent => HALF - later,
            Class::Background => -later,
        }
    }
}

/// Writes an answer and waits until it has arrived: only then are its places free.
async fn write(send: &mut quinn::SendStream, header: Header, bytes: Bytes) -> Result<(), AnswerError> {
    let header: [u8; HEADER_LEN] = header.encode();
    send.write_all_chunks(&mut [Bytes::copy_from_slice(&header), bytes]).await?;
    // Fails only when the asker has stopped the stream.
    if send.finish().is_ok() {
        let _ = send.stopped().await;
    }
    Ok(())
}
