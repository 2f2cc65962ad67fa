//! The page's HTML for rooms made by hand.

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{
    Claim, Course, Exam, ExamState, Patient, Priority, Request, Skipped, Text8, Unsolicited,
};
use maillage_consensus::ids::{ExamId, FencingToken, Line, Name, SiteId, UidText};
use serde_json::json;

use super::super::notice::Retry;
use super::super::room::{MeshLines, SiteLine};
use super::*;
use crate::http::problem::Problem;
use crate::http::status::{Quorum, Reach};
use crate::http::summary::ExamSummary;
use crate::outbox::{Book, Record};

const NOW: UnixMillisField = UnixMillisField(1_767_323_045_000);
const MINUTE: u64 = 60_000;

fn summary(id: u64, priority: Priority, left_ms: i64) -> ExamSummary {
    let due = UnixMillisField(NOW.0.saturating_add_signed(left_ms));
    let request = Request {
        accession: Line::fitted("A1"),
        patient: Patient {
            id: Line::fitted("P1"),
            issuer: Line::default(),
            name: Line::fitted("DOE^JANE"),
            birth_date: Text8::fitted("19560102"),
            sex: Text8::fitted("F"),
        },
        modality: Text8::fitted("CT"),
        description: Line::fitted("Head"),
        hospital: Line::fitted("CH Nord"),
        physician: Line::default(),
        priority,
        awaits_images: true,
    };
    let exam = Exam {
        id: ExamId(id),
        request,
        state: ExamState::Waiting,
        added_at: NOW,
        ready_at: Some(NOW),
        due_at: Some(due),
        ended_at: None,
        unsolicited: None,
        reconciled_into: None,
        studies: Vec::new(),
        workitem: 1,
        claim: None,
        reports: 0,
        images_after_report: false,
        course: Course::default(),
    };
    ExamSummary { exam, copies: Some(2), here: true, copies_wanted: 3, claim_site: None, proofs: false }
}

fn claimed(id: u64, user: &str, site: u64) -> ExamSummary {
    let mut summary = summary(id, Priority::Vital, 5 * 60_000);
    summary.exam.state = ExamState::Claimed;
    summary.exam.claim = Some(Claim {
        token: FencingToken(4242),
        site: SiteId(site),
        session: 1,
        user: Name::fitted(user),
        since: NOW,
        transaction_uid: UidText::fitted("2.25.1"),
    });
    summary.claim_site = Some(Name::fitted("Lyon"));
    summary
}

fn room(reader: Option<&str>, waiting: Vec<ExamSummary>, reading: Vec<ExamSummary>) -> Room {
    Room {
        reader: reader.map(Name::fitted),
        site: SiteId(1),
        applied: 7,
        site_name: "Nantes".to_owned(),
        now: NOW,
        waiting_total: waiting.len() as u64,
        waiting,
        reading,
        mesh: MeshLines {
            cut_off: false,
            heard_at: Some(NOW),
            leader: Some("Lyon".to_owned()),
            quorum: Quorum { voters: 3, needed: 2, alive: 3 },
            below_two: 0,
            sites: vec![SiteLine {
                name: Name::fitted("Nantes"),
                zone: Name::fitted("ouest"),
                role: "leader",
                reach: Reach::Own,
                rtt: None,
            }],
        },
        book: std::sync::Arc::default(),
    }
}

fn text(room: &Room) -> String {
    page(room, Language::French, None).into_string()
}

#[test]
fn markup_from_outside_is_escaped() {
    let mut hostile = summary(7, Priority::Urgent, 1000);
    let script = "<script>alert(1)</script>\"'&";
    hostile.exam.request.patient.name = Line::fitted(script);
    hostile.exam.request.patient.id = Line::fitted(script);
    hostile.exam.request.description = Line::fitted(script);
    hostile.exam.request.hospital = Line::fitted(script);
    hostile.exam.request.modality = Text8::fitted("<b>");
    let mut held = claimed(8, script, 2);
    held.claim_site = Some(Name::fitted(script));
    let mut room = room(Some(script), vec![hostile], vec![held]);
    room.site_name = script.to_owned();
    room.mesh.leader = Some(script.to_owned());
    let text = text(&room);
    assert!(!text.contains("<script>alert"), "{text}");
    assert!(!text.contains("<b>"));
    assert!(text.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!text.contains("value=\"<script"), "attributes too");
}

