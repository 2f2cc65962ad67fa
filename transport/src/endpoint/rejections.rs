//! Counts of what was turned away at the port, by reason; the node shows them as
//! `maillage_rejected_total{interface="mesh"}`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// The handshake failed: no member, a bad certificate, no common protocol, noise.
    Handshake,
    /// Too many handshakes were under way.
    Busy,
    /// The handshake was not finished in time.
    TooSlow,
    /// The peer ceased to be a member while it connected.
    NotAMember,
    /// Nobody serves the protocol here, or not fast enough.
    NotServed,
    /// The peer had too many connections; its oldest was closed.
    TooManyConnections,
}

impl Rejection {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Handshake, Self::Busy, Self::TooSlow, Self::NotAMember, Self::NotServed, Self::TooManyConnections];

    /// The reason as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Busy => "busy",
            Self::TooSlow => "too_slow",
            Self::NotAMember => "not_a_member",
            Self::NotServed => "not_served",
            Self::TooManyConnections => "too_many_connections",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Handshake => 0,
            Self::Busy => 1,
            Self::TooSlow => 2,
            Self::NotAMember => 3,
            Self::NotServed => 4,
            Self::TooManyConnections => 5,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Rejections([AtomicU64; Rejection::ALL.len()]);

impl Rejections {
    pub(super) fn count(&self, reason: Rejection) {
        if let Some(counter) = self.0.get(reason.index()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn snapshot(&self) -> Vec<(Rejection, u64)> {
        Rejection::ALL.into_iter().zip(self.0.iter().map(|n| n.load(Ordering::Relaxed))).collect()
    }
}
