//! Paths in memory with a rate, a delay and a queue, by tokio's clock: a test that pauses it measures a busy path
//! exactly, and takes no time.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// What all paths of a wire are like, each towards its receiver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) bytes_per_s: u64,
    pub(crate) delay: Duration,
    /// What may wait; the rest is dropped, as by a router.
    pub(crate) queue_bytes: u64,
}

impl Path {
    /// When a datagram that comes at a time has passed, unless it is dropped. `free_at`: when those before it have.
    fn passes(&self, free_at: &mut Instant, at: Instant, datagram: &[u8]) -> Option<Instant> {
        let took = |bytes: u64| Duration::from_nanos(bytes * 1_000_000_000 / self.bytes_per_s);
        if *free_at > at + took(self.queue_bytes) {
            return None;
        }
        *free_at = (*free_at).max(at) + took(datagram.len() as u64);
        Some(*free_at)
    }
}

/// The ports of a wire.
#[derive(Debug)]
pub(crate) struct Wire {
    path: Path,
    ports: Mutex<BTreeMap<SocketAddr, Port>>,
}

#[derive(Debug)]
struct Port {
    /// When what is on the path towards it has passed.
    free_at: Instant,
    /// The same of what it sends, to whomever, where that has to share a line.
    sent_at: Option<Instant>,
    underway: mpsc::UnboundedSender<(Instant, SocketAddr, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct Inbox {
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    reader: Option<Waker>,
}

impl Wire {
    pub(crate) fn new(path: Path) -> Arc<Self> {
        Arc::new(Self { path, ports: Mutex::default() })
    }

    /// A socket of its own, with a path to each other.
    pub(crate) fn socket(self: &Arc<Self>) -> Arc<dyn AsyncUdpSocket> {
        self.open(None)
    }

    /// A socket whose datagrams share a line of the same rate and queue before their paths.
    pub(crate) fn socket_behind_a_line(self: &Arc<Self>) -> Arc<dyn AsyncUdpSocket> {
        self.open(Some(Instant::now()))
    }

    fn open(self: &Arc<Self>, sent_at: Option<Instant>) -> Arc<dyn AsyncUdpSocket> {
        let mut ports = lock(&self.ports);
        let last = u8::try_from(ports.len() + 1).expect("few ports");
        let address = SocketAddr::from(([10, 0, 0, last], 7400));
        let (underway, mut arriving) = mpsc::unbounded_channel();
        let inbox = Arc::<Mutex<Inbox>>::default();
        ports.insert(address, Port { free_at: Instant::now(), sent_at, underway });
        let arrived = Arc::clone(&inbox);
        drop(maillage_host::spawn(async move {
            while let Some((at, from, datagram)) = arriving.recv().await {
                sleep_until(at).await;
                let mut inbox = lock(&arrived);
                inbox.datagrams.push_back((from, datagram));
                let reader = inbox.reader.take();
                drop(inbox);
                reader.into_iter().for_each(Waker::wake);
            }
        }));
        Arc::new(End { wire: Arc::clone(self), address, inbox })
    }

    fn send(&self, from: SocketAddr, transmit: &Transmit<'_>) {
        let mut ports = lock(&self.ports);
        let mut at = Instant::now();
        if let Some(sent_at) = ports.get_mut(&from).and_then(|port| port.sent_at.as_mut()) {
            let Some(passed) = self.path.passes(sent_at, at, transmit.contents) else { return };
            at = passed;
        }
        let Some(port) = ports.get_mut(&transmit.destination) else { return };
        let Some(passed) = self.path.passes(&mut port.free_at, at, transmit.contents) else { return };
        let _ = port.underway.send((passed + self.path.delay, from, transmit.contents.to_vec()));
    }
}

#[derive(Debug)]
struct End {
    wire: Arc<Wire>,
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
}

impl AsyncUdpSocket for End {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.wire.send(self.address, transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = lock(&self.inbox);
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some((addr, datagram)) = inbox.datagrams.pop_front() else { break };
            let len = datagram.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
            filled += 1;
        }
        if filled == 0 {
            inbox.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(filled))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
