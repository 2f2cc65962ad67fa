//! The TLS of every plane: TLS 1.3 only, both sides authenticated, the membership asked inside the
//! handshake.
//!
//! rustls tells a client-certificate verifier nothing of the protocol that was negotiated, and a guest
//! may speak one protocol only. So each incoming connection gets a [`Gate`] of its own, which sees the
//! ClientHello as certificate resolver and the peer's certificate as verifier. Sessions are never
//! resumed: a resumed session skips the verifier, and a removed member would walk in on an old ticket.

use std::sync::{Arc, Mutex, PoisonError};

use libp2p::PeerId;
use maillage_host::Clock;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};

use crate::certificate::{self, PeerCertificate};
use crate::{Alpn, Identity, Membership};

/// The server name that a client must give to rustls; it is not sent and not checked.
pub(crate) const SERVER_NAME: &str = "mesh.invalid";

/// Why the TLS of an endpoint could not be set up. None of it depends on a peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// rustls refused the configuration.
    #[error("tls configuration was refused: {0}")]
    Rustls(#[from] rustls::Error),
    /// The provider lacks the cipher of QUIC's first packets.
    #[error("no cipher suite for initial packets: {0}")]
    InitialSuite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// What all connections of an endpoint share.
#[derive(Debug)]
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
    membership: Membership,
    clock: WallTime,
    transport: Arc<quinn::TransportConfig>,
}

impl Tls {
    pub(crate) fn new(
        identity: &Identity,
        membership: Membership,
        clock: Clock,
        transport: Arc<quinn::TransportConfig>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let (certificate, key) = certificate::generate(identity)?;
        // Not `with_single_cert`, which has webpki parse the certificate and refuse its critical extension.
        let key = provider.key_provider.load_private_key(key)?;
        let certified = Arc::new(CertifiedKey::new(vec![certificate], key));
        Ok(Self { provider, certified, membership, clock: WallTime(clock), transport })
    }

    /// A configuration for one incoming connection. `base` carries the keys of the endpoint's tokens.
    pub(crate) fn server_from(&self, base: &quinn::ServerConfig) -> Result<quinn::ServerConfig, TlsError> {
        let mut config = base.clone();
        config.crypto = Arc::new(self.server_crypto()?);
        Ok(config)
    }

    /// The endpoint's own configuration.
    pub(crate) fn server(&self) -> Result<quinn::ServerConfig, TlsError> {
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(self.server_crypto()?));
        config.transport_config(Arc::clone(&self.transport));
        config.time_source(Arc::new(self.clock.clone()));
        Ok(config)
    }

    fn server_crypto(&self) -> Result<QuicServerConfig, TlsError> {
        let gate = Arc::new(Gate {
            membership: self.membership.clone(),
            certified: Arc::clone(&self.certified),
            algorithms: self.provider.signature_verification_algorithms,
            asked: Mutex::new(None),
        });
        let mut config =
            rustls::ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::new(self.clock.clone()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(Arc::<Gate>::clone(&gate))
                .with_cert_resolver(gate);
        config.alpn_protocols = Alpn::ALL.map(|alpn| alpn.as_bytes().to_vec()).to_vec();
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.key_log = Arc::new(rustls::NoKeyLog);
        Ok(QuicServerConfig::try_from(config)?)
    }

    /// A configuration for dialling `peer`, and nobody else.
    pub(crate) fn client(&self, peer: PeerId, alpn: Alpn) -> Result<quinn::ClientConfig, TlsError> {
        let verifier = Expect { peer, algorithms: self.provider.signature_verification_algorithms };
        let mut config =
            rustls::ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::new(self.clock.clone()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified))));
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        config.key_log = Arc::new(rustls::NoKeyLog);
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
        config.transport_config(Arc::clone(&self.transport));
        Ok(config)
    }

    /// Who is at the other end of an established connection, and for what. `None` cannot happen on a
    /// connection that our verifiers let pass, and is treated as a refusal.
    pub(crate) fn identify(&self, connection: &quinn::Connection) -> Option<(PeerId, Alpn)> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let now = rustls::time_provider::TimeProvider::current_time(&self.clock)?;
        let algorithms = self.provider.signature_verification_algorithms;
        let peer = certificate::verify(chain.first()?, now, &algorithms).ok()?.peer;
        let handshake = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
        Some((peer, Alpn::from_bytes(handshake.protocol.as_deref()?)?))
    }
}

/// ring with AES-128-GCM first: with AES instructions it costs half of ChaCha20.
fn provider() -> CryptoProvider {
    use rustls::crypto::ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    provider
}

/// Decides over one incoming connection.
#[derive(Debug)]
struct Gate {
    membership: Membership,
    certified: Arc<CertifiedKey>,
    algorithms: WebPkiSupportedAlgorithms,
    /// The protocol that the ClientHello asked for.
    asked: Mutex<Option<Alpn>>,
}

impl ResolvesServerCert for Gate {
    /// Takes a client that asks for exactly one protocol of ours, which is then what is negotiated.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut offered = hello.alpn()?;
        let (Some(name), None) = (offered.next(), offered.next()) else { return None };
        let alpn = Alpn::from_bytes(name)?;
        // A second ClientHello, after a HelloRetryRequest, may not ask for something else.
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        (*asked.get_or_insert(alpn) == alpn).then(|| Arc::clone(&self.certified))
    }
}

impl ClientCertVerifier for Gate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let found = verify_single(end_entity, intermediates, now, &self.algorithms)?;
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_some_and(|alpn| self.membership.admits(&found.peer, alpn)) {
            return Ok(ClientCertVerified::assertion());
        }
        tracing::debug!(peer = %found.peer, protocol = ?asked, "refused a peer that is no member");
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_handshake(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![certificate::SCHEME]
    }
}

/// A dialler's verifier: the peer that was dialled, or nothing.
#[derive(Debug)]
struct Expect {
    peer: PeerId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Expect {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = verify_single(end_entity, intermediates, now, &self.algorithms)?;
        if found.peer == self.peer {
            return Ok(ServerCertVerified::assertion());
        }
        tracing::debug!(peer = %self.peer, found = %found.peer, "another peer answered at the address");
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_handshake(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![certificate::SCHEME]
    }
}

fn verify_single(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<PeerCertificate, rustls::Error> {
    if !intermediates.is_empty() {
        return Err(CertificateError::BadEncoding.into());
    }
    certificate::verify(end_entity, now, algorithms).map_err(|error| {
        tracing::debug!(%error, "refused a certificate");
        CertificateError::BadEncoding.into()
    })
}

/// The certificate was verified a step before, so its key is taken as it stands.
fn verify_handshake(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let spki = certificate::spki(certificate).ok_or(CertificateError::BadEncoding)?;
    verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(spki), signature, algorithms)
}

/// The node's wall clock, as rustls and quinn ask for it.
#[derive(Debug, Clone)]
struct WallTime(Clock);

impl rustls::time_provider::TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.0.now().0)))
    }
}

impl quinn::TimeSource for WallTime {
    fn now(&self) -> std::time::SystemTime {
        std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(self.0.now().0)
    }
}
