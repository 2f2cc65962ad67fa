//! What a DICOMweb client makes of a `multipart/related` answer (RFC 2387, PS3.18 section 8.6), and of
//! a Part 10 file (PS3.10 section 7.1).

use bytes::Bytes;

use crate::http::Answer;

/// One part.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its header lines.
    pub head: String,
    /// Its content.
    pub body: Bytes,
}

impl Answer {
    /// The parts of a whole `multipart/related` answer.
    ///
    /// # Panics
    /// When it is none, or not whole.
    #[track_caller]
    pub fn parts(&self) -> Vec<Part> {
        self.try_parts().unwrap_or_else(|| panic!("no whole multipart answer: {:?}", self.header("content-type")))
    }

    /// The parts of a whole `multipart/related` answer; `None` when it is none, or not whole.
    pub fn try_parts(&self) -> Option<Vec<Part>> {
        let kind = self.header("content-type");
        if !kind.starts_with("multipart/related") {
            return None;
        }
        let boundary = kind.split("boundary=").nth(1)?.split(';').next()?.trim_matches('"');
        let delimiter = format!("--{boundary}");
        let is_whole =
            self.body.starts_with(delimiter.as_bytes()) && self.body.ends_with(format!("{delimiter}--\r\n").as_bytes());
        if !is_whole {
            return None;
        }
        let between = format!("\r\n{delimiter}");
        let (mut parts, mut at) = (Vec::new(), delimiter.len());
        loop {
            let rest = self.body.slice(at..);
            if rest.starts_with(b"--") {
                return Some(parts);
            }
            let end = find(&rest, between.as_bytes())?;
            let head_end = find(&rest, b"\r\n\r\n")?;
            let head = String::from_utf8(rest.get(2..head_end)?.to_vec()).ok()?;
            parts.push(Part { head, body: rest.slice(head_end + 4..end) });
            at += end + between.len();
        }
    }
}

/// Where `needle` begins first.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    // One byte at a time is fast where the standard library searches, even unoptimised.
    while let Some(at) = haystack.get(from..)?.iter().position(|&byte| byte == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// The data set of a Part 10 file, by the group length of its meta information.
///
/// # Panics
/// When it is no such file.
#[track_caller]
pub fn dataset(file: &Bytes) -> Bytes {
    assert_eq!(&file[128..132], b"DICM");
    assert_eq!(&file[132..138], b"\x02\0\0\0UL", "the group length comes first");
    let length = u32::from_le_bytes(file[140..144].try_into().expect("four bytes"));
    file.slice(144 + usize::try_from(length).expect("a length")..)
}

/// A text element of the data set in explicit VR little endian with a short VR: its value, unpadded.
/// Looks for the tag's bytes: good enough for UIDs, which come before the pixels.
///
/// # Panics
/// When the element is not there.
#[track_caller]
pub fn text(dataset: &[u8], group: u16, element: u16, vr: &str) -> String {
    let mut tag = group.to_le_bytes().to_vec();
    tag.extend_from_slice(&element.to_le_bytes());
    tag.extend_from_slice(vr.as_bytes());
    let at = find(dataset, &tag).expect("the element is there") + tag.len();
    let length = usize::from(u16::from_le_bytes([dataset[at], dataset[at + 1]]));
    let value = String::from_utf8_lossy(&dataset[at + 2..at + 2 + length]).into_owned();
    value.trim_end_matches(['\0', ' ']).to_owned()
}