#[test]
fn invisible_marks_do_not_reach_the_page() {
    let mut hostile = summary(7, Priority::Urgent, 1000);
    hostile.exam.request.patient.name = Line::fitted("DOE\u{202E}^JANE\u{200B}");
    let text = text(&room(None, vec![hostile], Vec::new()));
    assert!(text.contains(">DOE JANE<"));
    assert!(!text.contains('\u{202E}') && !text.contains('\u{200B}'));
}

#[test]
fn there_is_no_inline_script_or_style() {
    let text = text(&room(Some("dr.a"), vec![summary(7, Priority::Vital, 1000)], vec![claimed(8, "dr.a", 1)]));
    assert_eq!(text.matches("<script").count(), 1);
    assert!(text.contains("<script src=\"/static/room.js\" defer></script>"));
    for inline in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
        assert!(!text.contains(inline), "{inline}");
    }
}

#[test]
fn priority_and_time_are_told_by_shape_text_and_class() {
    let row = |priority, left: i64| text(&room(None, vec![summary(7, priority, left)], Vec::new()));
    let minutes = |minutes: i64| minutes * i64::try_from(MINUTE).expect("small");
    assert!(
        row(Priority::Vital, minutes(20))
            .contains("<span class=\"priority p-vital\"><span aria-hidden=\"true\">◆ </span>vitale</span>")
    );
    assert!(row(Priority::Vital, minutes(20)).contains("<td>20 min</td>"));
    assert!(
        row(Priority::Vital, minutes(7))
            .contains("<span class=\"short\"><span aria-hidden=\"true\">◔ </span>7 min</span>")
    );
    assert!(!row(Priority::Vital, minutes(8)).contains("◔"), "amber only from three quarters of the target on");
    assert!(
        row(Priority::Vital, -minutes(3))
            .contains("<span class=\"late\"><span aria-hidden=\"true\">⚠ </span>+3 min retard</span>")
    );
}

#[test]
fn only_ones_own_claim_can_be_reported_or_released() {
    let own = text(&room(Some("dr.a"), Vec::new(), vec![claimed(8, "dr.a", 1)]));
    assert!(own.contains("action=\"/ui/exams/8/report\"") && own.contains("action=\"/ui/exams/8/release\""));
    assert!(own.contains("name=\"token\" value=\"4242\""));
    for (reader, site) in [(Some("dr.b"), 1), (Some("dr.a"), 2), (None, 1)] {
        let other = text(&room(reader, Vec::new(), vec![claimed(8, "dr.a", site)]));
        assert!(!other.contains("/ui/exams/8/") && !other.contains("4242"), "{reader:?} {site}");
        assert!(other.contains("<strong>dr.a</strong>, Lyon"), "the holder is shown");
    }
}

#[test]
fn nobody_claims_without_a_name_and_each_form_has_its_own_key() {
    let waiting = || vec![summary(7, Priority::Urgent, 1000), summary(8, Priority::Urgent, 1000)];
    let nobody = text(&room(None, waiting(), Vec::new()));
    assert!(!nobody.contains("/ui/next") && !nobody.contains("/claim\""));
    let reader = text(&room(Some("dr.a"), waiting(), Vec::new()));
    let mut keys: Vec<&str> = reader.split("name=\"key\" value=\"").skip(1).map(|rest| &rest[..36]).collect();
    assert_eq!(keys.len(), 3);
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 3);
}

#[test]
fn a_site_that_is_cut_off_says_so_and_since_when() {
    let mut room = room(Some("dr.a"), Vec::new(), Vec::new());
    assert!(!text(&room).contains("Coupé"));
    room.mesh.cut_off = true;
    assert!(text(&room).contains("Coupé des autres sites depuis <strong>03:04:05 UTC</strong> : la lecture continue"));
    assert!(text(&room).contains("non atteint"));
    let english = page(&room, Language::English, None).into_string();
    assert!(english.contains("Cut off from the other sites since"));
}

#[test]
fn unsolicited_images_are_marked_with_their_reason() {
    let mut odd = summary(7, Priority::Urgent, 1000);
    odd.exam.unsolicited = Some(Unsolicited::OtherPatient);
    let text = text(&room(None, vec![odd], Vec::new()));
    assert!(text.contains("À rapprocher : la demande de ce numéro nomme un autre patient"));
}

