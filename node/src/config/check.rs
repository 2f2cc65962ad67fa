//! What must hold between settings, each with a message that says what to change.
//!
//! Types are checked on reading; this is the rest. All problems are found in one pass, because an
//! operator who repairs one at a time restarts once for each.

use std::net::{IpAddr, SocketAddr};

use maillage_consensus::command::FORMAT;
use maillage_consensus::ids::Name;
use tracing_subscriber::EnvFilter;

use super::{Config, Role, Site};
use crate::audit::Target;
use crate::data_dir::DataDir;

/// Longest name of a site or zone, in bytes: that of a DNS label (RFC 1035), as names become ones.
pub(super) const NAME_LEN_MAX: usize = 63;
/// Shortest heartbeat; below it, timers and disks of ordinary machines decide elections.
const HEARTBEAT_MS_MIN: u64 = 10;
/// Least bound on clocks: a round trip over the sea is half a second, and half of it is the error.
const CLOCK_OFFSET_MS_MIN: u64 = 500;
/// Longest election time-out: the promise is a new leader within seconds.
const ELECTION_MS_MAX: u64 = 60_000;
/// Most associations: each may hold an instance's bytes in flight.
const ASSOCIATIONS_MAX: usize = 4096;
/// Largest instance that may be allowed, MiB: DICOM's lengths are 32 bits.
const INSTANCE_MIB_MAX: u64 = 4096;
/// Longest wait for a study to be quiet: an emergency waits for it.
const QUIET_SECONDS_MAX: u64 = 600;
/// Most copies of an image; more would not be safer than the voters who know of them.
const COPIES_MAX: u8 = 7;
/// Largest number that TOML, and so `config show`, can say.
const NUMBER_MAX: u64 = i64::MAX as u64;
/// Faster than any disk.
const SCRUB_MB_S_MAX: u64 = 100_000;

/// Calls `problem` with `section.key` and a message for each thing that is wrong.
pub(super) fn check(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    node(config, problem);
    mesh(config, problem);
    site(config, problem);
    raft(config, problem);
    http(config, problem);
    dicom(config, problem);
    ingest(config, problem);
    storage(config, problem);
    gateway(config, problem);
    audit(config, problem);
    ports(config, problem);
    if let Err(error) = EnvFilter::try_new(&config.log.filter) {
        problem("log.filter", format!("{:?} is no log filter: {error}", config.log.filter));
    }
}

fn node(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    for (setting, name) in [("node.name", &config.node.name), ("node.zone", &config.node.zone)] {
        if let Some(wrong) = wrong_with(name) {
            problem(setting, wrong);
        }
    }
    if config.node.weight == 0 {
        problem("node.weight", "must be at least 1".to_owned());
    }
    if config.node.data_dir.as_os_str().is_empty() {
        problem("node.data_dir", "must name a directory".to_owned());
    } else if let Err(error) = DataDir::at(&config.node.data_dir).control_socket() {
        problem("node.data_dir", error.to_string());
    }
}

/// Why no site or zone is called so.
fn wrong_with(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        Some(format!("must have 1 to {NAME_LEN_MAX} bytes, has {}", name.len()))
    } else if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        Some("may hold ASCII letters, digits, `-`, `_` and `.` only".to_owned())
    } else {
        None
    }
}

fn mesh(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    for address in &config.mesh.announce {
        if address.ip().is_unspecified() || address.port() == 0 {
            problem("mesh.announce", format!("{address} is not an address that another site can reach"));
        }
    }
}

fn site(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let Site { territory, department, region } = &config.site;
    for (setting, name) in [("site.territory", territory), ("site.department", department), ("site.region", region)] {
        if let Err(error) = Name::new(name.as_str()) {
            problem(setting, error.to_string());
        } else if name.trim() != name {
            problem(setting, "starts or ends with a space: another word than the hospitals' one".to_owned());
        }
    }
}

