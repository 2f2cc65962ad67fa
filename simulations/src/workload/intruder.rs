//! An intruder: all through a run it asks nodes for what is not for it. By HTTP, under names that are not the node's, from
//! other sites' pages, for what is its administrator's, and of a gateway for what is a centre's; by tokens with which it
//! may not join; and at the gateways' door, where it knows as whom the handshake would let it in.
//!
//! What it is answered is the invariant's to judge (`secrecy`).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, header};
use maillage::site::{JoinError, Joining, MeshFile, Settings};
use maillage_transport::{Identity, PeerId};
use serde_json::json;

use super::{hospital, http};
use crate::cluster::{Cluster, Running};
use crate::gateway::{self, Receiver};
use crate::invariants::secrecy::{self, Guise, Token};
use crate::rng::Rng;

/// Mean pause between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Who hears nothing for so long turns to another node.
const PATIENCE: Duration = Duration::from_secs(10);
/// Newest exams and studies among which it picks one to ask for.
const CHOICE: usize = 25;
/// As long as a token lives that is made for it.
const TOKEN_LASTS: Duration = Duration::from_secs(60);
/// A name that is no node's, and the page under it.
const OTHER_NAME: &str = "rebound.example";
const OTHER_PAGE: &str = "http://rebound.example";
/// What it says of itself.
const CONFIGURATION: &str = "[node]\nname = \"intruder\"\nzone = \"nowhere\"\n[mesh]\nlisten = \"10.0.9.9:7400\"\n";
/// Where the node that is asked sees it.
const SEEN_AT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 9, 9));

/// Guises in which a centre is asked …
const AT_A_CENTRE: [Guise; 7] = [
    Guise::OtherName,
    Guise::NoName,
    Guise::OtherPage,
    Guise::Onlooker,
    Guise::Administrator,
    Guise::Clumsy,
    Guise::Monitor,
];
/// … and a hospital's gateway.
const AT_A_GATEWAY: [Guise; 6] =
    [Guise::OtherName, Guise::NoName, Guise::OtherPage, Guise::Administrator, Guise::Hospital, Guise::Monitor];

/// What centres tell, and gateways do not.
const READS: [&str; 18] = [
    "/",
    "/fragments/room",
    "/api/v1/peers",
    "/api/v1/exams",
    "/api/v1/exams/{exam}",
    "/api/v1/criticals",
    "/api/v1/studies",
    "/api/v1/studies/{study}",
    "/api/v1/audit",
    "/api/v1/audit/export?format=fhir",
    "/api/v1/statistics",
    "/api/v1/hospitals",
    "/api/v1/outbox",
    "/api/v1/placement/studies/{study}",
    "/dicom-web/studies/{study}",
    "/dicom-web/studies/{study}/series/{study}.1",
    "/dicom-web/workitems",
    "/dicom-web/commitment-requests/{study}",
];
/// What centres do, and gateways do not.
const WRITES: [&str; 14] = [
    "/ui/next",
    "/api/v1/claims/next",
    "/api/v1/exams",
    "/api/v1/exams/{exam}/claim",
    "/api/v1/exams/{exam}/take-over",
    "/api/v1/exams/{exam}/report",
    "/api/v1/exams/{exam}/cancel",
    "/api/v1/exams/{exam}/break-glass",
    "/api/v1/exams/{exam}/purge",
    "/api/v1/exams/{exam}/legal-hold/release",
    "/api/v1/placement/sites/site-1/drain",
    "/api/v1/studies/{study}/verify",
    "/api/v1/instances",
    "/dicom-web/workitems/{study}/cancelrequest",
];
/// What an onlooker has a browser read: none that keeps the node busy for long.
const LOOKED_AT: [&str; 3] = ["/", "/api/v1/exams/{exam}", "/api/v1/criticals"];
/// What is on a node's unix socket alone, and whether it does something.
const ADMINISTRATION: [(&str, bool); 5] = [
    ("/admin/v1/tokens", false),
    ("/admin/v1/tokens", true),
    ("/admin/v1/scrub", false),
    ("/admin/v1/repair", true),
    ("/admin/v1/spool/retry", true),
];
/// What there is not, or makes no sense; an answer may name what it was asked for.
const NONSENSE: [&str; 6] = [
    "/api/v1/exams/4000000000",
    "/api/v1/exams/{exam}/purge",
    "/api/v1/exams?state=lost",
    "/api/v1/studies/2.25.0",
    "/dicom-web/studies/2.25.0/series/2.25.0.1",
    "/dicom-web/studies/..%2F2.25.0",
];
/// What monitoring reads.
const MONITORED: [&str; 3] = ["/livez", "/readyz?verbose", "/metrics"];

