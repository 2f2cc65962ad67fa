//! What a run is: its settings, and what the seed draws from them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use maillage_consensus::raft::Timing;

use crate::mutant::Mutant;
use crate::rng::Rng;

/// One kind of fault that the nemesis knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The machine of one node loses power.
    Crash,
    /// Several, or all, at once.
    CrashMany,
    /// The process of one node is killed; its machine goes on.
    Kill,
    /// The leader loses power.
    CrashLeader,
    /// Power is lost in the middle of a write.
    CrashWriting,
    /// Power is lost right after a vote was granted.
    CrashVoting,
    /// A node's process is stopped for a while and goes on (SIGSTOP).
    Pause,
    /// A disk is full for a while.
    DiskFull,
    /// An fsync fails.
    FsyncFails,
    /// A disk is slow, or answers nothing for a while.
    SlowDisk,
    /// The sites fall into two halves.
    Partition,
    /// One half does not hear the other.
    OneWay,
    /// Some single links are cut.
    PartialCut,
    /// One site comes and goes.
    Flapping,
    /// The leader is cut off.
    IsolateLeader,
    /// Latencies rise.
    LatencySpike,
    /// Connections break.
    Breaks,
    /// Links stall for less than it takes to break them.
    Stalls,
    /// A process is told to stop and is started again, as for an update.
    Restart,
    /// A member serves wrong bytes for chunks.
    WrongBytes,
    /// Bits of images at rest flip on one disk of the mesh.
    BitRot,
    /// A node's index of its images is damaged.
    IndexRot,
    /// A machine is lost with its disk; a new node joins in its place. Once in a run.
    Replace,
    /// A site that was not there joins. Once in a run.
    JoinLate,
    /// Wall clocks jump by up to half a day.
    ClockJump,
    /// Wall clocks run fast or slow by up to a percent.
    ClockDrift,
    /// Wall clocks jump by days. Not in the swarm: the mesh forgets outcomes after a day of its clock.
    ClockLeap,
    /// One site is cut off for so long that it goes on by itself; in half of the cases its node dies meanwhile.
    CutOff,
    /// The mesh begins with the version before this one and is upgraded node by node. Throughout the run: it
    /// excludes the loss of a machine, whose node would be waited for.
    Upgrade,
    /// Where copies may lie is changed all the time: sites are drained, layouts staged and applied. Throughout.
    Relayout,
    /// A hospital has a gateway, which is cut off, killed, stopped, and has a bad disk. Throughout.
    Gateway,
    /// Links lose, repeat and reorder datagrams, throughout. Only datagrams can be: nothing with streams.
    LossyLinks,
}

impl Fault {
    /// Whether it lasts for the whole run, in place of happening now and then.
    pub(crate) fn is_throughout(self) -> bool {
        matches!(
            self,
            Self::CrashWriting | Self::CrashVoting | Self::LossyLinks | Self::Upgrade | Self::Relayout | Self::Gateway
        )
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The faults of a swarm: every kind that must not matter. [`Fault::LossyLinks`], [`Fault::CutOff`],
/// [`Fault::Upgrade`], [`Fault::Relayout`], [`Fault::Gateway`] and [`Fault::IndexRot`] may be added to it.
pub(crate) const SWARM: [Fault; 25] = [
    Fault::Crash,
    Fault::CrashMany,
    Fault::Kill,
    Fault::CrashLeader,
    Fault::CrashWriting,
    Fault::CrashVoting,
    Fault::Pause,
    Fault::DiskFull,
    Fault::FsyncFails,
    Fault::SlowDisk,
    Fault::Partition,
    Fault::OneWay,
    Fault::PartialCut,
    Fault::Flapping,
    Fault::IsolateLeader,
    Fault::LatencySpike,
    Fault::Breaks,
    Fault::Stalls,
    Fault::Restart,
    Fault::WrongBytes,
    Fault::BitRot,
    Fault::Replace,
    Fault::JoinLate,
    Fault::ClockJump,
    Fault::ClockDrift,
];

/// What carries the bytes between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Transport {
    /// Streams that the simulator makes: the nodes' own transport is left out.
    #[default]
    Messages,
    /// Datagrams, under the production QUIC, TLS, membership and chunk exchange.
    Quic,
}

/// The share of swarms over datagrams whose links are lossy.
const LOSSY: f64 = 0.6;
/// The share of swarms in which sites are cut off for long.
const CUT_OFF: f64 = 0.6;
/// The share of swarms in which the mesh is upgraded.
const UPGRADED: f64 = 0.15;
/// The share of swarms in which it is changed where copies may lie.
const RELAID: f64 = 0.4;
/// The share of swarms in which a hospital has a gateway.
const GATEWAY: f64 = 0.4;
/// The share of swarms in which indexes are damaged.
const INDEX_ROT: f64 = 0.3;
/// The share of runs whose nodes prefetch, and of those the share with hardly any room for it.
const PREFETCHES: f64 = 0.6;
const LITTLE_ROOM: f64 = 0.6;

/// The share of runs in which a site limits what senders send there.
const LIMITED: f64 = 0.5;
/// The quota of a day of whoever has one, MiB: the least that there can be.
pub(crate) const DAY_MIB: u64 = 1;

/// What users do at most in a run is sized for one that lasts no longer.
const SHORT: Duration = Duration::from_secs(600);

/// Which faults a run has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Faults {
    /// A random mixture, drawn from the seed.
    Swarm,
    /// These; none when empty.
    These(Vec<Fault>),
}

