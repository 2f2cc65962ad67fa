//! I10: nobody outside the mesh or role learns anything. The product has no users: whoever may speak to a node's port
//! may do all that is served there. What it does keep out, an intruder of the workload tries all through a run; here the
//! answers are judged. Whom one is not for is refused as is documented; a token that is spent, somebody else's or of
//! another role lets nobody into the mesh; a gateway is told of its own hospitals alone, and who is none of nothing; a
//! browser shows no answer to another site's page. And neither a refusal, nor an error, nor what monitoring reads names a
//! patient, an examination or its images.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use maillage::site::{JoinError, MeshFile};
use maillage_consensus::View;
use maillage_consensus::exam::Exam;
use maillage_consensus::ids::ExamId;

use crate::cluster::Cluster;
use crate::gateway::{NOT_NOW, PAGE};
use crate::workload::hospital;
use crate::workload::http::Answered;
use crate::world::Owner;

/// Exams whose names an answer is searched for, the newest: as many as a short run has.
const KNOWN: usize = 1_000;
/// Shorter names may be in any text.
const NAME_BYTES_MIN: usize = 4;

/// As whom an intruder asks by HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guise {
    /// A page whose own name was made to resolve to the node.
    OtherName,
    /// A program that gives no name.
    NoName,
    /// A page of another site, which has its reader's browser change something.
    OtherPage,
    /// … or read, which it may: the browser is told to keep it from the page.
    Onlooker,
    /// Whoever reaches the port, asking for what is its machine's administrator's.
    Administrator,
    /// One of a hospital's, asking its gateway for what is a centre's.
    Hospital,
    /// A program that asks for what there is not, or makes no sense.
    Clumsy,
    /// Monitoring.
    Monitor,
}

impl Guise {
    /// How it is refused, if it is: see `docs/http.md`.
    fn refusal(self) -> Option<(StatusCode, &'static str)> {
        match self {
            Self::OtherName => Some((StatusCode::MISDIRECTED_REQUEST, "host-not-allowed")),
            Self::NoName => Some((StatusCode::BAD_REQUEST, "invalid")),
            Self::OtherPage => Some((StatusCode::FORBIDDEN, "cross-site")),
            Self::Administrator | Self::Hospital => Some((StatusCode::NOT_FOUND, "not-found")),
            Self::Onlooker | Self::Clumsy | Self::Monitor => None,
        }
    }

    /// What is noted of an answer that says nothing that it should not.
    fn noted(self) -> &'static str {
        match self {
            Self::OtherName => "a request under another name was refused",
            Self::NoName => "a request under no name was refused",
            Self::OtherPage => "another site's page was refused a change",
            Self::Onlooker => "what another site's page had read was kept from it",
            Self::Administrator => "administration was refused on the port",
            Self::Hospital => "a gateway told nothing of what centres have",
            Self::Clumsy => "an error named nobody",
            Self::Monitor => "monitoring was told no names",
        }
    }
}

/// What somebody has who asks to be let into the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A token by which another machine has joined.
    Spent,
    /// The request of one that held a token, and not the token's key.
    Overheard,
    /// A token for a gateway, by which it wants to be a centre.
    OfGateway,
}

impl Token {
    fn noted(self) -> &'static str {
        match self {
            Self::Spent => "a spent token let nobody in",
            Self::Overheard => "an overheard request let nobody in",
            Self::OfGateway => "a gateway's token made no centre",
        }
    }
}

/// Exams as the node knows them that has applied most: no other knows more.
fn exams(cluster: &Cluster) -> Vec<Exam> {
    let Some(newest) = cluster.newest() else { return Vec::new() };
    let engine = newest.group.reader();
    View::new(&*engine).exams_back(ExamId(u64::MAX), KNOWN).unwrap_or_default()
}

/// What names their patients, the examinations and their images.
fn names(exams: &[Exam]) -> BTreeSet<&str> {
    fn of(exam: &Exam) -> [&str; 3] {
        let request = &exam.request;
        [request.accession.as_str(), request.patient.id.as_str(), request.patient.name.as_str()]
    }
    let studies = exams.iter().flat_map(|exam| exam.studies.iter().map(|study| study.as_str()));
    exams.iter().flat_map(of).chain(studies).filter(|name| name.len() >= NAME_BYTES_MIN).collect()
}

/// The first of `names` that is in an answer.
fn named<'a>(answer: &[u8], names: &BTreeSet<&'a str>) -> Option<&'a str> {
    names.iter().copied().find(|name| memchr::memmem::find(answer, name.as_bytes()).is_some())
}

/// What is wrong with an answer to who asks in a guise.
fn objection(guise: Guise, answered: &Answered, names: &BTreeSet<&str>) -> Option<String> {
    if answered.is_for_other_sites {
        return Some("a browser shows it to other sites' pages".to_owned());
    }
    if guise == Guise::Onlooker {
        return None;
    }
    if let Some((status, code)) = guise.refusal() {
        let said = answered.json();
        if answered.status != status || said["code"] != code {
            return Some(format!("{} {} in place of {status} {code}", answered.status, said["code"]));
        }
    }
    named(&answered.body, names).map(|name| format!("it names {name}"))
}

