//! Small CT studies of nobody: made, sent, and compared with what comes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use maillage_dicom::dimse::scu::{Association, ScuError, ScuTimeouts};
use maillage_dicom::dimse::status::StoreStatus;
use maillage_dicom::part10::{self, FileMeta};
use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::{AeTitle, Uid};

use crate::http::{Answer, Http};
use crate::multipart::{dataset, text};

/// Who the harness says it is.
pub const CALLING: &str = "TEST-CT";
/// A site's AE title.
pub const CALLED: &str = "MAILLAGE";
/// What a retrieval asks for: every file as it is.
pub const ACCEPT: &str = "multipart/related; type=\"application/dicom\"; transfer-syntax=*";

/// A study: its data sets by SOP Instance UID.
#[derive(Debug, Clone)]
pub struct Slices {
    /// Study Instance UID.
    pub study: String,
    /// Series Instance UID.
    pub series: String,
    /// The data sets.
    pub instances: BTreeMap<String, Bytes>,
}

impl Slices {
    /// A study of `slices` images of 128 x 128.
    pub fn new(accession: &str, patient: &str, slices: u32) -> Self {
        Self::named(accession, patient, "TEST^NOBODY", slices)
    }

    /// As [`Slices::new`], of a patient of this name.
    pub fn named(accession: &str, patient: &str, name: &str, slices: u32) -> Self {
        let phantom = CtPhantom {
            slices,
            rows: 128,
            columns: 128,
            patient_id: patient.to_owned(),
            patient_name: name.to_owned(),
            accession_number: accession.to_owned(),
            ..CtPhantom::default()
        };
        let instances = (0..slices).map(|n| {
            let (uid, dataset) = phantom.slice(n);
            (uid.to_string(), dataset)
        });
        Self {
            study: phantom.study_uid().to_string(),
            series: phantom.series_uid().to_string(),
            instances: instances.collect(),
        }
    }

    /// The first instance.
    ///
    /// # Panics
    /// When there is none.
    pub fn first(&self) -> (&str, &Bytes) {
        let (uid, dataset) = self.instances.first_key_value().expect("an instance");
        (uid, dataset)
    }

    /// Sends everything over one association, which is left open: each instance was confirmed.
    ///
    /// # Panics
    /// When anything is not stored.
    pub async fn send_unreleased(&self, to: SocketAddr) -> Association {
        let mut association = associate(to, CALLING, CALLED).await.expect("an association");
        for (uid, dataset) in &self.instances {
            let status = store(&mut association, uid, dataset.clone()).await.expect("an answer");
            assert!(status.is_stored(), "{uid}: {status:?}");
        }
        association
    }

    /// Sends everything over one association.
    ///
    /// # Panics
    /// When anything is not stored.
    pub async fn send(&self, to: SocketAddr) {
        self.send_unreleased(to).await.release().await.expect("a released association");
    }

    /// Where WADO-RS has the study.
    pub fn path(&self) -> String {
        format!("/dicom-web/studies/{}", self.study)
    }

    /// Retrieves the study at a site and compares it byte for byte.
    ///
    /// # Panics
    /// When anything is missing, too much, or not as sent.
    pub async fn is_whole_at(&self, http: Http) {
        let answer = retrieve(http, &self.path()).await.expect(200);
        self.is_whole_in(&answer);
    }

    /// Compares a retrieved study byte for byte.
    ///
    /// # Panics
    /// When anything is missing, too much, or not as sent.
    #[track_caller]
    pub fn is_whole_in(&self, answer: &Answer) {
        let mut came = BTreeMap::new();
        for part in answer.parts() {
            assert!(part.head.contains("transfer-syntax=1.2.840.10008.1.2.1"), "{}", part.head);
            let dataset = dataset(&part.body);
            came.insert(text(&dataset, 0x0008, 0x0018, "UI"), dataset);
        }
        let (sent, got): (Vec<_>, Vec<_>) = (self.instances.keys().collect(), came.keys().collect());
        assert_eq!(got, sent, "the same instances");
        for (uid, dataset) in &self.instances {
            assert!(came[uid] == *dataset, "the bytes of {uid} are not those that were sent");
        }
    }
}

/// GET of DICOM, as it was received.
///
/// # Panics
/// Without an answer.
pub async fn retrieve(http: Http, path: &str) -> Answer {
    let sent = http.send(&hyper::Method::GET, path, &[("accept", ACCEPT)], Bytes::new()).await;
    sent.unwrap_or_else(|error| panic!("{}", error.0))
}

/// An association for CT images in explicit VR little endian, and for C-ECHO.
///
/// # Errors
/// When the site refuses it.
///
/// # Panics
/// When a title is none.
pub async fn associate(to: SocketAddr, calling: &str, called: &str) -> Result<Association, ScuError> {
    let contexts =
        [(CtPhantom::SOP_CLASS, vec![CtPhantom::TRANSFER_SYNTAX]), (Uid::VERIFICATION, vec![Uid::IMPLICIT_LE])];
    let title = |text| AeTitle::parse(text).expect("a title");
    Association::connect(to, &title(calling), &title(called), &contexts, ScuTimeouts::default()).await
}

/// C-STORE of a CT image.
///
/// # Errors
/// When the association breaks.
///
/// # Panics
/// When the UID is none.
pub async fn store(association: &mut Association, uid: &str, dataset: Bytes) -> Result<StoreStatus, ScuError> {
    let uid = Uid::parse(uid).expect("a UID");
    association.store(&CtPhantom::SOP_CLASS, &uid, &CtPhantom::TRANSFER_SYNTAX, dataset).await
}

/// C-ECHO: whether the DICOM port still serves.
///
/// # Panics
/// When it does not.
pub async fn echo(to: SocketAddr) {
    let mut association = associate(to, CALLING, CALLED).await.expect("an association");
    association.echo().await.expect("an echo");
    association.release().await.expect("a released association");
}

/// A CT data set as a Part 10 file.
///
/// # Panics
/// When the UID is none.
pub fn file(uid: &str, dataset: &[u8]) -> Bytes {
    let meta = FileMeta {
        sop_class: CtPhantom::SOP_CLASS,
        sop_instance: Uid::parse(uid).expect("a UID"),
        transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
        source_ae: None,
    };
    [&part10::header(&meta)[..], dataset].concat().into()
}
