//! A TCP connection as a stream of PDUs: framing, timeouts and the least possible copying.
//!
//! Small reads go through one buffer; the bulk of a large fragment is read from the socket straight
//! into the instance that it belongs to.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::pdu::{PDU_HEADER_LEN, PDV_HEADER_LEN, PduError, PduHeader, PduKind, PdvHeader};

/// Buffer while negotiating: connections of strangers cost no more than this and their request.
const NEGOTIATION_BUFFER_LEN: usize = 4 << 10;
/// Buffer of an association among many: a system call costs little beside its bytes.
const BUFFER_LEN: usize = 64 << 10;
/// Buffer of one among few: several small PDUs of a fast sender come with each system call.
const WIDE_BUFFER_LEN: usize = 256 << 10;
/// Fragments with more than this left are read directly into their instance: below, the buffer's
/// fewer system calls win.
const DIRECT_LEN_MIN: usize = 32 << 10;
/// After its grace a message must have kept this rate in bytes per second: a tenth of ISDN. Without
/// it a sender of one byte a minute would hold its share of memory for ever.
const PACE_RATE_MIN: u64 = 800;
/// How long and how much to listen after a last word, so that it is read before the connection goes.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_LEN_MAX: usize = 64 << 10;

/// Why a connection cannot go on.
#[derive(Debug, Error)]
pub enum WireError {
    /// The peer closed it between two PDUs.
    #[error("connection closed")]
    Closed,
    /// The peer closed it within a PDU.
    #[error("connection closed within a protocol data unit")]
    Cut,
    /// Nothing came, or could be sent, in time.
    #[error("connection timed out")]
    TimedOut,
    /// The message comes slower than 800 bytes per second.
    #[error("message comes too slowly")]
    TooSlow,
    /// The socket failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are no valid PDU.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// A PDU that may not come now.
    #[error("protocol data unit came out of turn")]
    OutOfTurn,
    /// The peer aborted.
    #[error(transparent)]
    Aborted(#[from] super::pdu::Abort),
}

/// How patient and how generous a side is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WireLimits {
    /// Longest silence within a message, and longest wait for the peer to take bytes.
    pub(crate) stall: Duration,
    /// How long a message may be slower than the least rate.
    pub(crate) message_grace: Duration,
    /// Longest P-DATA-TF body that is accepted.
    pub(crate) data_len_max: usize,
}

#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
    buffer_len: usize,
    limits: WireLimits,
    /// Bytes of the current P-DATA-TF that follow the PDV being read.
    pdu_left: usize,
    pace: Option<Pace>,
}

#[derive(Debug)]
struct Pace {
    /// When the message began, later by the grace and by what it had to wait for us.
    start: Instant,
    received: u64,
}

impl Pace {
    fn deadline(&self) -> Instant {
        self.start + Duration::from_secs(self.received / PACE_RATE_MIN)
    }
}

