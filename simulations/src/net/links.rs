//! Streams over the fabric, and `Links`: how a node's Raft opens them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use maillage_consensus::raft::{Duplex, Links};

use super::pipe::Pipe;
use super::tap::Direction;
use super::{Connection, Fabric, IDLE, Plane, pair};
use crate::world::{Owner, lock};

/// Between two tries of a handshake.
const HANDSHAKE_RETRY: Duration = Duration::from_millis(200);

/// The links of one life of one node.
pub(crate) struct SimLinks {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) owner: Owner,
    /// From a site's number to its slot.
    pub(crate) slot_of: Box<dyn Fn(u64) -> Option<u32> + Send + Sync>,
}

impl Links for SimLinks {
    fn open(&self, target: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            let to = (self.slot_of)(target).ok_or(io::ErrorKind::NotFound)?;
            self.fabric.open(self.owner, to, Plane::Raft).await
        })
    }
}

impl Fabric {
    /// Opens a stream from a life to a slot, on a connection that is made if there is none.
    pub(crate) async fn open(self: &Arc<Self>, from: Owner, to: u32, plane: Plane) -> io::Result<Duplex> {
        if let Some(stream) = self.open_on_connection(from, to, plane) {
            return Ok(stream);
        }
        self.handshake(from, to).await?;
        self.open_on_connection(from, to, plane).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }

    /// A stream on the connection there is, which may be dead without its ends knowing.
    fn open_on_connection(self: &Arc<Self>, from: Owner, to: u32, plane: Plane) -> Option<Duplex> {
        let mut inner = lock(&self.inner);
        let connection = inner.connections.get(&pair(from.slot, to))?;
        let far = if connection.ends.0 == from {
            connection.ends.1
        } else if connection.ends.1 == from {
            connection.ends.0
        } else {
            return None;
        };
        let connection = connection.id;
        let (there, back) = (inner.next_id + 1, inner.next_id + 2);
        inner.next_id = back;
        inner.pipes.insert(there, Pipe::new((from, far), connection, plane, Some(back), Direction::Request));
        inner.pipes.insert(back, Pipe::new((far, from), connection, plane, None, Direction::Answer));
        drop(inner);
        Some(Duplex { reader: Box::new(self.reader(back, from)), writer: Box::new(self.writer(there, from)) })
    }

    /// Makes a connection: one and a half round trips through both directions of the link.
    async fn handshake(&self, from: Owner, to: u32) -> io::Result<()> {
        let deadline = self.world.now() + IDLE;
        loop {
            let wait = {
                let mut inner = lock(&self.inner);
                let now = self.world.now();
                [(from.slot, to), (to, from.slot), (from.slot, to)].iter().try_fold(Duration::ZERO, |sum, way| {
                    let open = inner.links.get(way).is_some_and(|link| link.cuts == 0);
                    let far = self.world.is_up(to) && inner.doors.contains_key(&to);
                    (open && far).then(|| sum + inner.arrival(now, way.0, way.1, 1200).saturating_sub(now))
                })
            };
            match wait {
                Some(wait) => {
                    tokio::time::sleep(wait).await;
                    if self.connect(from, to) {
                        return Ok(());
                    }
                }
                None => tokio::time::sleep(HANDSHAKE_RETRY).await,
            }
            if self.world.now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn connect(&self, from: Owner, to: u32) -> bool {
        let mut inner = lock(&self.inner);
        let Some(far) = inner.doors.get(&to).map(|(owner, _)| *owner) else { return false };
        if !self.world.is_alive(far) || !self.world.is_alive(from) {
            return false;
        }
        let key = pair(from.slot, to);
        if let Some(there) = inner.connections.get(&key) {
            if [there.ends.0, there.ends.1].contains(&from) && [there.ends.0, there.ends.1].contains(&far) {
                return true;
            }
            // One of a life that is over gives way to the new one.
            let over = there.id;
            self.break_now(&mut inner, over);
        }
        inner.next_id += 1;
        let id = inner.next_id;
        inner.connections.insert(key, Connection { id, ends: (from, far) });
        drop(inner);
        self.world.event(from.slot, format_args!("connected to {to} as {id}"));
        true
    }
}