impl std::str::FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "swarm" => Ok(Self::Swarm),
            "none" => Ok(Self::These(Vec::new())),
            list => list.split(',').map(|name| Fault::from_str(name, false)).collect::<Result<_, _>>().map(Self::These),
        }
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Swarm => f.write_str("swarm"),
            Self::These(faults) if faults.is_empty() => f.write_str("none"),
            Self::These(faults) => {
                let names: Vec<String> = faults.iter().map(|fault| fault.name()).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

/// Copies of each study in every run.
pub(crate) const COPIES: u8 = 3;
/// Silence after which a study is published, seconds.
pub(crate) const QUIET_S: u64 = 2;

/// Bytes that may wait in a gateway's spool: more than a hospital of a short run has, so that only a longer one fills it.
pub(crate) const SPOOL_BYTES: u64 = 2 << 20;

/// What is asked of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Everything random comes from it.
    pub seed: u64,
    /// Simulated minutes with faults; building the mesh before and healing after come on top.
    pub minutes: u64,
    /// Sites, each with one node. At most 64.
    pub sites: u32,
    /// The faults.
    pub faults: Faults,
    /// Kinds of fault that are drawn like all others and then not done: what is left happens when it would have.
    pub without: Vec<Fault>,
    /// Only the faults of these numbers are done, if given. Those that last throughout have none.
    pub only_faults: Option<Vec<u64>>,
    /// What carries the bytes between nodes.
    pub transport: Transport,
    /// A deliberate fault at a seam.
    pub mutant: Option<Mutant>,
    /// Where the events go, besides their hash.
    pub trace: Option<PathBuf>,
}

impl Settings {
    /// The arguments of `simulate run` that repeat this run.
    pub fn arguments(&self) -> Vec<String> {
        let Self { seed, minutes, sites, faults, without, only_faults, transport, mutant, trace: _ } = self;
        let mut arguments = vec![
            "run".to_owned(),
            format!("--seed={seed}"),
            format!("--minutes={minutes}"),
            format!("--sites={sites}"),
            format!("--faults={faults}"),
        ];
        if !without.is_empty() {
            arguments.push(format!("--without={}", Faults::These(without.clone())));
        }
        arguments.extend(only_faults.as_ref().map(|numbers| format!("--only-faults={}", Numbers(numbers))));
        if *transport == Transport::Quic {
            arguments.push("--transport=quic".to_owned());
        }
        arguments.extend(mutant.map(|mutant| format!("--mutant={mutant}")));
        arguments
    }
}

/// Numbers of faults as the command line takes them.
struct Numbers<'a>(&'a [u64]);

impl std::fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(if texts.is_empty() { "none" } else { "" })?;
        f.write_str(&texts.join(","))
    }
}

