//! Ports for the sites of all tests of this process.
//!
//! A killed site must find its ports free when it is started again, so they come from below the
//! range from which the kernel gives ports to outgoing connections, and none is given twice.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Where to begin, and how many ports to use: below 32768, where Linux's ephemeral ports begin.
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A loopback address whose port nobody uses, for TCP and UDP alike.
///
/// # Panics
/// When every port is taken.
pub fn free() -> SocketAddr {
    // Test processes that run at once begin in different places.
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).expect("less than a u16");
    for _ in 0..COUNT {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (u32::from(start) * 97 + u32::from(n)) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).expect("less than a u16");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && udp_is_free(address) {
            return address;
        }
    }
    panic!("no port is free");
}

#[expect(clippy::disallowed_methods, reason = "only asks whether a node could bind it")]
fn udp_is_free(address: SocketAddr) -> bool {
    std::net::UdpSocket::bind(address).is_ok()
}
