//! The operations that a service class other than storage and verification may offer: C-FIND and the
//! normalized services (PS3.7 sections 9.1.2 and 10), and what each request must have.

use super::command::{C_FIND_RQ, N_ACTION_RQ, N_CREATE_RQ, N_DELETE_RQ, N_EVENT_REPORT_RQ, N_GET_RQ, N_SET_RQ};

/// An operation or notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// C-FIND.
    Find,
    /// N-EVENT-REPORT.
    EventReport,
    /// N-GET.
    Get,
    /// N-SET.
    Set,
    /// N-ACTION.
    Action,
    /// N-CREATE.
    Create,
    /// N-DELETE.
    Delete,
}

impl Operation {
    /// That of a request's command field.
    pub fn of(field: u16) -> Option<Self> {
        Some(match field {
            C_FIND_RQ => Self::Find,
            N_EVENT_REPORT_RQ => Self::EventReport,
            N_GET_RQ => Self::Get,
            N_SET_RQ => Self::Set,
            N_ACTION_RQ => Self::Action,
            N_CREATE_RQ => Self::Create,
            N_DELETE_RQ => Self::Delete,
            _ => return None,
        })
    }

    /// Whether it is about an instance that is there, which its command must name.
    pub fn needs_instance(self) -> bool {
        !matches!(self, Self::Find | Self::Create)
    }

    /// Whether its request says nothing without a data set.
    pub fn needs_data_set(self) -> bool {
        matches!(self, Self::Find | Self::Set)
    }

    /// Whether the command names class and instance as requested ones rather than affected ones.
    pub fn is_of_requested(self) -> bool {
        matches!(self, Self::Get | Self::Set | Self::Action | Self::Delete)
    }

    /// A short name, for logs and labels; stable.
    pub fn label(self) -> &'static str {
        match self {
            Self::Find => "c-find",
            Self::EventReport => "n-event-report",
            Self::Get => "n-get",
            Self::Set => "n-set",
            Self::Action => "n-action",
            Self::Create => "n-create",
            Self::Delete => "n-delete",
        }
    }
}
