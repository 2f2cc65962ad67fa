//! A quinn connection as a libp2p stream multiplexer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::{BoxFuture, FutureExt as _};
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::StreamMuxerEvent;

type Opened = Result<(quinn::SendStream, quinn::RecvStream), quinn::ConnectionError>;

/// Substreams that a swarm holds open are few: one a protocol.
pub(super) struct Muxer {
    connection: quinn::Connection,
    inbound: Option<BoxFuture<'static, Opened>>,
    outbound: Option<BoxFuture<'static, Opened>>,
    closing: Option<BoxFuture<'static, ()>>,
}

impl Muxer {
    pub(super) fn new(connection: quinn::Connection) -> Self {
        Self { connection, inbound: None, outbound: None, closing: None }
    }
}

impl Drop for Muxer {
    /// The endpoint holds a handle of the connection too, so dropping ours would leave it open.
    fn drop(&mut self) {
        self.connection.close(0u32.into(), b"");
    }
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = io::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let connection = self.connection.clone();
        let opening = self.inbound.get_or_insert_with(|| async move { connection.accept_bi().await }.boxed());
        let opened = ready!(opening.poll_unpin(cx));
        self.inbound = None;
        Poll::Ready(opened.map(Substream::new).map_err(io::Error::from))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let connection = self.connection.clone();
        let opening = self.outbound.get_or_insert_with(|| async move { connection.open_bi().await }.boxed());
        let opened = ready!(opening.poll_unpin(cx));
        self.outbound = None;
        Poll::Ready(opened.map(Substream::new).map_err(io::Error::from))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection.clone();
        let closing = self.closing.get_or_insert_with(|| {
            connection.close(0u32.into(), b"");
            async move { drop(connection.closed().await) }.boxed()
        });
        closing.poll_unpin(cx).map(Ok)
    }

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        // The connection is driven by its own task, and a change of address is none of the swarm's.
        Poll::Pending
    }
}

/// Both directions of one stream.
pub(super) struct Substream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    is_finished: bool,
}

impl Substream {
    fn new((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Self { send, recv, is_finished: false }
    }
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buffer)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Closing twice is allowed here and an error in quinn.
        if !std::mem::replace(&mut self.is_finished, true) {
            self.send.finish().map_err(io::Error::from)?;
        }
        Poll::Ready(Ok(()))
    }
}
