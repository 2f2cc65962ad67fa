//! Who gets an association, and what for.

use std::time::Duration;

use maillage_dicom::Uid;
use maillage_dicom::dimse::pdu::{
    AssociateAc, AssociateRj, ContextResult, NegotiatedContext, ProposedContext, Role, UserInformation,
};
use maillage_dicom::dimse::scp::{AssociationEnd, CallingPolicy, KnownPeer, RejectReason, ScpConfig};
use maillage_dicom::dimse::scu::{Association, ScuError, ScuTimeouts};

use crate::peer::{Scp, lock, request, title};

const JPEG_2000: &str = "1.2.840.10008.1.2.4.90";
const STUDY_ROOT_FIND: &str = "1.2.840.10008.5.1.4.1.2.2.1";
const PRIVATE: &str = "1.3.12.2.1107.5.9.1";

fn uid(text: &str) -> Uid {
    Uid::parse(text).expect("a uid")
}

async fn refusal(
    change: impl FnOnce(&mut ScpConfig),
    calling: &str,
    called: &str,
) -> (Option<AssociateRj>, RejectReason) {
    let scp = Scp::start(change).await;
    let contexts = [(Uid::VERIFICATION, vec![Uid::IMPLICIT_LE])];
    let (calling, called) = (title(calling), title(called));
    let calls = Association::connect(scp.addr, &calling, &called, &contexts, ScuTimeouts::default());
    let rejected = match calls.await {
        Err(ScuError::Rejected(rejected)) => Some(rejected),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    let reason = lock(&scp.ears.rejected).first().copied();
    (rejected, reason.unwrap_or(RejectReason::NotDicom))
}

fn known(peers: &[(&str, Option<&str>)]) -> CallingPolicy {
    let peer = |&(ae_title, from): &(&str, Option<&str>)| KnownPeer {
        ae_title: title(ae_title),
        from: from.map(|from| from.parse().expect("a range")),
    };
    CallingPolicy::Known(peers.iter().map(peer).collect())
}

#[tokio::test]
async fn unknown_titles_and_wrong_addresses_are_refused_alike() {
    let (answer, reason) = refusal(|_| {}, "SENDER", "SOMEONE").await;
    assert_eq!((answer, reason), (Some(AssociateRj::CALLED_AE), RejectReason::CalledAe));
    let (answer, reason) = refusal(|config| config.calling = known(&[]), "SENDER", "NODE").await;
    assert_eq!((answer, reason), (Some(AssociateRj::CALLING_AE), RejectReason::CallingAe));
    let peers = known(&[("SENDER", Some("10.0.0.0/8")), ("SENDER", Some("192.0.2.1"))]);
    let (answer, reason) = refusal(|config| config.calling = peers, "SENDER", "NODE").await;
    assert_eq!((answer, reason), (Some(AssociateRj::CALLING_AE), RejectReason::CallingAddress));
}

#[tokio::test]
async fn known_titles_from_their_addresses_are_accepted() {
    let peers = known(&[("SENDER", Some("192.0.2.1")), ("SENDER", Some("127.0.0.0/8"))]);
    assert_eq!(refusal(|config| config.calling = peers, "SENDER", "NODE").await.0, None);
    let peers = known(&[("SENDER", None)]);
    assert_eq!(refusal(|config| config.calling = peers, "SENDER", "NODE").await.0, None);
}

#[tokio::test]
async fn the_first_proposed_syntax_is_taken_and_services_are_not() {
    let scp = Scp::start(|_| {}).await;
    let mut asked = request("SENDER", "NODE");
    let context = |id, class: &str, syntaxes: &[&str]| ProposedContext {
        id,
        abstract_syntax: uid(class),
        transfer_syntaxes: syntaxes.iter().map(|syntax| uid(syntax)).collect(),
    };
    let implicit = Uid::IMPLICIT_LE;
    asked.contexts = vec![
        context(1, Uid::CT_IMAGE_STORAGE.as_str(), &[JPEG_2000, implicit.as_str()]),
        context(3, STUDY_ROOT_FIND, &[implicit.as_str()]),
        context(5, PRIVATE, &["1.2.3.99"]),
        context(7, Uid::VERIFICATION.as_str(), &[implicit.as_str()]),
    ];
    asked.user = UserInformation {
        max_pdu: 0,
        async_window: Some((8, 8)),
        roles: vec![Role { sop_class: Uid::CT_IMAGE_STORAGE, scu: true, scp: true }],
        ..UserInformation::default()
    };
    let mut raw = scp.raw().await;
    raw.send(&asked.encode()).await;
    let (kind, body) = raw.receive().await.expect("an answer");
    assert_eq!(kind, 2);
    let answer = AssociateAc::decode(&body, &asked).expect("decodes");
    let accepted = |id, syntax: &str| NegotiatedContext {
        id,
        result: ContextResult::Accepted,
        transfer_syntax: Some(uid(syntax)),
    };
    let refused = NegotiatedContext { result: ContextResult::AbstractSyntax, ..accepted(3, implicit.as_str()) };
    let expected = [accepted(1, JPEG_2000), refused, accepted(5, "1.2.3.99"), accepted(7, implicit.as_str())];
    assert_eq!(answer.contexts, expected);
    assert_eq!(answer.user.async_window, Some((1, 1)));
    assert_eq!(answer.user.roles, [Role { sop_class: Uid::CT_IMAGE_STORAGE, scu: true, scp: false }]);
    assert_eq!(answer.user.max_pdu, 1 << 20);
}

#[tokio::test]
async fn private_classes_can_be_switched_off() {
    let scp = Scp::start(|config| config.private_storage = false).await;
    let association = scp.connect(&[(uid(PRIVATE), vec![Uid::EXPLICIT_LE])]).await.expect("an association");
    assert!(!association.accepts(&uid(PRIVATE), &Uid::EXPLICIT_LE));
}

#[tokio::test]
async fn associations_over_the_bound_are_told_to_come_again() {
    for (all, per_address, expected) in [(1, 9, RejectReason::Congestion), (9, 1, RejectReason::AddressCongestion)] {
        let scp = Scp::start(|config| {
            config.associations_max = all;
            config.associations_per_address_max = per_address;
        })
        .await;
        let mut first = scp.sender().await;
        let contexts = [(Uid::VERIFICATION, vec![Uid::IMPLICIT_LE])];
        let second = scp.connect(&contexts).await.expect_err("refused");
        assert!(matches!(second, ScuError::Rejected(AssociateRj::CONGESTION)), "{second}");
        scp.heard_rejected(expected).await;
        first.echo().await.expect("still served");
        first.release().await.expect("released");
        scp.heard_closed(AssociationEnd::Released).await;
        scp.connect(&contexts).await.expect("there is room again");
    }
}

#[tokio::test]
async fn other_protocol_versions_and_contexts_are_refused() {
    let scp = Scp::start(|_| {}).await;
    let mut version = request("SENDER", "NODE").encode();
    version[7] = 2;
    let mut context = request("SENDER", "NODE");
    context.application_context = uid("1.2.3");
    for (pdu, expected) in
        [(version, AssociateRj::PROTOCOL_VERSION), (context.encode(), AssociateRj::APPLICATION_CONTEXT)]
    {
        let mut raw = scp.raw().await;
        raw.send(&pdu).await;
        let (kind, body) = raw.receive().await.expect("an answer");
        assert_eq!((kind, AssociateRj::decode(&body).expect("decodes")), (3, expected));
        assert_eq!(raw.rest().await, b"", "and closed");
    }
}

#[tokio::test]
async fn an_association_that_says_nothing_is_ended() {
    let scp = Scp::start(|config| config.idle_timeout = Duration::from_millis(50)).await;
    let mut raw = scp.raw_associated().await;
    assert_eq!(raw.receive().await.expect("an abort").0, 7);
    scp.heard_closed(AssociationEnd::TimedOut).await;
}
