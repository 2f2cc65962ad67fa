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
            format!("{}{}", column("state"), marks(exam)),
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

/// What must be seen at once, beside the state.
fn marks(exam: &Value) -> String {
    let open = |name: &str| exam.get(name).and_then(Value::as_u64).is_some_and(|count| count > 0);
    let mut marks = Vec::new();
    if exam.get("unsolicited").is_some_and(Value::is_string) {
        marks.push("unsolicited");
    }
    if open("critical_open") {
        marks.push("CRITICAL");
    }
    if exam.get("read_twice").and_then(Value::as_bool) == Some(true) {
        marks.push("read twice");
    }
    if exam.get("skipped").and_then(Value::as_array).is_some_and(|skipped| !skipped.is_empty()) {
        marks.push("steps left out");
    }
    if marks.is_empty() { String::new() } else { format!(" ({})", marks.join(", ")) }
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
    text.push_str(&course(exam));
    for report in items(&exam["report_list"], "") {
        text.push_str(&report_text(report));
    }
    for remark in items(&exam["remarks"], "") {
        text.push_str(&remark_text(remark));
    }
    text
}

/// What became of an exam, as far as there is something to say.
fn course(exam: &Value) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: String| {
        if !matches!(value.as_str(), "-" | "0" | "no") {
            text.push_str(&format!("{name:<12} {value}\n"));
        }
    };
    fact("consent", field(exam, &["consent"]));
    fact("read by", field(exam, &["specialty"]));
    fact("expertise", field(exam, &["expertise"]));
    fact("question", field(exam, &["question"]));
    fact("to regulate", field(exam, &["to_regulate"]));
    if exam.get("regulation").is_some_and(Value::is_object) {
        let [verdict, protocol, reason, user] =
            ["verdict", "protocol", "reason", "user"].map(|name| field(exam, &["regulation", name]));
        let why = if protocol == "-" { reason } else { protocol };
        fact("regulation", format!("{verdict} by {user}: {why}"));
    }
    fact("left out", field(exam, &["skipped"]));
    fact("raised by", field(exam, &["raised_by"]));
    fact("delivered", field(exam, &["delivered_at"]));
    fact("criticals", field(exam, &["critical_open"]));
    fact("opinions", field(exam, &["opinions_open"]));
    fact("read twice", field(exam, &["read_twice"]));
    let retention = |path: &[&str]| field(&exam["retention"], path);
    if exam.pointer("/retention/legal_hold").is_some_and(Value::is_object) {
        let [user, at, reason] = ["user", "at", "reason"].map(|name| retention(&["legal_hold", name]));
        fact("legal hold", format!("by {user}, {at}: {reason}"));
    }
    if exam.pointer("/retention/purged").is_some_and(Value::is_object) {
        let [at, reason] = ["at", "reason"].map(|name| retention(&["purged", name]));
        let why = if matches!(reason.as_str(), "-" | "") { "their time was over".to_owned() } else { reason };
        fact("images", format!("purged {at}: {why}"));
        for part in items(&exam["retention"], "parts") {
            let sites = items(part, "confirmed").iter().map(|said| field(said, &["site"])).collect::<Vec<_>>();
            let confirmed = if sites.is_empty() { "none".to_owned() } else { sites.join(", ") };
            let [study, pending] = ["study", "pending"].map(|name| field(part, &[name]));
            fact("confirmed", format!("{study}: {confirmed}; still to come: {pending}"));
        }
    }
    for workitem in items(&exam["workitems"], "") {
        let reason = field(workitem, &["reason"]);
        if field(workitem, &["state"]) == "CANCELED" {
            let who = field(workitem, &["performer", "user"]);
            fact("canceled", format!("{} of {who}: {reason}", field(workitem, &["kind"])));
        }
    }
    text
}

fn report_text(report: &Value) -> String {
    let stale = report.get("stale").and_then(Value::as_bool) == Some(true);
    let kind = match field(report, &["kind"]).as_str() {
        "-" | "final" => "report".to_owned(),
        kind => format!("{kind} report"),
    };
    let mut text = format!(
        "\n{kind} {} by {} at {}, {}{}{}\n",
        field(report, &["number"]),
        field(report, &["user"]),
        field(report, &["site_name"]),
        field(report, &["at"]),
        if stale { " (DRAFT: its claim had ended)" } else { "" },
        match field(report, &["signature"]).as_str() {
            "invalid" => " (SIGNATURE INVALID: not what this site signed)",
            "none" => " (not signed)",
            _ => "",
        },
    );
    text.push_str(&indented(report.get("text")));
    text
}

