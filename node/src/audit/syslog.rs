//! Audit messages as syslog messages (RFC 5424), and where they go (PS3.15 section A.6: by UDP, RFC 5426,
//! or by a TCP stream, whose messages RFC 6587 section 3.4.1 frames by their length).

use std::fmt;
use std::str::FromStr;

use super::{Described, dicom_message};
use crate::http::rfc3339;

/// Facility 10, *security/authorization* (PS3.15 section A.6.1), times 8.
const FACILITY: u8 = 10 * 8;
/// *Notice*, as PS3.15 recommends for what is as it should be …
const NOTICE: u8 = 5;
/// … and *warning*, for what was refused.
const WARNING: u8 = 4;
/// What PS3.15 section A.6 has as the message's type.
const MESSAGE_ID: &str = "DICOM+RFC3881";
/// RFC 5424 section 6: a host name has at most 255 characters.
const HOST_LEN_MAX: usize = 255;

/// How a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A datagram a message.
    Udp,
    /// A stream of messages.
    Tcp,
}

/// A syslog server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(super) transport: Transport,
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// Reads `udp://host:port` or `tcp://host:port`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not udp://HOST:PORT or tcp://HOST:PORT");
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let transport = match scheme {
            "udp" => Transport::Udp,
            "tcp" => Transport::Tcp,
            _ => return Err(bad()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => address,
            None if host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')) => host,
            _ => return Err(bad()),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self { transport, host: host.to_owned(), port })
    }
}

/// The syslog message that tells of an entry, without framing.
pub(crate) fn line(described: &Described, mesh: &str, observer: &str) -> String {
    let priority = FACILITY + if described.is_done() { NOTICE } else { WARNING };
    let at = rfc3339(described.entry().at);
    // RFC 5424 section 6.4: what is UTF-8 begins with a byte order mark.
    let message = dicom_message(described, mesh, observer);
    format!("<{priority}>1 {at} {} maillage - {MESSAGE_ID} - \u{feff}{message}", host_name(observer))
}

/// As RFC 5424 lets a host be called: visible ASCII, or `-` for one that cannot be.
fn host_name(observer: &str) -> String {
    let name: String = observer.chars().filter(char::is_ascii_graphic).take(HOST_LEN_MAX).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

/// The bytes to send for a message.
pub(super) fn framed(transport: Transport, line: &str) -> Vec<u8> {
    match transport {
        Transport::Udp => line.as_bytes().to_vec(),
        Transport::Tcp => format!("{} {line}", line.len()).into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::describe::testing::described;

    #[test]
    fn a_server_is_named_by_transport_host_and_port() {
        for good in ["udp://log.example:514", "tcp://192.0.2.1:601", "tcp://[2001:db8::1]:601"] {
            assert_eq!(good.parse::<Target>().expect(good).to_string(), good);
        }
        for bad in
            ["", "log:514", "tls://log:6514", "udp://log", "udp://:514", "udp://log:0", "udp://a b:1", "tcp://[x]:1"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_message_is_rfc_5424_and_counted_in_bytes_on_a_stream() {
        let line = line(&described("claim-take"), "é", "rennes");
        let (head, xml) = line.split_once('\u{feff}').expect("a byte order mark");
        assert_eq!(head, "<85>1 2026-01-02T03:04:05.719Z rennes maillage - DICOM+RFC3881 - ");
        assert!(xml.starts_with("<?xml") && !line.contains('\n'));
        assert_eq!(framed(Transport::Udp, &line), line.as_bytes());
        let framed = framed(Transport::Tcp, &line);
        let text = String::from_utf8(framed).expect("UTF-8");
        let (count, rest) = text.split_once(' ').expect("a count");
        assert_eq!(count.parse::<usize>().expect("a number"), rest.len(), "octets, not characters");
        assert_eq!(rest, line);
    }
}
