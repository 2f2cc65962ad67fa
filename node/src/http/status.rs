//! The mesh as this node sees it: what `status`, the page and readiness show, gathered once.

use std::collections::BTreeMap;
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::command::{FORMAT, UnixMillisField};
use maillage_consensus::exam::{Exam, Priority};
use maillage_consensus::ids::SiteId;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::{Counts, Mesh, Site, SiteRole};
use maillage_consensus::raft::{ClockOffset, GroupStatus, Role, Said};
use maillage_store::Stats;
use maillage_transport::fetch::Penalty;
use serde_json::{Value, json};

use super::reading::milliseconds;
use super::rfc3339::rfc3339;
use crate::duties::{attest, clocks};
use crate::gateway::Gates;
use crate::gateway::door::Heard;
use crate::node::Node;
use crate::outbox;
use crate::presence::PeerState;
use crate::scrub::{Pass, ScrubStatus};

/// Without a word from a quorum for so long, a site counts as cut off: several elections' worth.
const CUT_OFF_AFTER: Duration = Duration::from_secs(5);
/// Waiting and claimed exams looked at for the overdue and the oldest: more than a mesh ever has open.
const OPEN_EXAMS_MAX: usize = 2_000;
/// Voters below which a mesh bears no failure.
const VOTERS_TO_BEAR_ONE: usize = 3;

/// Whether the last word of a quorum is too old for writes to be expected to work.
pub(crate) fn is_cut_off(age: Option<Duration>) -> bool {
    age.is_none_or(|age| age > CUT_OFF_AFTER)
}

/// The mesh as this node sees it.
#[derive(Debug, Clone)]
pub(crate) struct MeshStatus {
    /// This node's time when it was gathered.
    pub(crate) now: UnixMillisField,
    /// Since a quorum was last heard; `None` for never.
    pub(crate) age: Option<Duration>,
    /// The mesh, once this node knows it.
    pub(crate) mesh: Option<Mesh>,
    /// A row for each site, this one included.
    pub(crate) sites: Vec<SiteRow>,
    /// How many exams and studies are in which state.
    pub(crate) counts: Counts,
    /// Who must agree.
    pub(crate) quorum: Quorum,
    own: SiteId,
    mesh_id: [u8; 32],
    mesh_name: String,
    name: String,
    zone: String,
    group: GroupStatus,
    storage: Stats,
    reserve_bytes: u64,
    /// Sites whose audit chain is another than this node's: their states differ.
    pub(crate) disagreeing: Vec<SiteId>,
    /// How far this node's clock is ahead, in milliseconds: of the leader's, or while it leads of the
    /// others' median; `None` while unknown.
    pub(crate) clock_ahead_ms: Option<i64>,
    clock: Option<ClockOffset>,
    clock_bound_ms: u64,
    format_max: u8,
    /// What the sites said of themselves, while this node leads.
    said: Option<BTreeMap<u64, Said>>,
    outbox: outbox::Counts,
    scrub: ScrubStatus,
    overdue: Option<usize>,
    oldest_urgent_ms: Option<u64>,
}

/// Who must agree, and how many of them can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// Sites with a vote.
    pub(crate) voters: usize,
    /// How many of them must agree.
    pub(crate) needed: usize,
    /// How many of them this node reaches, itself included.
    pub(crate) alive: usize,
}

impl Quorum {
    /// How many more of them may fail.
    fn tolerates(self) -> usize {
        self.alive.saturating_sub(self.needed)
    }
}

/// A site's row.
#[derive(Debug, Clone)]
pub(crate) struct SiteRow {
    /// The site.
    pub(crate) site: Site,
    /// Its role in the group.
    pub(crate) role: &'static str,
    /// How it is reached.
    pub(crate) reach: Reach,
    /// Its presence, for other sites.
    pub(crate) peer: Option<PeerState>,
    /// What is held against it: wrong bytes.
    penalty: Option<Penalty>,
    /// What it said last, of a gateway that is connected here.
    gate: Option<Heard>,
    lag: Option<u64>,
}

/// How a site is reached from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It is this one.
    Own,
    /// Connected.
    Connected,
    /// Not connected.
    Unreachable,
}

impl Reach {
    fn as_str(self) -> &'static str {
        match self {
            Self::Own => "self",
            Self::Connected => "connected",
            Self::Unreachable => "unreachable",
        }
    }
}

