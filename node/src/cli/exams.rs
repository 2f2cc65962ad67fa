//! `maillage exams`: the queue, and what people decide about its exams.

use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Value, json};

use super::{Context, Repeatable, age_note, body, prompt};
use crate::client::{Client, ClientError, segment, with_query};
use crate::output::{field, items};

mod life;
mod look;

pub(super) use look::sheet;
use look::table;

const PATH: &str = "/api/v1/exams";
/// Most exams that the node gives at once; further ones are asked for.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum ExamsCommand {
    /// Exams in the order in which they are to be read
    List {
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<State>,
        /// Only those of this hospital
        #[arg(long, value_name = "NAME")]
        hospital: Option<String>,
        /// Only those of this modality
        #[arg(long, value_name = "CODE")]
        modality: Option<String>,
        /// Only those of the patient with this identifier
        #[arg(long, value_name = "ID")]
        patient_id: Option<String>,
        /// Only those with this accession number
        #[arg(long, value_name = "NUMBER")]
        accession: Option<String>,
        /// Only those that wait for a regulator, first come first
        #[arg(long)]
        to_regulate: bool,
        /// At most so many
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Show every change made before now, or fail without a quorum
        #[arg(long)]
        fresh: bool,
    },
    /// One exam with its reports
    Show {
        /// The exam's number
        id: u64,
    },
    /// Request an examination
    Add(Box<NewExam>),
    /// Take an exam out of the queue
    Cancel {
        /// The exam's number
        id: u64,
        /// Why, for the record
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// Change how urgent an exam is
    Prioritise {
        /// The exam's number
        id: u64,
        /// The new priority
        #[arg(value_enum)]
        priority: Priority,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    /// Take an exam whose images are here, while no quorum can be reached
    BreakGlass(super::glass::BreakGlass),
    /// Give the images of an unsolicited exam to the exam that they belong to
    Reconcile {
        /// The unsolicited exam's number
        unsolicited: u64,
        /// The number of the exam that was requested
        #[arg(long, value_name = "ID")]
        into: u64,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        repeatable: Repeatable,
    },
    #[command(flatten)]
    Life(life::LifeCommand),
}

/// Who decides, for the record.
#[derive(Debug, Args)]
pub(super) struct By {
    /// Your name
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    user: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct NewExam {
    /// The patient's identifier
    #[arg(long, value_name = "ID")]
    patient_id: String,
    /// The accession number
    #[arg(long, value_name = "NUMBER")]
    accession: String,
    /// Who issued the patient's identifier
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// Family^Given
    #[arg(long, value_name = "NAME")]
    patient_name: Option<String>,
    /// YYYYMMDD or YYYY-MM-DD
    #[arg(long, value_name = "DATE", value_parser = date)]
    birth_date: Option<String>,
    /// M, F or O
    #[arg(long, value_name = "SEX")]
    sex: Option<String>,
    /// CT, MR, CR …
    #[arg(long, value_name = "CODE")]
    modality: Option<String>,
    /// What is to be examined
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Where the patient is
    #[arg(long, value_name = "NAME")]
    hospital: Option<String>,
    /// Who requests it
    #[arg(long, value_name = "NAME")]
    physician: Option<String>,
    /// How urgent it is
    #[arg(long, value_enum, default_value = "urgent")]
    priority: Priority,
    /// What the patient said of the transfer of the images; refused, they do not leave their site
    #[arg(long, value_enum)]
    consent: Option<Consent>,
    /// Who reads it; else its modality decides
    #[arg(long, value_enum)]
    specialty: Option<Specialty>,
    /// The expertise that a rare case needs
    #[arg(long, value_name = "CODE")]
    expertise: Option<String>,
    /// A regulator has to validate it first
    #[arg(long)]
    regulate: bool,
    /// The clinical question
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Put it into the waiting room at once, without waiting for its images
    #[arg(long)]
    without_images: bool,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    repeatable: Repeatable,
}

/// How urgent an exam is, with the time to its report.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Priority {
    /// 30 minutes
    Vital,
    /// 1 hour
    Urgent,
    /// 4 hours
    SemiUrgent,
    /// 24 hours
    Scheduled,
}

/// Where an exam stands.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum State {
    /// Its images are awaited
    Requested,
    /// A regulator found it relevant
    Validated,
    /// The patient is being scanned
    Acquiring,
    /// Its images are arriving
    Receiving,
    /// To be claimed
    Waiting,
    /// A reader has it
    Claimed,
    /// Its reader has opened it
    Reading,
    /// The final report is signed
    Reported,
    /// The requesting physician has the report
    Delivered,
    /// Its outcome was followed up
    FollowedUp,
    /// Its images are gone
    Purged,
    /// Refused by a regulator
    Refused,
    /// Not to be read
    Cancelled,
}

/// What the patient said of the transfer of the images.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Consent {
    /// Nothing was declared
    Undeclared,
    /// The requester declares it
    Declared,
    /// An absolute emergency excuses its absence
    Emergency,
    /// The patient refuses
    Refused,
}

/// Which physicians read an exam.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Specialty {
    /// Radiologists
    Radiology,
    /// Nuclear physicians: PET and scintigraphy
    NuclearMedicine,
}

/// As the API spells it.
pub(super) fn spelled(value: impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

/// A date without hyphens, as DICOM writes it (PS3.5 section 6.2, VR DA).
fn date(text: &str) -> Result<String, String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(digits)
    } else {
        Err("must be YYYYMMDD or YYYY-MM-DD".to_owned())
    }
}

