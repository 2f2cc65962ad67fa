//! The configuration of a node: one TOML file, every value also by environment variable.
//!
//! Reading it is `load`, what each setting is and means is one table in `settings`, what must hold
//! between them is `check`. There is no secret in it: the identity is a file of the data directory,
//! and a join token is an argument. All times are whole numbers with their unit in the name.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use maillage_consensus::command::FORMAT;
use maillage_dicom::AeTitle;
use serde::{Deserialize, Serialize};

mod check;
mod load;
mod network;
mod settings;

pub use load::ConfigError;
pub(crate) use load::{Loaded, Sources, load};
pub(crate) use network::Network;
pub(crate) use settings::template;

/// A configuration that was read and found good.
#[derive(Debug, Clone)]
pub struct Settings(Config);

impl Settings {
    /// The settings of one TOML text, defaults for the rest; no file and no environment is read.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        load::of_text(text).checked().map(Self)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0
    }

    pub(crate) fn into_config(self) -> Config {
        self.0
    }
}

impl From<Config> for Settings {
    fn from(config: Config) -> Self {
        Self(config)
    }
}

/// Everything that an operator may set, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// Who this node is.
    pub(crate) node: Node,
    /// How it meets the other sites.
    pub(crate) mesh: Mesh,
    /// Where its readers are.
    pub(crate) site: Site,
    /// How the sites agree.
    pub(crate) raft: Raft,
    /// The local API and the worklist page.
    pub(crate) http: Http,
    /// What receives images.
    pub(crate) dicom: Dicom,
    /// How fast and how much may be sent here.
    pub(crate) ingest: Ingest,
    /// What keeps them.
    pub(crate) storage: Storage,
    /// What a hospital's gateway needs besides.
    pub(crate) gateway: Gateway,
    /// Who is told of the audit trail.
    pub(crate) audit: Audit,
    /// What is logged, and how.
    pub(crate) log: Log,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// The site's name.
    pub(crate) name: String,
    /// What fails together; copies go to distinct zones.
    pub(crate) zone: String,
    /// Where all state is.
    pub(crate) data_dir: PathBuf,
    /// This site's share of copies beside others.
    pub(crate) weight: u16,
    /// What it is to the mesh.
    pub(crate) role: Role,
}

/// What a node is to its mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A reading centre, or the cloud.
    #[default]
    Centre,
    /// A hospital's gateway.
    Gateway,
}

impl Role {
    /// Whether it is a reading centre.
    pub fn is_centre(&self) -> bool {
        *self == Self::Centre
    }
}

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// The site that images are sent to while it answers; empty for any.
    pub(crate) home: String,
    /// The only sites that images are sent to, by name; empty for any.
    pub(crate) centres: Vec<String>,
    /// The most bytes that wait here.
    pub(crate) spool_bytes_max: u64,
    /// For how long what the mesh has made safe is kept here too, seconds.
    pub(crate) keep_s: u64,
}

/// `[mesh]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mesh {
    /// The one UDP socket.
    pub(crate) listen: SocketAddr,
    /// Where others reach it. Empty when `listen` names no single address: the node then announces
    /// the addresses of its interfaces.
    pub(crate) announce: Vec<SocketAddr>,
    /// Whether peers are looked for by multicast DNS.
    pub(crate) lan_discovery: bool,
    /// By what images are sent to other sites.
    pub(crate) congestion: Congestion,
}

/// By what images are sent to other sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Congestion {
    /// What the line was measured to carry; on local networks cubic.
    Auto,
    /// Cubic everywhere.
    Cubic,
    /// What the line was measured to carry, everywhere.
    Wan,
}

impl From<Congestion> for maillage_transport::Congestion {
    fn from(congestion: Congestion) -> Self {
        match congestion {
            Congestion::Auto => Self::Auto,
            Congestion::Cubic => Self::Cubic,
            Congestion::Wan => Self::Wan,
        }
    }
}

