//! A gateway's life as a process: from a data directory to a running gateway, and its end. A `kill -9` at any
//! moment is the same as a stop without the courtesy.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::Router;
use bytes::Bytes;
use maillage_dicom::dimse::scp::{ServiceHandler, ServiceRequest, StoreHandler as _, StoreRequest};
use maillage_dicom::dimse::status::{Status, StoreStatus};
use maillage_host::engine::{EngineHome, FjallHome};
use maillage_host::{Clock, Disk};
use maillage_store::{Stats, Store, StoreConfig};
use maillage_transport::{Endpoint, EndpointConfig, Identity, Membership, Socket};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::centres::Saved;
use super::inbox::Inbox;
use super::lines::{Lines, MeshLines};
use super::marks::{Marks, Stamps};
use super::schedule::Schedule;
use super::{Gateway, Parts, centres, inbox, keys, push, safety, spool};
use crate::commitment::{self, Commitments, Teller};
use crate::config::{Config, Settings};
use crate::data_dir::{Locked, MeshFile};
use crate::ingest::{Arrival, Ingest};
use crate::metrics::Metrics;
use crate::senders::Senders;
use crate::{http, scp};

/// Memory for the blocks of the spool's index that are read again and again.
const INDEX_CACHE_BYTES: u64 = 32 << 20;
/// A pack of the spool is small: its room is free again once nothing in it is kept.
const PACK_BYTES: u64 = 128 << 20;

/// The doors of a gateway, bound and not served yet.
pub(crate) struct Doors {
    /// Health, status, STOW-RS.
    pub(crate) http: TcpListener,
    /// C-STORE and storage commitment.
    pub(crate) dicom: TcpListener,
    /// Where the command line reaches it.
    pub(crate) control: PathBuf,
}

/// Runs the gateway of a data directory until `told_to_stop`.
///
/// # Errors
/// When it cannot start.
pub(crate) async fn run(
    config: Config,
    directory: Locked,
    doors: Doors,
    told_to_stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (identity, mesh) = (Identity::from_secret(&directory.identity()?.0), directory.mesh()?);
    let clock = Clock::system();
    let membership = Membership::new(clock.clone());
    let endpoint = EndpointConfig::new(identity, membership, Socket::Udp(config.mesh.listen), clock.clone());
    let endpoint = Endpoint::bind(endpoint)
        .map_err(|error| anyhow::anyhow!(error).context(format!("mesh.listen {}", config.mesh.listen)))?;
    let host = Host {
        disk: Disk::real(directory.root()),
        index: Arc::new(FjallHome::new(directory.index(), INDEX_CACHE_BYTES)),
        clock,
        // Images stop at the reserve; what is dropped is written down first, in half of it.
        spool: StoreConfig {
            reserve_bytes: (config.storage.reserve_mib << 20) / 2,
            pack_bytes: PACK_BYTES,
            ..StoreConfig::default()
        },
        lines: mesh_lines(&endpoint),
    };
    let shutdown = CancellationToken::new();
    let opened = Opened::open(config, mesh, host).await?;
    let gateway = opened.gateway.clone();
    let mut tasks = opened.start(&shutdown);
    tasks.extend(start_doors(&gateway, doors, &shutdown).await?);
    {
        let mesh = gateway.mesh().clone();
        tracing::info!(
            site = mesh.site_id,
            mesh = mesh.mesh_name,
            http = %gateway.config().http.listen,
            dicom = %gateway.config().dicom.listen,
            "gateway is up"
        );
    }
    told_to_stop.await;
    tracing::info!("stopping");
    shutdown.cancel();
    futures::future::join_all(tasks).await;
    endpoint.close().await;
    close(&gateway).await;
    tracing::info!("stopped");
    Ok(())
}

/// Lines over a port.
pub fn mesh_lines(endpoint: &Endpoint) -> Arc<dyn Lines> {
    Arc::new(MeshLines::new(endpoint.clone()))
}

