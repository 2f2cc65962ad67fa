//! Connections: accepted in bounded number, each HTTP/1.1 within time limits, until the node stops.
//!
//! A client can hold a connection, never more: headers must come within seconds, bodies may not pause
//! (see `body`), and a client that stops reading its answer is cut off. What cannot be accepted waits
//! in the kernel's queue.

use std::fs::Permissions;
use std::future::Future as _;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Connections at once, for each listener. Each costs a descriptor and some 10 KiB while idle.
const CONNECTIONS_MAX: usize = 512;
/// From the first byte that may come to a request's last header; also how long an idle connection is kept.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a client may take to read something of its answer.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// The most headers of a request. Browsers send about 15.
const HEADERS_MAX: usize = 64;
/// The most bytes of a request's headers, and of one piece of its body.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Between two tries after accepting failed, for lack of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is under way when the node stops is given so long.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Another process answers on it.
    #[error("another process serves {}", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket lies there.
    #[error("{} is in the way: it is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// It could not be made.
    #[error("open {}: {error}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        #[source]
        error: io::Error,
    },
}

/// Opens the control socket, for this user only, in a directory that is this user's only. One that a
/// killed process left behind is replaced.
///
/// # Errors
/// [`BindError`].
pub(crate) async fn bind_control(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |error| BindError::Io { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(BindError::InUse(path.to_owned()));
            }
            #[expect(clippy::disallowed_methods, reason = "a socket's name, not a file of the node's")]
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// The address of the client at the other end of a TCP connection: an extension of each of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Remote(pub IpAddr);

/// Serves `router` on TCP until `shutdown`.
pub(crate) async fn serve_tcp(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let places = Places::new(shutdown);
    while let Some(place) = places.next().await {
        let accepted = tokio::select! {
            () = places.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                let remote = Some(Remote(remote.ip().to_canonical()));
                // Without it small answers wait for acknowledgements; failing to set it breaks nothing.
                let _ = stream.set_nodelay(true);
                maillage_host::spawn(serve(stream, remote, router.clone(), places.shutdown.clone(), place));
            }
            Err(error) => places.pause(&error).await,
        }
    }
    places.emptied().await;
}

/// Serves `router` on the control socket, to this process's user and root, until `shutdown`.
pub(crate) async fn serve_unix(listener: UnixListener, router: Router, shutdown: CancellationToken) {
    let places = Places::new(shutdown);
    while let Some(place) = places.next().await {
        let accepted = tokio::select! {
            () = places.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if may_control(&stream) => {
                maillage_host::spawn(serve(stream, None, router.clone(), places.shutdown.clone(), place));
            }
            Ok(_) => tracing::warn!("control connection of another user refused"),
            Err(error) => places.pause(&error).await,
        }
    }
    places.emptied().await;
}

fn may_control(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// Places for connections.
struct Places {
    free: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Places {
    fn new(shutdown: CancellationToken) -> Self {
        Self { free: Arc::new(Semaphore::new(CONNECTIONS_MAX)), shutdown }
    }

    /// A place for the next connection; `None` when the node stops.
    async fn next(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.free).acquire_owned();
        self.shutdown.run_until_cancelled(place).await?.ok()
    }

    async fn pause(&self, error: &io::Error) {
        tracing::warn!(%error, "accept a connection");
        let _ = self.shutdown.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
    }

    /// Waits for the connections to end, within [`STOP_GRACE`]; those that do not are dropped with
    /// the runtime.
    async fn emptied(&self) {
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        if timeout(STOP_GRACE, self.free.acquire_many(all)).await.is_err() {
            tracing::debug!("some connections did not end in time");
        }
    }
}

/// Serves one connection.
async fn serve<S>(
    stream: S,
    remote: Option<Remote>,
    router: Router,
    shutdown: CancellationToken,
    place: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = TokioIo::new(Unstalled { stream, stalled: None });
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(remote) = remote {
            request.extensions_mut().insert(remote);
        }
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(stream, service)
        // A WebSocket leaves HTTP behind, and its place: it has one among the event streams.
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(STOP_GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "http connection ended");
    }
    drop(place);
}

/// A stream whose writes fail when the other end has taken nothing for [`WRITE_STALL_MAX`].
struct Unstalled<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Unstalled<S> {
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_MAX)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::Body;
    use axum::routing::get;
    use bytes::Bytes;
    use futures::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn serving(router: Router) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        maillage_host::spawn(serve_tcp(listener, router, shutdown.clone()));
        (address, shutdown)
    }

    async fn answer(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(request).await.expect("write");
        let mut answer = Vec::new();
        // A connection that the server resets has said all that it says.
        let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("an end");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn requests_are_answered_and_what_is_no_http_is_closed() {
        let (address, shutdown) = serving(Router::new().route("/", get(async || "here"))).await;
        let good = answer(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n") && good.ends_with("here"), "{good}");
        let dicom = answer(address, b"\x01\x00\x00\x00\x00\xcd\x00\x01\x00\x00ANY-SCP         \r\n\r\n").await;
        assert!(dicom.starts_with("HTTP/1.1 400 "), "{dicom}");
        let headers = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX));
        assert!(answer(address, headers.as_bytes()).await.starts_with("HTTP/1.1 431 "));
        shutdown.cancel();
    }

    #[tokio::test]
    async fn a_body_that_fails_never_looks_whole() {
        let broken = async || {
            let pieces = [Ok(Bytes::from_static(b"some")), Err(io::Error::other("holder lost"))];
            Body::from_stream(stream::iter(pieces))
        };
        let (address, shutdown) = serving(Router::new().route("/", get(broken))).await;
        let cut = answer(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(!cut.ends_with("0\r\n\r\n"), "the last chunk must be missing: {cut}");
        shutdown.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_cut_off() {
        let (near, _far) = tokio::io::duplex(16);
        let mut stream = Unstalled { stream: near, stalled: None };
        stream.write_all(&[0; 16]).await.expect("room");
        let error = stream.write_all(&[0; 16]).await.expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_control_socket_is_private_replaces_a_stale_one_and_never_a_live_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        let listener = bind_control(&path).await.expect("a socket");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(bind_control(&path).await, Err(BindError::InUse(_))));
        drop(listener);
        let listener = bind_control(&path).await.expect("the stale one is replaced");
        let client = UnixStream::connect(&path).await.expect("connect");
        let (server, _) = listener.accept().await.expect("accept");
        assert!(may_control(&server), "our own user may");
        drop(client);
        assert!(matches!(bind_control(directory.path()).await, Err(BindError::NotASocket(_))));
    }
}
