//! A kept-alive HTTP/1.1 connection: the same client code for every server that is measured.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        drop(maillage_host::spawn(connection));
        Ok(Self { sender, host: to.to_string() })
    }

    /// One request; the status and the whole body.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(u16, Bytes)> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status().as_u16();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    /// POST; the body of a success.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let (status, answer) = self.send(Method::POST, path, body).await?;
        ensure!((200..300).contains(&status), "{path}: {status} {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }
}

/// GET on a connection of its own; `None` unless it succeeds with JSON.
pub(crate) async fn get(to: SocketAddr, path: &str) -> Option<Value> {
    let mut client = Client::connect(to).await.ok()?;
    let (status, body) = client.send(Method::GET, path, Bytes::new()).await.ok()?;
    if (200..300).contains(&status) { serde_json::from_slice(&body).ok() } else { None }
}

/// Whether a GET succeeds, whatever it says.
pub(crate) async fn answers(to: SocketAddr, path: &str) -> bool {
    let Ok(mut client) = Client::connect(to).await else { return false };
    client.send(Method::GET, path, Bytes::new()).await.is_ok_and(|(status, _)| status == 200)
}
