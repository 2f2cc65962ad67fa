//! How fast images are sent to another site: a controller for long lines that lose packets by chance.
//!
//! ```text
//! Bulk ─┬ quinn's cubic    Raft, presence, joins; local networks
//!       └ model::Model     what the line carries in a round trip, measured, and a little more
//! ```
//! Cubic takes each lost packet for a full queue: on 50 ms and 0.5 % of loss it leaves 95 % of the line
//! unused. [`Model`] sends what the line was measured to carry. On a local network cubic costs less, and
//! nothing is lost by chance there.
//!
//! Which plane a connection is for is known to the accepting side, which is the one that sends images,
//! after the handshake only, when its controller exists already. So every connection starts with a [`Bulk`],
//! which is cubic and nothing else until [`carries_images`] is told of the connection.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};

mod model;
#[cfg(test)]
mod tests;

use model::Model;

/// Round trips below are those of a local network: a line between two towns takes longer, a switch never.
const LOCAL_RTT: Duration = Duration::from_millis(2);

/// Which congestion controller images are sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// The measured line, and cubic on local networks.
    #[default]
    Auto,
    /// Cubic everywhere.
    Cubic,
    /// The measured line everywhere.
    Wan,
}

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(Arc::new(CubicConfig::default()), now, mtu);
        if *self == Self::Cubic {
            return Box::new(cubic);
        }
        Box::new(Bulk {
            on_any_line: *self == Self::Wan,
            carries_images: Arc::new(AtomicBool::new(false)),
            model: Model::new(now, mtu.into()),
            cubic,
        })
    }
}

/// Lets the controller of a connection send by the measured line from now on. Nothing with
/// [`Congestion::Cubic`]. A peer that migrates to another address gets a new controller: cubic.
pub(crate) fn carries_images(controller: Box<dyn Controller>) {
    if let Ok(bulk) = controller.into_any().downcast::<Bulk>() {
        bulk.carries_images.store(true, Ordering::Relaxed);
    }
}

/// Whether [`carries_images`] was told of this controller's connection.
#[cfg(test)]
pub(crate) fn is_told(controller: Box<dyn Controller>) -> bool {
    controller.into_any().downcast::<Bulk>().is_ok_and(|bulk| bulk.carries_images.load(Ordering::Relaxed))
}

/// The controller of one path.
#[derive(Debug, Clone)]
struct Bulk {
    /// Also where cubic would do.
    on_any_line: bool,
    /// Shared with the copies of this controller that quinn hands out.
    carries_images: Arc<AtomicBool>,
    model: Model,
    cubic: Cubic,
}

impl Bulk {
    fn by_cubic(&self) -> bool {
        let is_local = self.model.least_rtt().is_none_or(|rtt| rtt < LOCAL_RTT);
        !self.carries_images.load(Ordering::Relaxed) || (is_local && !self.on_any_line)
    }
}

impl Controller for Bulk {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
        self.model.sent(last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        self.model.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
        self.model.end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
        self.model.lost(lost_bytes, is_persistent);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
        self.model.set_mtu(new_mtu.into());
    }

    fn window(&self) -> u64 {
        if self.by_cubic() { self.cubic.window() } else { self.model.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
