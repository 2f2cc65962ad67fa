//! The command line's way to the local node: HTTP/1.1 over the unix socket in its data directory.
//!
//! A request has a connection of its own: they are cheap on one machine, and a broken one then never
//! concerns another request. A command (anything that changes something) carries an
//! `Idempotency-Key`; when its outcome is uncertain it is repeated once under the same key, which the
//! node answers with the first outcome.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming as Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use uuid::Uuid;

use crate::config::Config;
use crate::data_dir::DataDir;

mod error;
mod incoming;
mod url;

pub(crate) use error::{ClientError, Problem};
pub(crate) use incoming::Incoming;
pub(crate) use url::{segment, with_query};

/// What a request sends.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// The node gives up on a command after 10 s by itself; beyond this it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Sending, checking and syncing the largest instance on a slow disk, or verifying a large study.
const LONG_TIMEOUT: Duration = Duration::from_secs(900);
/// Between an uncertain command and its repetition: time for a node to come back to its socket.
const REPEAT_PAUSE: Duration = Duration::from_millis(500);
/// Largest JSON answer that is read, in bytes: 1,000 exams have about 1 MB.
const ANSWER_LEN_MAX: usize = 64 << 20;
/// How much of an error that is no problem document is shown, in characters.
const ERROR_TEXT_MAX: usize = 300;

/// Reaches the node of one data directory.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    root: PathBuf,
}

impl Client {
    /// The node of the configured data directory, running or not.
    ///
    /// # Errors
    /// [`ClientError::Path`] when no socket can be there.
    pub(crate) fn local(config: &Config) -> Result<Self, ClientError> {
        let dir = DataDir::at(&config.node.data_dir);
        Ok(Self { socket: dir.control_socket()?, root: dir.root().to_owned() })
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(request(Method::GET, path), None, ANSWER_TIMEOUT).await
    }

    /// Reads JSON that takes long to make.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn get_long(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(request(Method::GET, path), None, LONG_TIMEOUT).await
    }

    /// Asks for work that changes no replicated state and may take long.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn post_long(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(request(Method::POST, path), None, LONG_TIMEOUT).await
    }

    /// Sends a command, and repeats it once when its outcome is uncertain.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when it stays uncertain, else [`ClientError`].
    pub(crate) async fn command(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        command_id: Uuid,
    ) -> Result<Value, ClientError> {
        let send = async || {
            let mut builder = keyed(request(method.clone(), path), command_id);
            if body.is_some() {
                builder = builder.header(CONTENT_TYPE, "application/json");
            }
            let body = body.map(|body| full(Bytes::from(body.to_string())));
            self.ask(builder, body, ANSWER_TIMEOUT).await
        };
        repeat_if_uncertain(command_id, send).await
    }

    /// Sends a file of `len` bytes; `body` makes its content anew for each attempt.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub(crate) async fn upload(
        &self,
        path: &str,
        content_type: &str,
        len: u64,
        body: impl Fn() -> RequestBody,
    ) -> Result<Value, ClientError> {
        let command_id = Uuid::new_v4();
        let send = async || {
            let builder = keyed(request(Method::POST, path), command_id);
            let builder = builder.header(CONTENT_TYPE, content_type).header(CONTENT_LENGTH, len);
            self.ask(builder, Some(body()), LONG_TIMEOUT).await
        };
        repeat_if_uncertain(command_id, send).await
    }

    /// Asks for an answer that is read as it comes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn stream(&self, method: Method, path: &str, accept: &str) -> Result<Incoming, ClientError> {
        let request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
        let (response, sender) = self.send(request, None, LONG_TIMEOUT).await?;
        let content_type = content_type(&response);
        if !response.status().is_success() {
            let status = response.status();
            return Err(refusal(status, &content_type, &read_all(response.into_body()).await?));
        }
        Ok(Incoming::new(response.into_body(), content_type, sender))
    }

    async fn ask(
        &self,
        request: hyper::http::request::Builder,
        body: Option<RequestBody>,
        timeout: Duration,
    ) -> Result<Value, ClientError> {
        let (response, _sender) = self.send(request, body, timeout).await?;
        let (status, content_type) = (response.status(), content_type(&response));
        let answer = tokio::time::timeout(timeout, read_all(response.into_body())).await;
        let bytes = answer.map_err(|_| ClientError::Silent(timeout.as_secs()))??;
        if !status.is_success() {
            return Err(refusal(status, &content_type, &bytes));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Unreadable(error.to_string()))
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Option<RequestBody>,
        timeout: Duration,
    ) -> Result<(Response<Body>, SendRequest<RequestBody>), ClientError> {
        let body = body.unwrap_or_else(|| full(Bytes::new()));
        let request = request.header(HOST, "localhost").body(body);
        let request = request.map_err(|error| ClientError::Unreadable(format!("request: {error}")))?;
        let mut sender = self.connect().await?;
        match tokio::time::timeout(timeout, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok((response, sender)),
            Ok(Err(error)) => Err(ClientError::Broken(reason(&error))),
            Err(_) => Err(ClientError::Silent(timeout.as_secs())),
        }
    }

    async fn connect(&self) -> Result<SendRequest<RequestBody>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            // A killed node leaves its socket: connecting is then refused.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(self.root.clone()),
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.root.clone()),
            _ => ClientError::Broken(error.to_string()),
        })?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| ClientError::Broken(reason(&error)))?;
        // It ends with the sender; its errors also reach whoever waits for the answer.
        maillage_host::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = reason(&error), "connection to the node ended");
            }
        });
        Ok(sender)
    }
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header(ACCEPT, "application/json, application/problem+json")
}

fn keyed(builder: hyper::http::request::Builder, command_id: Uuid) -> hyper::http::request::Builder {
    builder.header("idempotency-key", command_id.to_string())
}

fn full(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

async fn repeat_if_uncertain(
    command_id: Uuid,
    send: impl AsyncFn() -> Result<Value, ClientError>,
) -> Result<Value, ClientError> {
    match send().await {
        Err(error) if error.is_uncertain() => tracing::info!(%command_id, %error, "repeating the command"),
        settled => return settled,
    }
    tokio::time::sleep(REPEAT_PAUSE).await;
    match send().await {
        // Not running now: but the first attempt may have reached it.
        Err(error) if error.is_uncertain() || matches!(error, ClientError::NotRunning(_)) => {
            Err(ClientError::Unknown { command_id, reason: error.to_string() })
        }
        settled => settled,
    }
}

fn content_type(response: &Response<Body>) -> String {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

async fn read_all(body: Body) -> Result<Bytes, ClientError> {
    let collected = Limited::new(body, ANSWER_LEN_MAX).collect().await;
    Ok(collected.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes())
}

fn refusal(status: StatusCode, content_type: &str, body: &[u8]) -> ClientError {
    let problem = content_type.contains("json").then(|| serde_json::from_slice::<Problem>(body).ok()).flatten();
    ClientError::Refused(problem.unwrap_or_else(|| Problem {
        title: format!("the node answered {status}"),
        status: status.as_u16(),
        detail: String::from_utf8_lossy(body).trim().chars().take(ERROR_TEXT_MAX).collect(),
        ..Problem::default()
    }))
}

/// hyper's errors say what failed, their sources say why.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
