//! `multipart/related` (RFC 2387, RFC 2046 section 5.1), both ways, without I/O.
//!
//! The writer frames whole DICOM files; the reader takes bodies apart as they arrive, in memory
//! bounded by its input: what is not certain to be content (a possible delimiter's beginning) is all
//! that it ever holds back.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

use super::media::MediaType;

/// Longest boundary, RFC 2046 section 5.1.1.
const BOUNDARY_LEN_MAX: usize = 70;
/// The most bytes of one part's headers; real ones are under 300.
const HEADERS_LEN_MAX: usize = 8 * 1024;
/// The most bytes before the first delimiter; senders write none.
const PREAMBLE_LEN_MAX: usize = 4 * 1024;

/// Frames parts.
#[derive(Debug, Clone)]
pub(crate) struct PartWriter {
    boundary: String,
}

impl PartWriter {
    /// A writer with a boundary of 128 random bits, which no file contains by accident or on purpose.
    pub(crate) fn new() -> Self {
        Self::with_boundary(format!("maillage-{:032x}", rand::random::<u128>()))
    }

    fn with_boundary(boundary: String) -> Self {
        Self { boundary }
    }

    /// The body's media type.
    pub(crate) fn content_type(&self) -> String {
        format!("multipart/related; type=\"application/dicom\"; boundary={}", self.boundary)
    }

    /// What comes before a part's bytes. `first` is whether no part came before it.
    pub(crate) fn opening(&self, first: bool, transfer_syntax: &str, len: u64) -> Bytes {
        let line_end = if first { "" } else { "\r\n" };
        Bytes::from(format!(
            "{line_end}--{}\r\nContent-Type: application/dicom; transfer-syntax={transfer_syntax}\r\n\
             Content-Length: {len}\r\n\r\n",
            self.boundary
        ))
    }

    /// What comes after the last part.
    pub(crate) fn closing(&self) -> Bytes {
        Bytes::from(format!("\r\n--{}--\r\n", self.boundary))
    }
}

/// What a [`PartReader`] found next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Feed it more, or end it.
    NeedMore,
    /// A part begins; its media type, when it says one that can be read.
    Part(Option<MediaType>),
    /// Bytes of the part.
    Content(Bytes),
    /// The part ended.
    PartEnd,
    /// The last delimiter was met. What follows is ignored.
    End,
}

/// A body that is not multipart as it claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MultipartError {
    /// The media type carries no boundary of 1 to 70 characters.
    #[error("the content type has no valid boundary")]
    Boundary,
    /// Too much before the first delimiter.
    #[error("no boundary within the first bytes")]
    Preamble,
    /// A part's headers are too long or no headers.
    #[error("a part's headers are malformed or too long")]
    Headers,
    /// The body ended before its last delimiter: parts may be lost.
    #[error("the body ends before its closing boundary")]
    Truncated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    AfterDelimiter,
    Headers,
    Content,
    End,
}

/// Takes a body apart.
#[derive(Debug)]
pub(crate) struct PartReader {
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
    preamble: usize,
}

impl PartReader {
    /// A reader for a body of this media type.
    ///
    /// # Errors
    /// [`MultipartError::Boundary`].
    pub(crate) fn new(media: &MediaType) -> Result<Self, MultipartError> {
        let boundary = media.parameter("boundary").unwrap_or_default();
        if boundary.is_empty() || boundary.len() > BOUNDARY_LEN_MAX || boundary.bytes().any(|b| b.is_ascii_control()) {
            return Err(MultipartError::Boundary);
        }
        // The first delimiter needs no line end before it: pretend that one was there.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        Ok(Self { delimiter: format!("\r\n--{boundary}").into_bytes(), buffer, state: State::Preamble, preamble: 0 })
    }

