//! What a site decides about its receiving side.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::ae_title::AeTitle;

/// Settings of [`super::serve`].
#[derive(Debug, Clone)]
pub struct ScpConfig {
    /// By which names we are called.
    pub called: CalledPolicy,
    /// Who may call.
    pub calling: CallingPolicy,
    /// Whether abstract syntaxes outside DICOM's own arc, makers' private ones, are stored.
    pub private_storage: bool,
    /// Associations at once.
    pub associations_max: usize,
    /// Associations at once from one address.
    pub associations_per_address_max: usize,
    /// Connections at once that have not been accepted yet; further ones displace the oldest.
    pub negotiating_max: usize,
    /// The same, from one address.
    pub negotiating_per_address_max: usize,
    /// From the connection to the A-ASSOCIATE-RQ's last byte (the ARTIM timer, PS3.8 section 9.1.5).
    pub negotiation_timeout: Duration,
    /// Longest silence between messages.
    pub idle_timeout: Duration,
    /// Longest silence within a message, and longest wait for the peer to take an answer.
    pub stall_timeout: Duration,
    /// How long a message may take; beyond it, it must have come at 800 bytes per second or more.
    pub message_grace: Duration,
    /// Longest P-DATA-TF body that is received, offered to the peer, in bytes.
    pub max_pdu: u32,
    /// Longest instance, in bytes; longer ones are refused with A700.
    pub instance_len_max: usize,
    /// Bytes of instances in memory, over all associations, from their first byte until the handler
    /// is done. One instance at a time may exceed it, so that two can never wait for each other.
    pub in_flight_len_max: usize,
    /// How long messages under way may go on after shutdown.
    pub shutdown_grace: Duration,
}

impl ScpConfig {
    /// Defaults for a site called `ae_title`: nobody may call yet. Sized for a node with 4 GiB: 100
    /// hospitals with a few associations each, half a gigabyte in flight.
    pub fn new(ae_title: AeTitle) -> Self {
        Self {
            called: CalledPolicy::Only(vec![ae_title]),
            calling: CallingPolicy::Known(Vec::new()),
            private_storage: true,
            associations_max: 256,
            associations_per_address_max: 64,
            negotiating_max: 256,
            negotiating_per_address_max: 64,
            negotiation_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(30),
            message_grace: Duration::from_secs(60),
            max_pdu: 1 << 20,
            instance_len_max: 2 << 30,
            in_flight_len_max: 512 << 20,
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// By which names we may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CalledPolicy {
    /// By any.
    Any,
    /// By one of these.
    Only(Vec<AeTitle>),
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallingPolicy {
    /// Anyone: for tests and closed networks.
    Any,
    /// Those in the list; nobody, when it is empty.
    Known(Vec<KnownPeer>),
}

/// A peer that may call. A title may be listed several times with different addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPeer {
    /// Its AE title.
    pub ae_title: AeTitle,
    /// From where; `None` is anywhere.
    pub from: Option<AddressRange>,
}

/// An address or a network, as `192.0.2.7`, `192.0.2.0/24` or `2001:db8::/32`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    prefix_len: u8,
}

/// Why a text is no address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AddressRangeError {
    /// The part before the slash is no IP address.
    #[error("not an ip address")]
    Address,
    /// The part after the slash is no length of a prefix of such an address.
    #[error("not a valid prefix length")]
    PrefixLen,
}

impl CalledPolicy {
    /// Whether we answer to `title`.
    pub fn allows(&self, title: &AeTitle) -> bool {
        match self {
            Self::Any => true,
            Self::Only(titles) => titles.contains(title),
        }
    }
}

impl AddressRange {
    /// Whether the address is in the range. An IPv4 address that came in IPv6 form counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ours, theirs, bits) = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => (u32::from(ours).into(), u32::from(theirs).into(), 32),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => (u128::from(ours), u128::from(theirs), 128),
            _ => return false,
        };
        let host_bits = bits - u32::from(self.prefix_len);
        // A shift by all 128 bits is what `::/0` asks for.
        (ours ^ theirs).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<Self, AddressRangeError> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| AddressRangeError::Address)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = match prefix_len {
            None => bits,
            Some(len) => len.parse().ok().filter(|&len| len <= bits).ok_or(AddressRangeError::PrefixLen)?,
        };
        Ok(Self { address, prefix_len })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_what_their_prefix_says() {
        let range = |text: &str| text.parse::<AddressRange>().expect("a range");
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(range("10.1.0.0/16").contains(address("10.1.255.3")));
        assert!(range("10.1.0.0/16").contains(address("::ffff:10.1.255.3")));
        assert!(!range("10.1.0.0/16").contains(address("10.2.0.1")));
        assert!(range("10.1.2.3").contains(address("10.1.2.3")));
        assert!(!range("10.1.2.3").contains(address("10.1.2.4")));
        assert!(range("0.0.0.0/0").contains(address("203.0.113.9")));
        assert!(!range("0.0.0.0/0").contains(address("2001:db8::1")));
        assert!(range("::/0").contains(address("2001:db8::1")));
        assert!(range("2001:db8::/32").contains(address("2001:db8:1::9")));
        assert_eq!("10.0.0.0/33".parse::<AddressRange>(), Err(AddressRangeError::PrefixLen));
        assert_eq!("example.org".parse::<AddressRange>(), Err(AddressRangeError::Address));
    }
}
