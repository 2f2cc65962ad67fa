//! The network of a run: streams that the simulator makes, or datagrams under the production QUIC.
//!
//! Faults drive either by the same words; what one of them cannot do is nothing there.

use std::sync::Arc;
use std::time::Duration;

use super::datagrams::{Datagrams, Flaws};
use super::{Fabric, Quality};
use crate::world::Owner;

/// See the module.
#[derive(Clone)]
pub(crate) enum Network {
    /// Perfect byte streams over connections that break.
    Messages(Arc<Fabric>),
    /// Datagrams; everything above them is production code.
    Quic(Arc<Datagrams>),
}

impl Network {
    /// Makes a directed link, or gives one another quality.
    pub(crate) fn set_quality(&self, from: u32, to: u32, quality: Quality) {
        match self {
            Self::Messages(fabric) => fabric.set_quality(from, to, quality),
            Self::Quic(datagrams) => datagrams.set_quality(from, to, quality),
        }
    }

    /// Lets a directed link lose, repeat and reorder. Streams have no datagrams to do it to.
    pub(crate) fn set_flaws(&self, from: u32, to: u32, flaws: Flaws) {
        match self {
            Self::Messages(_) => {}
            Self::Quic(datagrams) => datagrams.set_flaws(from, to, flaws),
        }
    }

    /// Adds to a directed link's latency.
    pub(crate) fn set_extra_latency(&self, from: u32, to: u32, extra: Duration) {
        match self {
            Self::Messages(fabric) => fabric.set_extra_latency(from, to, extra),
            Self::Quic(datagrams) => datagrams.set_extra_latency(from, to, extra),
        }
    }

    /// Cuts one direction of a link, until it was mended as often.
    pub(crate) fn cut(&self, from: u32, to: u32) {
        match self {
            Self::Messages(fabric) => fabric.cut(from, to),
            Self::Quic(datagrams) => datagrams.cut(from, to),
        }
    }

    /// Takes one cut back.
    pub(crate) fn mend(&self, from: u32, to: u32) {
        match self {
            Self::Messages(fabric) => fabric.mend(from, to),
            Self::Quic(datagrams) => datagrams.mend(from, to),
        }
    }

    /// Mends every link; flaws stay.
    pub(crate) fn heal(&self) {
        match self {
            Self::Messages(fabric) => fabric.heal(),
            Self::Quic(datagrams) => datagrams.heal(),
        }
    }

    /// Breaks what joins two slots.
    pub(crate) fn break_connection(&self, a: u32, b: u32) {
        match self {
            Self::Messages(fabric) => fabric.break_connection(a, b),
            Self::Quic(datagrams) => datagrams.break_connection(a, b),
        }
    }

    /// A life begins. Over datagrams its peers learn that from what it answers them.
    pub(crate) fn node_began(&self, slot: u32) {
        match self {
            Self::Messages(fabric) => fabric.node_began(slot),
            Self::Quic(_) => {}
        }
    }

    /// A life ended: nobody is told.
    pub(crate) fn node_ended(&self, owner: Owner) {
        match self {
            Self::Messages(fabric) => fabric.node_ended(owner),
            Self::Quic(datagrams) => datagrams.node_ended(owner),
        }
    }

    /// Delivers what is due, forever.
    pub(crate) async fn pump(self) {
        match self {
            Self::Messages(fabric) => fabric.pump().await,
            Self::Quic(datagrams) => datagrams.pump().await,
        }
    }
}