/// What a gateway takes from its machine.
pub struct Host {
    /// Its data directory.
    pub disk: Disk,
    /// Where the index of the spool is kept.
    pub index: Arc<dyn EngineHome>,
    /// Its wall clock.
    pub clock: Clock,
    /// How the spool is laid out on the disk.
    pub spool: StoreConfig,
    /// How it reaches centres.
    pub lines: Arc<dyn Lines>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// A gateway without its process and its ports: what a simulator gives a machine to. Clones share it.
#[derive(Debug, Clone)]
pub struct Node {
    gateway: Gateway,
    dicom: Arc<scp::Port>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Node {
    /// Opens the spool and the feed of a member of a mesh, takes up what is owed, and starts what a gateway does
    /// unasked, until `shutdown`.
    ///
    /// # Errors
    /// When the spool, the commitments or the feed cannot be read.
    pub async fn start(
        settings: Settings,
        mesh: MeshFile,
        host: Host,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let opened = Opened::open(settings.into_config(), mesh, host).await?;
        let gateway = opened.gateway.clone();
        let dicom = scp::Port::new(gateway.ingest().clone(), gateway.metrics().clone());
        gateway.metrics().set_dicom_listening(true);
        Ok(Self { gateway, dicom, tasks: Arc::new(Mutex::new(opened.start(shutdown))) })
    }

    /// Waits for the end of what is under way, once the shutdown token is cancelled, and closes the spool.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        futures::future::join_all(tasks).await;
        close(&self.gateway).await;
    }

    /// The gateway's HTTP, as on its local port.
    pub fn http(&self) -> Router {
        self.gateway.local_router()
    }

    /// Takes in what a C-STORE brought, as the DICOM port does.
    pub async fn c_store(&self, request: StoreRequest, data_set: Bytes) -> StoreStatus {
        self.dicom.store(request, data_set).await
    }

    /// Takes a request for storage commitment, as the DICOM port does.
    pub async fn n_action(&self, request: ServiceRequest) -> Status {
        commitment::Desk::new(self.gateway.commitments().clone()).take(request).await.err().unwrap_or(Status::SUCCESS)
    }

    /// The spool.
    pub fn store(&self) -> &Store {
        self.gateway.store()
    }

    /// Whether a purge that is decided from now on reaches an instance, if it is in the spool.
    pub fn is_within_reach(&self, sop_instance: &str) -> bool {
        let stamp = self.gateway.schedule().named(sop_instance).map(|(_, spooled, _)| spooled.received_at);
        stamp.is_none_or(|stamp| self.gateway.marks().cover(stamp))
    }

    /// Instances in the spool that are not known to be safe; those that no centre takes are left out.
    pub fn unsafe_instances(&self) -> u64 {
        let counts = self.gateway.schedule().counts();
        counts.waiting + counts.in_flight + counts.pushed
    }

