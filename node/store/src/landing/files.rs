//! The files of the landing: their form, and what an opening finds in them.
//!
//! ```text
//! [header of a pack, its day 0][record][record] …
//! record: header (kind 7, the hash is of what is said), length of what is said 2 (LE), what is said, sealed bytes
//! ```

use std::io;

use bytes::Bytes;
use maillage_host::DiskFile;

use super::{Arrived, At, File, Inner, Landed, Way};
use crate::error::OpenError;
use crate::hash::Hash;
use crate::pack::{HEADER_BYTES, HEADER_LEN, HeaderError, Kind, PackHeader, PackId, RECORD_HEADER_BYTES, Walk, Walked};

/// Of what is said of a data set: one byte, then postcard.
const VERSION: u8 = 1;
/// The length of what is said.
const LEN_BYTES: usize = 2;
/// The longest that is read: four UIDs, a source and hashes are some 400 bytes.
const SAID_BYTES_MAX: usize = 1024;

pub(super) fn id(number: u64) -> PackId {
    PackId { number, generation: 0 }
}

pub(super) fn path(directory: &str, number: u64) -> String {
    format!("{directory}/{}", id(number))
}

/// What stands before the sealed bytes, and the hash that the record's header has of it.
pub(super) fn encode(landed: &Landed) -> io::Result<(Bytes, Hash)> {
    let said = postcard::to_extend(landed, vec![VERSION]).map_err(io::Error::other)?;
    let len = u16::try_from(said.len()).ok().filter(|_| said.len() <= SAID_BYTES_MAX);
    let len = len.ok_or_else(|| io::Error::other("too much is said of a data set"))?;
    let hash = Hash::of(&said);
    Ok(([&len.to_le_bytes()[..], &said].concat().into(), hash))
}

/// What is said, and how many bytes stand before the sealed ones.
fn decode(payload: &[u8], hash: Hash) -> Option<(Landed, usize)> {
    let (len, rest) = payload.split_first_chunk::<LEN_BYTES>()?;
    let len = usize::from(u16::from_le_bytes(*len));
    let said = rest.get(..len).filter(|said| Hash::of(said) == hash)?;
    let (version, body) = said.split_first()?;
    let landed = postcard::from_bytes(body).ok().filter(|_| *version == VERSION)?;
    Some((landed, LEN_BYTES + len))
}

/// Reads all files: what is in them is to be done, and what cannot be read is counted. Returns the number of the
/// next file.
pub(super) async fn read_all(inner: &Inner) -> Result<u64, OpenError> {
    let names = inner.disk.list(&inner.directory).await.map_err(OpenError::Directory)?;
    if !names.is_empty() {
        // A process that was killed may not have synced the name of its last file.
        inner.disk.sync_dir(&inner.directory).await.map_err(OpenError::Directory)?;
    }
    let mut next_number = 0;
    for id in names.iter().filter_map(|name| PackId::parse(name)) {
        next_number = next_number.max(id.number + 1);
        let of_file = |error| OpenError::Pack { pack: path(&inner.directory, id.number), error };
        let handle = inner.disk.open(&path(&inner.directory, id.number)).await.map_err(of_file)?;
        let Some((arrived, lost)) = read(&handle, id).await? else {
            inner.remove(id.number).await;
            continue;
        };
        let bytes = handle.len().await.map_err(of_file)?;
        let studies = arrived.iter().map(|(landed, _)| landed.study_uid.clone()).collect();
        let mut entries = Vec::with_capacity(arrived.len());
        for (landed, at) in arrived {
            let in_use = inner.keys.in_use(&landed.study_uid).await;
            entries.push((Arrived { landed, at, is_earlier: true }, in_use));
        }
        let mut state = inner.state();
        let left = entries.len() + lost;
        for (arrived, in_use) in entries {
            state.in_use.insert(arrived.at.key(), in_use);
            let Landed { study_uid, sop_instance, .. } = &arrived.landed;
            let way = Way { study_uid: study_uid.clone(), has_landed: true };
            state.under_way.insert(sop_instance.clone(), way);
            *state.earlier.entry(study_uid.clone()).or_default() += 1;
            state.todo.push_back(arrived);
        }
        state.bytes += bytes;
        state.stuck += lost as u64;
        state.files.insert(
            id.number,
            File { handle, bytes, left, studies, is_open: false, is_stuck: lost > 0, is_going: false },
        );
    }
    Ok(next_number)
}

