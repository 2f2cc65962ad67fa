//! The receiving side: C-ECHO and C-STORE as a service class provider (PS3.4 annexes A and B), and what
//! a node's service handlers offer besides (PS3.7 section 10).
//!
//! One task accepts, one task a connection does everything else. A connection is a stranger until
//! its A-ASSOCIATE-RQ is read and accepted: strangers are bounded apart from associations, and the
//! oldest stranger gives way to the newest, so silent connections cannot shut out those that speak.
//! Every transfer syntax is accepted as it comes; nothing is transcoded, nothing is stored here.
//!
//! Memory is bounded by one budget for all associations: an instance that finds none left is not
//! read on until there is, and the sender waits in TCP. Within it instances take turns, so that it
//! grows no further than it must.

mod admission;
mod association;
mod budget;
mod config;
mod event;
mod handler;
mod negotiate;
mod reject;
mod service;
mod turns;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use maillage_host::spawn;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::admission::Admission;
use self::budget::Budget;
use self::turns::Turns;

pub use association::SERVICE_LEN_MAX;
pub use config::{AddressRange, AddressRangeError, CalledPolicy, CallingPolicy, KnownPeer, ScpConfig};
pub use event::{Event, EventLine, Events};
pub use handler::{
    AssociationEnd, AssociationInfo, AssociationSummary, BoxFuture, NoEvents, ScpEvents, StoreHandler, StoreRequest,
};
pub use reject::RejectReason;
pub use service::{ServiceAnswer, ServiceHandler, ServiceRequest};

/// Connections over the configured bounds that may exist while they are being turned away.
const LEAVING_MAX: usize = 64;
/// Pause after a failed accept: out of descriptors, most often, which others must free first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections share.
struct Shared {
    config: ScpConfig,
    handler: Arc<dyn StoreHandler>,
    services: Vec<Arc<dyn ServiceHandler>>,
    events: Arc<dyn ScpEvents>,
    admission: Arc<Admission>,
    budget: Budget,
    turns: Turns,
    /// No new associations or messages.
    shutdown: CancellationToken,
    /// The grace is over.
    kill: CancellationToken,
}

/// Serves until `shutdown`; then lets the messages under way finish within
/// [`ScpConfig::shutdown_grace`], aborts the rest, and returns.
///
/// `handler` is asked once for each instance that was received whole, and answers the sender when
/// its future resolves; that future is dropped only when the grace is over. `services` answer for their
/// SOP classes, one operation of an association at a time. `events` is told what to
/// count and to audit.
pub async fn serve(
    listener: TcpListener,
    config: ScpConfig,
    handler: Arc<dyn StoreHandler>,
    services: Vec<Arc<dyn ServiceHandler>>,
    events: Arc<dyn ScpEvents>,
    shutdown: CancellationToken,
) {
    let grace = config.shutdown_grace;
    let connections = Arc::new(Semaphore::new(config.negotiating_max + config.associations_max + LEAVING_MAX));
    let shared = Arc::new(Shared {
        admission: Admission::new(&config),
        budget: Budget::new(config.in_flight_len_max),
        turns: Turns::new(),
        config,
        handler,
        services,
        events,
        shutdown: shutdown.clone(),
        kill: CancellationToken::new(),
    });
    let tasks = TaskTracker::new();
    while let Some((stream, remote)) = accept(&listener, &shutdown).await {
        // Displacing comes before waiting, so there is always someone about to leave.
        let stranger = shared.admission.greet(remote.ip().to_canonical());
        let permit = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            permit = Arc::clone(&connections).acquire_owned() => permit,
        };
        let shared = Arc::clone(&shared);
        drop(spawn(tasks.track_future(async move {
            association::run(shared, stream, remote, stranger).await;
            drop(permit);
        })));
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        shared.kill.cancel();
        tasks.wait().await;
    }
}

async fn accept(listener: &TcpListener, shutdown: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "failed to accept a DICOM connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