    /// Adds bytes of the body. Call [`PartReader::next`] until it needs more before the next feed:
    /// then at most a header block or a delimiter is held.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.state != State::End {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Whether the body may end here.
    ///
    /// # Errors
    /// [`MultipartError::Truncated`].
    pub(crate) fn finish(&self) -> Result<(), MultipartError> {
        if self.state == State::End { Ok(()) } else { Err(MultipartError::Truncated) }
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`MultipartError`]; the rest of the body cannot be read.
    pub(crate) fn next(&mut self) -> Result<Piece, MultipartError> {
        loop {
            match self.state {
                State::End => return Ok(Piece::End),
                State::Preamble => {
                    let Some(at) = memmem::find(&self.buffer, &self.delimiter) else {
                        self.preamble += self.drop_certain_content().len();
                        if self.preamble > PREAMBLE_LEN_MAX {
                            return Err(MultipartError::Preamble);
                        }
                        return Ok(Piece::NeedMore);
                    };
                    drop(self.buffer.split_to(at + self.delimiter.len()));
                    self.state = State::AfterDelimiter;
                }
                State::AfterDelimiter => match self.after_delimiter()? {
                    Some(state) => self.state = state,
                    None => return Ok(Piece::NeedMore),
                },
                State::Headers => return self.headers(),
                State::Content => {
                    let Some(at) = memmem::find(&self.buffer, &self.delimiter) else {
                        let content = self.drop_certain_content();
                        return Ok(if content.is_empty() { Piece::NeedMore } else { Piece::Content(content) });
                    };
                    if at > 0 {
                        return Ok(Piece::Content(self.buffer.split_to(at).freeze()));
                    }
                    drop(self.buffer.split_to(self.delimiter.len()));
                    self.state = State::AfterDelimiter;
                    return Ok(Piece::PartEnd);
                }
            }
        }
    }

    /// Takes what cannot be the beginning of a delimiter.
    fn drop_certain_content(&mut self) -> Bytes {
        let held = self.buffer.len().min(self.delimiter.len() - 1);
        self.buffer.split_to(self.buffer.len() - held).freeze()
    }

    /// A delimiter is followed by `--` (the last), or by blanks and a line end.
    fn after_delimiter(&mut self) -> Result<Option<State>, MultipartError> {
        if self.buffer.starts_with(b"--") {
            self.buffer.clear();
            return Ok(Some(State::End));
        }
        let blanks = self.buffer.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        match self.buffer.get(blanks..blanks + 2) {
            Some(b"\r\n") => {
                // The line end stays: with it an empty header block ends as any other does.
                drop(self.buffer.split_to(blanks));
                Ok(Some(State::Headers))
            }
            None if blanks <= HEADERS_LEN_MAX => Ok(None),
            _ => Err(MultipartError::Headers),
        }
    }

