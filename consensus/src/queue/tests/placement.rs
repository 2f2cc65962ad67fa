//! Where copies may lie: staged, applied, reverted; drained and full sites; copies that are given up, and that are
//! not.

use super::*;
use crate::placement::{Change, Contract, Holders, Layout, Origin, Share};

fn only(origin: Origin, holders: Holders) -> Change {
    Change::Contract(Contract { origin, holders, regions: Vec::new(), copies: 0, zones: 0 })
}

fn share(site: SiteId, weight: u32, zone: &str) -> Change {
    Change::Share(Share { site, weight: Some(weight), zone: Name::fitted(zone), region: Name::default() })
}

fn staged(bench: &mut Bench, change: Change) -> u64 {
    match bench.run(PARIS, Command::StagePlacement(change)) {
        Outcome::Staged { version } => version,
        other => panic!("{other:?}"),
    }
}

fn apply(bench: &mut Bench, version: u64, force: &str) -> Outcome {
    bench.run(PARIS, Command::ApplyPlacement { version, force: Line::fitted(force) })
}

fn applied(bench: &Bench) -> Layout {
    bench.view(|view| view.placement()).applied
}

fn drain(bench: &mut Bench, site: SiteId, force: bool) -> Outcome {
    bench.run(PARIS, Command::Drain { site, reason: Line::fitted("new disks"), force })
}

/// A study that these sites hold, the first of which received it; its UID and manifest.
fn held(bench: &mut Bench, accession: &str, sites: &[SiteId]) -> (UidText, [u8; 32]) {
    let exam = bench.order(request(accession, "P1"), consented());
    bench.images(sites[0], exam);
    let study = bench.exam(exam).studies[0].clone();
    let manifest = bench.view(|view| view.study(study.as_str())).expect("known").parts[0].part.manifest;
    for site in &sites[1..] {
        bench.run(*site, Command::RecordHolding { study: study.clone(), manifest, holds: true });
    }
    (study, manifest)
}

fn give_up(bench: &mut Bench, site: SiteId, (study, manifest): &(UidText, [u8; 32])) -> Outcome {
    bench.run(site, Command::GiveUp { study: study.clone(), manifest: *manifest })
}

fn holders(bench: &Bench, (study, _): &(UidText, [u8; 32])) -> Vec<SiteId> {
    bench.view(|view| view.study(study.as_str())).expect("known").parts[0].holders.clone()
}

const NEEDED: Outcome = Outcome::Refused(Refusal::CopyNeeded);

#[test]
fn what_is_staged_holds_only_once_it_is_applied_by_the_version_that_was_seen() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let none = Outcome::Refused(Refusal::OtherLayout { staged: 0 });
    assert_eq!(apply(&mut bench, 0, ""), none);
    assert_eq!(staged(&mut bench, share(lyon, 500, "")), 1);
    assert_eq!(applied(&bench), Layout::default(), "nothing holds yet");
    assert_eq!(staged(&mut bench, Change::Zones(2)), 2);
    // Somebody changed it since version 1 was looked at.
    let other = Outcome::Refused(Refusal::OtherLayout { staged: 2 });
    assert_eq!(apply(&mut bench, 1, ""), other);
    assert_eq!(bench.run(PARIS, Command::RevertPlacement { version: 1 }), other);
    assert_eq!(apply(&mut bench, 2, ""), Outcome::Done);
    let layout = applied(&bench);
    assert_eq!((layout.version, layout.zones, layout.sites[0].weight), (2, 2, Some(500)));
    assert_eq!(apply(&mut bench, 2, ""), none, "once");
    assert_eq!(staged(&mut bench, Change::Copies(2)), 3);
    assert_eq!(bench.run(PARIS, Command::RevertPlacement { version: 3 }), Outcome::Done);
    assert_eq!((applied(&bench).version, bench.view(|view| view.placement()).staged), (2, None));
    assert_eq!(staged(&mut bench, Change::Copies(2)), 4, "a version is never used for another layout");
    let stranger =
        Change::Share(Share { site: SiteId(77), weight: None, zone: Name::default(), region: Name::default() });
    assert_eq!(bench.run(PARIS, Command::StagePlacement(stranger)), Outcome::Refused(Refusal::NoSuchSite));
    assert_eq!(
        staged(
            &mut bench,
            Change::Share(Share { site: lyon, weight: None, zone: Name::default(), region: Name::default() })
        ),
        5
    );
    let placement = bench.view(|view| view.placement());
    assert_eq!(placement.staged.map(|staged| staged.sites), Some(vec![]), "a share that says nothing is none");
}

