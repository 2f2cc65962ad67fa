//! Calling a configured peer, as the provider of a service class that tells its user of events.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use maillage_dicom::dimse::scu::{Association, ScuTimeouts};
use maillage_dicom::{AeTitle, Uid};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::config::DicomPeer;

/// For the name of a peer to be resolved.
const RESOLVE_MAX: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried: each may take as long as its time-outs.
const ADDRESSES_MAX: usize = 4;

/// Calls a peer at each of its addresses until one takes the association.
///
/// # Errors
/// Its name has no address, or none of them does; why the last did not.
pub(crate) async fn call(
    peer: &DicomPeer,
    ours: &AeTitle,
    contexts: &[(Uid, Vec<Uid>)],
) -> anyhow::Result<Association> {
    let found = timeout(RESOLVE_MAX, lookup_host((peer.host.as_str(), peer.port))).await;
    let found = found.context("name not resolved in time")?.context("resolve the peer's name")?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    call_any(&addresses, ours, &peer.ae_title, contexts).await
}

async fn call_any(
    addresses: &[SocketAddr],
    ours: &AeTitle,
    theirs: &AeTitle,
    contexts: &[(Uid, Vec<Uid>)],
) -> anyhow::Result<Association> {
    let mut failed = anyhow::anyhow!("the peer's name has no address");
    for address in addresses {
        match Association::connect_as_provider(*address, ours, theirs, contexts, ScuTimeouts::default()).await {
            Ok(association) => return Ok(association),
            Err(error) => failed = anyhow::Error::new(error).context(format!("call {address}")),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_address_of_a_peer_is_tried() {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let open = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addresses = [&closed, &open].map(|listener| listener.local_addr().expect("an address"));
        drop(closed);
        let (ours, theirs) = (AeTitle::parse("NODE").expect("a title"), AeTitle::parse("PACS").expect("a title"));
        // It is reached, and leaves without an answer.
        let (called, reached) = tokio::join!(call_any(&addresses, &ours, &theirs, &[]), async {
            let accepted = timeout(Duration::from_secs(20), open.accept()).await;
            accepted.is_ok_and(|accepted| accepted.is_ok())
        });
        assert!(reached);
        let error = format!("{:#}", called.expect_err("nobody answers"));
        assert!(error.starts_with(&format!("call {}", addresses[1])), "{error}");
        assert!(call_any(&[], &ours, &theirs, &[]).await.is_err());
    }
}
