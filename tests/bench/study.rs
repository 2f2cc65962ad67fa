//! The study that is moved about: a CT of nobody, in memory and as files.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use maillage_dicom::dimse::scu::{Association, ScuTimeouts};
use maillage_dicom::part10::{self, FileMeta};
use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::{AeTitle, Uid};
use tempfile::TempDir;

use crate::lab::Lab;

/// A study of 512 x 512 slices.
#[derive(Debug)]
pub(crate) struct Study {
    /// Its Study Instance UID.
    pub(crate) uid: String,
    /// Bytes of its data sets.
    pub(crate) bytes: u64,
    /// Its data sets, by SOP Instance UID.
    pub(crate) slices: Vec<(Uid, Bytes)>,
    dir: TempDir,
}

impl Study {
    /// Makes it, and writes its files.
    pub(crate) async fn write(lab: &Lab, slices: u32) -> anyhow::Result<Self> {
        let dir = lab.dir("study")?;
        let phantom = CtPhantom { slices, ..CtPhantom::default() };
        let uid = phantom.study_uid().to_string();
        let path = dir.path().to_owned();
        let made = maillage_host::offload(move || {
            let mut made = Vec::new();
            for n in 0..slices {
                let (instance, dataset) = phantom.slice(n);
                let header = part10::header(&FileMeta {
                    sop_class: CtPhantom::SOP_CLASS,
                    sop_instance: instance.clone(),
                    transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
                    source_ae: None,
                });
                std::fs::write(path.join(format!("{n:04}.dcm")), [&header[..], &dataset[..]].concat())?;
                made.push((instance, dataset));
            }
            Ok(made)
        });
        let slices = made.await.context("write the study")?;
        let bytes = slices.iter().map(|(_, dataset)| dataset.len() as u64).sum();
        Ok(Self { uid, bytes, slices, dir })
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Sends it over one association with our own sender, each slice confirmed before the next.
    pub(crate) async fn send(&self, to: SocketAddr) -> anyhow::Result<()> {
        let (calling, called) = (AeTitle::parse("BENCH")?, AeTitle::parse("MAILLAGE")?);
        let contexts = [(CtPhantom::SOP_CLASS, vec![CtPhantom::TRANSFER_SYNTAX])];
        let mut association = Association::connect(to, &calling, &called, &contexts, ScuTimeouts::default()).await?;
        for (instance, dataset) in &self.slices {
            let status = association
                .store(&CtPhantom::SOP_CLASS, instance, &CtPhantom::TRANSFER_SYNTAX, dataset.clone())
                .await?;
            ensure!(status.is_stored(), "a slice was not stored: {status:?}");
        }
        association.release().await?;
        Ok(())
    }
}

/// The data sets in the files of a directory, one after another.
pub(crate) fn read_all(dir: &Path) -> anyhow::Result<Bytes> {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    names.sort_unstable();
    let mut all = Vec::new();
    for name in names {
        all.extend_from_slice(&part10::parse(std::fs::read(name)?.into())?.dataset);
    }
    Ok(all.into())
}
