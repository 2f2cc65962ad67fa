//! What can be said of a command without running it.

use super::Command;
use crate::exam::Verdict;
use crate::ids::{ExamId, Line};

impl Command {
    /// The format that brought it.
    pub fn format(&self) -> u8 {
        match self {
            Self::Found { .. }
            | Self::CreateToken { .. }
            | Self::RevokeToken { .. }
            | Self::Join { .. }
            | Self::Describe { .. }
            | Self::OpenSession
            | Self::ExpireSession { .. }
            | Self::AddExam(_)
            | Self::ClaimNext { .. }
            | Self::ClaimTake { .. }
            | Self::Release { .. }
            | Self::Complete { .. }
            | Self::RecordStudy(_)
            | Self::RecordHolding { .. }
            | Self::Reconcile { .. }
            | Self::Cancel { .. }
            | Self::Prioritise { .. } => 1,
            _ => 2,
        }
    }

    /// Its name, for metrics and the audit trail.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Found { .. } => "found",
            Self::CreateToken { .. } => "create-token",
            Self::RevokeToken { .. } => "revoke-token",
            Self::Join { .. } => "join",
            Self::Describe { .. } => "describe",
            Self::OpenSession => "open-session",
            Self::ExpireSession { .. } => "expire-session",
            Self::AddExam(_) => "add-exam",
            Self::ClaimNext { .. } => "claim-next",
            Self::ClaimTake { .. } => "claim-take",
            Self::Release { .. } => "release",
            Self::Complete { .. } => "complete",
            Self::RecordStudy(_) => "record-study",
            Self::RecordHolding { .. } => "record-holding",
            Self::Reconcile { .. } => "reconcile",
            Self::Cancel { .. } => "cancel",
            Self::Prioritise { .. } => "prioritise",
            Self::Establish { .. } => "establish",
            Self::RaiseFormat { .. } => "raise-format",
            Self::Attest { .. } => "attest",
            Self::SetHospital(_) => "set-hospital",
            Self::Situate { .. } => "situate",
            Self::SetPolicy(_) => "set-policy",
            Self::Order { .. } => "order",
            Self::Regulate { .. } => "regulate",
            Self::Acquire { .. } => "acquire",
            Self::Arrive { .. } => "arrive",
            Self::Next(_) => "next",
            Self::Take { .. } => "take",
            Self::TakeOver { .. } => "take-over",
            Self::Open { .. } => "open",
            Self::Report { .. } => "report",
            Self::Addend { .. } => "addend",
            Self::Deliver { .. } => "deliver",
            Self::FollowUp { .. } => "follow-up",
            Self::Note { .. } => "note",
            Self::AskOpinion { .. } => "ask-opinion",
            Self::GiveOpinion { .. } => "give-opinion",
            Self::AddFinding { .. } => "add-finding",
            Self::RaiseCritical { .. } => "raise-critical",
            Self::Tell { .. } => "tell",
            Self::Escalate { .. } => "escalate",
            Self::RaiseDiscrepancy { .. } => "raise-discrepancy",
            Self::CreateWorkitem { .. } => "create-workitem",
            Self::UpdateWorkitem { .. } => "update-workitem",
            Self::ChangeWorkitem { .. } => "change-workitem",
            Self::AskCancel { .. } => "ask-cancel",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe { .. } => "unsubscribe",
            Self::BreakGlass { .. } => "break-glass",
            Self::LegalHold { .. } => "legal-hold",
            Self::ReleaseHold { .. } => "release-hold",
            Self::Purge { .. } => "purge",
            Self::RecordPurged { .. } => "record-purged",
            Self::StagePlacement(_) => "stage-placement",
            Self::ApplyPlacement { .. } => "apply-placement",
            Self::RevertPlacement { .. } => "revert-placement",
            Self::Drain { .. } => "drain",
            Self::Undrain { .. } => "undrain",
            Self::ReportRoom { .. } => "report-room",
            Self::GiveUp { .. } => "give-up",
            Self::CreateGatewayToken { .. } => "create-gateway-token",
            Self::JoinGateway { .. } => "join-gateway",
            Self::SetGateway { .. } => "set-gateway",
            Self::KeepKey { .. } => "keep-key",
        }
    }

    /// The exam that it is about, if it names one.
    pub fn exam(&self) -> Option<ExamId> {
        match self {
            Self::ClaimTake { exam }
            | Self::Release { exam, .. }
            | Self::Complete { exam, .. }
            | Self::Reconcile { unsolicited: exam, .. }
            | Self::Cancel { exam, .. }
            | Self::Prioritise { exam, .. }
            | Self::Regulate { exam, .. }
            | Self::Acquire { exam }
            | Self::Arrive { exam }
            | Self::Take { exam, .. }
            | Self::TakeOver { exam, .. }
            | Self::Open { exam, .. }
            | Self::Report { exam, .. }
            | Self::Addend { exam, .. }
            | Self::Deliver { exam, .. }
            | Self::FollowUp { exam, .. }
            | Self::Note { exam, .. }
            | Self::AskOpinion { exam, .. }
            | Self::GiveOpinion { exam, .. }
            | Self::AddFinding { exam, .. }
            | Self::RaiseCritical { exam, .. }
            | Self::Tell { exam, .. }
            | Self::Escalate { exam, .. }
            | Self::RaiseDiscrepancy { exam, .. }
            | Self::UpdateWorkitem { exam, .. }
            | Self::ChangeWorkitem { exam, .. }
            | Self::AskCancel { exam, .. }
            | Self::BreakGlass { exam, .. }
            | Self::LegalHold { exam, .. }
            | Self::ReleaseHold { exam, .. }
            | Self::Purge { exam, .. }
            | Self::RecordPurged { exam, .. } => Some(*exam),
            _ => None,
        }
    }

    /// Why, if its author said; of a key, which.
    pub fn reason(&self) -> Line {
        match self {
            Self::KeepKey { id, .. } => Line::fitted(&format!("key {id}")),
            Self::Release { reason, .. }
            | Self::Cancel { reason, .. }
            | Self::TakeOver { reason, .. }
            | Self::AskCancel { reason, .. }
            | Self::BreakGlass { reason, .. }
            | Self::LegalHold { reason, .. }
            | Self::ReleaseHold { reason, .. }
            | Self::Purge { reason, .. }
            | Self::ApplyPlacement { force: reason, .. }
            | Self::Drain { reason, .. }
            | Self::Undrain { reason, .. }
            | Self::Regulate { verdict: Verdict::Refused { reason }, .. } => reason.clone(),
            _ => Line::default(),
        }
    }

    /// Whether only the leader itself may propose it.
    pub fn is_the_leaders(&self) -> bool {
        match self {
            Self::ExpireSession { .. } | Self::RaiseFormat { .. } | Self::Escalate { .. } => true,
            Self::Purge { reason, .. } => reason.is_empty(),
            _ => false,
        }
    }
}
