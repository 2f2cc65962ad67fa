//! What each kind of command is in DICOM's words (PS3.16 CID 400 *Audit Event ID* and CID 401 *Audit
//! Event Type Code*; PS3.15 section A.5.3 says when each message is sent).
//!
//! A kind that DICOM has no message for is *Application Activity*, told apart by our own type code, which
//! every message carries.

/// A code of DICOM's (coding scheme DCM) and its meaning.
pub(super) type Code = (&'static str, &'static str);

/// What an entry is to an audit repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    /// Audit Event ID.
    pub(super) id: Code,
    /// Audit Event Type Code, where DICOM has one.
    pub(super) type_code: Option<Code>,
    /// C, R, U, D or E (RFC 3881 section 5.1.2).
    pub(super) action: char,
}

const ACTIVITY: Code = ("110100", "Application Activity");
const AUDIT_LOG_USED: Code = ("110101", "Audit Log Used");
const NETWORK_ENTRY: Code = ("110108", "Network Entry");
const ORDER: Code = ("110109", "Order Record");
const PROCEDURE: Code = ("110111", "Procedure Record");
const SECURITY_ALERT: Code = ("110113", "Security Alert");

impl Class {
    /// Of a command's kind, as the trail keeps it.
    pub(super) fn of(kind: &str) -> Self {
        let class = |id, action| Self { id, type_code: None, action };
        let alert = |type_code| Self { id: SECURITY_ALERT, type_code: Some(type_code), action: 'E' };
        let entry = |type_code| Self { id: NETWORK_ENTRY, type_code: Some(type_code), action: 'E' };
        match kind {
            "add-exam" | "order" | "create-workitem" => class(ORDER, 'C'),
            "prioritise" | "reconcile" | "regulate" | "update-workitem" | "ask-cancel" => class(ORDER, 'U'),
            "cancel" => class(ORDER, 'D'),
            "complete" | "report" | "addend" | "note" | "ask-opinion" | "give-opinion" | "add-finding"
            | "raise-critical" | "raise-discrepancy" | "follow-up" => class(PROCEDURE, 'C'),
            "claim-next" | "claim-take" | "next" | "take" | "take-over" | "release" | "open" | "change-workitem"
            | "acquire" | "arrive" | "record-study" | "deliver" | "tell" | "escalate" => class(PROCEDURE, 'U'),
            "break-glass" => alert(("110127", "Emergency Override Started")),
            "found" | "establish" | "raise-format" | "set-hospital" | "set-policy" | "situate" | "stage-placement"
            | "apply-placement" | "revert-placement" | "drain" | "undrain" => {
                alert(("110131", "Software Configuration"))
            }
            "join" | "describe" => alert(("110128", "Network Configuration")),
            "create-token" | "revoke-token" => alert(("110137", "User security Attributes Changed")),
            "open-session" => entry(("110124", "Attach")),
            "expire-session" => entry(("110125", "Detach")),
            "attest" => class(AUDIT_LOG_USED, 'R'),
            _ => class(ACTIVITY, 'E'),
        }
    }
}
