//! What was acknowledged is there in the end, at every site, and as it was acknowledged.

use std::collections::BTreeMap;

use super::{Exam, Exams};
use crate::history::{Act, Op, Told, Violation};

const CHECK: &str = "what was acknowledged stays";

/// What a hospital sent under an accession number.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) patient: String,
    pub(crate) study: String,
    /// Whether an instance of it was acknowledged.
    pub(crate) has_images: bool,
}

/// Checks one site's exams against what all clients were told. Every exam must have been read.
pub(crate) fn check(site: &str, ops: &[Op], exams: &Exams, sent: &BTreeMap<String, Sent>) -> Vec<Violation> {
    let mut found = Vec::new();
    for op in ops {
        let Some(id) = op.exam() else { continue };
        if matches!(op.told, None | Some(Told::Refused { .. })) {
            continue;
        }
        match exams.get(&id) {
            None => found.push(format!("exam {id} is not there; {} was told {:?}", op.user, op.told)),
            Some(exam) => check_op(op, exam, &mut found),
        }
    }
    for exam in exams.values() {
        check_exam(exam, sent.get(&exam.accession), &mut found);
    }
    found.into_iter().map(|what| Violation::new(CHECK, format!("at {site}: {what}"))).collect()
}

fn check_op(op: &Op, exam: &Exam, found: &mut Vec<String>) {
    let id = exam.id;
    match (&op.act, &op.told) {
        (Act::Add { accession, .. }, _) if exam.accession != *accession => {
            found.push(format!("exam {id} is of {}, and was acknowledged as {accession}", exam.accession));
        }
        (_, Some(Told::Granted { token, .. })) => {
            let by = exam.workitems.iter().find(|item| item.token == Some(*token)).and_then(|item| item.user.as_ref());
            if by != Some(&op.user) {
                found.push(format!("exam {id}: {} was granted it under {token}, the record says {by:?}", op.user));
            }
        }
        (Act::Release { token, .. }, Some(Told::Done)) if !is_on_record(exam, *token, "CANCELED") => {
            found.push(format!("exam {id}: token {token} was released, the record does not say so"));
        }
        (Act::Report { token, text, .. }, Some(Told::Done)) => {
            let valid: Vec<_> = exam.reports.iter().filter(|report| !report.stale).collect();
            if !matches!(valid[..], [report] if report.token == *token && report.text == *text) {
                found.push(format!("exam {id}: the report under {token} was acknowledged, shown is {valid:?}"));
            }
            if !is_on_record(exam, *token, "COMPLETED") {
                found.push(format!("exam {id}: no completed workitem has token {token}"));
            }
        }
        (Act::Report { text, .. }, Some(Told::Stale { kept_as: Some(number) })) => {
            let kept = exam.reports.iter().find(|report| report.number == *number);
            if !kept.is_some_and(|draft| draft.stale && draft.text == *text) {
                found.push(format!("exam {id}: a draft was kept as {number}, shown is {kept:?}"));
            }
        }
        _ => {}
    }
}

fn is_on_record(exam: &Exam, token: u64, state: &str) -> bool {
    exam.workitems.iter().any(|item| item.token == Some(token) && item.state == state)
}