fn raft(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let raft = &config.raft;
    if raft.heartbeat_ms < HEARTBEAT_MS_MIN {
        problem("raft.heartbeat_ms", format!("must be at least {HEARTBEAT_MS_MIN}, is {}", raft.heartbeat_ms));
    }
    let least = raft.heartbeat_ms.saturating_mul(3);
    if raft.election_min_ms < least {
        let is = raft.election_min_ms;
        problem("raft.election_min_ms", format!("must be at least 3 x raft.heartbeat_ms = {least}, is {is}"));
    }
    if raft.election_max_ms <= raft.election_min_ms {
        let (max, min) = (raft.election_max_ms, raft.election_min_ms);
        problem("raft.election_max_ms", format!("must be more than raft.election_min_ms = {min}, is {max}"));
    }
    if raft.election_max_ms > ELECTION_MS_MAX {
        let is = raft.election_max_ms;
        problem("raft.election_max_ms", format!("must be at most {ELECTION_MS_MAX}, is {is}"));
    }
    if !(1..=FORMAT).contains(&raft.format_max) {
        problem("raft.format_max", format!("must be 1 to {FORMAT}, is {}", raft.format_max));
    }
    if raft.clock_offset_max_ms < CLOCK_OFFSET_MS_MIN || raft.clock_offset_max_ms > NUMBER_MAX {
        let is = raft.clock_offset_max_ms;
        problem("raft.clock_offset_max_ms", format!("must be at least {CLOCK_OFFSET_MS_MIN}, is {is}"));
    }
    if raft.snapshot_every == 0 || raft.snapshot_every > NUMBER_MAX {
        problem("raft.snapshot_every", "must be at least 1".to_owned());
    }
    if raft.keep_log > NUMBER_MAX {
        problem("raft.keep_log", format!("must be at most {NUMBER_MAX}"));
    }
    // A session is renewed through the leader: it must outlive an election, or every change of the
    // leader would free all claims.
    let least_s = raft.election_max_ms.saturating_mul(2).div_ceil(1000);
    if raft.session_ttl_s < least_s || raft.session_ttl_s > NUMBER_MAX {
        let is = raft.session_ttl_s;
        problem("raft.session_ttl_s", format!("must be at least 2 x raft.election_max_ms = {least_s} s, is {is}"));
    }
}

fn audit(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let syslog = &config.audit.syslog;
    if !syslog.is_empty()
        && let Err(error) = syslog.parse::<Target>()
    {
        problem("audit.syslog", error);
    }
}

fn http(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let http = &config.http;
    if !http.listen.ip().to_canonical().is_loopback() && !http.trusted_network {
        let listen = http.listen;
        problem(
            "http.listen",
            format!(
                "{listen} is not loopback, and the API has no users yet: whoever reaches it may claim exams and see \
                 images. Listen on 127.0.0.1, or set http.trusted_network = true if that is meant"
            ),
        );
    }
    for host in &http.allowed_hosts {
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let good = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')),
        };
        if !good {
            problem("http.allowed_hosts", format!("{host:?} is not a host name (no scheme, no port)"));
        }
    }
}

fn dicom(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let dicom = &config.dicom;
    if !(1..=ASSOCIATIONS_MAX).contains(&dicom.max_associations) {
        let is = dicom.max_associations;
        problem("dicom.max_associations", format!("must be 1 to {ASSOCIATIONS_MAX}, is {is}"));
    }
    if !(1..=INSTANCE_MIB_MAX).contains(&dicom.max_instance_mib) {
        let is = dicom.max_instance_mib;
        problem("dicom.max_instance_mib", format!("must be 1 to {INSTANCE_MIB_MAX}, is {is}"));
    }
    if !(1..=QUIET_SECONDS_MAX).contains(&dicom.quiet_seconds) {
        let is = dicom.quiet_seconds;
        problem("dicom.quiet_seconds", format!("must be 1 to {QUIET_SECONDS_MAX}, is {is}"));
    }
}

fn ingest(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let ingest = &config.ingest;
    for (setting, value) in [("ingest.rate_kib_s", ingest.rate_kib_s), ("ingest.day_mib", ingest.day_mib)] {
        if value > NUMBER_MAX >> 20 {
            problem(setting, format!("must be at most {}", NUMBER_MAX >> 20));
        }
    }
    for sender in &ingest.senders {
        if sender.ae_title.is_some() == sender.address.is_some() {
            problem("ingest.senders", "each needs either an ae_title or an address".to_owned());
        }
        if sender.rate_kib_s.max(sender.day_mib) > NUMBER_MAX >> 20 {
            problem("ingest.senders", format!("limits must be at most {}", NUMBER_MAX >> 20));
        }
    }
}

