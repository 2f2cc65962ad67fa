//! A node's life: from a data directory to a running process, and its end.
//!
//! Start: lock the directory, open the images, bind the port, join the Raft group, then open the
//! doors (DICOM, HTTP, command line). Stop: close the doors, let what is under way end, stop Raft,
//! close the store. A `kill -9` at any moment is the same as a stop without the courtesy.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use maillage_consensus::ids::SiteId;
use maillage_consensus::raft::{Group, GroupConfig, LogError, StartError, Timing};
use maillage_consensus::{Queue, View};
use maillage_host::engine::FjallHome;
use maillage_host::{Clock, Disk};
use maillage_store::{Store, StoreConfig};
use maillage_transport::chunk::{self, Limits};
use maillage_transport::fetch::{ChunkFault, Fetcher};
use maillage_transport::presence::{Presence as Swarm, PresenceConfig};
use maillage_transport::{Alpn, Endpoint, EndpointConfig, Identity, Membership, Socket};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::data_dir::{DataDir, MeshFile};
use crate::exit::{ExitCode, Failure};
use crate::images::{Images, StoreSource};
use crate::ingest::{Arrival, Ingest};
use crate::links::MeshLinks;
use crate::metrics::Metrics;
use crate::node::{Node, Parts};
use crate::presence::Presence;
use crate::roster::Roster;
use crate::{copies, duties, founding, gather, http, joining, links, scp};

/// Memory for the blocks of the replicated state that are read again and again.
const STATE_CACHE_BYTES: u64 = 64 << 20;
/// … and of the chunk index.
const INDEX_CACHE_BYTES: u64 = 32 << 20;
/// Faults of holders that wait to be counted.
const FAULTS_QUEUE: usize = 256;
/// A successor that does not take over by then is not waited for.
const HAND_OVER: Duration = Duration::from_secs(1);
/// What is under way when the node stops is given so long.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Runs the node of `config`'s data directory until it is told to stop.
///
/// # Errors
/// When it cannot start, or has to stop because it can no longer be trusted with data.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let (node, doors) = open(config, &shutdown).await?;
    let mut tasks = JoinSet::new();
    start_mesh(&node, doors.mesh, &mut tasks, &shutdown)?;
    founding::found(&node).await.context("found the mesh")?;
    start_doors(&node, doors.local, &mut tasks, &shutdown).await?;
    tracing::info!(
        site = node.site().0,
        mesh = node.mesh_name(),
        http = %node.config().http.listen,
        dicom = %node.config().dicom.listen,
        listen = %node.config().mesh.listen,
        "node is up"
    );
    let end = wait_for_end(&node).await;
    shutdown.cancel();
    stop(&node, tasks).await;
    end
}

/// What `open` prepared and the tasks take over.
struct Doors {
    mesh: MeshDoors,
    local: LocalDoors,
}

struct MeshDoors {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    faults: mpsc::Receiver<ChunkFault>,
    presence: Presence,
}

struct LocalDoors {
    http: TcpListener,
    dicom: TcpListener,
}

