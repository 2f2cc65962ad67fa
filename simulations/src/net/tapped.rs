//! A tap on one end of a stream whose bytes nobody else can read: QUIC encrypts them.
//!
//! What is written counts as sent, what is read as arrived: a promise must be durable before its bytes
//! are written, and a request is acted upon only after it was read, so the order that the invariants
//! need is kept. Each end taps its own half of what passes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use maillage_consensus::raft::Duplex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Watcher;
use super::tap::{Direction, Tap};
use crate::mutant::Mutant;
use crate::world::{Owner, lock};

/// Who looks at what passes, and whether the wire forges.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) watcher: Arc<Watcher>,
    pub(crate) mutant: Option<Mutant>,
}

impl Listener {
    /// The stream that `own` opened to `far`, tapped.
    pub(crate) fn opened(&self, own: Owner, far: Owner, stream: Duplex) -> Duplex {
        self.tap(Direction::Request, own, far, stream)
    }

    /// The stream that `far` opened to `own`, tapped.
    pub(crate) fn accepted(&self, own: Owner, far: Owner, stream: Duplex) -> Duplex {
        self.tap(Direction::Answer, own, far, stream)
    }

    /// `writes` is what `own` writes.
    fn tap(&self, writes: Direction, own: Owner, far: Owner, stream: Duplex) -> Duplex {
        let reads = match writes {
            Direction::Request => Direction::Answer,
            Direction::Answer => Direction::Request,
        };
        let taps = Taps { sent: Tap::new(own, far, writes, false), received: Tap::new(far, own, reads, true), writes };
        let taps = Arc::new(Mutex::new(taps));
        let reader = TappedReader { inner: stream.reader, taps: Arc::clone(&taps), listener: self.clone() };
        let writer = TappedWriter { inner: stream.writer, taps, listener: self.clone(), forged: Bytes::new() };
        Duplex { reader: Box::new(reader), writer: Box::new(writer) }
    }

    fn sent(&self, taps: &Mutex<Taps>, bytes: &[u8]) {
        let mut seen = Vec::new();
        let mut taps = lock(taps);
        taps.sent.pass(bytes, &mut seen);
        if let (Direction::Request, Some(last)) = (taps.writes, seen.last()) {
            taps.received.asked(last.said);
        }
        drop(taps);
        seen.iter().for_each(|seen| (self.watcher)(seen));
    }

    fn received(&self, taps: &Mutex<Taps>, bytes: &[u8]) {
        let mut seen = Vec::new();
        let mut taps = lock(taps);
        taps.received.pass(bytes, &mut seen);
        if let (Direction::Answer, Some(last)) = (taps.writes, seen.last()) {
            taps.sent.asked(last.said);
        }
        drop(taps);
        seen.iter().for_each(|seen| (self.watcher)(seen));
    }
}

/// Both directions at one end. An answer's meaning depends on what was asked.
struct Taps {
    sent: Tap,
    received: Tap,
    writes: Direction,
}

struct TappedReader {
    inner: Box<dyn AsyncRead + Send + Unpin>,
    taps: Arc<Mutex<Taps>>,
    listener: Listener,
}

impl AsyncRead for TappedReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut *me.inner).poll_read(cx, buf);
        if let Some(new) = buf.filled().get(before..).filter(|new| !new.is_empty()) {
            me.listener.received(&me.taps, new);
        }
        polled
    }
}

struct TappedWriter {
    inner: Box<dyn AsyncWrite + Send + Unpin>,
    taps: Arc<Mutex<Taps>>,
    listener: Listener,
    /// What is still to be written in the place of something that the caller believes to be written.
    forged: Bytes,
}

