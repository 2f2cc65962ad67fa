//! Real quinn connections, without IO, over a simulated line: their pacer, loss detection and
//! acknowledgements, on a clock of our own.

#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

use std::any::Any;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, ServerConfig, StreamId,
    Transmit, TransportConfig,
};

use crate::congestion::{Congestion, carries_images};

/// Bytes that IP and UDP add to a datagram.
const HEADERS: u64 = 28;
/// The grain of the runtime's timers.
const GRAIN: Duration = Duration::from_millis(1);
/// What a program takes to come back to a timer that is due already.
const SOON: Duration = Duration::from_micros(50);

/// What a direction does to packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) bits_per_s: u64,
    pub(super) delay: Duration,
    /// Up to so much is added, drawn evenly; packets keep their order.
    pub(super) jitter: Duration,
    pub(super) loss: f64,
    /// Bytes that wait.
    pub(super) queue: u64,
}

impl Line {
    /// 50 ms there and back at 100 Mb/s, with a queue of twice what is under way.
    pub(super) fn wan() -> Self {
        let line = Self {
            bits_per_s: 100_000_000,
            delay: Duration::from_millis(25),
            jitter: Duration::ZERO,
            loss: 0.0,
            queue: 0,
        };
        Self { queue: 2 * line.carries(), ..line }
    }

    /// Bytes under way when the line is full and the queue empty.
    pub(super) fn carries(&self) -> u64 {
        self.bits_per_s / 8 * (2 * self.delay).as_millis() as u64 / 1000
    }
}

/// A bottleneck at work.
struct Bottleneck {
    line: Line,
    busy_until: Instant,
    last_due: Instant,
    dropped: u64,
    offered: u64,
    /// The longest wait in its queue, of late.
    wait_most: Duration,
}

impl Bottleneck {
    fn new(line: Line, now: Instant) -> Self {
        Self { line, busy_until: now, last_due: now, dropped: 0, offered: 0, wait_most: Duration::ZERO }
    }

    fn offer(&mut self, now: Instant, len: u64, draw: &mut Draw) -> Option<Instant> {
        self.offered += 1;
        if draw.next() < self.line.loss {
            return None;
        }
        let start = self.busy_until.max(now);
        let waits = start - now;
        if waits.as_secs_f64() * self.line.bits_per_s as f64 / 8.0 + len as f64 > self.line.queue as f64 {
            self.dropped += 1;
            return None;
        }
        self.wait_most = self.wait_most.max(waits);
        self.busy_until = start + Duration::from_secs_f64(len as f64 * 8.0 / self.line.bits_per_s as f64);
        let due = self.busy_until + self.line.delay + self.line.jitter.mul_f64(draw.next());
        self.last_due = due.max(self.last_due);
        Some(self.last_due)
    }
}

/// Even numbers from 0 to 1 (SplitMix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// One side of a flow.
struct Side {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
}

/// Bytes from one side to the other, as many as go.
struct Flow {
    begins: Instant,
    sender: Side,
    receiver: Side,
    stream: Option<StreamId>,
    received: u64,
    congestion: Congestion,
    /// Whether its controller is told that it carries images.
    with_images: bool,
}

/// A packet under way: when, in which order, of which flow, to the receiver, its bytes.
type Packet = Reverse<(Instant, u64, usize, bool, Vec<u8>)>;

/// Flows over one line and back.
pub(super) struct World {
    now: Instant,
    start: Instant,
    there: Bottleneck,
    back: Bottleneck,
    draw: Draw,
    flows: Vec<Flow>,
    packets: BinaryHeap<Packet>,
    number: u64,
    client: ClientConfig,
    server: Arc<ServerConfig>,
}

fn address(flow: usize, is_receiver: bool) -> SocketAddr {
    (Ipv4Addr::new(10, 0, flow as u8, u8::from(is_receiver) + 1), 7400).into()
}

