//! The holding side: answers requests for chunks and manifests, within bounds.
//!
//! A task accepts connections and keeps the time of those who wait, one task a connection accepts streams, one task
//! a stream answers. An answer holds its [`Places`] from before the first read of the disk until the asker has
//! acknowledged the last byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::places::{Limits, Places};
use super::wire::{HEADER_LEN, Header, REQUEST_LEN, Request, class_of};
use super::{CHUNK_LEN_MAX, ChunkSource, Class, OBJECT_LEN_MAX};
use crate::{Accepted, Incoming};

/// Time for a request's 38 bytes to arrive once its stream is open.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Time for an asker to take an answer. A chunk in this time is 35 kB/s, a path on which nobody reads.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// More for a manifest of full length.
const LARGE_ANSWER_DEADLINE: Duration = Duration::from_secs(300);

/// Stream error code that tells the asker that the holder gives the request up.
const GAVE_UP: quinn::VarInt = quinn::VarInt::from_u32(1);

/// One connection being served.
struct Serving {
    peer: PeerId,
    source: Arc<dyn ChunkSource>,
    places: Arc<Places>,
    /// Of the connection, among those of the node.
    number: u64,
    /// Falls with each answer, so that answers go out one after another within their class: the asker
    /// gets the first early and asks on, instead of getting all late and at once.
    rank: AtomicI32,
}

/// Serves `source` on the connections that come, until no more can come.
pub async fn serve(mut incoming: Accepted, source: Arc<dyn ChunkSource>, limits: Limits) {
    let places = Arc::new(Places::new(limits));
    let accepting = async {
        let mut number = 0;
        while let Some(Incoming { peer, connection, .. }) = incoming.recv().await {
            number += 1;
            let (source, places) = (Arc::clone(&source), Arc::clone(&places));
            let serving = Arc::new(Serving { peer, source, places, number, rank: AtomicI32::new(0) });
            // The task ends with the connection, which the endpoint closes at the latest when it is closed.
            drop(maillage_host::spawn(serve_connection(serving, connection)));
        }
    };
    tokio::select! {
        () = accepting => {}
        never = places.keep_time() => match never {},
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
        let mut class = request.class;
        let mut place = loop {
            tokio::select! {
                biased;
                place = self.places.take(self.number, class, len_max) => break place,
                higher = rises(&mut recv, class) => class = higher,
                // An asker that gives up while it waits for a place frees it at once.
                _ = send.stopped() => return Ok(()),
            }
        };
        let (header, bytes) = self.look_up(&request, len_max).await;
        // Fails when the asker has gone, which the write tells as well.
        let _ = send.set_priority(self.rank(class));
        let deadline = if len_max > CHUNK_LEN_MAX { LARGE_ANSWER_DEADLINE } else { ANSWER_DEADLINE };
        let written = async {
            write(&mut send, header, bytes).await?;
            loop {
                tokio::select! {
                    biased;
                    // It has arrived: only then are its places free.
                    _ = send.stopped() => return Ok(()),
                    higher = rises(&mut recv, class) => {
                        class = higher;
                        place.rise(class);
                        let _ = send.set_priority(self.rank(class));
                    }
                }
            }
        };
        match timeout(deadline, written).await {
            Ok(written) => written,
            Err(_) => {
                // Dropping the stream would finish it and let the rest drain: it is reset instead.
                let _ = send.reset(GAVE_UP);
                Err(AnswerError::SlowAnswer)
            }
        }
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

    /// A higher class above a lower one, earlier above later. Wraps after half a billion answers, which then
    /// get a wrong order among those in flight, once.
    fn rank(&self, class: Class) -> i32 {
        const BAND: i32 = 1 << 29;
        let later = self.rank.fetch_add(1, Ordering::Relaxed).rem_euclid(BAND);
        let bands = match class {
            Class::Reader => 3,
            Class::Prefetch => 2,
            Class::Copy => 1,
            Class::Repair => 0,
        };
        bands * BAND - later
    }
}

/// The next higher class that the asker says. What is no higher ends the listening.
async fn rises(recv: &mut quinn::RecvStream, class: Class) -> Class {
    let mut byte = [0];
    if let Ok(Some(1)) = recv.read(&mut byte).await
        && class_of(byte[0]) < class
    {
        return class_of(byte[0]);
    }
    std::future::pending().await
}

/// Writes an answer.
async fn write(send: &mut quinn::SendStream, header: Header, bytes: Bytes) -> Result<(), AnswerError> {
    let header: [u8; HEADER_LEN] = header.encode();
    send.write_all_chunks(&mut [Bytes::copy_from_slice(&header), bytes]).await?;
    // Fails only when the asker has stopped the stream.
    let _ = send.finish();
    Ok(())
}
