//! One life's socket, as quinn sees it.
//!
//! Sending never blocks: what is too much for a link is dropped at the link, as by a router. Batches are
//! as large as quinn makes them, both ways, and congestion marks pass as they are.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf as _;
use maillage_transport::quinn::udp::{RecvMeta, Transmit};
use maillage_transport::quinn::{AsyncUdpSocket, UdpPoller};

use super::Datagrams;
use crate::world::{Owner, lock};

/// Datagrams in one batch: as many as quinn sends at once (`MAX_TRANSMIT_SEGMENTS` in its 0.11).
const SEGMENTS: usize = 10;

/// See the module.
pub(crate) struct SimSocket {
    network: Arc<Datagrams>,
    owner: Owner,
    address: SocketAddr,
    id: u64,
}

impl SimSocket {
    pub(super) fn new(network: Arc<Datagrams>, owner: Owner, address: SocketAddr, id: u64) -> Self {
        Self { network, owner, address, id }
    }

    /// Fills the buffers with what has arrived: their number, 0 when the reader must wait and will be
    /// woken.
    fn receive(&self, cx: &Context<'_>, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let mut inner = lock(&self.network.inner);
        let Some(port) = inner.ports.get_mut(&self.address).filter(|port| port.id == self.id) else { return 0 };
        let mut filled = 0;
        while let (Some(buffer), Some(meta)) = (buffers.get_mut(filled), metas.get_mut(filled)) {
            let Some((from, batch)) = port.inbox.front_mut() else { break };
            let whole = buffer.len() - buffer.len() % batch.stride.max(1);
            // A batch of one datagram may be shorter than its stride says.
            let fits = if batch.contents.len() <= buffer.len() { batch.contents.len() } else { whole };
            let Some(into) = buffer.get_mut(..fits).filter(|into| !into.is_empty()) else {
                // A kernel would cut it short, and QUIC throw it away.
                port.inbox_bytes -= batch.contents.len();
                port.inbox.pop_front();
                continue;
            };
            batch.contents.copy_to_slice(into);
            *meta = RecvMeta {
                addr: *from,
                len: fits,
                stride: batch.stride.min(fits),
                ecn: batch.ecn,
                dst_ip: Some(self.address.ip()),
            };
            port.inbox_bytes -= fits;
            filled += 1;
            if batch.contents.is_empty() {
                port.inbox.pop_front();
            }
        }
        if filled == 0 && !port.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            let before = port.reader.replace(cx.waker().clone());
            // Dropped without the lock: it may be the last hold of a task and of its socket.
            drop(inner);
            drop(before);
        }
        filled
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.network.send(self.owner, self.address, transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.receive(cx, buffers, metas) {
            0 => Poll::Pending,
            filled => Poll::Ready(Ok(filled)),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut inner = lock(&self.network.inner);
        if inner.ports.get(&self.address).is_some_and(|port| port.id == self.id) {
            let port = inner.ports.remove(&self.address);
            drop(inner);
            drop(port);
        }
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimSocket").field(&self.address).field(&self.owner.incarnation).finish()
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
