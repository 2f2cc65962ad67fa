//! Walking the audit chain from end to end.
//!
//! Each value of the chain is BLAKE3 of the value before it and of its entry, so that an entry that was
//! changed, removed, added or moved is found at the first place where the kept value is not the computed
//! one. What the chain alone cannot show is its end being cut off: that is found by the chain's kept
//! value, which the cut-off entries had moved on, and by what other sites attest.

use maillage_consensus::View;
use maillage_consensus::audit::{Link, chain};
use maillage_consensus::ids::Address;
use maillage_consensus::machine::ApplyError;

/// Entries in memory at once.
const PAGE: usize = 1_000;

/// What a walk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Entries that were looked at.
    pub(crate) entries: u64,
    /// The index of the last good one; 0 for none.
    pub(crate) last: u64,
    /// The chain's value after it.
    pub(crate) chain: Address,
    /// The first thing that is wrong: at which index, and what.
    pub(crate) broken: Option<(u64, &'static str)>,
}

/// A walk under way.
struct Walk(Verdict);

impl Walk {
    fn new() -> Self {
        Self(Verdict { entries: 0, last: 0, chain: [0; 32], broken: None })
    }

    /// Looks at the next entry; false once something is wrong.
    fn step(&mut self, link: &Link) -> bool {
        let (walk, index) = (&mut self.0, link.entry.index);
        walk.entries += 1;
        if index <= walk.last {
            walk.broken = Some((index, "an entry is out of its order"));
        } else {
            let value = chain(&walk.chain, &link.entry);
            if value == link.chain {
                (walk.last, walk.chain) = (index, value);
            } else {
                walk.broken = Some((index, "the entry, or one before it, is not what was written"));
            }
        }
        walk.broken.is_none()
    }

    /// Compares the end with the chain's kept value.
    fn end(mut self, head: &Address) -> Verdict {
        if self.0.broken.is_none() && self.0.chain != *head {
            self.0.broken = Some((self.0.last + 1, "entries at the end are missing"));
        }
        self.0
    }
}

/// Walks the whole trail of `view`, a page at a time.
///
/// # Errors
/// When the state cannot be read; an entry that cannot be decoded is such an error.
pub(crate) fn verify(view: &View<'_>) -> Result<Verdict, ApplyError> {
    let mut walk = Walk::new();
    let mut after = 0;
    loop {
        let links = view.audit(after, PAGE)?;
        for link in &links {
            if !walk.step(link) {
                return Ok(walk.0);
            }
        }
        match links.last() {
            Some(last) if links.len() == PAGE => after = last.entry.index,
            _ => return Ok(walk.end(&view.audit_chain()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::describe::testing::{entry, trail};

    fn walk(links: &[Link], head: &Address) -> Verdict {
        let mut walk = Walk::new();
        for link in links {
            if !walk.step(link) {
                return walk.0;
            }
        }
        walk.end(head)
    }

    #[test]
    fn a_whole_trail_is_found_good() {
        let links = trail(20);
        let verdict = walk(&links, &links[19].chain);
        assert_eq!((verdict.entries, verdict.last, verdict.broken), (20, links[19].entry.index, None));
        assert_eq!(walk(&[], &[0; 32]).broken, None, "an empty one too");
    }

    #[test]
    fn whatever_is_changed_in_an_entry_is_found_there() {
        let links = trail(20);
        let change: [fn(&mut Link); 8] = [
            |link| link.entry.at.0 += 1,
            |link| link.entry.user = maillage_consensus::ids::Name::fitted("dr-b"),
            |link| link.entry.site.0 += 1,
            |link| link.entry.why = maillage_consensus::ids::Line::fitted("no reason"),
            |link| link.entry.outcome = maillage_consensus::ids::Line::fitted("refused"),
            |link| link.entry.exam = None,
            |link| link.entry.command[31] ^= 1,
            |link| link.chain[0] ^= 1,
        ];
        for (n, change) in change.into_iter().enumerate() {
            let mut changed = links.clone();
            change(&mut changed[7]);
            let broken = walk(&changed, &links[19].chain).broken.map(|(index, _)| index);
            assert_eq!(broken, Some(links[7].entry.index), "change {n}");
        }
    }

    #[test]
    fn an_entry_removed_added_or_swapped_is_found_where_it_was() {
        let links = trail(20);
        let broken = |links: &[Link], head| walk(links, head).broken.map(|(index, _)| index);
        let head = &links[19].chain;
        let mut removed = links.clone();
        removed.remove(7);
        assert_eq!(broken(&removed, head), Some(links[8].entry.index));
        let mut swapped = links.clone();
        swapped.swap(7, 8);
        assert_eq!(broken(&swapped, head), Some(links[8].entry.index));
        // In each other's place, under each other's number.
        let mut exchanged = links.clone();
        exchanged.swap(7, 8);
        (exchanged[7].entry.index, exchanged[8].entry.index) = (links[7].entry.index, links[8].entry.index);
        assert_eq!(broken(&exchanged, head), Some(links[7].entry.index));
        let mut doubled = links.clone();
        doubled.insert(8, links[7].clone());
        assert_eq!(broken(&doubled, head), Some(links[7].entry.index));
        let mut first = links.clone();
        first.remove(0);
        assert_eq!(broken(&first, head), Some(links[1].entry.index));
        // A forger who chains his own entry rightly still ends elsewhere than the chain did.
        let mut forged = links[..19].to_vec();
        let own = entry(links[19].entry.index, "cancel");
        forged.push(Link { chain: chain(&links[18].chain, &own), entry: own });
        assert!(broken(&forged, head).is_some());
        assert!(broken(&links[..19], head).is_some(), "the end cut off");
    }
}