struct Intruder {
    cluster: Arc<Cluster>,
    rng: Rng,
}

/// Forever.
pub(super) async fn run(cluster: Arc<Cluster>, rng: Rng) {
    let mut intruder = Intruder { cluster, rng };
    loop {
        let pause = intruder.rng.around(PAUSE);
        tokio::time::sleep(pause).await;
        match intruder.rng.below(10) {
            0 => intruder.join().await,
            1 => intruder.ask_for_reports().await,
            _ => intruder.ask().await,
        }
    }
}

impl Intruder {
    /// A centre that is up.
    fn centre(&mut self) -> Option<Running> {
        let running = self.cluster.all_running();
        self.rng.pick(&running).cloned()
    }

    /// Asks whatever takes images in some slot.
    async fn ask(&mut self) {
        let slots: Vec<u32> = self.cluster.slots().chain(self.cluster.gateway_slot()).collect();
        let Some(receiver) = self.rng.pick(&slots).and_then(|slot| self.cluster.receiver(*slot)) else { return };
        let guises = match &receiver {
            Receiver::Centre(_) => &AT_A_CENTRE[..],
            Receiver::Gateway(_) => &AT_A_GATEWAY[..],
        };
        let Some(guise) = self.rng.pick(guises).copied() else { return };
        let Some((method, path)) = self.drawn(guise) else { return };
        let (owner, what) = (receiver.owner(), format!("{method} {path}"));
        let request = request(guise, method, &path);
        let Some(answered) = http::ask_receiver(&self.cluster, &receiver, PATIENCE, request).await else { return };
        self.cluster.world.event(owner.slot, format_args!("{guise:?} asked {what}: {}", answered.status));
        secrecy::answered(&self.cluster, owner, guise, &what, &answered);
    }

    /// What is asked for in a guise.
    fn drawn(&mut self, guise: Guise) -> Option<(Method, String)> {
        let all: Vec<(&str, bool)> = match guise {
            Guise::Administrator => ADMINISTRATION.to_vec(),
            Guise::OtherPage => WRITES.map(|path| (path, true)).to_vec(),
            Guise::Onlooker => LOOKED_AT.map(|path| (path, false)).to_vec(),
            Guise::Clumsy => NONSENSE.map(|path| (path, false)).to_vec(),
            Guise::Monitor => MONITORED.map(|path| (path, false)).to_vec(),
            Guise::OtherName | Guise::NoName | Guise::Hospital => {
                let reads = READS.into_iter().map(|path| (path, false));
                reads.chain(WRITES.into_iter().map(|path| (path, true))).collect()
            }
        };
        let (path, writes) = *self.rng.pick(&all)?;
        let exams = self.cluster.history.exams();
        let exam = self.rng.pick(&exams[exams.len().saturating_sub(CHOICE)..]).map_or(1, |exam| *exam);
        let slot = u32::try_from(self.rng.between(1, u64::from(self.cluster.plan.sites))).unwrap_or(1);
        let studies = self.cluster.watch.instances.studies_of(slot);
        let study = self.rng.pick(&studies[studies.len().saturating_sub(CHOICE)..]).cloned();
        let study = study.unwrap_or_else(|| format!("2.25.{slot}.1"));
        let path = path.replace("{exam}", &exam.to_string()).replace("{study}", &study);
        Some((if writes { Method::POST } else { Method::GET }, path))
    }

