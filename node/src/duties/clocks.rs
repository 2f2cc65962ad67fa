//! A node whose clock is wrong must not lead: the leader's clock stamps every command, and the state's
//! time, once too far ahead, never goes back.
//!
//! Followers measure their clocks against the leader's and tell it. The leader so has all offsets, and is
//! the outlier when the median of the clocks in session is far from its own. Of two clocks nobody can say
//! which is wrong, so that it takes three.

use std::collections::BTreeMap;

use maillage_consensus::mesh::Site;
use maillage_consensus::raft::Said;

use crate::node::Node;

/// Clocks without which there is no majority of right ones.
const CLOCKS_MIN: usize = 3;

/// How far this node's clock is ahead, in milliseconds: of the median of those in session while it
/// leads, else of the leader's. `None` while that is not known.
pub(crate) fn ahead_ms(node: &Node, sites: &[Site]) -> Option<i64> {
    match node.group().said() {
        Some(said) => median(&clocks(&said, sites, node.config().raft.clock_offset_max_ms)).map(i64::saturating_neg),
        None => node.group().clock_offset().map(|clock| clock.ahead_ms),
    }
}

/// Whether an offset is more than a clock may be wrong.
pub(crate) fn is_off(ahead_ms: i64, bound_ms: u64) -> bool {
    ahead_ms.unsigned_abs() > bound_ms
}

/// Hands the leadership to a site whose clock is right, when this one's is not.
pub(super) async fn mind(node: &Node) -> anyhow::Result<()> {
    let Some(said) = node.group().said() else { return Ok(()) };
    let bound = node.config().raft.clock_offset_max_ms;
    let clocks = clocks(&said, &node.read(|view| view.sites())?, bound);
    let Some(median) = median(&clocks).filter(|median| is_off(*median, bound)) else { return Ok(()) };
    let status = node.group_status();
    let lag = |id: u64| status.lag.get(&id).copied().flatten();
    let successor =
        successor(&clocks, median, bound, node.site().0, |id| lag(id).filter(|_| status.voters.contains(&id)));
    let own = median.saturating_neg();
    let Some(to) = successor else {
        anyhow::bail!(
            "this node's clock is {own} ms ahead of the others' median, and no voter's is right: set the clocks"
        );
    };
    tracing::error!(
        ahead_ms = own,
        bound_ms = bound,
        to,
        "this node's clock is too far from the others': it must not lead, and hands over"
    );
    node.group().transfer_leader(to).await?;
    Ok(())
}

/// The offsets of those in session, in milliseconds ahead of this leader's clock. A measurement whose
/// round trip is longer than the bound says too little.
fn clocks(said: &BTreeMap<u64, Said>, sites: &[Site], bound_ms: u64) -> BTreeMap<u64, i64> {
    let in_session = sites.iter().filter(|site| site.session_open);
    let measured = in_session.filter_map(|site| Some((site.id.0, said.get(&site.id.0)?.clock?)));
    let sharp = measured.filter(|(_, clock)| clock.round_trip.as_millis() <= bound_ms.into());
    sharp.map(|(id, clock)| (id, clock.ahead_ms)).collect()
}

/// The middle one; of an even number, the one nearer to this leader's, which is at zero: a leader gives
/// way to a majority only.
fn median(clocks: &BTreeMap<u64, i64>) -> Option<i64> {
    if clocks.len() < CLOCKS_MIN {
        return None;
    }
    let mut offsets: Vec<i64> = clocks.values().copied().collect();
    offsets.sort_unstable();
    let upper = offsets.len() / 2;
    let lower = (offsets.len() - 1) / 2;
    [offsets.get(lower), offsets.get(upper)].into_iter().flatten().copied().min_by_key(|offset| offset.unsigned_abs())
}

/// The voter that is least behind among those whose clocks are near the median.
fn successor(
    clocks: &BTreeMap<u64, i64>,
    median: i64,
    bound_ms: u64,
    own: u64,
    lag_of_voter: impl Fn(u64) -> Option<u64>,
) -> Option<u64> {
    let right = clocks.iter().filter(|(id, offset)| **id != own && offset.abs_diff(median) <= bound_ms);
    right.filter_map(|(id, _)| Some((lag_of_voter(*id)?, *id))).min().map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use maillage_consensus::raft::ClockOffset;

    use super::*;
    use crate::roster::testing::site;

    fn offsets(offsets: &[i64]) -> BTreeMap<u64, i64> {
        (1..).zip(offsets.iter().copied()).collect()
    }

    #[test]
    fn the_leader_is_the_outlier_only_against_a_majority() {
        let off = |own: &[i64]| median(&offsets(own)).is_some_and(|median| is_off(median, 5000));
        assert!(off(&[0, 60_000, 60_010]), "two against one");
        assert!(off(&[0, -60_000, -60_010, 3, -59_000]), "three against two");
        assert!(!off(&[0, 60_000, 3]), "another is the outlier");
        assert!(!off(&[0, 60_000]), "of two nobody knows which");
        assert!(!off(&[0, 2, 60_000, 60_010]), "a tie is no majority");
        assert!(!off(&[0, 4_900, 5_000]), "within the bound");
        assert!(off(&[0, i64::MIN, i64::MIN]), "nonsense does not overflow");
    }

    #[test]
    fn the_successor_votes_has_a_right_clock_and_is_least_behind() {
        let clocks = offsets(&[0, 60_000, 60_100, 120_000, 59_990]);
        let lag =
            |id: u64| [None, Some(9), Some(4), Some(0), None].get(usize::try_from(id).ok()? - 1).copied().flatten();
        assert_eq!(successor(&clocks, 60_000, 5000, 1, lag), Some(3), "4 is off, 5 has no vote");
        assert_eq!(successor(&clocks, 60_000, 5000, 1, |_| None), None);
    }

    #[test]
    fn only_sharp_measurements_of_sites_in_session_count() {
        let mut sites = [site(1, "a"), site(2, "b"), site(3, "c"), site(4, "d")];
        sites.iter_mut().for_each(|site| site.session_open = true);
        sites[2].session_open = false;
        let said = |ahead_ms, round_trip| Said {
            format: 2,
            clock: Some(ClockOffset { ahead_ms, round_trip: Duration::from_millis(round_trip) }),
        };
        let all =
            BTreeMap::from([(1, said(0, 0)), (2, said(7, 40)), (3, said(8, 40)), (4, said(9, 5001)), (9, said(1, 1))]);
        assert_eq!(clocks(&all, &sites, 5000), BTreeMap::from([(1, 0), (2, 7)]));
    }
}
