//! Answers of the worklist service: the status codes and the texts of the `Warning` header that PS3.18
//! section 11 gives for each transaction.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::machine::ApplyError;

use super::request::Unfit;
use crate::http::problem::Problem;
use crate::node::CommandError;

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

impl From<Unfit> for Refused {
    fn from(unfit: Unfit) -> Self {
        Problem::invalid(unfit.to_string()).into()
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
