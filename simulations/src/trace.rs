//! The account of a run: every event of the world, in order, as one line each.
//!
//! Its hash is the determinism oracle: the same seed must give the same bytes. Lines are written to a
//! file only when asked for.

#![expect(clippy::disallowed_types, reason = "the simulator's own output, beside every simulated disk")]

use std::fmt::{Arguments, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

/// Hashes, counts, and perhaps writes the events of a run.
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    events: u64,
    line: String,
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// A trace that also goes to the file at `path`, if any.
    ///
    /// # Errors
    /// When the file can't be made.
    pub(crate) fn new(path: Option<&Path>) -> std::io::Result<Self> {
        let file = path.map(File::create).transpose()?.map(BufWriter::new);
        Ok(Self { hasher: blake3::Hasher::new(), events: 0, line: String::new(), file })
    }

    pub(crate) fn event(&mut self, at: Duration, slot: u32, what: Arguments<'_>) {
        self.line.clear();
        // Writing to a String can't fail.
        let _ = writeln!(self.line, "{:>12} n{slot} {what}", at.as_micros());
        self.hasher.update(self.line.as_bytes());
        self.events += 1;
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(self.line.as_bytes())
        {
            tracing::error!(%error, "the trace file can't be written; it ends here");
            self.file = None;
        }
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// The hash of everything so far, as 16 hex digits; what the file got is flushed.
    pub(crate) fn digest(&mut self) -> String {
        if let Some(file) = &mut self.file
            && let Err(error) = file.flush()
        {
            tracing::error!(%error, "flush the trace file");
        }
        let mut digest = self.hasher.finalize().to_hex().to_string();
        digest.truncate(16);
        digest
    }
}
