//! The status codes of the Unified Procedure Step service (PS3.4 tables CC.2.1-2 to CC.2.8-2) and those of
//! PS3.7 annex C that it shares. The one file where refusals become status codes.

use maillage_consensus::exam::WorkitemState;
use maillage_consensus::outcome::Refusal;
use maillage_dicom::dimse::Status;

use crate::node::CommandError;
use crate::ups::request::UnfitKind;
use crate::ups::steps::Refused;

/// Warning: attributes that were asked for are not there.
pub(super) const OPTIONAL_NOT_SUPPORTED: u16 = 0x0001;
/// Any failure that has no code of its own.
pub(super) const PROCESSING_FAILURE: u16 = 0x0110;
/// An argument that makes no sense.
pub(super) const INVALID_ARGUMENT: u16 = 0x0115;
/// The action is none of this SOP class.
pub(super) const NO_SUCH_ACTION: u16 = 0x0123;
/// The operation is none of this SOP class.
pub(super) const UNRECOGNIZED_OPERATION: u16 = 0x0211;
/// C-FIND: not everything that matches was returned.
pub(super) const OUT_OF_RESOURCES: u16 = 0xA700;
/// C-FIND: the identifier cannot be what the SOP class has.
pub(super) const IDENTIFIER_MISMATCH: u16 = 0xA900;
/// Warning: created with modifications.
pub(super) const CREATED_MODIFIED: u16 = 0xB300;
/// Warning: no deletion lock.
pub(super) const LOCK_NOT_GRANTED: u16 = 0xB301;
/// Warning: CANCELED already.
pub(super) const ALREADY_CANCELED: u16 = 0xB304;
/// Warning: COMPLETED already.
pub(super) const ALREADY_COMPLETED: u16 = 0xB306;
/// C-FIND: unable to process.
pub(super) const UNABLE_TO_PROCESS: u16 = 0xC000;
/// The step may no longer be updated.
pub(super) const NO_LONGER_UPDATED: u16 = 0xC300;
/// The correct Transaction UID was not provided.
pub(super) const WRONG_TRANSACTION: u16 = 0xC301;
/// The step is IN PROGRESS already.
pub(super) const ALREADY_IN_PROGRESS: u16 = 0xC302;
/// A step becomes SCHEDULED by its creation only.
pub(super) const SCHEDULED_BY_CREATION: u16 = 0xC303;
/// The requirements of the final state are not met.
pub(super) const NOT_FINAL: u16 = 0xC304;
/// No such step.
pub(super) const NO_SUCH_STEP: u16 = 0xC307;
/// The receiving AE title is not known here.
pub(super) const UNKNOWN_RECEIVER: u16 = 0xC308;
/// A step is created SCHEDULED.
pub(super) const NOT_SCHEDULED: u16 = 0xC309;
/// The step is not IN PROGRESS yet.
pub(super) const NOT_IN_PROGRESS: u16 = 0xC310;
/// The step is COMPLETED already.
pub(super) const COMPLETED: u16 = 0xC311;
/// The action is not one for this instance.
pub(super) const NOT_FOR_INSTANCE: u16 = 0xC314;

/// What is being done: the same refusal has different codes for different requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// N-CREATE.
    Create,
    /// N-SET.
    Update,
    /// N-ACTION, Change UPS State.
    Change,
    /// N-ACTION, Request UPS Cancel.
    Cancel,
    /// N-ACTION, subscriptions; N-GET.
    Other,
}

/// The status of a refusal. Its comment is this software's own text, without patient data.
pub(super) fn of(refused: &Refused, doing: Doing) -> Status {
    let code = match refused {
        Refused::NoSuchStep | Refused::NoSuchSubscription => NO_SUCH_STEP,
        Refused::Unfit(unfit) => match unfit.kind {
            UnfitKind::Missing => 0x0120,
            UnfitKind::NoValue => 0x0121,
            UnfitKind::Invalid if doing == Doing::Other => INVALID_ARGUMENT,
            UnfitKind::Invalid => 0x0106,
            UnfitKind::NotScheduled => NOT_SCHEDULED,
            UnfitKind::TooMuch => 0x0213,
        },
        Refused::NoTarget { scheduled: true } => SCHEDULED_BY_CREATION,
        Refused::NoTarget { scheduled: false } => INVALID_ARGUMENT,
        Refused::TransactionMissing
        | Refused::TransactionBroken(_)
        | Refused::TransactionIncorrect
        | Refused::NotTheirs(_) => WRONG_TRANSACTION,
        Refused::NotClaimed => NOT_IN_PROGRESS,
        Refused::Ended(WorkitemState::Completed) if doing == Doing::Cancel => COMPLETED,
        Refused::Ended(_) => NO_LONGER_UPDATED,
        Refused::Refusal(refusal) => of_refusal(refusal),
        Refused::Command(CommandError::NoQuorum(_) | CommandError::Unknown(_)) => 0x0213,
        Refused::Command(_) | Refused::State(_) | Refused::OtherCommand(_) => PROCESSING_FAILURE,
    };
    Status::from_code(code, refused.to_string())
}

fn of_refusal(refusal: &Refusal) -> u16 {
    match refusal {
        Refusal::NoSuchExam | Refusal::NoSuchWorkitem => NO_SUCH_STEP,
        Refusal::DuplicateUid => 0x0111,
        Refusal::WrongTransaction => WRONG_TRANSACTION,
        Refusal::NotFinished(_) => NOT_FINAL,
        Refusal::WorkitemState { state: WorkitemState::InProgress } | Refusal::AlreadyClaimed(_) => ALREADY_IN_PROGRESS,
        Refusal::WorkitemState { state: WorkitemState::Scheduled } => NOT_IN_PROGRESS,
        Refusal::WorkitemState { .. } => NO_LONGER_UPDATED,
        Refusal::NoContract | Refusal::ConsentRefused => 0x0124,
        Refusal::TooMany(_) => 0x0213,
        _ => PROCESSING_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use maillage_consensus::ids::Name;

    use super::*;

    #[test]
    fn refusals_have_the_codes_of_the_standard() {
        let code = |refused: Refused, doing| of(&refused, doing).code();
        let in_state = |state| Refused::Refusal(Refusal::WorkitemState { state });
        for (refused, doing, expected) in [
            (Refused::NoSuchStep, Doing::Other, 0xC307),
            (Refused::TransactionIncorrect, Doing::Change, 0xC301),
            (Refused::NotTheirs(WorkitemState::InProgress), Doing::Change, 0xC301),
            (in_state(WorkitemState::InProgress), Doing::Change, 0xC302),
            (in_state(WorkitemState::Scheduled), Doing::Change, 0xC310),
            (in_state(WorkitemState::Completed), Doing::Change, 0xC300),
            (Refused::NoTarget { scheduled: true }, Doing::Change, 0xC303),
            (Refused::Refusal(Refusal::NotFinished(Name::fitted("a report"))), Doing::Change, 0xC304),
            (Refused::Ended(WorkitemState::Completed), Doing::Update, 0xC300),
            (Refused::Ended(WorkitemState::Completed), Doing::Cancel, 0xC311),
            (Refused::NotClaimed, Doing::Update, 0xC310),
            (Refused::Refusal(Refusal::DuplicateUid), Doing::Create, 0x0111),
            (Refused::Command(CommandError::NoQuorum("no quorum".to_owned())), Doing::Change, 0x0213),
        ] {
            assert_eq!(code(refused.clone(), doing), expected, "{refused:?}");
        }
    }
}
