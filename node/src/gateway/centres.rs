//! The centres of the mesh as a gateway sees them: each is greeted every second, so that one that is gone is
//! known before anything is lost to it, and each tells where the others are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use maillage_consensus::ids::Name;
use maillage_transport::PeerId;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::ask::{AskError, ask};
use super::wire::{Ask, Centre, Hello, Reply, Welcome};
use super::{Complaints, Gateway};
use crate::data_dir::{MeshFile, MeshFileMember};

/// Between two greetings of a centre.
const GREETING: Duration = Duration::from_secs(1);

/// A centre, and how it was last heard.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) heard: Option<Instant>,
    pub(super) round_trip: Option<Duration>,
    pub(super) in_touch: bool,
}

/// What `mesh.json` says, and what became of writing it.
#[derive(Debug)]
pub(super) struct Saved {
    /// None while it may be either of two.
    mesh: Option<MeshFile>,
    complaints: Complaints,
}

impl Saved {
    /// The file as it was read.
    pub(super) fn found(mesh: MeshFile) -> Self {
        Self { mesh: Some(mesh), complaints: Complaints::default() }
    }
}

/// The centres that `mesh.json` remembers.
pub(super) fn remembered(members: &[MeshFileMember]) -> BTreeMap<u64, Known> {
    let known = members.iter().filter_map(|member| {
        let known = Known {
            name: member.name.clone(),
            peer: member.peer_id.parse().ok()?,
            addresses: member.addresses.clone(),
            heard: None,
            round_trip: None,
            in_touch: false,
        };
        Some((member.site_id, known))
    });
    known.collect()
}

impl Gateway {
    pub(super) fn centres(&self) -> MutexGuard<'_, BTreeMap<u64, Known>> {
        self.0.centres.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the port reach the centres that are known, and images go to those of them that the configuration names.
    pub(super) fn introduce(&self) {
        let centres = self.centres();
        let config = &self.config().gateway;
        let home = centres.iter().find(|(_, known)| known.name == config.home).map(|(site, _)| *site);
        let named = centres.iter().filter(|(_, known)| config.centres.contains(&known.name)).map(|(site, _)| *site);
        // With names that nobody has, none: images wait rather than lie where they must not.
        let only = (!config.centres.is_empty()).then(|| named.collect());
        let reached = centres.iter().map(|(site, known)| (*site, (known.peer, known.addresses.clone()))).collect();
        drop(centres);
        {
            let mut schedule = self.schedule();
            schedule.set_home(home);
            schedule.set_only(only);
        }
        for name in self.unknown_centres() {
            tracing::warn!(centre = name, "gateway.centres names it, and no centre of the mesh has this name");
        }
        self.lines().know(reached);
        self.0.introduced.notify_one();
    }

    /// The names in `gateway.centres` that no centre of the mesh has.
    pub(super) fn unknown_centres(&self) -> Vec<&str> {
        let centres = self.centres();
        let is_unknown = |name: &&String| centres.values().all(|known| known.name != **name);
        self.config().gateway.centres.iter().filter(is_unknown).map(String::as_str).collect()
    }

    /// Takes over where the mesh's centres are; those that are not named are members no more.
    async fn learn(&self, told: &[Centre]) {
        let changed = {
            let mut centres = self.centres();
            let mut next = BTreeMap::new();
            for one in told {
                let Ok(peer) = PeerId::from_bytes(&one.peer) else { continue };
                let heard = centres.get(&one.site).filter(|known| known.peer == peer);
                let known = Known {
                    name: one.name.to_string(),
                    peer,
                    addresses: one.addresses.clone(),
                    heard: heard.and_then(|known| known.heard),
                    round_trip: heard.and_then(|known| known.round_trip),
                    in_touch: heard.is_some_and(|known| known.in_touch),
                };
                next.insert(one.site, known);
            }
            // A centre that names nobody, not even itself, has no state yet.
            let places = |of: &BTreeMap<u64, Known>| -> Vec<_> {
                of.iter().map(|(site, k)| (*site, k.name.clone(), k.peer, k.addresses.clone())).collect()
            };
            let changed = !next.is_empty() && places(&next) != places(&centres);
            if changed {
                *centres = next;
            }
            changed
        };
        if changed {
            self.introduce();
            let members = self
                .centres()
                .iter()
                .map(|(site, known)| MeshFileMember {
                    peer_id: known.peer.to_string(),
                    site_id: *site,
                    name: known.name.clone(),
                    addresses: known.addresses.clone(),
                })
                .collect();
            self.mesh().members = members;
        }
        self.save().await;
    }

    /// Writes the members down, unless the file has them. What cannot be is tried again after the next greeting.
    async fn save(&self) {
        // One at a time: what is learnt while another writes is seen after the next greeting, too.
        let Ok(mut saved) = self.0.saved.try_lock() else { return };
        let mesh = self.mesh().clone();
        if saved.mesh.as_ref() == Some(&mesh) {
            return;
        }
        saved.mesh = None;
        let written = mesh.save(self.disk()).await;
        saved.mesh = saved.complaints.hear("save the members", written).map(|()| mesh);
    }

    fn hello(&self) -> Hello {
        let counts = self.schedule().counts();
        Hello {
            version: Name::fitted(env!("CARGO_PKG_VERSION")),
            waiting: counts.waiting + counts.in_flight + counts.pushed,
            bytes: counts.bytes,
            rejected: counts.rejected,
            free_bytes: self.stats().free,
        }
    }
}

/// Greets all centres until `shutdown`.
pub(super) async fn run(gateway: Gateway, shutdown: CancellationToken) {
    let mut greeted = BTreeSet::new();
    let mut greetings: FuturesUnordered<BoxFuture<'_, u64>> = FuturesUnordered::new();
    loop {
        let known: Vec<u64> = gateway.centres().keys().copied().collect();
        for centre in known {
            if greeted.insert(centre) {
                greetings.push(Box::pin(greet(&gateway, centre)));
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = gateway.0.introduced.notified() => {}
            Some(gone) = greetings.next() => {
                greeted.remove(&gone);
            }
        }
    }
}

/// Greets a centre as long as it is known.
async fn greet(gateway: &Gateway, centre: u64) -> u64 {
    let mut complaints = Complaints::default();
    while gateway.centres().contains_key(&centre) {
        let started = Instant::now();
        let answered = match ask(gateway.lines(), centre, &Ask::Hello(gateway.hello())).await {
            Ok(Reply::Welcome(welcome)) => Ok(welcome),
            Ok(_) => Err(AskError::Unexpected),
            Err(error) => Err(error),
        };
        match complaints.hear("greet a centre", answered) {
            Some(Welcome { in_touch, centres }) => {
                if let Some(known) = gateway.centres().get_mut(&centre) {
                    (known.heard, known.in_touch) = (Some(Instant::now()), in_touch);
                    known.round_trip = Some(started.elapsed());
                }
                gateway.schedule().up(centre, in_touch, Instant::now());
                if in_touch {
                    gateway.learn(&centres).await;
                }
            }
            None => gateway.schedule().down(centre, Instant::now()),
        }
        gateway.stir();
        sleep(GREETING).await;
    }
    gateway.schedule().gone(centre);
    centre
}
