//! `maillage study`: the images, in and out.

use std::path::PathBuf;

use clap::Subcommand;
use hyper::Method;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::{Context, age_note};
use crate::client::{Client, ClientError, Problem, segment, with_query};
use crate::exit::{ExitCode, Failure};
use crate::output::{Table, bytes, field, items, number};

mod download;
mod files;
mod import;
mod multipart;

const PATH: &str = "/api/v1/studies";

#[derive(Debug, Subcommand)]
pub(super) enum StudyCommand {
    /// Studies that the mesh knows
    List {
        /// At most so many
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Only those after this UID
        #[arg(long, value_name = "UID")]
        after: Option<String>,
    },
    /// One study: its parts and who holds them
    Show {
        /// The Study Instance UID
        uid: String,
    },
    /// Take in DICOM files and folders of them
    Import(import::ImportArgs),
    /// Bring a study here from wherever it is, and write it as files if asked
    Fetch {
        /// The Study Instance UID
        uid: String,
        /// A folder for the files; made when it does not exist
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Read and open every image of a study on this node, published or not, and compare hashes
    Verify {
        /// The Study Instance UID
        uid: String,
        /// Also what each other holder has of it, which comes over the network
        #[arg(long)]
        everywhere: bool,
    },
}

pub(super) async fn run(context: &Context, command: StudyCommand) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    match command {
        StudyCommand::List { limit, after } => {
            let path = with_query(PATH, &[("limit", Some(limit.to_string())), ("after", after)]);
            let studies = client.get(&path).await?;
            context.print(&studies, list)?;
        }
        StudyCommand::Show { uid } => {
            let study = client.get(&format!("{PATH}/{}", segment(&uid))).await?;
            context.print(&study, sheet)?;
        }
        StudyCommand::Import(args) => return import::run(context, &client, args).await,
        StudyCommand::Fetch { uid, out } => fetch(context, &client, &uid, out).await?,
        StudyCommand::Verify { uid, everywhere } => return verify(context, &client, &uid, everywhere).await,
    }
    Ok(ExitCode::Ok)
}

fn list(studies: &Value) -> String {
    let mut table = Table::new(&["STUDY", "EXAMS", "INSTANCES", "SIZE", "COPIES", "HERE", "RECEIVED"]);
    for study in items(studies, "studies") {
        let column = |name: &str| field(study, &[name]);
        table.row([
            column("uid"),
            column("exams"),
            column("instances"),
            bytes(number(study, &["bytes"])),
            format!("{}/{}", column("copies"), column("copies_wanted")),
            column("images_here"),
            column("received_at"),
        ]);
    }
    let more = match field(studies, &["next"]).as_str() {
        "-" => String::new(),
        next => format!("more: `maillage study list --after {next}`\n"),
    };
    table.render("no studies") + &more + &age_note(studies)
}

fn sheet(study: &Value) -> String {
    let get = |name: &str| field(study, &[name]);
    let mut text = format!(
        "study      {}\nexams      {}\ninstances  {}, {}\ncopies     {} of {}, here: {}\nreceived   {}\n\n",
        get("uid"),
        get("exams"),
        get("instances"),
        bytes(number(study, &["bytes"])),
        get("copies"),
        get("copies_wanted"),
        get("images_here"),
        get("received_at"),
    );
    let mut table = Table::new(&["PART", "FROM", "INSTANCES", "SIZE", "EXAM", "HELD BY", "MANIFEST"]);
    for part in items(&study["part_list"], "") {
        let column = |name: &str| field(part, &[name]);
        let holders = items(&part["holders"], "").iter().map(|holder| field(holder, &["site_name"]));
        table.row([
            column("sequence"),
            field(part, &["origin", "site_name"]),
            column("instances"),
            bytes(number(part, &["bytes"])),
            column("exam"),
            holders.collect::<Vec<_>>().join(" "),
            column("manifest"),
        ]);
    }
    text.push_str(&table.render("no parts"));
    text + &age_note(study)
}

async fn fetch(context: &Context, client: &Client, uid: &str, out: Option<PathBuf>) -> anyhow::Result<()> {
    let bar = progress(context);
    let path = format!("{PATH}/{}/fetch", segment(uid));
    let mut lines = client.stream(Method::POST, &path, "application/x-ndjson, application/json").await?;
    let mut done = loop {
        let Some(line) = lines.next_line().await? else {
            return Err(ClientError::Broken("it ended before the study was complete".to_owned()).into());
        };
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        if let (Some(done), Some(total)) = (number(&value, &["done"]), number(&value, &["total"])) {
            bar.set_length(total);
            bar.set_position(done);
        }
        match value.get("complete").and_then(Value::as_bool) {
            Some(true) => break value,
            Some(false) => return Err(incomplete(&value).into()),
            None => {}
        }
    };
    bar.finish_and_clear();
    if let Some(folder) = out {
        let written = download::study(client, uid, &folder, &progress(context)).await?;
        done["out"] = json!(folder);
        done["files"] = json!(written.files);
        done["files_bytes"] = json!(written.bytes);
    }
    context.print(&done, |done| {
        let size = bytes(number(done, &["bytes"]));
        let mut text = format!("{} instances here, {size}\n", field(done, &["instances"]));
        if done.get("files").is_some() {
            text.push_str(&format!("{} files written to {}\n", field(done, &["files"]), field(done, &["out"])));
        }
        text
    })?;
    Ok(())
}

