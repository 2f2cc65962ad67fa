//! Sends the audit trail to a syslog server, at least once, from a place that survives restarts.
//!
//! Neither of the transports acknowledges a message, so that the place is moved on only when a connection
//! has stayed open for a while after what was handed to it: what was on its way when the server went away
//! is sent again. Every node holds the whole trail, and sends the whole trail: one site that does it is
//! enough, two are safer, and a repository tells repeats by the entry's number.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use maillage_host::Disk;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::syslog::{Transport, framed, line};
use super::{Described, Names, Target};
use crate::node::Node;

/// Where the place is kept, in the data directory.
const PLACE: &str = "audit-syslog";
/// What the file says before the index.
const PLACE_PREFIX: &str = "maillage audit syslog 1\n";
/// Entries read at once.
const PAGE: usize = 200;
/// A connection that stays open so long after a message is taken to have delivered it: many round trips.
const SETTLE: Duration = Duration::from_secs(2);
/// A server that takes nothing for so long is left.
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at the connection while there is nothing to send.
const LOOK: Duration = Duration::from_secs(1);
/// Between two attempts to reach the server, at most.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Sends until the node stops.
pub(crate) async fn run(node: Node, disk: Disk, target: Target, shutdown: CancellationToken) {
    let mut pause = LOOK;
    let mut said = String::new();
    loop {
        let before = Instant::now();
        let Some(result) = shutdown.run_until_cancelled(connection(&node, &disk, &target)).await else { return };
        let Err(error) = result;
        // Once for each new reason, not once for each attempt.
        let reason = error.to_string();
        if reason != said {
            tracing::warn!(%target, %error, "the audit trail does not reach its syslog server; it waits");
            said = reason;
        }
        if before.elapsed() > PAUSE_MAX {
            (pause, said) = (LOOK, String::new());
        }
        if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One connection, from the kept place on, until it breaks.
async fn connection(node: &Node, disk: &Disk, target: &Target) -> io::Result<std::convert::Infallible> {
    let mut sent = load(disk).await?;
    let mut wire = timeout(SEND_LIMIT, Wire::connect(target)).await??;
    let mut changes = node.changes();
    let mut settling: VecDeque<(Instant, u64)> = VecDeque::new();
    loop {
        changes.borrow_and_update();
        let page = node.read(|view| {
            let names = Names::read(view)?;
            view.audit(sent, PAGE)?.into_iter().map(|link| Described::new(view, &names, link)).collect()
        });
        let page: Vec<Described> = page?;
        for described in &page {
            let line = line(described, &node.mesh_name(), &node.config().node.name);
            timeout(SEND_LIMIT, wire.send(&line)).await??;
            sent = described.entry().index;
        }
        if !page.is_empty() {
            settling.push_back((Instant::now(), sent));
        }
        wire.look()?;
        let mut settled = None;
        while let Some((_, index)) = settling.front().filter(|(at, _)| at.elapsed() >= SETTLE) {
            settled = Some(*index);
            settling.pop_front();
        }
        if let Some(index) = settled {
            save(disk, index).await?;
        }
        if page.len() < PAGE {
            // Late or ended: the next look finds out.
            let _ = timeout(LOOK, changes.changed()).await;
        }
    }
}

async fn load(disk: &Disk) -> io::Result<u64> {
    match disk.read(PLACE).await {
        Ok(bytes) => parse(&bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{PLACE} in the data directory is damaged"))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn parse(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.strip_prefix(PLACE_PREFIX)?.trim_end().parse().ok()
}

async fn save(disk: &Disk, index: u64) -> io::Result<()> {
    disk.replace(PLACE, Bytes::from(format!("{PLACE_PREFIX}{index}\n"))).await
}

enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Wire {
    async fn connect(target: &Target) -> io::Result<Self> {
        let to = (target.host.as_str(), target.port);
        match target.transport {
            Transport::Tcp => Ok(Self::Tcp(TcpStream::connect(to).await?)),
            Transport::Udp => {
                let server = lookup_host(to).await?.next().ok_or(io::ErrorKind::NotFound)?;
                let any: std::net::IpAddr = match server {
                    std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                    std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a syslog server is no member: it is not on the mesh's port"
                )]
                let socket = UdpSocket::bind((any, 0)).await?;
                socket.connect(server).await?;
                Ok(Self::Udp(socket))
            }
        }
    }

    async fn send(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(&framed(Transport::Udp, line)).await.map(drop),
            Self::Tcp(stream) => stream.write_all(&framed(Transport::Tcp, line)).await,
        }
    }

    /// Notices a server that went away. It has nothing to say, but that.
    fn look(&self) -> io::Result<()> {
        let mut said = [0; 256];
        let looked = match self {
            Self::Udp(socket) => socket.try_recv(&mut said).map(|_| ()),
            Self::Tcp(stream) => match stream.try_read(&mut said) {
                Ok(0) => Err(io::ErrorKind::ConnectionAborted.into()),
                other => other.map(|_| ()),
            },
        };
        match looked {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_place_survives_and_a_damaged_one_is_not_taken_for_the_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Disk::real(directory.path());
        assert_eq!(load(&disk).await.expect("none yet"), 0);
        save(&disk, 4711).await.expect("saved");
        assert_eq!(load(&disk).await.expect("kept"), 4711);
        disk.replace(PLACE, Bytes::from_static(b"maillage audit syslog 1\n47x")).await.expect("damaged");
        assert!(load(&disk).await.is_err());
    }
}
