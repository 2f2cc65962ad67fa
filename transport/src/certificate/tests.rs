//! The certificate against the libp2p TLS specification's test vectors, and against forgeries.

use std::time::Duration;

use super::*;

/// "Certificate with an ed25519 key", from the specification's test vectors.
const VALID: &str = "308201773082011ea003020102020900f5bd0debaa597f52300a06082a8648ce3d04030230003020170d3735303130313030303030305a180f34303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d030107034200046bf9871220d71dcb3483ecdfcbfcc7c103f8509d0974b3c18ab1f1be1302d643103a08f7a7722c1b247ba3876fe2c59e26526f479d7718a85202ddbe47562358a37f307d307b060a2b0601040183a25a01010101ff046a30680424080112207fda21856709c5ae12fd6e8450623f15f11955d384212b89f56e7e136d2e17280440aaa6bffabe91b6f30c35e3aa4f94b1188fed96b0ffdd393f4c58c1c047854120e674ce64c788406d1c2c4b116581fd7411b309881c3c7f20b46e54c7e6fe7f0f300a06082a8648ce3d040302034700304402207d1a1dbd2bda235ff2ec87daf006f9b04ba076a5a5530180cd9c2e8f6399e09d0220458527178c7e77024601dbb1b256593e9b96d961b96349d1f560114f61a87595";

/// "Invalid certificate": the identity's signature is of another key.
const INVALID: &str = "308201773082011da003020102020830a73c5d896a1109300a06082a8648ce3d04030230003020170d3735303130313030303030305a180f34303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d03010703420004bbe62df9a7c1c46b7f1f21d556deec5382a36df146fb29c7f1240e60d7d5328570e3b71d99602b77a65c9b3655f62837f8d66b59f1763b8c9beba3be07778043a37f307d307b060a2b0601040183a25a01010101ff046a3068042408011220ec8094573afb9728088860864f7bcea2d4fd412fef09a8e2d24d482377c20db60440ecabae8354afa2f0af4b8d2ad871e865cb5a7c0c8d3dbdbf42de577f92461a0ebb0a28703e33581af7d2a4f2270fc37aec6261fcc95f8af08f3f4806581c730a300a06082a8648ce3d040302034800304502202dfb17a6fa0f94ee0e2e6a3b9fb6e986f311dee27392058016464bd130930a61022100ba4b937a11c8d3172b81e7cd04aedb79b978c4379c2b5b24d565dd5d67d3cb3c";

/// "Certificate with a secp256k1 key": right by the specification, no identity of this mesh.
const SECP256K1: &str = "3082018230820128a003020102020900f3b305f55622cfdf300a06082a8648ce3d04030230003020170d3735303130313030303030305a180f34303936303130313030303030305a30003059301306072a8648ce3d020106082a8648ce3d0301070342000458f7e9581748ff9bdd933b655cc0e5552a1248f840658cc221dec2186b5a2fe4641b86ab7590a3422cdbb1000cf97662f27e5910d7569f22feed8829c8b52e0fa38188308185308182060a2b0601040183a25a01010101ff0471306f042508021221026b053094d1112bce799dc8026040ae6d4eb574157929f1598172061f753d9b1b04463044022040712707e97794c478d93989aaa28ae1f71c03af524a8a4bd2d98424948a782302207b61b7f074b696a25fb9e0059141a811cccc4cc28042d9301b9b2a4015e87470300a06082a8648ce3d04030203480030450220143ae4d86fdc8675d2480bb6912eca5e39165df7f572d836aa2f2d6acfab13f8022100831d1979a98f0c4a6fb5069ca374de92f1a1205c962a6d90ad3d7554cb7d9df4";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()).expect("a hex digit");
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn check(der: &[u8]) -> Result<PeerId, CertificateError> {
    check_at(der, 1_700_000_000)
}

fn check_at(der: &[u8], seconds: u64) -> Result<PeerId, CertificateError> {
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    verify(der, UnixTime::since_unix_epoch(Duration::from_secs(seconds)), &algorithms).map(|found| found.peer)
}

#[test]
fn the_specifications_ed25519_certificate_is_taken() {
    let peer = check(&bytes(VALID)).expect("a valid certificate");
    assert_eq!(peer.to_string(), "12D3KooWJRSrypvnpHgc6ZAgyCni4KcSmbV7uGRaMw5LgMKT18fq");
}

#[test]
fn the_specifications_invalid_certificate_is_refused() {
    assert_eq!(check(&bytes(INVALID)), Err(CertificateError::NotSignedByIdentity));
}

#[test]
fn an_identity_that_is_not_ed25519_is_refused() {
    assert_eq!(check(&bytes(SECP256K1)), Err(CertificateError::NoIdentity));
}

#[test]
fn a_generated_certificate_proves_its_identity() {
    let identity = Identity::generate();
    let (certificate, _key) = generate(&identity).expect("generate a certificate");
    assert_eq!(check(&certificate), Ok(identity.peer_id()));
}

#[test]
fn a_certificate_is_refused_outside_its_time() {
    assert_eq!(check_at(&bytes(VALID), 1), Err(CertificateError::Expired));
    assert_eq!(check_at(&bytes(VALID), u64::MAX), Err(CertificateError::Expired));
}

#[test]
fn no_changed_byte_passes_as_another_identity() {
    let der = bytes(VALID);
    let peer = check(&der).expect("a valid certificate");
    for at in 0..der.len() {
        for bit in [0x01, 0x80] {
            let mut forged = der.clone();
            forged[at] ^= bit;
            // The unused bits of an encoding may change nothing; another identity must never appear.
            assert!(check(&forged).is_err() || check(&forged) == Ok(peer), "byte {at}");
        }
    }
    for at in 0..der.len() {
        assert!(check(&der[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(check(&[&der[..], b"x"].concat()), Err(CertificateError::Malformed));
    assert_eq!(check(&vec![0x30; 5000]), Err(CertificateError::TooLong));
}

#[test]
fn an_extension_moved_to_another_certificate_is_refused() {
    let victim = Identity::generate();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("generate a key");
    let stolen = signed_key(&victim, b"the key of the victim's certificate");
    let mut params = rcgen::CertificateParams::default();
    params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&EXTENSION_OID, stolen));
    let forged = params.self_signed(&key).expect("sign");
    assert_eq!(check(forged.der()), Err(CertificateError::NotSignedByIdentity));
}

#[test]
fn two_identities_or_an_unknown_critical_extension_are_refused() {
    let identity = Identity::generate();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("generate a key");
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let ours = || rcgen::CustomExtension::from_oid_content(&EXTENSION_OID, signed_key(&identity, &spki));
    let mut twice = rcgen::CertificateParams::default();
    twice.custom_extensions = vec![ours(), ours()];
    let twice = twice.self_signed(&key).expect("sign");
    assert!(check(twice.der()).is_err());
    let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 53594, 9], vec![5, 0]);
    unknown.set_criticality(true);
    let mut critical = rcgen::CertificateParams::default();
    critical.custom_extensions = vec![ours(), unknown];
    let critical = critical.self_signed(&key).expect("sign");
    assert_eq!(check(critical.der()), Err(CertificateError::UnknownCriticalExtension));
}
