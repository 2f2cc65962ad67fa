//! `maillage study import`: files and folders of DICOM into the local node.
//!
//! Nothing is parsed here: the node checks what it takes, and answers only once it is durable. So an
//! import that was cut off is simply repeated: what is there already counts as a duplicate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::files::{self, Source};
use super::{Context, progress};
use crate::client::{Client, ClientError, RequestBody};
use crate::exit::ExitCode;
use crate::output::{bytes, clean, field};

/// Sent at once: one read of the disk, one write to the socket.
const PIECE: usize = 1 << 20;
/// Most uploads at once: more only wait for the node's own limit.
const JOBS_MAX: u16 = 64;

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    /// Files, and folders that are searched to their depths; links are not followed
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Uploads at once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(JOBS_MAX)))]
    jobs: u16,
}

/// What became of one file.
#[derive(Debug)]
enum Fate {
    New,
    Duplicate,
    Conflict,
    Skipped,
    Refused { reason: String, message: String },
}

pub(super) async fn run(context: &Context, client: &Client, args: ImportArgs) -> anyhow::Result<ExitCode> {
    let found = files::find(args.paths).await?;
    let bar = progress(context);
    bar.set_length(found.files.iter().map(|(_, len)| len).sum());
    let mut summary = Summary::default();
    for (path, why) in &found.unreadable {
        let message = why.clone();
        summary.count(path, Fate::Refused { reason: "unreadable".to_owned(), message }, 0, &bar);
    }
    let uploads = found.files.into_iter().map(|(path, len)| async move {
        let fate = send(client, path.clone()).await;
        (path, len, fate)
    });
    let mut uploads = stream::iter(uploads).buffer_unordered(usize::from(args.jobs));
    while let Some((path, len, fate)) = uploads.next().await {
        match fate {
            Ok(fate) => summary.count(&path, fate, len, &bar),
            // The next file would fare no better.
            Err(error) => {
                bar.finish_and_clear();
                drop(uploads);
                let sent = summary.new + summary.duplicate + summary.conflict;
                let error = anyhow::Error::from(error);
                return Err(error.context(format!(
                    "import stopped at {} after {sent} files; what was sent is safe, and repeating the import skips it",
                    path.display()
                )));
            }
        }
        bar.inc(len);
    }
    bar.finish_and_clear();
    let value = summary.to_json(found.special);
    context.print(&value, text)?;
    Ok(if summary.refused.is_empty() { ExitCode::Ok } else { ExitCode::Error })
}

/// Sends one file. An error is one of the node, not of the file.
async fn send(client: &Client, path: PathBuf) -> Result<Fate, ClientError> {
    let unreadable =
        |error: std::io::Error| Fate::Refused { reason: "unreadable".to_owned(), message: error.to_string() };
    let source = match Source::open(path).await {
        Ok(Some(source)) => source,
        Ok(None) => return Ok(Fate::Skipped),
        Err(error) => return Ok(unreadable(error)),
    };
    let sent = client.upload("/api/v1/instances", "application/dicom", source.len, || body(&source)).await;
    match sent {
        Ok(answer) => Ok(match answer.get("outcome").and_then(Value::as_str) {
            Some("duplicate") => Fate::Duplicate,
            Some("conflict") => Fate::Conflict,
            _ => Fate::New,
        }),
        Err(ClientError::Refused(problem)) => {
            let reason = [&problem.reason, &problem.code].into_iter().find(|reason| !reason.is_empty());
            let reason = reason.cloned().unwrap_or_else(|| format!("status {}", problem.status));
            Ok(Fate::Refused { reason, message: problem.to_string() })
        }
        // A file that became shorter breaks its connection; a node that is gone breaks every one.
        Err(error @ (ClientError::Broken(_) | ClientError::Unknown { .. })) => match source.read(0, PIECE).await {
            Ok(_) => Err(error),
            Err(error) => Ok(unreadable(error)),
        },
        Err(error) => Err(error),
    }
}

/// The file's content in pieces, read as they are sent.
fn body(source: &Source) -> RequestBody {
    let pieces = stream::try_unfold((source.clone(), 0), |(source, offset)| async move {
        if offset >= source.len {
            return Ok(None);
        }
        let piece = source.read(offset, PIECE).await?;
        let next = offset + piece.len() as u64;
        Ok(Some((Frame::data(piece), (source, next))))
    });
    StreamBody::new(pieces).boxed_unsync()
}

#[derive(Debug, Default)]
struct Summary {
    new: u64,
    duplicate: u64,
    conflict: u64,
    skipped: u64,
    bytes: u64,
    refused: BTreeMap<String, u64>,
}

impl Summary {
    fn count(&mut self, path: &Path, fate: Fate, len: u64, bar: &ProgressBar) {
        let name = clean(&path.display().to_string());
        match fate {
            Fate::New => {
                self.new += 1;
                self.bytes += len;
            }
            Fate::Duplicate => self.duplicate += 1,
            Fate::Conflict => {
                self.conflict += 1;
                bar.suspend(|| eprintln!("conflict: {name}: other bytes hold its UID; both are kept and flagged"));
            }
            Fate::Skipped => self.skipped += 1,
            Fate::Refused { reason, message } => {
                bar.suspend(|| eprintln!("refused: {name}: {}", clean(&message)));
                *self.refused.entry(reason).or_default() += 1;
            }
        }
    }

    fn to_json(&self, special: usize) -> Value {
        json!({
            "new": self.new,
            "duplicate": self.duplicate,
            "conflict": self.conflict,
            "refused": self.refused.values().sum::<u64>(),
            "refused_reasons": self.refused,
            "not_dicom": self.skipped,
            "not_followed": special,
            "new_bytes": self.bytes,
        })
    }
}

fn text(value: &Value) -> String {
    let get = |name: &str| field(value, &[name]);
    let mut text = format!(
        "{} new ({}), {} duplicate, {} conflict, {} refused\n",
        get("new"),
        bytes(value["new_bytes"].as_u64()),
        get("duplicate"),
        get("conflict"),
        get("refused"),
    );
    for (reason, count) in value["refused_reasons"].as_object().into_iter().flatten() {
        text.push_str(&format!("  refused {count}: {}\n", clean(reason)));
    }
    for (name, what) in [("not_dicom", "files that are not DICOM"), ("not_followed", "links and devices")] {
        if value[name] != json!(0) {
            text.push_str(&format!("  left out {} {what}\n", get(name)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_summary_counts_refusals_by_reason() {
        let mut summary = Summary::default();
        let bar = ProgressBar::hidden();
        let refused = |reason: &str| Fate::Refused { reason: reason.to_owned(), message: "why".to_owned() };
        for fate in [
            Fate::New,
            Fate::New,
            Fate::Duplicate,
            Fate::Skipped,
            refused("too-deep"),
            refused("too-deep"),
            refused("z"),
        ] {
            summary.count(Path::new("x"), fate, 1024, &bar);
        }
        expect![[r#"
            2 new (2.0 KiB), 1 duplicate, 0 conflict, 3 refused
              refused 2: too-deep
              refused 1: z
              left out 1 files that are not DICOM
              left out 1 links and devices
        "#]]
        .assert_eq(&text(&summary.to_json(1)));
    }
}
