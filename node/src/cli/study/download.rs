//! `maillage study fetch --out`: a study as files, by WADO-RS (PS3.18 section 10.4) from the local node.
//!
//! Files are named by the BLAKE3 hash of their bytes, never by what stands in them: a UID from the
//! wire would choose a path on this machine. The same instance twice is the same file.

use std::io;
use std::path::Path;

use anyhow::Context as _;
use hyper::Method;
use indicatif::ProgressBar;

use super::files::Target;
use super::multipart::{Event, Multipart};
use crate::client::{Client, segment};

/// Every instance in the transfer syntax in which it was received.
const ACCEPT: &str = "multipart/related; type=\"application/dicom\"; transfer-syntax=*";

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Files.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) bytes: u64,
}

/// Writes every instance of a study into `folder`.
///
/// # Errors
/// The node's refusal, an answer that is not whole, or a file that cannot be written. Files already
/// written stay: each is whole.
pub(super) async fn study(client: &Client, uid: &str, folder: &Path, bar: &ProgressBar) -> anyhow::Result<Written> {
    let path = format!("/dicom-web/studies/{}", segment(uid));
    let mut answer = client.stream(Method::GET, &path, ACCEPT).await?;
    let mut parts = Multipart::new(&answer.content_type)?;
    let mut writer = Writer { folder, open: None, written: Written::default() };
    while let Some(bytes) = answer.next().await? {
        bar.inc(bytes.len() as u64);
        for event in parts.push(&bytes)? {
            writer.take(event).await.with_context(|| format!("write into {}", folder.display()))?;
        }
    }
    parts.finish()?;
    bar.finish_and_clear();
    Ok(writer.written)
}

struct Writer<'a> {
    folder: &'a Path,
    open: Option<(Target, blake3::Hasher)>,
    written: Written,
}

impl Writer<'_> {
    async fn take(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Begin => {
                let target = Target::create(self.folder.to_owned(), self.written.files).await?;
                self.open = Some((target, blake3::Hasher::new()));
            }
            Event::Content(bytes) => {
                let Some((target, hasher)) = &mut self.open else { return Ok(()) };
                hasher.update(&bytes);
                self.written.bytes += bytes.len() as u64;
                target.append(bytes).await?;
            }
            Event::End => {
                let Some((target, hasher)) = self.open.take() else { return Ok(()) };
                target.finish(format!("{}.dcm", hasher.finalize().to_hex())).await?;
                self.written.files += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn files_are_named_by_their_bytes() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut writer = Writer { folder: directory.path(), open: None, written: Written::default() };
        for event in [Event::Begin, Event::Content(Bytes::from_static(b"abc")), Event::End, Event::Begin, Event::End] {
            writer.take(event).await.expect("write");
        }
        assert_eq!(writer.written, Written { files: 2, bytes: 3 });
        let named = |bytes: &[u8]| directory.path().join(format!("{}.dcm", blake3::hash(bytes).to_hex()));
        assert!(named(b"abc").is_file() && named(b"").is_file());
    }
}
