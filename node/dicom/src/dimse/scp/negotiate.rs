//! The answer to an A-ASSOCIATE-RQ: a pure function of the request, the address and the settings.

use std::net::IpAddr;
use std::sync::Arc;

use super::{CallingPolicy, RejectReason, ScpConfig, ServiceHandler};
use crate::dimse::pdu::{AssociateAc, AssociateRq, ContextResult, NegotiatedContext, Role, UserInformation};
use crate::dimse::sop_class::is_storage;
use crate::part10::IMPLEMENTATION_VERSION;
use crate::uid::Uid;

/// An accepted presentation context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) id: u8,
    pub(super) abstract_syntax: Uid,
    pub(super) transfer_syntax: Uid,
    /// The place of its handler among the services; `None` is verification or storage.
    pub(super) service: Option<usize>,
}

/// An acceptance and what it lets the peer do.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) answer: AssociateAc,
    pub(super) contexts: Vec<Context>,
}

/// Whether the association may be, before anything is negotiated.
pub(super) fn admit(request: &AssociateRq, remote: IpAddr, config: &ScpConfig) -> Result<(), RejectReason> {
    if request.application_context != Uid::APPLICATION_CONTEXT {
        return Err(RejectReason::ApplicationContext);
    }
    if !config.called.allows(&request.called) {
        return Err(RejectReason::CalledAe);
    }
    let CallingPolicy::Known(peers) = &config.calling else {
        return Ok(());
    };
    let mut of_title = peers.iter().filter(|peer| peer.ae_title == request.calling).peekable();
    if of_title.peek().is_none() {
        return Err(RejectReason::CallingAe);
    }
    if of_title.any(|peer| peer.from.is_none_or(|range| range.contains(remote))) {
        Ok(())
    } else {
        Err(RejectReason::CallingAddress)
    }
}

/// Negotiates. Of each storage context's transfer syntaxes the first is taken: it is the one in which the
/// sender has its images, and nothing is transcoded on either side. A service's answers are written here,
/// so of its contexts the first is taken that we write.
pub(super) fn accept(request: &AssociateRq, config: &ScpConfig, services: &[Arc<dyn ServiceHandler>]) -> Accepted {
    let mut accepted = Vec::new();
    let mut answers = Vec::with_capacity(request.contexts.len());
    for proposed in &request.contexts {
        let service = services.iter().position(|service| service.sop_classes().contains(&proposed.abstract_syntax));
        let supported = service.is_some()
            || proposed.abstract_syntax == Uid::VERIFICATION
            || is_storage(&proposed.abstract_syntax, config.private_storage);
        let speaks = |syntax: &&Uid| service.is_none() || [Uid::EXPLICIT_LE, Uid::IMPLICIT_LE].contains(*syntax);
        let transfer_syntax = proposed.transfer_syntaxes.iter().find(speaks).filter(|_| supported).cloned();
        if let Some(transfer_syntax) = &transfer_syntax {
            accepted.push(Context {
                id: proposed.id,
                abstract_syntax: proposed.abstract_syntax.clone(),
                transfer_syntax: transfer_syntax.clone(),
                service,
            });
        }
        let result = match (supported, &transfer_syntax) {
            (false, _) => ContextResult::AbstractSyntax,
            (true, None) => ContextResult::TransferSyntaxes,
            (true, Some(_)) => ContextResult::Accepted,
        };
        answers.push(NegotiatedContext { id: proposed.id, result, transfer_syntax });
    }
    let user = UserInformation {
        max_pdu: config.max_pdu,
        implementation_class: Some(Uid::IMPLEMENTATION_CLASS),
        implementation_version: Some(IMPLEMENTATION_VERSION.to_owned()),
        // One operation at a time, whatever was asked for.
        async_window: request.user.async_window.map(|_| (1, 1)),
        // We are the provider of everything, so the requestor is its user.
        roles: request.user.roles.iter().map(|role| Role { scp: false, ..role.clone() }).collect(),
    };
    let answer =
        AssociateAc { called: request.called.clone(), calling: request.calling.clone(), contexts: answers, user };
    Accepted { answer, contexts: accepted }
}