/// What the seed draws.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) sites: u32,
    pub(crate) duration: Duration,
    pub(crate) faults: Vec<Fault>,
    /// Kinds and numbers of faults that are left out.
    pub(crate) without: Vec<Fault>,
    pub(crate) only_faults: Option<Vec<u64>>,
    pub(crate) transport: Transport,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) timing: Timing,
    /// One-way latency between two sites, milliseconds, at most.
    pub(crate) latency_ms_max: u64,
    pub(crate) snapshot_every: u64,
    pub(crate) keep_log: u64,
    pub(crate) session_ttl: Duration,
    /// How long a silent site's copies still count.
    pub(crate) grace: Duration,
    /// Mean time between two faults.
    pub(crate) fault_every: Duration,
    /// Mean duration of a fault.
    pub(crate) fault_lasts: Duration,
    /// Between two looks at all nodes' whole states.
    pub(crate) look_every: Duration,
    /// Between two looks of the service supervisors at what is down.
    pub(crate) supervise_every: Duration,
    pub(crate) shake: f64,
    pub(crate) readers_per_site: u32,
    /// Mean time between two exams at one site.
    pub(crate) exam_every: Duration,
    /// Mean time between two instances at one site.
    pub(crate) instance_every: Duration,
    pub(crate) reading: Duration,
    /// Whether one site stays away after the faults end.
    pub(crate) one_stays_away: bool,
    pub(crate) storage: Storage,
    /// None: no site has any.
    pub(crate) limits: Option<Limits>,
}

/// What the sysadmin of one site lets senders send there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Where.
    pub(crate) slot: u32,
    /// The rate of the hospital's scanners by C-STORE.
    pub(crate) rate_kib_s: u64,
    /// Whether who has a quota of a day sends by STOW-RS, and not by C-STORE.
    pub(crate) by_stow: bool,
}

impl Limits {
    /// From a stream of their own: the rest of the plan is the same with or without.
    fn draw(seed: u64, sites: u32) -> Option<Self> {
        let mut rng = Rng::stream(seed, "limits of senders");
        let is_limited = rng.chance(LIMITED);
        let slot = u32::try_from(rng.between(1, u64::from(sites))).unwrap_or(1);
        let limits = Self { slot, rate_kib_s: rng.between(2, 6), by_stow: rng.chance(0.5) };
        is_limited.then_some(limits)
    }

    /// The AE title under which who has a quota of a day sends …
    pub(crate) fn title(self) -> String {
        format!("BULK{}", self.slot)
    }

    /// … and the address from which.
    pub(crate) fn address(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 9, 0, u8::try_from(self.slot).unwrap_or(u8::MAX)))
    }

    /// As the site's configuration has them.
    fn configuration(self) -> String {
        let (slot, rate_kib_s) = (self.slot, self.rate_kib_s);
        let (title, address) = (self.title(), self.address());
        format!(
            "[ingest]\nsenders = [{{ ae_title = \"CT{slot}\", rate_kib_s = {rate_kib_s} }}, \
             {{ ae_title = \"{title}\", day_mib = {DAY_MIB} }}, {{ address = \"{address}\", day_mib = {DAY_MIB} }}]\n"
        )
    }
}

/// What sysadmins say of the images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage {
    /// Room for what is prefetched.
    pub(crate) prefetch_mib: u64,
    /// Within which a storage commitment is answered.
    pub(crate) commitment_timeout: Duration,
    /// How long copies stay that a layout wants no more.
    pub(crate) surplus_grace: Duration,
}

impl Storage {
    /// As sites have it that nobody reads at and nothing is changed of.
    pub(crate) const CALM: Self = Self {
        prefetch_mib: 0,
        commitment_timeout: Duration::from_secs(24 * 3600),
        surplus_grace: Duration::from_secs(24 * 3600),
    };

    /// From streams of its own: the rest of the plan is the same with or without.
    fn draw(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, "storage");
        let room = if rng.chance(LITTLE_ROOM) { 1 } else { 64 };
        Self {
            prefetch_mib: if rng.chance(PREFETCHES) { room } else { 0 },
            commitment_timeout: Duration::from_secs(rng.between(15, 90)),
            surplus_grace: Duration::from_secs(rng.between(5, 60)),
        }
    }
}

