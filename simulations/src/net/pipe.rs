//! One direction of one stream: bytes in order, each with the time at which it arrives.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tap::{Direction, Said, Seen, Tap};
use super::{Due, Fabric, Plane};
use crate::world::{Owner, lock};

/// Bytes that a stream takes in before its reader reads (a stream's window, DESIGN 3, made smaller so
/// that back-pressure happens).
const WINDOW: usize = 256 << 10;
/// Bytes accepted at once.
const PIECE: usize = 32 << 10;

enum Segment {
    Bytes(Bytes),
    End,
}

/// See the module.
pub(super) struct Pipe {
    pub(super) from: Owner,
    pub(super) to: Owner,
    pub(super) connection: u64,
    pub(super) plane: Plane,
    segments: VecDeque<(Duration, Segment)>,
    in_flight: usize,
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    ended: bool,
    broken: bool,
    reader_gone: bool,
    writer_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    last_arrival: Duration,
    /// The pipe back, until the far end was told of the stream.
    announce: Option<u64>,
    /// The pipe back, on the pipe of requests.
    pub(super) back: Option<u64>,
    sent: Tap,
    received: Tap,
}

impl Pipe {
    pub(super) fn new(
        (from, to): (Owner, Owner),
        connection: u64,
        plane: Plane,
        announce: Option<u64>,
        direction: Direction,
    ) -> Self {
        Self {
            from,
            to,
            connection,
            plane,
            segments: VecDeque::new(),
            in_flight: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
            ended: false,
            broken: false,
            reader_gone: false,
            writer_gone: false,
            reader: None,
            writer: None,
            last_arrival: Duration::ZERO,
            announce,
            back: announce,
            sent: Tap::new(from, to, direction, false),
            received: Tap::new(from, to, direction, true),
        }
    }

    /// Tells the pipe of answers what was asked.
    pub(super) fn asked(&mut self, said: Said) {
        self.sent.asked(said);
        self.received.asked(said);
    }

    pub(super) fn first_arrival(&self) -> Option<Duration> {
        self.segments.front().map(|(at, _)| *at)
    }

    /// What waits in the pipe arrives at `at` at the earliest.
    pub(super) fn delay_until(&mut self, at: Duration) {
        for (arrival, _) in &mut self.segments {
            *arrival = (*arrival).max(at);
        }
        self.last_arrival = self.last_arrival.max(at);
    }

    /// Both ends get an error from now on.
    pub(super) fn reset(&mut self) {
        self.broken = true;
        // The far end never heard of the stream: it has no half of it.
        self.reader_gone |= self.announce.take().is_some();
        self.segments.clear();
        self.ready.clear();
        self.wake();
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    pub(super) fn is_over(&self) -> bool {
        self.reader_gone && (self.writer_gone || self.broken) && self.announce.is_none()
    }

    /// Hands over what has arrived. Returns the frames seen, and, the first time, the pipe back.
    pub(super) fn deliver(&mut self, now: Duration, alive: bool) -> (Vec<Seen>, Option<u64>) {
        let mut seen = Vec::new();
        let mut arrived = false;
        while self.segments.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, segment)) = self.segments.pop_front() else { break };
            arrived = true;
            match segment {
                Segment::Bytes(bytes) => {
                    self.in_flight -= bytes.len();
                    if alive && !self.reader_gone {
                        if self.plane == Plane::Raft {
                            self.received.pass(&bytes, &mut seen);
                        }
                        self.ready_bytes += bytes.len();
                        self.ready.push_back(bytes);
                    }
                }
                Segment::End => self.ended = true,
            }
        }
        if arrived {
            self.wake();
        }
        (seen, if arrived && alive { self.announce.take() } else { None })
    }
}

impl Fabric {
    pub(super) fn reader(self: &Arc<Self>, id: u64, owner: Owner) -> PipeReader {
        PipeReader { fabric: Arc::clone(self), id, owner }
    }

    pub(super) fn writer(self: &Arc<Self>, id: u64, owner: Owner) -> PipeWriter {
        PipeWriter { fabric: Arc::clone(self), id, owner }
    }
}