impl World {
    pub(super) fn new(line: Line) -> Self {
        let start = tokio::time::Instant::now().into_std();
        let (client, server) = tls();
        Self {
            now: start,
            start,
            there: Bottleneck::new(line, start),
            // What comes back is small, and has the same delay.
            back: Bottleneck::new(Line { queue: u64::MAX, loss: 0.0, ..line }, start),
            draw: Draw(7),
            flows: Vec::new(),
            packets: BinaryHeap::new(),
            number: 0,
            client,
            server,
        }
    }

    /// A flow that begins then.
    pub(super) fn flow(&mut self, begins: Duration, congestion: Congestion, with_images: bool) {
        let side = |server: Option<Arc<ServerConfig>>, seed: u8| {
            let mut config = EndpointConfig::default();
            config.rng_seed(Some([seed; 32]));
            Side { endpoint: Endpoint::new(Arc::new(config), server, true, None), connection: None }
        };
        let seed = 2 * self.flows.len() as u8;
        self.flows.push(Flow {
            begins: self.start + begins,
            sender: side(None, seed),
            receiver: side(Some(Arc::clone(&self.server)), seed + 1),
            stream: None,
            received: 0,
            congestion,
            with_images,
        });
    }

    /// Changes the line.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Line)) {
        change(&mut self.there.line);
    }

    /// Runs for so long: the bytes that each flow brought meanwhile.
    pub(super) fn run(&mut self, time: Duration) -> Vec<u64> {
        let before: Vec<u64> = self.flows.iter().map(|flow| flow.received).collect();
        (self.there.wait_most, self.there.dropped, self.there.offered) = (Duration::ZERO, 0, 0);
        let end = self.now + time;
        self.begin();
        loop {
            let due = self.packets.peek().map(|Reverse((due, ..))| *due);
            let begins = self.flows.iter().map(|flow| flow.begins).filter(|begins| *begins > self.now).min();
            let timer = self.flows.iter_mut().flat_map(Flow::sides).filter_map(Side::timer).min();
            let grains = |at: Instant| at.saturating_duration_since(self.start).as_micros().div_ceil(GRAIN.as_micros());
            // What is due already is done when time has gone on a little, as on any machine.
            let timer = timer.map(|at| (self.start + GRAIN * grains(at) as u32).max(self.now + SOON));
            let Some(next) = [due, begins, timer].into_iter().flatten().min().filter(|next| *next <= end) else {
                break;
            };
            self.now = next.max(self.now);
            self.begin();
            self.deliver();
            self.drive();
        }
        self.now = end;
        self.flows.iter().zip(before).map(|(flow, before)| flow.received - before).collect()
    }

    /// The part of the line that so many bytes in so long are.
    pub(super) fn share(&self, bytes: u64, time: Duration) -> f64 {
        bytes as f64 * 8.0 / time.as_secs_f64() / self.there.line.bits_per_s as f64
    }

    /// The most that was under way or waiting since the last run began, in what the line carries.
    pub(super) fn most_in_flight(&self) -> f64 {
        1.0 + self.there.wait_most.as_secs_f64() / (2 * self.there.line.delay).as_secs_f64()
    }

    /// The part of what was sent that the full queue dropped.
    pub(super) fn dropped(&self) -> f64 {
        self.there.dropped as f64 / self.there.offered.max(1) as f64
    }

    /// The first flow's controller.
    pub(super) fn controller(&self) -> Box<dyn Any> {
        let (_, connection) = self.flows[0].sender.connection.as_ref().expect("it began");
        connection.congestion_state().clone_box().into_any()
    }

    fn begin(&mut self) {
        for (number, flow) in self.flows.iter_mut().enumerate() {
            if flow.begins > self.now || flow.sender.connection.is_some() {
                continue;
            }
            let mut config = self.client.clone();
            let mut transport = TransportConfig::default();
            transport.congestion_controller_factory(Arc::new(flow.congestion));
            transport.send_window(32 << 20);
            config.transport_config(Arc::new(transport));
            let to = address(number, true);
            let connection = flow.sender.endpoint.connect(self.now, config, to, "line").expect("a connection");
            flow.sender.connection = Some(connection);
        }
        self.drive();
    }

    fn deliver(&mut self) {
        while self.packets.peek().is_some_and(|Reverse((due, ..))| *due <= self.now) {
            let Some(Reverse((_, _, flow, to_receiver, bytes))) = self.packets.pop() else { return };
            let from = address(flow, !to_receiver);
            let flow = &mut self.flows[flow];
            let side = if to_receiver { &mut flow.receiver } else { &mut flow.sender };
            let mut buffer = Vec::new();
            let data = BytesMut::from(&bytes[..]);
            match side.endpoint.handle(self.now, from, None, None, data, &mut buffer) {
                Some(DatagramEvent::ConnectionEvent(_, event)) => {
                    if let Some((_, connection)) = &mut side.connection {
                        connection.handle_event(event);
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = side.endpoint.accept(incoming, self.now, &mut buffer, None);
                    side.connection = Some(accepted.unwrap_or_else(|error| panic!("{:?}", error.cause)));
                }
                Some(DatagramEvent::Response(_)) | None => {}
            }
        }
    }

    fn drive(&mut self) {
        for number in 0..self.flows.len() {
            let flow = &mut self.flows[number];
            flow.write();
            flow.read();
            for to_receiver in [true, false] {
                let flow = &mut self.flows[number];
                let side = if to_receiver { &mut flow.sender } else { &mut flow.receiver };
                for (transmit, bytes) in side.drive(self.now) {
                    let segment = transmit.segment_size.unwrap_or(transmit.size);
                    for packet in bytes.chunks(segment) {
                        let line = if to_receiver { &mut self.there } else { &mut self.back };
                        let len = packet.len() as u64 + HEADERS;
                        if let Some(due) = line.offer(self.now, len, &mut self.draw) {
                            self.number += 1;
                            self.packets.push(Reverse((due, self.number, number, to_receiver, packet.to_vec())));
                        }
                    }
                }
            }
        }
    }
}

