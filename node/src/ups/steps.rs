//! What is done with a procedure step, whoever asks and by which interface: create, update, change of
//! state, request to cancel, subscriptions. The rules of PS3.4 annex CC are the replicated queue's; here
//! its outcomes become those that the standard knows.

use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, Subscription};
use maillage_consensus::exam::{Exam, Text8, Workitem, WorkitemState};
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, UidText};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::outcome::Refusal;
use maillage_dicom::Uid;
use serde_bytes::ByteBuf;
use serde_json::json;

use super::dataset::{Dataset, dicom_time};
use super::describe::{Scene, is_ended, priority_name};
use super::filter::{FILTERED, Filter, GLOBAL};
use super::request::{self, Unfit, Update};
use super::{search, tags};
use crate::node::{CommandError, Node};

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The mesh knows no such step.
    #[error("the mesh knows no such workitem")]
    NoSuchStep,
    /// The application has no such subscription.
    #[error("there is no such subscription")]
    NoSuchSubscription,
    /// What the client sent makes no sense.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The state asked for is none to which a step can be changed.
    #[error("00741000 must be IN PROGRESS, COMPLETED or CANCELED")]
    NoTarget {
        /// Whether it was SCHEDULED.
        scheduled: bool,
    },
    /// The Transaction UID is missing.
    #[error("00081195 Transaction UID is needed")]
    TransactionMissing,
    /// It is none.
    #[error("00081195 Transaction UID: {0}")]
    TransactionBroken(String),
    /// It is not the step's.
    #[error("the Transaction UID is not the workitem's")]
    TransactionIncorrect,
    /// It is not the one under which the step is, or was, performed, which is past what is asked anyway.
    #[error("the workitem is {0:?} under another Transaction UID")]
    NotTheirs(WorkitemState),
    /// One was given for a step that nobody performs.
    #[error("nobody performs the workitem")]
    NotClaimed,
    /// The step is COMPLETED or CANCELED and changes no more.
    #[error("the workitem is {0:?}")]
    Ended(WorkitemState),
    /// Any other refusal by the queue.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// There is no outcome.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The state cannot be read.
    #[error("the state cannot be read: {0}")]
    State(String),
    /// The command id was used for another command, which had this outcome.
    #[error("this command id named another command before; its outcome was {0:?}")]
    OtherCommand(&'static str),
}

impl From<ApplyError> for Refused {
    fn from(error: ApplyError) -> Self {
        Self::State(error.to_string())
    }
}

/// Who asks, and under which command id.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    /// A repeat under the same one has the first's outcome.
    pub(crate) id: CommandId,
    /// The user whom the queue records.
    pub(crate) user: Name,
}

/// The workitem with a UID, and its exam. One that is not known here may have been created elsewhere a
/// moment ago.
///
/// # Errors
/// [`Refused::NoSuchStep`]; the state cannot be read.
pub(crate) async fn find(node: &Node, scene: &Scene, uid: &str) -> Result<(Exam, Workitem), Refused> {
    if let Some(found) = node.read(|view| search::find(view, scene, uid))? {
        return Ok(found);
    }
    node.catch_up().await;
    node.read(|view| search::find(view, scene, uid))?.ok_or(Refused::NoSuchStep)
}

/// Creates a step; whether it differs from what was asked.
///
/// # Errors
/// See [`Refused`].
pub(crate) async fn create(
    node: &Node,
    scene: &Scene,
    asker: Asker,
    uid: &Uid,
    dataset: Dataset,
) -> Result<bool, Refused> {
    // It will name the step for good, to every client.
    if !uid.is_strict() {
        return Err(Unfit::invalid("workitem: a component has a leading zero").into());
    }
    let creation = request::create(dataset)?;
    // UIDs that this mesh makes are not a client's to give.
    if let Some((exam, number)) = scene.uids.parse(uid.as_str()) {
        let exists = node.read(|view| view.workitem(exam, number))?.is_some();
        let own = Unfit::invalid("workitem: this UID is in the mesh's own range");
        return Err(if exists { Refusal::DuplicateUid.into() } else { own.into() });
    }
    let command = Command::CreateWorkitem {
        uid: UidText::fitted(uid.as_str()),
        request: creation.request,
        order: creation.order,
        attributes: creation.attributes,
    };
    let existed = match node.command(asker.id, asker.user, command).await? {
        Outcome::ExamAdded { existed, .. } => existed,
        Outcome::Refused(refusal) => return Err(refusal.into()),
        other => return Err(other_command(&other)),
    };
    node.catch_up().await;
    Ok(creation.modified || existed)
}

