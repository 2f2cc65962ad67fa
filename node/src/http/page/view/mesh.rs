//! The mesh's state, below the exams.

use maud::{Markup, html};

use super::super::notice::clock_time;
use super::super::room::{Room, SiteLine};
use super::super::texts::{Language, Text};
use crate::http::status::Reach;

/// Quorum, leader, and a row for each site.
pub(super) fn section(room: &Room, language: Language) -> Markup {
    let (mesh, say) = (&room.mesh, |text| language.say(text));
    html! {
        section aria-labelledby="mesh-title" {
            h2 #mesh-title { (say(Text::Mesh)) }
            p {
                (say(Text::Quorum)) " "
                @if mesh.cut_off {
                    strong.late { span aria-hidden="true" { "✖ " } (say(Text::QuorumLost)) }
                } @else {
                    strong.good { span aria-hidden="true" { "✔ " } (say(Text::QuorumReached)) }
                }
                " (" (mesh.quorum.alive) "/" (mesh.quorum.voters) " " (say(Text::Voters)) ") · "
                (say(Text::Leader)) " " strong { (mesh.leader.as_deref().unwrap_or(say(Text::NoLeader))) } " · "
                (say(Text::AsOf)) " " (clock_time(mesh.heard_at.unwrap_or(room.now)))
            }
            @if mesh.below_two > 0 && mesh.sites.len() > 1 {
                p.short { span aria-hidden="true" { "◔ " } (mesh.below_two) " " (say(Text::BelowTwo)) }
            }
            div.scroll role="region" aria-labelledby="mesh-title" tabindex="0" {
                table aria-labelledby="mesh-title" {
                    thead {
                        tr {
                            @for head in [Text::Site, Text::Zone, Text::Role, Text::Link, Text::RoundTrip] {
                                th scope="col" { (say(head)) }
                            }
                        }
                    }
                    tbody { @for site in &mesh.sites { (row(site, language)) } }
                }
            }
        }
    }
}

fn row(site: &SiteLine, language: Language) -> Markup {
    let (class, shape, text) = match site.reach {
        Reach::Own => ("good", "⌂", Text::LinkOwn),
        Reach::Connected => ("good", "✔", Text::LinkUp),
        Reach::Unreachable => ("late", "✖", Text::LinkDown),
    };
    html! {
        tr {
            th scope="row" { (site.name) }
            td { (site.zone) }
            td { (language.role(site.role)) }
            td { span class=(class) { span aria-hidden="true" { (shape) " " } (language.say(text)) } }
            td { @if let Some(rtt) = site.rtt { (format!("{:.1} ms", rtt.as_secs_f64() * 1000.0)) } @else { "–" } }
        }
    }
}