#[test]
fn what_a_reader_must_see_at_once_stands_beside_the_exam() {
    let plain = text(&room(None, vec![summary(7, Priority::Urgent, 1000)], Vec::new()));
    for mark in ["résultat critique", "lu deux fois", "étapes omises"] {
        assert!(!plain.contains(mark), "{mark}");
    }
    let mut marked = summary(7, Priority::Urgent, 1000);
    marked.exam.course.critical_open = 1;
    marked.exam.course.read_twice = true;
    marked.exam.course.skipped = vec![Skipped::Regulation, Skipped::Consent];
    let text = text(&room(None, vec![marked], Vec::new()));
    assert!(text.contains("résultat critique : personne n’est prévenu") && text.contains("lu deux fois"));
    assert!(text.contains("étapes omises : régulation, consentement"), "{text}");
}

#[test]
fn a_conflict_names_the_holder_and_offers_no_retry() {
    let problem = Problem::invalid("").with("holder", json!({ "user": "dr.b", "site_name": "Lyon" })).coded("conflict");
    let retry = Retry { action: "/ui/exams/7/claim".to_owned(), fields: Vec::new(), text: None, again: false };
    let notice = Notice::failed(problem, retry);
    let text = page(&room(Some("dr.a"), Vec::new(), Vec::new()), Language::French, Some(&notice)).into_string();
    assert!(text.contains("Déjà pris par dr.b à Lyon"), "{text}");
    assert!(text.contains("role=\"alert\"") && !text.contains("id=\"retry\""));
}

#[test]
fn an_unknown_outcome_is_retried_under_the_same_key_with_the_text_kept() {
    let problem = Problem::invalid("").coded("unknown-outcome");
    let retry = Retry {
        action: "/ui/exams/7/report".to_owned(),
        fields: vec![("token", "42".to_owned()), ("key", "k-1".to_owned())],
        text: Some("No bleeding.\n<b>".to_owned()),
        again: false,
    };
    let notice = Notice::failed(problem, retry);
    let text = page(&room(Some("dr.a"), Vec::new(), Vec::new()), Language::French, Some(&notice)).into_string();
    assert!(text.contains("name=\"key\" value=\"k-1\"") && text.contains("name=\"token\" value=\"42\""));
    assert!(text.contains("No bleeding.\n&lt;b&gt;</textarea>"));
    assert!(!text.contains("http-equiv=\"refresh\""), "a page that answers a form does not reload");
}

#[test]
fn a_page_without_scripts_reloads_unless_a_report_may_be_being_typed() {
    assert!(text(&room(Some("dr.a"), Vec::new(), Vec::new())).contains("<noscript><meta http-equiv=\"refresh\""));
    let own = room(Some("dr.a"), Vec::new(), vec![claimed(8, "dr.a", 1)]);
    assert!(!text(&own).contains("http-equiv=\"refresh\""));
}

#[test]
fn the_notice_of_a_redirect_repeats_nothing_of_the_address() {
    assert_eq!(Notice::done("<script>", Some(1)), None);
    let notice = Notice::done("claimed", Some(7)).expect("a notice");
    let text = page(&room(None, Vec::new(), Vec::new()), Language::English, Some(&notice)).into_string();
    assert!(text.contains("<a href=\"#exam-7\">Exam claimed: 7</a>"));
}

#[test]
fn glass_is_offered_when_cut_off_where_the_images_are_and_shows_who_broke_it() {
    let form = "/ui/exams/7/break-glass";
    let mut room = room(Some("dr.a"), vec![summary(7, Priority::Vital, 1000)], Vec::new());
    assert!(!text(&room).contains(form), "with a quorum nobody breaks glass");
    room.mesh.cut_off = true;
    assert!(text(&room).contains(form));
    room.waiting[0].here = false;
    assert!(!text(&room).contains(form), "the images are elsewhere");
    room.waiting[0].here = true;
    let id = CommandId(uuid::Uuid::from_u128(1));
    let (user, reason) = (Name::fitted("dr.a"), Line::fitted("stroke"));
    let taken = Book::of(vec![Record::Taken { id, exam: ExamId(7), user, reason, at: NOW }]).expect("a book");
    room.book = std::sync::Arc::new(taken);
    let own = text(&room);
    assert!(!own.contains(form) && own.contains("bris de glace"));
    assert!(own.contains("action=\"/ui/exams/7/report\"") && own.contains("value=\"glass-00000000"));
    room.reader = Some(Name::fitted("dr.b"));
    let other = text(&room);
    assert!(other.contains("dr.a") && !other.contains("glass-"), "only its reader is offered to report");
}
