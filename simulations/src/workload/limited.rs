//! Who sends more than a site lets it: the site gave it a quota of a day. What is refused is sent again until it is taken,
//! after somebody was telephoned who starts the node again, which forgets what it counted. Others are let in meanwhile,
//! and what is here already is taken.

use std::sync::Arc;
use std::time::Duration;

use super::dicom::{Of, Sample};
use super::images;
use crate::cluster::Cluster;
use crate::gateway::Receiver;
use crate::invariants::instances::Acknowledged;
use crate::invariants::senders::{Told, Used, is_documented};
use crate::nemesis;
use crate::plan::Limits;
use crate::rng::Rng;

/// Mean pause between two instances.
const PAUSE: Duration = Duration::from_secs(2);
/// Instances in one run: more than two days' quotas.
const INSTANCES_MAX: u64 = 30;
/// Instances of a study.
const OF_A_STUDY: u64 = 3;
/// Bytes of an instance: a dozen of them use a day up.
const BYTES: (u64, u64) = (40_000, 120_000);
/// Between two tries.
const AGAIN_MS: (u64, u64) = (500, 3_000);
/// An answer that took longer is not judged: the node's wall clock may have shown another day meanwhile.
const PROMPT: Duration = Duration::from_secs(1);
/// After so long of being refused the sender's people telephone, once.
const PATIENT_MS: (u64, u64) = (4_000, 15_000);
/// How long the node is away then.
const AWAY: Duration = Duration::from_secs(1);
/// Instances of others while it is refused, and of how many bytes.
const OTHERS_MAX: u64 = 6;
const OTHER_BYTES: u64 = 400;
const DAY_MS: u64 = 24 * 3_600_000;

struct Bulk {
    cluster: Arc<Cluster>,
    limits: Limits,
    rng: Rng,
    used: Used,
    /// The last that was acknowledged.
    last: Option<Sample>,
    others: u64,
    has_telephoned: bool,
}

/// Until the work ends.
pub(super) async fn run(cluster: Arc<Cluster>, limits: Limits, rng: Rng) {
    let used = Used::default();
    let mut bulk = Bulk { cluster, limits, rng, used, last: None, others: 0, has_telephoned: false };
    for number in 0..bulk.cluster.plan.at_most(INSTANCES_MAX) {
        let pause = bulk.rng.around(PAUSE);
        tokio::time::sleep(pause).await;
        let len = bulk.rng.between(BYTES.0, BYTES.1);
        let sample = bulk.sample("92", number, len);
        if !bulk.send(sample).await {
            return;
        }
    }
}

impl Bulk {
    /// Instance `number` of those whose studies' UIDs have this number before that of the slot. Nobody requested them.
    fn sample(&mut self, kind: &str, number: u64, len: u64) -> Sample {
        let (slot, nth) = (self.limits.slot, number / OF_A_STUDY);
        let (study, patient) = (format!("2.25.{kind}{slot}.{nth}"), format!("Q{kind}{slot}-{nth}"));
        let of = Of { study: &study, accession: "", patient: &patient, issuer: "", institution: "", modality: "CT" };
        Sample::new(&of, number % OF_A_STUDY, self.rng.next(), len)
    }

    /// Sends an instance until it is taken; `false` when the work ends before.
    async fn send(&mut self, sample: Sample) -> bool {
        let world = Arc::clone(&self.cluster.world);
        let patience = self.rng.millis(PATIENT_MS.0, PATIENT_MS.1);
        // Whether no try of it may have been taken.
        let (mut is_new, mut refused_at) = (true, None);
        while !self.cluster.is_ending() {
            if let Some(receiver) = self.cluster.receiver(self.limits.slot) {
                match self.try_once(receiver, &sample, is_new).await {
                    Some(Told::Taken) => {
                        if refused_at.is_some() {
                            world.sometimes("who had used up its day was let in later");
                        }
                        self.last = Some(sample);
                        return true;
                    }
                    Some(Told::OverQuota) => {
                        world.sometimes("a sender had used up its day");
                        let since = *refused_at.get_or_insert_with(|| world.now());
                        self.others_are_let_in().await;
                        if world.now() - since > patience && !self.has_telephoned {
                            self.has_telephoned = true;
                            nemesis::restart(&self.cluster, self.limits.slot, AWAY).await;
                        }
                    }
                    // A store may fail after it has it durably.
                    Some(Told::OverRate | Told::Other) | None => is_new = false,
                }
            }
            let wait = self.rng.millis(AGAIN_MS.0, AGAIN_MS.1);
            tokio::time::sleep(wait).await;
        }
        false
    }

