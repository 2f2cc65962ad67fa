//! A node's life as a process: from a data directory to a running site, and its end.
//!
//! Start: lock the directory, open the images, bind the port, join the Raft group, then open the
//! doors (DICOM, HTTP, command line). Stop: close the doors, let what is under way end, stop Raft,
//! close the store. A `kill -9` at any moment is the same as a stop without the courtesy.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use maillage_consensus::Queue;
use maillage_consensus::raft::{LogError, StartError};
use maillage_dicom::dimse::scp::ServiceHandler;
use maillage_host::engine::FjallHome;
use maillage_host::{Clock, Disk};
use maillage_store::StoreConfig;
use maillage_transport::presence::{Presence as Swarm, PresenceConfig};
use maillage_transport::{Endpoint, EndpointConfig, Identity, Membership, Socket};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::commitment;
use crate::config::{Config, Settings};
use crate::data_dir::{DataDir, Locked};
use crate::exit::{ExitCode, Failure};
use crate::site::{Host, Member, OpenJournalError, Site, StartFailure};
use crate::{dimse, http, scp};

/// Memory for the blocks of the replicated state that are read again and again.
const STATE_CACHE_BYTES: u64 = 64 << 20;
/// … and of the chunk index.
const INDEX_CACHE_BYTES: u64 = 32 << 20;

/// Runs the node of `config`'s data directory until it is told to stop.
///
/// # Errors
/// When it cannot start, or has to stop because it can no longer be trusted with data.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let Opened { _directory, control, site, endpoint, doors } = open(config, &shutdown).await?;
    site.start();
    site.serve_mesh(&endpoint, site.chunks());
    start_presence(&site, &endpoint, &shutdown)?;
    site.found().await?;
    start_doors(&site, doors, control, &shutdown).await?;
    let node = site.node();
    tracing::info!(
        site = site.id(),
        mesh = node.mesh_name(),
        http = %node.config().http.listen,
        dicom = %node.config().dicom.listen,
        listen = %node.config().mesh.listen,
        "node is up"
    );
    let end = wait_for_end(&site).await;
    shutdown.cancel();
    site.stop(endpoint.close()).await;
    end
}

/// What `open` prepared.
struct Opened {
    /// Held until the process ends.
    _directory: Locked,
    /// Where the command line reaches this node.
    control: PathBuf,
    site: Site,
    endpoint: Endpoint,
    doors: Doors,
}

/// Bound, and not served yet.
struct Doors {
    http: TcpListener,
    dicom: TcpListener,
}

async fn open(config: Config, shutdown: &CancellationToken) -> anyhow::Result<Opened> {
    let directory = DataDir::open(&config.node.data_dir)?;
    let control = directory.control_socket()?;
    let identity = Identity::from_secret(&directory.identity()?.0);
    let mesh = directory.mesh()?;
    // A port that is taken is said before anything else is touched.
    let doors = Doors {
        http: bind(config.http.listen, "http.listen").await?,
        dicom: bind(config.dicom.listen, "dicom.listen").await?,
    };
    let clock = Clock::system();
    let membership = Membership::new(clock.clone());
    let socket = Socket::Udp(config.mesh.listen);
    let mut port = EndpointConfig::new(identity.clone(), membership.clone(), socket, clock.clone());
    port.congestion = config.mesh.congestion.into();
    let endpoint = Endpoint::bind(port)
        .map_err(|error| anyhow::anyhow!(error).context(format!("mesh.listen {}", config.mesh.listen)))?;
    let host = Host {
        disk: Disk::real(directory.root()),
        state: Arc::new(FjallHome::new(directory.state(), STATE_CACHE_BYTES)),
        index: Arc::new(FjallHome::new(directory.index(), INDEX_CACHE_BYTES)),
        clock,
        images: StoreConfig { reserve_bytes: config.storage.reserve_mib << 20, ..StoreConfig::default() },
        queue: Arc::new(Queue),
    };
    let member = Member::new(identity, mesh, membership);
    let wires = member.wires(&endpoint);
    let site = Site::open(Settings::from(config), member, host, wires, shutdown.clone()).await.map_err(explain)?;
    site.serve_raft(&endpoint);
    Ok(Opened { _directory: directory, control, site, endpoint, doors })
}

/// A failed start as a sysadmin is told it.
fn explain(failure: StartFailure) -> anyhow::Error {
    let corrupt = match &failure {
        StartFailure::Raft(StartError::Log(log)) => matches!(log, LogError::Corrupt { .. }),
        StartFailure::Raft(StartError::Gap { .. }) => true,
        _ => false,
    };
    match failure {
        StartFailure::LogLost => Failure::new(ExitCode::Refused, failure.to_string())
            .with_hint("a wiped disk is a new site: empty the data directory and join under another name")
            .into(),
        StartFailure::Outbox(OpenJournalError::Damaged { .. }) => {
            Failure::new(ExitCode::Corrupt, failure.to_string()).into()
        }
        StartFailure::Raft(_) => {
            Failure::new(if corrupt { ExitCode::Corrupt } else { ExitCode::Error }, failure.to_string()).into()
        }
        other => other.into(),
    }
}

async fn bind(address: std::net::SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(ExitCode::Error, format!("{setting} {address}: {error}"))
            .with_hint("is another node running here? `maillage config show` names the ports")
            .into()
    })
}

fn start_presence(site: &Site, endpoint: &Endpoint, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let node = site.node();
    let settings = PresenceConfig {
        mdns: node.config().mesh.lan_discovery,
        ..PresenceConfig::new(data_encoding::HEXLOWER.encode(&node.mesh_id()))
    };
    let (swarm, events) = Swarm::start(endpoint, &settings).context("start presence")?;
    site.run(node.presence().clone().run(swarm, events, node.store().clone(), shutdown.clone()));
    Ok(())
}

/// Tasks that speak with this site's own people and machines.
async fn start_doors(site: &Site, doors: Doors, control: PathBuf, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let (node, port) = (site.node(), site.dicom());
    let settings = scp::settings(node.config())?;
    let (handler, events) = (Arc::clone(port), Arc::clone(port));
    let services: Vec<Arc<dyn ServiceHandler>> =
        vec![Arc::new(dimse::Steps::new(node.clone())), commitment::Desk::new(node.commitments().clone())];
    site.run(maillage_dicom::dimse::scp::serve(doors.dicom, settings, handler, services, events, shutdown.clone()));
    site.run(dimse::notify(node.clone(), shutdown.clone()));
    node.metrics().set_dicom_listening(true);

    let control = http::bind_control(&control).await?;
    site.run(http::serve_tcp(doors.http, site.http(), shutdown.clone()));
    site.run(http::serve_unix(control, http::control_router(node.clone()), shutdown.clone()));
    Ok(())
}

/// Waits for a signal, or for a reason to stop by itself.
async fn wait_for_end(site: &Site) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut status = site.group().watch();
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
