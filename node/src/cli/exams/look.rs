//! How exams look: a row in a list, or a sheet.

use serde_json::Value;

use crate::output::{Table, clean, field, items};

pub(super) fn table(exams: &[Value]) -> Table {
    let headings = [
        "ID",
        "PRIORITY",
        "STATE",
        "DUE",
        "ACCESSION",
        "PATIENT",
        "NAME",
        "MOD",
        "DESCRIPTION",
        "HOSPITAL",
        "COPIES",
        "READER",
    ];
    let mut table = Table::new(&headings);
    for exam in exams {
        let column = |name: &str| field(exam, &[name]);
        let flag = |name: &str| exam.get(name).and_then(Value::as_bool) == Some(true);
        table.row([
            column("id"),
            column("priority"),
            format!(
                "{}{}",
                column("state"),
                if exam.get("unsolicited").is_some_and(Value::is_string) { " (unsolicited)" } else { "" }
            ),
            format!("{}{}", column("due_at"), if flag("overdue") { " OVERDUE" } else { "" }),
            column("accession"),
            field(exam, &["patient", "id"]),
            field(exam, &["patient", "name"]),
            column("modality"),
            column("description"),
            column("hospital"),
            format!("{}/{}", column("copies"), column("copies_wanted")),
            reader(exam),
        ]);
    }
    table
}

/// `user at site`, or a dash.
fn reader(exam: &Value) -> String {
    match exam.get("claim") {
        Some(claim) if claim.is_object() => {
            let site = match field(claim, &["site_name"]).as_str() {
                "-" => field(claim, &["site"]),
                name => name.to_owned(),
            };
            format!("{} at {site}", field(claim, &["user"]))
        }
        _ => "-".to_owned(),
    }
}

/// One exam, a line a fact.
pub(in crate::cli) fn sheet(exam: &Value) -> String {
    const FACTS: [(&str, &[&str]); 18] = [
        ("exam", &["id"]),
        ("state", &["state"]),
        ("priority", &["priority"]),
        ("due", &["due_at"]),
        ("accession", &["accession"]),
        ("patient", &["patient", "id"]),
        ("issuer", &["patient", "issuer"]),
        ("name", &["patient", "name"]),
        ("born", &["patient", "birth_date"]),
        ("sex", &["patient", "sex"]),
        ("modality", &["modality"]),
        ("description", &["description"]),
        ("hospital", &["hospital"]),
        ("physician", &["physician"]),
        ("ready", &["ready_at"]),
        ("unsolicited", &["unsolicited_reason"]),
        ("merged into", &["reconciled_into"]),
        ("studies", &["studies"]),
    ];
    let mut text: String = FACTS.iter().map(|(name, path)| format!("{name:<12} {}\n", field(exam, path))).collect();
    text.push_str(&format!("copies       {} of {}\n", field(exam, &["copies"]), field(exam, &["copies_wanted"])));
    text.push_str(&format!("reader       {}\n", reader(exam)));
    if exam.get("claim").is_some_and(Value::is_object) {
        text.push_str(&format!("token        {}\n", field(exam, &["claim", "token"])));
        text.push_str(&format!("since        {}\n", field(exam, &["claim", "since"])));
    }
    for report in items(&exam["report_list"], "") {
        let stale = report.get("stale").and_then(Value::as_bool) == Some(true);
        text.push_str(&format!(
            "\nreport {} by {} at {}, {}{}\n",
            field(report, &["number"]),
            field(report, &["user"]),
            field(report, &["site_name"]),
            field(report, &["at"]),
            if stale { " (DRAFT: its claim had ended)" } else { "" },
        ));
        for line in report.get("text").and_then(Value::as_str).unwrap_or_default().lines() {
            text.push_str(&format!("  {}\n", clean(line)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn exams_are_shown_without_trusting_them() {
        let exams = json!([
            { "id": 7, "priority": "vital", "state": "claimed", "due_at": "2026-01-01T00:30:00Z", "overdue": true,
              "accession": "A1", "patient": { "id": "P1", "name": "Dupont^\u{1b}]0;x\u{7}Zoé" }, "modality": "CT",
              "description": "head", "hospital": "Brest", "copies": 2, "copies_wanted": 3,
              "claim": { "user": "ann", "site": 3, "site_name": "rennes", "token": 99 } },
            { "id": 8, "unsolicited": "no-request", "state": "waiting" },
        ]);
        let list = exams.as_array().expect("a list");
        expect![[r#"
            ID  PRIORITY  STATE                  DUE                           ACCESSION  PATIENT  NAME              MOD  DESCRIPTION  HOSPITAL  COPIES  READER
            7   vital     claimed                2026-01-01T00:30:00Z OVERDUE  A1         P1       Dupont^�]0;x�Zoé  CT   head         Brest     2/3     ann at rennes
            8   -         waiting (unsolicited)  -                             -          -        -                 -    -            -         -/-     -
        "#]].assert_eq(&table(list).render("no exams"));
        let mut exam = list[0].clone();
        exam["report_list"] = json!([{ "number": 1, "user": "ann", "site_name": "rennes", "at": "2026-01-01T00:20:00Z",
                                       "stale": true, "text": "Normal.\n\u{1b}[2JNo bleeding." }]);
        expect![[r#"
            exam         7
            state        claimed
            priority     vital
            due          2026-01-01T00:30:00Z
            accession    A1
            patient      P1
            issuer       -
            name         Dupont^�]0;x�Zoé
            born         -
            sex          -
            modality     CT
            description  head
            hospital     Brest
            physician    -
            ready        -
            unsolicited  -
            merged into  -
            studies      -
            copies       2 of 3
            reader       ann at rennes
            token        99
            since        -

            report 1 by ann at rennes, 2026-01-01T00:20:00Z (DRAFT: its claim had ended)
              Normal.
              �[2JNo bleeding.
        "#]]
        .assert_eq(&sheet(&exam));
    }
}