pub(super) async fn run(context: &Context, command: ExamsCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        ExamsCommand::BreakGlass(args) => super::glass::take(context, args).await?,
        ExamsCommand::List { state, hospital, modality, patient_id, accession, to_regulate, limit, fresh } => {
            let flag = |set: bool| set.then(|| "true".to_owned());
            let wanted = [
                ("state", state.and_then(spelled)),
                ("hospital", hospital),
                ("modality", modality),
                ("patient", patient_id),
                ("accession", accession),
                ("to-regulate", flag(to_regulate)),
                ("fresh", flag(fresh)),
            ];
            let exams = list(&client, &wanted, limit).await?;
            context.print(&exams, |exams| table(items(exams, "exams")).render("no exams") + &age_note(exams))?;
        }
        ExamsCommand::Show { id } => {
            let exam = client.get(&format!("{PATH}/{id}")).await?;
            context.print(&exam, |exam| sheet(exam) + &age_note(exam))?;
        }
        ExamsCommand::Add(new) => {
            let added = client.command(Method::POST, PATH, Some(&request(&new)), new.repeatable.id()).await?;
            context.print(&added, |added| {
                let existed = added.get("existed").and_then(Value::as_bool) == Some(true);
                let how = if existed { "is there already: same accession number and patient" } else { "added" };
                format!("exam {} {how}\n", field(added, &["id"]))
            })?;
        }
        ExamsCommand::Cancel { id, reason, by, repeatable } => {
            prompt::confirm(context, &format!("Cancel exam {id}? It will not be read.")).await?;
            let body = body([("reason", Some(json!(reason))), ("user", by.user.map(Value::from))]);
            decide(context, &client, id, "cancel", &body, repeatable).await?;
        }
        ExamsCommand::Prioritise { id, priority, by, repeatable } => {
            let body = body([("priority", spelled(priority).map(Value::from)), ("user", by.user.map(Value::from))]);
            decide(context, &client, id, "priority", &body, repeatable).await?;
        }
        ExamsCommand::Reconcile { unsolicited, into, by, repeatable } => {
            let body = body([("into", Some(json!(into))), ("user", by.user.map(Value::from))]);
            decide(context, &client, unsolicited, "reconcile", &body, repeatable).await?;
        }
        ExamsCommand::Life(command) => life::run(context, &client, command).await?,
    }
    Ok(())
}

async fn decide(
    context: &Context,
    client: &Client,
    id: u64,
    verb: &str,
    body: &Value,
    repeatable: Repeatable,
) -> anyhow::Result<()> {
    let path = format!("{PATH}/{id}/{verb}");
    let done = client.command(Method::POST, &path, Some(body), repeatable.id()).await?;
    context.print(&done, |done| match field(done, &["state"]).as_str() {
        "-" => format!("exam {id}: done\n"),
        state => format!("exam {id}: done, it is {state}\n"),
    })?;
    Ok(())
}

/// The list, of as many pages as it takes.
async fn list(client: &Client, wanted: &[(&str, Option<String>)], limit: usize) -> Result<Value, ClientError> {
    let mut all: Option<Value> = None;
    let (mut count, mut after) = (0, None);
    loop {
        let mut query = wanted.to_vec();
        query.push(("limit", Some((limit - count).min(PAGE).to_string())));
        query.push(("after", after.take()));
        let page = with_query(PATH, &query);
        let mut page = client.get(&page).await?;
        let exams = items(&page, "exams").to_vec();
        count += exams.len();
        after = page.get("next").filter(|next| !next.is_null()).map(|next| segment(&field(next, &[])));
        // A page may be empty and still have a next one: the node looks at so many exams at a time.
        let more = after.is_some() && count < limit;
        match all.as_mut() {
            // The first page speaks for the age of all: it is the oldest.
            Some(first) => {
                if let Some(list) = first.get_mut("exams").and_then(Value::as_array_mut) {
                    list.extend(exams);
                }
                first["next"] = page["next"].take();
            }
            None => all = Some(page),
        }
        if !more {
            return Ok(all.unwrap_or(Value::Null));
        }
    }
}

fn request(new: &NewExam) -> Value {
    let text = |value: &Option<String>| value.clone().map(Value::from);
    let patient = body([
        ("id", Some(json!(new.patient_id))),
        ("issuer", text(&new.issuer)),
        ("name", text(&new.patient_name)),
        ("birth_date", text(&new.birth_date)),
        ("sex", text(&new.sex)),
    ]);
    body([
        ("accession", Some(json!(new.accession))),
        ("patient", Some(patient)),
        ("modality", text(&new.modality)),
        ("description", text(&new.description)),
        ("hospital", text(&new.hospital)),
        ("physician", text(&new.physician)),
        ("priority", spelled(new.priority).map(Value::from)),
        ("awaits_images", Some(json!(!new.without_images))),
        ("consent", new.consent.and_then(spelled).map(Value::from)),
        ("specialty", new.specialty.and_then(spelled).map(Value::from)),
        ("expertise", text(&new.expertise)),
        ("regulate", new.regulate.then_some(Value::Bool(true))),
        ("question", text(&new.question)),
        ("user", text(&new.by.user)),
    ])
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_request_says_what_was_given_and_nothing_else() {
        let line = "maillage exams add --patient-id P1 --accession A1 --birth-date 1970-01-31 --modality CT --user ann \
                    --without-images --priority semi-urgent";
        let cli = Cli::try_parse_from(line.split(' ')).expect("a good line");
        let Command::Exams(ExamsCommand::Add(new)) = cli.command else { panic!("another command") };
        assert_eq!(
            request(&new),
            json!({
                "accession": "A1",
                "patient": { "id": "P1", "birth_date": "19700131" },
                "modality": "CT",
                "priority": "semi-urgent",
                "awaits_images": false,
                "user": "ann",
            })
        );
    }
}
