//! The page as HTML. Everything is escaped by the template; nothing here reads state.
//!
//! Shape, text and colour say everything together. Elements that a reader may be on while the room is
//! replaced have ids that stay the same, by which the script finds them again.

use maillage_consensus::ids::CommandId;
use maud::{DOCTYPE, Markup, html};

use super::notice::{Notice, clock_time};
use super::room::Room;
use super::texts::{Language, Text};

mod exams;
mod mesh;

/// Seconds between two loads of a page without scripts.
const REFRESH_S: u32 = 15;

/// The whole page.
pub(super) fn page(room: &Room, language: Language, notice: Option<&Notice>) -> Markup {
    let say = |text| language.say(text);
    let failed = notice.is_some_and(|notice| notice.failed);
    html! {
        (DOCTYPE)
        html lang=(language.code()) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="dark";
                title { @if failed { "⚠ " } (say(Text::Title)) " – " (room.site_name) }
                link rel="stylesheet" href="/static/room.css";
                script src="/static/room.js" defer {}
                // A report being typed without scripts must not be wiped by a reload, nor a form sent twice.
                @if !failed && !room.owns_any() {
                    noscript { meta http-equiv="refresh" content={ (REFRESH_S) ";url=/?lang=" (language.code()) }; }
                }
            }
            body data-reader=(reader_name(room)) data-site=(room.site) data-seen=(room.applied) {
                a.skip href="#room" { (say(Text::SkipToRoom)) }
                header {
                    h1 { (say(Text::Title)) }
                    p.site { (say(Text::ReadingSite)) " " strong { (room.site_name) } }
                    (reader_form(room, language))
                    p.language {
                        a href={ "/?lang=" (language.other().code()) } lang=(language.other().code()) hreflang=(language.other().code()) {
                            @if language == Language::French { "English" } @else { "Français" }
                        }
                    }
                }
                p #link-lost .banner.bad role="alert" hidden { span aria-hidden="true" { "⚠ " } (say(Text::LinkLost)) }
                (lost_claims(language))
                @if let Some(notice) = notice { (notice_box(notice, language)) }
                p #live .unseen role="status" {}
                (main(room, language))
            }
        }
    }
}

/// The part that is replaced at each event.
pub(super) fn main(room: &Room, language: Language) -> Markup {
    let say = |text| language.say(text);
    html! {
        main #room tabindex="-1" data-live={ (room.waiting_total) " " (language.state(maillage_consensus::exam::ExamState::Waiting)) } {
            @if room.mesh.cut_off { (cut_off(room, language)) }
            section aria-labelledby="waiting-title" {
                div.bar {
                    h2 #waiting-title { (say(Text::WaitingExams)) " (" (room.waiting_total) ")" }
                    @if room.reader.is_some() {
                        form method="post" action="/ui/next" {
                            (hidden(language))
                            button #next .primary type="submit" { (say(Text::Next)) }
                        }
                    } @else {
                        p.hint { a href="#reader" { (say(Text::ReaderNeeded)) } }
                    }
                }
                (exams::waiting(room, language))
            }
            section aria-labelledby="reading-title" {
                h2 #reading-title { (say(Text::ReadingExams)) }
                (exams::reading(room, language))
            }
            (mesh::section(room, language))
        }
    }
}

fn reader_form(room: &Room, language: Language) -> Markup {
    let reader = reader_name(room);
    html! {
        form.reader method="post" action="/ui/reader" {
            input type="hidden" name="lang" value=(language.code());
            label for="reader" { (language.say(Text::ReaderPrompt)) }
            input #reader name="reader" value=(reader) required maxlength="64" autocomplete="username" spellcheck="false";
            button #reader-set type="submit" { (language.say(Text::ReaderSet)) }
        }
    }
}

fn reader_name(room: &Room) -> &str {
    room.reader.as_ref().map_or("", |reader| reader.as_str())
}

/// Where the script tells a reader which exams are no longer theirs, and by whom and why; until then hidden.
/// What was lost stays there until they have said that they saw it.
fn lost_claims(language: Language) -> Markup {
    let say = |text| language.say(text);
    html! {
        div #claims-lost .banner.bad role="alert" hidden
            data-lost=(say(Text::ClaimLost)) data-by=(say(Text::ClaimLostBy)) data-why=(say(Text::ClaimLostWhy)) {
            ul {}
            p { (say(Text::ClaimLostMeaning)) }
            button #claims-lost-seen type="button" { (say(Text::ClaimLostSeen)) }
        }
    }
}

fn cut_off(room: &Room, language: Language) -> Markup {
    html! {
        p.banner.bad {
            span aria-hidden="true" { "⚠ " }
            @match room.mesh.heard_at {
                Some(heard) => { (language.say(Text::CutOffSince)) " " strong { (clock_time(heard)) } }
                None => { (language.say(Text::CutOffNever)) }
            }
            " : " (language.say(Text::CutOffMeaning))
        }
    }
}

fn notice_box(notice: &Notice, language: Language) -> Markup {
    let message = notice.message(language);
    let (class, role, mark) =
        if notice.failed { ("banner bad", "alert", "✖ ") } else { ("banner good", "status", "✔ ") };
    html! {
        div #notice class=(class) role=(role) {
            p {
                span aria-hidden="true" { (mark) }
                @if let Some(exam) = notice.exam() { a href={ "#exam-" (exam) } { (message) } } @else { (message) }
            }
            @if let Some(retry) = &notice.retry {
                @if retry.again {
                    form method="post" action=(retry.action) {
                        input type="hidden" name="lang" value=(language.code());
                        @for (name, value) in &retry.fields { input type="hidden" name=(name) value=(value); }
                        @if let Some(text) = &retry.text {
                            label for="retry-text" { (language.say(Text::WhatYouTyped)) }
                            textarea #retry-text name="text" rows="10" { "\n" (text) }
                        }
                        button #retry type="submit" { (language.say(Text::Retry)) }
                    }
                } @else if let Some(text) = &retry.text {
                    label for="kept-text" { (language.say(Text::WhatYouTyped)) }
                    textarea #kept-text rows="10" readonly { "\n" (text) }
                }
                p { a href={ "/?lang=" (language.code()) } { (language.say(Text::Back)) } }
            }
        }
    }
}

/// What every form carries: the command id that makes a second press harmless, and the language.
fn hidden(language: Language) -> Markup {
    html! {
        input type="hidden" name="key" value=(CommandId::random().0);
        input type="hidden" name="lang" value=(language.code());
    }
}

#[cfg(test)]
mod tests;
