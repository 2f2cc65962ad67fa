//! Answers of the worklist service: the status codes and the texts of the `Warning` header that PS3.18
//! section 11 gives for each transaction.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::exam::WorkitemState;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::outcome::Refusal;

use crate::http::problem::Problem;
use crate::node::CommandError;
use crate::ups::steps;

/// `Warning` texts, word for word.
pub(super) mod warnings {
    pub(crate) const CREATED_MODIFIED: &str = "The Workitem was created with modifications.";
    pub(crate) const NOT_SUPPORTED: &str = "Requested optional Attributes are not supported.";
    pub(crate) const NOT_CLAIMED: &str = "The target URI did not reference a claimed Workitem.";
    pub(crate) const INCONSISTENT_UPDATE: &str =
        "The submitted request is inconsistent with the current state of the Workitem.";
    pub(crate) const INCONSISTENT_STATE: &str =
        "The submitted request is inconsistent with the state of the UPS Instance.";
    pub(crate) const TRANSACTION_MISSING: &str = "The Transaction UID is missing.";
    pub(crate) const TRANSACTION_INCORRECT: &str = "The Transaction UID is incorrect.";
    pub(crate) const ALREADY_CANCELED: &str = "The UPS is already in the requested state of CANCELED.";
    pub(crate) const ALREADY_COMPLETED: &str = "The UPS is already in the requested state of COMPLETED.";
    pub(crate) const COMPLETED: &str = "The UPS is already COMPLETED.";
    pub(crate) const LOCK_NOT_GRANTED: &str = "Deletion Lock not granted.";
    pub(crate) const NOT_FUZZY: &str =
        "The fuzzymatching parameter is not supported. Only literal matching has been performed.";
    pub(crate) const MORE_RESULTS: &str = "There are additional results that can be requested.";
}

/// A refusal, with the text that the standard has for it.
#[derive(Debug)]
pub(super) struct Refused {
    problem: Problem,
    // Not yet a header, which is several times as large.
    warning: Option<Box<str>>,
}

impl Refused {
    /// A problem with a text of [`warnings`].
    pub(super) fn with(problem: Problem, service: &str, text: &str) -> Self {
        Self { problem, warning: Some(text_of(service, text).into()) }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem, warning: None }
    }
}

impl From<ApplyError> for Refused {
    fn from(error: ApplyError) -> Self {
        Problem::from(error).into()
    }
}

impl From<CommandError> for Refused {
    fn from(error: CommandError) -> Self {
        Problem::from(error).into()
    }
}

/// A refusal as PS3.18 answers it. Conflicts with the step's state bear the text `conflict`; what failed for
/// another reason bears none.
pub(super) fn refused(refused: steps::Refused, service: &str, conflict: Option<&str>) -> Refused {
    let with = |problem: Problem, text: &str| Refused::with(problem, service, text);
    let text = refused.to_string();
    // PS3.18 has no text of its own for it.
    let refused = match refused {
        steps::Refused::NotTheirs(state) => steps::Refused::Refusal(Refusal::WorkitemState { state }),
        other => other,
    };
    match refused {
        steps::Refused::NoSuchStep | steps::Refused::NoSuchSubscription => Problem::not_found(text).into(),
        steps::Refused::Unfit(_) | steps::Refused::OtherCommand(_) => Problem::invalid(text).into(),
        steps::Refused::NoTarget { .. } => with(Problem::invalid(text), warnings::INCONSISTENT_STATE),
        steps::Refused::TransactionMissing => with(Problem::invalid(text), warnings::TRANSACTION_MISSING),
        steps::Refused::TransactionBroken(_) => with(Problem::invalid(text), warnings::TRANSACTION_INCORRECT),
        steps::Refused::TransactionIncorrect => with(Refusal::WrongTransaction.into(), warnings::TRANSACTION_INCORRECT),
        steps::Refused::NotClaimed => {
            with(Refusal::WorkitemState { state: WorkitemState::Scheduled }.into(), warnings::NOT_CLAIMED)
        }
        steps::Refused::Ended(_) | steps::Refused::NotTheirs(_) => {
            with(Problem::invalid(text), warnings::INCONSISTENT_UPDATE)
        }
        steps::Refused::Command(error) => error.into(),
        steps::Refused::State(error) => Problem::internal(error).into(),
        steps::Refused::Refusal(refusal) => {
            let problem = Problem::from(refusal);
            match conflict.filter(|_| problem.status() == StatusCode::CONFLICT) {
                Some(conflict) => with(problem, conflict),
                None => problem.into(),
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = self.problem.into_response();
        if let Some(warning) = self.warning {
            append(&mut response, &warning);
        }
        response
    }
}

/// A `Warning` as the standard writes it: `299 <service>: <text>`, the service by its base URL.
fn text_of(service: &str, text: &str) -> String {
    format!("299 {service}: {text}")
}

/// The service is a host of the client's own header, so it can stand in one.
fn append(response: &mut Response, warning: &str) {
    let warning = HeaderValue::from_str(warning).unwrap_or(HeaderValue::from_static("299 maillage"));
    response.headers_mut().append(header::WARNING, warning);
}

/// Adds a warning to an answer.
pub(super) fn warned(mut response: Response, service: &str, text: &str) -> Response {
    append(&mut response, &text_of(service, text));
    response
}