#[test]
fn a_layout_that_leaves_images_too_few_sites_is_applied_only_with_a_reason() {
    let mut bench = Bench::founded();
    let [lyon, nantes] = ["lyon", "nantes"].map(|name| bench.join(name));
    let alone = only(Origin::Site(lyon), Holders::Only(vec![]));
    let version = staged(&mut bench, alone.clone());
    let refused = apply(&mut bench, version, "");
    assert!(
        matches!(
            &refused,
            Outcome::Refused(Refusal::PlacementImpossible { origin, zones: 2, zones_possible: 1, .. })
                if origin.as_str() == "lyon"
        ),
        "{refused:?}"
    );
    assert_eq!(apply(&mut bench, version, "its contract says so"), Outcome::Done);
    let plan = bench.view(|view| view.plan());
    assert!(plan.allows(lyon, lyon) && !plan.allows(lyon, nantes) && plan.allows(PARIS, nantes));
    // What was impossible before does not forbid another change.
    let version = staged(&mut bench, share(nantes, 9, ""));
    assert_eq!(apply(&mut bench, version, ""), Outcome::Done);
    let version = staged(&mut bench, only(Origin::Any, Holders::AllBut(vec![PARIS, lyon, nantes])));
    assert!(matches!(apply(&mut bench, version, ""), Outcome::Refused(Refusal::PlacementImpossible { .. })));
    // One zone for all is no zone to spare.
    assert_eq!(bench.run(PARIS, Command::RevertPlacement { version }), Outcome::Done);
    for site in [lyon, nantes] {
        staged(&mut bench, share(site, 100, "paris"));
    }
    staged(&mut bench, Change::EndContract(Origin::Site(lyon)));
    let version = staged(&mut bench, Change::Zones(2));
    assert!(matches!(
        apply(&mut bench, version, ""),
        Outcome::Refused(Refusal::PlacementImpossible { zones: 2, zones_possible: 1, .. })
    ));
}

#[test]
fn the_narrowest_contract_counts_alone() {
    let mut bench = Bench::founded();
    let [lyon, nantes] = ["lyon", "nantes"].map(|name| bench.join(name));
    bench.run(lyon, Command::Situate { place: place("ght-east", "d", "east") });
    bench.run(nantes, Command::Situate { place: place("ght-west", "d", "west") });
    staged(&mut bench, only(Origin::Any, Holders::AllBut(vec![lyon])));
    staged(&mut bench, only(Origin::Territory(Name::fitted("ght-east")), Holders::Only(vec![nantes])));
    let version = staged(&mut bench, only(Origin::Site(nantes), Holders::Any));
    assert_eq!(apply(&mut bench, version, "to see"), Outcome::Done);
    let allows = |bench: &Bench, origin| {
        let plan = bench.view(|view| view.plan());
        [PARIS, lyon, nantes].map(|site| plan.allows(origin, site))
    };
    assert_eq!(allows(&bench, PARIS), [true, false, true], "the contract of all");
    assert_eq!(allows(&bench, lyon), [false, true, true], "that of its territory, and itself");
    assert_eq!(allows(&bench, nantes), [true, true, true], "its own");
    let regions = vec![Name::fitted("west")];
    let contract = Contract { origin: Origin::Site(nantes), holders: Holders::Any, regions, copies: 1, zones: 0 };
    let version = staged(&mut bench, Change::Contract(contract));
    assert_eq!(apply(&mut bench, version, "to see"), Outcome::Done);
    assert_eq!(allows(&bench, nantes), [false, false, true], "nobody else is in the west");
    assert_eq!(bench.view(|view| view.plan()).copies(nantes), 1);
}

#[test]
fn a_layout_says_nothing_of_a_gateway_and_none_is_applied_that_does() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let chu = mesh::gateway(&mut bench, "chu");
    let refused = Outcome::Refused(Refusal::NotACentre(Name::fitted("chu")));
    let confined = only(Origin::Site(chu), Holders::Only(vec![PARIS]));
    for change in [
        confined.clone(),
        only(Origin::Site(PARIS), Holders::Only(vec![lyon, chu])),
        only(Origin::Any, Holders::AllBut(vec![chu])),
        share(chu, 100, ""),
    ] {
        assert_eq!(bench.run(PARIS, Command::StagePlacement(change.clone())), refused, "{change:?}");
    }
    let stranger = only(Origin::Site(SiteId(77)), Holders::Any);
    assert_eq!(bench.run(PARIS, Command::StagePlacement(stranger)), Outcome::Refused(Refusal::NoSuchSite));
    assert_eq!(bench.view(|view| view.placement()).staged, None);

    // However it came to be staged.
    let version = staged(&mut bench, Change::Copies(2));
    let mut placement = bench.view(|view| view.placement());
    assert!(placement.staged.as_mut().expect("staged").change(&confined));
    let mut transaction = Transaction::new(&*bench.engine);
    transaction.put(keys::PLACEMENT, crate::record::Record::encode(&placement, FORMAT));
    bench.engine.commit(transaction.into_batch()).expect("commit");
    assert_eq!(apply(&mut bench, version, "so be it"), refused, "no reason makes it true");
    assert_eq!(applied(&bench), Layout::default());
    let version = staged(&mut bench, Change::EndContract(Origin::Site(chu)));
    assert_eq!(apply(&mut bench, version, ""), Outcome::Done);
    assert_eq!((applied(&bench).copies, applied(&bench).contracts), (2, vec![]));
}

