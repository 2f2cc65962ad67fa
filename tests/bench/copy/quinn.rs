//! The peer of a copy: quinn and nothing else, with the settings of the nodes' own connections.
//!
//! A process of its own sends the study's bytes on 8 streams in chunks of 1 MiB; this process takes
//! them, as it would two nodes. The handshake is over before the clock starts.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::version::TLS13;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::own_program;
use crate::ingest::preallocated;
use crate::lab::Lab;
use crate::study::{Study, read_all};

/// The word by which this program is the sender.
pub(crate) const SENDER: &str = "raw-sender";

/// As many as a node asks one holder for at once.
const STREAMS: u8 = 8;
/// The longest chunk of the mesh.
const CHUNK_BYTES: usize = 1 << 20;
/// As in `transport`'s endpoint: windows and socket buffers.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const SEND_WINDOW_BYTES: u64 = 32 << 20;
const SOCKET_BYTES: usize = 4 << 20;
/// Written between two syncs.
const SYNC_BYTES: usize = 8 << 20;
/// Chunks that wait for the disk.
const QUEUED: usize = 8;
const SERVER_NAME: &str = "bench";
const ALPN: &[u8] = b"bench/1";
/// The connection is kept while nodes have their turn.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What is done with what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// It is thrown away.
    Only,
    /// Each chunk is hashed.
    Hash,
    /// Each chunk is hashed and written, with an fdatasync each 8 MiB and at the end.
    HashAndWrite,
}

/// The sender's process and the connection to it.
#[derive(Debug)]
pub(super) struct RawSender {
    connection: Connection,
    bytes: u64,
    _endpoint: Endpoint,
    _process: Killed,
}

#[derive(Debug)]
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl RawSender {
    /// Starts the sender of a study and connects to it.
    pub(super) async fn start(lab: &Lab, study: &Study) -> anyhow::Result<Self> {
        let dir = lab.dir("quinn")?;
        let certificate = dir.path().join("certificate");
        let mut command = own_program()?;
        command.arg(SENDER).arg(study.dir()).arg(&certificate).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Killed(command.spawn()?);
        let stdout = process.0.stdout.take().context("its output")?;
        let port = maillage_host::offload(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line)?;
            Ok(line)
        });
        let port: u16 = port.await?.trim().parse().context("the sender's port")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(std::fs::read(&certificate)?))?;
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(transport());
        let endpoint = endpoint(None)?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let connection = endpoint.connect_with(config, to, SERVER_NAME)?.await?;
        Ok(Self { connection, bytes: study.bytes, _endpoint: endpoint, _process: process })
    }

    /// Seconds for the whole study.
    pub(super) async fn receive(&mut self, lab: &Lab, what: Receive) -> anyhow::Result<f64> {
        let dir = lab.dir("received")?;
        let file = match what {
            Receive::HashAndWrite => {
                let (path, bytes) = (dir.path().join("file"), self.bytes);
                Some(maillage_host::offload(move || preallocated(&path, bytes)).await?)
            }
            Receive::Only | Receive::Hash => None,
        };
        lab.quiet().await?;
        let since = Instant::now();
        let (written, writer) = match file {
            Some(file) => {
                let (tx, rx) = mpsc::channel(QUEUED);
                (Some(tx), Some(maillage_host::spawn(write(file, rx))))
            }
            None => (None, None),
        };
        let mut streams = JoinSet::new();
        for number in 0..STREAMS {
            let stream = take(self.connection.clone(), number, what, written.clone());
            streams.spawn(stream);
        }
        drop(written);
        let mut bytes = 0;
        while let Some(taken) = streams.join_next().await {
            bytes += taken??;
        }
        if let Some(writer) = writer {
            writer.await??;
        }
        let seconds = since.elapsed().as_secs_f64();
        ensure!(bytes == self.bytes, "{bytes} bytes came of {}", self.bytes);
        Ok(seconds)
    }
}

/// Takes every eighth chunk from the `number`th on.
async fn take(
    connection: Connection,
    number: u8,
    what: Receive,
    written: Option<mpsc::Sender<(u64, Bytes)>>,
) -> anyhow::Result<u64> {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&[number]).await?;
    send.finish()?;
    let (mut total, mut position) = (0, u64::from(number));
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let mut len = 0;
        while len < buffer.len() {
            match recv.read(&mut buffer[len..]).await? {
                Some(read) => len += read,
                None => break,
            }
        }
        total += len as u64;
        if what != Receive::Only {
            std::hint::black_box(blake3::hash(&buffer[..len]));
        }
        if let Some(written) = &written {
            written.send((position * CHUNK_BYTES as u64, Bytes::copy_from_slice(&buffer[..len]))).await?;
        }
        if len < buffer.len() {
            return Ok(total);
        }
        position += u64::from(STREAMS);
    }
}

/// Writes chunks where they belong, durably.
async fn write(file: File, mut chunks: mpsc::Receiver<(u64, Bytes)>) -> std::io::Result<()> {
    let file = Arc::new(file);
    let mut open = true;
    while open {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while bytes < SYNC_BYTES {
            let Some((at, chunk)) = chunks.recv().await else {
                open = false;
                break;
            };
            bytes += chunk.len();
            group.push((at, chunk));
        }
        let file = Arc::clone(&file);
        maillage_host::offload(move || {
            for (at, chunk) in group {
                file.write_all_at(&chunk, at)?;
            }
            file.sync_data()
        })
        .await?;
    }
    Ok(())
}

/// Is the sender: reads the study, says its port, and sends to whoever connects until it is killed.
pub(crate) async fn send_raw(mut given: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let (study, certificate) = given.next().zip(given.next()).context("a study and a certificate file")?;
    let bytes = read_all(Path::new(&study))?;
    let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    let endpoint = endpoint(Some(config))?;
    std::fs::write(certificate, made.cert.der())?;
    println!("{}", endpoint.local_addr()?.port());
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.await?;
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let bytes = bytes.clone();
            drop(maillage_host::spawn(async move {
                let mut number = [0];
                recv.read_exact(&mut number).await?;
                let first = usize::from(number[0]);
                for at in (first * CHUNK_BYTES..bytes.len()).step_by(CHUNK_BYTES * usize::from(STREAMS)) {
                    send.write_chunk(bytes.slice(at..bytes.len().min(at + CHUNK_BYTES))).await?;
                }
                send.finish()?;
                anyhow::Ok(())
            }));
        }
    }
    Ok(())
}

/// The nodes' provider: ring, AES-128 first.
fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
    Arc::new(provider)
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.stream_receive_window(STREAM_WINDOW_BYTES.into());
    config.receive_window(CONNECTION_WINDOW_BYTES.into());
    config.send_window(SEND_WINDOW_BYTES);
    Arc::new(config)
}

fn endpoint(server: Option<ServerConfig>) -> std::io::Result<Endpoint> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Endpoint::new(EndpointConfig::default(), server, socket.into(), Arc::new(TokioRuntime))
}
