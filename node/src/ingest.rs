//! The ingest path: from bytes that a stranger sent to an instance that is durably ours.
//!
//! ```text
//! bytes -> pre-scan, attributes, hash -> known already? -> cut: code, seal -> store (one fsync a group) ┐
//!                                              |   |  ^                   \-> prove that it decodes ────┤
//!                                              |   |  '-------------.         acknowledged <────────────┘
//!                                              |   '-> landing, one fsync -> acknowledged               |
//!                                              '-> read -> acknowledged                                 |
//!                                                             gather: the study goes to the mesh <──────┘
//! ```
//! Where the store has a landing, what comes by C-STORE and will be coded lands first, sealed and as it came: its sender waits for a write and not
//! for the coder, which takes it from there. What finds no room there waits for the coder.
//! What a mesh of format 2 receives is sealed under its study's key, which is durable before it is.
//! Nothing is acknowledged before the store says that it is durable, and what was coded was decoded again and compared.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::TryStreamExt as _;
use maillage_codec::{SampleWidth, Shape};
use maillage_consensus::exam::Request;
use maillage_consensus::ids::{Line, Name};
use maillage_dicom::attributes::Attributes;
use maillage_dicom::dimse::status::StoreStatus;
use maillage_dicom::part10::{self, PreambleKind};
use maillage_dicom::prescan::{self, NativePixels};
use maillage_dicom::{Redacted, Rejection, Uid};
use maillage_host::{Clock, UnixMillis, offload};
use maillage_store::{
    Claimed, Hash, InstanceEntry, InstanceIdentity, ManifestFlags, PixelPart, Store, StoreError, Stored,
};
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::senders::{Sender, Senders};

mod landed;
mod making;

pub(crate) use landed::run as code_landed;

/// Studies whose patient is remembered, so that most instances need no read of the store.
const PATIENTS_REMEMBERED: usize = 256;
/// The mesh's format at which every site reads manifests that list coded and sealed chunks, and keeps keys.
pub(crate) const FORMAT_OF_SEALED_CHUNKS: u8 = 2;
/// The version of the attributes inside an instance manifest: one byte, then postcard.
const ATTRIBUTES_VERSION: u8 = 1;

/// Where an instance comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A C-STORE by this calling AE title.
    Dimse(String),
    /// `study import`, or another POST to the local API.
    Local,
    /// STOW-RS from this address; none on the unix socket.
    Stow(Option<IpAddr>),
    /// A hospital's gateway.
    Gateway {
        /// Its name.
        gateway: String,
        /// Who sent it there: an AE title, or what stands for one.
        source: String,
    },
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Dimse(calling) => calling.clone(),
            Self::Local => "(local)".to_owned(),
            Self::Stow(_) => "(stow)".to_owned(),
            // Who sent it says more than where it passed, if there is no room for both.
            Self::Gateway { gateway, source } => Name::fitted(&format!("{source}@{gateway}")).into(),
        }
    }

    /// Whose limits count; the node's own people have none. Nor has a gateway, which limits its own senders: it
    /// is a member, and what it spooled is owed.
    fn sender(&self) -> Option<Sender> {
        match self {
            Self::Dimse(calling) => Some(Sender::Title(calling.clone())),
            Self::Stow(address) => address.map(Sender::Address),
            Self::Local | Self::Gateway { .. } => None,
        }
    }

    fn interface(&self) -> &'static str {
        match self {
            Self::Dimse(_) => "dimse",
            Self::Local => "import",
            Self::Stow(_) => "stow",
            Self::Gateway { .. } => "gate",
        }
    }
}

/// An instance that is durable here.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) study: String,
    pub(crate) series: String,
    pub(crate) sop_instance: String,
    pub(crate) sop_class: String,
    pub(crate) outcome: ReceivedAs,
}

/// What it was to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceivedAs {
    /// Not known before.
    New,
    /// The same bytes were here.
    Duplicate,
    /// Other bytes under the same UID were here: both are kept, this one apart.
    Conflict,
}

impl ReceivedAs {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
        }
    }
}