/// The receiving half.
pub(super) struct PipeReader {
    fabric: Arc<Fabric>,
    id: u64,
    owner: Owner,
}

/// The sending half.
pub(super) struct PipeWriter {
    fabric: Arc<Fabric>,
    id: u64,
    owner: Owner,
}

impl AsyncRead for PipeReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.fabric.inner);
        let Some(pipe) = inner.pipes.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        if pipe.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let Some(first) = pipe.ready.front_mut() else {
            if pipe.ended {
                return Poll::Ready(Ok(()));
            }
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let len = first.len().min(buf.remaining());
        buf.put_slice(&first[..len]);
        first.advance(len);
        if first.is_empty() {
            pipe.ready.pop_front();
        }
        pipe.ready_bytes -= len;
        if let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let fabric = &self.fabric;
        let now = fabric.world.now();
        let mut inner = lock(&fabric.inner);
        let Some(pipe) = inner.pipes.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if pipe.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.in_flight + pipe.ready_bytes >= WINDOW {
            fabric.world.sometimes("a stream's window was full");
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let piece = &bytes[..bytes.len().min(PIECE)];
        let raft = pipe.plane == Plane::Raft;
        let forged = fabric.mutant.filter(|_| raft).and_then(|mutant| mutant.forge(piece));
        let sent = forged.map_or_else(|| Bytes::copy_from_slice(piece), Bytes::from);
        let mut seen = Vec::new();
        if raft {
            pipe.sent.pass(&sent, &mut seen);
        }
        let (from, to) = (pipe.from, pipe.to);
        fabric.world.event(from.slot, format_args!("send {} {} {}", to.slot, self.id, Digest(&sent)));
        let arrival = inner.arrival(now, from.slot, to.slot, sent.len());
        let Some(pipe) = inner.pipes.get_mut(&self.id) else { return Poll::Pending };
        let arrival = arrival.max(pipe.last_arrival);
        pipe.last_arrival = arrival;
        pipe.in_flight += sent.len();
        pipe.segments.push_back((arrival, Segment::Bytes(sent)));
        inner.schedule(arrival, Due::Deliver(self.id));
        drop(inner);
        seen.iter().for_each(|seen| (fabric.watcher)(seen));
        fabric.changed.notify_one();
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fabric.end_stream(self.id);
        Poll::Ready(Ok(()))
    }
}

impl Fabric {
    fn end_stream(&self, id: u64) {
        let now = self.world.now();
        let mut inner = lock(&self.inner);
        let Some(pipe) = inner.pipes.get_mut(&id) else { return };
        if std::mem::replace(&mut pipe.writer_gone, true) {
            return;
        }
        let (from, to) = (pipe.from.slot, pipe.to.slot);
        let arrival = inner.arrival(now, from, to, 1);
        let Some(pipe) = inner.pipes.get_mut(&id) else { return };
        let arrival = arrival.max(pipe.last_arrival);
        pipe.last_arrival = arrival;
        pipe.segments.push_back((arrival, Segment::End));
        inner.schedule(arrival, Due::Deliver(id));
        drop(inner);
        self.changed.notify_one();
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        // A dead node says nothing any more, not even that it ends.
        if self.fabric.world.is_alive(self.owner) {
            self.fabric.end_stream(self.id);
        } else if let Some(pipe) = lock(&self.fabric.inner).pipes.get_mut(&self.id) {
            pipe.writer_gone = true;
        }
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut inner = lock(&self.fabric.inner);
        let Some(pipe) = inner.pipes.get_mut(&self.id) else { return };
        let alive = self.fabric.world.is_alive(self.owner);
        pipe.reader_gone = true;
        if alive && let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
        if pipe.is_over() {
            inner.pipes.remove(&self.id);
        }
    }
}

/// Bytes as the trace shows them: their number and a hash.
struct Digest<'a>(&'a [u8]);

impl std::fmt::Display for Digest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hash = blake3::hash(self.0);
        let [a, b, c, d, ..] = hash.as_bytes();
        write!(f, "{}:{a:02x}{b:02x}{c:02x}{d:02x}", self.0.len())
    }
}