/// A node answered what an intruder asked by HTTP.
pub(crate) fn answered(cluster: &Cluster, owner: Owner, guise: Guise, what: &str, answered: &Answered) {
    let exams = exams(cluster);
    let names = names(&exams);
    match objection(guise, answered, &names) {
        Some(why) => {
            cluster.world.violation("I10", format!("{owner:?} answered {what} as of {guise:?}: {why}"));
        }
        None if names.is_empty() => {}
        None => cluster.world.sometimes(guise.noted()),
    }
}

/// A node answered who wants to be let into the mesh.
pub(crate) fn joined(
    cluster: &Cluster,
    owner: Owner,
    token: Token,
    reply: &[u8],
    admitted: &Result<MeshFile, JoinError>,
) {
    let exams = exams(cluster);
    if let Some(name) = named(reply, &names(&exams)) {
        cluster.world.violation("I10", format!("{owner:?} names {name} to who asks to join by {token:?}"));
    }
    match admitted {
        Ok(mesh) => {
            let detail = format!("{owner:?} let in a stranger as site {} by {token:?}", mesh.site_id);
            cluster.world.violation("I10", detail);
        }
        Err(JoinError::Refused(_)) => cluster.world.sometimes(token.noted()),
        Err(_) => {}
    }
}

/// A text as it is in the frames of `mesh-gate/1`: behind its length, so that none is taken for the beginning of another.
fn framed(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[len][..], text.as_bytes()].concat()
}

/// Whether a page of reports is about an exam of this hospital.
fn is_of(page: &[u8], hospital: &str) -> bool {
    memchr::memmem::find(page, &framed(hospital)).is_some()
}

/// A node answered a centre that asked for reports as gateways do.
pub(crate) fn fed_a_centre(cluster: &Cluster, owner: Owner, reply: &[u8]) {
    let exams = exams(cluster);
    if reply.starts_with(&NOT_NOW) && named(reply, &names(&exams)).is_none() {
        cluster.world.sometimes("who is no gateway was told of no reports");
    } else {
        cluster.world.violation("I10", format!("{owner:?} answers a site that is no gateway as if it were one"));
    }
}

/// A node gave the gateway, which is in `slot`, a page of reports.
pub(crate) fn fed_the_gateway(cluster: &Cluster, owner: Owner, slot: u32, reply: &[u8]) {
    if !reply.starts_with(&PAGE) {
        return;
    }
    let own = hospital::name(slot);
    let exams = exams(cluster);
    let others: BTreeSet<&str> = exams.iter().map(|exam| exam.request.hospital.as_str()).collect();
    let is_others = |hospital: &&str| !hospital.is_empty() && *hospital != own.as_str() && is_of(reply, hospital);
    match others.into_iter().find(is_others) {
        Some(other) => {
            let detail = format!("{owner:?} gives the gateway of {own} a report of {other}");
            cluster.world.violation("I10", detail);
        }
        None if is_of(reply, own.as_str()) => {
            cluster.world.sometimes("a gateway was given its own hospital's reports alone");
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: [Guise; 8] = [
        Guise::OtherName,
        Guise::NoName,
        Guise::OtherPage,
        Guise::Onlooker,
        Guise::Administrator,
        Guise::Hospital,
        Guise::Clumsy,
        Guise::Monitor,
    ];

    fn answer(status: StatusCode, code: &str, detail: &str) -> Answered {
        Answered {
            status,
            content_type: "application/problem+json".to_owned(),
            warning: false,
            is_for_other_sites: false,
            body: json!({ "code": code, "detail": detail }).to_string().into(),
        }
    }

    #[test]
    fn an_intruder_is_to_be_refused_in_the_way_that_is_documented() {
        let names = BTreeSet::from(["P1-7"]);
        for guise in ALL {
            let Some((status, code)) = guise.refusal() else { continue };
            assert_eq!(objection(guise, &answer(status, code, "no"), &names), None);
            for other in [answer(StatusCode::OK, code, "no"), answer(status, "busy", "no")] {
                assert!(objection(guise, &other, &names).is_some(), "{guise:?}");
            }
        }
    }

    #[test]
    fn nothing_that_is_for_anybody_may_name_a_patient() {
        let names = BTreeSet::from(["P1-7"]);
        for guise in ALL.into_iter().filter(|guise| *guise != Guise::Onlooker) {
            let (status, code) = guise.refusal().unwrap_or((StatusCode::NOT_FOUND, "not-found"));
            assert_eq!(objection(guise, &answer(status, code, "no exam of P1-8"), &names), None);
            let told = objection(guise, &answer(status, code, "no exam of P1-7"), &names);
            assert_eq!(told.as_deref(), Some("it names P1-7"), "{guise:?}");
        }
    }

    #[test]
    fn no_answer_may_be_shown_to_another_sites_page() {
        let names = BTreeSet::from(["P1-7"]);
        let mut read = answer(StatusCode::OK, "", "P1-7");
        assert_eq!(objection(Guise::Onlooker, &read, &names), None, "the browser keeps it");
        read.is_for_other_sites = true;
        assert!(objection(Guise::Onlooker, &read, &names).is_some());
    }

    #[test]
    fn a_hospital_is_told_from_one_whose_name_begins_with_its_own() {
        let page = [&PAGE[..], &framed("hospital 10")[..]].concat();
        assert!(is_of(&page, "hospital 10") && !is_of(&page, "hospital 1"));
    }
}
