//! `kill -9` at random points of ingest, many times over: whatever was acknowledged is there, bit for bit.
//!
//! Each round sends one study over several associations at once to a node that is killed after a drawn time,
//! and starts it again. The node may have more than it acknowledged, never less, and never other bytes. Every
//! round is looked at after its kill and once more after all kills: what a later crash's recovery would
//! damage is damage too.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::draw::Draw;
use crate::http::Http;
use crate::multipart::{dataset, text};
use crate::study::{CALLED, CALLING, Slices, associate, retrieve, store};
use crate::{Mesh, Site};

/// Associations that send at once.
const SENDERS: usize = 3;
/// Instances of a round: more than can be sent before the latest kill.
const SLICES: u32 = 150;
/// The latest kill after the first association was asked for, in milliseconds. The first ones fall into the
/// start of the associations.
const LATEST_MS: u64 = 700;

/// What all kills came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Toll {
    /// Kills.
    pub kills: u32,
    /// Instances that were acknowledged, and are there.
    pub acknowledged: usize,
    /// Instances that are there without having been acknowledged: durable, but the answer did not arrive.
    pub unacknowledged: usize,
}

/// One round's instances.
struct Round {
    study: String,
    sent: BTreeMap<String, Bytes>,
    acknowledged: Vec<String>,
}

/// Kills the only site of `mesh` so many times. `told` hears of each round.
///
/// # Panics
/// When an acknowledged instance is lost or any instance is changed, with the seed.
pub async fn kill_often(mesh: &mut Mesh, kills: u32, seed: u64, mut told: impl FnMut(&Toll)) -> Toll {
    let mut draw = Draw::fork(seed, "kills");
    let mut rounds = Vec::new();
    let mut toll = Toll::default();
    for number in 0..kills {
        let site = &mut mesh.sites[0];
        let round = round(site, number, Duration::from_millis(draw.below(LATEST_MS))).await;
        site.start();
        site.ready().await;
        let (acknowledged, unacknowledged) = check(site.http(), &round, seed).await;
        toll.kills += 1;
        toll.acknowledged += acknowledged;
        toll.unacknowledged += unacknowledged;
        rounds.push(round);
        told(&toll);
    }
    for round in &rounds {
        check(mesh.sites[0].http(), round, seed).await;
    }
    toll
}

/// Sends until the kill.
async fn round(site: &mut Site, number: u32, until: Duration) -> Round {
    let name = format!("K{number}");
    let slices = Slices::new(&name, &name, SLICES);
    let mut shares = vec![Vec::new(); SENDERS];
    for (n, (uid, dataset)) in slices.instances.iter().enumerate() {
        shares[n % SENDERS].push((uid.clone(), dataset.clone()));
    }
    let mut senders = JoinSet::new();
    for share in shares {
        let to = site.dicom();
        senders.spawn(async move {
            let mut acknowledged = Vec::new();
            let Ok(mut association) = associate(to, CALLING, CALLED).await else { return acknowledged };
            for (uid, dataset) in share {
                match store(&mut association, &uid, dataset).await {
                    Ok(status) if status.is_stored() => acknowledged.push(uid),
                    _ => break,
                }
            }
            acknowledged
        });
    }
    sleep(until).await;
    site.kill();
    let mut acknowledged: Vec<String> = senders.join_all().await.into_iter().flatten().collect();
    acknowledged.sort();
    Round { study: slices.path(), sent: slices.instances, acknowledged }
}

/// How many of the round's instances are there that were acknowledged, and that were not.
async fn check(http: Http, round: &Round, seed: u64) -> (usize, usize) {
    let answer = retrieve(http, &round.study).await;
    if answer.status == 404 {
        assert!(round.acknowledged.is_empty(), "seed {seed}: {} was acknowledged and is gone", round.study);
        return (0, 0);
    }
    let answer = answer.expect(200);
    let parts = answer.parts().into_iter().map(|part| dataset(&part.body));
    let there: BTreeMap<String, Bytes> = parts.map(|dataset| (text(&dataset, 0x0008, 0x0018, "UI"), dataset)).collect();
    for uid in &round.acknowledged {
        assert!(there.contains_key(uid), "seed {seed}: {uid} was acknowledged and is gone");
    }
    for (uid, bytes) in &there {
        assert!(round.sent.get(uid) == Some(bytes), "seed {seed}: the bytes of {uid} are not those that were sent");
    }
    (round.acknowledged.len(), there.len() - round.acknowledged.len())
}
