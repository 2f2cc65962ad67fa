//! The numbers of batches: whether one is lacking between others, and whether they count in their order.
//!
//! An engine that is whole batches behind is completed from the packs. One without a batch in the middle would say
//! of a pack that it is complete up to where it is not, and so would one that takes an older batch for the newer:
//! nothing of that is replayed. fjall's journals can come to both by a flipped bit (what puts its batches in order
//! is not protected) and to the first where one of several is cut short. So each batch brings a row with its
//! number and another that says it is the last, and removes what says so of the one before.

use std::io;

use maillage_host::Batch;

use super::key;

/// Rows that are kept: more than there are batches in journals, of which each has about a kilobyte and all
/// together 64 MiB before their content is in tables with checksums. All are read when an index is opened.
const KEPT: u64 = 1 << 16;

/// Makes a batch the one with `number`, from 1.
pub(super) fn number(batch: &mut Batch, number: u64) -> io::Result<()> {
    batch.put(key::batch(slot(number)?), postcard::to_stdvec(&number).map_err(io::Error::other)?);
    batch.remove(key::last(slot(number - 1)?));
    batch.put(key::last(slot(number)?), Vec::new());
    Ok(())
}

/// The number of the last batch, if all before it are there in their order: from the numbers that were kept, and
/// the keys of those that say they are the last.
pub(super) fn last(numbers: &[u64], lasts: &[Vec<u8>]) -> Option<u64> {
    let last = numbers.iter().copied().max()?;
    let are_all_there = numbers.len() as u64 == last.min(KEPT) && numbers.iter().all(|number| number + KEPT > last);
    (are_all_there && lasts == [key::last(slot(last).ok()?)]).then_some(last)
}

fn slot(number: u64) -> io::Result<u16> {
    u16::try_from(number % KEPT).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What an index says in which batches count in this order.
    fn last_of(order: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut rows = BTreeMap::new();
        for at in order {
            let mut batch = Batch::default();
            number(&mut batch, at).expect("number");
            for (key, row) in batch.0 {
                match row {
                    Some(row) => rows.insert(key, row),
                    None => rows.remove(&key),
                };
            }
        }
        let (numbers, lasts): (BTreeMap<_, _>, BTreeMap<_, _>) =
            rows.into_iter().partition(|(key, _)| key.starts_with(key::BATCH));
        let numbers: Vec<u64> = numbers.values().map(|row| postcard::from_bytes(row).expect("decode")).collect();
        last(&numbers, &lasts.into_keys().collect::<Vec<_>>())
    }

    #[test]
    fn a_batch_that_is_lacking_or_out_of_order_is_noticed() {
        for end in [1, 2, 9, KEPT, KEPT + 7] {
            assert_eq!(last_of(1..=end), Some(end), "those of before, up to any of them");
            for lost in (1..end).rev().take(2) {
                assert_eq!(last_of((1..=end).filter(|at| *at != lost)), None, "{lost} of {end}");
                let late = (1..=end).filter(|at| *at != lost).chain([lost]);
                assert_eq!(last_of(late), None, "{lost} counts behind {end}");
            }
        }
        assert_eq!(last_of([1, 2, 5, 3, 4, 6]), None);
        assert_eq!(last_of([]), None);
    }
}