impl Plan {
    pub(crate) fn draw(settings: &Settings) -> Self {
        let mut rng = Rng::stream(settings.seed, "plan");
        let lan = rng.chance(0.3);
        let mut faults = match &settings.faults {
            Faults::These(faults) => faults.clone(),
            Faults::Swarm => {
                let share = [0.2, 0.4, 0.7][rng.index(3)];
                let mut faults: Vec<Fault> = SWARM.into_iter().filter(|_| rng.chance(share)).collect();
                // From a stream of its own: the other kinds are the same with either transport.
                if settings.transport == Transport::Quic && Rng::stream(settings.seed, "lossy").chance(LOSSY) {
                    faults.push(Fault::LossyLinks);
                }
                if Rng::stream(settings.seed, "cut off").chance(CUT_OFF) {
                    faults.push(Fault::CutOff);
                }
                if Rng::stream(settings.seed, "upgrade").chance(UPGRADED) {
                    faults.push(Fault::Upgrade);
                }
                if Rng::stream(settings.seed, "relayout").chance(RELAID) {
                    faults.push(Fault::Relayout);
                }
                if Rng::stream(settings.seed, "gateway").chance(GATEWAY) {
                    faults.push(Fault::Gateway);
                }
                if Rng::stream(settings.seed, "index rot").chance(INDEX_ROT) {
                    faults.push(Fault::IndexRot);
                }
                faults
            }
        };
        // The format rises only when every member was heard: a lost one never is.
        // A mesh at the old one has no gateways.
        if faults.contains(&Fault::Upgrade) {
            faults.retain(|fault| !matches!(fault, Fault::Replace | Fault::Gateway));
        }
        Self {
            seed: settings.seed,
            sites: settings.sites.clamp(1, 64),
            duration: Duration::from_secs(settings.minutes * 60),
            without: settings.without.clone(),
            only_faults: settings.only_faults.clone(),
            transport: settings.transport,
            mutant: settings.mutant,
            timing: if lan { Timing::LAN } else { Timing::WAN },
            latency_ms_max: if lan { 3 } else { rng.between(5, 25) },
            snapshot_every: rng.between(40, 600),
            keep_log: rng.between(0, 100),
            session_ttl: Duration::from_secs(rng.between(10, 30)),
            grace: Duration::from_secs(rng.between(5, 60)),
            fault_every: Duration::from_millis(rng.between(1_500, 8_000)),
            fault_lasts: Duration::from_secs(4),
            look_every: Duration::from_secs(2),
            supervise_every: Duration::from_millis(100),
            shake: if rng.chance(0.3) { 0.02 } else { 0.0 },
            readers_per_site: u32::try_from(rng.between(1, 3)).unwrap_or(1),
            exam_every: Duration::from_millis(rng.between(2_000, 8_000)),
            instance_every: Duration::from_millis(rng.between(1_000, 5_000)),
            reading: Duration::from_millis(rng.between(500, 6_000)),
            one_stays_away: !faults.is_empty() && settings.sites >= 3 && rng.chance(0.5),
            storage: Storage::draw(settings.seed),
            limits: Limits::draw(settings.seed, settings.sites.clamp(1, 64)),
            faults,
        }
    }

    /// The kinds that last for the whole run and are done.
    pub(crate) fn throughout(&self) -> impl Iterator<Item = Fault> {
        let is_done = |fault: &Fault| fault.is_throughout() && !self.without.contains(fault);
        self.faults.iter().copied().filter(is_done)
    }

    /// Whether the mesh begins with the version before this one and is upgraded.
    pub(crate) fn is_upgraded(&self) -> bool {
        self.throughout().any(|fault| fault == Fault::Upgrade)
    }

    /// Whether it is changed where copies may lie.
    pub(crate) fn is_relaid(&self) -> bool {
        self.throughout().any(|fault| fault == Fault::Relayout)
    }

    /// Whether a hospital has a gateway, harmed or not.
    pub(crate) fn has_gateway(&self) -> bool {
        self.faults.contains(&Fault::Gateway)
    }

    /// The gateway's configuration.
    pub(crate) fn gateway_configuration(&self, slot: u32) -> String {
        // Some keep what is safe for a while, some do not.
        let keep_s = Rng::stream(self.seed, "spool kept").below(3) * 8;
        let timeout = self.storage.commitment_timeout.as_secs();
        format!(
            "[node]\nname = \"gateway\"\nzone = \"hospital\"\nrole = \"gateway\"\n\
             [mesh]\nlisten = \"10.0.0.{slot}:7400\"\n\
             [dicom]\nmax_instance_mib = 1\n\
             [gateway]\nkeep_s = {keep_s}\nspool_bytes_max = {SPOOL_BYTES}\n\
             [storage]\ncommitment_timeout_s = {timeout}\nreserve_mib = 1\n"
        )
    }

