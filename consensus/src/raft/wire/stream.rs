//! Frames on a byte stream.

use std::io;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::{Frame, MAX_FRAME};
use crate::raft::codec::Malformed;
use crate::raft::links::Duplex;

/// What a reader allocates before bytes arrive, whatever length is declared.
const FIRST_ALLOCATION: usize = 16 << 10;

/// Reads frames from a stream.
pub(crate) struct FrameReader(BufReader<Box<dyn AsyncRead + Send + Unpin>>);

/// Writes frames to a stream, several at a time if wanted.
pub(crate) struct FrameWriter {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    queued: BytesMut,
}

pub(crate) fn split(stream: Duplex) -> (FrameReader, FrameWriter) {
    let reader = FrameReader(BufReader::with_capacity(32 << 10, stream.reader));
    (reader, FrameWriter { writer: stream.writer, queued: BytesMut::new() })
}

impl FrameReader {
    /// The next frame, of at most `max` bytes; `None` at a clean end of the stream.
    ///
    /// # Errors
    /// `InvalidData` when what arrives is no frame: the stream is then useless.
    pub(crate) async fn next(&mut self, max: usize) -> io::Result<Option<Frame>> {
        let mut length = [0; 4];
        let mut read = 0;
        while read < length.len() {
            match self.0.read(&mut length[read..]).await? {
                0 if read == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
        }
        let len = u32::from_le_bytes(length) as usize;
        if len == 0 || len > max {
            return Err(Malformed("frame: too long").into());
        }
        let mut bytes = BytesMut::with_capacity(len.min(FIRST_ALLOCATION));
        let mut body = (&mut self.0).take(len as u64);
        while bytes.len() < len {
            if body.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Some(Frame::decode(bytes.freeze())?))
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
