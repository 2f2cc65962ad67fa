//! Asking a centre: one question on a stream of its own, and no longer than it gives a sign of life.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use maillage_consensus::raft::Duplex;
use maillage_transport::frame::{self, ReadFrameError, WriteFrameError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::SILENT_MAX;
use super::lines::Lines;
use super::wire::{self, ASK_MAX, Ask, FrameError, REPLY_MAX, Reply};

/// A centre that has not answered by then waits for what does not come, though it says that it is at it. The most that is
/// asked at once takes some seconds, and more where manifests are to be had over slow lines first.
const ANSWERED_WITHIN: Duration = Duration::from_secs(300);

/// Why a question has no answer. It may have taken effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No sign of life in time.
    #[error("it said nothing for {} s", SILENT_MAX.as_secs())]
    Silent,
    /// Signs of life, and nothing else.
    #[error("it gave no answer in {} s", ANSWERED_WITHIN.as_secs())]
    Unanswered,
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
    let answered = timeout(ANSWERED_WITHIN, answer(&mut line.reader)).await.map_err(|_| AskError::Unanswered)?;
    match answered? {
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
pub(crate) async fn answer<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Reply, AskError> {
    let mut listening = Listening { reader, until: Box::pin(sleep(SILENT_MAX)) };
    loop {
        let frame = match frame::read(&mut listening, REPLY_MAX).await {
            Err(ReadFrameError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => return Err(AskError::Silent),
            read => read?.ok_or(AskError::Closed)?,
        };
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

/// What a centre says, for as long as it is not silent: each byte is a sign of life, since a long answer takes its time on
/// a slow line.
struct Listening<'a, R> {
    reader: &'a mut R,
    until: Pin<Box<Sleep>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Listening<'_, R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(read) = Pin::new(&mut *this.reader).poll_read(cx, buffer) {
            this.until.as_mut().reset(Instant::now() + SILENT_MAX);
            return Poll::Ready(read);
        }
        this.until.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

async fn within<T>(what: impl Future<Output = T>) -> Result<T, AskError> {
    timeout(SILENT_MAX, what).await.map_err(|_| AskError::Silent)
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::delivery;
    use super::super::wire::{Page, Position};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_answer_may_take_its_time_on_a_slow_line_and_silence_may_not() {
        let reports = (0..400).map(|exam| delivery(exam, 1)).collect();
        let page = Reply::Page(Page { reports, next: Position::Event { index: 9, place: 0 }, more: false });
        let frame = wire::encode(&page).expect("encodes");
        let bytes = [&frame::header(frame.len(), REPLY_MAX).expect("short enough")[..], &frame].concat();
        for (pause, is_heard) in [(SILENT_MAX / 2, true), (SILENT_MAX * 2, false)] {
            let (mut near, mut far) = tokio::io::duplex(64 << 10);
            let started = Instant::now();
            let sending = async {
                for part in bytes.chunks(bytes.len() / 10) {
                    sleep(pause).await;
                    if far.write_all(part).await.is_err() {
                        return;
                    }
                }
            };
            let asking = async {
                let said = answer(&mut near).await;
                drop(near);
                said
            };
            let (said, ()) = tokio::join!(asking, sending);
            match is_heard {
                true => {
                    assert_eq!(said.expect("an answer"), page);
                    assert!(started.elapsed() > 4 * SILENT_MAX, "{:?}", started.elapsed());
                }
                false => assert!(matches!(said, Err(AskError::Silent)), "{said:?}"),
            }
        }
        let (mut near, _far) = tokio::io::duplex(1 << 10);
        let started = Instant::now();
        assert!(matches!(answer(&mut near).await, Err(AskError::Silent)));
        assert!(started.elapsed() < SILENT_MAX + Duration::from_millis(10), "{:?}", started.elapsed());
    }
}