fn remark_text(remark: &Value) -> String {
    let of = |name: &str| field(remark, &[name]);
    let mut text =
        format!("\n{} {} by {} at {}, {}\n", of("kind"), of("number"), of("user"), of("site_name"), of("at"));
    text.push_str(&indented(remark.get("question").or_else(|| remark.get("text"))));
    match of("kind").as_str() {
        "finding" => {
            let facts = ["algorithm", "version", "finding", "score", "location"].map(of);
            text.push_str(&format!("  {}\n", facts.join(" ")));
        }
        "opinion" if remark.get("answer").is_some_and(Value::is_object) => {
            let answer = |name: &str| field(remark, &["answer", name]);
            let facts = [answer("concordance"), answer("user"), answer("site_name"), answer("at")];
            text.push_str(&format!("  {} says {} at {}, {}\n", facts[1], facts[0], facts[2], facts[3]));
            text.push_str(&indented(remark.pointer("/answer/text")));
        }
        "opinion" => text.push_str(&format!("  asked of {}: not given yet\n", of("of"))),
        "critical" | "discrepancy" if remark.get("told").is_some_and(Value::is_object) => {
            let told = |name: &str| field(remark, &["told", name]);
            text.push_str(&format!(
                "  told {} by {}, {}, read back: {}\n",
                told("whom"),
                told("user"),
                told("at"),
                told("read_back")
            ));
        }
        "critical" | "discrepancy" => text.push_str("  NOBODY HAS BEEN TOLD\n"),
        _ => {}
    }
    text
}

fn indented(text: Option<&Value>) -> String {
    let lines = text.and_then(Value::as_str).unwrap_or_default().lines();
    lines.map(|line| format!("  {}\n", clean(line))).collect()
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

    #[test]
    fn what_was_said_of_an_exam_is_shown_with_who_said_it_and_what_is_still_to_be_done() {
        let exam = json!({
            "id": 7, "state": "reported", "consent": "declared", "specialty": "radiology", "expertise": "",
            "skipped": ["regulation"], "critical_open": 1, "read_twice": false,
            "regulation": { "verdict": "validated", "protocol": "head\u{1b}[2J", "reason": null, "user": "reg" },
            "workitems": [{ "kind": "read", "state": "CANCELED", "reason": "taken over by bob: lost",
                            "performer": { "user": "ann" } }],
            "report_list": [{ "number": 1, "kind": "addendum", "user": "ann", "site_name": "rennes", "at": "T",
                              "signature": "invalid", "text": "More." }],
            "remarks": [
                { "number": 1, "kind": "critical", "user": "ann", "site_name": "rennes", "at": "T", "text": "bleeding",
                  "told": null },
                { "number": 2, "kind": "opinion", "user": "ann", "site_name": "rennes", "at": "T", "of": "bob",
                  "question": "agreed?", "answer": { "user": "bob", "site_name": "brest", "at": "U",
                  "concordance": "agrees", "text": "Yes." } },
                { "number": 3, "kind": "finding", "user": "", "site_name": "rennes", "at": "T", "algorithm": "bleed",
                  "version": "1", "finding": "haemorrhage", "score": 0.9, "location": "" },
            ],
        });
        let shown = sheet(&exam);
        let shown = &shown[shown.find("consent").expect("a course")..];
        expect![[r#"
            consent      declared
            read by      radiology
            regulation   validated by reg: head�[2J
            left out     regulation
            criticals    1
            canceled     read of ann: taken over by bob: lost

            addendum report 1 by ann at rennes, T (SIGNATURE INVALID: not what this site signed)
              More.

            critical 1 by ann at rennes, T
              bleeding
              NOBODY HAS BEEN TOLD

            opinion 2 by ann at rennes, T
              agreed?
              bob says agrees at brest, U
              Yes.

            finding 3 by - at rennes, T
              bleed 1 haemorrhage 0.9 -
        "#]]
        .assert_eq(shown);
        assert_eq!(marks(&exam), " (CRITICAL, steps left out)");
    }
}
