//! Frames on a byte stream.

use std::io;

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Frame, MAX_FRAME};
use crate::raft::codec::Malformed;
use crate::raft::links::Duplex;

/// Bytes of the length that stands before a frame.
const LENGTH: usize = 4;
/// The least room in which bytes are read: most frames are a heartbeat or its answer.
const ROOM_MIN: usize = 4 << 10;
/// What a reader allocates at once before bytes arrive, whatever length is declared.
const ROOM_MAX: usize = 32 << 10;

/// Reads frames from a stream.
pub(crate) struct FrameReader {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What has arrived and was not given out.
    arrived: BytesMut,
}

/// Writes frames to a stream, several at a time if wanted.
pub(crate) struct FrameWriter {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    queued: BytesMut,
}

pub(crate) fn split(stream: Duplex) -> (FrameReader, FrameWriter) {
    let reader = FrameReader { reader: stream.reader, arrived: BytesMut::new() };
    (reader, FrameWriter { writer: stream.writer, queued: BytesMut::new() })
}

impl FrameReader {
    /// The next frame, of at most `max` bytes; `None` at a clean end of the stream. Nothing is lost when the future is
    /// dropped.
    ///
    /// # Errors
    /// `InvalidData` when what arrives is no frame: the stream is then useless.
    pub(crate) async fn next(&mut self, max: usize) -> io::Result<Option<Frame>> {
        while self.arrived.len() < LENGTH {
            if self.more(LENGTH).await? == 0 {
                return if self.arrived.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        let [a, b, c, d, ..] = *self.arrived else { unreachable!("four bytes have arrived") };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len == 0 || len > max {
            return Err(Malformed("frame: too long").into());
        }
        while self.arrived.len() < LENGTH + len {
            if self.more(LENGTH + len).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.arrived.advance(LENGTH);
        let frame = if len <= ROOM_MIN {
            // An entry that is kept must not keep the whole room with it.
            let frame = Bytes::copy_from_slice(&self.arrived[..len]);
            self.arrived.advance(len);
            frame
        } else {
            self.arrived.split_to(len).freeze()
        };
        Ok(Some(Frame::decode(frame)?))
    }

    /// Reads some of what makes `wanted` bytes, and more if it is there; 0 at the end of the stream.
    async fn more(&mut self, wanted: usize) -> io::Result<usize> {
        let missing = wanted.saturating_sub(self.arrived.len());
        self.arrived.reserve(missing.clamp(ROOM_MIN, ROOM_MAX));
        self.reader.read_buf(&mut self.arrived).await
    }
}

impl FrameWriter {
    /// Puts a frame behind those that wait to be sent.
    pub(crate) fn queue(&mut self, frame: &Frame) -> io::Result<()> {
        let at = self.queued.len();
        self.queued.put_u32_le(0);
        frame.encode(&mut self.queued);
        let len = self.queued.len() - at - 4;
        if len > MAX_FRAME {
            self.queued.truncate(at);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame ({}) is too long", frame.name())));
        }
        let len = u32::try_from(len).map_err(io::Error::other)?;
        self.queued[at..at + 4].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// Puts bytes that are no frame behind those that wait.
    #[cfg(test)]
    pub(crate) fn queue_raw(&mut self, bytes: &[u8]) {
        self.queued.put_slice(bytes);
    }

    /// Sends what was queued.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.queued).await?;
        self.queued.clear();
        self.writer.flush().await
    }

    pub(crate) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.queue(frame)?;
        self.flush().await
    }

    /// Says that nothing follows.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        self.writer.shutdown().await
    }
}
