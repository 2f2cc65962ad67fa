//! A site's configuration, as far as tests vary it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// Who may send images.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its AE title.
    pub ae_title: String,
    /// The addresses that it may come from, as CIDR; any when `None`.
    pub address: Option<String>,
}

/// What differs from the defaults of tests.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What fails together; the site's name when empty.
    pub zone: String,
    /// Callers of the DICOM port; anybody when empty.
    pub callers: Vec<Caller>,
    /// Whom the site calls by DICOM: AE titles and where they listen.
    pub peers: Vec<(String, SocketAddr)>,
    /// Silence after which a site's claims are free, in seconds.
    pub session_ttl_s: u64,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
    /// Log entries kept behind a snapshot.
    pub keep_log: u64,
    /// A study is complete after so long without a new instance, in seconds.
    pub quiet_seconds: u64,
    /// Copies of each image in the mesh.
    pub copies: u8,
    /// The highest format of commands that the site admits to understand; its newest when `None`.
    pub format_max: Option<u8>,
    /// The syslog server that is sent the audit trail.
    pub syslog: Option<String>,
    /// The hospitals' group of its readers; empty for none.
    pub territory: String,
    /// Further lines, each with the section that it stands in, as `[storage]`.
    pub lines: Vec<(&'static str, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            zone: String::new(),
            callers: Vec::new(),
            peers: Vec::new(),
            session_ttl_s: 30,
            snapshot_every: 20_000,
            keep_log: 5_000,
            quiet_seconds: 1,
            copies: 3,
            format_max: None,
            syslog: None,
            territory: String::new(),
            lines: Vec::new(),
        }
    }
}

/// Where a site listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// HTTP.
    pub http: SocketAddr,
    /// DICOM.
    pub dicom: SocketAddr,
    /// The mesh, UDP.
    pub mesh: SocketAddr,
}

impl Settings {
    /// The configuration file.
    pub fn toml(&self, name: &str, data_dir: &Path, at: Addresses) -> String {
        let zone = if self.zone.is_empty() { name } else { &self.zone };
        let mut text = format!(
            "[node]\nname = \"{name}\"\nzone = \"{zone}\"\ndata_dir = {data_dir:?}\n\
             [mesh]\nlisten = \"{}\"\n[http]\nlisten = \"{}\"\n\
             [site]\nterritory = \"{}\"\n[raft]\nsession_ttl_s = {}\nsnapshot_every = {}\nkeep_log = {}\n\
             [storage]\nreserve_mib = 64\ncopies = {}\n[log]\nfilter = \"info\"\n\
             [dicom]\nlisten = \"{}\"\nquiet_seconds = {}\n",
            at.mesh,
            at.http,
            self.territory,
            self.session_ttl_s,
            self.snapshot_every,
            self.keep_log,
            self.copies,
            at.dicom,
            self.quiet_seconds,
        );
        let tables = [
            self.format_max.map(|format| ("[raft]\n", format!("[raft]\nformat_max = {format}\n"))),
            self.syslog.as_ref().map(|server| ("[log]\n", format!("[audit]\nsyslog = \"{server}\"\n[log]\n"))),
        ];
        for (table, longer) in tables.into_iter().flatten() {
            text = text.replacen(table, &longer, 1);
        }
        // Where images lie is what most tests look at.
        if !self.lines.iter().any(|(_, line)| line.starts_with("prefetch_mib_max")) {
            text = text.replacen("[storage]\n", "[storage]\nprefetch_mib_max = 0\n", 1);
        }
        for (section, line) in &self.lines {
            if !text.contains(section) {
                text = text.replacen("[dicom]\n", &format!("{section}\n[dicom]\n"), 1);
            }
            text = text.replacen(&format!("{section}\n"), &format!("{section}\n{line}\n"), 1);
        }
        if self.callers.is_empty() {
            text.push_str("any_caller = true\n");
        }
        for caller in &self.callers {
            let address = caller.address.as_ref().map(|address| format!("address = \"{address}\"\n"));
            let address = address.unwrap_or_default();
            write!(text, "[[dicom.callers]]\nae_title = \"{}\"\n{address}", caller.ae_title).expect("to memory");
        }
        for (ae_title, at) in &self.peers {
            let (host, port) = (at.ip(), at.port());
            write!(text, "[[dicom.peers]]\nae_title = \"{ae_title}\"\nhost = \"{host}\"\nport = {port}\n")
                .expect("to memory");
        }
        text
    }
}
