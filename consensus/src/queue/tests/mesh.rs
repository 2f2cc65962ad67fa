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
