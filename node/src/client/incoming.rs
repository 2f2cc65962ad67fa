//! An answer that comes in pieces: a study's files, progress, events.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming as Body;
use hyper::client::conn::http1::SendRequest;

use super::{ClientError, RequestBody};

/// Longest line of a streamed answer, in bytes; progress and events are far shorter.
const LINE_LEN_MAX: usize = 1 << 20;

/// The body of an answer, read as it comes.
#[derive(Debug)]
pub(crate) struct Incoming {
    body: Body,
    /// The `Content-Type` of the answer.
    pub(crate) content_type: String,
    /// Read, and not yet given out as a line.
    rest: BytesMut,
    /// The connection lives as long as its sender.
    _sender: SendRequest<RequestBody>,
}

impl Incoming {
    pub(super) fn new(body: Body, content_type: String, sender: SendRequest<RequestBody>) -> Self {
        Self { body, content_type, rest: BytesMut::new(), _sender: sender }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(ClientError::Broken(error.to_string())),
                // Trailers carry nothing for us.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    _ => {}
                },
            }
        }
    }

    /// The next line without its end; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError::Broken`], [`ClientError::Unreadable`].
    pub(crate) async fn next_line(&mut self) -> Result<Option<String>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.rest[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(searched + at + 1);
                return text(&line[..line.len() - 1]).map(Some);
            }
            searched = self.rest.len();
            if searched > LINE_LEN_MAX {
                return Err(ClientError::Unreadable("a line is too long".to_owned()));
            }
            match self.next().await? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None if self.rest.is_empty() => return Ok(None),
                None => return text(&self.rest.split()).map(Some),
            }
        }
    }
}

fn text(line: &[u8]) -> Result<String, ClientError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8(line.to_vec()).map_err(|_| ClientError::Unreadable("a line is not UTF-8".to_owned()))
}