/// Why an instance was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    /// The bytes are not what they must be.
    #[error("{0}")]
    Rejected(#[from] Rejection),
    /// The data set's UIDs are not those of the command or file meta.
    #[error("the data set's SOP {0} UID is not the one announced")]
    Mismatch(&'static str),
    /// Another patient's instance under this study's UID.
    #[error("the patient id is not the one of the study's other instances")]
    OtherPatient,
    /// The sender has sent what it may today.
    #[error("the sender's quota of the day is used up")]
    Quota,
    /// The sender is so far ahead of its rate that no answer can wait for it.
    #[error("the sender is too far ahead of its rate")]
    Rate,
    /// It cannot be stored now.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Reading failed in a way that the bytes are not to blame for.
    #[error("internal failure: {0}")]
    Internal(String),
}

impl IngestError {
    /// A short label for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.reason(),
            Self::Mismatch(_) => "uid-mismatch",
            Self::OtherPatient => "other-patient",
            Self::Quota => "quota",
            Self::Rate => "rate",
            Self::Store(StoreError::Full { .. }) => "disk-full",
            Self::Store(_) => "store",
            Self::Internal(_) => "internal",
        }
    }

    /// Whether the same bytes may be taken later: what is wrong is wrong here. What is wrong with the bytes, or with
    /// what their sender says of them, is final.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Rejected(_) | Self::Mismatch(_) | Self::OtherPatient | Self::Store(StoreError::Refused(_)) => false,
            Self::Quota | Self::Rate | Self::Store(_) | Self::Internal(_) => true,
        }
    }

    /// What the sender is told: the status of a C-STORE (PS3.4 table B.2-1), whose code is also the failure reason of
    /// STOW-RS (PS3.18 annex I.2.2).
    pub(crate) fn status(&self) -> StoreStatus {
        let comment = self.to_string();
        match self {
            _ if self.is_transient() => StoreStatus::out_of_resources(comment),
            Self::Mismatch(_) | Self::OtherPatient => StoreStatus::does_not_match(comment),
            _ => StoreStatus::cannot_understand(comment),
        }
    }
}

/// What the gather task is told.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// An instance of this study is durable.
    Instance {
        /// Its Study Instance UID.
        study: String,
    },
    /// Something of this study was stored, or may have been, after whoever brought it had been answered or had gone.
    Later {
        /// Its Study Instance UID.
        study: String,
    },
    /// The association that sent this study ended: more of it is unlikely.
    SenderDone {
        /// Its Study Instance UID.
        study: String,
    },
}

/// What a sender says of the bytes, or a file's meta header.
#[derive(Debug, Clone)]
pub(crate) struct Announced {
    pub(crate) sop_class: Uid,
    pub(crate) sop_instance: Uid,
    pub(crate) transfer_syntax: Uid,
    pub(crate) foreign_preamble: bool,
}

/// The ingest path. Clones share it.
#[derive(Clone)]
pub(crate) struct Ingest(Arc<Shared>);

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ingest")
    }
}

/// A patient's id and its issuer, as the mesh writes them.
pub(crate) type PatientKey = (Line, Line);
type Turn = Arc<tokio::sync::Mutex<Option<PatientKey>>>;
/// Whether every site of the mesh can read coded and sealed chunks.
pub(crate) type MaySeal = Box<dyn Fn() -> bool + Send + Sync>;
/// Whether there is room for so many bytes more, beyond what the store itself looks at.
pub(crate) type Room = Box<dyn Fn(u64) -> Result<(), StoreError> + Send + Sync>;
/// Whether what came then is to be told from the same when it comes again.
pub(crate) type IsPast = Box<dyn Fn(UnixMillis) -> bool + Send + Sync>;
/// The patient of a study as the mesh knows it.
pub(crate) type MeshPatient = Box<dyn Fn(&str) -> Option<PatientKey> + Send + Sync>;

/// With what goes on which day images of a study that say this are laid down; none while that is not known.
pub(crate) type PackDay = Box<dyn Fn(&str, &Request) -> Option<u64> + Send + Sync>;