/// Updates a step; whether attributes were left out that this software decides itself.
///
/// # Errors
/// See [`Refused`].
pub(crate) async fn update(
    node: &Node,
    scene: &Scene,
    asker: Asker,
    uid: &str,
    transaction: &str,
    dataset: Dataset,
) -> Result<bool, Refused> {
    let (exam, workitem) = find(node, scene, uid).await?;
    let mut update = request::update(dataset)?;
    let modified = json!({ "vr": "DT", "Value": [dicom_time(node.clock().now().into())] }).to_string();
    update.attributes.insert(tags::MODIFICATION_DATE_TIME, ByteBuf::from(modified.into_bytes()));
    let command = Command::UpdateWorkitem {
        exam: exam.id,
        number: workitem.number,
        transaction_uid: UidText::new(transaction).unwrap_or_else(|_| UidText::fitted("0")),
        attributes: std::mem::take(&mut update.attributes),
    };
    match node.command(asker.id, asker.user.clone(), command).await? {
        Outcome::Done => {}
        Outcome::Refused(refusal) => {
            node.catch_up().await;
            let state = node.read(|view| view.workitem(exam.id, workitem.number))?.map(|workitem| workitem.state);
            return Err(match refusal {
                Refusal::WrongTransaction if state == Some(WorkitemState::Scheduled) => Refused::NotClaimed,
                Refusal::WrongTransaction if transaction.is_empty() => Refused::TransactionMissing,
                Refusal::WrongTransaction => Refused::TransactionIncorrect,
                Refusal::WorkitemState { state } if is_ended(state) => Refused::Ended(state),
                other => other.into(),
            });
        }
        other => return Err(other_command(&other)),
    }
    prioritise(node, asker, exam.id, &update).await?;
    node.catch_up().await;
    Ok(update.left_out)
}

/// The exam's urgency, unless it is one of those that UPS calls by the same name already.
async fn prioritise(node: &Node, asker: Asker, exam: ExamId, update: &Update) -> Result<(), Refused> {
    let Some(priority) = update.priority else { return Ok(()) };
    node.catch_up().await;
    let present = node.read(|view| view.exam(exam))?.map(|exam| exam.request.priority);
    if present.is_some_and(|own| priority_name(own) == priority_name(priority)) {
        return Ok(());
    }
    // One that follows from the client's, so that a repeat of both does neither twice.
    let second = CommandId(uuid::Builder::from_u128(!asker.id.0.as_u128()).into_uuid());
    done(node.command(second, asker.user, Command::Prioritise { exam, priority }).await?)
}

/// What a change of state is asked with: the Transaction UID and the state.
///
/// # Errors
/// Which of them is missing or none.
pub(crate) fn target(dataset: &Dataset) -> Result<(UidText, WorkitemState), Refused> {
    let to = match dataset.text(tags::PROCEDURE_STEP_STATE).as_str() {
        "IN PROGRESS" => WorkitemState::InProgress,
        "COMPLETED" => WorkitemState::Completed,
        "CANCELED" => WorkitemState::Canceled,
        other => return Err(Refused::NoTarget { scheduled: other == "SCHEDULED" }),
    };
    let transaction = dataset.text(tags::TRANSACTION_UID);
    if transaction.is_empty() {
        return Err(Refused::TransactionMissing);
    }
    let uid = Uid::parse(&transaction).map_err(|error| Refused::TransactionBroken(error.to_string()))?;
    Ok((UidText::fitted(uid.as_str()), to))
}

/// How a change of state ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// It is in the state now.
    Now,
    /// It was in that final state before, performed under the same Transaction UID or by nobody.
    Before(WorkitemState),
}