/// `[site]`
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Site {
    /// The hospitals' group that its readers belong to; empty when that is not known, as below.
    pub(crate) territory: String,
    /// The department.
    pub(crate) department: String,
    /// The region.
    pub(crate) region: String,
}

/// `[raft]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Raft {
    /// Between two heartbeats, milliseconds.
    pub(crate) heartbeat_ms: u64,
    /// Least silence of the leader before an election, milliseconds.
    pub(crate) election_min_ms: u64,
    /// Greatest, milliseconds.
    pub(crate) election_max_ms: u64,
    /// Log entries between two snapshots.
    pub(crate) snapshot_every: u64,
    /// Log entries kept behind a snapshot.
    pub(crate) keep_log: u64,
    /// Silence of a site after which its claims are freed, seconds.
    pub(crate) session_ttl_s: u64,
    /// The highest format of commands that this node advertises and proposes.
    pub(crate) format_max: u8,
    /// How far a leader's clock may be from the others', milliseconds.
    pub(crate) clock_offset_max_ms: u64,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Http {
    /// The API and the page.
    pub(crate) listen: SocketAddr,
    /// Further names by which browsers may address it.
    pub(crate) allowed_hosts: Vec<String>,
    /// Whether every machine that reaches `listen` is trusted.
    pub(crate) trusted_network: bool,
}

impl Http {
    /// Every value of the `Host` header that is answered, without ports and in lower case (RFC 9110
    /// section 7.2; IPv6 addresses in brackets): loopback, the listening address, and what is allowed.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
        if !self.listen.ip().is_unspecified() {
            hosts.push(match self.listen.ip() {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            });
        }
        hosts.extend(self.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()));
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }
}

/// `[dicom]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dicom {
    /// The DIMSE service.
    pub(crate) listen: SocketAddr,
    /// Our title.
    pub(crate) ae_title: AeTitle,
    /// Whether a sender must call us by it.
    pub(crate) check_called: bool,
    /// Who may send.
    pub(crate) callers: Vec<Caller>,
    /// Whom this node calls: by their titles, where they listen.
    pub(crate) peers: Vec<DicomPeer>,
    /// Whether anybody may send.
    pub(crate) any_caller: bool,
    /// Associations open at once.
    pub(crate) max_associations: usize,
    /// Largest instance, MiB.
    pub(crate) max_instance_mib: u64,
    /// Silence after which a study is published, seconds.
    pub(crate) quiet_seconds: u64,
}

/// One of `[[dicom.callers]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Caller {
    /// The calling title.
    pub(crate) ae_title: AeTitle,
    /// Where it calls from; anywhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Network>,
}

/// `[ingest]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ingest {
    /// The rate of each sender that has no entry of its own, KiB/s; 0 for none.
    pub(crate) rate_kib_s: u64,
    /// Its quota of a UTC day, MiB; 0 for none.
    pub(crate) day_mib: u64,
    /// Senders with limits of their own.
    pub(crate) senders: Vec<SenderLimit>,
}

/// One of `[[ingest.senders]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SenderLimit {
    /// The calling AE title of a C-STORE …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ae_title: Option<AeTitle>,
    /// … or the address of a client of STOW-RS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Network>,
    /// KiB/s; 0 for no limit.
    #[serde(default)]
    pub(crate) rate_kib_s: u64,
    /// MiB a UTC day; 0 for no limit.
    #[serde(default)]
    pub(crate) day_mib: u64,
}

