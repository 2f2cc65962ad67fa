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
    /// Its Series Instance UID.
    pub(crate) series: String,
    /// Its patient's id.
    pub(crate) patient: String,
    /// Its accession number.
    pub(crate) accession: String,
    /// Bytes of its data sets.
    pub(crate) bytes: u64,
    /// Its data sets, by SOP Instance UID.
    pub(crate) slices: Vec<(Uid, Bytes)>,
    /// Its files, if it has any.
    dir: Option<TempDir>,
}

impl Study {
    /// Makes one of many: no two seeds have a slice in common.
    pub(crate) async fn in_memory(slices: u32, seed: u64) -> anyhow::Result<Self> {
        let accession_number = format!("BENCH{seed}");
        let phantom = CtPhantom { slices, seed, accession_number, ..CtPhantom::default() };
        Self::make(phantom, None).await
    }

    /// Makes it, and writes its files.
    pub(crate) async fn write(lab: &Lab, slices: u32) -> anyhow::Result<Self> {
        Self::make(CtPhantom { slices, ..CtPhantom::default() }, Some(lab.dir("study")?)).await
    }

    async fn make(phantom: CtPhantom, dir: Option<TempDir>) -> anyhow::Result<Self> {
        let (uid, series) = (phantom.study_uid().to_string(), phantom.series_uid().to_string());
        let (patient, accession) = (phantom.patient_id.clone(), phantom.accession_number.clone());
        let path = dir.as_ref().map(|dir| dir.path().to_owned());
        let made = maillage_host::offload(move || {
            let mut made = Vec::new();
            for n in 0..phantom.slices {
                let (instance, dataset) = phantom.slice(n);
                let Some(path) = &path else {
                    made.push((instance, dataset));
                    continue;
                };
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
        let slices = made.await.context("make the study")?;
        let bytes = slices.iter().map(|(_, dataset)| dataset.len() as u64).sum();
        Ok(Self { uid, series, patient, accession, bytes, slices, dir })
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.as_ref().map(|dir| dir.path().to_owned()).unwrap_or_default()
    }

    /// Sends it over one association with our own sender, each slice confirmed before the next.
    pub(crate) async fn send(&self, to: SocketAddr) -> anyhow::Result<()> {
        self.send_over(Self::associate(to).await?).await
    }

    /// An association for its slices.
    pub(crate) async fn associate(to: SocketAddr) -> anyhow::Result<Association> {
        let (calling, called) = (AeTitle::parse("BENCH")?, AeTitle::parse("MAILLAGE")?);
        let contexts = [(CtPhantom::SOP_CLASS, vec![CtPhantom::TRANSFER_SYNTAX])];
        Ok(Association::connect(to, &calling, &called, &contexts, ScuTimeouts::default()).await?)
    }

    /// Sends it, and ends the association.
    pub(crate) async fn send_over(&self, mut association: Association) -> anyhow::Result<()> {
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
