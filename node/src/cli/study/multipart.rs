//! Taking a `multipart/related` answer apart as it comes (RFC 2046 section 5.1.1), without holding a
//! part: an instance may have a gigabyte.
//!
//! Pure: bytes go in, events come out. The node is ours, but a damaged answer must not make a file
//! that looks whole, so the end of every part and of the whole is insisted on.

use bytes::{Buf as _, Bytes, BytesMut};

/// Longest headers of one part, in bytes; a few short ones are sent.
const HEADERS_LEN_MAX: usize = 16 << 10;
/// Longest boundary, RFC 2046 section 5.1.1.
const BOUNDARY_LEN_MAX: usize = 70;

/// What was found in the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A part begins.
    Begin,
    /// Bytes of the part.
    Content(Bytes),
    /// The part is whole.
    End,
}

/// Why an answer cannot be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MultipartError {
    /// Not a multipart answer.
    #[error("the answer is not multipart, or names no boundary")]
    Type,
    /// Broken between two parts.
    #[error("the answer's parts are not separated as they should be")]
    Structure,
    /// Cut off.
    #[error("the answer ended before its last part did")]
    CutOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Preamble,
    /// After a boundary: its line's end, or the closing hyphens.
    Boundary,
    Headers,
    Content,
    Finished,
}

/// A reader of one answer.
#[derive(Debug)]
pub(super) struct Multipart {
    /// Line break, two hyphens, boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
}

impl Multipart {
    /// A reader of an answer with this `Content-Type`.
    ///
    /// # Errors
    /// [`MultipartError::Type`].
    pub(super) fn new(content_type: &str) -> Result<Self, MultipartError> {
        let boundary = boundary(content_type).ok_or(MultipartError::Type)?;
        // The first delimiter may stand at the very start: let it look like the others.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Ok(Self { delimiter: format!("\r\n--{boundary}").into_bytes(), buffer, state: State::Preamble })
    }

    /// Takes the next bytes and gives what they complete.
    ///
    /// # Errors
    /// [`MultipartError::Structure`].
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, MultipartError> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while self.step(&mut events)? {}
        Ok(events)
    }

    /// Says whether the answer was whole.
    ///
    /// # Errors
    /// [`MultipartError::CutOff`].
    pub(super) fn finish(self) -> Result<(), MultipartError> {
        if self.state == State::Finished { Ok(()) } else { Err(MultipartError::CutOff) }
    }

    /// Moves on by one token; `false` when more bytes are needed.
    fn step(&mut self, events: &mut Vec<Event>) -> Result<bool, MultipartError> {
        match self.state {
            State::Preamble => Ok(self.skip_to_delimiter(None)),
            State::Content => Ok(self.skip_to_delimiter(Some(events))),
            State::Boundary => self.boundary_end(),
            State::Headers => {
                // No header at all is an empty line at once.
                let (at, len) = match (find(&self.buffer, b"\r\n\r\n"), self.buffer.starts_with(b"\r\n")) {
                    (_, true) => (0, 2),
                    (Some(at), false) => (at, 4),
                    (None, false) if self.buffer.len() > HEADERS_LEN_MAX => return Err(MultipartError::Structure),
                    (None, false) => return Ok(false),
                };
                self.buffer.advance(at + len);
                // An empty part's delimiter may follow at once, its line break being the headers' last.
                self.state = State::Content;
                events.push(Event::Begin);
                Ok(true)
            }
            State::Finished => {
                // What follows is an epilogue, to be ignored.
                self.buffer.clear();
                Ok(false)
            }
        }
    }

    /// Gives out or drops what surely stands before the next delimiter.
    fn skip_to_delimiter(&mut self, mut events: Option<&mut Vec<Event>>) -> bool {
        let found = find(&self.buffer, &self.delimiter);
        // Without one, its beginning may stand at the end of what is there.
        let safe = found.unwrap_or_else(|| self.buffer.len().saturating_sub(self.delimiter.len() - 1));
        let content = self.buffer.split_to(safe).freeze();
        if let Some(events) = events.as_deref_mut()
            && !content.is_empty()
        {
            events.push(Event::Content(content));
        }
        if found.is_none() {
            return false;
        }
        self.buffer.advance(self.delimiter.len());
        self.state = State::Boundary;
        if let Some(events) = events {
            events.push(Event::End);
        }
        true
    }

    fn boundary_end(&mut self) -> Result<bool, MultipartError> {
        if self.buffer.len() < 2 {
            return Ok(false);
        }
        if self.buffer.starts_with(b"--") {
            self.state = State::Finished;
            return Ok(true);
        }
        // Padding after a boundary is allowed, and so rare that we need not read it.
        if !self.buffer.starts_with(b"\r\n") {
            return Err(MultipartError::Structure);
        }
        self.buffer.advance(2);
        self.state = State::Headers;
        Ok(true)
    }
}

