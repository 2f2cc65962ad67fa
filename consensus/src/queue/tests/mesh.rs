//! Who belongs to the mesh, and whose word counts.

use super::*;

#[test]
fn a_token_admits_one_site_once_within_its_time() {
    let mut bench = Bench::founded();
    let token = key("token", 2);
    let join = |name: &str| Command::Join { token: key("token", 2), joiner: site(name, 1) };
    assert_eq!(bench.run(PARIS, join("lyon")), Outcome::Refused(Refusal::TokenUnknown));
    bench.run(PARIS, Command::CreateToken { key: token.clone(), lifetime_ms: 10_000 });
    let Outcome::Joined { site: lyon } = bench.run(PARIS, join("lyon")) else { panic!("joined") };
    assert_eq!(bench.run(PARIS, join("lyon")), Outcome::Joined { site: lyon }, "the answer was lost: asked again");
    assert_eq!(bench.run(PARIS, join("nantes")), Outcome::Refused(Refusal::TokenUsed));
    bench.run(PARIS, Command::CreateToken { key: token, lifetime_ms: 10_000 });
    assert_eq!(bench.run(PARIS, join("paris")), Outcome::Refused(Refusal::NameTaken));
    bench.now += 20_000;
    assert_eq!(bench.run(PARIS, join("nantes")), Outcome::Refused(Refusal::TokenExpired));
}

#[test]
fn a_stranger_proposes_nothing() {
    let mut bench = Bench::founded();
    let outcome = bench.run(SiteId(77), Command::AddExam(ready("A1", Priority::Urgent)));
    assert_eq!(outcome, Outcome::Refused(Refusal::NotAMember));
    assert_eq!(Bench::empty().index, 1);
}

#[test]
fn the_clock_of_the_state_never_goes_back() {
    let mut bench = Bench::founded();
    let before = bench.view(|view| view.clock());
    bench.now = 5;
    let exam = bench.add(ready("A1", Priority::Urgent));
    assert!(bench.exam(exam).added_at >= before);
}

#[test]
fn an_unknown_command_stops_the_replica_and_is_refused_before_the_log() {
    let bench = Bench::founded();
    let mut transaction = Transaction::new(&*bench.engine);
    for bytes in [&[][..], &[3, 0, 0], &[2, 0, 0], &[1, 0xff, 0xff]] {
        assert!(Queue.stamp(&*bench.engine, bytes, LEADER, UnixMillis(1)).is_err());
        assert!(matches!(Queue.apply(&mut transaction, 9, bytes), Err(ApplyError::Unknown { index: 9, .. })));
    }
}

/// A gateway for one hospital.
pub(super) fn gateway(bench: &mut Bench, name: &str) -> SiteId {
    let (token, hospitals) = (key(name, 2), vec![Line::fitted("hospital")]);
    bench.run(PARIS, Command::CreateGatewayToken { key: token.clone(), lifetime_ms: 3_600_000, hospitals });
    match bench.run(PARIS, Command::JoinGateway { token, joiner: site(name, 1) }) {
        Outcome::Joined { site } => site,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_admits_only_what_it_was_made_for() {
    let mut bench = Bench::founded();
    let (centre, hospital) = (key("centre", 2), key("hospital", 2));
    bench.run(PARIS, Command::CreateToken { key: centre.clone(), lifetime_ms: 60_000 });
    let hospitals = vec![Line::fitted("hospital")];
    bench.run(PARIS, Command::CreateGatewayToken { key: hospital.clone(), lifetime_ms: 60_000, hospitals });
    let refused = |gateway| Outcome::Refused(Refusal::TokenRole { gateway });
    let joiner = site("lyon", 1);
    let as_gateway = |token: &PeerKey| Command::JoinGateway { token: token.clone(), joiner: joiner.clone() };
    let as_centre = |token: &PeerKey| Command::Join { token: token.clone(), joiner: joiner.clone() };
    assert_eq!(bench.run(PARIS, as_gateway(&centre)), refused(false));
    assert_eq!(bench.run(PARIS, as_centre(&hospital)), refused(true), "a hospital's token makes no voter");
    assert!(matches!(bench.run(PARIS, as_gateway(&hospital)), Outcome::Joined { .. }), "a refusal costs it nothing");
    assert!(matches!(bench.run(PARIS, as_gateway(&hospital)), Outcome::Joined { .. }), "the answer was lost");
}

#[test]
fn a_gateway_holds_nothing_and_proposes_nothing() {
    let mut bench = Bench::founded();
    let chu = gateway(&mut bench, "chu");
    let site = bench.view(|view| view.site(chu)).expect("a member");
    assert_eq!((site.description.weight, site.session_open), (0, false));
    assert_eq!(site.role, SiteRole::Gateway { hospitals: vec![Line::fitted("hospital")] });
    for command in [
        Command::OpenSession,
        Command::AddExam(ready("A1", Priority::Urgent)),
        Command::ClaimNext { modalities: Vec::new() },
    ] {
        assert_eq!(bench.run(chu, command), Outcome::Refused(Refusal::NotAMember));
    }
    let hospitals = vec![Line::fitted("other")];
    assert_eq!(bench.run(PARIS, Command::SetGateway { gateway: chu, hospitals: hospitals.clone() }), Outcome::Done);
    let set = Command::SetGateway { gateway: PARIS, hospitals };
    assert_eq!(bench.run(PARIS, set), Outcome::Refused(Refusal::NotAGateway));
}

#[test]
fn a_mesh_of_format_1_keeps_its_sites_and_tokens_as_it_did() {
    let mut bench = Bench::of_format(1);
    bench.run(PARIS, Command::CreateToken { key: key("t", 2), lifetime_ms: 60_000 });
    let first = |prefix: &[u8]| maillage_host::engine::scan_prefix(&*bench.engine, prefix, 1).expect("scan")[0].1[0];
    assert_eq!([first(&keys::SITES), first(&keys::TOKENS)], [1, 1], "version 1, without a role");
    assert!(!bench.view(|view| view.site(PARIS)).expect("paris").is_gateway());
}
