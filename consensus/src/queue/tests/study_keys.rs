//! Keys of sealed images: destroyed by the purge of what they seal and by nothing else, for good, and provably.

use std::collections::BTreeSet;

use proptest::prelude::{Strategy, prop, prop_oneof};
use proptest::test_runner::TestCaseError;
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::ids::{KeyId, Secret};
use crate::mesh::Tombstone;
use crate::study_key::{Destruction, KeptKey};

fn id(n: u8) -> KeyId {
    KeyId([n; 16])
}

/// Bytes that nothing else in a state has.
fn secret(n: u8) -> Secret {
    Secret(*blake3::hash(&[0x5e, n]).as_bytes())
}

impl Bench {
    fn keep(&mut self, site: SiteId, study: &str, n: u8, sequence: u64) -> Outcome {
        self.run(site, Command::KeepKey { study: UidText::fitted(study), id: id(n), sequence, secret: secret(n) })
    }

    fn key(&self, n: u8) -> Option<KeptKey> {
        self.view(|view| view.study_key(id(n))).map(|key| key.what)
    }

    /// Whether the bytes of a key are anywhere in the state.
    fn has_bytes_of(&self, n: u8) -> bool {
        let all = maillage_host::engine::scan_prefix(&*self.engine, &[], usize::MAX).expect("scan");
        all.iter().any(|(_, value)| value.windows(32).any(|window| window == secret(n).0))
    }

    fn record(&mut self, site: SiteId, study: &str, accession: &str, sequence: u64) -> Outcome {
        self.run(site, Command::RecordStudy(part(study, request(accession, "P1"), sequence)))
    }

    fn purge_now(&mut self, exam: ExamId) -> Outcome {
        self.run(PARIS, Command::Purge { exam, reason: Line::fitted("withdrawn"), withdrawn: true })
    }

    fn confirmed(&mut self, site: SiteId, exam: ExamId) {
        for Tombstone { exam, study, manifest, .. } in self.view(|view| view.tombstones(exam)) {
            self.run(site, Command::RecordPurged { exam, study, manifest });
        }
    }
}

fn recorded(outcome: Outcome) -> ExamId {
    match outcome {
        Outcome::StudyRecorded { exam, .. } => exam,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_study_is_purged_whole_if_all_that_is_known_of_it_came_later() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let whole = |bench: &Bench| bench.view(|view| view.purged_whole_at("1.2"));
    bench.keep(PARIS, "1.2", 1, 1);
    let first = recorded(bench.record(PARIS, "1.2", "A1", 1));
    assert_eq!(whole(&bench), None);
    assert_eq!(bench.purge_now(first), Outcome::Done);
    let purged_at = bench.view(|view| view.purged_at("1.2"));
    assert!(purged_at.is_some());
    assert_eq!(whole(&bench), purged_at);
    for site in [PARIS, lyon] {
        bench.confirmed(site, first);
    }
    bench.now += 1_000;
    bench.keep(PARIS, "1.2", 2, 2);
    recorded(bench.record(PARIS, "1.2", "A1", 2));
    assert_eq!(whole(&bench), purged_at, "what came later");
    bench.now += 1_000;
    recorded(bench.record(lyon, "1.2", "A1", 1));
    assert_eq!(whole(&bench), None, "it is not sealed, and may be as old as it likes");
}

#[test]
fn a_study_of_which_a_part_is_older_than_the_purge_is_not_purged_whole_wherever_that_went() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    bench.keep(PARIS, "1.2", 1, 1);
    let first = recorded(bench.record(PARIS, "1.2", "A1", 1));
    bench.keep(lyon, "1.2", 2, 1);
    let theirs = part("1.2", request("A7", "P9"), 1);
    let unsolicited = recorded(bench.run(lyon, Command::RecordStudy(theirs)));
    assert_ne!(first, unsolicited);
    bench.now += 1_000;
    assert_eq!(bench.purge_now(first), Outcome::Done);
    bench.now += 1_000;
    assert_eq!(bench.view(|view| view.purged_whole_at("1.2")), None);
    let into = bench.add(request("A9", "P9"));
    assert_eq!(bench.run(PARIS, Command::Reconcile { unsolicited, into }), Outcome::Done);
    assert_eq!(bench.view(|view| view.study("1.2")).expect("known").parts[0].exam, into);
    assert_eq!(bench.view(|view| view.purged_whole_at("1.2")), None);
}

