//! The two tables of exams.

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Patient, Priority};
use maillage_consensus::ids::ExamId;
use maillage_dicom::Redacted;
use maud::{Markup, html};

use super::super::notice::clock_time;
use super::super::room::Room;
use super::super::texts::{Language, Text};
use super::hidden;
use crate::http::rfc3339::{date_time, rfc3339};
use crate::http::summary::ExamSummary;
use crate::outbox::Entry;

const MINUTE_MS: u64 = 60_000;
/// The share of the target, in percent, from which time left is shown as short.
const SHORT_PERCENT: u64 = 75;

/// Exams to be read.
pub(super) fn waiting(room: &Room, language: Language) -> Markup {
    let hidden_rows = room.waiting_total.saturating_sub(room.waiting.len() as u64);
    html! {
        @if room.waiting.is_empty() {
            p.empty { (language.say(Text::NothingWaits)) }
        } @else {
            (table(room, language, "waiting-title", &room.waiting, &|summary| claim_form(room, summary, language)))
        }
        @if hidden_rows > 0 { p.hint { "… " (hidden_rows) " " (language.say(Text::NotShown)) } }
    }
}

/// Exams being read, and those read lately.
pub(super) fn reading(room: &Room, language: Language) -> Markup {
    html! {
        @if room.reading.is_empty() {
            p.empty { (language.say(Text::NobodyReads)) }
        } @else {
            (table(room, language, "reading-title", &room.reading, &|summary| own_forms(room, summary, language)))
        }
    }
}

type Actions<'a> = &'a dyn Fn(&ExamSummary) -> Markup;

fn table(room: &Room, language: Language, title: &str, exams: &[ExamSummary], actions: Actions<'_>) -> Markup {
    let heads = [
        Text::Priority,
        Text::TimeLeft,
        Text::State,
        Text::Patient,
        Text::Modality,
        Text::Description,
        Text::Hospital,
        Text::Received,
        Text::Images,
        Text::ReaderColumn,
        Text::Actions,
    ];
    html! {
        // Wide tables scroll by keyboard too.
        div.scroll role="region" aria-labelledby=(title) tabindex="0" {
            table aria-labelledby=(title) {
                thead { tr { @for head in heads { th scope="col" { (language.say(head)) } } } }
                tbody { @for summary in exams { (row(room, language, summary, actions(summary))) } }
            }
        }
    }
}

fn row(room: &Room, language: Language, summary: &ExamSummary, actions: Markup) -> Markup {
    let (exam, request) = (&summary.exam, &summary.exam.request);
    html! {
        tr #{ "exam-" (exam.id) } .own[room.owns(summary)] {
            td { (priority(request.priority, language)) }
            td { (time_left(summary, room.now, language)) }
            td {
                (language.state(exam.state))
                @if let Some(entry) = room.glass(summary) { (glass_mark(entry, language)) }
            }
            th scope="row" { (patient(&request.patient, room.now, language)) }
            td { (shown(request.modality.as_str())) }
            td {
                (shown(request.description.as_str()))
                @if let Some(reason) = exam.unsolicited {
                    br;
                    span.mark { span aria-hidden="true" { "⚑ " } (language.say(Text::Unsolicited)) " : " (language.unsolicited(reason)) }
                }
                @if exam.course.critical_open > 0 {
                    br;
                    span.late { span aria-hidden="true" { "⚠ " } (language.say(Text::CriticalOpen)) }
                }
                @if exam.course.read_twice {
                    br;
                    span.mark { span aria-hidden="true" { "⚑ " } (language.say(Text::ReadTwice)) }
                }
                @if !exam.course.skipped.is_empty() {
                    br;
                    span.mark {
                        span aria-hidden="true" { "⚑ " } (language.say(Text::Skipped)) " : "
                        @for (number, step) in exam.course.skipped.iter().enumerate() {
                            @if number > 0 { ", " } (language.skipped(*step))
                        }
                    }
                }
                @if exam.images_after_report {
                    br;
                    span.mark { span aria-hidden="true" { "⚑ " } (language.say(Text::ImagesAfterReport)) }
                }
            }
            td { (shown(request.hospital.as_str())) }
            td { @if let Some(ready) = exam.ready_at { time datetime=(rfc3339(ready)) { (clock_time(ready)) } } @else { "–" } }
            td { (images(summary, language)) }
            td { (holder(summary, language)) }
            td.actions { (actions) (glass_forms(room, summary, language)) }
        }
    }
}

