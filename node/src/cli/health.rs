//! `maillage health`: one answer for monitoring, by exit code.
//!
//! Degraded means that the next failure may hurt: no quorum is in contact, images on one site only
//! though there are others, or damaged bytes. A node that cannot be asked is an error, not degraded.

use serde_json::{Value, json};

use super::{Context, status};
use crate::exit::ExitCode;
use crate::output::{Table, field, items, number};

pub(super) async fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let status = context.client()?.get("/api/v1/status").await?;
    let checks = checks(&status);
    let healthy = checks.iter().all(|check| check.ok);
    let list: Vec<Value> = checks.iter().map(|c| json!({ "name": c.name, "ok": c.ok, "detail": c.detail })).collect();
    let value = json!({ "healthy": healthy, "checks": list, "warnings": status["warnings"] });
    context.print(&value, |value| {
        let mut table = Table::new(&["CHECK", "STATE", "DETAIL"]);
        for check in &checks {
            let state = if check.ok { "ok" } else { "DEGRADED" };
            table.row([check.name.to_owned(), state.to_owned(), check.detail.clone()]);
        }
        let warnings: String = items(&value["warnings"], "").iter().map(status::warning_lines).collect();
        table.render("") + &warnings
    })?;
    Ok(if healthy { ExitCode::Ok } else { ExitCode::Degraded })
}

struct Check {
    name: &'static str,
    ok: bool,
    detail: String,
}

/// A gateway does well while a centre that may have its images answers, takes all, and nothing is damaged.
fn gateway_checks(status: &Value) -> Vec<Check> {
    let spool = |name: &str| number(status, &["spool", name]);
    let takes = |centre: &Value| centre["state"] == "answers" && centre["allowed"] != Value::Bool(false);
    let somebody_takes = items(status, "centres").iter().any(takes);
    vec![
        Check {
            name: "centre",
            ok: somebody_takes,
            detail: match somebody_takes {
                true => format!("images go to {}", field(status, &["centre"])),
                false => "no centre answers that images may go to".to_owned(),
            },
        },
        Check {
            name: "rejected",
            ok: spool("rejected") == Some(0),
            detail: format!("{} instances are taken by no centre", field(status, &["spool", "rejected"])),
        },
        Check {
            name: "chunks",
            ok: spool("bad") == Some(0),
            detail: format!("{} damaged", field(status, &["spool", "bad"])),
        },
    ]
}

/// What cannot be read counts as degraded: silence is not health.
fn checks(status: &Value) -> Vec<Check> {
    if status["role"] == "gateway" {
        return gateway_checks(status);
    }
    let quorum = |name: &str| field(status, &["quorum", name]);
    let storage = |name: &str| number(status, &["storage", name]);
    let others = items(&status["peers"], "").iter().filter(|peer| peer["role"] != "gateway").count() > 1;
    vec![
        Check {
            name: "quorum",
            ok: status["quorum"]["reached"] == Value::Bool(true) && status["fatal"].is_null(),
            detail: format!("{} of {} voters answer, {} needed", quorum("alive"), quorum("voters"), quorum("needed")),
        },
        Check {
            name: "copies",
            ok: storage("under_two_sites").is_some_and(|studies| studies == 0 || !others),
            detail: match (storage("under_two_sites"), others) {
                (Some(_), false) => "this is the only site".to_owned(),
                _ => format!("{} studies below two sites", field(status, &["storage", "under_two_sites"])),
            },
        },
        Check {
            name: "chunks",
            ok: storage("bad") == Some(0),
            detail: format!("{} damaged", field(status, &["storage", "bad"])),
        },
        Check {
            name: "audit",
            ok: status["audit"]["disagreeing"].as_array().is_some_and(Vec::is_empty),
            detail: match items(&status["audit"], "disagreeing") {
                [] => "no site disagrees".to_owned(),
                sites => format!("{} sites have another state: see `maillage audit verify`", sites.len()),
            },
        },
        Check {
            name: "clock",
            ok: status["clock"]["off"] == Value::Bool(false),
            detail: format!("{} ms ahead of the others", field(status, &["clock", "ahead_ms"])),
        },
        Check {
            name: "writer",
            ok: status["storage"]["writer_failed"] == Value::Bool(false),
            detail: match status["storage"]["writer_failed"].as_bool() {
                Some(false) => "images can be written".to_owned(),
                _ => "images are not written any more: see the log, then restart".to_owned(),
            },
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn degraded(change: impl FnOnce(&mut Value)) -> Vec<&'static str> {
        let mut status = json!({
            "quorum": { "voters": 3, "needed": 2, "alive": 2, "reached": true },
            "audit": { "disagreeing": [] }, "clock": { "off": false },
            "storage": { "bad": 0, "under_two_sites": 0, "writer_failed": false },
            "peers": [{ "site": 1 }, { "site": 2 }],
        });
        change(&mut status);
        checks(&status).into_iter().filter(|check| !check.ok).map(|check| check.name).collect()
    }

    #[test]
    fn each_check_can_fail() {
        assert!(degraded(|_| {}).is_empty());
        assert_eq!(degraded(|status| status["quorum"]["reached"] = json!(false)), ["quorum"]);
        assert_eq!(degraded(|status| status["fatal"] = json!("log")), ["quorum"]);
        assert_eq!(degraded(|status| status["storage"]["writer_failed"] = json!(true)), ["writer"]);
        assert_eq!(degraded(|status| status["audit"]["disagreeing"] = json!(["lyon"])), ["audit"]);
        assert_eq!(degraded(|status| status["clock"]["off"] = json!(true)), ["clock"]);
        assert_eq!(degraded(|status| status["storage"]["under_two_sites"] = json!(1)), ["copies"]);
        assert_eq!(degraded(|status| status["storage"]["bad"] = json!(1)), ["chunks"]);
        assert_eq!(degraded(|status| *status = json!({})), ["quorum", "copies", "chunks", "audit", "clock", "writer"]);
    }

    #[test]
    fn a_gateway_is_degraded_while_no_centre_answers_that_may_have_its_images() {
        let gateway = |centres: Value| {
            degraded(|status| {
                let spool = json!({ "rejected": 0, "bad": 0 });
                *status = json!({ "role": "gateway", "centre": null, "centres": centres, "spool": spool });
            })
        };
        let centre = |state: &str, allowed: bool| json!({ "state": state, "allowed": allowed });
        assert!(gateway(json!([centre("answers", false), centre("answers", true)])).is_empty());
        assert_eq!(gateway(json!([centre("answers", false), centre("silent", true)])), ["centre"]);
    }

    #[test]
    fn a_lone_site_cannot_have_two_copies() {
        assert!(
            degraded(|status| {
                status["storage"]["under_two_sites"] = json!(9);
                status["peers"] = json!([{ "site": 1 }]);
            })
            .is_empty()
        );
    }
}