    /// Those of them that no centre has yet.
    pub fn unsent_instances(&self) -> u64 {
        let counts = self.gateway.schedule().counts();
        counts.waiting + counts.in_flight
    }
}

async fn close(gateway: &Gateway) {
    if let Err(error) = gateway.store().close().await {
        tracing::error!(%error, "close the spool");
    }
}

/// A gateway that is open, and does nothing yet.
pub(super) struct Opened {
    pub(super) gateway: Gateway,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    inbox: Inbox,
}

impl Opened {
    /// Opens the spool and the feed, and takes up what is owed.
    ///
    /// # Errors
    /// When the spool, the commitments or the feed cannot be read.
    pub(super) async fn open(config: Config, mesh: MeshFile, host: Host) -> anyhow::Result<Self> {
        let Host { disk, index, clock, spool, lines } = host;
        // What is spooled is on its way; only a centre's senders need not wait for the coder.
        let spool = StoreConfig { landing_bytes: 0, ..spool };
        let store = Store::open(disk.clone(), "", index, clock.clone(), spool).await.context("open the spool")?;
        for damage in &store.recovery().damage {
            tracing::error!(pack = %damage.pack, offset = damage.offset, bytes = damage.bytes, "damaged bytes in the spool");
        }
        let commitments = Commitments::open(disk.clone(), clock.clone()).await.context("read commitment")?;
        let inbox = Inbox::open(disk.clone()).await?;
        let (metrics, senders) = (Metrics::of_gateway(), Senders::new(&config));
        let (gather, arrivals) = mpsc::unbounded_channel();
        // The mesh's patient is the centres' to compare. What is coded is decoded again before it is sent.
        let (mesh_patient, may_code) = (Box::new(|_: &str| None), Box::new(|| true));
        let (stamps, marks) =
            (Arc::new(Stamps::new(clock.clone())), Marks::open(&disk).await.context("read spool-marks")?);
        marks.last().into_iter().for_each(|last| stamps.reach(last));
        let stamping = Arc::clone(&stamps);
        let stamping = Clock::from_fn(move || stamping.now());
        let ingest = Ingest::new(store.clone(), stamping, metrics.clone(), senders, gather, mesh_patient, may_code);
        let known = centres::remembered(&mesh.members);
        // What the last process dropped may have left keys.
        let dropped = Mutex::new(store.keys().pending_studies());
        let gateway = Gateway::new(Parts {
            config,
            disk,
            clock,
            stamps,
            store,
            ingest: ingest.clone(),
            metrics,
            commitments,
            lines,
            saved: tokio::sync::Mutex::new(Saved::found(mesh.clone())),
            mesh: Mutex::new(mesh),
            schedule: Mutex::new(Schedule::default()),
            marks: Mutex::new(marks),
            stir: Notify::new(),
            centres: Mutex::new(known),
            introduced: Notify::new(),
            stats: Mutex::new(Stats::default()),
            seen: Mutex::default(),
            dropped,
        });
        gateway.look_at_stats().await;
        gateway.take_up().await.context("read the spool")?;
        let (owed, latest) = {
            let schedule = gateway.schedule();
            (schedule.counts(), schedule.latest())
        };
        latest.into_iter().for_each(|latest| gateway.stamps().reach(latest));
        if owed.waiting > 0 {
            tracing::info!(instances = owed.waiting, bytes = owed.bytes, "the spool holds what is offered again");
        }
        ingest.within(gateway.room());
        ingest.noting_again(gateway.is_past());
        gateway.introduce();
        Ok(Self { gateway, arrivals, inbox })
    }

    /// Starts what a gateway does unasked.
    pub(super) fn start(self, shutdown: &CancellationToken) -> Vec<JoinHandle<()>> {
        let Self { gateway, arrivals, inbox } = self;
        let (done_tx, done) = mpsc::unbounded_channel();
        let teller = Teller {
            commitments: gateway.commitments().clone(),
            clock: gateway.clock().clone(),
            metrics: gateway.metrics().clone(),
            peers: gateway.config().dicom.peers.clone(),
        };
        vec![
            watched(commitment::report(teller, shutdown.clone())),
            watched(spool::run(gateway.clone(), arrivals, done_tx, shutdown.clone())),
            watched(centres::run(gateway.clone(), shutdown.clone())),
            watched(push::run(gateway.clone(), done, shutdown.clone())),
            watched(safety::run(gateway.clone(), shutdown.clone())),
            watched(keys::run(gateway.clone(), shutdown.clone())),
            watched(inbox::run(gateway, inbox, shutdown.clone())),
        ]
    }
}

/// A task whose panic ends the process: a gateway must not look alive without it.
fn watched(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let handle = maillage_host::spawn(task);
    maillage_host::spawn(async move {
        if handle.await.is_err_and(|error| error.is_panic()) {
            tracing::error!("a task of the gateway panicked; the process ends");
            std::process::abort();
        }
    })
}

/// Tasks that speak with the hospital's own people and machines.
async fn start_doors(
    gateway: &Gateway,
    doors: Doors,
    shutdown: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let port = scp::Port::new(gateway.ingest().clone(), gateway.metrics().clone());
    let settings = scp::settings(gateway.config())?;
    let (handler, events) = (Arc::clone(&port), Arc::clone(&port));
    let services: Vec<Arc<dyn ServiceHandler>> = vec![commitment::Desk::new(gateway.commitments().clone())];
    let dicom = maillage_dicom::dimse::scp::serve(doors.dicom, settings, handler, services, events, shutdown.clone());
    let control = http::bind_control(&doors.control).await?;
    let tasks = vec![
        watched(async move {
            dicom.await;
        }),
        watched(http::serve_tcp(doors.http, gateway.local_router(), shutdown.clone())),
        watched(http::serve_unix(control, gateway.control_router(), shutdown.clone())),
    ];
    gateway.metrics().set_dicom_listening(true);
    Ok(tasks)
}