async fn open(config: Config, shutdown: &CancellationToken) -> anyhow::Result<(Node, Doors)> {
    let directory = DataDir::open(&config.node.data_dir)?;
    let identity = Identity::from_secret(&directory.identity()?.0);
    let mesh = directory.mesh()?;
    let mesh_id = mesh_id_of(&mesh)?;
    // A port that is taken is said before anything else is touched.
    let local = LocalDoors {
        http: bind(config.http.listen, "http.listen").await?,
        dicom: bind(config.dicom.listen, "dicom.listen").await?,
    };
    let clock = Clock::system();
    let metrics = Metrics::new();
    let disk = Disk::real(directory.root());
    let store = open_store(&config, &disk, &directory, &clock).await?;

    let membership = Membership::new(clock.clone());
    let roster = Roster::remembered(SiteId(mesh.site_id), membership.clone(), &mesh.members);
    let endpoint = Endpoint::bind(EndpointConfig::new(
        identity.clone(),
        membership,
        Socket::Udp(config.mesh.listen),
        clock.clone(),
    ))
    .map_err(|error| anyhow::anyhow!(error).context(format!("mesh.listen {}", config.mesh.listen)))?;

    let group = start_group(&config, &mesh, mesh_id, disk, &directory, &endpoint, &roster, &clock).await?;
    if mesh.has_log && !group.is_initialized().await {
        // A site that forgot its votes and acknowledgements could make the mesh lose what it acknowledged.
        let lost = "the Raft log of this site is gone, and the site must not vote as if it had promised nothing";
        return Err(Failure::new(ExitCode::Refused, lost)
            .with_hint("a wiped disk is a new site: empty the data directory and join under another name")
            .into());
    }
    // Raft may be asked for a vote from its first moment: its door opens with it.
    let raft = endpoint.accept(Alpn::Raft);
    maillage_host::spawn(links::serve(raft, group.clone(), roster.clone(), shutdown.clone()));

    let presence = Presence::default();
    let (faults_tx, faults) = mpsc::channel(FAULTS_QUEUE);
    let fetcher = Fetcher::new(endpoint.clone(), faults_tx);
    let site = SiteId(mesh.site_id);
    let images =
        Images::new(site, store.clone(), group.clone(), roster.clone(), fetcher, presence.clone(), metrics.clone());
    let (gather_tx, arrivals) = mpsc::unbounded_channel();
    let state = group.clone();
    let mesh_patient = Box::new(move |study: &str| {
        let frozen = state.reader().view();
        let part = View::new(&*frozen).study(study).ok()??.parts.into_iter().next()?.part;
        Some((part.says.patient.id, part.says.patient.issuer))
    });
    let ingest = Ingest::new(store.clone(), clock.clone(), metrics.clone(), gather_tx, mesh_patient);
    let parts = Parts {
        config,
        directory: Arc::new(directory),
        identity,
        mesh,
        mesh_id,
        clock,
        group,
        store,
        endpoint,
        roster,
        presence: presence.clone(),
        images,
        ingest,
        metrics,
    };
    let mesh = MeshDoors { arrivals, faults, presence };
    Ok((Node::new(parts), Doors { mesh, local }))
}

fn mesh_id_of(mesh: &MeshFile) -> anyhow::Result<[u8; 32]> {
    let id = blake3::Hash::from_hex(&mesh.mesh_id).context("mesh.json: mesh_id")?;
    Ok(*id.as_bytes())
}

async fn bind(address: std::net::SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(ExitCode::Error, format!("{setting} {address}: {error}"))
            .with_hint("is another node running here? `maillage config show` names the ports")
            .into()
    })
}

async fn open_store(config: &Config, disk: &Disk, directory: &DataDir, clock: &Clock) -> anyhow::Result<Store> {
    let home = Arc::new(FjallHome::new(directory.index(), INDEX_CACHE_BYTES));
    let settings = StoreConfig { reserve_bytes: config.storage.reserve_mib << 20, ..StoreConfig::default() };
    let store = Store::open(disk.clone(), "", home, clock.clone(), settings).await.context("open the images")?;
    for damage in &store.recovery().damage {
        tracing::error!(pack = %damage.pack, offset = damage.offset, bytes = damage.bytes, "damaged bytes in a pack; the chunks in it will be fetched again");
    }
    Ok(store)
}

#[expect(clippy::too_many_arguments, reason = "called once; a struct would only rename the arguments")]
async fn start_group(
    config: &Config,
    mesh: &MeshFile,
    mesh_id: [u8; 32],
    disk: Disk,
    directory: &DataDir,
    endpoint: &Endpoint,
    roster: &Roster,
    clock: &Clock,
) -> anyhow::Result<Group> {
    let raft = &config.raft;
    let group = Group::start(GroupConfig {
        node_id: mesh.site_id,
        mesh_id,
        epoch: mesh.epoch,
        timing: Timing {
            heartbeat: Duration::from_millis(raft.heartbeat_ms),
            election_min: Duration::from_millis(raft.election_min_ms),
            election_max: Duration::from_millis(raft.election_max_ms),
        },
        keepalive: GroupConfig::KEEPALIVE.min(Duration::from_secs(raft.session_ttl_s) / 5),
        snapshot_every: raft.snapshot_every,
        keep_log: raft.keep_log,
        disk,
        home: Arc::new(FjallHome::new(directory.state(), STATE_CACHE_BYTES)),
        machine: Arc::new(Queue),
        links: Arc::new(MeshLinks::new(endpoint.clone(), roster.clone())),
        clock: clock.clone(),
    });
    group.await.map_err(|error| {
        let corrupt = match &error {
            StartError::Log(log) => matches!(log, LogError::Corrupt { .. }),
            StartError::Gap { .. } => true,
            _ => false,
        };
        let code = if corrupt { ExitCode::Corrupt } else { ExitCode::Error };
        Failure::new(code, format!("start Raft: {error}")).into()
    })
}

