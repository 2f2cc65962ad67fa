//! The Unified Procedure Step service class as provider (PS3.4 annex CC): UPS Push, Watch, Pull and Query. Each
//! SOP class has its own operations (tables CC.2-1 to CC.2-5); all are about instances of UPS Push, and of
//! the well-known instances of the worklist.
//!
//! A request is translated and handed to `crate::ups::steps`; what the queue decides comes back as a status.

use bytes::Bytes;
use maillage_consensus::command::Subscription;
use maillage_consensus::exam::Text8;
use maillage_consensus::ids::{CommandId, ExamId, Name};
use maillage_dicom::dimse::scp::{BoxFuture, ServiceAnswer, ServiceHandler, ServiceRequest};
use maillage_dicom::dimse::{Operation, Status};
use maillage_dicom::{AeTitle, Uid};
use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

use super::identifier::{Asked, filter_keys};
use super::status::{self, Doing};
use crate::node::Node;
use crate::ups::dataset::Dataset;
use crate::ups::describe::{Scene, UPS_PUSH};
use crate::ups::filter::{FILTERED, GLOBAL};
use crate::ups::steps::{self, Asker, Changed, Refused};
use crate::ups::{search, tags};

/// UPS Watch SOP Class.
const WATCH: &str = "1.2.840.10008.5.1.4.34.6.2";
/// UPS Pull SOP Class.
const PULL: &str = "1.2.840.10008.5.1.4.34.6.3";
/// UPS Query SOP Class.
const QUERY: &str = "1.2.840.10008.5.1.4.34.6.5";

/// Action Type IDs (PS3.4 tables CC.2.1-1, CC.2.2-1 and CC.2.3-1).
mod action {
    pub(super) const CHANGE_STATE: u16 = 1;
    pub(super) const REQUEST_CANCEL: u16 = 2;
    pub(super) const SUBSCRIBE: u16 = 3;
    pub(super) const UNSUBSCRIBE: u16 = 4;
    pub(super) const SUSPEND: u16 = 5;
}

/// Serves the steps of the queue.
#[derive(Debug)]
pub(crate) struct Steps {
    node: Node,
    classes: Vec<Uid>,
}

impl Steps {
    /// The steps of `node`'s mesh.
    pub(crate) fn new(node: Node) -> Self {
        let classes = [UPS_PUSH, WATCH, PULL, QUERY].into_iter().filter_map(|uid| Uid::parse(uid).ok());
        Self { node, classes: classes.collect() }
    }

    async fn answer(&self, request: ServiceRequest, matches: mpsc::Sender<Bytes>) -> ServiceAnswer {
        if !offers(request.negotiated.as_str(), request.operation) {
            return Status::from_code(status::UNRECOGNIZED_OPERATION, "not an operation of this sop class").into();
        }
        let information = match read(&request) {
            Ok(information) => information,
            Err(status) => return status.into(),
        };
        let scene = match scene(&self.node) {
            Ok(scene) => scene,
            Err(refused) => return status::of(&refused, Doing::Other).into(),
        };
        match request.operation {
            Operation::Create => self.create(&scene, &request, information).await,
            Operation::Get => self.get(&scene, &request).await,
            Operation::Set => self.set(&scene, &request, information).await,
            Operation::Action => self.act(&scene, &request, &information).await.into(),
            Operation::Find => self.find(scene, &request, &information, &matches).await.into(),
            Operation::EventReport | Operation::Delete => {
                Status::from_code(status::UNRECOGNIZED_OPERATION, "not an operation of this sop class").into()
            }
        }
    }

    /// N-CREATE (section CC.2.5).
    async fn create(&self, scene: &Scene, request: &ServiceRequest, dataset: Dataset) -> ServiceAnswer {
        let asker = asker(&request.calling_ae);
        // A repeat without a UID of its own makes another step: PS3.7 gives it no other name.
        let uid = request.sop_instance.clone().unwrap_or_else(Uid::generate);
        match steps::create(&self.node, scene, asker, &uid, dataset).await {
            Ok(modified) => {
                let comment = "The UPS was created with modifications";
                let warning = Status::from_code(status::CREATED_MODIFIED, comment);
                let status = if modified { warning } else { Status::SUCCESS };
                ServiceAnswer { sop_instance: Some(uid), ..status.into() }
            }
            Err(refused) => status::of(&refused, Doing::Create).into(),
        }
    }

