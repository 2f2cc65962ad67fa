//! An emulated wide-area network: sites in network namespaces of one machine, joined by a router in
//! user space that delays, jitters, limits, queues, loses and cuts, per directed pair, while it runs.
//!
//! ```text
//! namespace 0: node, clients -- TUN ─┐
//! namespace 1: node, clients -- TUN ─┼─ router thread: line 0>1, line 1>0, …  (a heap of due packets)
//! namespace 2: node, clients -- TUN ─┘
//! ```
//! In user space because the kernel's own emulator (`sch_netem`) is a module that many machines lack,
//! and because a cut of one direction is then one flag. IPv4 only. Needs Linux, root, `/dev/net/tun`
//! and iproute2; [`missing`] says what is not there.
//!
//! A TUN device without offloads gives whole, checksummed packets: the kernel splits QUIC's segmented
//! sends and fills checksums in before the router reads them. (A veth would leave checksums to a card
//! that is not there.)

mod check;
mod line;
mod namespace;
mod router;
mod tun;

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

pub use check::{Finding, check};
pub use line::{Counts, Line, Refused, Shape};
pub use namespace::{Namespace, sweep};
pub use router::Router;

/// The most sites: the last byte of their address.
pub const SITES_MAX: usize = 250;

/// A network of sites. Dropped, the namespaces and everything that still runs in them are gone.
#[derive(Debug)]
pub struct Wan {
    /// The sites' ends.
    pub sites: Vec<Namespace>,
    /// What joins them.
    pub router: Router,
}

impl Wan {
    /// A network of `n` sites, every pair joined by `shape` in both directions.
    ///
    /// # Errors
    /// When the machine does not let us, or a tool is missing.
    pub fn new(n: usize, shape: &Shape, seed: u64) -> io::Result<Self> {
        if n > SITES_MAX {
            return Err(io::Error::other(format!("at most {SITES_MAX} sites")));
        }
        let (mut sites, mut tuns) = (Vec::new(), Vec::new());
        for number in 0..n {
            let site = Namespace::new(number)?;
            tuns.push(site.open_tun(address(number))?);
            sites.push(site);
        }
        let router = Router::start(tuns, shape, seed)?;
        Ok(Self { sites, router })
    }
}

/// The address of site `number`.
pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 83, 0, u8::try_from(number + 1).unwrap_or(u8::MAX))
}

/// Makes a line otherwise than it is, in each property that [`check`] measures: to check the check.
pub fn spoil(shape: &mut Shape) {
    // Were every line cut, every measurement would fail for that alone.
    if (Shape { up: true, ..shape.clone() }) == Shape::default() {
        shape.up = !shape.up;
    }
    shape.delay = shape.delay * 3 / 2;
    shape.jitter /= 8;
    shape.loss *= 1.4;
    shape.rate = shape.rate.map(|rate| rate * 5 / 4);
    shape.queue = shape.queue * 3 / 2;
}

/// What of the machine is missing for an emulated network, if anything.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    if !Path::new(tun::DEVICE).exists() {
        return Some(format!("{} is not there", tun::DEVICE));
    }
    // Asking alone is not enough: containers often have root without the right to make namespaces.
    match Namespace::new(SITES_MAX).and_then(|site| site.open_tun(address(SITES_MAX)).map(drop)) {
        Ok(()) => None,
        Err(error) => Some(format!("a network namespace with a TUN device cannot be made: {error}")),
    }
}
