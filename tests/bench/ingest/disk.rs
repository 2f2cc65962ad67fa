//! What the disk alone takes for the same bytes, each slice as durable as a confirmed one must be.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use tokio::time::Instant;

use crate::lab::Lab;
use crate::study::Study;

/// Zeroes are written so many at a time.
const ZEROES: &[u8] = &[0; 1 << 20];

/// Seconds for one write and one fdatasync a slice into a file whose blocks and length are settled.
pub(super) async fn measure(lab: &Lab, study: &Study) -> anyhow::Result<f64> {
    let dir = lab.dir("disk")?;
    let path = dir.path().join("file");
    let bytes = study.bytes;
    let file = maillage_host::offload(move || preallocated(&path, bytes)).await?;
    lab.quiet().await?;
    let slices: Vec<Bytes> = study.slices.iter().map(|(_, dataset)| dataset.clone()).collect();
    let measured = maillage_host::offload(move || {
        let since = Instant::now();
        let mut at = 0;
        for slice in slices {
            file.write_all_at(&slice, at)?;
            file.sync_data()?;
            at += slice.len() as u64;
        }
        Ok(since.elapsed().as_secs_f64())
    });
    Ok(measured.await?)
}

/// A file of this many zeroes, on the disk.
pub(crate) fn preallocated(path: &Path, bytes: u64) -> std::io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    for at in (0..bytes).step_by(ZEROES.len()) {
        file.write_all_at(ZEROES, at)?;
    }
    file.sync_all()?;
    Ok(file)
}