impl Wire {
    /// Takes a connection: small segments leave at once from here on, or a peer that waits for an
    /// answer before it sends on crawls at the pace of delayed acknowledgements.
    pub(crate) fn new(stream: TcpStream, limits: WireLimits) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: BytesMut::new(),
            buffer_len: NEGOTIATION_BUFFER_LEN,
            limits,
            pdu_left: 0,
            pace: None,
        })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// From now on bulk comes.
    pub(crate) fn established(&mut self, is_one_of_few: bool) {
        self.buffer_len = if is_one_of_few { WIDE_BUFFER_LEN } else { BUFFER_LEN };
    }

    /// Waits up to `idle` for the next PDU between messages. Can be cancelled and called again.
    pub(crate) async fn idle_header(&mut self, idle: Duration) -> Result<PduHeader, WireError> {
        self.pace = None;
        match timeout(idle, self.first_byte()).await {
            Ok(result) => result?,
            Err(_) => return Err(WireError::TimedOut),
        }
        self.pace = Some(Pace { start: Instant::now() + self.limits.message_grace, received: 0 });
        self.header().await
    }

    async fn first_byte(&mut self) -> Result<(), WireError> {
        while self.buffer.is_empty() {
            self.buffer.reserve(self.buffer_len);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(WireError::Closed);
            }
            self.acknowledge_at_once();
        }
        Ok(())
    }

    /// Whether something has come that was not read yet, without waiting for it.
    pub(crate) fn has_input(&mut self) -> Result<bool, WireError> {
        if !self.buffer.is_empty() {
            return Ok(true);
        }
        self.buffer.reserve(self.buffer_len);
        match self.stream.try_read_buf(&mut self.buffer) {
            Ok(0) => Err(WireError::Closed),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a PDU's header; what is no PDU is known by its first byte.
    pub(crate) async fn header(&mut self) -> Result<PduHeader, WireError> {
        if self.buffer.is_empty() {
            match self.fill(1).await {
                Err(WireError::Cut) => return Err(WireError::Closed),
                other => other?,
            }
        }
        PduKind::from_byte(self.buffer[0])?;
        self.fill(PDU_HEADER_LEN).await?;
        let mut header = [0; PDU_HEADER_LEN];
        self.buffer.copy_to_slice(&mut header);
        let header = PduHeader::decode(header, self.limits.data_len_max)?;
        if header.kind == PduKind::Data {
            self.pdu_left = header.len;
        }
        Ok(header)
    }

    /// Reads the body of a PDU other than P-DATA-TF, whose kind has bounded it.
    pub(crate) async fn body(&mut self, header: PduHeader) -> Result<BytesMut, WireError> {
        self.fill(header.len).await?;
        Ok(self.buffer.split_to(header.len))
    }

    /// Reads the header of the next PDV of the message, in this PDU or the next one. Its bytes must
    /// then be taken by [`Wire::take`] or [`Wire::skip`].
    pub(crate) async fn pdv(&mut self) -> Result<PdvHeader, WireError> {
        while self.pdu_left == 0 {
            let header = self.header().await?;
            match header.kind {
                PduKind::Data => {}
                PduKind::Abort => {
                    let body = self.body(header).await?;
                    return Err(super::pdu::Abort::decode(&body)?.into());
                }
                _ => return Err(WireError::OutOfTurn),
            }
        }
        if self.pdu_left < PDV_HEADER_LEN {
            return Err(PduError::Truncated.into());
        }
        self.fill(PDV_HEADER_LEN).await?;
        let mut header = [0; PDV_HEADER_LEN];
        self.buffer.copy_to_slice(&mut header);
        let header = PdvHeader::decode(header, self.pdu_left)?;
        self.pdu_left -= PDV_HEADER_LEN + header.len;
        Ok(header)
    }

    /// Appends `len` bytes to `out`, which must have the capacity.
    pub(crate) async fn take(&mut self, out: &mut BytesMut, mut len: usize) -> Result<(), WireError> {
        loop {
            let buffered = self.buffer.len().min(len);
            out.extend_from_slice(&self.buffer[..buffered]);
            self.buffer.advance(buffered);
            len -= buffered;
            if len == 0 {
                return Ok(());
            }
            if len < DIRECT_LEN_MIN {
                self.fill(len).await?;
                continue;
            }
            let deadline = self.deadline();
            let mut window = (&mut *out).limit(len);
            match timeout_at(deadline, self.stream.read_buf(&mut window)).await {
                Ok(Ok(0)) => return Err(WireError::Cut),
                Ok(read) => {
                    let read = read?;
                    len -= read;
                    self.count(read);
                }
                Err(_) => return Err(self.timed_out()),
            }
        }
    }

    /// Passes over `len` bytes.
    pub(crate) async fn skip(&mut self, mut len: usize) -> Result<(), WireError> {
        while len > 0 {
            if self.buffer.is_empty() {
                self.fill(1).await?;
            }
            let buffered = self.buffer.len().min(len);
            self.buffer.advance(buffered);
            len -= buffered;
        }
        Ok(())
    }

    /// Time that the peer is not to blame for.
    pub(crate) fn excuse(&mut self, time: Duration) {
        if let Some(pace) = &mut self.pace {
            pace.start += time;
        }
    }

    /// Writes everything.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        match timeout(self.limits.stall, self.stream.write_all(bytes)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(WireError::TimedOut),
        }
    }

    /// Writes some of the slices, the count of bytes returned.
    pub(crate) async fn write_some(&mut self, slices: &[io::IoSlice<'_>]) -> Result<usize, WireError> {
        match timeout(self.limits.stall, self.stream.write_vectored(slices)).await {
            Ok(Ok(0)) => Err(WireError::Cut),
            Ok(written) => Ok(written?),
            Err(_) => Err(WireError::TimedOut),
        }
    }

    /// Acknowledge at once what comes next. A peer with Nagle's algorithm on, as dcmtk's tools have it,
    /// keeps the end of each message back until what went before is acknowledged, and the kernel
    /// delays that by 40 ms. It forgets this wish, so it is said again after each read; where it cannot
    /// be said the message merely comes later.
    pub(crate) fn acknowledge_at_once(&self) {
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&self.stream).set_tcp_quickack(true);
    }

    /// Says a last word and waits a little for the peer to take it: closing with unread bytes would
    /// reset the connection and the word be lost.
    pub(crate) async fn close_with(mut self, last: &[u8]) {
        let farewell = async {
            self.stream.write_all(last).await?;
            self.stream.shutdown().await?;
            let mut seen = 0;
            while seen < LINGER_LEN_MAX {
                self.buffer.clear();
                self.buffer.reserve(NEGOTIATION_BUFFER_LEN);
                match self.stream.read_buf(&mut self.buffer).await? {
                    0 => break,
                    read => seen += read,
                }
            }
            Ok::<(), io::Error>(())
        };
        // Whether the peer heard it changes nothing: the connection is over.
        let _ = timeout(LINGER, farewell).await;
    }

    /// Reads until the buffer holds `len` bytes.
    async fn fill(&mut self, len: usize) -> Result<(), WireError> {
        while self.buffer.len() < len {
            // By what came, never by what was announced: silence after a header costs nothing.
            self.buffer.reserve(self.buffer_len);
            let deadline = self.deadline();
            match timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err(WireError::Cut),
                Ok(read) => self.count(read?),
                Err(_) => return Err(self.timed_out()),
            }
        }
        Ok(())
    }

    fn count(&mut self, read: usize) {
        self.acknowledge_at_once();
        if let Some(pace) = &mut self.pace {
            pace.received += read as u64;
        }
    }

    fn deadline(&self) -> Instant {
        let stall = Instant::now() + self.limits.stall;
        self.pace.as_ref().map_or(stall, |pace| pace.deadline().min(stall))
    }

    fn timed_out(&self) -> WireError {
        match &self.pace {
            Some(pace) if pace.deadline() <= Instant::now() => WireError::TooSlow,
            _ => WireError::TimedOut,
        }
    }
}