/// Changes a step's state (PS3.4 table CC.1.1-2).
///
/// # Errors
/// See [`Refused`].
pub(crate) async fn change(
    node: &Node,
    scene: &Scene,
    asker: Asker,
    uid: &str,
    dataset: &Dataset,
) -> Result<Changed, Refused> {
    let (exam, workitem) = find(node, scene, uid).await?;
    let (transaction_uid, to) = target(dataset)?;
    let (exam, number) = (exam.id, workitem.number);
    let command = Command::ChangeWorkitem { exam, number, transaction_uid: transaction_uid.clone(), to };
    let outcome = node.command(asker.id, asker.user, command).await?;
    node.catch_up().await;
    match outcome {
        Outcome::Claimed(_) | Outcome::Done => Ok(Changed::Now),
        Outcome::Refused(Refusal::WrongTransaction) => Err(Refused::TransactionIncorrect),
        Outcome::Refused(Refusal::WorkitemState { state }) => {
            let workitem = node.read(|view| view.workitem(exam, number))?;
            let performer = workitem.and_then(|workitem| workitem.performer);
            let is_anothers = performer.is_some_and(|claim| claim.transaction_uid != transaction_uid);
            match (state == to && is_ended(to), is_anothers) {
                (true, true) => Err(Refused::TransactionIncorrect),
                (true, false) => Ok(Changed::Before(to)),
                (false, true) if state != WorkitemState::Scheduled => Err(Refused::NotTheirs(state)),
                (false, _) => Err(Refusal::WorkitemState { state }.into()),
            }
        }
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => Err(other_command(&other)),
    }
}

/// Asks for a step to be canceled; whether it was so before.
///
/// # Errors
/// See [`Refused`].
pub(crate) async fn ask_cancel(
    node: &Node,
    scene: &Scene,
    asker: Asker,
    uid: &str,
    dataset: &Dataset,
) -> Result<bool, Refused> {
    let (exam, workitem) = find(node, scene, uid).await?;
    let command = Command::AskCancel { exam: exam.id, number: workitem.number, reason: reason(dataset) };
    let outcome = node.command(asker.id, asker.user, command).await?;
    node.catch_up().await;
    match outcome {
        Outcome::Done => Ok(false),
        Outcome::Refused(Refusal::DoneAlready) => Ok(true),
        Outcome::Refused(Refusal::WorkitemState { state: WorkitemState::Completed }) => {
            Err(Refused::Ended(WorkitemState::Completed))
        }
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => Err(other_command(&other)),
    }
}

/// Why, and with whom it may be discussed: the mesh keeps one line of both.
fn reason(dataset: &Dataset) -> Line {
    let contact = [tags::CONTACT_DISPLAY_NAME, tags::CONTACT_URI].map(|tag| dataset.text(tag));
    let contact: Vec<&str> = contact.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    let code = dataset.item(tags::DISCONTINUATION_REASON_CODES).text(tags::CODE_MEANING);
    let reason = match dataset.text(tags::REASON_FOR_CANCELLATION) {
        text if text.is_empty() => code,
        text => text,
    };
    let reason = reason.replace(['\n', '\r', '\t'], " ");
    if contact.is_empty() {
        return Line::fitted(&reason);
    }
    Line::fitted(format!("{reason} (contact: {})", contact.join(", ")).trim())
}

/// What is subscribed to: the worklist, or one step.
pub(crate) type Subscribed = Option<(ExamId, u32)>;

/// What a UID names that is subscribed to.
///
/// # Errors
/// See [`find`].
pub(crate) async fn subscribed(node: &Node, scene: &Scene, uid: &str) -> Result<Subscribed, Refused> {
    if uid == GLOBAL || uid == FILTERED {
        return Ok(None);
    }
    let (exam, workitem) = find(node, scene, uid).await?;
    Ok(Some((exam.id, workitem.number)))
}

