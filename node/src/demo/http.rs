//! A worklist's way to its node: HTTP on loopback.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::http::{MediaType, PartReader, Piece};

/// The node answered with an error.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {detail}")]
pub(super) struct Answered {
    status: u16,
    detail: String,
}

/// The status of an error answer.
pub(super) fn status_of(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<Answered>().map(|answered| answered.status)
}

/// What the node said of an error.
pub(super) fn detail_of(error: &anyhow::Error) -> String {
    error.downcast_ref::<Answered>().map_or_else(|| error.to_string(), |answered| answered.detail.clone())
}

/// Whether the node could not decide, and may a moment later.
pub(super) fn is_unavailable(error: &anyhow::Error) -> bool {
    matches!(status_of(error), Some(503 | 504))
}

/// One request; its body when the answer is a success.
pub(super) async fn request(
    to: SocketAddr,
    method: Method,
    path: &str,
    accept: &str,
    body: Option<&Value>,
) -> anyhow::Result<(String, Bytes)> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    maillage_host::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(HOST, to.to_string()).header(ACCEPT, accept);
    let body = match body {
        Some(body) => {
            request = request.header(CONTENT_TYPE, "application/json");
            Full::new(Bytes::from(body.to_string()))
        }
        None => Full::default(),
    };
    let answer = sender.send_request(request.body(body)?).await?;
    let status = answer.status();
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let body = answer.into_body().collect().await?.to_bytes();
    if status.is_success() {
        return Ok((kind, body));
    }
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let detail = problem["detail"].as_str().or(problem["title"].as_str()).unwrap_or("no detail").to_owned();
    Err(Answered { status: status.as_u16(), detail }.into())
}

/// The parts of a `multipart/related` answer, headers taken off.
pub(super) fn parts(kind: &str, body: &Bytes) -> anyhow::Result<Vec<Bytes>> {
    let media = MediaType::parse(kind).context("the answer's media type")?;
    let mut reader = PartReader::new(&media)?;
    reader.feed(body);
    let mut parts = Vec::new();
    let mut part = BytesMut::new();
    loop {
        match reader.next()? {
            Piece::Part(_) => part.clear(),
            Piece::Content(content) => part.extend_from_slice(&content),
            Piece::PartEnd => parts.push(part.split().freeze()),
            Piece::NeedMore => bail!("the answer ends before its closing boundary"),
            Piece::End => return Ok(parts),
        }
    }
}
