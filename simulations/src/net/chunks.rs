//! Chunk exchange over the fabric: what `mesh-chunk/1` does over QUIC, in the fewest bytes.
//!
//! The planner, the driver, the hash check and both ends' stores are production code; only the frames
//! between them are not. With `--transport quic` those run as well.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use maillage_consensus::raft::Duplex;
use maillage_transport::LinkError;
use maillage_transport::PeerId;
use maillage_transport::chunk::{self, ChunkSource, GetError};
use maillage_transport::fetch::{AskError, ClassNow, Holders, Wanted};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Fabric, Plane};
use crate::cluster::SlotOfPeer;
use crate::world::Owner;

/// The longest frame: a manifest, as in production.
const FRAME_MAX: usize = chunk::OBJECT_LEN_MAX + 8;
/// A holder that says nothing for so long is given up, as in production.
const STALL: Duration = Duration::from_secs(10);

const FOUND: u8 = 0;
const ABSENT: u8 = 1;
const FAILED: u8 = 2;
const TOO_LONG: u8 = 3;

/// Reads one frame; `None` when the stream ends before it.
pub(crate) async fn read_frame(reader: &mut (dyn AsyncRead + Send + Unpin)) -> io::Result<Option<Bytes>> {
    let len = match reader.read_u32_le().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other? as usize,
    };
    if len > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; len];
    reader.read_exact(&mut frame).await?;
    Ok(Some(frame.into()))
}

/// Writes one frame.
pub(crate) async fn write_frame(writer: &mut (dyn AsyncWrite + Send + Unpin), frame: &[u8]) -> io::Result<()> {
    let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
    writer.write_all(&len.to_le_bytes()).await?;
    writer.write_all(frame).await
}

/// The way to other sites' chunks, of one life of one node.
pub(crate) struct SimHolders {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) owner: Owner,
    pub(crate) own: PeerId,
    /// Whether bytes are taken as they come, as a mutant does.
    pub(crate) believes: bool,
    pub(crate) slot_of: SlotOfPeer,
}

impl Holders for SimHolders {
    fn own(&self) -> PeerId {
        self.own
    }

    fn ask(&self, peer: PeerId, wanted: Wanted, _class: ClassNow) -> BoxFuture<'_, Result<Bytes, AskError>> {
        Box::pin(async move {
            let to = (self.slot_of)(&peer).ok_or(LinkError::NotAMember(peer))?;
            let stream = self.fabric.open(self.owner, to, Plane::Chunk).await;
            let stream = stream.map_err(|_| LinkError::Timeout(peer))?;
            let asked = tokio::time::timeout(STALL, ask(stream, wanted, self.believes)).await;
            Ok(asked.unwrap_or(Err(GetError::Stalled))?)
        })
    }
}

async fn ask(stream: Duplex, wanted: Wanted, believes: bool) -> Result<Bytes, GetError> {
    let Duplex { mut reader, mut writer } = stream;
    let mut request = wanted.hash.as_bytes().to_vec();
    request.extend_from_slice(&u32::try_from(wanted.len).unwrap_or(u32::MAX).to_le_bytes());
    write_frame(&mut *writer, &request).await.map_err(GetError::Lost)?;
    let answer = read_frame(&mut *reader).await.map_err(GetError::Lost)?;
    let answer = answer.ok_or_else(|| GetError::Lost(io::ErrorKind::UnexpectedEof.into()))?;
    match answer.first() {
        Some(&FOUND) if believes => Ok(answer.slice(1..)),
        Some(&FOUND) if answer.len() > wanted.len + 1 => Err(GetError::Malformed),
        Some(&FOUND) => chunk::verify(wanted.hash, answer.slice(1..)).await,
        Some(&ABSENT) => Err(GetError::Absent),
        Some(&FAILED) => Err(GetError::Failed),
        Some(&TOO_LONG) => Err(GetError::TooLong { len: usize::MAX, max: wanted.len }),
        _ => Err(GetError::Malformed),
    }
}

/// Answers one request for a chunk.
pub(crate) async fn answer(source: Arc<dyn ChunkSource>, stream: Duplex) -> io::Result<()> {
    let Duplex { mut reader, mut writer } = stream;
    let Some(request) = read_frame(&mut *reader).await? else { return Ok(()) };
    let (Some(hash), Some(len)) = (request.get(..32), request.get(32..36)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let hash: [u8; 32] = hash.try_into().map_err(io::Error::other)?;
    let len: [u8; 4] = len.try_into().map_err(io::Error::other)?;
    let answer = match source.read(blake3::Hash::from_bytes(hash)).await {
        Ok(Some(bytes)) if bytes.len() > u32::from_le_bytes(len) as usize => vec![TOO_LONG],
        Ok(Some(bytes)) => [&[FOUND], &bytes[..]].concat(),
        Ok(None) => vec![ABSENT],
        Err(_) => vec![FAILED],
    };
    write_frame(&mut *writer, &answer).await?;
    writer.shutdown().await
}
