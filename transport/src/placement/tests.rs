//! What placement promises: the same everywhere, spread over zones, fair, and still when others move.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;

use super::*;

const ZONES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn key(n: u64) -> Hash {
    blake3::hash(&n.to_be_bytes())
}

/// Up to 17 sites, with ids 1.., in one of five zones, of weight 0.1 to 10.
fn sites() -> impl Strategy<Value = Vec<SiteWeight<'static>>> {
    vec((0usize..5, 1u32..100), 1..18).prop_map(|drawn| {
        let site = |(n, (zone, tenths)): (usize, (usize, u32))| SiteWeight {
            id: u64::try_from(n).expect("few") + 1,
            zone: ZONES[zone],
            weight: f64::from(tenths) / 10.0,
        };
        drawn.into_iter().enumerate().map(site).collect()
    })
}

fn zones(sites: &[SiteWeight<'_>], chosen: &[u64]) -> BTreeSet<String> {
    sites.iter().filter(|site| chosen.contains(&site.id)).map(|site| site.zone.to_owned()).collect()
}

proptest! {
    #[test]
    fn the_order_of_the_sites_does_not_matter(sites in sites(), n: u64, copies in 0usize..6, by in any::<Index>()) {
        let mut turned = sites.clone();
        turned.rotate_left(by.index(sites.len()));
        prop_assert_eq!(choose(&key(n), &sites, copies), choose(&key(n), &turned, copies));
    }

    #[test]
    fn copies_are_distinct_sites_in_as_many_zones_as_there_are(sites in sites(), n: u64, copies in 0usize..6) {
        let chosen = choose(&key(n), &sites, copies);
        let distinct: BTreeSet<u64> = chosen.iter().copied().collect();
        prop_assert_eq!(distinct.len(), chosen.len());
        prop_assert_eq!(chosen.len(), copies.min(sites.len()));
        let all: Vec<u64> = sites.iter().map(|site| site.id).collect();
        prop_assert_eq!(zones(&sites, &chosen).len(), copies.min(zones(&sites, &all).len()));
    }

    #[test]
    fn when_a_site_leaves_no_other_loses_what_it_holds(sites in sites(), n: u64, copies in 1usize..6, who in any::<Index>()) {
        let leaver = sites[who.index(sites.len())].id;
        let before = choose(&key(n), &sites, copies);
        let rest: Vec<_> = sites.iter().filter(|site| site.id != leaver).copied().collect();
        let after = choose(&key(n), &rest, copies);
        for id in before.iter().filter(|id| **id != leaver) {
            prop_assert!(after.contains(id), "{id} lost a copy it held");
        }
        if !before.contains(&leaver) {
            prop_assert_eq!(before, after);
        }
    }
}

#[test]
fn copies_fall_by_weight() {
    let weights = [1.0, 1.0, 2.0, 4.0];
    let site = |(n, weight): (usize, &f64)| SiteWeight { id: n as u64, zone: "one", weight: *weight };
    let sites: Vec<_> = weights.iter().enumerate().map(site).collect();
    let mut counts = BTreeMap::<u64, f64>::new();
    for n in 0..8000 {
        for id in choose(&key(n), &sites, 1) {
            *counts.entry(id).or_default() += 1.0;
        }
    }
    for (id, weight) in (0u64..).zip(weights) {
        let (found, expected) = (counts[&id], weight / 8.0 * 8000.0);
        // Five standard deviations of a binomial.
        assert!((found - expected).abs() < 5.0 * expected.sqrt(), "site {id}: {found}, expected {expected}");
    }
}

#[test]
fn weightless_sites_take_nothing() {
    let weights = [0.0, -1.0, f64::NAN, 1e-12, f64::INFINITY];
    let site = |(n, weight): (usize, &f64)| SiteWeight { id: n as u64, zone: "one", weight: *weight };
    let sites: Vec<_> = weights.iter().enumerate().map(site).collect();
    assert_eq!(choose(&key(1), &sites, 5), [4]);
    assert!(choose(&key(1), &[], 3).is_empty());
}

/// A change here moves every copy of a running mesh.
#[test]
fn placement_stays_where_it_is() {
    let site = |id, zone, weight| SiteWeight { id, zone, weight };
    let sites = [
        site(1, "a", 1.0),
        site(2, "a", 2.0),
        site(3, "b", 1.0),
        site(4, "c", 0.5),
        site(5, "c", 1.5),
        site(6, "d", 3.0),
    ];
    let chosen: Vec<Vec<u64>> = (0..6).map(|n| choose(&key(n), &sites, 3)).collect();
    assert_eq!(chosen, GOLDEN);
}

const GOLDEN: [[u64; 3]; 6] = [[5, 6, 2], [5, 6, 2], [2, 6, 5], [3, 6, 2], [1, 5, 6], [2, 6, 5]];

#[test]
fn the_logarithm_is_that_of_the_platform_to_twelve_digits() {
    for shift in 0..64 {
        for draw in [u64::MAX >> shift, (u64::MAX >> shift) / 3, 0x9e37_79b9_7f4a_7c15 >> shift] {
            let exact = 64.0 - ((draw as f64) + 1.0).log2();
            let fixed = negative_log2(draw) as f64 / (1u64 << FRACTION_BITS) as f64;
            assert!((exact - fixed).abs() < 1e-12 * exact.max(1.0) + 1e-13, "{draw}: {exact} {fixed}");
        }
    }
    assert_eq!(negative_log2(u64::MAX), 1);
    assert_eq!(negative_log2(0), 64 << FRACTION_BITS);
}
