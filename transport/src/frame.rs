//! Frames on a stream: a length of 4 bytes, big-endian, then that many bytes.
//!
//! The reader states the most it will take. It never believes a length: memory grows with what has
//! arrived, in steps, so that a peer which announces much and sends little holds little.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes of the length before each frame.
pub const HEADER_LEN: usize = 4;

/// How far memory may run ahead of what has arrived.
const STEP_BYTES: usize = 64 << 10;

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFrameError {
    /// The frame is longer than the reader takes. The stream is of no use after this.
    #[error("frame of {len} bytes is longer than {max}")]
    TooLong {
        /// What was announced.
        len: usize,
        /// What is taken.
        max: usize,
    },
    /// The stream ended within a frame.
    #[error("stream ended within a frame")]
    Truncated,
    /// The stream failed.
    #[error("stream failed: {0}")]
    Io(#[source] io::Error),
}

/// Why a frame could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteFrameError {
    /// The frame is longer than its length field can say, or than the peer takes.
    #[error("frame of {len} bytes is longer than {max}")]
    TooLong {
        /// The frame's length.
        len: usize,
        /// What is taken.
        max: usize,
    },
    /// The stream failed.
    #[error("stream failed: {0}")]
    Io(#[source] io::Error),
}

/// The next frame; `None` when the stream ends before one begins.
///
/// Not cancel safe: a read that is given up loses its place in the stream.
///
/// # Errors
/// See [`ReadFrameError`].
pub async fn read(reader: &mut (impl AsyncRead + Unpin), max: usize) -> Result<Option<Bytes>, ReadFrameError> {
    let mut header = BytesMut::with_capacity(HEADER_LEN);
    fill(reader, &mut header, HEADER_LEN).await?;
    let Ok(header) = <[u8; HEADER_LEN]>::try_from(&header[..]) else {
        return if header.is_empty() { Ok(None) } else { Err(ReadFrameError::Truncated) };
    };
    let len = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if len > max {
        return Err(ReadFrameError::TooLong { len, max });
    }
    let mut frame = BytesMut::new();
    fill(reader, &mut frame, len).await?;
    if frame.len() < len { Err(ReadFrameError::Truncated) } else { Ok(Some(frame.freeze())) }
}

/// Writes a frame. Flushing is the caller's.
///
/// # Errors
/// See [`WriteFrameError`].
pub async fn write(writer: &mut (impl AsyncWrite + Unpin), frame: &[u8], max: usize) -> Result<(), WriteFrameError> {
    let header = header(frame.len(), max)?;
    writer.write_all(&header).await.map_err(WriteFrameError::Io)?;
    writer.write_all(frame).await.map_err(WriteFrameError::Io)
}

/// The header of a frame of `len` bytes, for those who write header and body in one go.
///
/// # Errors
/// [`WriteFrameError::TooLong`] only.
pub fn header(len: usize, max: usize) -> Result<[u8; HEADER_LEN], WriteFrameError> {
    match u32::try_from(len) {
        Ok(short) if len <= max => Ok(short.to_be_bytes()),
        _ => Err(WriteFrameError::TooLong { len, max }),
    }
}

/// Reads until `buffer` holds `len` bytes or the stream ends.
async fn fill(reader: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut, len: usize) -> Result<(), ReadFrameError> {
    while buffer.len() < len {
        let step = (len - buffer.len()).min(STEP_BYTES);
        buffer.reserve(step);
        let mut limited = (&mut *reader).take(u64::try_from(step).unwrap_or(u64::MAX));
        if limited.read_buf(buffer).await.map_err(ReadFrameError::Io)? == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use proptest::test_runner::TestCaseError;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(future)
    }

    proptest! {
        #[test]
        fn frames_come_back_in_order(frames: Vec<Vec<u8>>) {
            run(async {
                let mut stream = Vec::new();
                for frame in &frames {
                    write(&mut stream, frame, usize::MAX).await.map_err(|e| TestCaseError::fail(e.to_string()))?;
                }
                let mut reader = &stream[..];
                for frame in &frames {
                    let read = read(&mut reader, 1 << 20).await.map_err(|e| TestCaseError::fail(e.to_string()))?;
                    prop_assert_eq!(read.as_deref(), Some(&frame[..]));
                }
                prop_assert!(matches!(read(&mut reader, 1 << 20).await, Ok(None)));
                Ok(())
            })?;
        }

        #[test]
        fn garbage_neither_panics_nor_grows(garbage: Vec<u8>, max in any::<u16>()) {
            run(async {
                let mut reader = &garbage[..];
                while let Ok(Some(frame)) = read(&mut reader, usize::from(max)).await {
                    prop_assert!(frame.len() <= usize::from(max));
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_any_body() {
        let mut reader = &[0xff, 0xff, 0xff, 0xff][..];
        assert!(matches!(run(read(&mut reader, 100)), Err(ReadFrameError::TooLong { max: 100, .. })));
        assert!(matches!(header(101, 100), Err(WriteFrameError::TooLong { len: 101, max: 100 })));
    }

    #[test]
    fn memory_runs_ahead_of_what_arrived_by_a_step_only() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        run(async {
            far.write_all(&u32::MAX.to_be_bytes()[..]).await.expect("write");
            far.write_all(b"ten bytes.").await.expect("write");
            drop(far);
            let mut buffer = BytesMut::new();
            let mut header = [0; HEADER_LEN];
            near.read_exact(&mut header).await.expect("read");
            fill(&mut near, &mut buffer, usize::MAX).await.expect("fill");
            assert_eq!(&buffer[..], b"ten bytes.");
            assert!(buffer.capacity() <= 2 * STEP_BYTES);
        });
    }

    #[test]
    fn a_cut_frame_is_told_from_a_clean_end() {
        for cut in 1..7 {
            let stream = [0, 0, 0, 3, b'a', b'b', b'c'];
            assert!(matches!(run(read(&mut &stream[..cut], 10)), Err(ReadFrameError::Truncated)), "cut at {cut}");
        }
    }
}