/// Something to know, and the command that helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warning {
    /// What is wrong.
    pub(crate) what: String,
    /// What to run.
    pub(crate) command: &'static str,
}

impl MeshStatus {
    /// Gathers it from `view`, from the group, and from presence.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) fn gather(node: &Node, view: &View<'_>, storage: Stats) -> Result<Self, ApplyError> {
        let (group, peers, own, config) = (node.group_status(), node.peers(), node.site(), node.config());
        let now: UnixMillisField = node.clock().now().into();
        let reached = |site: SiteId| site == own || peers.iter().any(|peer| peer.site == site && peer.connected);
        let alive = group.voters.iter().filter(|voter| reached(SiteId(**voter))).count();
        let quorum = Quorum { voters: group.voters.len(), needed: group.voters.len() / 2 + 1, alive };
        let sites = view.sites()?;
        let clock_ahead_ms = clocks::ahead_ms(node, &sites);
        let penalty = |site: &Site| node.images().penalty(&node.roster().peer(site.id)?);
        let sites = sites
            .into_iter()
            .map(|site| SiteRow { penalty: penalty(&site), ..site_row(site, own, &group, &peers, node.gates()) })
            .collect();
        Ok(Self {
            disagreeing: attest::disagreeing(view)?,
            clock_ahead_ms,
            clock: node.group().clock_offset(),
            clock_bound_ms: config.raft.clock_offset_max_ms,
            format_max: config.raft.format_max,
            said: node.group().said(),
            now,
            age: node.age(),
            mesh: view.mesh()?,
            sites,
            counts: view.counts()?,
            quorum,
            own,
            mesh_id: node.mesh_id(),
            mesh_name: node.mesh_name(),
            name: config.node.name.clone(),
            zone: config.node.zone.clone(),
            group,
            storage,
            reserve_bytes: config.storage.reserve_mib.saturating_mul(1 << 20),
            outbox: node.outbox().book().counts(),
            scrub: node.scrub().status(),
            overdue: None,
            oldest_urgent_ms: None,
        })
    }

    /// Adds what takes a look at each open exam, which a page that is made at every change leaves out.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) fn with_open_exams(mut self, view: &View<'_>) -> Result<Self, ApplyError> {
        let (waiting, claimed) = (view.waiting(self.now, OPEN_EXAMS_MAX)?, view.claimed(OPEN_EXAMS_MAX)?);
        let overdue = |exam: &&Exam| exam.due_at.is_some_and(|due| due < self.now);
        self.overdue = Some(waiting.iter().chain(&claimed).filter(overdue).count());
        let urgent = waiting.iter().filter(|exam| exam.request.priority <= Priority::Urgent);
        let oldest = urgent.filter_map(|exam| exam.ready_at).min();
        self.oldest_urgent_ms = oldest.map(|ready| self.now.0.saturating_sub(ready.0));
        Ok(self)
    }

    /// Whether writes are not to be expected to work now.
    pub(crate) fn cut_off(&self) -> bool {
        is_cut_off(self.age)
    }

    /// Whether this node's clock is further off than a leader's may be.
    pub(crate) fn clock_is_off(&self) -> bool {
        self.clock_ahead_ms.is_some_and(|ahead| clocks::is_off(ahead, self.clock_bound_ms))
    }

    /// The format at which the mesh runs.
    pub(crate) fn format(&self) -> u8 {
        self.mesh.as_ref().map_or(1, |mesh| mesh.format)
    }

    /// What a site said of itself, as far as this node was told.
    fn said(&self, site: SiteId) -> Option<Said> {
        match &self.said {
            Some(said) => said.get(&site.0).copied(),
            None => (site == self.own).then_some(Said { format: self.format_max, clock: self.clock }),
        }
    }

    /// The rows of the sites that hold copies and may vote.
    fn centres(&self) -> impl Iterator<Item = &SiteRow> {
        self.sites.iter().filter(|row| !row.site.is_gateway())
    }

    fn names_of(&self, sites: impl Iterator<Item = SiteId>) -> Vec<String> {
        let name = |site: SiteId| {
            let row = self.sites.iter().find(|row| row.site.id == site);
            row.map_or_else(|| format!("site {site}"), |row| row.site.description.name.to_string())
        };
        sites.map(name).collect()
    }

    /// When a quorum was last heard.
    pub(crate) fn heard_at(&self) -> Option<UnixMillisField> {
        self.age.map(|age| UnixMillisField(self.now.0.saturating_sub(milliseconds(age))))
    }

    /// The leader's name, if one is known.
    pub(crate) fn leader(&self) -> Option<String> {
        let leader = SiteId(self.group.leader?);
        let named = self.sites.iter().find(|row| row.site.id == leader);
        Some(named.map_or_else(|| leader.to_string(), |row| row.site.description.name.to_string()))
    }

    /// What a person should know, the worst first.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |what: String, command| warnings.push(Warning { what, command });
        if let Some(why) = &self.group.fatal {
            warn(format!("this node stopped being a replica: {why}"), "restart maillage serve");
        }
        if !self.disagreeing.is_empty() {
            let names = self.names_of(self.disagreeing.iter().copied()).join(", ");
            warn(
                format!("ALARM: the audit chain of {names} is another than here: the states differ"),
                "maillage audit verify",
            );
        }
        if let Some(ahead) = self.clock_ahead_ms.filter(|_| self.clock_is_off()) {
            let of = if self.said.is_some() { "the others' median" } else { "the leader's" };
            warn(format!("this node's clock is {ahead} ms ahead of {of}: it must not lead"), "timedatectl");
        }
        if self.cut_off() {
            let since = self.heard_at().map_or("its start".to_owned(), rfc3339);
            warn(
                format!("cut off from the quorum since {since}: reading continues, writes wait"),
                "maillage peers list",
            );
        }
        if self.storage.is_failed {
            warn("the store stopped writing after a failed write".to_owned(), "restart maillage serve");
        }
        if self.storage.is_mending {
            warn("a damaged index is being made anew: images are refused until it is".to_owned(), "maillage status");
        }
        if self.storage.free < self.reserve_bytes {
            let free_mib = self.storage.free >> 20;
            warn(format!("{free_mib} MiB are free, under the reserve: images are refused"), "df -h");
        }
        if self.storage.bad > 0 {
            warn(format!("{} damaged chunks await repair", self.storage.bad), "maillage repair");
        }
        if self.storage.stuck > 0 {
            let images = self.storage.stuck;
            warn(
                format!("ALARM: {images} images were acknowledged and cannot be read from the landing"),
                "journalctl -u maillage, and have them sent again",
            );
        }
        if self.scrub.unrepaired > 0 {
            let chunks = self.scrub.unrepaired;
            warn(format!("ALARM: {chunks} damaged chunks are on no site that can be asked"), "maillage repair");
        }
        for (row, penalty) in self.sites.iter().filter_map(|row| Some((row, row.penalty?))) {
            if !penalty.left.is_zero() {
                let (name, faults, left) = (&row.site.description.name, penalty.faults, penalty.left.as_secs());
                warn(
                    format!(
                        "site {name} sent {faults} wrong answers: others are asked first for {left} s; verify there"
                    ),
                    "maillage verify",
                );
            }
        }
        if self.outbox.unacknowledged > 0 {
            let failed = self.outbox.unacknowledged;
            warn(
                format!("{failed} texts written here while cut off are no reports of the mesh"),
                "maillage outbox list",
            );
        }
        if self.outbox.waiting > 0 {
            warn(format!("{} entries of the outbox wait to be sent", self.outbox.waiting), "maillage outbox list");
        }
        let below_two = self.counts.studies_below_two;
        if below_two > 0 && self.centres().count() > 1 {
            warn(format!("{below_two} studies are on fewer than two sites"), "maillage study list");
        }
        for row in self.sites.iter().filter(|row| row.reach == Reach::Unreachable) {
            let what = if row.site.is_gateway() { "gateway" } else { "site" };
            warn(format!("{what} {} is not connected", row.site.description.name), "maillage peers list");
        }
        for row in &self.sites {
            if let Some(rejected @ 1..) = row.gate.as_ref().map(|heard| heard.hello.rejected) {
                let name = &row.site.description.name;
                warn(
                    format!("gateway {name} has {rejected} instances that no centre takes"),
                    "maillage spool list, there",
                );
            }
        }
        if let Some(said) = self.said.as_ref().filter(|_| self.format() < FORMAT.min(self.format_max)) {
            let ready = |site: SiteId| said.get(&site.0).is_some_and(|said| said.format > self.format());
            let late = self.centres().map(|row| row.site.id).filter(|site| !ready(*site));
            let (format, late) = (self.format(), self.names_of(late).join(", "));
            warn(
                format!("the mesh runs at format {format} until all sites are upgraded; it waits for {late}"),
                "maillage peers list",
            );
        }
        if let Some(overdue @ 1..) = self.overdue {
            warn(format!("{overdue} exams are overdue"), "maillage exams list --state waiting");
        }
        if self.quorum.voters < VOTERS_TO_BEAR_ONE {
            warn(format!("with {} voting sites no failure is borne", self.quorum.voters), "maillage token create");
        }
        warnings
    }

    /// As `/api/v1/status` gives it.
    pub(crate) fn to_json(&self) -> Value {
        let (counts, group) = (&self.counts, &self.group);
        let warnings: Vec<Value> = self
            .warnings()
            .into_iter()
            .map(|warning| json!({ "what": warning.what, "command": warning.command }))
            .collect();
        json!({
            "mesh": {
                "name": self.mesh_name,
                "id": maillage_store::Hash(self.mesh_id).to_string(),
                "copies": self.mesh.as_ref().map(|mesh| mesh.copies),
                "founded_at": self.mesh.as_ref().map(|mesh| rfc3339(mesh.founded_at)),
            },
            "site": { "id": self.own, "name": self.name, "zone": self.zone },
            "version": env!("CARGO_PKG_VERSION"),
            "role": role_name(group.role),
            "term": group.term,
            "leader": self.leader(),
            "leader_site": group.leader,
            "committed": group.committed,
            "applied": group.applied,
            "snapshot": group.snapshot,
            "fatal": group.fatal,
            "quorum": {
                "voters": self.quorum.voters,
                "needed": self.quorum.needed,
                "alive": self.quorum.alive,
                "tolerates": self.quorum.tolerates(),
                "reached": !self.cut_off(),
            },
            "queue": {
                "requested": counts.requested,
                "validated": counts.more.validated,
                "acquiring": counts.more.acquiring,
                "receiving": counts.more.receiving,
                "waiting": counts.waiting,
                "claimed": counts.claimed,
                "reading": counts.more.reading,
                "reported": counts.reported,
                "delivered": counts.more.delivered,
                "followed_up": counts.more.followed_up,
                "purged": counts.more.purged,
                "refused": counts.more.refused,
                "cancelled": counts.cancelled,
                "critical_open": counts.more.critical_open,
                "legal_holds": counts.more.legal_holds,
                "purges_pending": counts.more.purges_pending,
                "unsolicited": counts.unsolicited,
                "overdue": self.overdue,
                "oldest_urgent_ms": self.oldest_urgent_ms,
            },
            "outbox": {
                "waiting": self.outbox.waiting,
                "held": self.outbox.held,
                "unacknowledged": self.outbox.unacknowledged,
                "settled": self.outbox.settled,
            },
            "storage": {
                "bytes": self.storage.bytes,
                "chunks": self.storage.chunks,
                "packs": self.storage.packs,
                "free_bytes": self.storage.free,
                "bad": self.storage.bad,
                "landing_bytes": self.storage.landing,
                "landing_lost": self.storage.stuck,
                "writer_failed": self.storage.is_failed,
                "studies": counts.studies,
                "under_two_sites": counts.studies_below_two,
                "under_wanted": counts.studies_below_wanted,
                "confined": counts.more.studies_confined,
            },
            "scrub": scrub_json(&self.scrub),
            "format": { "mesh": self.format(), "advertised": self.format_max, "known": FORMAT },
            "clock": {
                "ahead_ms": self.clock_ahead_ms,
                "round_trip_ms": self.clock.map(|clock| milliseconds(clock.round_trip)),
                "bound_ms": self.clock_bound_ms,
                "off": self.clock_is_off(),
            },
            "audit": { "disagreeing": self.names_of(self.disagreeing.iter().copied()) },
            "peers": self.peers_json(),
            "warnings": warnings,
        })
    }

    /// A row for each site.
    pub(crate) fn peers_json(&self) -> Vec<Value> {
        self.sites.iter().map(|row| self.site_json(row)).collect()
    }

    fn site_json(&self, row: &SiteRow) -> Value {
        let (description, peer) = (&row.site.description, row.peer.as_ref());
        let own = row.reach == Reach::Own;
        // Of all sites on the leader; of itself elsewhere. Clocks are against the leader's.
        let said = self.said(row.site.id);
        let gate = row.gate.as_ref().map(|heard| &heard.hello);
        let version = peer.and_then(|peer| peer.version.clone());
        let version = version.or_else(|| gate.map(|hello| hello.version.to_string()));
        let hospitals = match &row.site.role {
            SiteRole::Gateway { hospitals } => Some(hospitals),
            SiteRole::Centre => None,
        };
        json!({
            "site": row.site.id,
            "name": description.name,
            "zone": description.zone,
            "role": row.role,
            "state": row.reach.as_str(),
            "rtt_ms": peer.and_then(|peer| peer.rtt).map(|rtt| rtt.as_secs_f64() * 1000.0),
            "lag": row.lag,
            "session_open": row.site.session_open,
            "away_since": row.site.away_since.map(rfc3339),
            "joined_at": rfc3339(row.site.joined_at),
            "version": if own { Some(env!("CARGO_PKG_VERSION").to_owned()) } else { version },
            "free_bytes": if own {
                Some(self.storage.free)
            } else {
                peer.and_then(|peer| peer.free_bytes).or_else(|| gate.map(|hello| hello.free_bytes))
            },
            "hospitals": hospitals,
            "spool": gate.map(|hello| {
                json!({ "waiting": hello.waiting, "bytes": hello.bytes, "rejected": hello.rejected })
            }),
            "format": said.map(|said| said.format),
            "clock_ahead_ms": said.and_then(|said| said.clock).map(|clock| clock.ahead_ms),
            "wrong_bytes": row.penalty.map_or(0, |penalty| penalty.faults),
            "penalised_s": row.penalty.map_or(0, |penalty| penalty.left.as_secs()),
            "addresses": description.addresses,
            "weight": description.weight,
        })
    }
}