#[test]
fn a_copy_is_given_up_only_when_the_mesh_does_without_it() {
    let mut bench = Bench::founded();
    let [lyon, nantes, lille] = ["lyon", "nantes", "lille"].map(|name| bench.join(name));
    let three = held(&mut bench, "A1", &[PARIS, lyon, nantes]);
    assert_eq!(give_up(&mut bench, lyon, &three), NEEDED, "three are wanted");
    assert_eq!(give_up(&mut bench, lille, &three), Outcome::Refused(Refusal::DoneAlready));
    let four = held(&mut bench, "A2", &[PARIS, lyon, nantes, lille]);
    // Two that both see four copies: the second is one of three by then.
    assert_eq!(give_up(&mut bench, lyon, &four), Outcome::Done);
    assert_eq!(give_up(&mut bench, nantes, &four), NEEDED);
    assert_eq!(holders(&bench, &four), [PARIS, nantes, lille]);
    assert_eq!(bench.view(|view| view.counts()).more.copies_lost, 0, "given up, not lost");
    // Who is away is not counted on.
    bench.run(lyon, Command::RecordHolding { study: four.0.clone(), manifest: four.1, holds: true });
    bench.run(PARIS, Command::ExpireSession { site: lille, session: 1 });
    assert_eq!(give_up(&mut bench, lyon, &four), NEEDED);
    bench.run(lille, Command::OpenSession);
    assert_eq!(give_up(&mut bench, lyon, &four), Outcome::Done);
}

#[test]
fn a_drained_site_gives_its_copies_up_once_others_have_them() {
    let mut bench = Bench::founded();
    let [lyon, nantes, lille] = ["lyon", "nantes", "lille"].map(|name| bench.join(name));
    let study = held(&mut bench, "A1", &[PARIS, lyon, nantes]);
    let below = |bench: &Bench| bench.view(|view| view.counts()).studies_below_wanted;
    assert_eq!(below(&bench), 0);
    assert_eq!(drain(&mut bench, PARIS, false), Outcome::Done);
    assert_eq!(drain(&mut bench, PARIS, false), Outcome::Refused(Refusal::DoneAlready));
    assert_eq!(below(&bench), 1, "its copy counts no more");
    assert_eq!(bench.view(|view| view.studies_below_wanted(None, 9)), [study.0.to_string()]);
    assert_eq!(give_up(&mut bench, PARIS, &study), NEEDED);
    bench.run(lille, Command::RecordHolding { study: study.0.clone(), manifest: study.1, holds: true });
    assert_eq!(below(&bench), 0);
    assert_eq!(give_up(&mut bench, PARIS, &study), Outcome::Done);
    assert_eq!(holders(&bench, &study), [lyon, nantes, lille]);
    assert_eq!((below(&bench), bench.view(|view| view.counts()).studies_below_two), (0, 0));
    // With another drained there are two places left: two copies are as many as there can be.
    assert_eq!(drain(&mut bench, lyon, false), Outcome::Done);
    assert_eq!(below(&bench), 1, "fewer than wanted all the same");
    assert_eq!(give_up(&mut bench, lyon, &study), Outcome::Done);
    // A third leaves one zone.
    assert!(matches!(drain(&mut bench, lille, false), Outcome::Refused(Refusal::PlacementImpossible { .. })));
    assert!(!bench.view(|view| view.plan()).ground(lille).expect("there").is_draining, "a refusal leaves nothing");
    assert_eq!(drain(&mut bench, lille, true), Outcome::Done);
    assert_eq!(give_up(&mut bench, lille, &study), NEEDED, "one of the last two, forced or not");
    assert_eq!(drain(&mut bench, nantes, true), Outcome::Done);
    for site in [nantes, lille] {
        assert_eq!(give_up(&mut bench, site, &study), NEEDED, "never the last");
    }
    for site in [PARIS, lyon, nantes, lille] {
        assert_eq!(bench.run(PARIS, Command::Undrain { site, reason: Line::default() }), Outcome::Done);
    }
    assert_eq!(below(&bench), 1, "nantes and lille hold it");
    let again = Command::Undrain { site: lyon, reason: Line::default() };
    assert_eq!(bench.run(PARIS, again), Outcome::Refused(Refusal::DoneAlready));
}

