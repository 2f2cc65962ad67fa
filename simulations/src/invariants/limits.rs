//! I11: descriptors, disk and memory stay within their limits, looked at each second. What a node has open and has under
//! way, what lands there, and what waits in a gateway's spool; what is prefetched has a check of its own (`prefetch`).
//!
//! All nodes share one process, so that no node's memory can be measured. Its tasks stand for it: whatever is under way
//! has one, and holds there what it has read and not written yet.
//!
//! What counts is what stays. While a disk answers nothing, questions pile up for as long as their askers have patience,
//! and are gone soon after; a leak is there for good.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::gateway::Gatehouse;
use crate::plan::SPOOL_BYTES;
use crate::site::store_config;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row after which it is no burst: longer than any disk stalls, and whoever asked meanwhile waits.
const LOOKS: u32 = 60;
/// Files open at once. A store has four packs open for reading, and for writing one for each of a few days; the landing,
/// the log and its snapshots, the outbox, the keys and what is read for others have a few each. One left open for each
/// image passes it within the first minutes, and half of what a process may have open by default is for sockets.
const FILES_MAX: u64 = 64;
/// Tasks alive at once. A node has some fifty of its own, a handful for each other site, and one for each question that is
/// asked of it: hundreds with sixteen sites. One left for each question passes it within ten minutes.
const TASKS_MAX: u64 = 1_000;
/// What may be in the spool beyond its limit: data sets that come while the last ones are being counted, one of each of
/// the hospital's senders.
const UNCOUNTED: u64 = 512 << 10;
/// Studies listed at once.
const PAGE: usize = 256;

/// Looks at every machine. Forever.
pub(crate) async fn watch(cluster: Arc<Cluster>) {
    let mut limits = Limits::default();
    loop {
        tokio::time::sleep(LOOK).await;
        for slot in cluster.slots().chain(cluster.gateway_slot()).filter(|slot| cluster.world.is_up(*slot)) {
            for (what, is, most) in measured(&cluster, slot) {
                limits.see(&cluster, slot, what, is, most);
            }
        }
        if let Some(gatehouse) = cluster.gatehouse()
            && let Some(bytes) = spooled(&gatehouse).await
        {
            if bytes > SPOOL_BYTES / 4 {
                cluster.world.sometimes("a gateway's spool filled up");
            }
            limits.see(&cluster, gatehouse.owner.slot, "bytes in its spool", bytes, SPOOL_BYTES + UNCOUNTED);
        }
    }
}

/// What a machine has of what is limited everywhere, and the most that it may have.
fn measured(cluster: &Cluster, slot: u32) -> [(&'static str, u64, u64); 3] {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let images = store_config();
    let landed = cluster.disks.bytes_under(slot, "landing/");
    if landed > 0 {
        cluster.world.sometimes("images waited in a landing");
    }
    // Of a group that was written and not acknowledged nobody knows any more, until its file goes.
    let may_land = images.landing_bytes + images.group_bytes;
    [
        ("open files", count(cluster.disks.open_files(slot)), FILES_MAX),
        ("tasks", count(cluster.world.tasks_alive(slot)), TASKS_MAX),
        ("bytes in its landing", landed, may_land),
    ]
}

/// Bytes of the data sets in a spool; none while that cannot be read.
async fn spooled(gatehouse: &Gatehouse) -> Option<u64> {
    let (mut after, mut bytes): (Option<String>, u64) = (None, 0);
    loop {
        let page = gatehouse.store.studies(after.as_deref(), PAGE).await.ok()?;
        bytes += page.iter().map(|study| study.seen.bytes).sum::<u64>();
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.study_uid.clone()),
            _ => return Some(bytes),
        }
    }
}

/// In how many looks in a row a machine had more of something than it may have.
#[derive(Default)]
struct Limits(BTreeMap<(u32, &'static str), u32>);

impl Limits {
    fn see(&mut self, cluster: &Cluster, slot: u32, what: &'static str, is: u64, most: u64) {
        if self.is_passed(slot, what, is > most) {
            let detail = format!("for {LOOKS} s, slot {slot} has had more than {most} {what}: {is} now");
            cluster.world.violation("I11", detail);
        }
    }

    /// Whether it has been too much for so long now, and was not yet at the last look.
    fn is_passed(&mut self, slot: u32, what: &'static str, is_too_much: bool) -> bool {
        let looks = self.0.entry((slot, what)).or_default();
        *looks = if is_too_much { looks.saturating_add(1) } else { 0 };
        *looks == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_none_and_what_stays_is_told_once() {
        let mut limits = Limits::default();
        let mut told =
            |slot, looks: u32, is_too_much| (0..looks).filter(|_| limits.is_passed(slot, "tasks", is_too_much)).count();
        assert_eq!(told(1, LOOKS - 1, true), 0);
        assert_eq!(told(1, 1, false), 0);
        assert_eq!(told(1, LOOKS - 1, true), 0, "it was less in between");
        assert_eq!(told(2, 1, true), 0, "another machine's");
        assert_eq!(told(1, 2 * LOOKS, true), 1);
    }
}
