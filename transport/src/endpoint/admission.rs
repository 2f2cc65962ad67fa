//! How many handshakes may be under way, in all and for one network address.
//!
//! A handshake costs a stranger one datagram and us a signature and some kilobytes; so they are few at
//! a time, an address must prove itself (Retry, RFC 9000 section 8.1.2) once it gets busy, and no
//! single network takes all places.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes under way at once. At 2 ms of a core each this is a quarter of a second of work.
const HANDSHAKES_MAX: usize = 128;

/// Beyond this many, who dials must first show that it receives at its address.
const HANDSHAKES_UNVALIDATED_MAX: usize = 16;

/// Handshakes under way from one IPv4 address or IPv6 /64; a site behind one address translation
/// runs a few nodes at most.
const HANDSHAKES_PER_NETWORK_MAX: usize = 32;

/// What to do with a connection attempt.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Do the handshake; the place is free again when the permit is dropped.
    Proceed(Permit),
    /// Ask for proof of the address.
    Retry,
    /// Answer nothing.
    Ignore,
}

/// The places for handshakes.
#[derive(Debug, Clone, Default)]
pub(super) struct Admission(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    total: usize,
    networks: BTreeMap<IpAddr, usize>,
}

/// A place for one handshake.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Admission,
    network: IpAddr,
}

impl Admission {
    pub(super) fn ask(&self, address: IpAddr, validated: bool) -> Verdict {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.total >= HANDSHAKES_MAX {
            return Verdict::Ignore;
        }
        if !validated && pending.total >= HANDSHAKES_UNVALIDATED_MAX {
            return Verdict::Retry;
        }
        let network = network_of(address);
        let here = pending.networks.entry(network).or_default();
        if *here >= HANDSHAKES_PER_NETWORK_MAX {
            return Verdict::Ignore;
        }
        *here += 1;
        pending.total += 1;
        Verdict::Proceed(Permit { admission: self.clone(), network })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut pending = self.admission.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.total -= 1;
        if let Some(here) = pending.networks.get_mut(&self.network) {
            *here -= 1;
            if *here == 0 {
                pending.networks.remove(&self.network);
            }
        }
    }
}

/// What one party is taken to own: an IPv4 address, an IPv6 /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn a_busy_endpoint_asks_for_proof_of_address_and_one_network_cannot_fill_it() {
        let admission = Admission::default();
        let mut held = Vec::new();
        for _ in 0..HANDSHAKES_UNVALIDATED_MAX {
            match admission.ask(address(1), false) {
                Verdict::Proceed(permit) => held.push(permit),
                other => panic!("refused while idle: {other:?}"),
            }
        }
        assert!(matches!(admission.ask(address(1), false), Verdict::Retry));
        while let Verdict::Proceed(permit) = admission.ask(address(1), true) {
            held.push(permit);
        }
        assert_eq!(held.len(), HANDSHAKES_PER_NETWORK_MAX);
        for n in 2..=255 {
            if let Verdict::Proceed(permit) = admission.ask(address(n), true) {
                held.push(permit);
            }
        }
        assert_eq!(held.len(), HANDSHAKES_MAX);
        held.clear();
        assert!(matches!(admission.ask(address(1), false), Verdict::Proceed(_)));
        assert!(admission.0.lock().expect("lock").networks.len() <= 1, "nothing is remembered of who left");
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let one: IpAddr = "2001:db8::1".parse().expect("address");
        let two: IpAddr = "2001:db8::ffff:2".parse().expect("address");
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("address");
        assert_eq!(network_of(one), network_of(two));
        assert_eq!(network_of(mapped), address(1));
    }
}