    /// N-GET (section CC.2.7).
    async fn get(&self, scene: &Scene, request: &ServiceRequest) -> ServiceAnswer {
        let found = match steps::find(&self.node, scene, instance(request)).await {
            Ok(found) => self.node.read(|view| scene.describe(view, &found.0, &found.1)).map_err(Refused::from),
            Err(refused) => Err(refused),
        };
        let mut dataset = match found {
            Ok(dataset) => dataset,
            Err(refused) => return status::of(&refused, Doing::Other).into(),
        };
        let asked: Vec<u32> =
            request.attributes.iter().map(|tag| u32::from(tag.group()) << 16 | u32::from(tag.element())).collect();
        let is_missing = asked.iter().any(|tag| !dataset.has(*tag));
        if !asked.is_empty() {
            dataset.retain(|tag| asked.contains(&tag) || tag == tags::SPECIFIC_CHARACTER_SET);
        }
        match maillage_dicom::json::write(&dataset.into_map(), &request.transfer_syntax) {
            Ok(bytes) if is_missing => {
                let comment = "Requested optional Attributes are not supported";
                let status = Status::from_code(status::OPTIONAL_NOT_SUPPORTED, comment);
                ServiceAnswer { status, ..ServiceAnswer::with(bytes) }
            }
            Ok(bytes) => ServiceAnswer::with(bytes),
            Err(error) => Status::from_code(status::PROCESSING_FAILURE, error.to_string()).into(),
        }
    }

    /// N-SET (section CC.2.6).
    async fn set(&self, scene: &Scene, request: &ServiceRequest, mut dataset: Dataset) -> ServiceAnswer {
        let transaction = dataset.text(tags::TRANSACTION_UID);
        dataset.remove(tags::TRANSACTION_UID);
        let asker = asker(&request.calling_ae);
        match steps::update(&self.node, scene, asker, instance(request), &transaction, dataset).await {
            Ok(false) => Status::SUCCESS.into(),
            Ok(true) => {
                let comment = "Requested optional Attributes are not supported";
                Status::from_code(status::OPTIONAL_NOT_SUPPORTED, comment).into()
            }
            Err(refused) => status::of(&refused, Doing::Update).into(),
        }
    }

    /// N-ACTION (sections CC.2.1 to CC.2.3).
    async fn act(&self, scene: &Scene, request: &ServiceRequest, information: &Dataset) -> Status {
        let (class, action) = (request.negotiated.as_str(), request.action_type.unwrap_or(0));
        let is_offered = match action {
            action::CHANGE_STATE => class == PULL,
            action::REQUEST_CANCEL => [UPS_PUSH, WATCH].contains(&class),
            action::SUBSCRIBE | action::UNSUBSCRIBE | action::SUSPEND => class == WATCH,
            _ => false,
        };
        if !is_offered {
            return Status::from_code(status::NO_SUCH_ACTION, "not an action of this sop class");
        }
        let uid = instance(request);
        let is_worklist = [GLOBAL, FILTERED].contains(&uid);
        if is_worklist && matches!(action, action::CHANGE_STATE | action::REQUEST_CANCEL)
            || !is_worklist && action == action::SUSPEND
        {
            return Status::from_code(status::NOT_FOR_INSTANCE, "not an action for this instance");
        }
        let asker = asker(&request.calling_ae);
        match action {
            action::CHANGE_STATE => match steps::change(&self.node, scene, asker, uid, information).await {
                Ok(Changed::Now) => Status::SUCCESS,
                Ok(Changed::Before(state)) => {
                    let is_canceled = state == maillage_consensus::exam::WorkitemState::Canceled;
                    let code = if is_canceled { status::ALREADY_CANCELED } else { status::ALREADY_COMPLETED };
                    Status::from_code(code, "The UPS is already in the requested state")
                }
                Err(refused) => status::of(&refused, Doing::Change),
            },
            action::REQUEST_CANCEL => match steps::ask_cancel(&self.node, scene, asker, uid, information).await {
                Ok(false) => Status::SUCCESS,
                Ok(true) => Status::from_code(status::ALREADY_CANCELED, "The UPS is already CANCELED"),
                Err(refused) => status::of(&refused, Doing::Cancel),
            },
            _ => self.subscription(scene, request, action, information).await,
        }
    }

    /// Subscribe, unsubscribe and suspend (section CC.2.3). The subscriber is the Receiving AE, else who
    /// calls.
    async fn subscription(&self, scene: &Scene, request: &ServiceRequest, action: u16, given: &Dataset) -> Status {
        let receiving = given.text(tags::RECEIVING_AE);
        let aet = if receiving.is_empty() { request.calling_ae.as_str() } else { receiving.trim() };
        if AeTitle::parse(aet).is_err() {
            return Status::from_code(status::UNKNOWN_RECEIVER, "receiving AE title is none");
        }
        let (aet, uid) = (Text8::fitted(aet), instance(request));
        let done = match action {
            action::SUBSCRIBE => return self.subscribe(scene, uid, aet, given).await,
            action::UNSUBSCRIBE => steps::unsubscribe(&self.node, scene, CommandId::random(), uid, aet).await,
            _ => steps::suspend(&self.node, CommandId::random(), uid, &aet).await,
        };
        done.map_or_else(|refused| status::of(&refused, Doing::Other), |()| Status::SUCCESS)
    }

