//! The swarm's side of the port: libp2p's `Transport` over an endpoint that the swarm does not own.
//!
//! It speaks what libp2p-quic speaks (QUIC v1, ALPN `libp2p`, the libp2p certificate, one stream a
//! substream), but the endpoint accepts, admits and bounds the connections before the swarm sees them.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures::future::{BoxFuture, FutureExt as _, ready};
use futures::stream::StreamExt as _;
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use libp2p::core::Endpoint as Role;
use libp2p::core::Transport;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, PeerId};

use super::multiaddr::{from_multiaddr, to_multiaddr};
use super::muxer::Muxer;
use crate::{Accepted, Alpn, Endpoint, Incoming};

type Upgrade = BoxFuture<'static, io::Result<(PeerId, Muxer)>>;
type Event = TransportEvent<Upgrade, io::Error>;

pub(super) struct SwarmTransport {
    endpoint: Endpoint,
    incoming: Accepted,
    listener: Option<ListenerId>,
    /// Tells the interfaces' addresses while the socket is bound to all of them.
    interfaces: Option<IfWatcher>,
    events: VecDeque<Event>,
    /// The swarm, when it was told that there is nothing to do.
    waiting: Option<Waker>,
}

impl SwarmTransport {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        let incoming = endpoint.accept(Alpn::Libp2p);
        Self { endpoint, incoming, listener: None, interfaces: None, events: VecDeque::new(), waiting: None }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// The next change of the interfaces that concerns this socket.
    fn poll_interfaces(&mut self, id: ListenerId, bound: SocketAddr, cx: &mut Context<'_>) -> Poll<Event> {
        let Some(interfaces) = &mut self.interfaces else { return Poll::Pending };
        // `[::]` takes both families, `0.0.0.0` only its own.
        let concerns = |ip: IpAddr| bound.is_ipv6() || ip.is_ipv4();
        let at = |ip: IpAddr| to_multiaddr(SocketAddr::new(ip, bound.port()));
        loop {
            match interfaces.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(IfEvent::Up(net)))) if concerns(net.addr()) => {
                    return Poll::Ready(Event::NewAddress { listener_id: id, listen_addr: at(net.addr()) });
                }
                Poll::Ready(Some(Ok(IfEvent::Down(net)))) if concerns(net.addr()) => {
                    return Poll::Ready(Event::AddressExpired { listener_id: id, listen_addr: at(net.addr()) });
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Event::ListenerError { listener_id: id, error });
                }
                Poll::Ready(None) => {
                    self.interfaces = None;
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Transport for SwarmTransport {
    type Output = (PeerId, Muxer);
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    /// The socket is bound already; this only begins to tell the swarm of it.
    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        if from_multiaddr(&address).is_none() {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        let bound = self.endpoint.local_addr().map_err(TransportError::Other)?;
        if bound.ip().is_unspecified() {
            self.interfaces = Some(IfWatcher::new().map_err(TransportError::Other)?);
        } else {
            self.events.push_back(Event::NewAddress { listener_id: id, listen_addr: to_multiaddr(bound) });
        }
        self.listener = Some(id);
        self.wake();
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        if self.listener != Some(id) {
            return false;
        }
        self.listener = None;
        self.interfaces = None;
        self.events.push_back(Event::ListenerClosed { listener_id: id, reason: Ok(()) });
        self.wake();
        true
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Upgrade, TransportError<io::Error>> {
        // A peer must be named, for nobody else is let in; hole punching is not spoken.
        let Some((to, Some(peer))) = from_multiaddr(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        if to.port() == 0 || to.ip().is_unspecified() || options.role == Role::Listener {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        let endpoint = self.endpoint.clone();
        Ok(async move {
            let connection = endpoint.dial(peer, to, Alpn::Libp2p).await.map_err(io::Error::other)?;
            Ok((peer, Muxer::new(connection)))
        }
        .boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        if let (Some(listener_id), Ok(bound)) = (self.listener, self.endpoint.local_addr()) {
            if let Poll::Ready(event) = self.poll_interfaces(listener_id, bound, cx) {
                return Poll::Ready(event);
            }
            if let Poll::Ready(Some(Incoming { peer, connection, .. })) = self.incoming.poll_recv(cx) {
                return Poll::Ready(Event::Incoming {
                    listener_id,
                    local_addr: to_multiaddr(bound),
                    send_back_addr: to_multiaddr(connection.remote_address()),
                    upgrade: ready(Ok((peer, Muxer::new(connection)))).boxed(),
                });
            }
        }
        self.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}