struct Shared {
    store: Store,
    clock: Clock,
    metrics: Metrics,
    senders: Senders,
    /// Told each study that received something.
    gather: mpsc::UnboundedSender<Arrival>,
    turns: Mutex<HashMap<String, Turn>>,
    mesh_patient: MeshPatient,
    may_seal: MaySeal,
    room: OnceLock<Room>,
    pack_day: OnceLock<PackDay>,
    is_past: OnceLock<IsPast>,
}

struct Prepared {
    attributes: Attributes,
    dataset: Bytes,
    dataset_hash: Hash,
    part: PixelPart,
    undecodable: bool,
}

impl Ingest {
    /// An ingest path into `store`. The receiver of `gather` only inserts into a map, so the channel
    /// holds no more than the studies in flight.
    pub(crate) fn new(
        store: Store,
        clock: Clock,
        metrics: Metrics,
        senders: Senders,
        gather: mpsc::UnboundedSender<Arrival>,
        mesh_patient: MeshPatient,
        may_seal: MaySeal,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            clock,
            metrics,
            senders,
            gather,
            turns: Mutex::default(),
            mesh_patient,
            may_seal,
            room: OnceLock::new(),
            pack_day: OnceLock::new(),
            is_past: OnceLock::new(),
        }))
    }

    /// Has `room` asked before anything is taken, from now on. A second call changes nothing.
    pub(crate) fn within(&self, room: Room) {
        let _ = self.0.room.set(room);
    }

    /// Lays down images with others that go on the day that `pack_day` says, from now on. A second call changes nothing.
    pub(crate) fn laid_down_by(&self, pack_day: PackDay) {
        let _ = self.0.pack_day.set(pack_day);
    }

    /// Notes of what `is_past` that it came again when it does, from now on, instead of passing over it. A second call changes
    /// nothing.
    pub(crate) fn noting_again(&self, is_past: IsPast) {
        let _ = self.0.is_past.set(is_past);
    }

    /// Hints that whoever sent this study is done.
    pub(crate) fn sender_done(&self, study: String) {
        self.tell(Arrival::SenderDone { study });
    }

    /// A gather task that is gone means a node that is stopping; the study is found at its next start.
    fn tell(&self, arrival: Arrival) {
        let _ = self.0.gather.send(arrival);
    }

    /// Takes in one Part 10 file.
    ///
    /// # Errors
    /// [`IngestError`]: nothing of the file was kept.
    pub(crate) async fn receive_file(&self, source: Source, file: Bytes) -> Result<Received, IngestError> {
        let (announced, dataset) = self.open(&source, file)?;
        self.receive(source, announced, dataset).await
    }

    /// Takes a Part 10 file apart, for [`Ingest::receive`].
    ///
    /// # Errors
    /// [`IngestError::Rejected`]: it is none.
    pub(crate) fn open(&self, source: &Source, file: Bytes) -> Result<(Announced, Bytes), IngestError> {
        let bytes = file.len() as u64;
        let file = part10::parse(file).map_err(|rejection| {
            self.passed_over(source, bytes);
            self.rejected(source, rejection.into())
        })?;
        let announced = Announced {
            sop_class: file.meta.sop_class,
            sop_instance: file.meta.sop_instance,
            transfer_syntax: file.meta.transfer_syntax,
            foreign_preamble: file.preamble == PreambleKind::Foreign,
        };
        Ok((announced, file.dataset))
    }

    /// Counts bytes that came, and were refused before they were a data set.
    pub(crate) fn passed_over(&self, source: &Source, bytes: u64) {
        if let Some(sender) = source.sender() {
            // However far its sender is ahead: it is refused already.
            let _ = self.0.senders.may_send(&sender, bytes, self.0.clock.now());
        }
    }

    /// How long who sends is to wait for its next answer, being faster than it may be.
    pub(crate) fn wait_of(&self, source: &Source) -> Duration {
        source.sender().map_or(Duration::ZERO, |sender| self.0.senders.wait_of(&sender))
    }

    /// Takes in one data set. When this returns, the instance is durable.
    ///
    /// # Errors
    /// [`IngestError`]: nothing of the data set was kept.
    pub(crate) async fn receive(
        &self,
        source: Source,
        announced: Announced,
        dataset: Bytes,
    ) -> Result<Received, IngestError> {
        let (bytes, sender) = (dataset.len() as u64, source.sender());
        // Counted before it is known what it is: who sends what is refused is no faster for it.
        if sender.as_ref().is_some_and(|sender| !self.0.senders.may_send(sender, bytes, self.0.clock.now())) {
            return Err(self.rejected(&source, IngestError::Rate));
        }
        match self.take(&source, announced, dataset).await {
            Ok(received) => {
                if let Some(sender) = &sender
                    && received.outcome != ReceivedAs::Duplicate
                {
                    self.0.senders.keep(sender, bytes, self.0.clock.now());
                }
                self.0.metrics.received(received.outcome.as_str(), bytes);
                if received.outcome == ReceivedAs::Conflict {
                    self.0.metrics.rejected(source.interface(), "uid-conflict");
                    tracing::warn!(study = %received.study, "other bytes under a known SOP instance UID: both are kept");
                }
                Ok(received)
            }
            Err(error) => Err(self.rejected(&source, error)),
        }
    }

    fn rejected(&self, source: &Source, error: IngestError) -> IngestError {
        self.0.metrics.rejected(source.interface(), error.reason());
        tracing::warn!(interface = source.interface(), reason = error.reason(), %error, "instance rejected");
        error
    }

    async fn take(&self, source: &Source, announced: Announced, dataset: Bytes) -> Result<Received, IngestError> {
        let shared = &*self.0;
        if let Some(room) = shared.room.get() {
            room(dataset.len() as u64)?;
        }
        let transfer_syntax = announced.transfer_syntax.clone();
        // Scanning and hashing a large data set would hold up an async thread.
        let prepared = offload(move || Ok(prepare(dataset, &transfer_syntax))).await.map_err(internal)??;
        let attributes = &prepared.attributes;
        if attributes.sop_instance_uid != announced.sop_instance {
            return Err(IngestError::Mismatch("instance"));
        }
        if attributes.sop_class_uid != announced.sop_class {
            return Err(IngestError::Mismatch("class"));
        }
        // Whatever else comes under this UID waits until it is known what this is.
        let claimed = self.claim(attributes.study_uid.as_str(), attributes.sop_instance_uid.as_str()).await?;
        let patient = patient_of(attributes);
        let turn = self.turn(attributes.study_uid.as_str());
        let mut known = turn.lock().await;
        self.check_patient(attributes.study_uid.as_str(), prepared.dataset_hash, &patient, &mut known).await?;
        // Only the first of a study keeps its turn until it is stored: it decides for the others.
        let first = known.is_none().then_some(known);
        let identity = InstanceIdentity {
            sop_instance: attributes.sop_instance_uid.to_string(),
            sop_class: attributes.sop_class_uid.to_string(),
            series_uid: attributes.series_uid.to_string(),
            study_uid: attributes.study_uid.to_string(),
            transfer_syntax: announced.transfer_syntax.to_string(),
        };
        let received = Received {
            study: identity.study_uid.clone(),
            series: identity.series_uid.clone(),
            sop_instance: identity.sop_instance.clone(),
            sop_class: identity.sop_class.clone(),
            outcome: ReceivedAs::New,
        };
        let listed = self.listed(&identity, prepared.dataset_hash).await?;
        if let Some(Listed::Readable(stored)) = listed {
            self.note_again(&identity, stored).await?;
            return Ok(Received { outcome: stored.into(), ..received });
        }
        if let Some(sender) = source.sender()
            && shared.senders.is_used_up(&sender, prepared.dataset.len() as u64, shared.clock.now())
        {
            return Err(IngestError::Quota);
        }
        let flags = ManifestFlags { undecodable: prepared.undecodable, foreign_preamble: announced.foreign_preamble };
        let left = match source {
            // Its sender has the next one ready, and waits for this one's answer.
            Source::Dimse(_) if listed.is_none() => self.land(prepared, &identity, source.name(), claimed).await?,
            _ => Some((claimed, prepared)),
        };
        let stored = match left {
            Some((claimed, prepared)) => {
                let (ingest, source, is_anew) = (self.clone(), source.name(), listed.is_some());
                let study = received.study.clone();
                // To its end, also when its sender goes away: until then nothing else comes in under its UID, and nobody
                // else would tell of it.
                let storing = maillage_host::spawn(async move {
                    let stored = ingest.store(prepared, identity, flags, source, is_anew).await;
                    match stored {
                        // A duplicate that had to be stored is under a new manifest, which is to be published, too.
                        Ok(Stored::New { .. } | Stored::Duplicate { .. }) => ingest.tell(Arrival::Instance { study }),
                        Ok(Stored::Conflict { .. }) => {}
                        // Some errors come after it was durable.
                        Err(_) => ingest.tell(Arrival::Later { study }),
                    }
                    drop(claimed);
                    stored
                });
                Some(storing.await.map_err(internal)??)
            }
            None => {
                self.tell(Arrival::Instance { study: received.study.clone() });
                None
            }
        };
        if let Some(mut known) = first {
            *known = Some(patient);
        }
        Ok(Received { outcome: stored.map_or(ReceivedAs::New, ReceivedAs::from), ..received })
    }

    async fn claim(&self, study: &str, sop_instance: &str) -> Result<Claimed, IngestError> {
        let landing = self.0.store.landing();
        loop {
            if let Some(claimed) = landing.claim(study, sop_instance) {
                return Ok(claimed);
            }
            landing.until_done(sop_instance).await?;
        }
    }

    /// What these very bytes are to the library, if they are here: who sends them again is told so, whatever it
    /// may send, and nothing is coded and sealed for it. They are read: who is told so may delete its own.
    async fn listed(&self, identity: &InstanceIdentity, dataset_hash: Hash) -> Result<Option<Listed>, IngestError> {
        let store = &self.0.store;
        let Some(stored) = store.listed_as(identity, dataset_hash).await? else { return Ok(None) };
        let manifest = match store.instance_manifest(stored.manifest()).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) | Err(StoreError::Corrupt(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let read = store.read_instance(&manifest).try_for_each(|_| std::future::ready(Ok(())));
        match read.await {
            Ok(()) => Ok(Some(Listed::Readable(stored))),
            Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => Ok(None),
            // Never proven, by a process that ended meanwhile; or about to be purged: an answer that it is here
            // would be a lie a moment later.
            Err(StoreError::Contradictory(_) | StoreError::KeyDestroyed(_) | StoreError::KeyUnknown { .. }) => {
                Ok(Some(Listed::Unreadable))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Notes durably that an instance that is listed came again, if what came before is past. The caller has its claim.
    async fn note_again(&self, identity: &InstanceIdentity, stored: Stored) -> Result<(), IngestError> {
        let (Some(is_past), Stored::Duplicate { .. }) = (self.0.is_past.get(), stored) else { return Ok(()) };
        let listed = self.0.store.instance(&identity.sop_instance).await?;
        if let Some(listed) = listed.filter(|listed| is_past(listed.received_at)) {
            self.0.store.note_again(listed, self.0.clock.now()).await?;
            self.tell(Arrival::Instance { study: identity.study_uid.clone() });
        }
        Ok(())
    }

    /// One study, one patient: an instance of another patient under a known study's UID is refused,
    /// so that its sender keeps it, rather than shown under the wrong name. `known` is the study's
    /// patient, read on first use from what is here and from what the mesh knows.
    async fn check_patient(
        &self,
        study: &str,
        dataset_hash: Hash,
        patient: &PatientKey,
        known: &mut Option<PatientKey>,
    ) -> Result<(), IngestError> {
        if known.is_none() {
            self.0.store.landing().until_earlier_done(study).await?;
            *known = self.known_patient(study, (dataset_hash, patient)).await?;
        }
        match known {
            Some(known) if known != patient => Err(IngestError::OtherPatient),
            _ => Ok(()),
        }
    }

    /// The patient of a study, under the lock that makes one sender the first.
    fn turn(&self, study: &str) -> Turn {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= PATIENTS_REMEMBERED {
            // What has landed is in no list yet that would say its patient.
            turns.retain(|study, turn| Arc::strong_count(turn) > 1 || self.0.store.landing().has_of(study));
        }
        Arc::clone(turns.entry(study.to_owned()).or_default())
    }

    /// The patient of a study: of what is here of it, or as the mesh knows it. Images whose key was destroyed name nobody
    /// any more, and damaged ones nobody until they come again, as `comes` may be, which names whom they named.
    async fn known_patient(&self, study: &str, comes: (Hash, &PatientKey)) -> Result<Option<PatientKey>, IngestError> {
        let (store, mut damaged) = (&self.0.store, None);
        for instance in store.instances(study).await? {
            let InstanceEntry { manifest: address, dataset_hash, .. } = instance.entry;
            let manifest = match store.instance_manifest(address).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) | Err(StoreError::Corrupt(_)) if dataset_hash == comes.0 => return Ok(Some(comes.1.clone())),
                Ok(None) | Err(StoreError::Corrupt(_)) => {
                    damaged = Some(address);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match store.attributes(&manifest) {
                Ok(attributes) => match decode_attributes(&attributes) {
                    Some(known) => return Ok(Some(patient_of(&known))),
                    None => break,
                },
                Err(StoreError::KeyDestroyed(_) | StoreError::KeyUnknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match ((self.0.mesh_patient)(study), damaged) {
            // It has a patient, and nothing says which.
            (None, Some(damaged)) => Err(StoreError::Corrupt(damaged).into()),
            (known, _) => Ok(known),
        }
    }
}

/// What is listed of a data set that came again.
#[derive(Debug, Clone, Copy)]
enum Listed {
    /// It is here, and can be read.
    Readable(Stored),
    /// It is here, and nobody can open it, or it opens to something else.
    Unreadable,
}

impl From<Stored> for ReceivedAs {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::New { .. } => Self::New,
            Stored::Duplicate { .. } => Self::Duplicate,
            Stored::Conflict { .. } => Self::Conflict,
        }
    }
}

fn internal(error: impl std::fmt::Display) -> IngestError {
    IngestError::Internal(error.to_string())
}

fn prepare(dataset: Bytes, transfer_syntax: &Uid) -> Result<Prepared, Rejection> {
    let scan = prescan::scan(&dataset, transfer_syntax)?;
    let attributes = maillage_dicom::attributes::read(scan.head(&dataset), transfer_syntax)?;
    let rows = scan.native_pixels.map(|native| (native.value_offset, shape_of(&native)));
    let part = PixelPart { offset: scan.cut(&dataset), rows };
    let (dataset_hash, undecodable) = (Hash::of(&dataset), scan.undecodable.is_some());
    Ok(Prepared { attributes, dataset, dataset_hash, part, undecodable })
}

fn shape_of(native: &NativePixels) -> Shape {
    let width = match (native.rows.sample_bytes, native.is_big_endian) {
        (1, _) => SampleWidth::One,
        (_, false) => SampleWidth::TwoLittle,
        (_, true) => SampleWidth::TwoBig,
    };
    let rows = &native.rows;
    Shape { width, components: rows.components, columns: rows.columns.into(), bits_stored: rows.bits_stored }
}

fn patient_of(attributes: &Attributes) -> PatientKey {
    let said = |text: &Option<Redacted<String>>| Line::fitted(text.as_ref().map_or("", |text| text.expose()));
    (said(&attributes.patient_id), said(&attributes.issuer_of_patient_id))
}

fn encode_attributes(attributes: &Attributes) -> Result<Vec<u8>, IngestError> {
    postcard::to_extend(attributes, vec![ATTRIBUTES_VERSION]).map_err(|error| IngestError::Internal(error.to_string()))
}

/// The attributes inside an instance manifest; `None` when a newer version wrote them.
pub(crate) fn decode_attributes(bytes: &[u8]) -> Option<Attributes> {
    match bytes.split_first() {
        Some((&ATTRIBUTES_VERSION, body)) => postcard::from_bytes(body).ok(),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