fn priority(priority: Priority, language: Language) -> Markup {
    let (shape, class) = match priority {
        Priority::Vital => ("◆", "p-vital"),
        Priority::Urgent => ("▲", "p-urgent"),
        Priority::SemiUrgent => ("●", "p-semi"),
        Priority::Scheduled => ("■", "p-scheduled"),
    };
    html! { span class={ "priority " (class) } { span aria-hidden="true" { (shape) " " } (language.priority(priority)) } }
}

fn time_left(summary: &ExamSummary, now: UnixMillisField, language: Language) -> Markup {
    let (exam, open) = (&summary.exam, summary.exam.is_open());
    let Some(due) = exam.due_at.filter(|_| open) else { return html! { "–" } };
    if due < now {
        let late = duration(now.0 - due.0);
        return html! { span.late { span aria-hidden="true" { "⚠ " } "+" (late) " " (language.say(Text::Late)) } };
    }
    let (left, target) = (due.0 - now.0, exam.request.priority.target_ms());
    let short = left.saturating_mul(100) <= target.saturating_mul(100 - SHORT_PERCENT);
    html! {
        @if short {
            span.short { span aria-hidden="true" { "◔ " } (duration(left)) }
        } @else {
            (duration(left))
        }
    }
}

/// Whole minutes, with hours from one hour on.
fn duration(ms: u64) -> String {
    let minutes = ms / MINUTE_MS;
    if minutes < 60 { format!("{minutes} min") } else { format!("{} h {:02}", minutes / 60, minutes % 60) }
}

fn patient(patient: &Patient, now: UnixMillisField, language: Language) -> Markup {
    let name = shown(patient.name.as_str());
    // Only the first of the name's groups (PS3.5 section 6.2.1.1) is in the reader's alphabet.
    let name = name.split('=').next().unwrap_or_default().replace('^', " ");
    let sex = shown(patient.sex.as_str());
    html! {
        span.name { @if name.trim().is_empty() { "–" } @else { (name.trim()) } }
        br;
        span.details {
            (shown(patient.id.as_str()))
            @if let Some(age) = age(patient.birth_date.as_str(), now, language) { " · " (age) }
            @if !sex.is_empty() { " · " (sex) }
        }
    }
}

/// Years, or months before the second birthday.
fn age(birth_date: &str, now: UnixMillisField, language: Language) -> Option<String> {
    if birth_date.len() != 8 || !birth_date.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |range: std::ops::Range<usize>| birth_date[range].parse::<i32>().ok();
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    let today = date_time(now);
    let mut months = (today.year() - year) * 12 + i32::from(u8::from(today.month())) - month;
    if i32::from(today.day()) < day {
        months -= 1;
    }
    let (years, unit_months) = match language {
        Language::French => ("ans", "mois"),
        Language::English => ("y", "m"),
    };
    match months {
        ..0 => None,
        0..24 => Some(format!("{months} {unit_months}")),
        _ => Some(format!("{} {years}", months / 12)),
    }
}

fn images(summary: &ExamSummary, language: Language) -> Markup {
    let Some(copies) = summary.copies else { return html! { (language.say(Text::ImagesNone)) } };
    let (shape, place) = if summary.here { ("⬤", Text::ImagesHere) } else { ("◌", Text::ImagesElsewhere) };
    html! {
        span aria-hidden="true" { (shape) " " } (language.say(place)) ", "
        span.short[copies < 2] { (copies) "/" (summary.copies_wanted) " " (language.say(Text::CopiesOf)) }
    }
}

fn holder(summary: &ExamSummary, language: Language) -> Markup {
    let Some(claim) = &summary.exam.claim else { return html! { "–" } };
    let site = summary.claim_site.as_ref().map_or("–", |name| name.as_str());
    html! {
        strong { (shown(claim.user.as_str())) } ", " (shown(site)) br;
        span.details { (language.say(Text::Since)) " " time datetime=(rfc3339(claim.since)) { (clock_time(claim.since)) } }
    }
}