    async fn subscribe(&self, scene: &Scene, uid: &str, aet: Text8, given: &Dataset) -> Status {
        if super::peer(self.node.config(), aet.as_str()).is_none() {
            return Status::from_code(status::UNKNOWN_RECEIVER, "receiving AE title is not one that this node calls");
        }
        let wants_lock = given.text(tags::DELETION_LOCK) == "TRUE";
        let mut keys = given.clone();
        keys.remove(tags::RECEIVING_AE);
        keys.remove(tags::DELETION_LOCK);
        let keys = match filter_keys(&keys) {
            Ok(keys) if uid == FILTERED => keys,
            // Of any other instance nothing is filtered; what is sent besides is passed over.
            Ok(_) => Vec::new(),
            Err(error) => return Status::from_code(status::INVALID_ARGUMENT, error),
        };
        let subscription = Subscription {
            aet,
            workitem: None,
            filter: ByteBuf::new(),
            deletion_lock: wants_lock,
            suspended: false,
            since: 0,
            reporter: Some(self.node.site()),
            told: 0,
        };
        match steps::subscribe(&self.node, scene, CommandId::random(), uid, keys, subscription).await {
            // With the lock would come a report of every step that there ever was.
            Ok(()) if wants_lock && [GLOBAL, FILTERED].contains(&uid) => {
                Status::from_code(status::LOCK_NOT_GRANTED, "Deletion Lock not granted")
            }
            Ok(()) => Status::SUCCESS,
            Err(refused) => status::of(&refused, Doing::Other),
        }
    }

    /// C-FIND (section CC.2.8).
    async fn find(
        &self,
        scene: Scene,
        request: &ServiceRequest,
        identifier: &Dataset,
        matches: &mpsc::Sender<Bytes>,
    ) -> Status {
        let asked = match Asked::read(identifier) {
            Ok(asked) => asked,
            Err(error) => return Status::from_code(status::IDENTIFIER_MISMATCH, error),
        };
        let (now, newest) = (self.node.clock().now().into(), ExamId(*self.node.changes().borrow() + 1));
        let (node, query) = (self.node.clone(), asked.query.clone());
        let found = maillage_host::offload(move || {
            let found = node.read(|view| search::search(view, &scene, &query, now, newest));
            found.map_err(|error| std::io::Error::other(error.to_string()))
        });
        let found = match found.await {
            Ok(found) => found,
            Err(error) => return Status::from_code(status::UNABLE_TO_PROCESS, error.to_string()),
        };
        for result in found.results {
            let dataset = asked.returned(result).into_map();
            let bytes = match maillage_dicom::json::write(&dataset, &request.transfer_syntax) {
                Ok(bytes) => bytes,
                Err(error) => return Status::from_code(status::UNABLE_TO_PROCESS, error.to_string()),
            };
            if matches.send(bytes).await.is_err() {
                return Status::CANCELLED;
            }
        }
        // Never taken for all that there is.
        if found.more {
            return Status::from_code(status::OUT_OF_RESOURCES, "there are more: narrow the query");
        }
        Status::SUCCESS
    }
}

impl ServiceHandler for Steps {
    fn sop_classes(&self) -> &[Uid] {
        &self.classes
    }

    /// Every step is an instance of UPS Push, in whichever context it is spoken of (section CC.3.1); a C-FIND
    /// names the context's class.
    fn takes(&self, negotiated: &Uid, named: &Uid) -> bool {
        named == negotiated || named.as_str() == UPS_PUSH
    }

    fn perform(&self, request: ServiceRequest, matches: mpsc::Sender<Bytes>) -> BoxFuture<'_, ServiceAnswer> {
        Box::pin(self.answer(request, matches))
    }
}

/// Which operations a SOP class has.
fn offers(class: &str, operation: Operation) -> bool {
    match operation {
        Operation::Create => class == UPS_PUSH,
        Operation::Set => class == PULL,
        Operation::Get => class != QUERY,
        Operation::Find => class != UPS_PUSH,
        Operation::Action => class != QUERY,
        Operation::EventReport | Operation::Delete => false,
    }
}

/// The request's data set.
fn read(request: &ServiceRequest) -> Result<Dataset, Status> {
    let map = maillage_dicom::json::read(&request.dataset, &request.transfer_syntax);
    let dataset = map.map_err(|error| error.to_string()).and_then(|map| {
        let dataset = Dataset::of_map(map);
        dataset.map_err(|error| error.to_string())
    });
    let code =
        if request.operation == Operation::Find { status::UNABLE_TO_PROCESS } else { status::PROCESSING_FAILURE };
    dataset.map_err(|error| Status::from_code(code, error))
}

/// Data sets for a client that came by DIMSE: the service's address is where this node listens.
pub(super) fn scene(node: &Node) -> Result<Scene, Refused> {
    Ok(Scene::new(node, format!("http://{}/dicom-web", node.config().http.listen))?)
}

/// The instance, which the association has checked to be there where it is needed.
fn instance(request: &ServiceRequest) -> &str {
    request.sop_instance.as_ref().map_or("", Uid::as_str)
}

/// The calling AE is the user. A message has no name that its repeat would bear.
fn asker(calling: &AeTitle) -> Asker {
    Asker { id: CommandId::random(), user: Name::fitted(calling.as_str()) }
}
