//! A centre's side of `mesh-gate/1`: it takes in what gateways send, says what is safe, and gives each gateway
//! the reports of its own hospitals.
//!
//! Who may speak here was decided inside the TLS handshake; which gateway it is, and of which hospitals, is in the
//! replicated state, never in what it says. What a gateway sends goes the way of everything that is received:
//! pre-scan, ingest, fsync, answer.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::ids::{Line, Name, SiteId};
use maillage_consensus::raft::Duplex;
use maillage_transport::frame;
use maillage_transport::{Accepted, Incoming};
use tokio::io::AsyncWrite;
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::wire::{self, ASK_MAX, Ask, CENTRES_MAX, Centre, Hello, REPLY_MAX, Reply, Welcome};
use crate::http::is_cut_off;
use crate::node::Node;

mod feed;
mod safety;
mod take;

/// Time for a question to arrive once its stream is open.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// Time for an answer to be taken.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// A gateway is told this often that its question is being worked at: several times before it gives up.
const TELL: Duration = Duration::from_millis(400);
/// Questions of one gateway at once: its pushes, and a few beside them.
const STREAMS_MAX: usize = 32;
/// Bytes of instances that are received from gateways at once, each in memory as a whole, in units of
/// [`RECEIVED_UNIT`]: half a gigabyte. One that is larger has all of it.
const RECEIVED_UNITS: u32 = 8_192;
/// See [`RECEIVED_UNITS`].
const RECEIVED_UNIT: usize = 64 << 10;
/// A gateway that was not heard for so long is not connected.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
enum DoorError {
    #[error("the question is malformed: {0}")]
    Frame(#[from] wire::FrameError),
    #[error("the question could not be read: {0}")]
    Read(#[from] frame::ReadFrameError),
    #[error("the answer could not be written: {0}")]
    Write(#[from] frame::WriteFrameError),
    #[error("it came or was taken too slowly")]
    Slow,
    #[error("the stream ended too early")]
    Truncated,
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
}

/// A gateway as last heard here.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) hello: Hello,
}

/// The gateways that were heard here. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gates(Arc<Mutex<BTreeMap<SiteId, Heard>>>);

impl Gates {
    fn hear(&self, gateway: SiteId, hello: Hello) {
        let heard = Heard { at: Instant::now(), hello };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(gateway, heard);
    }

    /// What a gateway last said, if it is connected.
    pub(crate) fn heard(&self, gateway: SiteId) -> Option<Heard> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&gateway).filter(|heard| heard.at.elapsed() < HEARD_WITHIN).cloned()
    }
}

/// What answers gateways.
#[derive(Debug)]
pub(crate) struct Door {
    node: Node,
    receiving: Semaphore,
}

impl Door {
    /// The door of a node.
    pub(crate) fn new(node: Node) -> Arc<Self> {
        Arc::new(Self { node, receiving: Semaphore::new(RECEIVED_UNITS as usize) })
    }

    /// Answers one question of a gateway.
    pub(crate) async fn answer(&self, gateway: SiteId, mut stream: Duplex) {
        if let Err(error) = self.converse(gateway, &mut stream).await {
            let reason = match error {
                DoorError::Frame(_) | DoorError::Read(_) => "malformed",
                DoorError::Slow => "timeout",
                DoorError::Write(_) | DoorError::Truncated | DoorError::Io(_) => "broken",
            };
            self.node.metrics().rejected("gate", reason);
            tracing::debug!(gateway = gateway.0, %error, "a gateway's question came to nothing");
        }
    }

    async fn converse(&self, gateway: SiteId, stream: &mut Duplex) -> Result<(), DoorError> {
        let asked = timeout(ASK_DEADLINE, frame::read(&mut stream.reader, ASK_MAX)).await;
        let asked = asked.map_err(|_| DoorError::Slow)??.ok_or(DoorError::Truncated)?;
        let Duplex { reader, writer } = stream;
        let reply = match wire::decode(&asked)? {
            Ask::Hello(hello) => {
                self.node.gates().hear(gateway, hello);
                self.welcome()
            }
            Ask::Offer(offer) => take::take(self, gateway, offer, reader, writer).await?,
            Ask::SenderDone { study } => {
                self.node.ingest().sender_done(study.to_string());
                Reply::Done
            }
            Ask::Safe { items } => telling(writer, safety::judge(&self.node, &items)).await?,
            Ask::Held { references } => telling(writer, safety::held(&self.node, &references)).await?,
            Ask::Time => telling(writer, safety::time(&self.node)).await?,
            Ask::Feed { from } => feed::page(&self.node, gateway, from),
            Ask::Acknowledge { exam, report } => {
                telling(writer, feed::acknowledge(&self.node, gateway, exam, report)).await?
            }
        };
        say(writer, &reply).await?;
        tokio::io::AsyncWriteExt::shutdown(writer).await?;
        Ok(())
    }

