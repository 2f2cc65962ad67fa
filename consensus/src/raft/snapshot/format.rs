//! The bytes of a snapshot.
//!
//! `[magic 8][version u32][mesh 32][meta: u32 count, then log id, membership, chain]`, then pairs
//! `[1][key length u32][value length u32][key][value]` in key order, then `[0]` and the BLAKE3 hash of
//! all before it. Only the machine's keys are in it; the raft layer's follow from the meta.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::raft::codec::{Decoder, Encode, Malformed};
use crate::raft::types::SnapshotMeta;

const MAGIC: [u8; 8] = *b"MLGRAFTS";
const VERSION: u32 = 1;
/// Bytes before the meta's own.
const PREFIX: usize = 8 + 4 + 32 + 4;
/// The longest meta: thousands of nodes fit.
const MAX_META: usize = 256 << 10;
/// The longest key: the machine's are tens of bytes.
const MAX_KEY: usize = 64 << 10;
/// The longest value. It bounds the memory that a snapshot from the network can claim.
const MAX_VALUE: usize = 16 << 20;
/// Bytes of the hash at the end.
pub(super) const TRAILER: usize = 32;
/// The most bytes of a file in which the head is looked for.
pub(super) const MAX_HEAD: usize = PREFIX + MAX_META;

/// What a snapshot says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) meta: SnapshotMeta,
    /// The hash chain over the commands applied.
    pub(crate) chain: [u8; 32],
}

pub(super) fn write_head(head: &Head, mesh_id: &[u8; 32]) -> BytesMut {
    let mut meta = BytesMut::new();
    meta.put_option_log_id(head.meta.last_log_id.as_ref());
    meta.put_stored_membership(&head.meta.last_membership);
    meta.put_slice(&head.chain);
    let mut bytes = BytesMut::new();
    bytes.put_slice(&MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_slice(mesh_id);
    bytes.put_block(&meta);
    bytes
}

/// Reads the head at the start of `bytes`; `Ok(None)` when more bytes are needed.
pub(super) fn read_head(bytes: &[u8], mesh_id: &[u8; 32]) -> Result<Option<(Head, usize)>, Malformed> {
    let Some(prefix) = bytes.get(..PREFIX) else { return Ok(None) };
    let mut decoder = Decoder::new(Bytes::copy_from_slice(prefix));
    if decoder.array::<8>()? != MAGIC {
        return Err(Malformed("snapshot: not one"));
    }
    if decoder.u32()? != VERSION {
        return Err(Malformed("snapshot: of another version"));
    }
    if decoder.array::<32>()? != *mesh_id {
        return Err(Malformed("snapshot: of another mesh"));
    }
    let len = decoder.u32()? as usize;
    if len > MAX_META {
        return Err(Malformed("snapshot: meta too long"));
    }
    let Some(meta) = bytes.get(PREFIX..PREFIX + len) else { return Ok(None) };
    let mut decoder = Decoder::new(Bytes::copy_from_slice(meta));
    let last_log_id = decoder.option_log_id()?;
    let last_membership = decoder.stored_membership()?;
    let chain = decoder.array::<32>()?;
    decoder.finish()?;
    Ok(Some((Head { meta: SnapshotMeta { last_log_id, last_membership }, chain }, PREFIX + len)))
}

pub(super) fn write_pair(bytes: &mut BytesMut, key: &[u8], value: &[u8]) -> io::Result<()> {
    if key.is_empty() || key.len() > MAX_KEY || value.len() > MAX_VALUE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a key or value is too long for a snapshot"));
    }
    bytes.put_u8(1);
    bytes.put_u32_le(u32::try_from(key.len()).map_err(io::Error::other)?);
    bytes.put_u32_le(u32::try_from(value.len()).map_err(io::Error::other)?);
    bytes.put_slice(key);
    bytes.put_slice(value);
    Ok(())
}

pub(super) fn write_end(bytes: &mut BytesMut) {
    bytes.put_u8(0);
}

enum Stage {
    Head,
    Pairs,
    Trailer,
    Done,
}

/// Reads a snapshot piece by piece and checks all of it: the head, every pair, the order of the
/// keys, the hash at the end. Holds at most one pair and one piece.
pub(crate) struct Parser {
    mesh_id: [u8; 32],
    stage: Stage,
    buffer: BytesMut,
    hasher: blake3::Hasher,
    head: Option<Head>,
    last_key: Vec<u8>,
}

impl Parser {
    pub(crate) fn new(mesh_id: [u8; 32]) -> Self {
        Self {
            mesh_id,
            stage: Stage::Head,
            buffer: BytesMut::new(),
            hasher: blake3::Hasher::new(),
            head: None,
            last_key: Vec::new(),
        }
    }

