//! Our own encoding of Raft's values, for disk and wire alike: fixed-width little-endian integers,
//! tags of one byte, counts before what they count.
//!
//! openraft's types are never serialised as openraft would: an upgrade of it must not be able to
//! change a byte of ours. Versions are carried by what contains these values: the header of a log
//! segment or snapshot, the first byte of an engine record, the hello of a stream.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes};
use openraft::{EmptyNode, EntryPayload};

use super::types::{Entry, LeaderId, LogId, Membership, Payload, StoredMembership, Vote};

/// Nodes in a membership: far beyond the 17 sites sized for, small enough to bound a record.
const MAX_NODES: usize = 4096;
/// Sets of voters in a membership: openraft joins two.
const MAX_SETS: usize = 4;

/// Bytes that are not what they should be: of a peer, or of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl From<Malformed> for std::io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, malformed)
    }
}

/// Writes values; everything that can be appended to can be encoded into.
pub(crate) trait Encode: BufMut {
    fn put_log_id(&mut self, id: &LogId) {
        self.put_u64_le(id.leader_id.term);
        self.put_u64_le(id.leader_id.node_id);
        self.put_u64_le(id.index);
    }

    fn put_option_log_id(&mut self, id: Option<&LogId>) {
        match id {
            None => self.put_u8(0),
            Some(id) => {
                self.put_u8(1);
                self.put_log_id(id);
            }
        }
    }

    fn put_vote(&mut self, vote: &Vote) {
        self.put_u64_le(vote.leader_id.term);
        self.put_u64_le(vote.leader_id.node_id);
        self.put_u8(u8::from(vote.committed));
    }

    /// A count, then the bytes.
    fn put_block(&mut self, bytes: &[u8]) {
        self.put_u32_le(count(bytes.len()));
        self.put_slice(bytes);
    }

    fn put_ids<'a>(&mut self, ids: impl ExactSizeIterator<Item = &'a u64>) {
        self.put_u32_le(count(ids.len()));
        ids.for_each(|id| self.put_u64_le(*id));
    }

    fn put_membership(&mut self, membership: &Membership) {
        let sets = membership.get_joint_config();
        self.put_u32_le(count(sets.len()));
        for set in sets {
            self.put_ids(set.iter());
        }
        let nodes: Vec<u64> = membership.nodes().map(|(id, _)| *id).collect();
        self.put_ids(nodes.iter());
    }

    fn put_stored_membership(&mut self, stored: &StoredMembership) {
        self.put_option_log_id(stored.log_id().as_ref());
        self.put_membership(stored.membership());
    }

    fn put_entry(&mut self, entry: &Entry) {
        self.put_log_id(&entry.log_id);
        match &entry.payload {
            EntryPayload::Blank => self.put_u8(0),
            EntryPayload::Normal(command) => {
                self.put_u8(1);
                self.put_block(&command.0);
            }
            EntryPayload::Membership(membership) => {
                self.put_u8(2);
                self.put_membership(membership);
            }
        }
    }
}

impl<T: BufMut> Encode for T {}

/// Bytes that one entry takes, give or take a membership.
pub(crate) fn entry_len(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => 32 + command.0.len(),
        EntryPayload::Blank => 32,
        EntryPayload::Membership(_) => 256,
    }
}

/// A count that fits: commands and memberships are bounded far below it.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Reads values from bytes that nobody vouches for. Never allocates by a declared length.
#[derive(Debug)]
pub(crate) struct Decoder(Bytes);