    /// What a user does at most in a run: `most` in a short one, and as much more as a longer one lasts.
    pub(crate) fn at_most(&self, most: u64) -> u64 {
        most * (self.duration.as_secs() / SHORT.as_secs()).max(1)
    }

    /// Whether this fault is done, or left out.
    pub(crate) fn does(&self, number: u64, fault: Fault) -> bool {
        let asked = self.only_faults.as_ref().is_none_or(|only| only.contains(&number));
        asked && !self.without.contains(&fault)
    }

    /// The configuration of the node in `slot`, as its sysadmin wrote it.
    pub(crate) fn configuration(&self, slot: u32, generation: u32, format: u8) -> String {
        let Self { timing, snapshot_every, keep_log, session_ttl, grace, storage, .. } = self;
        let Storage { prefetch_mib, commitment_timeout, surplus_grace } = storage;
        let prefetch_mib = if self.mutant == Some(Mutant::PrefetchUnbounded) { 64 } else { *prefetch_mib };
        let (timeout, surplus) = (commitment_timeout.as_secs(), surplus_grace.as_secs());
        let (heartbeat, ttl, grace) = (timing.heartbeat.as_millis(), session_ttl.as_secs(), grace.as_secs());
        let (min, max) = (timing.election_min.as_millis(), timing.election_max.as_millis());
        let limits = self.limits.filter(|limits| limits.slot == slot).map(Limits::configuration).unwrap_or_default();
        let name = if generation == 0 { format!("site-{slot}") } else { format!("site-{slot}-{generation}") };
        format!(
            "[node]\nname = \"{name}\"\nzone = \"zone-{slot}\"\n\
             [mesh]\nlisten = \"10.0.0.{slot}:7400\"\n\
             [raft]\nheartbeat_ms = {heartbeat}\nelection_min_ms = {min}\nelection_max_ms = {max}\n\
             snapshot_every = {snapshot_every}\nkeep_log = {keep_log}\nsession_ttl_s = {ttl}\nformat_max = {format}\n\
             [dicom]\nquiet_seconds = {QUIET_S}\n\
             [storage]\nprefetch_mib_max = {prefetch_mib}\ncopies = {COPIES}\nplacement_grace_s = {grace}\n\
             commitment_timeout_s = {timeout}\nsurplus_grace_s = {surplus}\n\
             {limits}"
        )
    }

    /// Voters that the mesh grows to.
    pub(crate) fn voters(&self) -> usize {
        match self.sites {
            1 | 2 => 1,
            3 | 4 => 3,
            _ => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_faults_is_read_as_it_is_printed() {
        for text in ["swarm", "none", "crash,one-way,fsync-fails"] {
            let faults: Faults = text.parse().expect("known");
            assert_eq!(faults.to_string(), text);
        }
        assert!("crush".parse::<Faults>().is_err());
    }

    #[test]
    fn a_site_has_limits_in_its_configuration_and_the_others_have_none() {
        let settings = |seed| Settings {
            seed,
            minutes: 1,
            sites: 3,
            faults: Faults::These(Vec::new()),
            without: Vec::new(),
            only_faults: None,
            transport: Transport::Messages,
            mutant: None,
            trace: None,
        };
        let plans = (0..20).map(|seed| Plan::draw(&settings(seed)));
        let (limited, free): (Vec<Plan>, Vec<Plan>) = plans.partition(|plan| plan.limits.is_some());
        assert!(!limited.is_empty() && !free.is_empty());
        for (plan, slot) in limited.iter().chain(&free).flat_map(|plan| (1..=3).map(move |slot| (plan, slot))) {
            let text = plan.configuration(slot, 0, 2);
            assert!(maillage::site::Settings::from_toml(&text).is_ok(), "{text}");
            assert_eq!(text.contains("[ingest]"), plan.limits.is_some_and(|limits| limits.slot == slot), "{text}");
        }
    }
}
