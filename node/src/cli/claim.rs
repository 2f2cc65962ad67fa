//! `maillage claim`: taking an exam, giving it back, and ending it with a report.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::exams::Specialty;
use super::{Context, Repeatable, body, exams, glass, prompt};
use crate::client::{Client, ClientError, Problem};
use crate::exit::{ExitCode, Failure};
use crate::output::field;

/// Longest report that is sent, in bytes; a report is a page or two of text.
const REPORT_LEN_MAX: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum ClaimCommand {
    /// Claim the exam that you should read next
    Next {
        /// Only exams of this modality; may be repeated
        #[arg(long, value_name = "CODE")]
        modality: Vec<String>,
        /// What you read; radiology by default; may be repeated
        #[arg(long, value_enum)]
        specialty: Vec<Specialty>,
        /// What you are an expert of; may be repeated
        #[arg(long, value_name = "CODE")]
        expertise: Vec<String>,
        #[command(flatten)]
        reader: Reader,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// Claim one exam
    Take {
        /// The exam's number
        id: u64,
        #[command(flatten)]
        reader: Reader,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// Take an exam from whoever has it
    TakeOver {
        /// The exam's number
        id: u64,
        /// Why; told to whoever had it
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        reader: Reader,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// Say that you have opened an exam
    Open {
        /// The exam's number
        id: u64,
        /// The token that the claim gave; your claim at this site by default
        #[arg(long, value_name = "NUMBER")]
        token: Option<u64>,
        #[command(flatten)]
        reader: Reader,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// Give an exam back to the waiting room
    Release {
        /// The exam's number
        id: u64,
        /// The token that the claim gave; your claim at this site by default
        #[arg(long, value_name = "TOKEN", value_parser = glass::token)]
        token: Option<Value>,
        /// Why, for the record
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        reader: Reader,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// End the claim with a report
    Complete {
        /// The exam's number
        id: u64,
        /// The token that the claim gave; your claim at this site by default
        #[arg(long, value_name = "TOKEN", value_parser = glass::token)]
        token: Option<Value>,
        /// A first word only: the claim goes on, and a final report is to follow
        #[arg(long)]
        preliminary: bool,
        #[command(flatten)]
        report: ReportArgs,
        #[command(flatten)]
        reader: Reader,
        #[command(flatten)]
        repeatable: Repeatable,
    },
}

/// Who reads.
#[derive(Debug, Args)]
pub(super) struct Reader {
    /// Your name
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    user: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct ReportArgs {
    /// The report's file; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The report itself
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
}

pub(super) async fn run(context: &Context, command: ClaimCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        ClaimCommand::Next { modality, specialty, expertise, reader, repeatable } => {
            let specialties: Vec<_> = specialty.into_iter().filter_map(exams::spelled).collect();
            let list = |list: Vec<String>| (!list.is_empty()).then(|| json!(list));
            let body = body([
                ("user", Some(json!(reader.user))),
                ("modalities", list(modality)),
                ("specialties", list(specialties)),
                ("expertise", list(expertise)),
            ]);
            let path = "/api/v1/claims/next";
            let granted = client.command(Method::POST, path, Some(&body), repeatable.id()).await?;
            context.print(&granted, grant)?;
        }
        ClaimCommand::Take { id, reader, repeatable } => {
            let (path, body) = (format!("/api/v1/exams/{id}/claim"), json!({ "user": reader.user }));
            let granted = client.command(Method::POST, &path, Some(&body), repeatable.id()).await?;
            context.print(&granted, grant)?;
        }
        ClaimCommand::TakeOver { id, reason, reader, repeatable } => {
            prompt::confirm(context, &format!("Take exam {id} from whoever reads it?")).await?;
            let path = format!("/api/v1/exams/{id}/take-over");
            let body = json!({ "user": reader.user, "reason": reason });
            let granted = client.command(Method::POST, &path, Some(&body), repeatable.id()).await?;
            context.print(&granted, grant)?;
        }
        ClaimCommand::Open { id, token, reader, repeatable } => {
            let token = proof(&client, id, &reader.user, token.map(Value::from)).await?;
            let (path, body) = (format!("/api/v1/exams/{id}/open"), json!({ "user": reader.user, "token": token }));
            let done = client.command(Method::POST, &path, Some(&body), repeatable.id()).await?;
            context.print(&done, |_| format!("exam {id}: opened\n"))?;
        }
        ClaimCommand::Release { id, token, reason, reader, repeatable } => {
            let token = proof(&client, id, &reader.user, token).await?;
            let path = format!("/api/v1/exams/{id}/release");
            let fields = [
                ("token", Some(json!(token))),
                ("reason", reason.map(Value::from)),
                ("user", Some(json!(reader.user))),
            ];
            let done = client.command(Method::POST, &path, Some(&body(fields)), repeatable.id()).await?;
            context.print(&done, |_| format!("exam {id}: released\n"))?;
        }
        ClaimCommand::Complete { id, token, preliminary, report, reader, repeatable } => {
            let token = proof(&client, id, &reader.user, token).await?;
            let path = format!("/api/v1/exams/{id}/report");
            let mut body = json!({ "user": reader.user, "token": token, "text": report.read().await? });
            if preliminary {
                body["kind"] = json!("preliminary");
            }
            let done = client.command(Method::POST, &path, Some(&body), repeatable.id()).await;
            let done = done.map_err(|error| explain_stale(error, id))?;
            context.print(&done, |done| glass::reported(done, id, preliminary))?;
        }
    }
    Ok(())
}

/// The proof of a claim: as it was given, or of the claim that `user` has at this site, which the node shows
/// on its own socket.
///
/// # Errors
/// They have none here.
async fn proof(client: &Client, id: u64, user: &str, given: Option<Value>) -> anyhow::Result<Value> {
    if let Some(token) = given {
        return Ok(token);
    }
    let site = client.get("/api/v1/status").await?["site"]["id"].clone();
    let exam = client.get(&format!("/api/v1/exams/{id}")).await?;
    own_proof(&exam, &site, user).ok_or_else(|| {
        let failure = Failure::new(ExitCode::Conflict, format!("{user} has no claim of exam {id} at this site"));
        failure.with_hint("give the token that the claim gave by --token").into()
    })
}

fn own_proof(exam: &Value, site: &Value, user: &str) -> Option<Value> {
    let (claim, glass) = (&exam["claim"], &exam["break_glass"]);
    let claimed = claim["user"] == *user && claim["site"] == *site;
    let token = if claimed { &claim["token"] } else { glass.get("token").filter(|_| glass["user"] == *user)? };
    (!token.is_null()).then(|| token.clone())
}

impl ReportArgs {
    /// The text, wherever it is.
    ///
    /// # Errors
    /// It cannot be read, is empty, or too long.
    pub(super) async fn read(self) -> anyhow::Result<String> {
        let text = match (self.text, self.report) {
            (Some(text), _) => text,
            (None, Some(path)) if path.as_os_str() == "-" => prompt::read_stdin("the report", REPORT_LEN_MAX).await?,
            (None, Some(path)) => prompt::read_file(path, "the report", REPORT_LEN_MAX).await?,
            // clap requires one of the two.
            (None, None) => String::new(),
        };
        if text.trim().is_empty() {
            return Err(Failure::new(ExitCode::Usage, "the report is empty").into());
        }
        Ok(text)
    }
}

/// A reader whose claim ended must know that the text is not lost.
fn explain_stale(error: ClientError, id: u64) -> anyhow::Error {
    let is_stale = matches!(&error, ClientError::Refused(Problem { code, .. }) if code == "stale-token");
    let failure = Failure::new(ExitCode::Conflict, "the claim had ended: the text is not the exam's report");
    let hint = format!("`maillage exams show {id}` shows who has it now, and the text if it was kept as a draft");
    if is_stale { anyhow::Error::from(error).context(failure.with_hint(hint)) } else { error.into() }
}

/// What was claimed and how to go on.
fn grant(granted: &Value) -> String {
    let exam = granted.get("exam").filter(|exam| exam.is_object()).unwrap_or(granted);
    if granted.is_null() || exam.get("id").is_none_or(Value::is_null) {
        return "nothing is waiting\n".to_owned();
    }
    let token = [&["token"][..], &["claim", "token"], &["exam", "claim", "token"]]
        .into_iter()
        .map(|path| field(granted, path))
        .find(|token| token != "-")
        .unwrap_or_else(|| "-".to_owned());
    let id = field(exam, &["id"]);
    format!(
        "{}next         `maillage claim complete {id} --token {token} --report FILE`, \
         or `maillage claim release {id} --token {token}`\n",
        exams::sheet(exam)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_tells_how_to_go_on() {
        let exam = json!({ "id": 7, "claim": { "user": "ann", "site": 3, "token": 99 } });
        for granted in [json!({ "granted": true, "exam": exam, "token": 99 }), exam] {
            let text = grant(&granted);
            assert!(text.contains("`maillage claim complete 7 --token 99 --report FILE`"), "{text}");
        }
    }

    #[test]
    fn a_claim_is_ones_own_by_user_and_site_and_what_was_taken_by_break_glass_by_user() {
        let claimed = json!({ "claim": { "user": "ann", "site": 3, "token": 99 }, "break_glass": null });
        assert_eq!(own_proof(&claimed, &json!(3), "ann"), Some(json!(99)));
        assert_eq!(own_proof(&claimed, &json!(4), "ann"), None);
        assert_eq!(own_proof(&claimed, &json!(3), "bob"), None);
        let taken = json!({ "claim": null, "break_glass": { "user": "bob", "token": "glass-1" } });
        assert_eq!(own_proof(&taken, &json!(3), "bob"), Some(json!("glass-1")));
        assert_eq!(own_proof(&taken, &json!(3), "ann"), None);
    }

    #[test]
    fn an_empty_queue_is_no_error() {
        for granted in [Value::Null, json!({ "granted": false, "exam": null, "token": null })] {
            assert_eq!(grant(&granted), "nothing is waiting\n");
        }
    }

    #[test]
    fn a_stale_report_is_a_conflict_that_says_where_the_text_is() {
        let problem = Problem { code: "stale-token".to_owned(), ..Problem::default() };
        let (code, hint) = crate::exit::classify(&explain_stale(ClientError::Refused(problem), 7));
        assert_eq!(code, ExitCode::Conflict);
        assert!(hint.expect("a hint").contains("maillage exams show 7"));
    }
}