/// What is to be done of a file, and how much of what was durable cannot be read; none when it is to go.
async fn read(handle: &DiskFile, id: PackId) -> Result<Option<(Vec<(Landed, At)>, usize)>, OpenError> {
    let of_file = |error| OpenError::Pack { pack: id.to_string(), error };
    let lost = |what: &str| {
        tracing::error!(file = %id, what, "a file of the landing cannot be read: images in it are lost here");
        Ok(Some((Vec::new(), 1)))
    };
    let len = handle.len().await.map_err(of_file)?;
    let block = match handle.read_at(0, HEADER_LEN).await {
        Ok(block) => block,
        Err(error) if crate::store::is_damage(&error) => return lost("its header"),
        Err(error) => return Err(of_file(error)),
    };
    let header = match PackHeader::decode(&block) {
        Ok(header) => header,
        Err(HeaderError::Version) => return Err(OpenError::Version { pack: id.to_string() }),
        // Nothing is appended before the header is durable.
        Err(HeaderError::Damaged) if len <= HEADER_BYTES => return Ok(None),
        Err(HeaderError::Damaged) => return lost("its header"),
    };
    let walk = match Walk::run(handle, HEADER_BYTES, len, header.salt).await {
        Ok(walk) => walk,
        Err(error) if crate::store::is_damage(&error) => return lost("its records"),
        Err(error) => return Err(of_file(error)),
    };
    let mut lost = walk.gaps.iter().filter(|(from, _)| *from < walk.synced_before).count();
    let mut arrived = Vec::with_capacity(walk.records.len());
    for record in walk.records.iter().filter(|record| record.header.kind == Kind::Landed) {
        let may_be_torn = record.end() > walk.synced_before;
        match said(handle, record).await.map_err(of_file)? {
            Some((landed, before)) => {
                let offset = record.offset + RECORD_HEADER_BYTES + before as u64;
                let len = (record.header.len as usize).saturating_sub(before);
                arrived.push((landed, At { file: id.number, offset, len, may_be_torn }));
            }
            None => lost += usize::from(!may_be_torn),
        }
    }
    if lost > 0 {
        tracing::error!(file = %id, lost, "a file of the landing is damaged: images in it are lost here");
    }
    Ok((lost > 0 || !arrived.is_empty()).then_some((arrived, lost)))
}

async fn said(handle: &DiskFile, record: &Walked) -> io::Result<Option<(Landed, usize)>> {
    let len = (record.header.len as usize).min(LEN_BYTES + SAID_BYTES_MAX);
    match handle.read_at(record.offset + RECORD_HEADER_BYTES, len).await {
        Ok(bytes) => Ok(decode(&bytes, record.header.hash)),
        Err(error) if crate::store::is_damage(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::KeyId;

    #[test]
    fn what_is_said_comes_back_unless_a_bit_of_it_differs() {
        let landed = Landed {
            study_uid: "1.2".into(),
            sop_instance: "1.2.3".into(),
            sop_class: "1.2.840.10008.5.1.4.1.1.2".into(),
            transfer_syntax: "1.2.840.10008.1.2.1".into(),
            dataset_hash: Hash([1; 32]),
            received_at: 1_700_000_000_000,
            source: "CT1".into(),
            key: KeyId([2; 16]),
        };
        let (bytes, hash) = encode(&landed).expect("encode");
        let mut payload = bytes.to_vec();
        payload.extend_from_slice(b"sealed");
        assert_eq!(decode(&payload, hash), Some((landed, bytes.len())));
        for bit in 0..8 * bytes.len() {
            let mut flipped = payload.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped, hash), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(decode(&payload[..len], hash), None, "{len} bytes");
        }
    }
}