    fn headers(&mut self) -> Result<Piece, MultipartError> {
        let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") else {
            let fits = self.buffer.len() <= HEADERS_LEN_MAX;
            return if fits { Ok(Piece::NeedMore) } else { Err(MultipartError::Headers) };
        };
        if end > HEADERS_LEN_MAX {
            return Err(MultipartError::Headers);
        }
        let block = self.buffer.split_to(end + 4);
        let text = std::str::from_utf8(&block).map_err(|_| MultipartError::Headers)?;
        let mut media = None;
        for line in text.split("\r\n").filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or(MultipartError::Headers)?;
            if name.trim().eq_ignore_ascii_case("content-type") {
                media = MediaType::parse(value);
            }
        }
        self.state = State::Content;
        Ok(Piece::Part(media))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    fn reader(boundary: &str) -> PartReader {
        let media = MediaType::parse(&format!("multipart/related; boundary=\"{boundary}\"")).expect("a media type");
        PartReader::new(&media).expect("a reader")
    }

    /// A part's media type and content.
    type ReadPart = (Option<String>, Vec<u8>);

    /// All parts of `body`, fed `step` bytes at a time.
    fn parts(mut reader: PartReader, body: &[u8], step: usize) -> Result<Vec<ReadPart>, MultipartError> {
        let mut parts: Vec<ReadPart> = Vec::new();
        let mut ended = 0;
        for bytes in body.chunks(step) {
            reader.feed(bytes);
            loop {
                match reader.next()? {
                    Piece::NeedMore | Piece::End => break,
                    Piece::Part(media) => parts.push((media.map(|media| media.essence), Vec::new())),
                    Piece::Content(bytes) => parts.last_mut().expect("in a part").1.extend_from_slice(&bytes),
                    Piece::PartEnd => ended += 1,
                }
            }
        }
        reader.finish()?;
        assert_eq!(ended, parts.len(), "each part ends");
        Ok(parts)
    }

    fn written(contents: &[&[u8]]) -> Vec<u8> {
        let writer = PartWriter::with_boundary("b-1".to_owned());
        let mut body = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            body.extend_from_slice(&writer.opening(number == 0, "1.2.840.10008.1.2", content.len() as u64));
            body.extend_from_slice(content);
        }
        body.extend_from_slice(&writer.closing());
        body
    }

    #[test]
    fn a_written_part_carries_its_transfer_syntax_and_length() {
        expect_test::expect![[r#"
            --b-1
            Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2
            Content-Length: 2

            ab
            --b-1
            Content-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2
            Content-Length: 1

            c
            --b-1--
        "#]]
        .assert_eq(&String::from_utf8(written(&[b"ab", b"c"])).expect("text").replace("\r\n", "\n"));
    }

    #[test]
    fn boundaries_of_two_writers_differ() {
        let media = MediaType::parse(&PartWriter::new().content_type()).expect("a media type");
        assert_eq!(media.parameter("type"), Some("application/dicom"));
        assert_ne!(
            media.parameter("boundary"),
            MediaType::parse(&PartWriter::new().content_type()).expect("one").parameter("boundary")
        );
        assert!(PartReader::new(&media).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_however_it_is_cut(
            contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 1..4),
            step in 1_usize..300,
        ) {
            let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
            let read = parts(reader("b-1"), &written(&contents), step).expect("well formed");
            prop_assert_eq!(read.len(), contents.len());
            for ((media, bytes), content) in read.iter().zip(contents) {
                prop_assert_eq!(media.as_deref(), Some("application/dicom"));
                prop_assert_eq!(bytes.as_slice(), content);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_are_never_held(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let mut reader = reader("b");
            for piece in bytes.chunks(777) {
                reader.feed(piece);
                while let Ok(next) = reader.next() {
                    if matches!(next, Piece::NeedMore | Piece::End) {
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn content_that_looks_like_a_delimiter_is_content() {
        let content = b"\r\n--b-\r\n--B-1\r\n-b-1\r\r\n--b";
        for step in [1, 2, 3, 500] {
            assert_eq!(parts(reader("b-1"), &written(&[content]), step).expect("well formed")[0].1, content);
        }
    }

    #[test]
    fn preamble_blanks_and_epilogue_are_ignored() {
        let body = b"ignore me\r\n--b \t\r\n\r\nx\r\n--b--\r\nepilogue\r\n--b\r\n\r\ny\r\n--b--";
        for step in [1, 4, 500] {
            assert_eq!(parts(reader("b"), body, step), Ok(vec![(None, b"x".to_vec())]));
        }
    }

    #[test]
    fn empty_parts_are_parts() {
        assert_eq!(parts(reader("b"), b"--b\r\nA: b\r\n\r\n\r\n--b--", 3), Ok(vec![(None, Vec::new())]));
    }

    #[test]
    fn a_body_without_its_closing_boundary_is_truncated() {
        assert_eq!(parts(reader("b"), b"--b\r\n\r\nx\r\n--b\r\n", 500), Err(MultipartError::Truncated));
        assert_eq!(parts(reader("b"), b"--b\r\n\r\nx", 500), Err(MultipartError::Truncated));
    }

    #[test]
    fn what_is_endless_is_refused() {
        assert_eq!(parts(reader("b"), &[b'x'; 9_000], 1000), Err(MultipartError::Preamble));
        let headers = [b"--b\r\nX: ".to_vec(), vec![b'x'; 9_000]].concat();
        assert_eq!(parts(reader("b"), &headers, 1000), Err(MultipartError::Headers));
        assert_eq!(parts(reader("b"), b"--b\r\nno header\r\n\r\n", 500), Err(MultipartError::Headers));
        assert_eq!(parts(reader("b"), b"--bc\r\n\r\nx\r\n--b--", 500), Err(MultipartError::Headers));
    }

    #[test]
    fn a_boundary_is_needed() {
        for text in ["multipart/related".to_owned(), format!("multipart/related; boundary={}", "b".repeat(71))] {
            let media = MediaType::parse(&text).expect("a media type");
            assert_eq!(PartReader::new(&media).map(drop), Err(MultipartError::Boundary));
        }
    }
}
