//! What one put asks to be written.

use crate::chunk::Chunk;
use crate::index::Place;
use crate::library::{HoldRecord, InstanceCommit};
use crate::pack::{Kind, RECORD_HEADER_BYTES};

/// The content of a put: pieces, then what commits them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) manifests: Vec<Chunk>,
    pub(crate) closing: Option<Closing>,
    /// Records that are written anew, out of the packs where they lie.
    pub(crate) moves: Vec<Move>,
    /// The day (since 1970-01-01, UTC) on which the retention of all of it is expected to end.
    pub(crate) day: Option<u64>,
    /// Whether an instance is written although the same data set is listed and whole.
    pub(crate) is_anew: bool,
}

/// A record that moves to another pack. Nothing happens if its row has moved on from `from`.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub(crate) from: Place,
    pub(crate) what: Moved,
}

/// What moves.
#[derive(Debug, Clone)]
pub(crate) enum Moved {
    Piece { kind: Kind, chunk: Chunk },
    Commit(u64, InstanceCommit),
}

/// The last record of a put: it is there only if all before it is.
#[derive(Debug, Clone)]
pub(crate) enum Closing {
    Instance(InstanceCommit),
    Hold(HoldRecord),
}

/// A commit's or hold's record beside the lists in it: five strings of at most 64 bytes, hashes, numbers.
const CLOSING_BYTES: u64 = 1024;
/// A pack's id in a hold record, in varints.
const PACK_ID_BYTES: u64 = 15;

impl Content {
    /// Payload bytes.
    pub(crate) fn byte_len(&self) -> u64 {
        self.pieces().map(|chunk| chunk.byte_len() as u64).sum::<u64>()
            + self.closing_bytes_max()
            + self.moved_bytes_max()
    }

    /// What it takes in a pack if nothing of it is there yet.
    pub(crate) fn record_bytes_max(&self) -> u64 {
        let records = self.chunks.len() + self.manifests.len() + self.moves.len() + 1;
        self.byte_len() + RECORD_HEADER_BYTES * records as u64
    }

    fn pieces(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().chain(&self.manifests)
    }

    fn moved_bytes_max(&self) -> u64 {
        let of = |moved: &Move| match &moved.what {
            Moved::Piece { chunk, .. } => chunk.byte_len() as u64,
            Moved::Commit(..) => CLOSING_BYTES,
        };
        self.moves.iter().map(of).sum()
    }

    fn closing_bytes_max(&self) -> u64 {
        match &self.closing {
            None => 0,
            Some(Closing::Instance(_)) => CLOSING_BYTES,
            Some(Closing::Hold(hold)) => CLOSING_BYTES + PACK_ID_BYTES * hold.packs.len() as u64,
        }
    }
}
