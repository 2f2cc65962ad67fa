//! The asking side: one object from one holder, verified.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use blake3::Hash;
use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

use super::wire::{HEADER_LEN, Header, Request, class_byte};
use super::{CHUNK_LEN_MAX, Class, OBJECT_LEN_MAX};

/// A holder that sends nothing for this long is given up. Far above any queueing for admission between
/// nodes that are well; the fetch planner has asked another holder long before.
const STALL: Duration = Duration::from_secs(10);

/// … but for this long it need not begin what no reader waits for: others' readers may be served there, and that it is
/// there at all is told by the connection.
const TURN_MAX: Duration = Duration::from_secs(300);

/// Segments taken from a stream at once: about 40 kB, so that the connection's lock is taken once for
/// many packets.
const SEGMENTS: usize = 32;

/// Why an object could not be had from a holder.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The holder does not have it.
    #[error("holder does not have it")]
    Absent,
    /// The holder cannot give it now.
    #[error("holder failed to read it")]
    Failed,
    /// It is longer than asked for, so it cannot be what is wanted.
    #[error("object of {len} bytes is longer than the {max} asked for")]
    TooLong {
        /// What the holder announced.
        len: usize,
        /// What was asked for.
        max: usize,
    },
    /// The bytes do not have the hash. They were thrown away.
    #[error("holder sent bytes of another hash")]
    WrongBytes,
    /// The answer is not of this protocol.
    #[error("holder sent a malformed answer")]
    Malformed,
    /// Nothing came for 10 s, or no beginning of what no reader waits for in 5 minutes.
    #[error("holder stopped sending")]
    Stalled,
    /// The stream or the connection broke.
    #[error("connection broke: {0}")]
    Lost(#[source] io::Error),
}

impl GetError {
    /// Whether the holder broke the protocol's promise, rather than being unable or out of reach.
    pub fn is_fault_of_holder(&self) -> bool {
        match self {
            Self::WrongBytes | Self::Malformed => true,
            // An honest holder says "too long" when it is the asker who is wrong about the length.
            Self::TooLong { .. } | Self::Absent | Self::Failed | Self::Stalled | Self::Lost(_) => false,
        }
    }
}

/// Asks the peer at the other end of `connection` for the object of this hash, of at most `len_max`
/// bytes (and never above [`OBJECT_LEN_MAX`]). What is returned has the hash.
///
/// Dropping the future takes the request back.
///
/// # Errors
/// See [`GetError`].
pub async fn get(connection: &quinn::Connection, hash: Hash, len_max: usize, class: Class) -> Result<Bytes, GetError> {
    get_while(connection, hash, len_max, watch::channel(class).1).await
}

/// As [`get`], in a class that may rise while the request waits.
///
/// # Errors
/// See [`GetError`].
pub async fn get_while(
    connection: &quinn::Connection,
    hash: Hash,
    len_max: usize,
    mut class: watch::Receiver<Class>,
) -> Result<Bytes, GetError> {
    let len_max = len_max.min(OBJECT_LEN_MAX);
    let now = *class.borrow_and_update();
    let request = Request { class: now, hash, len_max: u32::try_from(len_max).unwrap_or(u32::MAX) };
    let (mut send, recv) = connection.open_bi().await.map_err(lost)?;
    send.write_all(&request.encode()).await.map_err(lost)?;
    let mut receiver = Receiver { recv, class: class.clone(), since: Instant::now(), got: 0, got_at_timer: 0 };
    let answer = receiver.object(len_max);
    let bytes = if now == Class::Reader {
        // It cannot rise.
        send.finish().map_err(lost)?;
        answer.await?
    } else {
        tokio::select! {
            biased;
            bytes = answer => bytes?,
            never = rise(&mut send, &mut class) => match never {},
        }
    };
    verify(hash, bytes).await
}

