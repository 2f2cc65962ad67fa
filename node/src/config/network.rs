//! An address or a range of addresses, as an operator writes it: `10.1.2.3`, `10.1.0.0/16`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// All addresses that share a prefix (RFC 4632); a lone address is its own range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix_len: u8,
}

/// Why a text is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The part before the slash.
    #[error("not an IP address or range, such as 10.1.2.3 or 10.1.0.0/16")]
    Address,
    /// The part after the slash.
    #[error("the prefix length is not a number of bits of the address")]
    Prefix,
    /// `10.1.2.3/16`: one of the two is a mistake, and guessing which would let strangers in.
    #[error("the address has bits beyond its prefix length")]
    HostBits,
}

impl Network {
    /// Whether the address is in the range. An IPv4 address that came in IPv6 form counts as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let address = address.to_canonical();
        let prefix = |address: IpAddr| masked(bits(address), self.width(), self.prefix_len);
        address.is_ipv4() == self.address.is_ipv4() && prefix(address) == prefix(self.address)
    }

    fn width(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// `bits` without the last `width - prefix_len`.
fn masked(bits: u128, width: u8, prefix_len: u8) -> u128 {
    let dropped = u32::from(width.saturating_sub(prefix_len));
    bits.checked_shr(dropped).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Address)?;
        let mut network = Self { address, prefix_len: 0 };
        network.prefix_len = match prefix {
            None => network.width(),
            Some(prefix) => prefix.parse().map_err(|_| NetworkError::Prefix)?,
        };
        if network.prefix_len > network.width() {
            return Err(NetworkError::Prefix);
        }
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let dropped = u32::from(network.width() - network.prefix_len);
        if masked(bits, network.width(), network.prefix_len).checked_shl(dropped).unwrap_or(0) != bits {
            return Err(NetworkError::HostBits);
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix_len == self.width() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix_len)
        }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect("a network")
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (text, error) in [
            ("", NetworkError::Address),
            ("hospital.example", NetworkError::Address),
            ("10.1.0.0/33", NetworkError::Prefix),
            ("10.1.0.0/", NetworkError::Prefix),
            ("10.1.2.3/16", NetworkError::HostBits),
            ("10.1.2.3/0", NetworkError::HostBits),
            ("2001:db8::1/64", NetworkError::HostBits),
        ] {
            assert_eq!(text.parse::<Network>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_network_prints_as_it_was_written() {
        for text in ["10.1.2.3", "10.1.0.0/16", "2001:db8::/32", "::1"] {
            assert_eq!(network(text).to_string(), text);
        }
    }
}