#[test]
fn a_purge_destroys_the_keys_of_what_was_published_and_its_tombstone_names_them() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    assert_eq!(bench.keep(PARIS, "1.2", 1, 1), Outcome::Done);
    let exam = recorded(bench.record(PARIS, "1.2", "A1", 1));
    assert_eq!(bench.keep(PARIS, "1.2", 2, 2), Outcome::Done);
    recorded(bench.record(PARIS, "1.2", "A1", 2));
    assert_eq!(bench.keep(PARIS, "1.2", 3, 3), Outcome::Done, "what came since, not published yet");
    assert_eq!(bench.keep(lyon, "1.2", 4, 1), Outcome::Done, "another site's part");
    assert_eq!(bench.keep(PARIS, "1.2.3", 5, 1), Outcome::Done, "another study");
    let brought_at = bench.index - 4;
    assert!(bench.has_bytes_of(1) && bench.has_bytes_of(2), "the search finds what is there");
    assert_eq!(bench.purge_now(exam), Outcome::Done);
    for n in [1, 2] {
        assert!(matches!(bench.key(n), Some(KeptKey::Destroyed { exam: of, .. }) if of == exam));
        assert!(!bench.has_bytes_of(n), "key {n}");
    }
    for n in [3, 4, 5] {
        assert_eq!(bench.key(n), Some(KeptKey::Kept(secret(n))));
    }
    let tombstone = bench.view(|view| view.tombstones(exam)).remove(0);
    assert_eq!(tombstone.keys, [id(1), id(2)]);
    let destruction = bench.view(|view| view.destruction());
    assert_eq!(destruction, Destruction { at: bench.index, brought_at, keys: 2 });
}

#[test]
fn a_destroyed_key_never_comes_back_and_a_key_is_never_replaced() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    bench.keep(PARIS, "1.2", 1, 1);
    assert_eq!(bench.keep(PARIS, "1.2", 1, 1), Outcome::Done, "a repeat");
    let (study, other) = (UidText::fitted("1.2"), secret(9));
    let forged = Command::KeepKey { study, id: id(1), sequence: 1, secret: other };
    assert_eq!(bench.run(PARIS, forged), Outcome::Refused(Refusal::OtherKey));
    assert_eq!(bench.keep(lyon, "1.2", 1, 1), Outcome::Refused(Refusal::OtherKey));
    assert_eq!(bench.keep(PARIS, "1.2.9", 1, 1), Outcome::Refused(Refusal::OtherKey));
    assert_eq!(bench.key(1), Some(KeptKey::Kept(secret(1))));
    let exam = recorded(bench.record(PARIS, "1.2", "A1", 1));
    bench.purge_now(exam);
    assert_eq!(bench.keep(PARIS, "1.2", 1, 2), Outcome::Refused(Refusal::KeyDestroyed));
    assert_eq!(bench.keep(PARIS, "1.2", 2, 1), Outcome::Refused(Refusal::PartSuperseded { sequence: 1 }));
    assert!(!bench.has_bytes_of(1) && !bench.has_bytes_of(2));
    assert_eq!(bench.keep(PARIS, "1.2", 2, 2), Outcome::Done, "of what comes after the purge");
}

#[test]
fn the_trail_names_keys_and_tells_none() {
    let mut bench = Bench::founded();
    bench.keep(PARIS, "1.2", 1, 1);
    let link = bench.view(|view| view.audit(0, 1000)).pop().expect("an entry");
    assert_eq!(link.entry.kind.as_str(), "keep-key");
    assert_eq!(link.entry.why.as_str(), format!("key {}", id(1)));
    let command = Command::KeepKey { study: UidText::fitted("1.2"), id: id(1), sequence: 1, secret: secret(1) };
    let said = format!("{command:?} {:?}", bench.key(1));
    let bytes = secret(1).0;
    assert!(!said.contains(&format!("{bytes:?}")) && !said.contains(&bytes[0].to_string().repeat(2)), "{said}");
    assert!(said.contains("Secret(…)"));
}

/// A step of a life of keys.
#[derive(Debug, Clone)]
enum Step {
    /// A site brings a key for its next publication of a study, or for one `behind` that.
    Keep {
        site: usize,
        study: usize,
        n: u8,
        behind: u64,
    },
    Record {
        site: usize,
        study: usize,
    },
    /// The exam of a site's part of a study is purged.
    Purge {
        site: usize,
        study: usize,
    },
    /// A site confirms what it had to purge.
    Confirm {
        site: usize,
    },
}

const STUDIES: [&str; 3] = ["1.2", "1.2.3", "1.2.34"];

fn step() -> impl Strategy<Value = Step> {
    let (site, study) = (|| 0..2_usize, || 0..STUDIES.len());
    prop_oneof![
        4 => (site(), study(), 1..20_u8, prop::bool::weighted(0.2))
            .prop_map(|(site, study, n, behind)| Step::Keep { site, study, n, behind: u64::from(behind) }),
        3 => (site(), study()).prop_map(|(site, study)| Step::Record { site, study }),
        2 => (site(), study()).prop_map(|(site, study)| Step::Purge { site, study }),
        2 => site().prop_map(|site| Step::Confirm { site }),
    ]
}

/// What a plain reading of the rules says of each key.
#[derive(Default)]
struct Model {
    kept: BTreeMap<u8, (usize, usize, u64)>,
    destroyed: BTreeSet<u8>,
    /// The last publication of a site's part of a study, and its exam.
    parts: BTreeMap<(usize, usize), (u64, ExamId)>,
    purged: BTreeMap<(usize, usize), u64>,
    pending: BTreeSet<(usize, usize, usize)>,
}

