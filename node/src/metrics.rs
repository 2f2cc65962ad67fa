//! What a node counts and measures, in OpenMetrics text for Prometheus.
//!
//! Counters are counted where things happen; gauges are read from the state at each scrape, so that
//! none can go stale. Names have the prefix `maillage_` and base units. No label ever carries a
//! patient, a UID or a user, nor any text from outside: labels are `'static`, which bounds how many
//! series there can be. The one exception is the route, which is a pattern of our own router.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use maillage_consensus::Outcome;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub(crate) mod gateway;
#[cfg(test)]
mod rules;

pub(crate) use gateway::Gateway;

/// A metrics document's media type.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in seconds: a commit on a LAN takes about 1 ms, over a WAN tens, a change of leader
/// seconds, and a command is given up after ten.
const COMMAND_BUCKETS: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// A node's metrics. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Shared>);

struct Shared {
    registry: Registry,
    rejected: Family<Rejected, Counter>,
    http_requests: Family<HttpRequest, Counter>,
    instances_received: Family<ByOutcome, Counter>,
    received_bytes: Counter,
    coded_bytes: Family<ByForm, Counter>,
    codec_differed: Counter,
    claims: Family<ByOutcome, Counter>,
    commands: Family<ByKind, Counter>,
    command_duration: Histogram,
    chunk_bytes_sent: Counter,
    chunk_bytes_received: Family<ByClass, Counter>,
    prefetch_claims: Family<ByOutcome, Counter>,
    prefetch_evicted_bytes: Counter,
    fetch_faults: Family<ByReason, Counter>,
    peer_wrong_bytes: Family<BySite, Counter>,
    scrub_bytes: Counter,
    scrub_found: Counter,
    scrub_rewritten: Counter,
    outbox_settled: Family<ByKind, Counter>,
    commitments: Family<ByOutcome, Counter>,
    associations: Gauge,
    dicom_listening: AtomicBool,
    gauges: Gauges,
    gateway: Gateway,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejected {
    interface: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpRequest {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByForm {
    form: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

/// By a site's number, of which there are as many as members ever were.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySite {
    site: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// Set from a [`Scrape`] before each encoding.
#[derive(Default)]
struct Gauges {
    raft_term: Gauge,
    raft_is_leader: Gauge,
    raft_committed_index: Gauge,
    raft_applied_index: Gauge,
    quorum_age: Seconds,
    clock_ahead: Seconds,
    audit_disagreements: Gauge,
    mesh_format: Gauge,
    exams: Family<ByState, Gauge>,
    outbox_entries: Family<ByState, Gauge>,
    studies_below_two_sites: Gauge,
    studies_below_wanted_copies: Gauge,
    studies_confined: Gauge,
    peers_connected: Gauge,
    store_bytes: Gauge,
    store_chunks: Gauge,
    store_bad_chunks: Gauge,
    store_free_bytes: Gauge,
    landing_bytes: Gauge,
    landing_lost: Gauge,
    scrub_repaired: Counter,
    scrub_unrepaired: Gauge,
    scrub_last_full_pass_age: Seconds,
}

/// What the gauges say at a scrape. What a node could not read stays at its default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape {
    /// Raft's term.
    pub(crate) term: u64,
    /// Whether this node leads.
    pub(crate) leads: bool,
    /// Index of the last entry known to be committed.
    pub(crate) committed: u64,
    /// Index of the last entry applied.
    pub(crate) applied: u64,
    /// Since a quorum was last heard; `None` for never.
    pub(crate) quorum_age: Option<Duration>,
    /// How far the clock is ahead, in milliseconds: of the leader's, or on the leader of the others'
    /// median; `None` while unknown.
    pub(crate) clock_ahead_ms: Option<i64>,
    /// Sites whose audit chain is another than this node's.
    pub(crate) audit_disagreements: usize,
    /// The format at which the mesh runs.
    pub(crate) mesh_format: u8,
    /// Exams by state.
    pub(crate) exams: Vec<(&'static str, u64)>,
    /// Entries of the outbox by state.
    pub(crate) outbox: Vec<(&'static str, usize)>,
    /// Studies with a part on fewer than two sites.
    pub(crate) studies_below_two: u64,
    /// Studies with a part on fewer sites than wanted.
    pub(crate) studies_below_wanted: u64,
    /// Studies with a part that must not leave the site which received it.
    pub(crate) studies_confined: u64,
    /// Other sites that are connected.
    pub(crate) peers_connected: usize,
    /// Stored bytes.
    pub(crate) store_bytes: u64,
    /// Stored chunks.
    pub(crate) store_chunks: u64,
    /// Damaged chunks that await repair.
    pub(crate) store_bad_chunks: u64,
    /// Free bytes of the volume.
    pub(crate) store_free_bytes: u64,
    /// Bytes that were acknowledged and are still to be coded.
    pub(crate) landing_bytes: u64,
    /// Images among them that cannot be read or coded.
    pub(crate) landing_lost: u64,
    /// Damaged chunks that were written anew since the node started.
    pub(crate) scrub_repaired: u64,
    /// Damaged chunks that no site has that could be asked.
    pub(crate) scrub_unrepaired: u64,
    /// Since all packs were last read; `None` for never.
    pub(crate) scrub_age: Option<Duration>,
}

impl Metrics {
    /// A centre's metrics, all at zero.
    pub(crate) fn new() -> Self {
        Self::of(true)
    }

    /// A gateway's: what it shares with centres, and its own. It has no quorum whose age could alarm.
    pub(crate) fn of_gateway() -> Self {
        Self::of(false)
    }

    fn of(centre: bool) -> Self {
        let mut registry = Registry::with_prefix("maillage");
        let shared = Shared {
            rejected: registered(&mut registry, "rejected", "Requests, instances and peers refused"),
            http_requests: registered(&mut registry, "http_requests", "HTTP requests answered"),
            instances_received: registered(&mut registry, "instances_received", "DICOM instances made durable"),
            received_bytes: registered(&mut registry, "received_bytes", "Bytes of their data sets"),
            coded_bytes: registered(
                &mut registry,
                "coded_bytes",
                "Bytes of pixels before (raw) and after coding (stored)",
            ),
            codec_differed: registered(
                &mut registry,
                "codec_differed",
                "Pieces that did not decode to what they were coded from, kept raw",
            ),
            claims: registered(&mut registry, "claims", "Claims asked for through this node"),
            commands: registered(&mut registry, "commands", "Commands proposed through this node"),
            command_duration: Histogram::new(COMMAND_BUCKETS),
            chunk_bytes_sent: registered(&mut registry, "chunk_bytes_sent", "Chunk bytes sent to other sites"),
            chunk_bytes_received: registered(
                &mut registry,
                "chunk_bytes_received",
                "Chunk bytes fetched and verified, by what they were wanted for",
            ),
            prefetch_claims: registered(
                &mut registry,
                "prefetch_claims",
                "Parts of claimed exams, by whether all of their images were here already",
            ),
            prefetch_evicted_bytes: registered(
                &mut registry,
                "prefetch_evicted_bytes",
                "Bytes that were prefetched and dropped for want of room",
            ),
            fetch_faults: registered(
                &mut registry,
                "fetch_faults",
                "Chunks that a holder refused, lacked or falsified, or was so slow with that another was asked too",
            ),
            peer_wrong_bytes: registered(
                &mut registry,
                "peer_wrong_bytes",
                "Answers of a site that were not what it was asked for",
            ),
            scrub_bytes: registered(&mut registry, "scrub_bytes", "Bytes of packs read to find damage"),
            scrub_found: registered(&mut registry, "scrub_found", "Damaged chunks that the scrub found"),
            scrub_rewritten: registered(&mut registry, "scrub_rewritten", "Damaged records written anew from here"),
            commitments: registered(&mut registry, "commitments", "Storage commitments, by how they ended"),
            outbox_settled: registered(&mut registry, "outbox_settled", "What the outbox sent, by how it ended"),
            associations: registered(&mut registry, "dicom_associations", "DICOM associations open now"),
            dicom_listening: AtomicBool::new(false),
            gauges: if centre { Gauges::registered(&mut registry) } else { Gauges::default() },
            gateway: if centre { Gateway::default() } else { Gateway::registered(&mut registry) },
            registry: Registry::default(),
        };
        registry.register_with_unit(
            "command_duration",
            "Time from proposal to outcome",
            Unit::Seconds,
            shared.command_duration.clone(),
        );
        Self(Arc::new(Shared { registry, ..shared }))
    }

    /// A data set was cut: its bytes and the stored ones, and the pieces that had to stay raw by a defect.
    pub(crate) fn coded(&self, raw: u64, stored: u64, differed: u64) {
        for (form, bytes) in [("raw", raw), ("stored", stored)] {
            self.0.coded_bytes.get_or_create(&ByForm { form }).inc_by(bytes);
        }
        self.0.codec_differed.inc_by(differed);
    }

    /// Something from outside was refused: at which interface, and a short stable reason.
    pub(crate) fn rejected(&self, interface: &'static str, reason: &'static str) {
        self.0.rejected.get_or_create(&Rejected { interface, reason }).inc();
    }

    /// An HTTP request was answered. `route` is a pattern of the router, never a path from outside.
    pub(crate) fn http_request(&self, route: &str, method: &'static str, status: u16) {
        self.0.http_requests.get_or_create(&HttpRequest { route: route.to_owned(), method, status }).inc();
    }

    /// An instance of so many bytes is durable here.
    pub(crate) fn received(&self, outcome: &'static str, bytes: u64) {
        self.0.instances_received.get_or_create(&ByOutcome { outcome }).inc();
        self.0.received_bytes.inc_by(bytes);
    }

    /// A command was answered, or given up, after `took`. Claims are counted apart too.
    pub(crate) fn command(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        self.0.commands.get_or_create(&ByKind { kind, outcome }).inc();
        self.0.command_duration.observe(took.as_secs_f64());
        if matches!(kind, "claim-next" | "claim-take") {
            self.0.claims.get_or_create(&ByOutcome { outcome }).inc();
        }
    }

    /// Chunk bytes were sent to another site.
    pub(crate) fn chunk_bytes_sent(&self, bytes: u64) {
        self.0.chunk_bytes_sent.inc_by(bytes);
    }

    /// Chunk bytes came from another site and were verified; what they were wanted for.
    pub(crate) fn chunk_bytes_received(&self, class: &'static str, bytes: u64) {
        self.0.chunk_bytes_received.get_or_create(&ByClass { class }).inc_by(bytes);
    }

    /// A part of an exam was claimed here: whether all of it was here already.
    pub(crate) fn prefetch_claim(&self, was_here: bool) {
        let outcome = if was_here { "hit" } else { "miss" };
        self.0.prefetch_claims.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Something that was prefetched was dropped.
    pub(crate) fn prefetch_evicted(&self, bytes: u64) {
        self.0.prefetch_evicted_bytes.inc_by(bytes);
    }

    /// A holder refused, lacked or falsified a chunk.
    pub(crate) fn fetch_fault(&self, reason: &'static str) {
        self.0.fetch_faults.get_or_create(&ByReason { reason }).inc();
    }

    /// A site answered with what it was not asked for.
    pub(crate) fn wrong_bytes_of(&self, site: u64) {
        self.0.peer_wrong_bytes.get_or_create(&BySite { site }).inc();
    }

    /// The scrub read so many bytes of packs, and found and mended so much.
    pub(crate) fn scrubbed(&self, bytes: u64, found: u64, rewritten: u64) {
        self.0.scrub_bytes.inc_by(bytes);
        self.0.scrub_found.inc_by(found);
        self.0.scrub_rewritten.inc_by(rewritten);
    }

    /// A storage commitment was settled, or its requester told.
    pub(crate) fn commitment(&self, outcome: &'static str) {
        self.0.commitments.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// The mesh decided about an entry of the outbox.
    pub(crate) fn outbox_settled(&self, kind: &'static str, outcome: &'static str) {
        self.0.outbox_settled.get_or_create(&ByKind { kind, outcome }).inc();
    }

    /// A DICOM association was opened; it is counted until the answer is dropped.
    pub(crate) fn association(&self) -> OpenAssociation {
        self.0.associations.inc();
        OpenAssociation(self.0.associations.clone())
    }

    /// Whether the DICOM service takes associations, for readiness.
    pub(crate) fn set_dicom_listening(&self, listening: bool) {
        self.0.dicom_listening.store(listening, Ordering::Relaxed);
    }

    /// What [`Metrics::set_dicom_listening`] said last; `false` at first.
    pub(crate) fn dicom_listening(&self) -> bool {
        self.0.dicom_listening.load(Ordering::Relaxed)
    }

    /// What a gateway counts besides.
    pub(crate) fn gateway(&self) -> &Gateway {
        &self.0.gateway
    }

    /// All metrics as OpenMetrics text, with the gauges as `scrape` says.
    pub(crate) fn encode(&self, scrape: &Scrape) -> String {
        self.0.gauges.set(scrape);
        self.text()
    }

    /// All metrics as OpenMetrics text, with the gauges as they were set.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Counts an open association until dropped.
#[derive(Debug)]
#[must_use = "the association counts as open until this is dropped"]
pub(crate) struct OpenAssociation(Gauge);

impl Drop for OpenAssociation {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn registered<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Gauges {
    fn registered(registry: &mut Registry) -> Self {
        let quorum_age = Seconds::default();
        let help = "Time since a quorum was last heard, +Inf if never";
        registry.register_with_unit("quorum_age", help, Unit::Seconds, quorum_age.clone());
        let clock_ahead = Seconds::default();
        let scrub_last_full_pass_age = Seconds::default();
        let help = "Time since all packs were last read, +Inf if never";
        registry.register_with_unit("scrub_last_full_pass_age", help, Unit::Seconds, scrub_last_full_pass_age.clone());
        let help = "How far the clock is ahead of the leader's, or on the leader of the others' median";
        registry.register_with_unit("clock_ahead", help, Unit::Seconds, clock_ahead.clone());
        Self {
            quorum_age,
            clock_ahead,
            audit_disagreements: registered(registry, "audit_disagreements", "Sites whose audit chain is another"),
            mesh_format: registered(registry, "mesh_format", "Format at which the mesh runs"),
            raft_term: registered(registry, "raft_term", "Raft term"),
            raft_is_leader: registered(registry, "raft_is_leader", "1 on the leader"),
            raft_committed_index: registered(registry, "raft_committed_index", "Last committed log index"),
            raft_applied_index: registered(registry, "raft_applied_index", "Last applied log index"),
            exams: registered(registry, "exams", "Exams by state"),
            outbox_entries: registered(registry, "outbox_entries", "Entries of the outbox by state"),
            studies_below_two_sites: registered(registry, "studies_below_two_sites", "Studies on fewer than two sites"),
            studies_below_wanted_copies: registered(
                registry,
                "studies_below_wanted_copies",
                "Studies with fewer copies than wanted",
            ),
            studies_confined: registered(registry, "studies_confined", "Studies that stay where they were received"),
            peers_connected: registered(registry, "peers_connected", "Other sites connected"),
            store_bytes: registered(registry, "store_bytes", "Bytes of stored chunks"),
            store_chunks: registered(registry, "store_chunks", "Stored chunks"),
            store_bad_chunks: registered(registry, "store_bad_chunks", "Damaged chunks that await repair"),
            store_free_bytes: registered(registry, "store_free_bytes", "Free bytes of the volume"),
            landing_bytes: registered(registry, "landing_bytes", "Bytes acknowledged and still to be coded"),
            landing_lost: registered(registry, "landing_lost", "Images acknowledged that cannot be coded"),
            scrub_repaired: registered(registry, "scrub_repaired", "Damaged chunks brought back"),
            scrub_unrepaired: registered(registry, "scrub_unrepaired", "Damaged chunks that no site has"),
            scrub_last_full_pass_age,
        }
    }

    fn set(&self, scrape: &Scrape) {
        for (gauge, value) in [
            (&self.raft_term, scrape.term),
            (&self.raft_is_leader, u64::from(scrape.leads)),
            (&self.raft_committed_index, scrape.committed),
            (&self.raft_applied_index, scrape.applied),
            (&self.studies_below_two_sites, scrape.studies_below_two),
            (&self.studies_below_wanted_copies, scrape.studies_below_wanted),
            (&self.studies_confined, scrape.studies_confined),
            (&self.audit_disagreements, scrape.audit_disagreements as u64),
            (&self.mesh_format, scrape.mesh_format.into()),
            (&self.peers_connected, scrape.peers_connected as u64),
            (&self.store_bytes, scrape.store_bytes),
            (&self.store_chunks, scrape.store_chunks),
            (&self.store_bad_chunks, scrape.store_bad_chunks),
            (&self.store_free_bytes, scrape.store_free_bytes),
            (&self.landing_bytes, scrape.landing_bytes),
            (&self.landing_lost, scrape.landing_lost),
            (&self.scrub_unrepaired, scrape.scrub_unrepaired),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        for &(state, count) in &scrape.exams {
            self.exams.get_or_create(&ByState { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for &(state, count) in &scrape.outbox {
            self.outbox_entries.get_or_create(&ByState { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        // Not a number while unknown: no bound holds for it, and no alert fires.
        let clock_ahead = scrape.clock_ahead_ms.map_or(f64::NAN, seconds);
        self.clock_ahead.set(clock_ahead);
        // Counted by the store, which is opened with the node.
        self.scrub_repaired.inner().store(scrape.scrub_repaired, Ordering::Relaxed);
        // Infinite rather than absent or NaN: an alert on a large age must fire when there is none.
        self.scrub_last_full_pass_age.set(scrape.scrub_age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
        self.quorum_age.set(scrape.quorum_age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 ms, 285,000 years")]
fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// An outcome's label.
pub(crate) fn outcome_label(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Claimed(_) => "granted",
        Outcome::NothingWaiting => "nothing-waiting",
        Outcome::Refused(_) => "refused",
        _ => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_open_metrics_with_our_prefix_and_base_units() {
        let metrics = Metrics::new();
        metrics.rejected("http", "cross-site");
        metrics.http_request("/api/v1/exams/{id}", "GET", 200);
        metrics.received("new", 1000);
        metrics.coded(1000, 200, 0);
        metrics.wrong_bytes_of(3);
        metrics.scrubbed(4096, 2, 1);
        metrics.chunk_bytes_received("prefetch", 700);
        metrics.command("claim-next", "granted", Duration::from_millis(3));
        let open = metrics.association();
        let scrape = Scrape {
            term: 7,
            exams: vec![("waiting", 3)],
            outbox: vec![("waiting", 2)],
            clock_ahead_ms: Some(-1500),
            audit_disagreements: 2,
            scrub_repaired: 5,
            scrub_unrepaired: 1,
            ..Scrape::default()
        };
        let text = metrics.encode(&scrape);
        for line in [
            "maillage_rejected_total{interface=\"http\",reason=\"cross-site\"} 1",
            "maillage_http_requests_total{route=\"/api/v1/exams/{id}\",method=\"GET\",status=\"200\"} 1",
            "maillage_instances_received_total{outcome=\"new\"} 1",
            "maillage_received_bytes_total 1000",
            "maillage_coded_bytes_total{form=\"stored\"} 200",
            "maillage_codec_differed_total 0",
            "maillage_claims_total{outcome=\"granted\"} 1",
            "maillage_commands_total{kind=\"claim-next\",outcome=\"granted\"} 1",
            "maillage_command_duration_seconds_bucket{le=\"0.005\"} 1",
            "maillage_command_duration_seconds_bucket{le=\"0.002\"} 0",
            "maillage_dicom_associations 1",
            "maillage_raft_term 7",
            "maillage_exams{state=\"waiting\"} 3",
            "maillage_outbox_entries{state=\"waiting\"} 2",
            "maillage_quorum_age_seconds inf",
            "maillage_chunk_bytes_sent_total 0",
            "maillage_chunk_bytes_received_total{class=\"prefetch\"} 700",
            "maillage_clock_ahead_seconds -1.5",
            "maillage_peer_wrong_bytes_total{site=\"3\"} 1",
            "maillage_scrub_bytes_total 4096",
            "maillage_scrub_found_total 2",
            "maillage_scrub_repaired_total 5",
            "maillage_scrub_unrepaired 1",
            "maillage_scrub_last_full_pass_age_seconds inf",
            "maillage_audit_disagreements 2",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        drop(open);
        assert!(metrics.encode(&scrape).contains("maillage_dicom_associations 0\n"));
        let scrape = Scrape { quorum_age: Some(Duration::from_millis(1500)), ..scrape };
        assert!(metrics.encode(&scrape).contains("maillage_quorum_age_seconds 1.5\n"));
    }
}
