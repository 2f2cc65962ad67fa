//! Request bodies, read within bounds: of size, and of the time between two pieces.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::media::MediaType;
use super::problem::Problem;
use crate::senders;

/// The largest JSON or form body: a report of the longest kind, escaped, and its fields.
pub(crate) const JSON_BYTES_MAX: u64 = 512 * 1024;
/// How long a body may pause. A sender that is slower than one piece in this time holds memory and a
/// connection for nothing.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long a body may take, whatever its size, and then for each byte: slower than the slowest link
/// in use means a sender that holds a place on purpose.
const WHOLE_MIN: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND_MIN: u64 = 16 * 1024;

/// A body that arrives in pieces.
pub(crate) struct Pieces {
    body: axum::body::BodyDataStream,
    started: Instant,
    received: u64,
}

impl Pieces {
    /// Takes a body whose declared length is within `limit`, without reading any of it.
    ///
    /// # Errors
    /// 413 when it declares more.
    pub(crate) fn new(headers: &HeaderMap, body: Body, limit: u64) -> Result<Self, Problem> {
        // hyper has refused a length that is no number.
        let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if declared.is_some_and(|declared: u64| declared > limit) {
            return Err(over(limit));
        }
        Ok(Self { body: body.into_data_stream(), started: Instant::now(), received: 0 })
    }

    /// The next piece, `None` at the end.
    ///
    /// # Errors
    /// 408 after a pause of 30 s, or at less than 16 KiB/s after the first minute; 400 when the
    /// connection broke.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let allowed = WHOLE_MIN + Duration::from_secs(self.received / BYTES_PER_SECOND_MIN);
        let left = allowed.saturating_sub(self.started.elapsed()).min(PAUSE_MAX);
        match timeout(left, self.body.next()).await {
            Ok(piece) => {
                let piece = piece.transpose().map_err(|_| Problem::invalid("the body broke off"))?;
                self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                Ok(piece)
            }
            Err(_) => Err(Problem::too_slow("the body came too slowly")),
        }
    }

    /// Reads nothing for a while, which is not held against the sender.
    pub(crate) async fn pause(&mut self, wait: Duration) {
        senders::pause(wait).await;
        self.started += wait;
    }

    /// All of it, at most `limit` bytes. Memory grows with what arrives, never with what is declared.
    ///
    /// # Errors
    /// 413, and as [`Pieces::next`].
    pub(crate) async fn collect(mut self, limit: u64) -> Result<Bytes, Problem> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        let mut whole = BytesMut::from(first);
        loop {
            if whole.len() as u64 > limit {
                return Err(over(limit));
            }
            match self.next().await? {
                Some(piece) => whole.extend_from_slice(&piece),
                None => return Ok(whole.freeze()),
            }
        }
    }
}

/// The whole of a body of at most `limit` bytes.
///
/// # Errors
/// 413, 408 or 400.
pub(crate) async fn collect(headers: &HeaderMap, body: Body, limit: u64) -> Result<Bytes, Problem> {
    Pieces::new(headers, body, limit)?.collect(limit).await
}

fn over(limit: u64) -> Problem {
    Problem::too_large(format!("at most {limit} bytes are taken here"))
}

/// A JSON body.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        require(&parts.headers, "application/json")?;
        let bytes = collect(&parts.headers, body, JSON_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Problem::invalid(format!("body: {error}")))
    }
}

/// A form's body.
#[derive(Debug)]
pub(crate) struct FormBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for FormBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        require(&parts.headers, "application/x-www-form-urlencoded")?;
        let bytes = collect(&parts.headers, body, 3 * JSON_BYTES_MAX).await?;
        let request = Request::from_parts(parts, Body::from(bytes));
        let form = axum::Form::from_request(request, state).await;
        form.map(|axum::Form(form)| Self(form)).map_err(|error| Problem::invalid(format!("form: {error}")))
    }
}

/// The body's media type, which must be `essence`: a form of another site's page cannot send JSON or
/// DICOM without asking first.
///
/// # Errors
/// 415.
pub(crate) fn require(headers: &HeaderMap, essence: &str) -> Result<MediaType, Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| MediaType::parse(value.to_str().ok()?));
    given
        .filter(|media| media.essence == essence)
        .ok_or_else(|| Problem::media_type(format!("the content type must be {essence}")))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use futures::stream;

    use super::*;

    fn length(bytes: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_LENGTH, bytes.parse().expect("a value"))])
    }

    fn streamed(pieces: usize) -> Body {
        Body::from_stream(stream::iter((0..pieces).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(b"0123456789")))))
    }

    #[tokio::test]
    async fn a_declared_length_over_the_limit_is_refused_unread() {
        let unread = Body::from_stream(stream::poll_fn(|_| -> std::task::Poll<Option<std::io::Result<Bytes>>> {
            panic!("the body must not be read")
        }));
        let problem = collect(&length("4000000000"), unread, 100).await.expect_err("too large");
        assert_eq!(problem.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn an_undeclared_length_is_stopped_at_the_limit() {
        assert_eq!(collect(&HeaderMap::new(), streamed(10), 100).await.expect("fits").len(), 100);
        for (pieces, limit) in [(11, 100), (usize::MAX, 100), (1, 9), (2, 19)] {
            let problem = collect(&HeaderMap::new(), streamed(pieces), limit).await.expect_err("too large");
            assert_eq!(problem.status(), StatusCode::PAYLOAD_TOO_LARGE, "{pieces}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_pauses_is_given_up() {
        let silent = Body::from_stream(stream::pending::<std::io::Result<Bytes>>());
        let problem = collect(&HeaderMap::new(), silent, 100).await.expect_err("too slow");
        assert_eq!(problem.status(), StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
        let dripping = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let started = Instant::now();
        let problem = collect(&HeaderMap::new(), Body::from_stream(dripping), 100).await.expect_err("too slow");
        assert_eq!(problem.status(), StatusCode::REQUEST_TIMEOUT);
        assert!(started.elapsed() <= WHOLE_MIN + Duration::from_secs(1));
    }

    #[test]
    fn a_form_is_no_json() {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, "text/plain".parse().expect("a value"))]);
        assert_eq!(
            require(&headers, "application/json").expect_err("refused").status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        );
        assert!(require(&HeaderMap::new(), "application/json").is_err());
        let headers =
            HeaderMap::from_iter([(header::CONTENT_TYPE, "application/JSON; charset=utf-8".parse().expect("a value"))]);
        assert!(require(&headers, "application/json").is_ok());
    }
}