fn claim_form(room: &Room, summary: &ExamSummary, language: Language) -> Markup {
    let id = summary.exam.id;
    html! {
        @if room.reader.is_some() {
            form method="post" action={ "/ui/exams/" (id) "/claim" } {
                (hidden(language))
                button #{ "claim-" (id) } type="submit" aria-describedby={ "exam-" (id) } { (language.say(Text::Claim)) }
            }
        }
    }
}

/// Release and report, for the reader's own claim only.
fn own_forms(room: &Room, summary: &ExamSummary, language: Language) -> Markup {
    let Some(claim) = summary.exam.claim.as_ref().filter(|_| room.owns(summary)) else { return html! {} };
    ending_forms(summary.exam.id, &claim.token.to_string(), language)
}

fn ending_forms(id: ExamId, token: &str, language: Language) -> Markup {
    html! {
        details #{ "report-" (id) } open {
            summary #{ "report-open-" (id) } { (language.say(Text::Report)) }
            form method="post" action={ "/ui/exams/" (id) "/report" } {
                (hidden(language))
                input type="hidden" name="token" value=(token);
                label for={ "text-" (id) } { (language.say(Text::Report)) " – " (id) }
                textarea #{ "text-" (id) } name="text" rows="6" required maxlength="60000" {}
                button #{ "send-" (id) } .primary type="submit" { (language.say(Text::ReportSend)) }
            }
        }
        form.release method="post" action={ "/ui/exams/" (id) "/release" } {
            (hidden(language))
            input type="hidden" name="token" value=(token);
            label for={ "reason-" (id) } { (language.say(Text::ReleaseReason)) }
            input #{ "reason-" (id) } name="reason" maxlength="200";
            button #{ "release-" (id) } type="submit" { (language.say(Text::Release)) }
        }
    }
}

/// Who has or had the exam by break glass here, and how far that is.
fn glass_mark(entry: &Entry, language: Language) -> Markup {
    html! {
        br;
        span.mark {
            span aria-hidden="true" { "⚑ " } (language.say(Text::Glass)) " : " (shown(entry.user.as_str())) ", "
            time datetime=(rfc3339(entry.at)) { (clock_time(entry.at)) } " – " (language.glass(entry.state()))
        }
    }
}

/// Taking an exam without the mesh, and ending what was taken so.
fn glass_forms(room: &Room, summary: &ExamSummary, language: Language) -> Markup {
    let id = summary.exam.id;
    if let Some(entry) = room.own_glass(summary) {
        let token = entry.token().map(|token| token.to_string()).unwrap_or_default();
        return ending_forms(id, &token, language);
    }
    let taken = room.glass(summary).is_some_and(|entry| entry.end.is_none());
    let open = !summary.exam.state.is_reported() && !summary.exam.state.is_off();
    let offered = room.mesh.cut_off && room.reader.is_some() && summary.here && open && !taken && !room.owns(summary);
    html! {
        @if offered {
            form method="post" action={ "/ui/exams/" (id) "/break-glass" } {
                (hidden(language))
                label for={ "glass-reason-" (id) } { (language.say(Text::GlassReason)) }
                input #{ "glass-reason-" (id) } name="reason" required maxlength="200";
                button #{ "glass-" (id) } type="submit" aria-describedby={ "exam-" (id) } { (language.say(Text::GlassTake)) }
            }
        }
    }
}

/// A text from outside without what would reorder or hide it. Escaping is the template's.
fn shown(text: &str) -> String {
    Redacted::new(text).display()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_years_and_in_months_for_the_youngest() {
        // 2026-01-02
        let now = UnixMillisField(1_767_323_045_000);
        let check = |born, expected: Option<&str>| {
            assert_eq!(age(born, now, Language::English).as_deref(), expected, "{born}");
        };
        check("19560102", Some("70 y"));
        check("19560103", Some("69 y"));
        check("20251203", Some("0 m"));
        check("20240103", Some("23 m"));
        check("20240102", Some("2 y"));
        check("20260103", None);
        check("", None);
        check("1956-1-2", None);
        check("éé5601", None);
    }

    #[test]
    fn durations_are_whole_minutes() {
        assert_eq!(duration(59_999), "0 min");
        assert_eq!(duration(59 * MINUTE_MS), "59 min");
        assert_eq!(duration(61 * MINUTE_MS), "1 h 01");
    }
}