fn storage(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let storage = &config.storage;
    if !(1..=COPIES_MAX).contains(&storage.copies) {
        problem("storage.copies", format!("must be 1 to {COPIES_MAX}, is {}", storage.copies));
    }
    // In bytes it must fit 64 bits.
    if storage.reserve_mib > NUMBER_MAX >> 20 {
        problem("storage.reserve_mib", format!("must be at most {}", NUMBER_MAX >> 20));
    }
    if storage.prefetch_mib_max > NUMBER_MAX >> 20 {
        problem("storage.prefetch_mib_max", format!("must be at most {}", NUMBER_MAX >> 20));
    }
    if storage.commitment_timeout_s == 0 || storage.commitment_timeout_s > NUMBER_MAX / 1000 {
        problem("storage.commitment_timeout_s", format!("must be 1 to {}", NUMBER_MAX / 1000));
    }
    if storage.copy_mb_s_max > NUMBER_MAX {
        problem("storage.copy_mb_s_max", format!("must be at most {NUMBER_MAX}"));
    }
    if storage.surplus_grace_s > NUMBER_MAX / 1000 {
        problem("storage.surplus_grace_s", format!("must be at most {}", NUMBER_MAX / 1000));
    }
    if storage.wipe_s == 0 || storage.wipe_s > NUMBER_MAX / 1000 {
        problem("storage.wipe_s", format!("must be 1 to {}", NUMBER_MAX / 1000));
    }
    if storage.scrub_mb_s > SCRUB_MB_S_MAX {
        problem("storage.scrub_mb_s", format!("must be at most {SCRUB_MB_S_MAX}"));
    }
    if storage.placement_grace_s > NUMBER_MAX / 1000 {
        problem("storage.placement_grace_s", format!("must be at most {}", NUMBER_MAX / 1000));
    }
}

fn gateway(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let gateway = &config.gateway;
    if let Err(error) = Name::new(gateway.home.as_str()) {
        problem("gateway.home", error.to_string());
    } else if !gateway.home.is_empty() && !gateway.centres.is_empty() && !gateway.centres.contains(&gateway.home) {
        problem("gateway.home", format!("{:?} is none of gateway.centres: no image is sent there", gateway.home));
    }
    for name in &gateway.centres {
        if let Some(wrong) = wrong_with(name) {
            problem("gateway.centres", format!("{name:?} is no site's name: it {wrong}"));
        }
    }
    let least = config.dicom.max_instance_mib.saturating_mul(1 << 20);
    if gateway.spool_bytes_max < least || gateway.spool_bytes_max > NUMBER_MAX {
        let is = gateway.spool_bytes_max;
        problem("gateway.spool_bytes_max", format!("must be at least dicom.max_instance_mib = {least} bytes, is {is}"));
    }
    if gateway.keep_s > NUMBER_MAX / 1000 {
        problem("gateway.keep_s", format!("must be at most {}", NUMBER_MAX / 1000));
    }
}

/// Why a setting says nothing on a node of this role, if it does.
pub(super) fn meaningless(role: Role, section: &str, key: &str) -> Option<&'static str> {
    match (role, section, key) {
        (Role::Gateway, "raft", _) => Some("a gateway has no part of the log"),
        (Role::Gateway, "site", _) => Some("a gateway has no readers"),
        (Role::Gateway, "node", "weight") | (Role::Gateway, "storage", "copies" | "placement_grace_s") => {
            Some("a gateway holds no copies")
        }
        (Role::Gateway, "audit", _) => Some("a gateway has no audit trail: a centre sends it"),
        (Role::Gateway, "dicom", "quiet_seconds") => Some("centres publish studies, not a gateway"),
        (Role::Gateway, "mesh", "lan_discovery") => Some("a gateway is told by the mesh where its centres are"),
        (Role::Centre, "gateway", _) => Some("set node.role = \"gateway\", or leave it out"),
        _ => None,
    }
}

/// The mesh's port also counts for TCP: it is its fallback where UDP is blocked.
fn ports(config: &Config, problem: &mut dyn FnMut(&'static str, String)) {
    let listeners = [
        ("mesh.listen", config.mesh.listen),
        ("http.listen", config.http.listen),
        ("dicom.listen", config.dicom.listen),
    ];
    for (index, (setting, address)) in listeners.iter().enumerate() {
        for (other_setting, other) in &listeners[..index] {
            if overlap(*address, *other) {
                problem(setting, format!("{address} collides with {other_setting} = {other}: ports must be distinct"));
            }
        }
    }
}

/// Whether two sockets could not both be bound. Port 0 is one that the system picks.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = |address: IpAddr| address.is_unspecified();
    a.port() == b.port()
        && a.port() != 0
        && (a.ip().to_canonical() == b.ip().to_canonical() || everywhere(a.ip()) || everywhere(b.ip()))
}