impl Model {
    fn next(&self, at: (usize, usize)) -> u64 {
        let published = self.parts.get(&at).map(|part| part.0);
        published.unwrap_or_else(|| self.purged.get(&at).copied().unwrap_or(0)) + 1
    }

    fn step(&mut self, bench: &mut Bench, sites: [SiteId; 2], step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Keep { site, study, n, behind } => {
                let at = (site, study);
                let sequence = self.next(at) - behind;
                let outcome = bench.keep(sites[site], STUDIES[study], n, sequence);
                let last_purged = self.purged.get(&at).copied().unwrap_or(0);
                let expected = if self.destroyed.contains(&n) {
                    Refusal::KeyDestroyed.into()
                } else if let Some((of_site, of_study, _)) = self.kept.get(&n) {
                    if (*of_site, *of_study) == at { Outcome::Done } else { Refusal::OtherKey.into() }
                } else if sequence <= last_purged {
                    Refusal::PartSuperseded { sequence: last_purged }.into()
                } else {
                    self.kept.insert(n, (site, study, sequence));
                    Outcome::Done
                };
                prop_assert_eq!(outcome, expected);
            }
            Step::Record { site, study } => {
                let sequence = self.next((site, study));
                // Each site's images of a study name another patient: parts end apart from each other.
                let says = request(&format!("A{site}{study}"), &format!("P{site}"));
                let outcome = bench.run(sites[site], Command::RecordStudy(part(STUDIES[study], says, sequence)));
                if self.pending.iter().any(|(of, waits, _)| (*of, *waits) == (site, study)) {
                    prop_assert_eq!(outcome, Outcome::Refused(Refusal::Purging));
                } else {
                    self.parts.insert((site, study), (sequence, recorded(outcome)));
                }
            }
            Step::Purge { site, study } => {
                let Some((_, exam)) = self.parts.get(&(site, study)).copied() else { return Ok(()) };
                prop_assert_eq!(bench.purge_now(exam), Outcome::Done);
                let gone: Vec<_> = self.parts.extract_if(.., |_, part| part.1 == exam).collect();
                for ((site, study), (sequence, _)) in gone {
                    self.purged.insert((site, study), sequence);
                    self.pending.extend([(0, study, site), (1, study, site)]);
                    let is_of = |of: &(usize, usize, u64)| (of.0, of.1) == (site, study) && of.2 <= sequence;
                    let keys: Vec<u8> = self.kept.extract_if(.., |_, of| is_of(of)).map(|(n, _)| n).collect();
                    self.destroyed.extend(keys);
                }
            }
            Step::Confirm { site } => {
                while let Some(tombstone) = bench.view(|view| view.purges_of(sites[site], None, 1)).0.pop() {
                    bench.confirmed(sites[site], tombstone.exam);
                }
                self.pending.retain(|(at, ..)| *at != site);
            }
        }
        Ok(())
    }

    fn check(&self, bench: &Bench, sites: [SiteId; 2]) -> Result<(), TestCaseError> {
        for n in 1..20 {
            match bench.key(n) {
                Some(KeptKey::Kept(kept)) => prop_assert!(self.kept.contains_key(&n) && kept == secret(n)),
                Some(KeptKey::Destroyed { .. }) => prop_assert!(self.destroyed.contains(&n)),
                None => prop_assert!(!self.kept.contains_key(&n) && !self.destroyed.contains(&n)),
            }
        }
        for (site, id) in sites.into_iter().enumerate() {
            for (study, uid) in STUDIES.iter().enumerate() {
                let listed: BTreeSet<KeyId> =
                    bench.view(|view| view.study_keys_of(uid, id)).into_iter().map(|key| key.id).collect();
                let of = self.kept.iter().filter(|(_, of)| (of.0, of.1) == (site, study));
                prop_assert_eq!(listed, of.map(|(n, _)| KeyId([*n; 16])).collect::<BTreeSet<_>>());
            }
        }
        prop_assert_eq!(bench.view(|view| view.destruction()).keys, self.destroyed.len() as u64);
        Ok(())
    }
}

proptest! {
    #[test]
    fn random_lives_of_keys_are_as_the_rules_say(steps in prop::collection::vec(step(), 1..60)) {
        let mut bench = Bench::founded();
        let sites = [PARIS, bench.join("lyon")];
        let mut model = Model::default();
        for step in &steps {
            model.step(&mut bench, sites, step)?;
            model.check(&bench, sites)?;
        }
        let all = maillage_host::engine::scan_prefix(&*bench.engine, &[], usize::MAX).expect("scan");
        let there: BTreeSet<&[u8]> = all.iter().flat_map(|(_, value)| value.windows(32)).collect();
        for n in 1..20 {
            let is_there = there.contains(&secret(n).0[..]);
            prop_assert_eq!(is_there, model.kept.contains_key(&n), "the bytes of key {}", n);
        }
    }
}
