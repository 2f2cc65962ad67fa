//! Who else uses the line: bare TCP, dcmtk, and a neighbour who sends little and notices every queue.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use maillage_tests::wan::{Wan, address};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::lab::Lab;
use crate::process::{Server, run};
use crate::study::Study;

const WIRE_PORT: u16 = 9100;
const ECHO_PORT: u16 = 9200;
const DICOM_PORT: u16 = 11112;
/// Between two echoes.
const ECHO_PAUSE: Duration = Duration::from_millis(20);
/// An echo that takes longer is lost.
const ECHO_LOST: Duration = Duration::from_secs(1);
const PIECE: usize = 1 << 16;

/// Where Linux says which congestion control TCP has; a namespace may not choose cubic where the kernel has another.
const TCP_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// TCP's congestion control on this machine, without which its figures mean little.
pub(super) fn tcp_control() -> String {
    std::fs::read_to_string(TCP_CONTROL).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Sends so many bytes from the first site to the second: how many came, and in how many seconds from the dial
/// on, at most `limit`.
pub(super) async fn wire(wan: &Arc<Wan>, bytes: u64, limit: Duration) -> anyhow::Result<(u64, f64)> {
    let at = SocketAddr::from((address(1), WIRE_PORT));
    let listener = wan.sites[1].run(async move { TcpListener::bind(at).await }).await??;
    let since = Instant::now();
    let receiver = wan.sites[1].run(async move {
        let (mut stream, _) = listener.accept().await?;
        let (mut piece, mut came) = (vec![0; PIECE], 0);
        while let Ok(read) = timeout(limit.saturating_sub(since.elapsed()), stream.read(&mut piece)).await {
            match read? {
                0 => break,
                len => came += len as u64,
            }
        }
        anyhow::Ok((came, since.elapsed().as_secs_f64()))
    });
    let sender = wan.sites[0].run(async move {
        let mut stream = TcpStream::connect(at).await?;
        let (piece, mut left) = (vec![7; PIECE], bytes);
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            // The receiver goes away at its limit.
            if stream.write_all(&piece[..len]).await.is_err() {
                break;
            }
            left -= len as u64;
        }
        anyhow::Ok(())
    });
    let (received, sent) = tokio::join!(receiver, sender);
    sent??;
    received?
}

/// Seconds until `storescu` at the first site has every slice confirmed by `storescp` at the second.
pub(super) async fn dcmtk(
    lab: &Lab,
    wan: &Arc<Wan>,
    study: &Study,
    storescu: &Path,
    storescp: &Path,
) -> anyhow::Result<f64> {
    let dir = lab.dir("storescp")?;
    let files = dir.path().join("files");
    std::fs::create_dir(&files)?;
    let mut command = Command::new(storescp);
    command.env("TCP_NODELAY", "1").arg("-od").arg(&files).arg(DICOM_PORT.to_string());
    let log = dir.path().join("log");
    let started = async move {
        let mut server = Server::start("storescp", &mut command, &log)?;
        server.ready(async || TcpStream::connect((Ipv4Addr::LOCALHOST, DICOM_PORT)).await.is_ok()).await?;
        anyhow::Ok(server)
    };
    let _server = wan.sites[1].run(started).await??;
    lab.quiet().await?;
    let mut command = Command::new(storescu);
    command.args(["+sd", "+r", &address(1).to_string(), &DICOM_PORT.to_string()]).arg(study.dir());
    command.env("TCP_NODELAY", "1");
    let since = Instant::now();
    wan.sites[0].run(run(command)).await??;
    let seconds = since.elapsed().as_secs_f64();
    let came = std::fs::read_dir(&files)?.count();
    ensure!(came == study.slices.len(), "{came} slices arrived of {}", study.slices.len());
    Ok(seconds)
}

/// Echoes between two sites, until stopped.
pub(super) struct Echoes {
    stop: oneshot::Sender<()>,
    asking: JoinHandle<anyhow::Result<Neighbour>>,
}

/// What somebody saw who sent a small packet now and then.
pub(super) struct Neighbour {
    /// In order of length; those that were lost are not among them.
    trips: Vec<Duration>,
}

impl Echoes {
    /// Starts to send from `near` to `far` and back.
    pub(super) async fn start(wan: &Arc<Wan>, far: usize, near: usize) -> anyhow::Result<Self> {
        let there = SocketAddr::from((address(far), ECHO_PORT));
        let here = SocketAddr::from((address(near), ECHO_PORT));
        let answers = wan.sites[far].run(async move { UdpSocket::bind(there).await }).await??;
        let asks = wan.sites[near].run(async move { UdpSocket::bind(here).await }).await??;
        let (stop, mut stopped) = oneshot::channel();
        let wan = Arc::clone(wan);
        let asking = maillage_host::spawn(async move {
            let answering = wan.sites[far].run(async move {
                let mut bytes = [0; 64];
                while let Ok(Ok((len, from))) = timeout(2 * ECHO_LOST, answers.recv_from(&mut bytes)).await {
                    let _ = answers.send_to(&bytes[..len], from).await;
                }
            });
            let asked = wan.sites[near].run(async move {
                let (mut trips, mut number) = (Vec::new(), 0_u64);
                while stopped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty) {
                    number += 1;
                    let since = Instant::now();
                    asks.send_to(&number.to_be_bytes(), there).await?;
                    let mut bytes = [0; 8];
                    let answer = async {
                        // One that comes late is not taken for the next.
                        while asks.recv(&mut bytes).await.is_ok() && u64::from_be_bytes(bytes) != number {}
                    };
                    if timeout(ECHO_LOST, answer).await.is_ok() {
                        trips.push(since.elapsed());
                    }
                    sleep(ECHO_PAUSE).await;
                }
                trips.sort_unstable();
                anyhow::Ok(Neighbour { trips })
            });
            let (answered, asked) = tokio::join!(answering, asked);
            answered?;
            asked?
        });
        Ok(Self { stop, asking })
    }

    /// Ends it.
    pub(super) async fn stop(self) -> anyhow::Result<Neighbour> {
        let _ = self.stop.send(());
        self.asking.await.context("the neighbour")?
    }
}

impl Neighbour {
    /// A percentile of the round trips, in milliseconds.
    pub(super) fn percentile_ms(&self, percent: usize) -> f64 {
        let at = self.trips.len() * percent / 100;
        self.trips.get(at.min(self.trips.len().saturating_sub(1))).map_or(f64::NAN, |trip| trip.as_secs_f64() * 1e3)
    }
}
