//! What a choice promises: as before where nothing was applied, and by the layout where something was.

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::ids::{Line, Name};
use maillage_consensus::order::Place;
use maillage_consensus::placement::{Contract, Draining, Holders, Layout, Origin, Share, Standing};
use proptest::collection::{btree_set, vec};
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_assume, proptest};

use super::*;
use crate::commitment::tests::study;
use crate::roster::testing::site;

const ZONES: [&str; 4] = ["a", "b", "c", "d"];

/// Up to ten sites, with ids 1.., of some zone and weight.
fn sites() -> impl Strategy<Value = Vec<Site>> {
    vec((0..4_usize, 1..400_u16), 1..10).prop_map(|drawn| {
        let one = |(n, (zone, weight)): (usize, (usize, u16))| {
            let mut site = site(n as u64 + 1, ZONES[zone]);
            site.description.weight = weight;
            site
        };
        drawn.into_iter().enumerate().map(one).collect()
    })
}

fn held(n: u64, holders: &[u64]) -> HeldPart {
    let holders = holders.iter().copied().map(SiteId).collect();
    let mut held = study(&format!("1.2.{n}"), [9; 32], holders).parts.remove(0);
    held.origin = held.holders[0];
    held.holders.sort();
    held.part.study = maillage_consensus::ids::UidText::fitted(&format!("1.2.{n}"));
    held
}

fn plan(layout: Layout, sites: &[Site], standings: &[Standing]) -> Choice {
    let there = sites.iter().map(|site| site.id).collect();
    let placed = sites.iter().map(|site| (site.clone(), Place::default())).collect();
    Choice::of(Plan::new(layout, 3, placed, standings), there)
}

fn version(layout: Layout) -> Layout {
    Layout { version: 1, ..layout }
}

fn draining(site: u64) -> Standing {
    let draining = Draining { at: UnixMillisField(1), reason: Line::default(), user: Name::default() };
    Standing { site: SiteId(site), draining: Some(draining), full_since: None }
}

fn full(site: u64) -> Standing {
    Standing { site: SiteId(site), draining: None, full_since: Some(UnixMillisField(1)) }
}

/// How it was before there were layouts, in two zones at least.
fn as_before(study: &str, holders: &[SiteId], eligible: &[Site], copies: usize) -> BTreeSet<SiteId> {
    let weights: Vec<SiteWeight<'_>> = eligible
        .iter()
        .map(|site| SiteWeight {
            id: site.id.0,
            zone: site.description.zone.as_str(),
            weight: f64::from(site.description.weight),
        })
        .collect();
    let ranked = placement::choose(&blake3::hash(study.as_bytes()), &weights, weights.len());
    let zone_of = |id: SiteId| eligible.iter().find(|site| site.id == id).map(|site| site.description.zone.as_str());
    let mut chosen: BTreeSet<SiteId> = holders.iter().copied().filter(|id| zone_of(*id).is_some()).collect();
    let mut zones: BTreeSet<&str> = chosen.iter().filter_map(|id| zone_of(*id)).collect();
    for only_new_zones in [true, false] {
        for id in ranked.iter().map(|id| SiteId(*id)) {
            let Some(zone) = zone_of(id) else { continue };
            if chosen.len() < copies && !chosen.contains(&id) && (!only_new_zones || !zones.contains(zone)) {
                chosen.insert(id);
                zones.insert(zone);
            }
        }
    }
    if copies > 1 && zones.len() < 2 {
        // Two sites of one building are not enough.
        chosen.extend(
            ranked.iter().map(|id| SiteId(*id)).find(|id| zone_of(*id).is_some_and(|zone| !zones.contains(zone))),
        );
    }
    chosen
}

fn zones(sites: &[Site], chosen: &BTreeSet<SiteId>) -> usize {
    let zones: BTreeSet<&str> =
        sites.iter().filter(|site| chosen.contains(&site.id)).map(|site| site.description.zone.as_str()).collect();
    zones.len()
}