impl Decoder {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    fn need(&self, len: usize, what: &'static str) -> Result<(), Malformed> {
        if self.0.remaining() < len { Err(Malformed(what)) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.need(1, "byte")?;
        Ok(self.0.get_u8())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.need(4, "integer")?;
        Ok(self.0.get_u32_le())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.need(8, "integer")?;
        Ok(self.0.get_u64_le())
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.need(N, "array")?;
        let mut array = [0; N];
        self.0.copy_to_slice(&mut array);
        Ok(array)
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("flag")),
        }
    }

    pub(crate) fn block(&mut self) -> Result<Bytes, Malformed> {
        let len = self.u32()? as usize;
        self.need(len, "block")?;
        Ok(self.0.split_to(len))
    }

    /// Text for a person, at most a block.
    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(&self.block()?).into_owned())
    }

    pub(crate) fn rest(self) -> Bytes {
        self.0
    }

    /// Nothing may follow.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("trailing bytes")) }
    }

    pub(crate) fn log_id(&mut self) -> Result<LogId, Malformed> {
        let leader_id = LeaderId { term: self.u64()?, node_id: self.u64()? };
        Ok(LogId { leader_id, index: self.u64()? })
    }

    pub(crate) fn option_log_id(&mut self) -> Result<Option<LogId>, Malformed> {
        if self.flag()? { Ok(Some(self.log_id()?)) } else { Ok(None) }
    }

    pub(crate) fn vote(&mut self) -> Result<Vote, Malformed> {
        let leader_id = LeaderId { term: self.u64()?, node_id: self.u64()? };
        Ok(Vote { leader_id, committed: self.flag()? })
    }

    fn ids(&mut self) -> Result<BTreeSet<u64>, Malformed> {
        let count = self.u32()? as usize;
        if count > MAX_NODES {
            return Err(Malformed("membership"));
        }
        (0..count).map(|_| self.u64()).collect()
    }

    /// A membership, or openraft's sentinel without any set of voters, which defines no quorum.
    fn membership_or_none(&mut self) -> Result<Membership, Malformed> {
        let sets = self.u32()? as usize;
        if sets > MAX_SETS {
            return Err(Malformed("membership"));
        }
        let sets = (0..sets).map(|_| self.ids()).collect::<Result<Vec<_>, _>>()?;
        let nodes: BTreeMap<u64, EmptyNode> = self.ids()?.into_iter().map(|id| (id, EmptyNode {})).collect();
        Membership::new(sets, nodes).map_err(|_| Malformed("membership"))
    }

    /// A membership with at least one set of voters: with none, every set of nodes were a quorum.
    pub(crate) fn membership(&mut self) -> Result<Membership, Malformed> {
        let membership = self.membership_or_none()?;
        if membership.get_joint_config().is_empty() { Err(Malformed("membership")) } else { Ok(membership) }
    }

    pub(crate) fn stored_membership(&mut self) -> Result<StoredMembership, Malformed> {
        let log_id = self.option_log_id()?;
        let membership = if log_id.is_some() { self.membership()? } else { self.membership_or_none()? };
        Ok(StoredMembership::new(log_id, membership))
    }

    pub(crate) fn entry(&mut self) -> Result<Entry, Malformed> {
        let log_id = self.log_id()?;
        let payload = match self.u8()? {
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(Payload(self.block()?)),
            2 => EntryPayload::Membership(self.membership()?),
            _ => return Err(Malformed("entry")),
        };
        Ok(Entry { log_id, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn log_id(term: u64, node_id: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id }, index }
    }

    fn sample_membership() -> Membership {
        let sets = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        let nodes: BTreeMap<u64, EmptyNode> = (1..=6).map(|id| (id, EmptyNode {})).collect();
        Membership::new(sets, nodes).expect("valid")
    }

    fn samples() -> Vec<Entry> {
        vec![
            Entry { log_id: log_id(1, 2, 3), payload: EntryPayload::Blank },
            Entry { log_id: log_id(4, 5, 6), payload: EntryPayload::Normal(Payload(Bytes::from_static(b"command"))) },
            Entry { log_id: log_id(7, 8, u64::MAX), payload: EntryPayload::Membership(sample_membership()) },
        ]
    }

    #[test]
    fn every_entry_is_read_back_as_it_was_written() {
        for entry in samples() {
            let mut bytes = Vec::new();
            bytes.put_entry(&entry);
            let mut decoder = Decoder::new(bytes.into());
            assert_eq!(decoder.entry(), Ok(entry));
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn the_encoding_of_an_entry_does_not_change() {
        let mut bytes = Vec::new();
        bytes.put_entry(&samples()[1]);
        let mut golden = vec![4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0, 0];
        golden.extend_from_slice(b"command");
        assert_eq!(bytes, golden, "entries on disk would become unreadable");
    }

    #[test]
    fn bytes_cut_short_or_changed_are_refused_or_read_but_never_panic() {
        for entry in samples() {
            let mut bytes = Vec::new();
            bytes.put_entry(&entry);
            for len in 0..bytes.len() {
                let cut = Bytes::copy_from_slice(&bytes[..len]);
                assert!(Decoder::new(cut).entry().is_err(), "{len} of {} bytes", bytes.len());
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    let _ = Decoder::new(changed.into()).entry();
                }
            }
        }
    }

    #[test]
    fn a_membership_without_voters_is_refused_in_an_entry() {
        let mut bytes = Vec::new();
        bytes.put_log_id(&log_id(1, 1, 1));
        bytes.put_u8(2);
        bytes.put_membership(&Membership::default());
        assert_eq!(Decoder::new(bytes.into()).entry(), Err(Malformed("membership")));
    }

    #[test]
    fn a_stored_membership_survives_even_when_there_is_none_yet() {
        for stored in [StoredMembership::default(), StoredMembership::new(Some(log_id(1, 1, 1)), sample_membership())] {
            let mut bytes = Vec::new();
            bytes.put_stored_membership(&stored);
            assert_eq!(Decoder::new(bytes.into()).stored_membership(), Ok(stored));
        }
    }
}
