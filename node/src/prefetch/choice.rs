//! What to bring and what to drop next, within a budget. Pure.

use std::collections::BTreeSet;

use maillage_store::Hash;

/// A part that was prefetched and is still here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) manifest: Hash,
    /// Bytes that it takes.
    pub(super) bytes: u64,
    /// When it was noted, in ms since 1970.
    pub(super) since_ms: u64,
    /// Whether all of it came; else it takes more than it does now.
    pub(super) is_whole: bool,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Drop this one.
    Drop(Hash),
    /// Bring the wish at this place of the list.
    Bring(usize),
}

/// The next step towards having the first of the `wishes` (manifest, once, and most bytes), the most likely first, as far as
/// the budget goes. What is kept and not among them stays as long as there is room, and goes the oldest first.
pub(super) fn next_step(budget: u64, wishes: &[(Hash, u64)], kept: &[Kept], is_put_off: &dyn Fn(Hash) -> bool) -> Step {
    let of = |manifest: Hash| kept.iter().find(|one| one.manifest == manifest);
    let size_of = |manifest: Hash| of(manifest).filter(|one| one.is_whole).map(|one| one.bytes);
    let (mut granted, mut sum) = (BTreeSet::new(), 0_u64);
    for (manifest, bytes) in wishes {
        // What is here takes what it takes; coded, it is less than it was thought to be.
        let bytes = size_of(*manifest).unwrap_or(*bytes);
        if sum.saturating_add(bytes) <= budget && granted.insert(*manifest) {
            sum += bytes;
        }
    }
    let used = kept.iter().fold(0_u64, |sum, one| sum.saturating_add(one.bytes));
    let spare =
        kept.iter().filter(|one| !granted.contains(&one.manifest)).min_by_key(|one| (one.since_ms, one.manifest));
    if used > budget {
        return spare.map_or(Step::Nothing, |one| Step::Drop(one.manifest));
    }
    let lacking = wishes
        .iter()
        .position(|(manifest, _)| granted.contains(manifest) && size_of(*manifest).is_none() && !is_put_off(*manifest));
    let Some((place, (_, bytes))) = lacking.and_then(|place| Some((place, wishes.get(place)?))) else {
        return Step::Nothing;
    };
    let more = wishes
        .get(place)
        .and_then(|(manifest, _)| of(*manifest))
        .map_or(*bytes, |begun| bytes.saturating_sub(begun.bytes));
    match spare {
        Some(spare) if used.saturating_add(more) > budget => Step::Drop(spare.manifest),
        _ => Step::Bring(place),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    fn hash(n: u8) -> Hash {
        Hash([n; 32])
    }

    fn kept(n: u8, bytes: u64, since_ms: u64) -> Kept {
        Kept { manifest: hash(n), bytes, since_ms, is_whole: true }
    }

    fn step(budget: u64, wishes: &[(u8, u64)], kept: &[Kept]) -> Step {
        let wishes: Vec<_> = wishes.iter().map(|(n, bytes)| (hash(*n), *bytes)).collect();
        next_step(budget, &wishes, kept, &|_| false)
    }

    #[test]
    fn the_head_of_the_room_comes_first_and_only_what_fits() {
        assert_eq!(step(100, &[(1, 60), (2, 60), (3, 30)], &[]), Step::Bring(0));
        let one = [kept(1, 60, 0)];
        assert_eq!(step(100, &[(1, 60), (2, 60), (3, 30)], &one), Step::Bring(2), "the second does not fit");
        let both = [kept(1, 60, 0), kept(3, 30, 0)];
        assert_eq!(step(100, &[(1, 60), (2, 60), (3, 30)], &both), Step::Nothing);
        assert_eq!(step(0, &[(1, 60)], &[]), Step::Nothing, "off");
    }

    #[test]
    fn what_is_not_likely_to_be_read_stays_until_its_room_is_wanted_and_the_oldest_goes_first() {
        let old = [kept(7, 40, 2), kept(8, 40, 1)];
        assert_eq!(step(100, &[], &old), Step::Nothing, "it may yet be read");
        assert_eq!(step(100, &[(1, 20)], &old), Step::Bring(0));
        assert_eq!(step(100, &[(1, 60)], &old), Step::Drop(hash(8)));
        assert_eq!(step(100, &[(1, 60)], &old[..1]), Step::Bring(0));
        assert_eq!(step(100, &[(8, 40), (1, 60)], &old), Step::Drop(hash(7)), "what is wished for stays");
    }

    #[test]
    fn a_smaller_budget_is_kept_to() {
        let all = [kept(1, 60, 1), kept(2, 60, 2), kept(3, 60, 3)];
        assert_eq!(step(130, &[(1, 60), (3, 60)], &all), Step::Drop(hash(2)));
        assert_eq!(step(70, &[(1, 60), (3, 60)], &[all[0], all[2]]), Step::Drop(hash(3)), "the later wish");
        assert_eq!(step(0, &[(1, 60), (3, 60)], &all[..1]), Step::Drop(hash(1)));
    }

    #[test]
    fn what_was_cut_off_is_gone_on_with_and_has_its_whole_room() {
        let begun = Kept { is_whole: false, ..kept(1, 20, 5) };
        assert_eq!(
            step(100, &[(1, 60), (2, 60)], &[begun]),
            Step::Bring(0),
            "the second would not fit beside the whole"
        );
        assert_eq!(step(100, &[(1, 60)], &[begun, kept(7, 40, 1)]), Step::Bring(0));
        assert_eq!(step(100, &[(1, 61)], &[begun, kept(7, 40, 1)]), Step::Drop(hash(7)));
    }

    proptest! {
        #[test]
        fn the_budget_is_never_exceeded_and_it_comes_to_rest_with_the_first_wish_that_fits(
            budget in 0_u64..400,
            wishes in vec((any::<u8>(), 1_u64..100), 0..30),
            before in vec((any::<u8>(), 1_u64..100), 0..10),
        ) {
            // Each part once.
            let mut seen = BTreeSet::new();
            let wishes: Vec<_> =
                wishes.into_iter().filter(|(n, _)| seen.insert(*n)).map(|(n, bytes)| (hash(n), bytes)).collect();
            let mut here: Vec<Kept> = Vec::new();
            for (n, bytes) in before {
                if here.iter().all(|one| one.manifest != hash(n)) {
                    here.push(kept(n, bytes, u64::from(n)));
                }
            }
            let mut steps = 0;
            loop {
                let used: u64 = here.iter().map(|one| one.bytes).sum();
                match next_step(budget, &wishes, &here, &|_| false) {
                    Step::Nothing => {
                        prop_assert!(used <= budget);
                        break;
                    }
                    Step::Drop(manifest) => here.retain(|one| one.manifest != manifest),
                    Step::Bring(place) => {
                        let (manifest, bytes) = wishes[place];
                        prop_assert!(here.iter().all(|one| one.manifest != manifest), "it is here");
                        prop_assert!(used + bytes <= budget, "{} and {} exceed {}", used, bytes, budget);
                        here.push(Kept { manifest, bytes, since_ms: 1000 + steps, is_whole: true });
                    }
                }
                steps += 1;
                prop_assert!(steps < 200, "it never comes to rest");
            }
            let fits = wishes.iter().find(|(manifest, bytes)| {
                here.iter().find(|one| one.manifest == *manifest).map_or(*bytes, |one| one.bytes) <= budget
            });
            if let Some((manifest, _)) = fits {
                prop_assert!(here.iter().any(|one| one.manifest == *manifest), "the first that fits is here");
            }
        }
    }
}
