//! The order in which the slices of a study serve who reads it while it still arrives.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What is known of a slice before its pixels are here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice<'a> {
    /// Series Instance UID.
    pub(super) series: &'a str,
    /// Series Number (0020,0011), where it is known.
    pub(super) series_number: Option<i32>,
    /// Instance Number (0020,0013), where it is known.
    pub(super) number: Option<i32>,
    /// SOP Instance UID.
    pub(super) sop_instance: &'a str,
}

/// The slices' places in the list, in the order in which to bring them: the middle slice of each series, so that
/// each can be looked at; then series by series from its middle outward, to both sides in turn, since a reader
/// scrolls from where the viewer opens. The series with the most slices first: it is the one that is read, while
/// the first by number is mostly the scout of a few slices, and those of few cost little to come after.
pub(super) fn reading_order(slices: &[Slice<'_>]) -> Vec<usize> {
    let mut by_series: BTreeMap<&str, Vec<(usize, &Slice<'_>)>> = BTreeMap::new();
    for (place, slice) in slices.iter().enumerate() {
        by_series.entry(slice.series).or_default().push((place, slice));
    }
    let mut series: Vec<Vec<(usize, &Slice<'_>)>> = by_series.into_values().collect();
    for slices in &mut series {
        slices.sort_by(|(a_place, a), (b_place, b)| in_series(a, b).then(a_place.cmp(b_place)));
    }
    series.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| by_number(a, b)));
    let outward: Vec<Vec<usize>> = series.into_iter().map(|slices| outward(&slices)).collect();
    let middles = outward.iter().filter_map(|slices| slices.first());
    let rest = outward.iter().flat_map(|slices| slices.iter().skip(1));
    middles.chain(rest).copied().collect()
}

/// From the middle to both sides in turn.
fn outward(slices: &[(usize, &Slice<'_>)]) -> Vec<usize> {
    let middle = slices.len() / 2;
    let (before, after) = slices.split_at(middle);
    let (mut before, mut after) = (before.iter().rev(), after.iter());
    let mut order = Vec::with_capacity(slices.len());
    while order.len() < slices.len() {
        order.extend(after.next().into_iter().chain(before.next()).map(|(place, _)| *place));
    }
    order
}

/// By instance number; those without one behind, as their UIDs count.
fn in_series(a: &Slice<'_>, b: &Slice<'_>) -> Ordering {
    (a.number.is_none(), a.number)
        .cmp(&(b.number.is_none(), b.number))
        .then_with(|| as_numbers(a.sop_instance, b.sop_instance))
}

fn by_number(a: &[(usize, &Slice<'_>)], b: &[(usize, &Slice<'_>)]) -> Ordering {
    let number = |series: &[(usize, &Slice<'_>)]| series.iter().filter_map(|(_, slice)| slice.series_number).min();
    let uid = |series: &[(usize, &Slice<'_>)]| series.first().map_or("", |(_, slice)| slice.series).len();
    let (a_number, b_number) = (number(a), number(b));
    (a_number.is_none(), a_number, uid(a)).cmp(&(b_number.is_none(), b_number, uid(b)))
}

/// UIDs component by component as numbers, of any length: most devices count the slices of a series in the last.
fn as_numbers(a: &str, b: &str) -> Ordering {
    let numbers = |uid: &'_ str| -> Vec<(usize, String)> {
        uid.split('.').map(|part| part.trim_start_matches('0')).map(|part| (part.len(), part.to_owned())).collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn slice<'a>(series: &'a str, number: i32, sop_instance: &'a str) -> Slice<'a> {
        Slice { series, series_number: Some(1), number: Some(number), sop_instance }
    }

    #[test]
    fn a_series_comes_from_its_middle_outward_by_its_instance_numbers() {
        // Listed by UID, as manifests are.
        let slices = [5, 1, 4, 2, 3].map(|number| slice("1.2", number, "1"));
        let numbers: Vec<_> = reading_order(&slices).into_iter().map(|place| slices[place].number).collect();
        assert_eq!(numbers, [3, 2, 4, 1, 5].map(Some));
    }

    #[test]
    fn each_series_shows_its_middle_first_and_the_one_with_most_slices_is_whole_first() {
        let scout = [slice("1.1", 1, "1"), slice("1.1", 2, "2")];
        let axial: Vec<Slice<'_>> = (1..=5).map(|number| slice("1.9", number, "1")).collect();
        let slices = [&scout[..], &axial].concat();
        let order: Vec<_> =
            reading_order(&slices).into_iter().map(|place| (slices[place].series, slices[place].number)).collect();
        let axial = |number| ("1.9", Some(number));
        let scout = |number| ("1.1", Some(number));
        assert_eq!(order, [axial(3), scout(2), axial(2), axial(4), axial(1), axial(5), scout(1)]);
    }

    #[test]
    fn without_numbers_the_uids_count() {
        let uids = ["1.2.10", "1.2.2", "1.2.100", "1.2.9", "1.2.11"];
        let slices = uids.map(|sop_instance| Slice { series: "1", series_number: None, number: None, sop_instance });
        let order: Vec<_> = reading_order(&slices).into_iter().map(|place| uids[place]).collect();
        assert_eq!(order, ["1.2.10", "1.2.9", "1.2.11", "1.2.2", "1.2.100"]);
    }

    proptest! {
        #[test]
        fn every_slice_comes_once_and_what_has_come_of_a_series_is_without_a_gap(
            slices in vec((0_u8..4, proptest::option::of(any::<i32>()), "[0-9.]{1,12}").prop_map(|(series, number, uid)| (series.to_string(), number, uid)), 0..80),
        ) {
            let slices: Vec<Slice<'_>> = slices
                .iter()
                .map(|(series, number, sop_instance)| Slice { series, series_number: None, number: *number, sop_instance })
                .collect();
            let order = reading_order(&slices);
            prop_assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..slices.len()).collect::<BTreeSet<_>>());
            prop_assert_eq!(order.len(), slices.len());
            let series: BTreeSet<&str> = slices.iter().map(|slice| slice.series).collect();
            let first: BTreeSet<&str> = order.iter().take(series.len()).map(|place| slices[*place].series).collect();
            prop_assert_eq!(&first, &series, "each series has its middle first");
            // The place of each slice in its series.
            let mut sorted: Vec<usize> = (0..slices.len()).collect();
            sorted.sort_by(|a, b| slices[*a].series.cmp(slices[*b].series).then(in_series(&slices[*a], &slices[*b])).then(a.cmp(b)));
            let mut seen: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
            for place in order {
                let at = sorted.iter().position(|other| *other == place).unwrap_or(usize::MAX);
                let span = seen.get(slices[place].series).copied().unwrap_or((at + 1, at));
                prop_assert!(at + 1 == span.0 || at == span.1 + 1, "a gap");
                seen.insert(slices[place].series, (span.0.min(at), span.1.max(at)));
            }
        }
    }
}