    /// Takes the next piece and hands every pair that is complete to `pair`.
    ///
    /// # Errors
    /// `InvalidData` when this is no snapshot, and what `pair` returns.
    pub(crate) fn push(
        &mut self,
        piece: &[u8],
        mut pair: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.buffer.extend_from_slice(piece);
        let mut at = 0;
        // The hash covers everything before the trailer; it is taken once a piece, over one buffer.
        let mut hashed_to = 0;
        loop {
            let rest = &self.buffer[at..];
            match self.stage {
                Stage::Head => {
                    let Some((head, len)) = read_head(rest, &self.mesh_id)? else { break };
                    self.head = Some(head);
                    self.stage = Stage::Pairs;
                    at += len;
                    hashed_to = at;
                }
                Stage::Pairs => {
                    let (key, value) = match read_pair(rest)? {
                        Item::Incomplete => break,
                        Item::Pair(key, value) => (key, value),
                        Item::End => {
                            self.stage = Stage::Trailer;
                            at += 1;
                            hashed_to = at;
                            continue;
                        }
                    };
                    // Byte 0 begins the raft layer's own keys, which no snapshot brings.
                    if key[0] == 0 || key <= self.last_key.as_slice() {
                        return Err(Malformed("snapshot: keys").into());
                    }
                    pair(key, value)?;
                    self.last_key.clear();
                    self.last_key.extend_from_slice(key);
                    at += 9 + key.len() + value.len();
                    hashed_to = at;
                }
                Stage::Trailer => {
                    if rest.len() < TRAILER {
                        break;
                    }
                    self.hasher.update(&self.buffer[..hashed_to]);
                    if self.hasher.finalize() != blake3::Hash::from_slice(&rest[..TRAILER]).map_err(io::Error::other)? {
                        return Err(Malformed("snapshot: the hash does not match").into());
                    }
                    at += TRAILER;
                    self.stage = Stage::Done;
                    self.buffer.advance(at);
                    return if self.buffer.is_empty() {
                        Ok(())
                    } else {
                        Err(Malformed("snapshot: trailing bytes").into())
                    };
                }
                Stage::Done => {
                    return if rest.is_empty() { Ok(()) } else { Err(Malformed("snapshot: trailing bytes").into()) };
                }
            }
        }
        self.hasher.update(&self.buffer[..hashed_to]);
        self.buffer.advance(at);
        Ok(())
    }

    /// What the snapshot says of itself, when all of it was read and found right.
    ///
    /// # Errors
    /// `InvalidData` when it ended early.
    pub(crate) fn finish(self) -> io::Result<Head> {
        match (self.stage, self.head) {
            (Stage::Done, Some(head)) => Ok(head),
            _ => Err(Malformed("snapshot: cut short").into()),
        }
    }
}

/// What stands at some place among the pairs.
enum Item<'a> {
    Pair(&'a [u8], &'a [u8]),
    End,
    /// More bytes are needed to know.
    Incomplete,
}

fn read_pair(bytes: &[u8]) -> Result<Item<'_>, Malformed> {
    match bytes.first() {
        None => return Ok(Item::Incomplete),
        Some(0) => return Ok(Item::End),
        Some(1) => {}
        Some(_) => return Err(Malformed("snapshot: pair")),
    }
    let Some(lengths) = bytes.get(1..9) else { return Ok(Item::Incomplete) };
    let (mut key_len, mut value_len) = lengths.split_at(4);
    let (key_len, value_len) = (key_len.get_u32_le() as usize, value_len.get_u32_le() as usize);
    if key_len == 0 || key_len > MAX_KEY || value_len > MAX_VALUE {
        return Err(Malformed("snapshot: pair"));
    }
    let Some(content) = bytes.get(9..9 + key_len + value_len) else { return Ok(Item::Incomplete) };
    let (key, value) = content.split_at(key_len);
    Ok(Item::Pair(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Bytes {
        let head = Head { meta: SnapshotMeta::default(), chain: [7; 32] };
        let mut bytes = write_head(&head, &[1; 32]);
        for key in 1..100_u8 {
            write_pair(&mut bytes, &[key], &vec![key; usize::from(key) * 10]).expect("fits");
        }
        write_end(&mut bytes);
        let hash = blake3::hash(&bytes);
        bytes.put_slice(hash.as_bytes());
        bytes.freeze()
    }

    fn parse(bytes: &[u8], piece: usize) -> io::Result<usize> {
        let mut parser = Parser::new([1; 32]);
        let mut pairs = 0;
        for piece in bytes.chunks(piece) {
            parser.push(piece, |_, _| {
                pairs += 1;
                Ok(())
            })?;
        }
        parser.finish()?;
        Ok(pairs)
    }

    #[test]
    fn a_snapshot_is_read_whole_in_pieces_of_any_size() {
        let bytes = sample();
        for piece in [1, 2, 7, 64, 1000, bytes.len()] {
            assert_eq!(parse(&bytes, piece).expect("valid"), 99, "pieces of {piece}");
        }
    }

    #[test]
    fn a_snapshot_with_any_bit_changed_or_cut_short_is_refused() {
        let bytes = sample();
        for at in (0..bytes.len()).step_by(37) {
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x10;
            assert!(parse(&changed, 512).is_err(), "changed at {at}");
            assert!(parse(&bytes[..at], 512).is_err(), "cut at {at}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(parse(&longer, 512).is_err(), "a byte too many");
    }

    #[test]
    fn a_snapshot_of_another_mesh_is_refused() {
        let mut parser = Parser::new([2; 32]);
        assert!(parser.push(&sample(), |_, _| Ok(())).is_err());
    }

    #[test]
    fn a_snapshot_that_brings_keys_of_the_raft_layer_is_refused() {
        let mut bytes = write_head(&Head { meta: SnapshotMeta::default(), chain: [0; 32] }, &[1; 32]);
        write_pair(&mut bytes, &[0, 1], b"forged").expect("fits");
        write_end(&mut bytes);
        let hash = blake3::hash(&bytes);
        bytes.put_slice(hash.as_bytes());
        assert!(parse(&bytes, 512).is_err());
    }
}
