//! The certificate by which a node proves its key in TLS, as the libp2p TLS specification has it
//! (<https://github.com/libp2p/specs/blob/master/tls/tls.md>): a self-signed certificate of a fresh
//! ECDSA P-256 key, with an extension in which the node's own key signs that fresh one.
//!
//! Written here because `libp2p-tls` would bring a second cryptography provider. Narrower than the
//! specification on purpose: peers are nodes of this mesh or stock libp2p, both of which use P-256
//! certificates, and members' keys are ed25519; everything else a stranger may send is refused early.

use libp2p::PeerId;
use libp2p::identity::PublicKey;
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::oid::Oid;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::Identity;

/// `libp2p Public Key Extension`, allocated to Protocol Labs by IANA.
const EXTENSION_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 1, 1];

/// What the node's key signs, before the certificate's SubjectPublicKeyInfo.
const SIGNING_PREFIX: &[u8] = b"libp2p-tls-handshake:";

/// Our certificates are about 380 bytes; the specification's longest vector is 450.
const CERTIFICATE_LEN_MAX: usize = 4096;

/// The signature scheme of every certificate that this mesh makes or takes.
pub(crate) const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// `message PublicKey { KeyType Type = 1; bytes Data = 2; }` of an ed25519 key, and a signature.
const PUBLIC_KEY_LEN: usize = 36;
const SIGNATURE_LEN: usize = 64;

/// Why a certificate proves no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("certificate is longer than {CERTIFICATE_LEN_MAX} bytes")]
    TooLong,
    #[error("certificate is not well-formed")]
    Malformed,
    #[error("certificate is not valid at this time")]
    Expired,
    #[error("certificate's key or signature is not ecdsa p-256 with sha-256")]
    UnsupportedAlgorithm,
    #[error("certificate has an unknown critical extension")]
    UnknownCriticalExtension,
    #[error("certificate has not exactly one libp2p extension of an ed25519 key")]
    NoIdentity,
    #[error("certificate is not signed by its own key")]
    NotSelfSigned,
    #[error("identity did not sign the certificate's key")]
    NotSignedByIdentity,
}

/// What a verified certificate says.
#[derive(Debug)]
pub(crate) struct PeerCertificate {
    /// Whose certificate it is.
    pub(crate) peer: PeerId,
}

/// A fresh certificate for the identity, and the private key of that certificate.
pub(crate) fn generate(identity: &Identity) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let mut extension = rcgen::CustomExtension::from_oid_content(&EXTENSION_OID, signed_key(identity, &spki));
    extension.set_criticality(true);
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.custom_extensions.push(extension);
    let certificate = params.self_signed(&key)?;
    Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
}

/// Checks all that the specification asks of a peer's certificate.
pub(crate) fn verify(
    der: &[u8],
    now: UnixTime,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<PeerCertificate, CertificateError> {
    if der.len() > CERTIFICATE_LEN_MAX {
        return Err(CertificateError::TooLong);
    }
    let certificate = match X509Certificate::from_der(der) {
        Ok(([], certificate)) => certificate,
        _ => return Err(CertificateError::Malformed),
    };
    let seconds = i64::try_from(now.as_secs()).map_err(|_| CertificateError::Expired)?;
    let now = ASN1Time::from_timestamp(seconds).map_err(|_| CertificateError::Expired)?;
    if !certificate.validity().is_valid_at(now) {
        return Err(CertificateError::Expired);
    }
    let spki = certificate.public_key();
    if !is_p256(spki) || certificate.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(CertificateError::UnsupportedAlgorithm);
    }
    let (public_key, signature) = identity_of(&certificate)?;
    let algorithm = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == SCHEME)
        .and_then(|(_, algorithms)| algorithms.first())
        .ok_or(CertificateError::UnsupportedAlgorithm)?;
    algorithm
        .verify_signature(
            &spki.subject_public_key.data,
            certificate.tbs_certificate.as_ref(),
            &certificate.signature_value.data,
        )
        .map_err(|_| CertificateError::NotSelfSigned)?;
    if !public_key.verify(&[SIGNING_PREFIX, spki.raw].concat(), signature) {
        return Err(CertificateError::NotSignedByIdentity);
    }
    Ok(PeerCertificate { peer: public_key.to_peer_id() })
}

/// The DER of the key that signs the TLS handshake, from a certificate that [`verify`] let pass.
pub(crate) fn spki(der: &[u8]) -> Option<&[u8]> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.tbs_certificate.subject_pki.raw)
}

/// Named-curve P-256, the only parameters taken.
fn is_p256(spki: &SubjectPublicKeyInfo<'_>) -> bool {
    spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && spki.algorithm.parameters.as_ref().is_some_and(|curve| curve.as_oid() == Ok(OID_EC_P256))
}

/// The one libp2p extension of the certificate, taken apart.
fn identity_of<'a>(certificate: &X509Certificate<'a>) -> Result<(PublicKey, &'a [u8]), CertificateError> {
    let oid = Oid::from(&EXTENSION_OID).map_err(|_| CertificateError::NoIdentity)?;
    let mut found = None;
    for extension in certificate.extensions() {
        if extension.oid == oid {
            if found.replace(extension.value).is_some() {
                return Err(CertificateError::NoIdentity);
            }
        } else if extension.critical {
            return Err(CertificateError::UnknownCriticalExtension);
        }
    }
    let (public_key, signature) = found.and_then(split_signed_key).ok_or(CertificateError::NoIdentity)?;
    let public_key = PublicKey::try_decode_protobuf(public_key).map_err(|_| CertificateError::NoIdentity)?;
    Ok((public_key, signature))
}

/// `SignedKey ::= SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }`. With ed25519 both
/// lengths are fixed and below 128, so the DER has one form only.
fn signed_key(identity: &Identity, spki: &[u8]) -> Vec<u8> {
    let public_key = identity.keypair().public().encode_protobuf();
    let signature = identity.sign(&[SIGNING_PREFIX, spki].concat());
    debug_assert_eq!((public_key.len(), signature.len()), (PUBLIC_KEY_LEN, SIGNATURE_LEN), "ed25519");
    [&SIGNED_KEY_HEAD[..], &public_key, &SIGNATURE_HEAD, &signature].concat()
}

/// The two octet strings of a `SignedKey` of an ed25519 identity.
fn split_signed_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&SIGNED_KEY_HEAD)?;
    let (public_key, rest) = rest.split_at_checked(PUBLIC_KEY_LEN)?;
    let signature = rest.strip_prefix(&SIGNATURE_HEAD)?;
    (signature.len() == SIGNATURE_LEN).then_some((public_key, signature))
}

/// SEQUENCE of 2 + 36 + 2 + 64 bytes, OCTET STRING of 36.
const SIGNED_KEY_HEAD: [u8; 4] = [0x30, 104, 0x04, 36];
/// OCTET STRING of 64.
const SIGNATURE_HEAD: [u8; 2] = [0x04, 64];

#[cfg(test)]
mod tests;
