//! What a client asks for, in the words of format 1 and of format 2.

use super::Command;
use crate::exam::{ReportKind, Text8};
use crate::ids::UidText;
use crate::order::{Order, Reader};

impl Command {
    /// The same in the words of the other format, where both have some. A client that repeats what it asked for may
    /// come to a node that knows of another format than the first one did, and is not to be told that it asked for
    /// something else. A report's signature is not part of what is asked for.
    pub fn in_other_words(&self) -> Option<Self> {
        match self {
            Self::AddExam(request) => Some(Self::Order { request: request.clone(), order: Order::default() }),
            Self::Order { request, order } if *order == Order::default() => Some(Self::AddExam(request.clone())),
            Self::ClaimNext { modalities } => {
                let modalities = modalities.iter().map(|modality| Text8::fitted(modality.as_str())).collect();
                Some(Self::Next(Reader { modalities, ..Reader::default() }))
            }
            Self::Next(Reader { specialties, expertise, modalities })
                if specialties.is_empty() && expertise.is_empty() =>
            {
                let modalities = modalities.iter().map(|modality| UidText::fitted(modality.as_str())).collect();
                Some(Self::ClaimNext { modalities })
            }
            Self::ClaimTake { exam } => Some(Self::Take { exam: *exam, transaction_uid: UidText::default() }),
            Self::Take { exam, transaction_uid } if transaction_uid.is_empty() => Some(Self::ClaimTake { exam: *exam }),
            Self::Complete { exam, token, report } => Some(Self::Report {
                exam: *exam,
                token: *token,
                kind: ReportKind::Final,
                text: report.clone(),
                signature: serde_bytes::ByteBuf::default(),
            }),
            Self::Report { exam, token, kind: ReportKind::Final, text, .. } => {
                Some(Self::Complete { exam: *exam, token: *token, report: text.clone() })
            }
            _ => None,
        }
    }

    /// Whether two commands ask for the same, each in the words of either format.
    pub fn asks_for_the_same(&self, other: &Self) -> bool {
        let plain = |command: &Self| if command.format() == 1 { None } else { command.in_other_words() };
        plain(self).as_ref().unwrap_or(self) == plain(other).as_ref().unwrap_or(other)
    }
}