    /// The day by the wall clock of the site's node.
    fn day(&self) -> u64 {
        self.cluster.world.wall_ms(self.limits.slot) / DAY_MS
    }

    async fn ask(&self, receiver: Receiver, sample: &Sample) -> Option<(bool, String)> {
        if self.limits.by_stow {
            images::by_stow(&self.cluster, &receiver, Some(self.limits.address()), sample).await
        } else {
            images::by_c_store_of(&self.cluster, receiver, &self.limits.title(), sample).await
        }
    }

    /// One try; `None` without an answer. What is answered is held against what the node must have counted.
    async fn try_once(&mut self, receiver: Receiver, sample: &Sample, is_new: bool) -> Option<Told> {
        let (cluster, slot) = (Arc::clone(&self.cluster), self.limits.slot);
        let (life, bytes) = (receiver.owner(), sample.data_set.len() as u64);
        let (day, start) = (self.day(), cluster.world.now());
        let answered = self.ask(receiver, sample).await;
        let is_prompt = self.day() == day && cluster.world.now() - start < PROMPT;
        let room = self.used.has_room(life, day, bytes).filter(|_| is_prompt && is_new);
        let told = answered.as_ref().map(|(stored, answer)| Told::of(*stored, answer));
        match told {
            _ if !is_prompt => self.used.lose(life),
            Some(Told::Taken) => self.used.took(life, day, bytes, is_new),
            None => self.used.took(life, day, bytes, false),
            Some(_) => {}
        }
        let (_, answer) = answered?;
        cluster.world.event(slot, format_args!("bulk {}: {answer}", sample.sop_instance));
        let is_kept = is_new && told == Some(Told::OverQuota) && self.is_kept(sample).await;
        let wrong = match (told?, room) {
            (Told::Taken, Some(false)) => Some("is acknowledged beyond its sender's quota"),
            (Told::OverQuota, Some(true)) => Some("is refused though its sender's day has room for it"),
            (Told::OverQuota, _) if !is_documented(&answer) => Some("is refused for its quota by another status"),
            (Told::OverQuota, _) if is_kept => Some("is refused for its quota, and kept"),
            (Told::OverRate, _) => Some("is refused for a rate that its sender has not"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            let detail = format!("slot {slot}: {} {wrong}: {answer}", sample.sop_instance);
            cluster.world.violation("senders", detail);
        }
        if told == Some(Told::Taken) {
            self.acknowledged(sample);
        }
        told
    }

    fn acknowledged(&self, sample: &Sample) {
        let Sample { study, sop_instance, data_set } = sample.clone();
        self.cluster.watch.instances.acknowledged(self.limits.slot, Acknowledged { study, sop_instance, data_set });
    }

    /// Whether the site's node lists an instance.
    async fn is_kept(&self, sample: &Sample) -> bool {
        let Some(running) = self.cluster.running(self.limits.slot) else { return false };
        matches!(running.store.instance(&sample.sop_instance).await, Ok(Some(_)))
    }

    /// While its day is used up: another's instance is none of its own, and costs nothing of it; nor does what is here.
    async fn others_are_let_in(&mut self) {
        let (cluster, slot) = (Arc::clone(&self.cluster), self.limits.slot);
        if self.others < OTHERS_MAX
            && let Some(receiver) = cluster.receiver(slot)
        {
            let sample = self.sample("93", self.others, OTHER_BYTES);
            self.others += 1;
            match images::by_c_store_of(&cluster, receiver, &format!("MR{slot}"), &sample).await {
                Some((true, _)) => {
                    self.acknowledged(&sample);
                    cluster.world.sometimes("another was let in beside who had used up its day");
                }
                Some((false, answer)) if Told::of(false, &answer) != Told::Other => {
                    let detail = format!("slot {slot} refuses {} for another's quota: {answer}", sample.sop_instance);
                    cluster.world.violation("senders", detail);
                }
                _ => {}
            }
        }
        // A disk that rots may have lost it, as a machine that was lost has.
        let is_here = |sample: &&Sample| {
            cluster.rotten() != Some(slot) && cluster.watch.instances.is_acknowledged_at(slot, &sample.sop_instance)
        };
        if let (Some(last), Some(receiver)) = (self.last.as_ref().filter(is_here), cluster.receiver(slot)) {
            match self.ask(receiver, last).await.map(|(stored, answer)| Told::of(stored, &answer)) {
                Some(Told::Taken) => {
                    cluster.world.sometimes("what was here was taken though its sender's day was used up")
                }
                Some(Told::OverQuota) => {
                    let detail = format!("slot {slot} refuses {}, which is here, for a quota", last.sop_instance);
                    cluster.world.violation("senders", detail);
                }
                _ => {}
            }
        }
    }
}
