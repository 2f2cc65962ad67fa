//! The accepting side: handshakes within bounds, then each connection to whoever serves its protocol.

use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use tokio::time::timeout;

use super::admission::{Permit, Verdict};
use super::{Direction, GREETING, Incoming, Rejection, Shared, close};
use crate::{Alpn, congestion};

/// Time for a whole handshake. Two round trips over the worst path we serve are under 2 s; a peer that
/// dribbles bytes may not hold a place for longer.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Why an incoming connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("tls could not be set up: {0}")]
    Tls(#[from] crate::tls::TlsError),
    #[error("handshake failed: {0}")]
    Handshake(#[from] quinn::ConnectionError),
    #[error("handshake took too long")]
    TooSlow,
    #[error("connection bears no identity")]
    Unidentified,
}

pub(super) async fn run(shared: Arc<Shared>, base: quinn::ServerConfig) {
    let base = Arc::new(base);
    while let Some(incoming) = shared.quinn.accept().await {
        let address = incoming.remote_address();
        match shared.admission.ask(address.ip(), incoming.remote_address_validated()) {
            Verdict::Proceed(permit) => {
                let (shared, base) = (Arc::clone(&shared), Arc::clone(&base));
                drop(maillage_host::spawn(async move { admit(&shared, &base, incoming, permit).await }));
            }
            Verdict::Retry => {
                // Fails only for an address that is validated, which never gets this verdict.
                let _ = incoming.retry();
            }
            Verdict::Ignore => {
                shared.rejections.count(Rejection::Busy);
                incoming.ignore();
            }
        }
    }
}

async fn admit(shared: &Arc<Shared>, base: &quinn::ServerConfig, incoming: quinn::Incoming, permit: Permit) {
    let address = incoming.remote_address();
    match handshake(shared, base, incoming).await {
        Ok((peer, alpn, connection)) => {
            drop(permit);
            route(shared, peer, alpn, connection).await;
        }
        Err(error) => {
            shared.rejections.count(match error {
                AcceptError::TooSlow => Rejection::TooSlow,
                _ => Rejection::Handshake,
            });
            tracing::debug!(%address, %error, "refused a connection");
        }
    }
}

async fn handshake(
    shared: &Shared,
    base: &quinn::ServerConfig,
    incoming: quinn::Incoming,
) -> Result<(PeerId, Alpn, quinn::Connection), AcceptError> {
    let config = shared.tls.server_from(base)?;
    let connecting = incoming.accept_with(Arc::new(config))?;
    let connection = timeout(HANDSHAKE_DEADLINE, connecting).await.map_err(|_| AcceptError::TooSlow)??;
    let (peer, alpn) = shared.tls.identify(&connection).ok_or(AcceptError::Unidentified)?;
    if alpn == Alpn::Chunk {
        congestion::carries_images(connection.congestion_state());
    }
    Ok((peer, alpn, connection))
}

async fn route(shared: &Arc<Shared>, peer: PeerId, alpn: Alpn, connection: quinn::Connection) {
    let refused = |reason: Rejection, code: close::Code| {
        shared.rejections.count(reason);
        tracing::debug!(%peer, protocol = %alpn, reason = reason.as_str(), "closed a new connection");
        connection.close(code.into(), code.reason());
    };
    // Registered first and asked again after: whoever removes the member in between finds it.
    if !shared.register(peer, alpn, Direction::Inbound, &connection) {
        return refused(Rejection::NotAMember, close::REMOVED);
    }
    let Some(queue) = shared.route(alpn) else {
        return refused(Rejection::NotServed, close::NOT_SERVED);
    };
    if queue.try_send(Incoming { peer, alpn, connection: connection.clone() }).is_err() {
        return refused(Rejection::NotServed, close::NOT_SERVED);
    }
    if alpn.greets() && timeout(HANDSHAKE_DEADLINE, greet(&connection)).await.is_err() {
        connection.close(close::TOO_SLOW.into(), close::TOO_SLOW.reason());
    }
}

/// Tells the dialler that it is admitted. A TLS 1.3 client believes itself connected before the server
/// has looked at its certificate; this byte is the first thing that it can trust.
async fn greet(connection: &quinn::Connection) {
    // An error means that the connection is gone, which its user learns from the connection.
    if let Ok(mut stream) = connection.open_uni().await
        && stream.write_all(&GREETING).await.is_ok()
    {
        let _ = stream.finish();
    }
}
