//! The one cookie: who reads at this browser. It is no login: it only saves typing the name.

use axum::http::{HeaderMap, HeaderValue, header};
use maillage_consensus::ids::Name;

/// A shift, in seconds: the next reader at this seat gives their own name.
const MAX_AGE_S: u32 = 12 * 3600;
const NAME: &str = "reader";

/// The reader named by the request's cookie, if a valid one is.
pub(crate) fn reader(headers: &HeaderMap) -> Option<Name> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == NAME)?;
    Name::filled(decode(value)?).ok()
}

/// The header that sets it.
pub(crate) fn set_reader(reader: &Name) -> HeaderValue {
    let value = encode(reader.as_str());
    let cookie = format!("{NAME}={value}; Path=/; Max-Age={MAX_AGE_S}; HttpOnly; SameSite=Strict");
    // Percent-encoded: always a valid header.
    HeaderValue::from_str(&cookie).unwrap_or(HeaderValue::from_static("reader=; Path=/; Max-Age=0"))
}

fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cookie: &str) -> Option<String> {
        let value = HeaderValue::from_str(cookie).expect("a header");
        reader(&HeaderMap::from_iter([(header::COOKIE, value)])).map(String::from)
    }

    #[test]
    fn a_name_survives_the_cookie() {
        for name in ["dr.martin", "Émilie Lefèvre; x=y", "100 %"] {
            let set = set_reader(&Name::filled(name).expect("a name"));
            let set = set.to_str().expect("ascii");
            assert!(set.ends_with("; HttpOnly; SameSite=Strict"));
            let pair = set.split(';').next().expect("a pair");
            assert_eq!(read(&format!("other=1; {pair}")).as_deref(), Some(name));
        }
    }

    #[test]
    fn what_is_no_name_is_nobody() {
        for cookie in ["reader=", "reader=%", "reader=%zz", "reader=%ff", "reader=a%0db", "readers=x", "x"] {
            assert_eq!(read(cookie), None, "{cookie}");
        }
        assert_eq!(read(&format!("reader={}", "x".repeat(65))), None);
    }
}