fn site_row(site: Site, own: SiteId, group: &GroupStatus, peers: &[PeerState], gates: &Gates) -> SiteRow {
    let id = site.id.0;
    let role = if site.is_gateway() {
        "gateway"
    } else if group.leader == Some(id) {
        "leader"
    } else if group.voters.contains(&id) {
        "voter"
    } else if group.learners.contains(&id) {
        "learner"
    } else {
        "none"
    };
    let peer = peers.iter().find(|peer| peer.site == site.id).cloned();
    let gate = gates.heard(site.id);
    let reach = match &peer {
        _ if site.id == own => Reach::Own,
        _ if gate.is_some() => Reach::Connected,
        Some(peer) if peer.connected => Reach::Connected,
        _ => Reach::Unreachable,
    };
    SiteRow { role, reach, peer, gate, penalty: None, lag: group.lag.get(&id).copied().flatten(), site }
}

/// The scrub as `/admin/v1/scrub` and the status give it.
pub(crate) fn scrub_json(scrub: &ScrubStatus) -> Value {
    let pass = |pass: Pass| {
        json!({
            "began_at": rfc3339(UnixMillisField(pass.began_at)),
            "ended_at": pass.ended_at.map(|at| rfc3339(UnixMillisField(at))),
            "bytes": pass.bytes,
            "found": pass.found,
            "rewritten": pass.rewritten,
            "lost_packs": pass.lost_packs,
        })
    };
    json!({
        "state": scrub.doing.as_str(),
        "rate_bytes_s": scrub.rate,
        "under_way": scrub.under_way.map(pass),
        "last": scrub.last.map(pass),
        "unrepaired": scrub.unrepaired,
    })
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_as_cut_off_only_after_several_elections() {
        assert!(is_cut_off(None));
        assert!(!is_cut_off(Some(Duration::ZERO)));
        assert!(!is_cut_off(Some(CUT_OFF_AFTER)));
        assert!(is_cut_off(Some(CUT_OFF_AFTER + Duration::from_millis(1))));
    }

    #[test]
    fn a_quorum_bears_what_is_alive_beyond_what_is_needed() {
        let quorum = |voters: usize, alive| Quorum { voters, needed: voters / 2 + 1, alive };
        assert_eq!(quorum(5, 5).tolerates(), 2);
        assert_eq!(quorum(5, 3).tolerates(), 0);
        assert_eq!(quorum(5, 2).tolerates(), 0);
        assert_eq!(quorum(1, 1).tolerates(), 0);
    }
}