proptest! {
    #[test]
    fn without_a_layout_copies_lie_where_they_lie_already_and_in_two_zones(
        sites in sites(), n: u64, holders in btree_set(1..12_u64, 1..5),
    ) {
        let held = held(n, &holders.into_iter().collect::<Vec<_>>());
        let before = as_before(held.part.study.as_str(), &held.holders, &sites, 3.min(sites.len()));
        prop_assert_eq!(plan(Layout::default(), &sites, &[]).holders(&held), before);
    }

    #[test]
    fn a_contract_and_a_drain_are_never_violated_and_copies_are_as_many_and_as_spread_as_can_be(
        sites in sites(), n: u64, holders in btree_set(1..10_u64, 1..5), allowed in btree_set(1..10_u64, 0..8),
        drained in 1..10_u64, stuffed in 1..10_u64, applied: bool,
    ) {
        let held = held(n, &holders.into_iter().collect::<Vec<_>>());
        let only = Holders::Only(allowed.iter().copied().map(SiteId).collect());
        let contract = Contract { origin: Origin::Any, holders: only, regions: Vec::new(), copies: 0, zones: 0 };
        let layout = Layout { version: u64::from(applied), contracts: vec![contract], ..Layout::default() };
        let choice = plan(layout, &sites, &[draining(drained), full(stuffed)]);
        let chosen = choice.holders(&held);
        let may = |site: &SiteId| (allowed.contains(&site.0) || *site == held.origin) && site.0 != drained;
        prop_assert!(chosen.iter().all(may), "{chosen:?}");
        prop_assert!(!chosen.contains(&SiteId(stuffed)) || held.holders.contains(&SiteId(stuffed)));
        let takes = |site: &SiteId| may(site) && (site.0 != stuffed || held.holders.contains(site));
        let could: BTreeSet<SiteId> = sites.iter().map(|site| site.id).filter(takes).collect();
        prop_assert!(chosen.len() >= could.len().min(3));
        if applied {
            prop_assert_eq!(chosen.len(), could.len().min(3));
            prop_assert_eq!(zones(&sites, &chosen), zones(&sites, &could).min(3));
        }
    }

    #[test]
    fn under_a_layout_what_a_site_holds_changes_nothing_but_for_who_received_it(
        sites in sites(), n: u64, more in btree_set(1..10_u64, 0..6),
    ) {
        prop_assume!(!sites.is_empty());
        let choice = plan(version(Layout::default()), &sites, &[]);
        let first = choice.holders(&held(n, &[1]));
        let mut holders = vec![1];
        holders.extend(more.into_iter().filter(|site| *site != 1));
        prop_assert_eq!(choice.holders(&held(n, &holders)), first, "as copies are made and given up");
    }

    #[test]
    fn a_site_that_joins_takes_copies_from_as_few_as_it_can(sites in sites(), n: u64, joiner in (0..4_usize, 1..400_u16)) {
        let before = plan(version(Layout::default()), &sites, &[]).holders(&held(n, &[1]));
        let mut more = sites.clone();
        let mut new = site(99, ZONES[joiner.0]);
        new.description.weight = joiner.1;
        more.push(new);
        let after = plan(version(Layout::default()), &more, &[]).holders(&held(n, &[1]));
        let gone = before.difference(&after).count();
        prop_assert!(gone <= usize::from(after.contains(&SiteId(99))), "{before:?} {after:?}");
    }

    #[test]
    fn all_nodes_choose_alike_in_whatever_order_they_know_the_sites(
        sites in sites(), n: u64, by in any::<proptest::sample::Index>(), applied: bool,
    ) {
        let layout = Layout { version: u64::from(applied), ..Layout::default() };
        let mut turned = sites.clone();
        turned.rotate_left(by.index(sites.len()));
        let held = held(n, &[1]);
        prop_assert_eq!(plan(layout.clone(), &sites, &[]).holders(&held), plan(layout, &turned, &[]).holders(&held));
    }
}

#[test]
fn copies_beyond_their_receivers_fall_by_the_layouts_weights() {
    let sites: Vec<Site> = (1..).zip(["a", "b", "c", "d", "e"]).map(|(id, zone)| site(id, zone)).collect();
    let share = |(site, weight)| Share {
        site: SiteId(site),
        weight: Some(weight),
        zone: Name::default(),
        region: Name::default(),
    };
    let shares: Vec<Share> = [(2, 1000), (3, 2000), (4, 4000), (5, 1000)].map(share).into();
    let choice = plan(Layout { version: 1, copies: 2, sites: shares, ..Layout::default() }, &sites, &[]);
    let mut counts = std::collections::BTreeMap::<u64, f64>::new();
    for n in 0..4000 {
        let chosen = choice.holders(&held(n, &[1]));
        assert!(chosen.len() == 2 && chosen.contains(&SiteId(1)));
        for site in chosen.into_iter().filter(|site| site.0 != 1) {
            *counts.entry(site.0).or_default() += 1.0;
        }
    }
    for (site, weight) in [(2, 1.0), (3, 2.0), (4, 4.0), (5, 1.0)] {
        let (found, expected) = (counts[&site], weight / 8.0 * 4000.0);
        // Five standard deviations of a binomial: 8 % of the largest, 16 % of the smallest.
        assert!((found - expected).abs() < 5.0 * expected.sqrt(), "site {site}: {found}, expected {expected}");
    }
}

#[test]
fn without_a_layout_nothing_is_too_much() {
    let sites: Vec<Site> = (1..=5).map(|id| site(id, "a")).collect();
    let many = held(1, &[1, 2, 3, 4, 5]);
    let choice = plan(Layout::default(), &sites, &[]);
    assert!(sites.iter().all(|site| !choice.is_beyond(&many, site.id)));
    let choice = plan(version(Layout::default()), &sites, &[]);
    let surplus = sites.iter().filter(|site| choice.is_beyond(&many, site.id)).count();
    assert_eq!(surplus, 2, "three are wanted");
    assert!(!choice.is_beyond(&many, SiteId(1)), "who received it keeps it");
    assert!(choice.is_settled(&many) && !choice.is_settled(&held(1, &[1])));
}
