//! `maillage audit` and `maillage events`: what was done, and what happened.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::Value;
use tokio::time::sleep;

use super::{Context, age_note};
use crate::client::{Client, ClientError, with_query};
use crate::exit::ExitCode;
use crate::output::{Format, Table, clean, field, items, json, number, write_out};

const PATH: &str = "/api/v1/audit";
/// Entries asked for at once while following.
const FOLLOW_PAGE: u64 = 1000;
/// Between two looks for new entries, and before a lost stream is opened again.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// The newest entries
    Tail {
        /// So many
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "N")]
        lines: u16,
        /// Go on with each new one
        #[arg(short, long)]
        follow: bool,
    },
    /// Whether every entry of this node's trail is what was written; exit code 7 if not
    Verify,
    /// Say now what this site's trail is, so that every site compares it with its own
    Attest,
    /// Print the trail in a standard's words
    Export {
        /// Which words
        #[arg(long, value_enum)]
        format: ExportFormat,
        /// From this time on (2026-01-02T03:04:05Z) or this day (2026-01-02)
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// Before this time or day
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ExportFormat {
    /// FHIR R4 AuditEvent resources, one a line
    Fhir,
    /// The same in one Bundle
    FhirBundle,
    /// DICOM audit messages as syslog lines
    Dicom,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// After this event's cursor; else from now on
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub(super) async fn run(context: &Context, command: AuditCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::Tail { lines, follow } => tail(context, lines, follow).await?,
        AuditCommand::Verify => return verify(context).await,
        AuditCommand::Attest => attest(context).await?,
        AuditCommand::Export { format, from, to } => export(context, format, from, to).await?,
    }
    Ok(ExitCode::Ok)
}

async fn tail(context: &Context, lines: u16, follow: bool) -> anyhow::Result<()> {
    let client = context.client()?;
    let mut page = client.get(&format!("{PATH}?limit={lines}")).await?;
    // Newest first, as asked for; a tail ends with the newest.
    if let Some(entries) = page.get_mut("entries").and_then(Value::as_array_mut) {
        entries.reverse();
    }
    if !follow {
        return Ok(context.print(&page, |page| table(items(page, "entries")).render("no entries") + &age_note(page))?);
    }
    let mut last = 0;
    loop {
        for entry in items(&page, "entries") {
            last = number(entry, &["index"]).unwrap_or(last);
            write_out(&match context.global.output {
                Format::Json => format!("{}\n", json(entry, false)),
                Format::Table => row(entry).join("  ") + "\n",
            })?;
        }
        sleep(PAUSE).await;
        // A node that restarts is what one may be looking at: go on when it is back.
        page = client.get(&format!("{PATH}?after={last}&limit={FOLLOW_PAGE}")).await.unwrap_or_default();
    }
}

fn table(entries: &[Value]) -> Table {
    let mut table = Table::new(&["INDEX", "AT", "SITE", "USER", "WHAT", "EXAM", "OUTCOME", "WHY"]);
    for entry in entries {
        table.row(row(entry));
    }
    table
}

fn row(entry: &Value) -> [String; 8] {
    ["index", "at", "site_name", "user", "kind", "exam", "outcome", "why"].map(|name| field(entry, &[name]))
}

async fn verify(context: &Context) -> anyhow::Result<ExitCode> {
    // A walk over a trail of years takes minutes.
    let found = context.client()?.get_long(&format!("{PATH}/verify")).await?;
    context.print(&found, verdict)?;
    let disagrees = items(&found, "attestations").iter().any(|said| said["agrees"] == Value::Bool(false));
    let sound = found.get("broken").is_some_and(Value::is_null) && !disagrees;
    Ok(if sound { ExitCode::Ok } else { ExitCode::Corrupt })
}

fn verdict(found: &Value) -> String {
    let get = |path: &[&str]| field(found, path);
    let mut text = match found.get("broken") {
        Some(Value::Null) => format!("good     {} entries, to index {}\n", get(&["entries"]), get(&["last"])),
        _ => format!(
            "BROKEN   at index {}: {}\ngood     to index {}\n",
            get(&["broken", "index"]),
            get(&["broken", "why"]),
            get(&["last"])
        ),
    };
    text.push_str(&format!("chain    {}\n", get(&["chain"])));
    for said in items(found, "attestations") {
        let says = match said.get("agrees").and_then(Value::as_bool) {
            Some(true) => "agrees",
            Some(false) => "DISAGREES",
            None => "cannot be compared",
        };
        let [site, index, at] = ["site_name", "index", "at"].map(|name| field(said, &[name]));
        text.push_str(&format!("site     {site} {says} at index {index}, {at}\n"));
    }
    text
}

async fn attest(context: &Context) -> anyhow::Result<()> {
    let path = "/admin/v1/audit/attest";
    let said = context.client()?.command(Method::POST, path, None, uuid::Uuid::new_v4()).await?;
    context.print(&said, |said| {
        let [index, chain] = ["index", "chain"].map(|name| field(said, &[name]));
        format!("attested at index {index}: {chain}\n`maillage audit verify` shows at each site whether it agrees\n")
    })?;
    Ok(())
}

async fn export(
    context: &Context,
    format: ExportFormat,
    from: Option<String>,
    to: Option<String>,
) -> anyhow::Result<()> {
    let format = match format {
        ExportFormat::Fhir => "fhir",
        ExportFormat::FhirBundle => "fhir-bundle",
        ExportFormat::Dicom => "dicom",
    };
    let pairs = [("format", Some(format.to_owned())), ("from", from), ("to", to)];
    let mut body = context.client()?.stream(Method::GET, &with_query(&format!("{PATH}/export"), &pairs), "*/*").await?;
    while let Some(line) = body.next_line().await? {
        // Not cleaned: another program's input must be what the standard says.
        write_out(&format!("{line}\n"))?;
    }
    Ok(())
}

pub(super) async fn events(context: &Context, args: EventsArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let mut after = args.after.unwrap_or_else(|| "now".to_owned());
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut ever = false;
    loop {
        match follow(context, &client, &mut after, &mut left).await {
            Ok(()) if left == 0 => return Ok(()),
            Ok(()) => ever = true,
            // A node that was there and is gone comes back; one that never was does not.
            Err(Stop::Lost(error)) if ever && !matches!(error, ClientError::Refused(_)) => {
                tracing::debug!(%error, "the stream of events is opened again")
            }
            Err(Stop::Lost(error)) => return Err(error.into()),
            Err(Stop::Unwritable(error)) => return Err(error.into()),
        }
        sleep(PAUSE).await;
    }
}

enum Stop {
    Lost(ClientError),
    Unwritable(crate::output::Unwritable),
}

/// Prints events until the stream ends, or enough were printed.
async fn follow(context: &Context, client: &Client, after: &mut String, left: &mut u64) -> Result<(), Stop> {
    let path = with_query("/api/v1/events", &[("after", Some(after.clone()))]);
    let mut stream = client.stream(Method::GET, &path, "text/event-stream").await.map_err(Stop::Lost)?;
    while *left > 0 {
        // A stream that breaks is opened again where it was.
        let Ok(Some(line)) = stream.next_line().await else { return Ok(()) };
        if let Some(id) = line.strip_prefix("id:") {
            id.trim().clone_into(after);
        }
        let Some(event) = line.strip_prefix("data:").and_then(|data| serde_json::from_str::<Value>(data.trim()).ok())
        else {
            continue;
        };
        write_out(&event_line(&event, context.global.output)).map_err(Stop::Unwritable)?;
        *left -= 1;
    }
    Ok(())
}

fn event_line(event: &Value, format: Format) -> String {
    match format {
        Format::Json => format!("{}\n", json(event, false)),
        Format::Table => {
            let [cursor, at, exam, what, user, site] =
                ["cursor", "at", "exam", "what", "user", "site_name"].map(|name| field(event, &[name]));
            let details = event.get("details").and_then(Value::as_object);
            let details = details.into_iter().flatten().filter(|(_, value)| !value.is_null());
            let details: Vec<String> = details.map(|(name, value)| format!("{name}={}", field(value, &[]))).collect();
            format!("{cursor}  {at}  exam {exam}  {what}  {}  {user} at {site}\n", clean(&details.join(" ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_verdict_says_where_the_trail_breaks_and_who_disagrees() {
        let mut found = json!({
            "entries": 41, "last": 57, "chain": "abab", "broken": null,
            "attestations": [
                { "site": 1, "site_name": "lyon", "index": 50, "at": "2026-01-02T03:04:05Z", "agrees": true },
                { "site": 2, "site_name": "brest", "index": 51, "at": "2026-01-02T03:04:06Z", "agrees": false },
            ],
        });
        expect![[r#"
            good     41 entries, to index 57
            chain    abab
            site     lyon agrees at index 50, 2026-01-02T03:04:05Z
            site     brest DISAGREES at index 51, 2026-01-02T03:04:06Z
        "#]]
        .assert_eq(&verdict(&found));
        found["broken"] = json!({ "index": 58, "why": "entries at the end are missing" });
        assert!(verdict(&found).starts_with("BROKEN   at index 58: entries at the end are missing\n"));
    }

    #[test]
    fn an_event_is_one_line_without_what_a_terminal_obeys() {
        let event = json!({
            "cursor": "41.0", "at": "2026-01-02T03:04:05Z", "exam": 12, "what": "claim-lost", "user": "dr-a",
            "site_name": "lyon", "details": { "user": "dr-b", "reason": "gone\u{1b}[2J", "from": null },
        });
        expect![[r#"
            41.0  2026-01-02T03:04:05Z  exam 12  claim-lost  reason=gone�[2J user=dr-b  dr-a at lyon
        "#]]
        .assert_eq(&event_line(&event, Format::Table));
    }
}
