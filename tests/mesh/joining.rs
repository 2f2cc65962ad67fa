//! Join tokens: once, in time, for their own mesh, and never shown to a false one.

#![expect(clippy::disallowed_methods, reason = "tests read a site's key as a thief would")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use maillage_host::{Clock, UnixMillis};
use maillage_tests::{Mesh, Settings, Site, until};
use maillage_transport::{Accepted, Alpn, Endpoint, EndpointConfig, Identity, Membership, PeerId, Socket};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::mesh;

/// The names of the mesh's sites, as its founder knows them.
async fn members(mesh: &Mesh) -> Vec<String> {
    let peers = mesh.sites[0].http().json("/api/v1/peers?fresh=true").await;
    let peers = peers["peers"].as_array().expect("peers").clone();
    peers.iter().map(|peer| peer["name"].as_str().expect("a name").to_owned()).collect()
}

/// The site did not become a member, and says why.
async fn stays_out(mesh: &Mesh, site: &Site, token: &str) {
    let ran = site.run(&["join", token]).await;
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    ran.complains_of(&["error:"]);
    assert!(!ran.stderr.contains(token), "a token is not repeated where logs are kept");
    assert!(!site.data_dir().join("mesh.json").exists(), "no half membership");
    site.run(&["serve"]).await;
    assert!(!members(mesh).await.contains(&site.name().to_owned()));
}

#[tokio::test]
async fn a_token_lets_one_site_in_once() {
    let mesh = mesh(1).await;
    let token = mesh.token("10m").await;
    let (lyon, nantes) = (mesh.prepare("lyon", &Settings::default()), mesh.prepare("nantes", &Settings::default()));
    lyon.run(&["join", &token]).await.ended(0);
    stays_out(&mesh, &nantes, &token).await;
    assert_eq!(members(&mesh).await, ["paris", "lyon"]);
    let listed = mesh.sites[0].run_json(&["token", "list"]).await;
    assert_eq!(listed["tokens"][0]["valid"], json!(false), "{listed}");
    assert!(!listed["tokens"][0]["used_by"].is_null());
    // A fresh token lets in whom the used one did not.
    let fresh = mesh.token("10m").await;
    nantes.run(&["join", &fresh]).await.ended(0);
}

#[tokio::test]
async fn a_refused_token_ends_the_join_with_5() {
    let mesh = mesh(1).await;
    let token = mesh.token("10m").await;
    mesh.prepare("lyon", &Settings::default()).run(&["join", &token]).await.ended(0);
    mesh.prepare("nantes", &Settings::default()).run(&["join", &token]).await.ended(5);
}

#[tokio::test]
async fn an_expired_and_a_revoked_token_let_nobody_in() {
    let mesh = mesh(1).await;
    let paris = &mesh.sites[0];
    let short = mesh.token("10s").await;
    let since = tokio::time::Instant::now();
    let made = paris.run_json(&["token", "create"]).await;
    paris.run_json(&["--yes", "token", "revoke", made["key"].as_str().expect("a key")]).await;
    let lyon = mesh.prepare("lyon", &Settings::default());
    stays_out(&mesh, &lyon, made["token"].as_str().expect("a token")).await;
    sleep(Duration::from_secs(11).saturating_sub(since.elapsed())).await;
    let nantes = mesh.prepare("nantes", &Settings::default());
    stays_out(&mesh, &nantes, &short).await;
    let listed = paris.run_json(&["token", "list"]).await;
    assert!(listed["tokens"].as_array().expect("tokens").iter().all(|token| token["valid"] == json!(false)));
    paris.run(&["--yes", "token", "revoke", "12D3KooWnobody"]).await.ended(1);
}

#[tokio::test]
async fn a_damaged_token_is_told_from_a_refused_one() {
    let mesh = mesh(1).await;
    let token = mesh.token("10m").await;
    let lyon = mesh.prepare("lyon", &Settings::default());
    lyon.run(&["join", &token[..token.len() - 4]]).await.ended(2).complains_of(&["damaged"]);
    lyon.run(&["join", &token]).await.ended(0);
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let mesh = mesh(1).await;
    let token = mesh.token("10m").await;
    let other = Mesh::empty(crate::binary()).await;
    let same_name = other.prepare("paris", &Settings::default());
    same_name.run(&["join", &token]).await.ended(5).complains_of(&["name"]);
    assert!(!same_name.data_dir().join("identity").exists(), "the refused site starts over cleanly");
    assert_eq!(members(&mesh).await, ["paris"]);
}

