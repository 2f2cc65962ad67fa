//! Decoding of text by Specific Character Set (0008,0005), PS3.3 section C.12.1.1.2 and PS3.5
//! section 6.1, with the code extensions of ISO 2022.
//!
//! Never fails: what cannot be decoded becomes U+FFFD and is reported. The codecs are those of
//! `dicom-encoding`, which knows single character sets; the escapes between them are followed here.

use dicom_encoding::text::{SpecificCharacterSet, TextCodec};

const ESCAPE: u8 = 0x1B;

/// The character set of a data set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Charset {
    /// None declared, or ISO-IR 6: ASCII. Bytes over 127 are guessed.
    Ascii,
    /// UTF-8 (`ISO_IR 192`).
    Utf8,
    /// One codec for all bytes; with `escapes` further ones by ISO 2022.
    Coded { initial: SpecificCharacterSet, escapes: bool },
    /// A declared one that is not known: guessed.
    Unknown,
}

/// A decoded text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) text: String,
    /// Whether something was replaced or guessed.
    pub(crate) doubtful: bool,
}

impl Charset {
    /// From the value of the element, which may have several backslash-separated terms.
    pub(crate) fn parse(value: &[u8]) -> Self {
        let value = String::from_utf8_lossy(value);
        let mut terms = value.split('\\').map(|term| term.trim_matches([' ', '\0']));
        let first = terms.next().unwrap_or_default();
        let escapes = terms.next().is_some() || first.starts_with("ISO 2022");
        match first {
            "" | "ISO_IR 6" | "ISO 2022 IR 6" if escapes => {
                Self::Coded { initial: SpecificCharacterSet::ISO_IR_6, escapes }
            }
            "" | "ISO_IR 6" => Self::Ascii,
            "ISO_IR 192" | "ISO_IR_192" => Self::Utf8,
            _ => match SpecificCharacterSet::from_code(first) {
                Some(initial) => Self::Coded { initial, escapes },
                None => Self::Unknown,
            },
        }
    }

    /// Decodes a value, padding removed.
    pub(crate) fn decode(&self, value: &[u8]) -> Decoded {
        let mut decoded = match self {
            Self::Ascii if value.is_ascii() => Decoded { text: ascii(value), doubtful: false },
            Self::Ascii | Self::Unknown => Decoded { doubtful: !value.is_ascii(), ..guess(value) },
            Self::Utf8 => match std::str::from_utf8(value) {
                Ok(text) => Decoded { text: text.to_owned(), doubtful: false },
                Err(_) => Decoded { text: String::from_utf8_lossy(value).into_owned(), doubtful: true },
            },
            Self::Coded { initial, escapes: true } if value.contains(&ESCAPE) => decode_escaped(value, initial),
            Self::Coded { initial, .. } => run_codec(value, initial),
        };
        let trimmed = decoded.text.trim_matches([' ', '\0']);
        if trimmed.len() < decoded.text.len() {
            decoded.text = trimmed.to_owned();
        }
        decoded
    }
}

/// The character sets designated to the lower (G0) and the upper (G1) half of the code table.
struct Designated {
    /// The escape to hand to the codec, when G0 is a two-byte Japanese set.
    japanese: Option<&'static [u8]>,
    upper: SpecificCharacterSet,
}

/// Follows the escapes of PS3.3 table C.12-3 and C.12-4.
fn decode_escaped(value: &[u8], initial: &SpecificCharacterSet) -> Decoded {
    let mut designated = Designated { japanese: None, upper: initial.clone() };
    let mut decoded = Decoded { text: String::new(), doubtful: false };
    for (n, segment) in value.split(|&byte| byte == ESCAPE).enumerate() {
        let mut segment = segment;
        if n > 0 {
            match designate(segment, &mut designated) {
                Some(len) => segment = &segment[len..],
                None => decoded.doubtful = true,
            }
        }
        for half in segment.chunk_by(|a, b| a.is_ascii() == b.is_ascii()) {
            let part = match designated.japanese {
                Some(escape) if half[0].is_ascii() => run_codec(&[escape, half].concat(), &from_code("ISO 2022 IR 87")),
                _ => run_codec(half, &designated.upper),
            };
            decoded.text.push_str(&part.text);
            decoded.doubtful |= part.doubtful;
        }
    }
    decoded
}

/// Applies the escape sequence at the start of `segment` (without its ESC); its length if known.
fn designate(segment: &[u8], designated: &mut Designated) -> Option<usize> {
    let (len, upper) = match segment {
        [b'(', b'B' | b'J', ..] => {
            designated.japanese = None;
            return Some(2);
        }
        [b'$', b'B' | b'@', ..] => {
            designated.japanese = Some(b"\x1B$B");
            return Some(2);
        }
        [b'$', b'(', b'D', ..] => {
            designated.japanese = Some(b"\x1B$(D");
            return Some(3);
        }
        [b'$', b')', b'C', ..] => (3, "ISO 2022 IR 149"),
        [b'$', b')', b'A', ..] => (3, "ISO 2022 IR 58"),
        [b')', b'I', ..] => (2, "ISO 2022 IR 13"),
        [b'-', b'A', ..] => (2, "ISO 2022 IR 100"),
        [b'-', b'B', ..] => (2, "ISO 2022 IR 101"),
        [b'-', b'C', ..] => (2, "ISO 2022 IR 109"),
        [b'-', b'D', ..] => (2, "ISO 2022 IR 110"),
        [b'-', b'F', ..] => (2, "ISO 2022 IR 126"),
        [b'-', b'G', ..] => (2, "ISO 2022 IR 127"),
        [b'-', b'H', ..] => (2, "ISO 2022 IR 138"),
        [b'-', b'L', ..] => (2, "ISO 2022 IR 144"),
        [b'-', b'T', ..] => (2, "ISO 2022 IR 166"),
        _ => return None,
    };
    designated.upper = from_code(upper);
    Some(len)
}

