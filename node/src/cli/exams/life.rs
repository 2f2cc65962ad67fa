//! `maillage exams`: what happens to an exam besides its reading, and what is said of it.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{By, PATH, Priority, decide, spelled};
use crate::cli::claim::ReportArgs;
use crate::cli::{Context, Repeatable, age_note, body};
use crate::client::Client;
use crate::exit::{ExitCode, Failure};
use crate::output::{Table, duration_ms, field, items, number};

/// Who says it, and the means to repeat it.
#[derive(Debug, Args)]
pub(in crate::cli) struct Said {
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    repeatable: Repeatable,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum LifeCommand {
    /// Validate a request with a protocol, or refuse it
    #[command(group(ArgGroup::new("verdict").required(true)))]
    Regulate {
        /// The exam's number
        id: u64,
        /// It is relevant: acquire it by this protocol
        #[arg(long, value_name = "TEXT", group = "verdict")]
        protocol: Option<String>,
        /// It is not to be done, for this reason
        #[arg(long, value_name = "REASON", group = "verdict")]
        refuse: Option<String>,
        #[command(flatten)]
        said: Said,
    },
    /// The technologist begins to scan
    Acquire {
        /// The exam's number
        id: u64,
        #[command(flatten)]
        said: Said,
    },
    /// Leave a note for other centres
    Note {
        /// The exam's number
        id: u64,
        /// The note
        text: String,
        #[command(flatten)]
        said: Said,
    },
    /// Ask for a second opinion, or give it
    #[command(subcommand)]
    Opinion(OpinionCommand),
    /// Record an algorithm's result
    Finding(Box<FindingArgs>),
    /// A result of which somebody must be told at once
    Critical {
        /// The exam's number
        id: u64,
        /// What it is
        text: String,
        #[command(flatten)]
        said: Said,
    },
    /// Critical results of which nobody has been told
    Criticals,
    /// Somebody was told of a critical result or of a discrepancy
    Told {
        /// The exam's number
        id: u64,
        /// The remark's number, as `exams show` has it
        remark: u32,
        /// Who was told: a name and function
        #[arg(long, value_name = "TEXT")]
        whom: String,
        /// They read it back
        #[arg(long)]
        read_back: bool,
        #[command(flatten)]
        said: Said,
    },
    /// Two readings differ
    Discrepancy {
        /// The exam's number
        id: u64,
        /// 1 none, 2 minor, 3 major, 4 vital
        #[arg(long, value_name = "1-4", value_parser = clap::value_parser!(u8).range(1..=4))]
        grade: u8,
        /// What differs
        text: String,
        #[command(flatten)]
        said: Said,
    },
    /// The requesting physician has the report
    Deliver {
        /// The exam's number
        id: u64,
        /// To whom and how
        #[arg(long, value_name = "TEXT")]
        to: String,
        /// The report's number; else the one that stands
        #[arg(long, value_name = "NUMBER")]
        report: Option<u64>,
        #[command(flatten)]
        said: Said,
    },
    /// What became of the patient
    FollowUp {
        /// The exam's number
        id: u64,
        /// What
        text: String,
        #[command(flatten)]
        said: Said,
    },
    /// Keep the images, whatever their age
    Hold {
        /// The exam's number
        id: u64,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        said: Said,
    },
    /// End a legal hold: the images stay no longer than others
    ReleaseHold {
        /// The exam's number
        id: u64,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        said: Said,
    },
    /// Purge the images everywhere, for good, before their time is over: of a cancelled or refused exam, or
    /// without the patient's consent
    Purge {
        /// The exam's number
        id: u64,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The patient has withdrawn the consent
        #[arg(long)]
        consent_withdrawn: bool,
        #[command(flatten)]
        said: Said,
    },
    /// Add a word to the final report
    Addend {
        /// The exam's number
        id: u64,
        #[command(flatten)]
        report: ReportArgs,
        #[command(flatten)]
        said: Said,
    },
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum OpinionCommand {
    /// Ask a colleague to look too
    Ask {
        /// The exam's number
        id: u64,
        /// A person or a specialty; else anybody in any centre
        #[arg(long, value_name = "NAME")]
        of: Option<String>,
        /// What is asked
        question: String,
        #[command(flatten)]
        said: Said,
    },
    /// Give a second opinion
    Give {
        /// The exam's number
        id: u64,
        /// The remark that asks for it, as `exams show` has it
        remark: u32,
        /// Whether it agrees with the first reader
        #[arg(long, value_enum)]
        concordance: Concordance,
        /// The opinion
        text: String,
        #[command(flatten)]
        said: Said,
    },
}

/// How far two opinions agree.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum Concordance {
    /// They agree
    Agrees,
    /// They differ, without consequence for the patient
    DiffersMinor,
    /// They differ, with consequence for the patient
    DiffersMajor,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct FindingArgs {
    /// The exam's number
    id: u64,
    /// The algorithm's name
    #[arg(long, value_name = "NAME")]
    algorithm: String,
    /// Its version
    #[arg(long, value_name = "VERSION")]
    algorithm_version: String,
    /// How sure it is, from 0 to 1
    #[arg(long, value_name = "NUMBER")]
    score: f64,
    /// What it found; else nothing
    #[arg(long, value_name = "TEXT")]
    finding: Option<String>,
    /// A SOP Instance UID and frame, or words
    #[arg(long, value_name = "TEXT")]
    location: Option<String>,
    /// The urgency that it asks for: it raises the exam's, never lowers it
    #[arg(long, value_enum)]
    priority: Option<Priority>,
    #[command(flatten)]
    said: Said,
}

impl FindingArgs {
    fn body(&self) -> Value {
        let text = |value: &Option<String>| value.clone().map(Value::from);
        body([
            ("algorithm", Some(json!(self.algorithm))),
            ("version", Some(json!(self.algorithm_version))),
            ("score", Some(json!(self.score))),
            ("finding", text(&self.finding)),
            ("location", text(&self.location)),
            ("priority", self.priority.and_then(spelled).map(Value::from)),
            ("user", text(&self.said.by.user)),
        ])
    }
}

pub(super) async fn run(context: &Context, client: &Client, command: LifeCommand) -> anyhow::Result<()> {
    let say = async |id: u64, verb: &str, said: Said, mut fields: Value| {
        if let Some(user) = said.by.user {
            fields["user"] = json!(user);
        }
        decide(context, client, id, verb, &fields, said.repeatable).await
    };
    match command {
        LifeCommand::Regulate { id, protocol, refuse, said } => {
            let verdict = match refuse {
                Some(reason) => json!({ "verdict": "refused", "reason": reason }),
                None => json!({ "verdict": "validated", "protocol": protocol }),
            };
            say(id, "regulation", said, verdict).await
        }
        LifeCommand::Acquire { id, said } => say(id, "acquisition", said, json!({})).await,
        LifeCommand::Note { id, text, said } => say(id, "notes", said, json!({ "text": text })).await,
        LifeCommand::Opinion(OpinionCommand::Ask { id, of, question, said }) => {
            let fields = body([("of", of.map(Value::from)), ("question", Some(json!(question)))]);
            say(id, "opinions", said, fields).await
        }
        LifeCommand::Opinion(OpinionCommand::Give { id, remark, concordance, text, said }) => {
            let fields = json!({ "text": text, "concordance": spelled(concordance) });
            say(id, &format!("opinions/{remark}/answer"), said, fields).await
        }
        LifeCommand::Finding(finding) => {
            let fields = finding.body();
            say(finding.id, "findings", finding.said, fields).await
        }
        LifeCommand::Critical { id, text, said } => say(id, "criticals", said, json!({ "text": text })).await,
        LifeCommand::Criticals => criticals(context, client).await,
        LifeCommand::Told { id, remark, whom, read_back, said } => {
            let kind = told_of(client, id, remark).await?;
            let fields = json!({ "whom": whom, "read_back": read_back });
            say(id, &format!("{kind}/{remark}/told"), said, fields).await
        }
        LifeCommand::Discrepancy { id, grade, text, said } => {
            say(id, "discrepancies", said, json!({ "grade": grade, "text": text })).await
        }
        LifeCommand::Deliver { id, to, report, said } => {
            let report = match report {
                Some(report) => report,
                None => standing_report(client, id).await?,
            };
            say(id, "delivery", said, json!({ "to": to, "report": report })).await
        }
        LifeCommand::FollowUp { id, text, said } => say(id, "follow-up", said, json!({ "text": text })).await,
        LifeCommand::Hold { id, reason, said } => say(id, "legal-hold", said, json!({ "reason": reason })).await,
        LifeCommand::ReleaseHold { id, reason, said } => {
            say(id, "legal-hold/release", said, json!({ "reason": reason })).await
        }
        LifeCommand::Purge { id, reason, consent_withdrawn, said } => {
            let fields = json!({ "reason": reason, "consent_withdrawn": consent_withdrawn });
            say(id, "purge", said, fields).await
        }
        LifeCommand::Addend { id, report, said } => {
            let text = report.read().await?;
            say(id, "addendum", said, json!({ "text": text })).await
        }
    }
}

/// Where to say that somebody was told of this remark.
async fn told_of(client: &Client, id: u64, remark: u32) -> anyhow::Result<&'static str> {
    let exam = client.get(&format!("{PATH}/{id}")).await?;
    let remarks = items(&exam, "remarks");
    let kind = remarks.iter().find(|known| number(known, &["number"]) == Some(u64::from(remark)));
    match kind.map(|known| field(known, &["kind"])).as_deref() {
        Some("discrepancy") => Ok("discrepancies"),
        // One that this node does not have yet: the node asked decides.
        Some("critical") | None => Ok("criticals"),
        Some(other) => {
            let message = format!("remark {remark} of exam {id} is a {other}: nobody has to be told of it");
            Err(Failure::new(ExitCode::Usage, message).into())
        }
    }
}

async fn standing_report(client: &Client, id: u64) -> anyhow::Result<u64> {
    let exam = client.get(&format!("{PATH}/{id}?fresh=true")).await?;
    number(&exam, &["standing_report"])
        .ok_or_else(|| Failure::new(ExitCode::Conflict, format!("exam {id} has no report to deliver")).into())
}

async fn criticals(context: &Context, client: &Client) -> anyhow::Result<()> {
    let open = client.get("/api/v1/criticals").await?;
    context.print(&open, |open| {
        let mut table = Table::new(&["EXAM", "REMARK", "OPEN FOR", "OVERDUE", "ESCALATED", "HOSPITAL", "BY", "WHAT"]);
        for critical in items(open, "criticals") {
            let remark = |name: &str| field(critical, &["remark", name]);
            table.row([
                field(critical, &["exam"]),
                remark("number"),
                duration_ms(number(critical, &["open_ms"])),
                field(critical, &["overdue"]),
                remark("escalated"),
                field(critical, &["hospital"]),
                remark("user"),
                remark("text"),
            ]);
        }
        table.render("no critical result is open") + &age_note(open)
    })?;
    Ok(())
}