#[test]
fn two_copies_stay_unless_one_is_wanted_or_their_place_is_forbidden() {
    let mut bench = Bench::founded();
    let [lyon, nantes] = ["lyon", "nantes"].map(|name| bench.join(name));
    let study = held(&mut bench, "A1", &[PARIS, lyon]);
    assert_eq!(drain(&mut bench, lyon, true), Outcome::Done);
    assert_eq!(drain(&mut bench, nantes, true), Outcome::Done);
    assert_eq!(give_up(&mut bench, lyon, &study), NEEDED);
    let version = staged(&mut bench, only(Origin::Site(PARIS), Holders::AllBut(vec![lyon, nantes])));
    assert_eq!(apply(&mut bench, version, "its contract ended"), Outcome::Done);
    assert_eq!(give_up(&mut bench, lyon, &study), Outcome::Done, "it may not lie there");
    let one = held(&mut bench, "A2", &[lyon, PARIS]);
    assert_eq!(give_up(&mut bench, lyon, &one), NEEDED);
    let version = staged(&mut bench, Change::Copies(1));
    assert_eq!(apply(&mut bench, version, "a test mesh"), Outcome::Done);
    assert_eq!(give_up(&mut bench, lyon, &one), Outcome::Done, "one is wanted");
}

#[test]
fn zones_are_kept_when_a_copy_is_given_up() {
    let mut bench = Bench::founded();
    let [lyon, nantes, lille] = ["lyon", "nantes", "lille"].map(|name| bench.join(name));
    for site in [lyon, nantes] {
        staged(&mut bench, share(site, 100, "paris"));
    }
    let version = staged(&mut bench, Change::Copies(3));
    assert_eq!(apply(&mut bench, version, ""), Outcome::Done);
    let study = held(&mut bench, "A1", &[PARIS, lyon, nantes, lille]);
    assert_eq!(give_up(&mut bench, lille, &study), NEEDED, "the only one in another zone");
    assert_eq!(give_up(&mut bench, nantes, &study), Outcome::Done);
}

#[test]
fn images_that_stay_where_they_were_received_are_counted_apart() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let count = |bench: &Bench| {
        let counts = bench.view(|view| view.counts());
        [counts.studies, counts.studies_below_two, counts.studies_below_wanted, counts.more.studies_confined]
    };
    let study = held(&mut bench, "A1", &[PARIS, lyon]);
    assert_eq!(count(&bench), [1, 0, 1, 0]);
    let refused = || Order { consent: Consent::Refused, ..Order::default() };
    bench.run(PARIS, Command::Order { request: request("A1", "P1"), order: refused() });
    assert_eq!(count(&bench), [1, 0, 0, 1], "nothing is missed of it");
    assert_eq!(bench.view(|view| view.confined(None, Some("9"))).len(), 1);
    assert_eq!(give_up(&mut bench, lyon, &study), Outcome::Refused(Refusal::ConsentRefused), "that goes another way");
    bench.run(lyon, Command::RecordHolding { study: study.0.clone(), manifest: study.1, holds: false });
    assert_eq!(count(&bench), [1, 0, 0, 1]);
    // Another site received images of another patient under the same UID: those are missed.
    let says = request("A2", "P2");
    bench.run(lyon, Command::RecordStudy(StudyPart { study: study.0.clone(), ..part("1.9", says, 1) }));
    assert_eq!(count(&bench), [1, 1, 1, 1]);
    assert_eq!(drain(&mut bench, lyon, true), Outcome::Done);
    assert_eq!(count(&bench), [1, 1, 1, 1], "judged anew, and the same");
}

#[test]
fn a_site_says_whether_it_has_room() {
    let mut bench = Bench::founded();
    let full = |bench: &Bench| bench.view(|view| view.plan()).ground(PARIS).expect("there").is_full;
    assert_eq!(bench.run(PARIS, Command::ReportRoom { full: true }), Outcome::Done);
    assert!(full(&bench));
    let since = bench.view(|view| view.standings());
    bench.run(PARIS, Command::ReportRoom { full: true });
    assert_eq!(bench.view(|view| view.standings()), since, "since when it was first said");
    bench.run(PARIS, Command::ReportRoom { full: false });
    assert!(!full(&bench));
}

#[test]
fn a_change_out_of_range_is_refused_before_the_log() {
    let contract = |sites: usize| only(Origin::Any, Holders::Only((0..sites as u64).map(SiteId).collect()));
    for (change, is_good) in [
        (Change::Copies(8), false),
        (Change::Zones(7), true),
        (share(PARIS, 20_000_000, ""), false),
        (contract(64), true),
        (contract(65), false),
    ] {
        let (id, user) = (CommandId::random(), Name::default());
        let command = Command::StagePlacement(change);
        let envelope = Envelope { id, at: UnixMillisField(0), site: PARIS, user, command };
        assert_eq!(envelope.check().is_ok(), is_good, "{:?}", envelope.command);
    }
}
