//! Byte strings looked for in a file, all of them in one pass.
//!
//! A file is read at every so many bytes only, a word at a time, and that is looked up among words of the marks. Of each
//! mark as many are kept, one a byte, as there are bytes from one read to the next: so one of them is read wherever the
//! mark is.

use super::pages::{Pages, WORD, word};

/// Bytes from one word that is read to the next, at most: the more there are, the more words of each mark are kept.
const STRIDE_MAX: usize = 64;
/// Places in the filter for each word that is kept.
const FILTER_PLACES: usize = 16;

/// See the module.
pub(super) struct Marks<'a> {
    marks: Vec<&'a [u8]>,
    stride: usize,
    /// Bytes of a word that are compared: no mark has fewer.
    window: usize,
    /// Sorted, each with the number of its mark, and where it is in it.
    words: Vec<(u64, usize, usize)>,
    /// By the hash of a word, whether it may be among them.
    filter: Vec<bool>,
}

impl<'a> Marks<'a> {
    pub(super) fn new(marks: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let marks: Vec<&[u8]> = marks.into_iter().collect();
        let shortest = marks.iter().map(|mark| mark.len()).min().unwrap_or(0);
        let window = shortest.min(WORD);
        let stride = (shortest - window + 1).min(STRIDE_MAX);
        let mut words = Vec::with_capacity(marks.len() * stride);
        for (which, mark) in marks.iter().enumerate() {
            let first = first_telling(mark, stride, window);
            words.extend((first..first + stride).map(|within| (word(&mark[within..within + window]), which, within)));
        }
        words.sort_unstable();
        let mut filter = vec![false; (words.len() * FILTER_PLACES).next_power_of_two()];
        for (word, ..) in &words {
            let place = place_of(*word, filter.len());
            filter[place] = true;
        }
        Self { marks, stride, window, words, filter }
    }

    /// Asks `is_it` of every place at which a mark is, by the mark's number and the place, until it says so; of the
    /// places of one mark, the last first.
    pub(super) fn any_in(&self, pages: &Pages, mut is_it: impl FnMut(usize, usize) -> bool) -> bool {
        let Some(last) = pages.len().checked_sub(self.window) else { return false };
        let mask = word(&[u8::MAX; WORD][..self.window]);
        for at in (0..=last / self.stride).rev().map(|step| step * self.stride) {
            let read = pages.word(at) & mask;
            if !self.filter[place_of(read, self.filter.len())] {
                continue;
            }
            let same = self.words.partition_point(|(word, ..)| *word < read);
            for (_, which, within) in self.words[same..].iter().take_while(|(word, ..)| *word == read) {
                let is_there = |start: &usize| pages.holds(*start, self.marks[*which]);
                if at.checked_sub(*within).filter(is_there).is_some_and(|start| is_it(*which, start)) {
                    return true;
                }
            }
        }
        false
    }
}

/// Where in a mark the words begin that are kept: where none is one byte again and again, of which files have much.
fn first_telling(mark: &[u8], stride: usize, window: usize) -> usize {
    let reach = stride + window - 1;
    let tells = |at: usize| mark[at..at + window].iter().any(|byte| *byte != mark[at]);
    let mut rows = (0..=mark.len() - reach).step_by(reach.max(1));
    rows.find(|first| (*first..first + stride).all(tells)).unwrap_or(0)
}

fn place_of(word: u64, places: usize) -> usize {
    let mixed = (word ^ (word >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    usize::try_from(mixed).unwrap_or(0) & (places - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rng::Rng;

    const PAGE: usize = 4096;

    /// Where each mark is, by looking for it everywhere.
    fn places(content: &[u8], marks: &[Vec<u8>]) -> BTreeSet<(usize, usize)> {
        let mut places = BTreeSet::new();
        for (which, mark) in marks.iter().enumerate() {
            let all = content.windows(mark.len()).enumerate();
            places.extend(all.filter(|(_, window)| *window == &mark[..]).map(|(at, _)| (which, at)));
        }
        places
    }

    /// A file of few kinds of bytes, so that much of it is nearly as a mark is, with holes.
    fn drawn(rng: &mut Rng) -> Pages {
        let mut pages = Pages::default();
        for _ in 0..rng.between(1, 5) {
            let kinds = [1, 2, 5, u8::MAX][rng.index(4)];
            let (at, mut piece) = (rng.index(3 * PAGE), vec![0_u8; rng.index(3_000)]);
            rng.fill(&mut piece);
            piece.iter_mut().for_each(|byte| *byte %= kinds);
            pages.write(at, &piece);
        }
        pages.resize(pages.len() + rng.index(2) * rng.index(PAGE));
        pages
    }

    /// Pieces of a file, some of them over the border of a page, some with a byte changed.
    fn pieces(rng: &mut Rng, content: &[u8], shortest: usize) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        for _ in 0..8 {
            let len = shortest + rng.index(100);
            let at = if rng.chance(0.5) { PAGE - rng.index(len.min(PAGE)) } else { rng.index(content.len()) };
            let Some(piece) = content.get(at..at + len) else { continue };
            let mut piece = piece.to_vec();
            if rng.chance(0.3) {
                piece[rng.index(len)] ^= 1;
            }
            pieces.push(piece);
        }
        pieces
    }

    #[test]
    fn every_place_of_every_mark_is_found_once_the_last_first() {
        let mut found = 0;
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let pages = drawn(&mut rng);
            let content = pages.read(0, usize::MAX);
            let shortest = [1, 3, 8, 9, 40, 71, 300][rng.index(7)];
            let marks = pieces(&mut rng, &content, shortest);
            let mut told = Vec::new();
            let all_are_told = Marks::new(marks.iter().map(Vec::as_slice)).any_in(&pages, |which, at| {
                told.push((which, at));
                false
            });
            assert!(!all_are_told);
            let distinct: BTreeSet<(usize, usize)> = told.iter().copied().collect();
            assert!(distinct == places(&content, &marks), "seed {seed}");
            assert_eq!(distinct.len(), told.len(), "seed {seed}: one is told twice");
            for which in 0..marks.len() {
                let places: Vec<usize> = told.iter().filter(|told| told.0 == which).map(|told| told.1).collect();
                assert!(places.is_sorted_by(|one, next| one > next), "seed {seed}");
            }
            found += told.len();
        }
        assert!(found > 100, "{found} places");
    }

    #[test]
    fn the_search_ends_with_the_place_that_is_looked_for() {
        let mut pages = Pages::default();
        pages.write(PAGE - 3, b"a mark, and a mark");
        let marks = Marks::new([&b"a mark"[..], b"no mark"]);
        let mut told = Vec::new();
        assert!(marks.any_in(&pages, |_, at| {
            told.push(at);
            at < PAGE
        }));
        assert_eq!(told, [PAGE + 9, PAGE - 3]);
        assert!(!Marks::new([]).any_in(&pages, |_, _| true));
        assert!(!marks.any_in(&Pages::default(), |_, _| true));
    }
}