#[tokio::test]
async fn a_site_on_software_that_does_not_know_the_format_of_the_mesh_is_refused_with_both_named() {
    let mut mesh = mesh(1).await;
    let status = mesh.sites[0].http().json("/api/v1/status").await;
    assert_eq!(status["format"]["mesh"], json!(2), "{status}");
    let token = mesh.token("10m").await;
    let old = mesh.prepare("lyon", &Settings { format_max: Some(1), ..Settings::default() });
    let says = ["the mesh runs at format 2", "understands no more than format 1", env!("CARGO_PKG_VERSION")];
    old.run(&["join", &token]).await.ended(5).complains_of(&says);
    assert!(!old.data_dir().join("identity").exists(), "the refused site starts over cleanly");
    assert_eq!(members(&mesh).await, ["paris"]);
    let status = mesh.sites[0].http().json("/api/v1/status").await;
    assert_eq!(status["role"], json!("leader"), "{status}");
    // The refusal costs the token nothing: the upgraded site joins by it.
    mesh.prepare("nantes", &Settings::default()).run(&["join", &token]).await.ended(0);
    mesh.sites[0].terminate().await;
}

#[tokio::test]
async fn a_token_of_one_mesh_is_nothing_to_another_mesh_at_the_same_address() {
    let mut one = mesh(1).await;
    let mut two = mesh(1).await;
    let token = one.token("10m").await;
    let address = one.sites[0].mesh();
    one.sites[0].terminate().await;
    let settings = Settings::default();
    two.sites[0].terminate().await;
    two.sites[0].listen_at(address, &settings);
    two.sites[0].start();
    two.sites[0].ready().await;
    two.settled().await;
    let lyon = two.prepare("lyon", &settings);
    stays_out(&two, &lyon, &token).await;
    assert_eq!(members(&two).await, ["paris"]);
}

/// An endpoint on the address in a token that admits whoever holds the token.
async fn trap(secret: [u8; 32], token_key: &str, at: SocketAddr) -> (Endpoint, Accepted) {
    let membership = Membership::new(Clock::system());
    let key: PeerId = token_key.parse().expect("a token's key");
    membership.set_guests(BTreeMap::from([(key, UnixMillis(u64::MAX))]));
    // The last endpoint's tasks may hold the port a moment longer.
    let endpoint = until("the port is free", async || {
        let identity = Identity::from_secret(&secret);
        Endpoint::bind(EndpointConfig::new(identity, membership.clone(), Socket::Udp(at), Clock::system())).ok()
    })
    .await;
    let accepted = endpoint.accept(Alpn::Join);
    (endpoint, accepted)
}

#[tokio::test]
async fn a_false_mesh_that_asks_for_a_token_is_told_nothing() {
    let mut mesh = mesh(1).await;
    let made = mesh.sites[0].run_json(&["token", "create"]).await;
    let (token, key) = (made["token"].as_str().expect("a token"), made["key"].as_str().expect("a key"));
    let secret = fs::read_to_string(mesh.sites[0].data_dir().join("identity")).expect("read");
    let secret = data_encoding::HEXLOWER_PERMISSIVE.decode(secret.trim().as_bytes()).expect("hexadecimal digits");
    let genuine: [u8; 32] = secret.try_into().expect("32 bytes");
    let address = mesh.sites[0].mesh();
    mesh.sites[0].terminate().await;

    let (endpoint, mut accepted) = trap(*Identity::generate().secret(), key, address).await;
    let lyon = mesh.prepare("lyon", &Settings::default());
    let ran = lyon.run(&["join", token]).await;
    assert_ne!(ran.code, 0);
    ran.complains_of(&["nothing secret was sent"]);
    let caught = timeout(Duration::from_millis(500), accepted.recv()).await;
    assert!(caught.is_err(), "the joiner spoke to a stranger: {caught:?}");
    endpoint.close().await;
    drop((endpoint, accepted));

    // The same trap with the right key catches the joiner: so it was the key that it looked at.
    let (endpoint, mut accepted) = trap(genuine, key, address).await;
    let joining = mesh.prepare("nantes", &Settings::default());
    let line = ["join", token];
    let (ran, caught) = tokio::join!(joining.run(&line), async {
        let caught = timeout(Duration::from_secs(10), accepted.recv()).await.expect("in time").expect("a joiner");
        caught.connection.close(1u32.into(), b"enough");
        caught.peer.to_string()
    });
    assert_eq!(caught, key, "the joiner shows the token's key");
    assert_ne!(ran.code, 0);
    endpoint.close().await;
}