    fn welcome(&self) -> Reply {
        let in_touch = !is_cut_off(self.node.age());
        let centres = self.node.read(|view| view.sites()).map(|sites| {
            let centres = sites.into_iter().filter(|site| !site.is_gateway()).map(|site| Centre {
                site: site.id.0,
                name: site.description.name,
                peer: site.description.key.into(),
                addresses: site.description.addresses,
            });
            centres.take(CENTRES_MAX).collect()
        });
        match centres {
            Ok(centres) => Reply::Welcome(Welcome { in_touch, centres }),
            Err(error) => not_now(&error),
        }
    }

    /// The name of a gateway, and of its hospitals; none of a site that is no gateway any more.
    fn gateway_of(node: &Node, gateway: SiteId) -> Result<Option<(Name, Vec<Line>)>, Reply> {
        let site = node.read(|view| view.site(gateway)).map_err(|error| not_now(&error))?;
        Ok(site.and_then(|site| match site.role {
            maillage_consensus::mesh::SiteRole::Gateway { hospitals } => Some((site.description.name, hospitals)),
            maillage_consensus::mesh::SiteRole::Centre => None,
        }))
    }
}

/// Whether what was [here by](super::wire::Offer::here_by) some time was so before a purge. Of equal times either may be first.
fn is_left_over(purged_at: Option<UnixMillisField>, here_by: u64) -> bool {
    purged_at.is_some_and(|UnixMillisField(purged_at)| here_by < purged_at)
}

/// Says why something cannot be done now.
fn not_now(why: &impl std::fmt::Display) -> Reply {
    Reply::NotNow { why: Line::fitted(&why.to_string()) }
}

/// Does `work`, and says meanwhile that it is being done.
async fn telling<T>(writer: &mut (impl AsyncWrite + Unpin), work: impl Future<Output = T>) -> Result<T, DoorError> {
    let mut work = std::pin::pin!(work);
    let mut tell = interval_at(Instant::now() + TELL, TELL);
    loop {
        tokio::select! {
            done = work.as_mut() => return Ok(done),
            _ = tell.tick() => {}
        }
        say(writer, &Reply::Working).await?;
    }
}

async fn say(writer: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> Result<(), DoorError> {
    let bytes = wire::encode(reply)?;
    let written = async {
        frame::write(writer, &bytes, REPLY_MAX).await?;
        tokio::io::AsyncWriteExt::flush(writer).await.map_err(frame::WriteFrameError::Io)
    };
    Ok(timeout(ANSWER_DEADLINE, written).await.map_err(|_| DoorError::Slow)??)
}

/// Answers gateways until `shutdown`.
pub(crate) async fn serve(mut incoming: Accepted, door: Arc<Door>, shutdown: CancellationToken) {
    while let Some(Some(Incoming { peer, connection, .. })) = shutdown.run_until_cancelled(incoming.recv()).await {
        let Some(gateway) = door.node.roster().gateway(&peer) else {
            connection.close(0_u32.into(), b"not a gateway");
            continue;
        };
        tracing::info!(gateway = gateway.0, remote = %connection.remote_address(), "a gateway is connected");
        let (door, shutdown) = (Arc::clone(&door), shutdown.clone());
        maillage_host::spawn(async move {
            let places = Arc::new(Semaphore::new(STREAMS_MAX));
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
                let Some(Ok((writer, reader))) = shutdown.run_until_cancelled(connection.accept_bi()).await else {
                    break;
                };
                let door = Arc::clone(&door);
                maillage_host::spawn(async move {
                    door.answer(gateway, Duplex { reader: Box::new(reader), writer: Box::new(writer) }).await;
                    drop(place);
                });
            }
        });
    }
}
