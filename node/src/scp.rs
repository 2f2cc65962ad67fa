//! The DICOM port: C-ECHO and C-STORE into the ingest path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use bytes::Bytes;
use maillage_dicom::AeTitle;
use maillage_dicom::dimse::scp::{
    AddressRange, AssociationInfo, AssociationSummary, BoxFuture, CalledPolicy, CallingPolicy, KnownPeer, RejectReason,
    ScpConfig, ScpEvents, StoreHandler, StoreRequest,
};
use maillage_dicom::dimse::status::StoreStatus;

use crate::config::Config;
use crate::ingest::{Announced, Ingest, ReceivedAs, Source};
use crate::metrics::{Metrics, OpenAssociation};
use crate::senders;

/// The port's settings from the node's.
///
/// # Errors
/// When a caller's address is none.
pub(crate) fn settings(config: &Config) -> anyhow::Result<ScpConfig> {
    let dicom = &config.dicom;
    let mut settings = ScpConfig::new(dicom.ae_title.clone());
    if !dicom.check_called {
        settings.called = CalledPolicy::Any;
    }
    settings.calling = if dicom.any_caller {
        CallingPolicy::Any
    } else {
        CallingPolicy::Known(
            dicom
                .callers
                .iter()
                .map(|caller| {
                    let from = caller.address.as_ref().map(|network| network.to_string().parse::<AddressRange>());
                    // Both forms are the same by their tests; a caller must not be let in from anywhere if not.
                    let from = from.transpose().with_context(|| format!("address of {}", caller.ae_title.as_str()))?;
                    Ok(KnownPeer { ae_title: caller.ae_title.clone(), from })
                })
                .collect::<anyhow::Result<_>>()?,
        )
    };
    settings.associations_max = dicom.max_associations;
    settings.associations_per_address_max = dicom.max_associations;
    settings.instance_len_max = usize::try_from(dicom.max_instance_mib << 20).unwrap_or(usize::MAX);
    Ok(settings)
}

/// Stores what senders send, and counts what happens on the port.
#[derive(Debug)]
pub(crate) struct Port {
    ingest: Ingest,
    metrics: Metrics,
    /// What each open association has sent, by its far end.
    open: Mutex<BTreeMap<SocketAddr, Sender>>,
}

#[derive(Debug)]
struct Sender {
    studies: BTreeSet<String>,
    _counted: OpenAssociation,
}

impl Port {
    pub(crate) fn new(ingest: Ingest, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { ingest, metrics, open: Mutex::default() })
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<SocketAddr, Sender>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreHandler for Port {
    fn pace(&self, association: &AssociationInfo) -> BoxFuture<'_, ()> {
        Box::pin(senders::pause(self.ingest.wait_of(&source(&association.calling_ae))))
    }

    fn passed_over(&self, association: &AssociationInfo, bytes: u64) {
        self.ingest.passed_over(&source(&association.calling_ae), bytes);
    }

    fn store(&self, request: StoreRequest, dataset: Bytes) -> BoxFuture<'_, StoreStatus> {
        Box::pin(async move {
            let source = source(&request.calling_ae);
            let announced = Announced {
                sop_class: request.sop_class,
                sop_instance: request.sop_instance,
                transfer_syntax: request.transfer_syntax,
                foreign_preamble: false,
            };
            match self.ingest.receive(source, announced, dataset).await {
                // Kept, apart: but its sender must not think that it will be shown.
                Ok(received) if received.outcome == ReceivedAs::Conflict => {
                    StoreStatus::does_not_match("other data is stored under this SOP instance UID")
                }
                Ok(received) => {
                    if let Some(sender) = self.open().get_mut(&request.remote)
                        && !sender.studies.contains(&received.study)
                    {
                        sender.studies.insert(received.study);
                    }
                    StoreStatus::SUCCESS
                }
                Err(error) => error.status(),
            }
        })
    }
}

fn source(calling: &AeTitle) -> Source {
    Source::Dimse(calling.to_string())
}

impl ScpEvents for Port {
    fn rejected(&self, remote: SocketAddr, calling: Option<&AeTitle>, reason: RejectReason) {
        self.metrics.rejected("dimse", reason.label());
        tracing::warn!(%remote, calling = calling.map(AeTitle::as_str), reason = reason.label(), "dicom: refused");
    }

    fn association_opened(&self, association: &AssociationInfo) {
        tracing::info!(remote = %association.remote, calling = association.calling_ae.as_str(), "dicom: association");
        let sender = Sender { studies: BTreeSet::new(), _counted: self.metrics.association() };
        self.open().insert(association.remote, sender);
    }

    fn association_closed(&self, association: &AssociationInfo, summary: &AssociationSummary) {
        let sender = self.open().remove(&association.remote);
        for study in sender.into_iter().flat_map(|sender| sender.studies) {
            self.ingest.sender_done(study);
        }
        tracing::info!(
            remote = %association.remote,
            stored = summary.stored,
            refused = summary.refused,
            bytes = summary.bytes,
            end = summary.end.label(),
            "dicom: association ended"
        );
    }
}
