//! A file's bytes in pages, as a page cache has them: what was never written, or only with zeroes, takes
//! no memory, and the two copies of a file share the pages that do not differ.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes of a word.
pub(super) const WORD: usize = 8;

type Page = [u8; PAGE];

static ZEROES: Page = [0; PAGE];

/// Up to eight bytes as a number, the first the lowest.
pub(super) fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// A file's content. A clone shares every page until one of the two writes to it.
#[derive(Clone, Default)]
pub(super) struct Pages {
    len: usize,
    /// None is a page of zeroes.
    pages: Vec<Option<Arc<Page>>>,
}

impl Pages {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Cuts the file, or makes it longer with zeroes.
    pub(super) fn resize(&mut self, len: usize) {
        self.pages.resize(len.div_ceil(PAGE), None);
        // What is cut away is read as zeroes when the file grows again.
        if len < self.len
            && !len.is_multiple_of(PAGE)
            && let Some(Some(page)) = self.pages.last_mut()
        {
            Arc::make_mut(page)[len % PAGE..].fill(0);
        }
        self.len = len;
    }

    /// Writes `bytes` at `at`; a gap before it is zeroes.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        if self.len < at + bytes.len() {
            self.resize(at + bytes.len());
        }
        let (mut at, mut bytes) = (at, bytes);
        while !bytes.is_empty() {
            let (within, room) = (at % PAGE, PAGE - at % PAGE);
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            let page = &mut self.pages[at / PAGE];
            let adds_nothing = page.is_none() && *piece == ZEROES[..piece.len()];
            if !adds_nothing {
                let page = Arc::make_mut(page.get_or_insert_with(|| Arc::new([0; PAGE])));
                page[within..within + piece.len()].copy_from_slice(piece);
            }
            at += piece.len();
            bytes = rest;
        }
    }

    /// Up to `len` bytes from `at` on; fewer at the end.
    pub(super) fn read(&self, at: usize, len: usize) -> Bytes {
        let end = at.saturating_add(len).min(self.len);
        let mut bytes = BytesMut::with_capacity(end.saturating_sub(at));
        let mut at = at;
        while at < end {
            let within = at % PAGE;
            let take = (PAGE - within).min(end - at);
            match &self.pages[at / PAGE] {
                Some(page) => bytes.extend_from_slice(&page[within..within + take]),
                None => bytes.resize(bytes.len() + take, 0),
            }
            at += take;
        }
        bytes.freeze()
    }

    /// The word at `at`; zeroes where the file has no page.
    pub(super) fn word(&self, at: usize) -> u64 {
        let page = |at: usize| self.pages.get(at / PAGE).and_then(Option::as_deref);
        if at % PAGE > PAGE - WORD {
            let byte = |at: usize| page(at).map_or(0, |page| page[at % PAGE]);
            return u64::from_le_bytes(std::array::from_fn(|next| byte(at + next)));
        }
        page(at).map_or(0, |page| word(&page[at % PAGE..][..WORD]))
    }

    /// Whether `bytes` are at `at`.
    pub(super) fn holds(&self, at: usize, bytes: &[u8]) -> bool {
        if self.len < at + bytes.len() {
            return false;
        }
        let (mut at, mut bytes) = (at, bytes);
        while !bytes.is_empty() {
            let (within, room) = (at % PAGE, PAGE - at % PAGE);
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            let page = self.pages[at / PAGE].as_deref().unwrap_or(&ZEROES);
            if page[within..within + piece.len()] != *piece {
                return false;
            }
            at += piece.len();
            bytes = rest;
        }
        true
    }

    /// Flips bits of one byte.
    pub(super) fn flip(&mut self, at: usize, bit: u8) {
        if at < self.len {
            let page = self.pages[at / PAGE].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[at % PAGE] ^= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn pages_hold_what_a_plain_vector_would() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let (mut pages, mut plain) = (Pages::default(), Vec::new());
            for step in 0..60_u8 {
                let at = rng.index(3 * PAGE);
                match rng.index(4) {
                    0 => {
                        pages.resize(at);
                        plain.resize(at, 0);
                    }
                    1 if at < plain.len() => {
                        pages.flip(at, 1);
                        plain[at] ^= 1;
                    }
                    _ => {
                        let content = vec![if rng.chance(0.3) { 0 } else { step }; rng.index(2 * PAGE)];
                        let end = at + content.len();
                        pages.write(at, &content);
                        plain.resize(plain.len().max(end), 0);
                        plain[at..end].copy_from_slice(&content);
                    }
                }
                assert_eq!(pages.len(), plain.len());
                assert_eq!(pages.read(0, usize::MAX), plain, "seed {seed}, step {step}");
                let there = plain.get(at..plain.len().min(at + 5)).unwrap_or_default();
                assert_eq!(pages.read(at, 5), there);
                assert_eq!(pages.word(at).to_le_bytes()[..there.len()], *there);
                assert_eq!(pages.holds(at, there), at <= plain.len());
                let other: Vec<u8> = there.iter().map(|byte| byte ^ 1).collect();
                assert_eq!(pages.holds(at, &other), at <= plain.len() && other.is_empty());
            }
        }
    }

    #[test]
    fn a_clone_keeps_what_it_had() {
        let mut pages = Pages::default();
        pages.write(PAGE - 1, b"ab");
        let before = pages.clone();
        pages.write(PAGE, b"c");
        assert_eq!((&before.read(PAGE - 1, 9)[..], &pages.read(PAGE - 1, 9)[..]), (&b"ab"[..], &b"ac"[..]));
    }
}