/// Tells the holder each new class, for ever.
async fn rise(send: &mut quinn::SendStream, class: &mut watch::Receiver<Class>) -> Infallible {
    while class.changed().await.is_ok() {
        let now = *class.borrow_and_update();
        // A holder that takes no more of it has begun to answer, or is gone, which the answer tells.
        if send.write_all(&[class_byte(now)]).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Compares the bytes with the hash; long ones away from the async threads.
///
/// # Errors
/// [`GetError::WrongBytes`].
pub async fn verify(hash: Hash, bytes: Bytes) -> Result<Bytes, GetError> {
    let found = if bytes.len() <= CHUNK_LEN_MAX {
        blake3::hash(&bytes)
    } else {
        let copy = bytes.clone();
        maillage_host::offload(move || Ok(blake3::hash(&copy))).await.map_err(GetError::Lost)?
    };
    if found == hash { Ok(bytes) } else { Err(GetError::WrongBytes) }
}

fn lost(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> GetError {
    GetError::Lost(io::Error::other(error))
}

struct Receiver {
    recv: quinn::RecvStream,
    class: watch::Receiver<Class>,
    /// When it was asked for.
    since: Instant,
    /// Bytes so far.
    got: usize,
    /// Bytes there were when the timer was last set, by which a stall is told from slowness.
    got_at_timer: usize,
}

impl Receiver {
    async fn object(&mut self, len_max: usize) -> Result<Bytes, GetError> {
        let mut stall = pin!(sleep(STALL));
        let mut header = BytesMut::new();
        self.read_until(&mut header, HEADER_LEN, stall.as_mut()).await?;
        let (fixed, _) = header.split_first_chunk::<HEADER_LEN>().ok_or(GetError::Malformed)?;
        let decoded = Header::decode(*fixed).ok_or(GetError::Malformed)?;
        let size = |len: u32| usize::try_from(len).unwrap_or(usize::MAX);
        let len = match decoded {
            Header::Found { len } if size(len) <= len_max => size(len),
            Header::Found { .. } => return Err(GetError::Malformed),
            Header::TooLong { len } => return Err(GetError::TooLong { len: size(len), max: len_max }),
            Header::Absent => return Err(GetError::Absent),
            Header::Failed => return Err(GetError::Failed),
        };
        // A chunk's buffer is made in one piece; a manifest's grows as it comes.
        let mut object = BytesMut::with_capacity(len.min(CHUNK_LEN_MAX));
        object.extend_from_slice(header.get(HEADER_LEN..).unwrap_or_default());
        self.read_until(&mut object, len, stall.as_mut()).await?;
        let more = self.segment(&mut [Bytes::new()], stall).await?;
        if object.len() != len || more.is_some() {
            return Err(GetError::Malformed);
        }
        Ok(object.freeze())
    }

    /// Reads until `buffer` holds at least `len` bytes, or the stream ends, which is the caller's to see.
    async fn read_until(
        &mut self,
        buffer: &mut BytesMut,
        len: usize,
        mut stall: Pin<&mut Sleep>,
    ) -> Result<(), GetError> {
        let mut segments = [const { Bytes::new() }; SEGMENTS];
        while buffer.len() < len {
            let Some(count) = self.segment(&mut segments, stall.as_mut()).await? else { return Ok(()) };
            for segment in segments.iter_mut().take(count).map(std::mem::take) {
                buffer.extend_from_slice(&segment);
                // What exceeds the announced length is refused; it need not be gathered first.
                if buffer.len() > len.saturating_add(CHUNK_LEN_MAX) {
                    return Err(GetError::Malformed);
                }
            }
        }
        Ok(())
    }

    /// Whether it may still be that higher classes are before it at the holder.
    fn may_wait_its_turn(&self) -> bool {
        self.got == 0 && *self.class.borrow() != Class::Reader && self.since.elapsed() < TURN_MAX
    }

    async fn segment(&mut self, segments: &mut [Bytes], mut stall: Pin<&mut Sleep>) -> Result<Option<usize>, GetError> {
        loop {
            tokio::select! {
                biased;
                read = self.recv.read_chunks(segments) => {
                    let count = read.map_err(lost)?;
                    let taken = segments.iter().take(count.unwrap_or(0));
                    self.got += taken.map(Bytes::len).sum::<usize>();
                    return Ok(count);
                }
                // One timer for the whole object: it is moved only when it fires and bytes came since.
                () = stall.as_mut() => {
                    if self.got == self.got_at_timer && !self.may_wait_its_turn() {
                        return Err(GetError::Stalled);
                    }
                    self.got_at_timer = self.got;
                    stall.as_mut().reset(Instant::now() + STALL);
                }
            }
        }
    }
}