/// The problem that a stream ended with: it began well, so it could not be the answer's status.
pub(super) fn incomplete(line: &Value) -> ClientError {
    let problem = line.get("problem").or_else(|| line.get("error")).cloned().unwrap_or(Value::Null);
    ClientError::Refused(
        serde_json::from_value(problem)
            .unwrap_or_else(|_| Problem { title: "the study could not be fetched".to_owned(), ..Problem::default() }),
    )
}

/// Not all there is degraded, wrong bytes are corruption.
async fn verify(context: &Context, client: &Client, uid: &str, everywhere: bool) -> anyhow::Result<ExitCode> {
    let path = format!("{PATH}/{}/verify", segment(uid));
    let report = client.post_long(&with_query(&path, &[("everywhere", everywhere.then(|| true.to_string()))])).await?;
    let sites = items(&report, "elsewhere");
    context.print(&report, |report| {
        let get = |name: &str| field(report, &[name]);
        let size = bytes(number(report, &["bytes"]));
        let mut text = if report["here"] == json!(false) {
            "nothing of it lies here\n".to_owned()
        } else {
            format!("{} instances in {} chunks, {size}, were read\n", get("instances"), get("chunks"))
        };
        for (count, what) in [
            ("unpublished", "of them are not published yet"),
            ("landing", "images are still to be coded, and were not read"),
            ("landing_lost", "images that were acknowledged cannot be read from the landing"),
        ] {
            if let Some(count @ 1..) = number(report, &[count]) {
                text.push_str(&format!("{count} {what}\n"));
            }
        }
        for fault in ["missing", "corrupt", "contradictory", "unopened"] {
            for hash in items(&report[fault], "") {
                text.push_str(&format!("{fault:<13} {}\n", field(hash, &[])));
            }
        }
        text.push_str(&not_here(report));
        if everywhere {
            text.push_str(&elsewhere(report));
        }
        text + if report["complete"] != json!(true) {
            "NOT complete\n"
        } else if everywhere || items(&report["not_here"], "").is_empty() {
            "complete: every byte is as received\n"
        } else {
            "complete: every byte that is to be here is as received\n"
        }
    })?;
    let has = |fault: &str| !items(&report[fault], "").is_empty();
    if matches!(number(&report, &["landing_lost"]), Some(1..)) {
        let failure = Failure::new(ExitCode::Corrupt, "images of the study that were acknowledged are lost here");
        return Err(failure.with_hint("have them sent again").into());
    }
    if has("corrupt") {
        let failure = Failure::new(ExitCode::Corrupt, "some of the study's bytes here are not what was received");
        return Err(failure.with_hint(format!("`maillage repair --study {uid}` gets them from another site")).into());
    }
    if has("contradictory") {
        let failure = Failure::new(ExitCode::Corrupt, "some of the images here do not open to what was received");
        return Err(failure.with_hint("have them sent again to the site that received them").into());
    }
    let damaged = sites.iter().filter(|site| site["state"] == json!("damaged"));
    let names: Vec<String> = damaged.map(|site| field(site, &["site_name"])).collect();
    if !names.is_empty() {
        let failure = Failure::new(ExitCode::Corrupt, format!("not what was received, at {}", names.join(", ")));
        return Err(failure.with_hint(format!("`maillage repair --study {uid}` there")).into());
    }
    Ok(if report["complete"] == json!(true) { ExitCode::Ok } else { ExitCode::Degraded })
}

/// The parts that are not here, or not as a whole, and need not be.
fn not_here(report: &Value) -> String {
    let mut text = String::new();
    for part in items(report, "not_here") {
        let holders = items(&part["holders"], "").iter().map(|holder| field(holder, &["site_name"]));
        let holders = holders.collect::<Vec<_>>().join(" ");
        text.push_str(&format!(
            "not here      {} instances from {}, held by {}\n",
            field(part, &["instances"]),
            field(part, &["origin", "site_name"]),
            if holders.is_empty() { "nobody" } else { holders.as_str() },
        ));
    }
    text
}

/// What each other holder has.
fn elsewhere(report: &Value) -> String {
    let mut table = Table::new(&["SITE", "STATE", "OBJECTS", "SIZE", "MISSING", "DAMAGED", "WHY"]);
    for site in items(report, "elsewhere") {
        let column = |name: &str| field(site, &[name]);
        let count = |name: &str| items(&site[name], "").len().to_string();
        let size = bytes(number(site, &["bytes"]));
        let (missing, damaged) = (count("missing"), count("damaged"));
        table.row([column("site_name"), column("state"), column("objects"), size, missing, damaged, column("why")]);
    }
    table.render("no other site holds it")
}

/// A bar of bytes on standard error, if a person looks.
pub(super) fn progress(context: &Context) -> ProgressBar {
    let target = if context.is_json() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
