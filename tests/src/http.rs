//! A small HTTP/1.1 client: a connection for each request, so that no test rests on keep-alive.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Longer than any time limit inside the node: the node must answer, be it with a refusal.
const DEADLINE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    what: String,
}

/// The node did not answer, or broke off.
#[derive(Debug, Clone)]
pub struct NoAnswer(
    /// Why.
    pub String,
);

/// GET on a site's unix socket, as whoever administers it asks.
///
/// # Errors
/// Without a whole answer.
///
/// # Panics
/// When the path is none.
pub async fn control(socket: &Path, path: &str) -> Result<Answer, NoAnswer> {
    let broken = |error: &dyn std::error::Error| NoAnswer(format!("GET {path}: {error}"));
    let stream = UnixStream::connect(socket).await.map_err(|error| broken(&error))?;
    let request = Request::get(path).header(HOST, "localhost").body(Full::new(Bytes::new())).expect("a path");
    let response = ask(stream, request).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| broken(&error))?.to_bytes();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, what: format!("GET {path}") })
}

/// One request over a connection of its own.
async fn ask<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| NoAnswer(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    drop(maillage_host::spawn(connection));
    sender.send_request(request).await.map_err(broken)
}

/// The HTTP side of a site.
#[derive(Debug, Clone, Copy)]
pub struct Http(
    /// Where it listens.
    pub SocketAddr,
);

impl Http {
    /// A request with these headers, `Host` being the address unless given.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub async fn send(
        self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, NoAnswer> {
        let what = format!("{method} {path} at {}", self.0);
        let failed = |why: String| NoAnswer(format!("{what}: {why}"));
        let whole = async {
            let response = self.open(method, path, headers, body.into()).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| NoAnswer(error.to_string()))?.to_bytes();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            Ok(Answer { status, headers, body, what: what.clone() })
        };
        match timeout(DEADLINE, whole).await {
            Ok(answer) => answer.map_err(|error: NoAnswer| failed(error.0)),
            Err(_) => Err(failed(format!("no answer within {} s", DEADLINE.as_secs()))),
        }
    }

    async fn open(
        self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let broken = |error: &dyn std::error::Error| NoAnswer(error.to_string());
        let stream = TcpStream::connect(self.0).await.map_err(|error| broken(&error))?;
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header(HOST, self.0.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        ask(stream, request.body(Full::new(body)).expect("tests make valid requests")).await
    }

    /// GET.
    ///
    /// # Panics
    /// Without an answer.
    pub async fn get(self, path: &str) -> Answer {
        self.send(&Method::GET, path, &[], Bytes::new()).await.unwrap_or_else(|error| panic!("{}", error.0))
    }

    /// GET of JSON that must be there.
    ///
    /// # Panics
    /// Without such an answer.
    pub async fn json(self, path: &str) -> Value {
        self.get(path).await.expect(200).json()
    }

    /// POST of JSON under a command id of its own.
    ///
    /// # Panics
    /// Without an answer.
    pub async fn post(self, path: &str, body: &Value) -> Answer {
        self.try_post(path, body, None).await.unwrap_or_else(|error| panic!("{}", error.0))
    }

    /// POST of JSON, under this command id if one is given.
    ///
    /// # Errors
    /// Without an answer.
    pub async fn try_post(self, path: &str, body: &Value, id: Option<&str>) -> Result<Answer, NoAnswer> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(id.map(|id| ("idempotency-key", id)));
        self.send(&Method::POST, path, &headers, body.to_string()).await
    }

    /// POST of one DICOM file.
    ///
    /// # Panics
    /// Without an answer.
    pub async fn post_file(self, file: impl Into<Bytes>) -> Answer {
        let headers = [("content-type", "application/dicom")];
        let sent = self.send(&Method::POST, "/api/v1/instances", &headers, file).await;
        sent.unwrap_or_else(|error| panic!("{}", error.0))
    }

    /// Opens a stream of server-sent events.
    ///
    /// # Panics
    /// When there is none.
    pub async fn events(self, path: &str) -> Events {
        self.events_with(path, &[]).await
    }

    /// Opens a stream of server-sent events, with these headers.
    ///
    /// # Panics
    /// When there is none.
    pub async fn events_with(self, path: &str, headers: &[(&str, &str)]) -> Events {
        let opened = timeout(DEADLINE, self.open(&Method::GET, path, headers, Bytes::new())).await;
        let response = opened.expect("events within 30 s").unwrap_or_else(|error| panic!("{path}: {}", error.0));
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        Events { body: response.into_body(), buffer: String::new() }
    }
}

impl Answer {
    /// Itself, if it has this status.
    ///
    /// # Panics
    /// When it has another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {}", self.what, self.text());
        self
    }

    /// Its body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error} in {:?}", self.what, self.text()))
    }

    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// An open stream of server-sent events.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: String,
}

impl Events {
    /// The next event that is no comment, as its lines.
    ///
    /// # Panics
    /// When none comes within `deadline`, or the stream ends.
    pub async fn next(&mut self, deadline: Duration) -> String {
        let next = async {
            loop {
                if let Some(end) = self.buffer.find("\n\n") {
                    let event = self.buffer[..end].to_owned();
                    self.buffer.drain(..end + 2);
                    if !event.starts_with(':') {
                        return event;
                    }
                    continue;
                }
                let frame = self.body.frame().await.expect("the stream goes on").expect("a frame");
                let piece = frame.into_data().unwrap_or_default();
                self.buffer.push_str(std::str::from_utf8(&piece).expect("events are UTF-8"));
            }
        };
        timeout(deadline, next).await.expect("an event in time")
    }
}