/// Tasks that speak with the other sites.
fn start_mesh(
    node: &Node,
    doors: MeshDoors,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let endpoint = node.endpoint();
    let source = Arc::new(StoreSource { store: node.store().clone(), metrics: node.metrics().clone() });
    spawn(tasks, chunk::serve(endpoint.accept(Alpn::Chunk), source, Limits::default()));
    spawn(tasks, joining::serve(endpoint.accept(Alpn::Join), node.clone(), shutdown.clone()));
    spawn(tasks, duties::run(node.clone(), shutdown.clone()));
    spawn(tasks, gather::run(node.clone(), doors.arrivals, shutdown.clone()));
    spawn(tasks, copies::run(node.clone(), shutdown.clone()));
    spawn(tasks, copies::bring_claimed(node.clone(), shutdown.clone()));
    let metrics = node.metrics().clone();
    let mut faults = doors.faults;
    let stopped = shutdown.clone();
    spawn(tasks, async move {
        while let Some(Some(fault)) = stopped.run_until_cancelled(faults.recv()).await {
            metrics.fetch_fault(fault.reason.as_str());
        }
    });
    let settings = PresenceConfig {
        mdns: node.config().mesh.lan_discovery,
        ..PresenceConfig::new(data_encoding::HEXLOWER.encode(&node.mesh_id()))
    };
    let (swarm, events) = Swarm::start(endpoint, &settings)?;
    spawn(tasks, doors.presence.run(swarm, events, node.store().clone(), shutdown.clone()));
    Ok(())
}

/// Tasks that speak with this site's own people and machines.
async fn start_doors(
    node: &Node,
    doors: LocalDoors,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let port = scp::Port::new(node.ingest().clone(), node.metrics().clone());
    let settings = scp::settings(node.config())?;
    spawn(tasks, maillage_dicom::dimse::scp::serve(doors.dicom, settings, port.clone(), port, shutdown.clone()));
    node.metrics().set_dicom_listening(true);

    let control = http::bind_control(&node.control_socket()?).await?;
    let (local, admin) = (http::local_router(node.clone()), http::control_router(node.clone()));
    spawn(tasks, http::serve_tcp(doors.http, local, shutdown.clone()));
    spawn(tasks, http::serve_unix(control, admin, shutdown.clone()));
    Ok(())
}

fn spawn<F>(tasks: &mut JoinSet<()>, task: F)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let handle = maillage_host::spawn(async move { drop(task.await) });
    tasks.spawn(async move {
        // A panic of one task must not leave a node that looks alive without it.
        if handle.await.is_err_and(|error| error.is_panic()) {
            tracing::error!("a task of the node panicked; the process ends");
            std::process::abort();
        }
    });
}

/// Waits for a signal, or for a reason to stop by itself.
async fn wait_for_end(node: &Node) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut status = node.group().watch();
    loop {
        // Looked at before each wait: it may have stopped before anybody listened.
        if let Some(reason) = status.borrow_and_update().fatal.clone() {
            let known = ["corrupt", "unknown command"].iter().any(|sign| reason.contains(sign));
            // A restart would meet the same bytes again: this needs a person.
            let code = if known { ExitCode::Corrupt } else { ExitCode::Error };
            return Err(Failure::new(code, format!("Raft stopped: {reason}")).into());
        }
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            changed = status.changed() => if changed.is_err() {
                return Err(Failure::new(ExitCode::Error, "Raft stopped").into());
            },
        }
    }
}

/// A leader that stops hands over first: the others need not miss it for an election's time.
async fn hand_over(node: &Node) {
    if node.group().leads().is_none() {
        return;
    }
    let status = node.group_status();
    let nearest = status
        .voters
        .iter()
        .filter(|id| **id != node.site().0)
        .filter_map(|id| Some((status.lag.get(id).copied().flatten()?, *id)))
        .min();
    if let Some((_, successor)) = nearest
        && tokio::time::timeout(HAND_OVER, node.group().transfer_leader(successor)).await.is_err()
    {
        tracing::debug!("leadership not handed over in time: the others will elect");
    }
}

async fn stop(node: &Node, mut tasks: JoinSet<()>) {
    tracing::info!("stopping");
    hand_over(node).await;
    let ended = async { while tasks.join_next().await.is_some() {} };
    let serving_ends_with_the_endpoint = async {
        // Chunk serving and presence end with the port.
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.group().shutdown().await;
        node.endpoint().close().await;
    };
    if tokio::time::timeout(STOP_GRACE, async { tokio::join!(ended, serving_ends_with_the_endpoint) }).await.is_err() {
        tracing::warn!("some work did not end in time");
    }
    if let Err(error) = node.store().close().await {
        tracing::error!(%error, "close the images");
    }
    tracing::info!("stopped");
}
