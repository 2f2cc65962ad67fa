//! The one UDP socket of a node.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{AsyncUdpSocket, Runtime};

use super::runtime::MeshRuntime;

/// Kernel buffer asked for in each direction. Bursts of a 32 MiB window overrun the usual 208 KiB, and
/// each lost burst costs a congestion window.
const BUFFER_BYTES: usize = 4 << 20;

/// Where the endpoint's datagrams go.
#[derive(Clone)]
pub enum Socket {
    /// A UDP socket bound to this address. `[::]` takes IPv4 as well.
    Udp(SocketAddr),
    /// A socket made by somebody else: a simulator's.
    Abstract(Arc<dyn AsyncUdpSocket>),
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => f.debug_tuple("Udp").field(address).finish(),
            Self::Abstract(socket) => f.debug_tuple("Abstract").field(socket).finish(),
        }
    }
}

impl Socket {
    pub(super) fn open(self) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        match self {
            Self::Udp(address) => MeshRuntime.wrap_udp_socket(bind(address)?),
            Self::Abstract(socket) => Ok(socket),
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Too large a wish is cut by the kernel in silence on Linux and refused elsewhere: ask, then look.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive.min(send) < BUFFER_BYTES / 2 {
        tracing::warn!(
            asked_bytes = BUFFER_BYTES,
            receive_bytes = receive,
            send_bytes = send,
            "the kernel grants small UDP buffers; raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
