//! `maillage exams break-glass` and `maillage outbox`: working while the site is cut off from the quorum,
//! and what became of it.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::{Context, Repeatable, prompt};
use crate::client::segment;
use crate::output::{Table, clean, field, items};

const PATH: &str = "/api/v1/outbox";

/// Taking an exam without a quorum.
#[derive(Debug, Args)]
pub(super) struct BreakGlass {
    /// The exam's number
    id: u64,
    /// Why it cannot wait for the quorum, for the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Your name
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    user: String,
    #[command(flatten)]
    repeatable: Repeatable,
}

#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// What waits to be sent, what was sent within a day, and what awaits a person
    List,
    /// Take note of how an entry ended, so that it is shown no more
    Drop {
        /// The entry's id
        id: uuid::Uuid,
    },
}

pub(super) async fn take(context: &Context, args: BreakGlass) -> anyhow::Result<()> {
    let client = context.client()?;
    let question = format!("Take exam {} without the mesh's knowledge? Somebody else may be reading it.", args.id);
    prompt::confirm(context, &question).await?;
    let path = format!("/api/v1/exams/{}/break-glass", args.id);
    let body = json!({ "user": args.user, "reason": args.reason });
    let taken = client.command(Method::POST, &path, Some(&body), args.repeatable.id()).await?;
    context.print(&taken, |taken| {
        let (exam, token) = (field(taken, &["exam"]), field(taken, &["token"]));
        format!(
            "exam {exam}: taken by break glass; the mesh is told when a quorum is back\n\
             studies      {}\n\
             next         `maillage claim complete {exam} --token {token} --report FILE`, \
             or `maillage claim release {exam} --token {token}`\n",
            field(taken, &["studies"]),
        )
    })?;
    Ok(())
}

pub(super) async fn outbox(context: &Context, command: OutboxCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        OutboxCommand::List => {
            let entries = client.get(PATH).await?;
            context.print(&entries, listed)?;
        }
        OutboxCommand::Drop { id } => {
            let path = format!("{PATH}/{}", segment(&id.to_string()));
            let done = client.command(Method::DELETE, &path, None, uuid::Uuid::new_v4()).await?;
            context.print(&done, |_| format!("{id}: no longer shown\n"))?;
        }
    }
    Ok(())
}

fn listed(entries: &Value) -> String {
    let mut table = Table::new(&["id", "kind", "exam", "by", "at", "state", "number", "why"]);
    for entry in items(entries, "entries") {
        let cells = ["id", "kind", "exam", "user", "at", "state", "number", "why"];
        table.row(cells.map(|cell| field(entry, &[cell])));
    }
    let mut text = table.render("the outbox is empty");
    // A text that is in no report of the mesh is here and nowhere else.
    for entry in items(entries, "entries").iter().filter(|entry| entry["needs_a_person"] == json!(true)) {
        text.push_str(&format!(
            "\n{} ({}), exam {}:\n",
            field(entry, &["id"]),
            field(entry, &["state"]),
            field(entry, &["exam"])
        ));
        for line in entry.get("text").and_then(Value::as_str).unwrap_or_default().lines() {
            text.push_str(&format!("  {}\n", clean(line)));
        }
    }
    if entries.get("failure").is_some_and(Value::is_string) {
        text.push_str(&format!("note: nothing more is taken down: {}\n", field(entries, &["failure"])));
    }
    text
}

/// What a report's answer means to the person who sent it.
pub(super) fn reported(done: &Value, id: u64, preliminary: bool) -> String {
    if done.get("queued").and_then(Value::as_bool) == Some(true) {
        return format!(
            "exam {id}: the report is kept on this site and sent when a quorum is back; \
             `maillage outbox list` shows what becomes of it\n"
        );
    }
    let word = if preliminary { "reported, to be followed by a final report" } else { "reported" };
    format!("exam {id}: {word}\n")
}

/// A claim's token as people give it: a number, or what `exams break-glass` printed.
pub(super) fn token(text: &str) -> Result<Value, String> {
    match text.parse::<u64>() {
        Ok(number) => Ok(json!(number)),
        Err(_) if text.starts_with("glass-") => Ok(json!(text)),
        Err(_) => Err("must be a claim's number, or the token of a break-glass claim".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_nowhere_else_is_printed_and_one_that_was_sent_is_not() {
        let entry = |state: &str, person: bool| json!({ "id": "u", "kind": "report", "exam": 7, "state": state, "needs_a_person": person, "text": "No bleeding." });
        let text = listed(&json!({ "entries": [entry("failed", true)], "failure": null }));
        assert!(text.contains("u (failed), exam 7:\n  No bleeding.\n"), "{text}");
        let text = listed(&json!({ "entries": [entry("accepted", false)], "failure": null }));
        assert!(!text.contains("No bleeding."), "{text}");
        assert_eq!(listed(&json!({ "entries": [] })), "the outbox is empty\n");
    }

    #[test]
    fn a_token_is_a_number_or_says_what_it_is() {
        assert_eq!(token("99"), Ok(json!(99)));
        assert_eq!(token("glass-1"), Ok(json!("glass-1")));
        for none in ["", "-1", "99x", "1.5"] {
            assert!(token(none).is_err(), "{none}");
        }
    }
}
