//! What the log keeps in memory: its ends, the newest entries, and where every entry lies on disk.
//!
//! Two parties change it. The log's owner appends, truncates and purges at once, so that an entry is
//! readable when `append` returns; the writer follows with the places, once bytes are durable. An
//! entry leaves memory only when its place is known, so every entry is always in one or the other.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use maillage_host::DiskFile;

use super::Limits;
use crate::raft::codec::entry_len;
use crate::raft::types::{Entry, LogId, Vote};

/// Where an entry's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// The log's state in memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    /// The newest entries, and the index of the first of them (or of the next one, when empty).
    tail: VecDeque<Entry>,
    tail_start: u64,
    tail_bytes: usize,
    /// Places of the entries from `places_start` on.
    places: VecDeque<Place>,
    places_start: u64,
    /// Truncations that the writer has not made durable yet: until then, places after the cut are
    /// those of entries that are gone.
    truncations: usize,
    /// Every segment that exists, open.
    pub(super) segments: BTreeMap<u64, DiskFile>,
}

/// Entries found for a range: places first, the rest from memory.
pub(super) struct Found {
    /// Index of the first entry.
    pub(super) first: u64,
    pub(super) places: Vec<Place>,
    pub(super) files: BTreeMap<u64, DiskFile>,
    pub(super) tail: Vec<Entry>,
}

impl Memory {
    /// Appends `entries`, which must continue the log.
    ///
    /// # Errors
    /// When they leave a hole.
    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            let index = entry.log_id.index;
            match &self.last {
                Some(last) if index != last.index + 1 => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "appended entries leave a hole in the log",
                    ));
                }
                Some(_) => {}
                None => self.tail_start = index,
            }
            self.last = Some(entry.log_id);
            self.tail_bytes += entry_len(entry);
            self.tail.push_back(entry.clone());
        }
        Ok(())
    }

    /// Lets the next entry have any index: it is the first of a log whose older segments are gone.
    pub(super) fn restart(&mut self) {
        self.last = None;
    }

    /// Forgets the entries after `after`.
    pub(super) fn truncate(&mut self, after: Option<LogId>) {
        self.truncations += 1;
        let keep_to = after.map_or(0, |id| id.index + 1);
        if self.last.is_none_or(|last| last.index < keep_to) {
            return;
        }
        while let Some(entry) = self.tail.back()
            && entry.log_id.index >= keep_to
        {
            self.tail_bytes -= entry_len(entry);
            self.tail.pop_back();
        }
        if self.tail.is_empty() {
            self.tail_start = self.tail_start.min(keep_to);
        }
        self.last = after.max(self.purged);
    }

    /// Forgets the entries up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        while let Some(entry) = self.tail.front()
            && entry.log_id.index <= upto.index
        {
            self.tail_bytes -= entry_len(entry);
            self.tail.pop_front();
        }
        self.tail_start = self.tail_start.max(upto.index + 1);
        self.purged = Some(upto);
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
    }

    /// The writer made the entry at `index` durable at `place`.
    pub(super) fn placed(&mut self, index: u64, place: Place) {
        if self.places.is_empty() {
            self.places_start = index;
        }
        self.places.push_back(place);
    }

    /// The writer made a truncation durable.
    pub(super) fn truncate_places(&mut self, after: Option<LogId>) {
        let keep_to = after.map_or(0, |id| id.index + 1);
        let keep = keep_to.saturating_sub(self.places_start);
        self.places.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.truncations = self.truncations.saturating_sub(1);
    }

    /// The writer made a purge durable. Returns the oldest segment that is still needed, if any entry is.
    pub(super) fn purge_places(&mut self, upto: LogId) -> Option<u64> {
        while self.places_start <= upto.index && self.places.pop_front().is_some() {
            self.places_start += 1;
        }
        self.places.front().map(|place| place.sequence)
    }

    /// Index of the oldest entry on disk and the number of entries placed.
    pub(super) fn placed_range(&self) -> (u64, u64) {
        (self.places_start, self.places.len() as u64)
    }

    #[cfg(test)]
    pub(super) fn place_of(&self, index: u64) -> u64 {
        let at = usize::try_from(index - self.places_start).expect("small");
        u64::from(self.places[at].offset)
    }

    /// Lets go of the oldest entries in memory beyond `limits`, as far as they are on disk.
    pub(super) fn evict(&mut self, limits: &Limits) {
        if self.truncations > 0 {
            return;
        }
        let placed_to = self.places_start + self.places.len() as u64;
        while self.tail_bytes > limits.tail_bytes || self.tail.len() > limits.tail_entries {
            let Some(entry) = self.tail.front() else { return };
            if self.places.is_empty() || entry.log_id.index >= placed_to || entry.log_id.index < self.places_start {
                return;
            }
            self.tail_bytes -= entry_len(entry);
            self.tail.pop_front();
            self.tail_start += 1;
        }
    }

    /// The entries of the log in `from..to`, of at most `max_bytes` but at least one. What the log
    /// does not contain is left out at both ends.
    ///
    /// # Errors
    /// When an entry in the middle is nowhere: never, unless this module is wrong.
    pub(super) fn find(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Found> {
        let mut found = Found { first: from, places: Vec::new(), files: BTreeMap::new(), tail: Vec::new() };
        let Some(last) = self.last else { return Ok(found) };
        let oldest = if self.places.is_empty() { self.tail_start } else { self.places_start.min(self.tail_start) };
        let oldest = self.purged.map_or(oldest, |purged| oldest.max(purged.index + 1));
        let to = to.min(last.index + 1);
        found.first = from.max(oldest);
        let mut bytes = 0;
        for index in found.first..to {
            if index < self.tail_start {
                let hole = || io::Error::other("an entry of the log is neither in memory nor on disk");
                let at =
                    index.checked_sub(self.places_start).and_then(|at| usize::try_from(at).ok()).ok_or_else(hole)?;
                let place = *self.places.get(at).ok_or_else(hole)?;
                bytes += place.len as usize;
                if bytes > max_bytes && index > found.first {
                    break;
                }
                if let std::collections::btree_map::Entry::Vacant(slot) = found.files.entry(place.sequence) {
                    slot.insert(self.segments.get(&place.sequence).cloned().ok_or_else(hole)?);
                }
                found.places.push(place);
            } else {
                let at = usize::try_from(index - self.tail_start).map_err(io::Error::other)?;
                let Some(entry) = self.tail.get(at) else { break };
                bytes += entry_len(entry);
                if bytes > max_bytes && index > found.first {
                    break;
                }
                found.tail.push(entry.clone());
            }
        }
        Ok(found)
    }
}