fn check_exam(exam: &Exam, sent: Option<&Sent>, found: &mut Vec<String>) {
    let id = exam.id;
    let Some(sent) = sent else {
        found.push(format!("exam {id}: nobody sent accession number {}", exam.accession));
        return;
    };
    if exam.patient != sent.patient {
        found.push(format!("exam {id}: shown under another patient"));
    }
    if exam.unsolicited {
        found.push(format!("exam {id} is unsolicited, but it was requested"));
    }
    if exam.studies.iter().any(|study| *study != sent.study) || (sent.has_images && exam.studies.is_empty()) {
        found.push(format!("exam {id}: its study is {}, shown are {:?}", sent.study, exam.studies));
    }
    if exam.state != "reported" {
        found.push(format!("exam {id} was never read: it is {}", exam.state));
    }
    let valid = exam.reports.iter().filter(|report| !report.stale).count();
    if exam.state == "reported" && valid != 1 {
        found.push(format!("exam {id} is reported and has {valid} reports"));
    }
    let tokens: Vec<u64> = exam.workitems.iter().filter_map(|item| item.token).collect();
    if !tokens.is_sorted_by(|a, b| a < b) {
        found.push(format!("exam {id}: the tokens of its workitems are {tokens:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{exam, granted, op, released, reported};

    fn found(ops: &[Op], exam: Option<Exam>) -> Vec<Violation> {
        let sent = Sent { patient: "P1".to_owned(), study: "1.2.3".to_owned(), has_images: true };
        let exams = exam.into_iter().map(|exam| (exam.id, exam)).collect();
        check("lyon", ops, &exams, &BTreeMap::from([("A1".to_owned(), sent)]))
    }

    fn added() -> Op {
        op("h", 1, 2, Act::Add { accession: "A1".to_owned(), awaits_images: true }, Told::Added { exam: 1 })
    }

    fn read() -> Exam {
        exam(&[("CANCELED", "b", 5, "released"), ("COMPLETED", "a", 7, "")])
    }

    fn history() -> Vec<Op> {
        vec![added(), granted("b", 3, 4, 5), released("b", 5, 6, 5), granted("a", 7, 8, 7), reported("a", 9, 10, 7)]
    }

    #[test]
    fn a_good_end_is_accepted() {
        assert_eq!(found(&history(), Some(read())), []);
    }

    #[test]
    fn an_acknowledged_exam_is_there() {
        assert!(!found(&[added()], None).is_empty());
        let other = Exam { accession: "A2".to_owned(), ..read() };
        assert!(!found(&[added()], Some(other)).is_empty());
    }

    #[test]
    fn the_report_shown_is_the_one_that_was_acknowledged() {
        let spoil: [fn(&mut Exam); 5] = [
            |exam| exam.reports.clear(),
            |exam| exam.reports[0].text.push('!'),
            |exam| exam.reports[0].token = 5,
            |exam| exam.reports[0].stale = true,
            |exam| exam.reports.push(exam.reports[0].clone()),
        ];
        for spoil in spoil {
            let mut spoiled = read();
            spoil(&mut spoiled);
            assert!(!found(&history(), Some(spoiled.clone())).is_empty(), "{spoiled:?}");
        }
    }

    #[test]
    fn every_grant_and_release_is_on_record() {
        let mut forgotten = read();
        forgotten.workitems.remove(0);
        assert_eq!(found(&history(), Some(forgotten)).len(), 2);
        let falling = exam(&[("CANCELED", "b", 9, ""), ("COMPLETED", "a", 7, "")]);
        assert!(!found(&[], Some(falling)).is_empty());
    }

    #[test]
    fn a_kept_draft_is_kept() {
        let text = "late".to_owned();
        let late = op("b", 11, 12, Act::Report { exam: 1, token: 5, text }, Told::Stale { kept_as: Some(2) });
        assert_eq!(found(std::slice::from_ref(&late), Some(read())).len(), 1);
        let mut kept = read();
        kept.reports.push(super::super::Report { number: 2, text: "late".to_owned(), token: 5, stale: true });
        assert_eq!(found(&[late], Some(kept)), []);
    }

    #[test]
    fn an_exam_shows_its_own_patient_and_study_and_was_read() {
        let spoil: [fn(&mut Exam); 6] = [
            |exam| exam.patient.push('x'),
            |exam| exam.studies.push("1.2.4".to_owned()),
            |exam| exam.studies.clear(),
            |exam| exam.unsolicited = true,
            |exam| exam.state = "waiting".to_owned(),
            |exam| exam.accession = "A9".to_owned(),
        ];
        for spoil in spoil {
            let mut spoiled = read();
            spoil(&mut spoiled);
            assert!(!found(&[], Some(spoiled.clone())).is_empty(), "{spoiled:?}");
        }
    }
}
