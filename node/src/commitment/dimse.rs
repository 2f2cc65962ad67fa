//! Storage commitment by DIMSE, the provider's side (PS3.4 annex J): N-ACTION is answered with success once
//! the transaction is durable. The result goes back by N-EVENT-REPORT: see `report`.

use std::sync::Arc;

use bytes::Bytes;
use maillage_dicom::Uid;
use maillage_dicom::commitment::{CommitmentRequest, PUSH_MODEL, PUSH_MODEL_INSTANCE};
use maillage_dicom::dimse::operation::Operation;
use maillage_dicom::dimse::scp::{BoxFuture, ServiceAnswer, ServiceHandler, ServiceRequest};
use maillage_dicom::dimse::status::Status;
use tokio::sync::mpsc;

use super::{Commitments, Reference, RequestError, Requester};

/// Action Type ID of "request storage commitment", PS3.4 section J.3.2.1.2.
const REQUEST: u16 = 1;

/// Status codes of PS3.7 annex C.
mod code {
    pub(super) const PROCESSING_FAILURE: u16 = 0x0110;
    pub(super) const NO_SUCH_INSTANCE: u16 = 0x0112;
    pub(super) const INVALID_ARGUMENT: u16 = 0x0115;
    pub(super) const NO_SUCH_ACTION: u16 = 0x0123;
    pub(super) const UNRECOGNIZED: u16 = 0x0211;
    pub(super) const RESOURCE_LIMITATION: u16 = 0x0213;
}

/// Takes requests on the DICOM port.
#[derive(Debug)]
pub(crate) struct Desk {
    commitments: Commitments,
    classes: Vec<Uid>,
}

impl Desk {
    pub(crate) fn new(commitments: Commitments) -> Arc<Self> {
        Arc::new(Self { commitments, classes: Uid::parse(PUSH_MODEL).into_iter().collect() })
    }

    /// Takes a request; what it is refused with otherwise.
    pub(crate) async fn take(&self, request: ServiceRequest) -> Result<(), Status> {
        if request.operation != Operation::Action {
            return Err(Status::from_code(code::UNRECOGNIZED, "only N-ACTION is taken"));
        }
        if request.sop_instance.as_ref().map(Uid::as_str) != Some(PUSH_MODEL_INSTANCE) {
            return Err(Status::from_code(code::NO_SUCH_INSTANCE, "not the well-known sop instance"));
        }
        if request.action_type != Some(REQUEST) {
            return Err(Status::from_code(code::NO_SUCH_ACTION, "action type 1 is the only one"));
        }
        let asked = CommitmentRequest::decode(&request.dataset, &request.transfer_syntax)
            .map_err(|error| Status::from_code(code::INVALID_ARGUMENT, error.to_string()))?;
        let references = asked.references.into_iter();
        let references = references.map(|(sop_class, sop_instance)| Reference { sop_class, sop_instance }).collect();
        let by = Requester::Dimse { calling: request.calling_ae, called: request.called_ae };
        let taken = self.commitments.request(asked.transaction.clone(), by, references).await;
        if taken.is_ok() {
            // Not before: who asks under the UID of another's transaction must not be told its result.
            self.commitments.keep_line(&asked.transaction, request.events, request.transfer_syntax);
        }
        taken.map_err(|error| {
            let code = match error {
                RequestError::Empty => code::INVALID_ARGUMENT,
                RequestError::Duplicate => code::PROCESSING_FAILURE,
                RequestError::TooMany | RequestError::Full | RequestError::NotDurable(_) => code::RESOURCE_LIMITATION,
            };
            tracing::warn!(transaction = %asked.transaction, %error, "storage commitment not taken");
            Status::from_code(code, error.to_string())
        })
    }
}

impl ServiceHandler for Desk {
    fn sop_classes(&self) -> &[Uid] {
        &self.classes
    }

    fn perform(&self, request: ServiceRequest, _matches: mpsc::Sender<Bytes>) -> BoxFuture<'_, ServiceAnswer> {
        Box::pin(async move { self.take(request).await.err().unwrap_or(Status::SUCCESS).into() })
    }
}
