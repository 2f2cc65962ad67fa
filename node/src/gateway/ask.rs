//! Asking a centre: one question on a stream of its own, and no longer than it gives a sign of life.

use std::io;

use maillage_consensus::raft::Duplex;
use maillage_transport::frame::{self, ReadFrameError, WriteFrameError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::SILENT_MAX;
use super::lines::Lines;
use super::wire::{self, ASK_MAX, Ask, FrameError, REPLY_MAX, Reply};

/// Why a question has no answer. It may have taken effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No sign of life in time.
    #[error("it said nothing for {} s", SILENT_MAX.as_secs())]
    Silent,
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    /// A frame could not be read.
    #[error(transparent)]
    Read(#[from] ReadFrameError),
    /// A frame could not be written.
    #[error(transparent)]
    Write(#[from] WriteFrameError),
    /// What came is no answer.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It closed the stream instead.
    #[error("it closed the stream without an answer")]
    Closed,
    /// It answered another question.
    #[error("it gave another question's answer")]
    Unexpected,
    /// It cannot say now.
    #[error("it cannot say now: {0}")]
    NotNow(String),
}

/// Asks a centre, and waits for its answer.
///
/// # Errors
/// [`AskError`].
pub(crate) async fn ask(lines: &dyn Lines, centre: u64, ask: &Ask) -> Result<Reply, AskError> {
    let mut line = open(lines, centre, ask).await?;
    within(line.writer.shutdown()).await??;
    match answer(&mut line.reader).await? {
        Reply::NotNow { why } => Err(AskError::NotNow(why.to_string())),
        reply => Ok(reply),
    }
}

/// Opens a stream to a centre with a question on it.
///
/// # Errors
/// [`AskError`].
pub(crate) async fn open(lines: &dyn Lines, centre: u64, ask: &Ask) -> Result<Duplex, AskError> {
    let mut line = within(lines.open(centre)).await??;
    within(write(&mut line.writer, &wire::encode(ask)?)).await??;
    Ok(line)
}

/// The next answer. What says only that it is being worked at is waited through.
///
/// # Errors
/// [`AskError`].
pub(crate) async fn answer(reader: &mut (impl AsyncRead + Unpin)) -> Result<Reply, AskError> {
    loop {
        let frame = within(frame::read(reader, REPLY_MAX)).await??.ok_or(AskError::Closed)?;
        match wire::decode(&frame)? {
            Reply::Working => {}
            reply => return Ok(reply),
        }
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), WriteFrameError> {
    frame::write(writer, bytes, ASK_MAX).await?;
    writer.flush().await.map_err(WriteFrameError::Io)
}

async fn within<T>(what: impl Future<Output = T>) -> Result<T, AskError> {
    timeout(SILENT_MAX, what).await.map_err(|_| AskError::Silent)
}
