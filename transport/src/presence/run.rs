//! The task that owns the swarm.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use libp2p::core::Transport as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::TransportError;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, PublishError};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{self, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, mdns, ping};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::behaviour::{Behaviour, BehaviourEvent, topic};
use super::inbox::{Inbox, Judgement};
use super::multiaddr::{from_multiaddr, to_multiaddr};
use super::peers::Peers;
use super::transport::SwarmTransport;
use super::{PresenceConfig, PresenceError, PresenceEvent};
use crate::{Endpoint, Membership};

/// How often it is looked whether a member should be dialled.
const DIAL_CHECK: Duration = Duration::from_millis(500);

/// Presence is worth a connection that carries nothing else.
const IDLE_TIMEOUT: Duration = Duration::from_secs(86_400);

pub(super) struct Running {
    swarm: Swarm<Behaviour>,
    membership: Membership,
    own: PeerId,
    topic: IdentTopic,
    interval: Duration,
    payload: watch::Receiver<Bytes>,
    events: mpsc::Sender<PresenceEvent>,
    peers: Peers,
    inbox: Inbox,
    /// Members whose state the node has not been told yet. Bounded by the members: a later state
    /// replaces an earlier one.
    untold: BTreeMap<PeerId, bool>,
    /// Members that the node was told are connected, or will be.
    told: BTreeSet<PeerId>,
}

impl Running {
    pub(super) fn new(
        endpoint: &Endpoint,
        config: &PresenceConfig,
        payload: watch::Receiver<Bytes>,
        events: mpsc::Sender<PresenceEvent>,
    ) -> Result<Self, PresenceError> {
        let behaviour = Behaviour::new(endpoint.identity(), config)?;
        let transport =
            SwarmTransport::new(endpoint.clone()).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed();
        let settings = swarm::Config::with_executor(|task| drop(maillage_host::spawn(task)))
            .with_idle_connection_timeout(IDLE_TIMEOUT);
        let mut swarm = Swarm::new(transport, behaviour, endpoint.peer_id(), settings);
        let address = endpoint.local_addr().map_err(PresenceError::Listen)?;
        swarm.listen_on(to_multiaddr(address)).map_err(|error| {
            PresenceError::Listen(match error {
                TransportError::MultiaddrNotSupported(address) => {
                    io::Error::new(io::ErrorKind::Unsupported, address.to_string())
                }
                TransportError::Other(error) => error,
            })
        })?;
        Ok(Self {
            swarm,
            membership: endpoint.membership().clone(),
            own: endpoint.peer_id(),
            topic: topic(config),
            interval: config.interval,
            payload,
            events,
            peers: Peers::default(),
            inbox: Inbox::new(config.interval),
            untold: BTreeMap::new(),
            told: BTreeSet::new(),
        })
    }