/// Splits a command set into P-DATA-TFs of at most `peer_max` bytes (0: unlimited).
pub(crate) fn command_pdus(context_id: u8, command: &[u8], peer_max: u32) -> BytesMut {
    pdus(context_id, true, command, peer_max)
}

/// The same for a short data set.
pub(crate) fn data_pdus(context_id: u8, dataset: &[u8], peer_max: u32) -> BytesMut {
    pdus(context_id, false, dataset, peer_max)
}

fn pdus(context_id: u8, is_command: bool, bytes: &[u8], peer_max: u32) -> BytesMut {
    let step = fragment_len(peer_max);
    let mut pdus = BytesMut::with_capacity(bytes.len() + 64);
    let mut rest = bytes;
    loop {
        let (part, after) = rest.split_at(rest.len().min(step));
        let is_last = after.is_empty();
        let header = PdvHeader { context_id, is_command, is_last, len: part.len() };
        pdus.put_slice(&header.encode_alone());
        pdus.put_slice(part);
        if is_last {
            return pdus;
        }
        rest = after;
    }
}

/// Longest fragment to send to a peer that receives P-DATA-TFs of `peer_max` bytes: even, and no
/// longer than what is efficient. A limit too small to be meant is not taken at its word.
pub(crate) fn fragment_len(peer_max: u32) -> usize {
    const EFFICIENT: usize = 256 << 10;
    const MEANT_MIN: usize = 64;
    match usize::try_from(peer_max) {
        Ok(0) | Err(_) => EFFICIENT,
        Ok(max) => (max.clamp(MEANT_MIN, EFFICIENT + PDV_HEADER_LEN) - PDV_HEADER_LEN) & !1,
    }
}