impl TappedWriter {
    fn poll_forged(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.forged.is_empty() {
            let written = ready!(Pin::new(&mut *self.inner).poll_write(cx, &self.forged))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let (listener, taps) = (&self.listener, &self.taps);
            listener.sent(taps, self.forged.get(..written).unwrap_or_default());
            self.forged.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TappedWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        ready!(me.poll_forged(cx))?;
        if let Some(forged) = me.listener.mutant.and_then(|mutant| mutant.forge(bytes)) {
            me.forged = forged.into();
            // What does not fit now goes before anything else.
            return match me.poll_forged(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
            };
        }
        let written = ready!(Pin::new(&mut *me.inner).poll_write(cx, bytes))?;
        me.listener.sent(&me.taps, bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        ready!(me.poll_forged(cx))?;
        Pin::new(&mut *me.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        ready!(me.poll_forged(cx))?;
        Pin::new(&mut *me.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::{Said, Seen};

    fn owner(slot: u32) -> Owner {
        Owner { slot, incarnation: 1 }
    }

    fn duplex(stream: tokio::io::DuplexStream) -> Duplex {
        let (reader, writer) = tokio::io::split(stream);
        Duplex { reader: Box::new(reader), writer: Box::new(writer) }
    }

    fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 1).expect("short");
        [&len.to_le_bytes()[..], &[tag], body].concat()
    }

    fn ballot(term: u64, node: u64) -> Vec<u8> {
        [term.to_le_bytes(), node.to_le_bytes()].concat()
    }

    /// One stream with a tap at each end, a few bytes wide, over which `request` goes and `answer` comes
    /// back; what was seen, and what the asker read.
    async fn exchange(mutant: Option<Mutant>, request: Vec<u8>, answer: Vec<u8>) -> (Vec<Seen>, Vec<u8>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let watcher: Watcher = Box::new(move |passed| lock(&sink).push(*passed));
        let listener = Listener { watcher: Arc::new(watcher), mutant };
        let (near, far) = tokio::io::duplex(7);
        let mut asker = listener.opened(owner(1), owner(2), duplex(near));
        let mut asked = listener.accepted(owner(2), owner(1), duplex(far));
        let asking = async {
            asker.writer.write_all(&request).await.expect("ask");
            let mut all = Vec::new();
            asker.reader.read_to_end(&mut all).await.expect("hear");
            all
        };
        let answering = async {
            let mut heard = vec![0; request.len()];
            asked.reader.read_exact(&mut heard).await.expect("hear");
            asked.writer.write_all(&answer).await.expect("answer");
            asked.writer.shutdown().await.expect("end");
            drop(asked);
            heard
        };
        let (all, heard) = tokio::join!(asking, answering);
        assert_eq!(heard, request);
        let seen = lock(&seen).clone();
        (seen, all)
    }

    #[tokio::test]
    async fn a_vote_is_seen_when_it_is_written_and_again_when_it_is_read() {
        let request = framed(3, &[&ballot(7, 1)[..], &[0]].concat());
        let answer = framed(132, &[&ballot(7, 1)[..], &[0, 1, 0]].concat());
        let (seen, all) = exchange(None, request, answer.clone()).await;
        assert_eq!(all, answer);
        let of = |said: Said| -> Vec<(u32, bool)> {
            seen.iter().filter(|seen| seen.said == said).map(|seen| (seen.from.slot, seen.arrived)).collect()
        };
        assert_eq!(of(Said::AsksVote((7, 1))), [(1, false), (1, true)]);
        assert_eq!(of(Said::Votes((7, 1), true)), [(2, false), (2, true)]);
        assert_eq!(seen.len(), 4);
    }

    #[tokio::test]
    async fn a_forged_refusal_arrives_whole_though_it_is_longer_than_the_true_one() {
        let request = framed(2, &[&[0; 4][..], &ballot(7, 1), &[0]].concat());
        let refusal = framed(130, &[&ballot(7, 1)[..], &9_u64.to_le_bytes()].concat());
        let (seen, all) = exchange(Some(Mutant::RefusalsForged), request, refusal.clone()).await;
        assert_eq!(all.len(), refusal.len() + 1);
        let said: Vec<Said> = seen.iter().filter(|seen| seen.from.slot == 2).map(|seen| seen.said).collect();
        assert_eq!(said, [Said::Acknowledges((7, 1), 9); 2]);
    }
}