/// One of `[[dicom.peers]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DicomPeer {
    /// Its title.
    pub(crate) ae_title: AeTitle,
    /// Its name or address.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Storage {
    /// Free space below which ingest is refused, MiB.
    pub(crate) reserve_mib: u64,
    /// Copies of each image in a new mesh.
    pub(crate) copies: u8,
    /// Time that a lost site has to come back before its copies are made anew, seconds.
    pub(crate) placement_grace_s: u64,
    /// Time that a copy beyond those wanted stays, seconds.
    pub(crate) surplus_grace_s: u64,
    /// Between two steps of wiping what is left of destroyed keys, seconds.
    pub(crate) wipe_s: u64,
    /// What this site takes in for copies and repairs, MB/s; 0 for no limit.
    pub(crate) copy_mb_s_max: u64,
    /// Time after which a storage commitment that is still pending has failed, seconds.
    pub(crate) commitment_timeout_s: u64,
    /// How fast packs are read to find damage, in 10^6 bytes a second; 0 for not at all.
    pub(crate) scrub_mb_s: u64,
    /// How much may be here beyond copies, for being likely to be read here, MiB; 0 for nothing.
    pub(crate) prefetch_mib_max: u64,
}

/// `[audit]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Audit {
    /// The syslog server that is sent the audit trail; empty for none.
    pub(crate) syslog: String,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Log {
    /// How a line looks.
    pub(crate) format: LogFormat,
    /// What is let through, in the syntax of `tracing_subscriber::EnvFilter`.
    pub(crate) filter: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let name = settings::host_name();
        Self {
            node: Node {
                zone: name.clone(),
                name,
                data_dir: PathBuf::from("/var/lib/maillage"),
                weight: 100,
                role: Role::Centre,
            },
            mesh: Mesh {
                listen: SocketAddr::new(any, 7400),
                announce: Vec::new(),
                lan_discovery: false,
                congestion: Congestion::Auto,
            },
            site: Site::default(),
            raft: Raft {
                heartbeat_ms: 150,
                election_min_ms: 750,
                election_max_ms: 1500,
                snapshot_every: 20_000,
                keep_log: 5_000,
                session_ttl_s: 30,
                format_max: FORMAT,
                // Far above what clocks that follow any time server differ by, and above the longest round
                // trip in which they are compared; far below the shortest target, 30 minutes, whose time
                // left it falsifies.
                clock_offset_max_ms: 5_000,
            },
            http: Http {
                listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7480),
                allowed_hosts: Vec::new(),
                trusted_network: false,
            },
            dicom: Dicom {
                listen: SocketAddr::new(any, 11112),
                ae_title: settings::default_ae_title(),
                check_called: true,
                callers: Vec::new(),
                peers: Vec::new(),
                any_caller: false,
                max_associations: 64,
                max_instance_mib: 1024,
                quiet_seconds: 5,
            },
            ingest: Ingest::default(),
            storage: Storage {
                reserve_mib: 1024,
                copies: 3,
                placement_grace_s: 600,
                surplus_grace_s: 24 * 3600,
                wipe_s: 60,
                copy_mb_s_max: 0,
                commitment_timeout_s: 24 * 3600,
                // 50 TB in the month in which all should be read; a tenth of what one hard disk gives.
                scrub_mb_s: 20,
                // Some hundred coded CT studies: the head of a night's room and its priors.
                prefetch_mib_max: 20 * 1024,
            },
            // A day of a large hospital (50 CTs of 1 GB) and as much again; a commitment is asked for within hours.
            gateway: Gateway { home: String::new(), centres: Vec::new(), spool_bytes_max: 100 << 30, keep_s: 6 * 3600 },
            audit: Audit { syslog: String::new() },
            log: Log { format: LogFormat::Text, filter: "info,openraft=warn,libp2p=warn".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_the_listening_address_are_always_allowed_hosts() {
        let mut http = Config::default().http;
        assert_eq!(http.hosts(), ["127.0.0.1", "[::1]", "localhost"]);
        http.listen = "[2001:db8::7]:80".parse().expect("an address");
        http.allowed_hosts = vec!["Worklist.Example".to_owned()];
        assert_eq!(http.hosts(), ["127.0.0.1", "[2001:db8::7]", "[::1]", "localhost", "worklist.example"]);
    }
}
