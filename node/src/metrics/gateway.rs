//! What a hospital's gateway counts and measures beside what every node does.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{ByOutcome, ByState, Seconds, registered};

/// A gateway's metrics.
#[derive(Default)]
pub(crate) struct Gateway {
    spool_instances: Family<ByState, Gauge>,
    spool_bytes: Gauge,
    spool_bytes_max: Gauge,
    oldest: Seconds,
    centres_answering: Gauge,
    feed_age: Seconds,
    unacknowledged: Gauge,
    store_free_bytes: Gauge,
    pushed: Family<ByOutcome, Counter>,
    reports: Counter,
}

/// What the gauges say at a scrape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape {
    /// Instances of the spool by state.
    pub(crate) instances: Vec<(&'static str, u64)>,
    /// Bytes of their data sets, and the most that may be.
    pub(crate) bytes: (u64, u64),
    /// How long the oldest has waited that is not safe, in seconds.
    pub(crate) oldest_s: f64,
    /// Centres that answer, of those that images may go to.
    pub(crate) centres: usize,
    /// Since a centre last said that no more reports are there; infinite for never.
    pub(crate) feed_age_s: f64,
    /// Reports of which no centre knows that they are here.
    pub(crate) unacknowledged: usize,
    /// Free bytes of the volume.
    pub(crate) free_bytes: u64,
}

impl Gateway {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let (oldest, feed_age) = (Seconds::default(), Seconds::default());
        let help = "How long the oldest instance has waited that is not safe";
        registry.register_with_unit("spool_oldest", help, Unit::Seconds, oldest.clone());
        let help = "Time since a centre last said that no more reports are there, +Inf if never";
        registry.register_with_unit("feed_age", help, Unit::Seconds, feed_age.clone());
        Self {
            spool_instances: registered(registry, "spool_instances", "Instances in the spool by state"),
            spool_bytes: registered(registry, "spool_bytes", "Bytes of the data sets in the spool"),
            spool_bytes_max: registered(registry, "spool_bytes_max", "The most bytes that the spool takes"),
            oldest,
            centres_answering: registered(registry, "centres_answering", "Centres that answer and may have images"),
            feed_age,
            unacknowledged: registered(registry, "reports_unacknowledged", "Reports here that no centre knows of"),
            store_free_bytes: registered(registry, "store_free_bytes", "Free bytes of the volume"),
            pushed: registered(registry, "instances_pushed", "Instances offered to a centre, by outcome"),
            reports: registered(registry, "reports_delivered", "Reports put into the inbox"),
        }
    }

    /// An offer ended.
    pub(crate) fn pushed(&self, outcome: &'static str) {
        self.pushed.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Reports were put into the inbox.
    pub(crate) fn reports(&self, count: u64) {
        self.reports.inc_by(count);
    }

    /// Sets the gauges.
    pub(crate) fn set(&self, scrape: &Scrape) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for &(state, count) in &scrape.instances {
            self.spool_instances.get_or_create(&ByState { state }).set(gauge(count));
        }
        self.spool_bytes.set(gauge(scrape.bytes.0));
        self.spool_bytes_max.set(gauge(scrape.bytes.1));
        self.oldest.set(scrape.oldest_s);
        self.centres_answering.set(gauge(scrape.centres as u64));
        self.feed_age.set(scrape.feed_age_s);
        self.unacknowledged.set(gauge(scrape.unacknowledged as u64));
        self.store_free_bytes.set(gauge(scrape.free_bytes));
    }
}