impl Side {
    fn timer(&mut self) -> Option<Instant> {
        self.connection.as_mut()?.1.poll_timeout()
    }

    fn drive(&mut self, now: Instant) -> Vec<(Transmit, Vec<u8>)> {
        let mut sent = Vec::new();
        let Some((handle, connection)) = &mut self.connection else { return sent };
        if connection.poll_timeout().is_some_and(|at| at <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        loop {
            let mut bytes = Vec::new();
            let Some(transmit) = connection.poll_transmit(now, 10, &mut bytes) else { break };
            sent.push((transmit, bytes));
        }
        while connection.poll().is_some() {}
        sent
    }
}

impl Flow {
    fn sides(&mut self) -> [&mut Side; 2] {
        [&mut self.sender, &mut self.receiver]
    }

    fn write(&mut self) {
        let Some((_, connection)) = &mut self.sender.connection else { return };
        if connection.is_handshaking() {
            return;
        }
        if self.stream.is_none() {
            if self.with_images {
                carries_images(connection.congestion_state().clone_box());
            }
            self.stream = connection.streams().open(Dir::Uni);
        }
        let Some(stream) = self.stream else { return };
        const CHUNK: &[u8] = &[7; 1 << 16];
        while connection.send_stream(stream).write(CHUNK).is_ok_and(|written| written > 0) {}
    }

    fn read(&mut self) {
        let Some((_, connection)) = &mut self.receiver.connection else { return };
        while connection.streams().accept(Dir::Uni).is_some() {}
        let Some(stream) = self.stream else { return };
        let mut stream = connection.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else { return };
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            self.received += chunk.bytes.len() as u64;
        }
        let _ = chunks.finalize();
    }
}

fn tls() -> (ClientConfig, Arc<ServerConfig>) {
    let made = rcgen::generate_simple_self_signed(["line".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a server");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).expect("a suite")));
    let mut transport = TransportConfig::default();
    transport.stream_receive_window((8_u32 << 20).into());
    transport.receive_window((32_u32 << 20).into());
    server.transport_config(Arc::new(transport));
    let client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).expect("a suite")));
    (client, Arc::new(server))
}