/// The `boundary` parameter of a multipart type, quoted or not (RFC 2045 section 5.1).
fn boundary(content_type: &str) -> Option<String> {
    if !content_type.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        return None;
    }
    let start = content_type.to_ascii_lowercase().find("boundary=")? + "boundary=".len();
    let value = &content_type[start..];
    let value = match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next()?,
        None => value.split([';', ' ']).next()?,
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || " '()+_,-./:=?".contains(c);
    ((1..=BOUNDARY_LEN_MAX).contains(&value.len()) && value.chars().all(allowed)).then(|| value.to_owned())
}

/// Where `needle`, which starts with a carriage return, is first.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == b'\r')?;
        if bytes[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/related; type=\"application/dicom\"; boundary=\"b=1\"";

    /// The parts, whatever pieces the answer comes in.
    fn parts(answer: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, MultipartError> {
        let mut reader = Multipart::new(TYPE)?;
        let (mut whole, mut open) = (Vec::new(), None::<Vec<u8>>);
        for bytes in answer.chunks(piece) {
            for event in reader.push(bytes)? {
                match event {
                    Event::Begin => open = Some(Vec::new()),
                    Event::Content(bytes) => open.as_mut().expect("a part is open").extend_from_slice(&bytes),
                    Event::End => whole.push(open.take().expect("a part is open")),
                }
            }
        }
        reader.finish().map(|()| whole)
    }

    #[test]
    fn parts_come_out_as_they_went_in_however_they_are_cut() {
        let tricky = b"\r\n--b=2\r\n--b=\r\r\n-\r".to_vec();
        let large = vec![b'\r'; 5000];
        let mut answer = b"--b=1\r\nContent-Type: application/dicom\r\n\r\n".to_vec();
        answer.extend_from_slice(&tricky);
        answer.extend_from_slice(b"\r\n--b=1\r\nContent-Type: application/dicom\r\nX: y\r\n\r\n");
        answer.extend_from_slice(&large);
        answer.extend_from_slice(b"\r\n--b=1\r\n\r\nlast\r\n--b=1--\r\nepilogue");
        for piece in [1, 2, 3, 7, 64, answer.len()] {
            assert_eq!(parts(&answer, piece), Ok(vec![tricky.clone(), large.clone(), b"last".to_vec()]), "{piece}");
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_is_never_whole() {
        let answer = b"--b=1\r\nA: b\r\n\r\none\r\n--b=1\r\nA: b\r\n\r\ntwo\r\n--b=1--";
        assert_eq!(parts(answer, 5).expect("whole").len(), 2);
        for len in 0..answer.len() {
            assert_eq!(parts(&answer[..len], 5), Err(MultipartError::CutOff), "{len}");
        }
    }

    #[test]
    fn what_is_no_multipart_is_refused() {
        for content_type in ["application/json", "multipart/related", "multipart/related; boundary=", ""] {
            assert_eq!(Multipart::new(content_type).err(), Some(MultipartError::Type), "{content_type:?}");
        }
        assert_eq!(parts(b"--b=1nonsense", 100), Err(MultipartError::Structure));
        let endless = [b"--b=1\r\n".as_slice(), &vec![b'x'; HEADERS_LEN_MAX + 1]].concat();
        assert_eq!(parts(&endless, 4096), Err(MultipartError::Structure));
    }

    #[test]
    fn the_boundary_may_be_quoted_or_not() {
        assert_eq!(boundary("multipart/related; boundary=abc; type=x").as_deref(), Some("abc"));
        assert_eq!(boundary("Multipart/Related; Boundary=\"a b\"; type=x").as_deref(), Some("a b"));
    }
}