    /// Runs until the handle or the receiver of events is dropped.
    pub(super) async fn run(mut self) {
        let mut changes = self.membership.changes();
        let mut publish = interval(self.interval);
        publish.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut dial = interval(DIAL_CHECK);
        dial.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let events = self.events.clone();
        self.follow_membership();
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                changed = changes.changed() => match changed {
                    Ok(()) => self.follow_membership(),
                    Err(_) => return,
                },
                _ = publish.tick() => self.publish(),
                _ = dial.tick() => self.dial(),
                changed = self.payload.changed() => if changed.is_err() { return },
                permit = events.reserve(), if !self.untold.is_empty() => {
                    let Ok(permit) = permit else { return };
                    if let Some((peer, is_connected)) = self.untold.pop_first() {
                        permit.send(match is_connected {
                            true => PresenceEvent::Connected { peer },
                            false => PresenceEvent::Disconnected { peer },
                        });
                    }
                }
                () = events.closed() => return,
            }
        }
    }

    fn follow_membership(&mut self) {
        let members: Vec<PeerId> = self.membership.members();
        let allow = &mut self.swarm.behaviour_mut().allow;
        let gone: Vec<PeerId> = allow.allowed_peers().iter().filter(|p| !members.contains(p)).copied().collect();
        for peer in gone {
            allow.disallow_peer(peer);
        }
        for peer in &members {
            allow.allow_peer(*peer);
        }
        let own = self.own;
        self.peers.set(Instant::now(), members.into_iter().filter(|peer| *peer != own));
        self.inbox.retain(|peer| self.membership.is_member(peer));
    }

    fn publish(&mut self) {
        let payload = self.payload.borrow().to_vec();
        if payload.is_empty() {
            return;
        }
        match self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), payload) {
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic) => {}
            Err(error) => tracing::debug!(%error, "presence was not published"),
        }
    }

    fn dial(&mut self) {
        let now = Instant::now();
        for peer in self.peers.due(now) {
            let addresses: Vec<Multiaddr> = self.membership.addresses(&peer).into_iter().map(to_multiaddr).collect();
            if addresses.is_empty() {
                self.peers.dial_failed(now, &peer, rand::random());
                continue;
            }
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(addresses)
                .build();
            match self.swarm.dial(options) {
                // Connected or being dialled already: nothing failed.
                Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
                Err(error) => {
                    tracing::debug!(%peer, %error, "could not dial a member");
                    self.peers.dial_failed(now, &peer, rand::random());
                }
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, num_established, .. } if num_established.get() == 1 => {
                tracing::debug!(peer = %peer_id, "presence connected");
                self.peers.connected(&peer_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "presence disconnected");
                self.peers.disconnected(Instant::now(), &peer_id, rand::random());
                if self.told.remove(&peer_id) {
                    self.untold.insert(peer_id, false);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                tracing::debug!(%peer, %error, "could not connect to a member");
                self.peers.dial_failed(Instant::now(), &peer, rand::random());
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "the swarm's listener failed"),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                self.heard(peer);
                self.offer(PresenceEvent::Rtt { peer, rtt });
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.heard(peer_id);
                if let Some((address, _)) = from_multiaddr(&info.observed_addr) {
                    self.offer(PresenceEvent::Observed { by: peer_id, address });
                }
            }
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.on_message(&propagation_source, &message_id, message);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.on_discovered(peer, &address);
                }
            }
            _ => {}
        }
    }

    /// A peer said something on its connection: now, and not when the handshake seemed done, it counts
    /// as connected.
    fn heard(&mut self, peer: PeerId) {
        if self.peers.heard(&peer) {
            self.inbox.restart(&peer);
            self.told.insert(peer);
            self.untold.insert(peer, true);
        }
    }

    fn on_message(&mut self, from: &PeerId, id: &gossipsub::MessageId, message: gossipsub::Message) {
        let judgement = match message.source {
            Some(author) => {
                let is_member = author != self.own && self.membership.is_member(&author);
                self.inbox.judge(Instant::now(), author, is_member, message.sequence_number, message.data.len())
            }
            None => Judgement::Reject,
        };
        let acceptance = match judgement {
            Judgement::Take => MessageAcceptance::Accept,
            Judgement::Ignore => MessageAcceptance::Ignore,
            Judgement::Reject => MessageAcceptance::Reject,
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, from, acceptance);
        match (judgement, message.source) {
            (Judgement::Take, Some(peer)) => self.offer(PresenceEvent::Payload { peer, payload: message.data.into() }),
            _ => tracing::debug!(peer = %from, ?judgement, "dropped a presence message"),
        }
    }

    fn on_discovered(&mut self, peer: PeerId, address: &Multiaddr) {
        if peer == self.own || !self.membership.is_member(&peer) {
            return;
        }
        if let Some((address, _)) = from_multiaddr(address)
            && self.membership.learn(&peer, address)
        {
            tracing::debug!(%peer, %address, "discovered an address of a member");
            self.peers.address_learned(Instant::now(), &peer);
            self.offer(PresenceEvent::Discovered { peer, address });
        }
    }

    /// Tells the node, unless it is behind: the next measurement comes soon.
    fn offer(&self, event: PresenceEvent) {
        let _ = self.events.try_send(event);
    }
}