/// Subscribes. A filter is for the filtered worklist, which needs one.
///
/// # Errors
/// See [`Refused`].
pub(crate) async fn subscribe(
    node: &Node,
    scene: &Scene,
    id: CommandId,
    uid: &str,
    keys: Vec<(String, String)>,
    mut subscription: Subscription,
) -> Result<(), Refused> {
    subscription.workitem = subscribed(node, scene, uid).await?;
    match (uid, keys.is_empty()) {
        (FILTERED, true) => return Err(Unfit::invalid("a filtered subscription needs a filter").into()),
        (FILTERED, false) | (_, true) => {}
        (_, false) => return Err(Unfit::invalid(format!("a filter is for {FILTERED} alone")).into()),
    }
    subscription.filter = Filter { keys, until: None }.encode()?;
    propose(node, id, &subscription.aet.clone(), Command::Subscribe(subscription)).await
}

/// Ends a subscription.
///
/// # Errors
/// [`Refused::NoSuchSubscription`] and others.
pub(crate) async fn unsubscribe(
    node: &Node,
    scene: &Scene,
    id: CommandId,
    uid: &str,
    aet: Text8,
) -> Result<(), Refused> {
    let workitem = subscribed(node, scene, uid).await?;
    propose(node, id, &aet.clone(), Command::Unsubscribe { aet, workitem }).await
}

/// Leaves later exams out of a subscription to the worklist.
///
/// # Errors
/// [`Refused::NoSuchSubscription`] and others.
pub(crate) async fn suspend(node: &Node, id: CommandId, uid: &str, aet: &Text8) -> Result<(), Refused> {
    if uid != GLOBAL && uid != FILTERED {
        return Err(Unfit::invalid("only a subscription to the worklist can be suspended").into());
    }
    node.catch_up().await;
    let own = |subscription: &Subscription| subscription.aet == *aet && subscription.workitem.is_none();
    let before = node.read(|view| view.subscriptions())?.into_iter().find(own).ok_or(Refused::NoSuchSubscription)?;
    if before.suspended {
        return Ok(());
    }
    let keys = Filter::of(&before).unwrap_or_default().keys;
    let until = Some(*node.changes().borrow());
    let filter = Filter { keys, until }.encode()?;
    let suspended = Subscription { suspended: true, filter, told: 0, ..before };
    propose(node, id, aet, Command::Subscribe(suspended)).await
}

async fn propose(node: &Node, id: CommandId, aet: &Text8, command: Command) -> Result<(), Refused> {
    match node.command(id, Name::fitted(aet.as_str()), command).await? {
        Outcome::Refused(Refusal::NoSuchWorkitem) => Err(Refused::NoSuchSubscription),
        outcome => {
            done(outcome)?;
            node.catch_up().await;
            Ok(())
        }
    }
}

fn done(outcome: Outcome) -> Result<(), Refused> {
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => Err(other_command(&other)),
    }
}

fn other_command(outcome: &Outcome) -> Refused {
    Refused::OtherCommand(crate::metrics::outcome_label(outcome))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn dataset(json: &Value) -> Dataset {
        Dataset::parse(json.to_string().as_bytes()).expect("a data set")
    }

    #[test]
    fn a_state_change_needs_a_state_and_a_transaction() {
        let check = |state: &str, transaction: &str| {
            target(&dataset(&json!({
                "00741000": { "vr": "CS", "Value": [state] },
                "00081195": { "vr": "UI", "Value": [transaction] },
            })))
        };
        assert_eq!(check("COMPLETED", "1.2").expect("asked").1, WorkitemState::Completed);
        assert_eq!(check("SCHEDULED", "1.2"), Err(Refused::NoTarget { scheduled: true }));
        assert_eq!(check("CANCELLED", "1.2"), Err(Refused::NoTarget { scheduled: false }));
        assert_eq!(check("IN PROGRESS", ""), Err(Refused::TransactionMissing));
        assert!(matches!(check("IN PROGRESS", "no-uid"), Err(Refused::TransactionBroken(_))));
    }

    #[test]
    fn a_cancel_requests_reason_names_whom_to_ask() {
        let given = dataset(&json!({
            "00741238": { "vr": "LT", "Value": ["wrong\npatient"] },
            "0074100C": { "vr": "LO", "Value": ["Dr A"] },
            "0074100A": { "vr": "UR", "Value": ["tel:112"] },
        }));
        assert_eq!(reason(&given).as_str(), "wrong patient (contact: Dr A, tel:112)");
        assert_eq!(reason(&Dataset::default()).as_str(), "");
    }
}