fn from_code(code: &str) -> SpecificCharacterSet {
    SpecificCharacterSet::from_code(code).unwrap_or_default()
}

/// Runs a codec. Those of `dicom-encoding` write an undecodable byte as a backslash and three octal
/// digits; more backslashes than went in are those.
fn run_codec(value: &[u8], codec: &SpecificCharacterSet) -> Decoded {
    if *codec == SpecificCharacterSet::ISO_IR_6 {
        return Decoded { doubtful: !value.is_ascii(), ..guess(value) };
    }
    let Ok(text) = codec.decode(value) else {
        return Decoded { text: replace_upper(value), doubtful: true };
    };
    let backslashes_in = value.iter().filter(|&&byte| byte == b'\\').count();
    if text.matches('\\').count() <= backslashes_in {
        return Decoded { text, doubtful: false };
    }
    Decoded { text: replace_octal(&text), doubtful: true }
}

/// Undeclared bytes over 127: UTF-8 when they are that, else Latin 1, which most such senders mean.
fn guess(value: &[u8]) -> Decoded {
    let text = match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|&byte| char::from(byte)).collect(),
    };
    Decoded { text, doubtful: true }
}

fn ascii(value: &[u8]) -> String {
    value.iter().map(|&byte| char::from(byte)).collect()
}

fn replace_upper(value: &[u8]) -> String {
    value.iter().map(|&byte| if byte.is_ascii() { char::from(byte) } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn replace_octal(text: &str) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        replaced.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.as_bytes() {
            [b'0'..=b'3', b'0'..=b'7', b'0'..=b'7', ..] => {
                replaced.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[3..];
            }
            _ => replaced.push('\\'),
        }
    }
    replaced.push_str(rest);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(charset: &str, value: &[u8]) -> Decoded {
        Charset::parse(charset.as_bytes()).decode(value)
    }

    fn sure(text: &str) -> Decoded {
        Decoded { text: text.to_owned(), doubtful: false }
    }

    #[test]
    fn declared_character_sets_are_decoded() {
        assert_eq!(decode("ISO_IR 100", b"M\xFCller^J\xF6rg "), sure("Müller^Jörg"));
        assert_eq!(decode("ISO_IR 192", "Łukasz^王".as_bytes()), sure("Łukasz^王"));
        assert_eq!(decode("ISO_IR 144", b"\xBB\xEE"), sure("Лю"));
        assert_eq!(decode("GB18030", b"Wang^\xD0\xA1\xB6\xAB"), sure("Wang^小东"));
        assert_eq!(decode("", b"DOE^JOHN"), sure("DOE^JOHN"));
    }

    /// PS3.5 annexes H, I and J: the standard's own examples.
    #[test]
    fn escapes_of_the_standards_examples_are_followed() {
        let japanese = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B";
        assert_eq!(decode("\\ISO 2022 IR 87", japanese), sure("Yamada^Tarou=山田^太郎=やまだ^たろう"));
        let korean = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf";
        assert_eq!(decode("\\ISO 2022 IR 149", korean), sure("Hong^Gildong=洪^吉洞=홍^길동"));
        let chinese = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=";
        assert_eq!(decode("\\ISO 2022 IR 58", chinese), sure("Zhang^XiaoDong=张^小东="));
        let greek = b"Dionysios is \x1b-F\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2";
        assert_eq!(decode("ISO 2022 IR 100\\ISO 2022 IR 126", greek), sure("Dionysios is Διονυσιος"));
    }

    #[test]
    fn undeclared_and_unknown_sets_are_guessed_and_marked() {
        let guessed = Decoded { text: "Hélène".to_owned(), doubtful: true };
        assert_eq!(decode("", b"H\xE9l\xE8ne"), guessed);
        assert_eq!(decode("", "Hélène".as_bytes()), guessed);
        assert_eq!(decode("ISO_IR 999", b"H\xE9l\xE8ne"), guessed);
        assert!(!decode("ISO_IR 999", b"plain").doubtful);
    }

    #[test]
    fn what_cannot_be_decoded_is_replaced_and_marked() {
        assert_eq!(decode("ISO_IR 192", b"A\xFFB"), Decoded { text: "A\u{FFFD}B".to_owned(), doubtful: true });
        assert_eq!(decode("GB18030", b"A\xFF"), Decoded { text: "A\u{FFFD}".to_owned(), doubtful: true });
        assert!(decode("ISO 2022 IR 100\\ISO 2022 IR 87", b"a\x1b[31mb").doubtful, "an unknown escape");
        assert!(!decode("ISO_IR 100", b"a\\101").doubtful, "an octal-like text stays as it is");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_charset_decode(
            value in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
            charset in proptest::sample::select(vec![
                "", "ISO_IR 13", "ISO_IR 100", "ISO_IR 192", "GB18030", "GBK", "ISO_IR 166", "nonsense",
                "\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87\\ISO 2022 IR 159", "\\ISO 2022 IR 149",
            ]),
        ) {
            let decoded = decode(charset, &value);
            proptest::prop_assert!(decoded.text.len() <= 4 * value.len());
        }
    }
}