    /// Asks to be let into the mesh, by a token that is not for it.
    async fn join(&mut self) {
        let Some(running) = self.centre() else { return };
        let tokens = [Token::Spent, Token::Overheard, Token::OfGateway];
        let Some(token) = self.rng.pick(&tokens).copied() else { return };
        // A mesh of the version before has no gateways.
        if token == Token::OfGateway && self.cluster.plan.is_upgraded() {
            return;
        }
        // By which one has joined: until then it is whoever's that holds it.
        let has_joined = |slot: &u32| self.cluster.site(*slot).is_some();
        let spent = self.cluster.slots().filter(has_joined).filter_map(|slot| self.cluster.token(slot));
        let spent: Vec<String> = spent.collect();
        let text = self.rng.pick(&spent).cloned().filter(|_| token != Token::OfGateway);
        if token != Token::OfGateway && text.is_none() {
            return;
        }
        let (identity, other) = (self.new_identity(), self.new_identity().peer_id());
        let key = (token == Token::Overheard).then_some(other);
        let owner = running.owner;
        let asked = self.cluster.world.spawn_on(owner, async move {
            tokio::time::timeout(PATIENCE, ask_to_join(&running, &identity, text, key)).await.ok().flatten()
        });
        let Some((reply, admitted)) = asked.await.ok().flatten() else { return };
        secrecy::joined(&self.cluster, owner, token, &reply, &admitted);
    }

    fn new_identity(&mut self) -> Identity {
        let mut secret = [0; 32];
        self.rng.fill(&mut secret);
        Identity::from_secret(&secret)
    }

    /// Asks a node for reports as gateways do: as the gateway itself, or as a centre.
    async fn ask_for_reports(&mut self) {
        let Some(running) = self.centre() else { return };
        let gateway = self.cluster.gateway_slot().and_then(|slot| Some((slot, self.cluster.site(slot)?)));
        let as_gateway = self.rng.chance(0.7);
        let after = self.rng.below(running.group.applied());
        let (owner, centre) = (running.owner, running.site);
        match gateway.filter(|_| as_gateway) {
            Some((slot, site)) => {
                if let Some(reply) = gateway::feed(&self.cluster, running, site, after, PATIENCE).await {
                    secrecy::fed_the_gateway(&self.cluster, owner, slot, &reply);
                }
            }
            None => {
                if let Some(reply) = gateway::feed(&self.cluster, running, centre, after, PATIENCE).await {
                    secrecy::fed_a_centre(&self.cluster, owner, &reply);
                }
            }
        }
    }
}

/// The node's answer to who asks to join, by a token or by one that it makes for a gateway; with `key` in place of the
/// token's own, as far as the handshake says.
async fn ask_to_join(
    running: &Running,
    identity: &Identity,
    token: Option<String>,
    key: Option<PeerId>,
) -> Option<(Vec<u8>, Result<MeshFile, JoinError>)> {
    let settings = Settings::from_toml(CONFIGURATION).ok()?;
    let token = match token {
        Some(token) => token,
        None => {
            let hospitals = vec![hospital::name(running.owner.slot)];
            running.node.create_gateway_token(TOKEN_LASTS, hospitals).await.ok()?
        }
    };
    let joining = Joining::new(&settings, identity, &token).ok()?;
    let key = key.unwrap_or_else(|| joining.token_identity().peer_id());
    let reply = running.node.admit(key, SEEN_AT, joining.request()).await.ok()?;
    let admitted = joining.admitted(&reply);
    Some((reply, admitted))
}

/// A request as somebody in that guise sends it.
fn request(guise: Guise, method: Method, path: &str) -> Request<Body> {
    let host = match guise {
        Guise::NoName => None,
        Guise::OtherName => Some(OTHER_NAME),
        _ => Some("localhost"),
    };
    let writes = method == Method::POST;
    let mut request = Request::builder().method(method).uri(path);
    if let Some(host) = host {
        request = request.header(header::HOST, host);
    }
    if matches!(guise, Guise::OtherPage | Guise::Onlooker) {
        request = request.header(header::ORIGIN, OTHER_PAGE).header("sec-fetch-site", "cross-site");
    }
    let body = if writes {
        request = request.header(header::CONTENT_TYPE, "application/json");
        Body::from(json!({ "user": "intruder", "reason": "none of its business" }).to_string())
    } else {
        Body::empty()
    };
    request.body(body).unwrap_or_default()
}
