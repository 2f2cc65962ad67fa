//! Errors of every HTTP interface, as problem details (RFC 9457). The one file where refusals and
//! failures become status codes.
//!
//! `code` is stable and is what clients decide by (the command line maps it to exit codes); `detail`
//! is for people. Details come from this software's own error texts, which never carry patient data,
//! or from the request that is being answered.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::outcome::Refusal;
use maillage_store::StoreError;
use serde_json::{Map, Value, json};

use super::rfc3339::rfc3339;
use crate::images::ImagesError;
use crate::ingest::IngestError;
use crate::node::CommandError;
use crate::outbox::Refused;

/// Seconds after which a client may try again what no quorum could decide: about one election.
const RETRY_AFTER_S: &str = "2";

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    more: Map<String, Value>,
}

/// Makes a constructor for each kind of problem that no domain error stands behind.
macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $status:ident, $code:literal, $title:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(detail: impl Into<String>) -> Self {
            Self::new(StatusCode::$status, $code, $title, detail)
        }
    )*};
}

impl Problem {
    problems! {
        /// The request makes no sense as it is.
        invalid: BAD_REQUEST, "invalid", "The request is invalid";
        /// There is nothing at this address.
        not_found: NOT_FOUND, "not-found", "There is nothing here";
        /// The exam does not exist.
        no_such_exam: NOT_FOUND, "no-such-exam", "There is no such exam";
        /// The study, series or instance does not exist in the mesh.
        no_such_study: NOT_FOUND, "no-such-study", "There are no such images";
        /// The method is not one of the route's.
        method: METHOD_NOT_ALLOWED, "method-not-allowed", "The method is not allowed here";
        /// Nothing that the client accepts can be sent.
        not_acceptable: NOT_ACCEPTABLE, "not-acceptable", "Nothing acceptable can be sent";
        /// The body's media type is not one of the route's.
        media_type: UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The content type is not supported";
        /// The body is larger than the route's limit.
        too_large: PAYLOAD_TOO_LARGE, "too-large", "The request is too large";
        /// The body did not come in time.
        too_slow: REQUEST_TIMEOUT, "too-slow", "The request did not arrive in time";
        /// The `Host` is not one of this node's names.
        wrong_host: MISDIRECTED_REQUEST, "host-not-allowed", "This node does not answer under that name";
        /// The request comes from a page of another site.
        cross_site: FORBIDDEN, "cross-site", "Requests from other sites are refused";
        /// As many as may be at once are under way.
        busy: SERVICE_UNAVAILABLE, "busy", "The node is busy";
        /// Something of this node's own failed.
        internal: INTERNAL_SERVER_ERROR, "internal", "The node failed";
        /// Bytes on this node's disk are damaged, or its state is.
        corrupt: INTERNAL_SERVER_ERROR, "corrupt", "Stored data is damaged";
        /// There is no room for images.
        full: INSUFFICIENT_STORAGE, "storage-full", "There is no room for images";
        /// No holder of the images can be reached now.
        unreachable: SERVICE_UNAVAILABLE, "images-unavailable", "No holder of the images can be reached";
        /// What the holders send is not what it should be.
        bad_images: BAD_GATEWAY, "images-damaged", "No holder could give the images intact";
        /// The DICOM file was refused.
        rejected: BAD_REQUEST, "rejected", "The DICOM file was refused";
        /// The instance says another patient than its study's other instances.
        other_patient: CONFLICT, "other-patient", "The study belongs to another patient";
        /// Not all of the images are here.
        incomplete: CONFLICT, "images-incomplete", "Not all of the images are here";
        /// What came after the client's cursor is not kept any more.
        cursor_forgotten: GONE, "cursor-forgotten", "What came after this cursor is not kept any more";
        /// A quorum can be reached, so nothing needs to be done without one.
        quorum_reached: CONFLICT, "quorum-reached", "A quorum can be reached: claim the exam normally";
        /// The break-glass claim does not hold.
        stale_glass: CONFLICT, "stale-token", "The break-glass claim does not hold";
        /// The mesh has made an ordinary claim of a break-glass claim.
        glass_continues: CONFLICT, "continues", "The claim goes on as an ordinary one";
        /// The outbox has no such entry.
        no_such_entry: NOT_FOUND, "no-such-entry", "The outbox has no such entry";
        /// The entry is still to be sent.
        not_sent: CONFLICT, "not-sent", "It is not sent yet";
        /// Nothing can be taken down just now.
        not_recorded: INSUFFICIENT_STORAGE, "not-recorded", "It cannot be recorded here, so nothing was done";
        /// Parts of one study name different patients.
        several_patients: CONFLICT, "several-patients", "The study names several patients";
        /// The sender has sent what it may for now.
        too_much: TOO_MANY_REQUESTS, "quota", "The sender has sent what it may for now";
        /// The Transaction UID stands for another request.
        transaction_used: CONFLICT, "transaction-used", "The transaction UID is already in use";
        /// The layout has no place for these images here.
        not_placed: CONFLICT, "not-placed", "The layout does not let these images lie here";
        /// What was asked for is no longer kept.
        gone: GONE, "gone", "What was asked for is no longer kept";
        /// The images were purged: nobody can open them any more.
        key_destroyed: GONE, "key-destroyed", "The key of these images was destroyed";
        /// The key of the images has not come here, or is lost.
        key_unknown: SERVICE_UNAVAILABLE, "key-unknown", "The key of these images is not known here";
    }

    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, title, detail: detail.into(), more: Map::new() }
    }

    /// Adds a member.
    pub(crate) fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// The same under another name, for tests of what is shown.
    #[cfg(test)]
    pub(crate) fn coded(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// Its status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Its stable name.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// What happened, for people.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// A member that was added.
    pub(crate) fn member(&self, name: &str) -> Option<&Value> {
        self.more.get(name)
    }

    /// The document.
    pub(crate) fn to_json(&self) -> Value {
        let mut document = Map::new();
        document.insert("type".to_owned(), json!(format!("urn:maillage:problem:{}", self.code)));
        document.insert("title".to_owned(), json!(self.title));
        document.insert("status".to_owned(), json!(self.status.as_u16()));
        document.insert("detail".to_owned(), json!(self.detail));
        document.insert("code".to_owned(), json!(self.code));
        document.extend(self.more.clone());
        Value::Object(document)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.to_json().to_string();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let refused = |status, code| Self::new(status, code, "The mesh refused it", detail.clone());
        match refusal {
            Refusal::NoSuchExam => Self::no_such_exam(detail),
            Refusal::AlreadyClaimed(holder) => refused(StatusCode::CONFLICT, "conflict").with(
                "holder",
                json!({
                    "user": holder.user,
                    "site": holder.site,
                    "site_name": holder.site_name,
                    "since": rfc3339(holder.since),
                }),
            ),
            Refusal::WrongState { state } => {
                refused(StatusCode::CONFLICT, "wrong-state").with("state", json!(state.as_str()))
            }
            Refusal::StaleToken { given, kept_as } => {
                refused(StatusCode::CONFLICT, "stale-token").with("given", json!(given)).with("kept_as", json!(kept_as))
            }
            Refusal::NoSession | Refusal::SessionOver => refused(StatusCode::SERVICE_UNAVAILABLE, "no-session"),
            Refusal::TokenUnknown => refused(StatusCode::NOT_FOUND, "token-unknown"),
            Refusal::TokenExpired => refused(StatusCode::CONFLICT, "token-expired"),
            Refusal::TokenUsed => refused(StatusCode::CONFLICT, "token-used"),
            Refusal::TokenRevoked => refused(StatusCode::CONFLICT, "token-revoked"),
            Refusal::TokenRole { .. } => refused(StatusCode::CONFLICT, "token-role"),
            Refusal::NotAGateway => refused(StatusCode::NOT_FOUND, "not-a-gateway"),
            Refusal::NameTaken => refused(StatusCode::CONFLICT, "name-taken"),
            Refusal::NotAMember => refused(StatusCode::FORBIDDEN, "not-a-member"),
            Refusal::MeshState(_) => refused(StatusCode::CONFLICT, "mesh-state"),
            Refusal::NoSuchPart => refused(StatusCode::NOT_FOUND, "no-such-part"),
            Refusal::CannotReconcile(_) => refused(StatusCode::CONFLICT, "cannot-reconcile"),
            Refusal::PartSuperseded { .. } => refused(StatusCode::CONFLICT, "part-superseded"),
            Refusal::OtherCommand => refused(StatusCode::UNPROCESSABLE_ENTITY, "other-command"),
            Refusal::Format { format } => {
                refused(StatusCode::SERVICE_UNAVAILABLE, "mesh-format").with("format", json!(format))
            }
            Refusal::NoContract => refused(StatusCode::FORBIDDEN, "no-contract"),
            Refusal::ConsentRefused => refused(StatusCode::FORBIDDEN, "consent-refused"),
            Refusal::Missing(_) => refused(StatusCode::UNPROCESSABLE_ENTITY, "missing"),
            Refusal::NoSuchWorkitem => refused(StatusCode::NOT_FOUND, "no-such-workitem"),
            Refusal::NoSuchRemark => refused(StatusCode::NOT_FOUND, "no-such-remark"),
            Refusal::DoneAlready => refused(StatusCode::CONFLICT, "done-already"),
            Refusal::DuplicateUid => refused(StatusCode::CONFLICT, "duplicate-uid"),
            Refusal::WrongTransaction => refused(StatusCode::BAD_REQUEST, "wrong-transaction"),
            Refusal::WorkitemState { state } => {
                refused(StatusCode::CONFLICT, "workitem-state").with("state", json!(state))
            }
            Refusal::NotFinished(_) => refused(StatusCode::CONFLICT, "not-finished"),
            Refusal::OnHold => refused(StatusCode::CONFLICT, "legal-hold"),
            Refusal::Retained { until } => {
                refused(StatusCode::CONFLICT, "retained").with("until", json!(rfc3339(until)))
            }
            Refusal::Purging => refused(StatusCode::CONFLICT, "purging"),
            Refusal::NoSuchSite => refused(StatusCode::NOT_FOUND, "no-such-site"),
            Refusal::OtherLayout { staged } => {
                refused(StatusCode::CONFLICT, "other-layout").with("staged", json!(staged))
            }
            Refusal::PlacementImpossible { .. } => refused(StatusCode::CONFLICT, "placement-impossible"),
            Refusal::NotACentre(_) => refused(StatusCode::CONFLICT, "not-a-centre"),
            Refusal::CopyNeeded => refused(StatusCode::CONFLICT, "copy-needed"),
            Refusal::KeyDestroyed => refused(StatusCode::GONE, "key-destroyed"),
            Refusal::OtherKey => refused(StatusCode::CONFLICT, "other-key"),
            Refusal::TooMany(_) => refused(StatusCode::TOO_MANY_REQUESTS, "too-many"),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        match refused {
            Refused::Taken { user, since } => {
                let holder = json!({ "user": user, "since": rfc3339(since) });
                Self::new(StatusCode::CONFLICT, "conflict", "The exam is taken here", detail).with("holder", holder)
            }
            Refused::NotHeld(_) => Self::stale_glass(detail),
            Refused::Continues(token) => Self::glass_continues(detail).with("token", json!(token)),
            Refused::OtherCommand => Refusal::OtherCommand.into(),
            Refused::NoSuchEntry => Self::no_such_entry(detail),
            Refused::NotSent => Self::not_sent(detail),
            Refused::NotQueueable => Self::invalid(detail),
            Refused::Full | Refused::NotDurable(_) => Self::not_recorded(detail),
            Refused::Changed | Refused::Stopping => Self::busy(detail),
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        let failed = |status, code, title| Self::new(status, code, title, error.to_string());
        match error {
            CommandError::NoQuorum(_) => {
                failed(StatusCode::SERVICE_UNAVAILABLE, "no-quorum", "No quorum can be reached: nothing was changed")
            }
            CommandError::Unknown(_) => failed(
                StatusCode::GATEWAY_TIMEOUT,
                "unknown-outcome",
                "Whether it was done is not known: try again with the same Idempotency-Key",
            ),
            CommandError::Halted(_) => {
                failed(StatusCode::INTERNAL_SERVER_ERROR, "halted", "This node stopped being a replica")
            }
            CommandError::Invalid(_) => Self::invalid(error.to_string()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { .. } => Self::full(error.to_string()),
            StoreError::Mending => Self::busy(error.to_string()),
            StoreError::Corrupt(_) => Self::corrupt(error.to_string()),
            StoreError::KeyDestroyed(_) => Self::key_destroyed(error.to_string()),
            StoreError::KeyUnknown { .. } => Self::key_unknown(error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl From<ImagesError> for Problem {
    fn from(error: ImagesError) -> Self {
        let detail = error.to_string();
        match error {
            ImagesError::NotHere => Self::not_placed(detail),
            ImagesError::Leaving => Self::busy(detail),
            ImagesError::Unavailable(_) => Self::unreachable(detail),
            ImagesError::Manifest(_) => Self::bad_images(detail),
            ImagesError::Incomplete { .. } => Self::incomplete(detail),
            ImagesError::SeveralPatients => Self::several_patients(detail),
            ImagesError::Confined => Refusal::ConsentRefused.into(),
            ImagesError::Gone => Refusal::NoSuchPart.into(),
            ImagesError::Store(error) => error.into(),
            ImagesError::Ledger(_) => Self::internal(detail),
            ImagesError::State(error) => error.into(),
        }
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Self {
        let (reason, detail) = (error.reason(), error.to_string());
        let problem = match error {
            IngestError::Rejected(_) | IngestError::Mismatch(_) => Self::rejected(detail),
            IngestError::Quota | IngestError::Rate => Self::too_much(detail),
            IngestError::OtherPatient => Self::other_patient(detail),
            IngestError::Store(error) => error.into(),
            IngestError::Internal(_) => Self::internal(detail),
        };
        problem.with("reason", json!(reason))
    }
}

impl From<ApplyError> for Problem {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Corrupt(_) | ApplyError::Unknown { .. } => Self::corrupt(error.to_string()),
            ApplyError::Io(_) => Self::internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};
    use maillage_consensus::command::UnixMillisField;
    use maillage_consensus::exam::ExamState;
    use maillage_consensus::ids::{FencingToken, Name, SiteId};
    use maillage_consensus::outcome::Holder;
    use maillage_store::{Hash, KeyId};

    use super::*;

    fn check(problems: Vec<Problem>, expected: Expect) {
        let mut table = String::new();
        for problem in problems {
            let more = Value::Object(problem.more.clone());
            let more = if problem.more.is_empty() { String::new() } else { format!(" {more}") };
            let (status, code) = (problem.status.as_u16(), problem.code);
            writeln!(table, "{status} {code}: {}{more}", problem.detail).expect("a string");
        }
        expected.assert_eq(&table);
    }

    fn name(text: &str) -> Name {
        Name::fitted(text)
    }

    #[test]
    fn every_refusal_has_a_status_and_a_code() {
        let since = UnixMillisField(1_767_323_045_000);
        let holder = Holder { user: name("dr.a"), site: SiteId(7), site_name: name("Lyon"), since };
        let stale = |kept_as| Refusal::StaleToken { given: FencingToken(12), kept_as };
        let refusals = [
            Refusal::NoSuchExam,
            Refusal::AlreadyClaimed(holder),
            Refusal::WrongState { state: ExamState::Reported },
            stale(None),
            stale(Some(2)),
            Refusal::NoSession,
            Refusal::SessionOver,
            Refusal::TokenUnknown,
            Refusal::TokenExpired,
            Refusal::TokenUsed,
            Refusal::TokenRevoked,
            Refusal::NameTaken,
            Refusal::NotAMember,
            Refusal::MeshState(name("there is a mesh already")),
            Refusal::NoSuchPart,
            Refusal::CannotReconcile(name("the exam was requested")),
            Refusal::NotACentre(name("chu")),
        ];
        check(
            refusals.into_iter().map(Problem::from).collect(),
            expect![[r#"
            404 no-such-exam: no such exam
            409 conflict: already claimed by dr.a at Lyon {"holder":{"since":"2026-01-02T03:04:05Z","site":7,"site_name":"Lyon","user":"dr.a"}}
            409 wrong-state: the exam is reported {"state":"reported"}
            409 stale-token: the claim with token 12 no longer holds {"given":12,"kept_as":null}
            409 stale-token: the claim with token 12 no longer holds; the text is kept as draft 2 {"given":12,"kept_as":2}
            503 no-session: the site has no open session
            503 no-session: the session is not open
            404 token-unknown: the token is not known to this mesh
            409 token-expired: the token has expired
            409 token-used: the token was used already
            409 token-revoked: the token was revoked
            409 name-taken: a site of this name is a member already
            403 not-a-member: the site is not a member of this mesh
            409 mesh-state: there is a mesh already
            404 no-such-part: no such study part
            409 cannot-reconcile: the exam was requested
            409 not-a-centre: chu is a hospital's gateway: it holds no copies, and what it sends is received by the centres that take it; name those here, and at the gateway in gateway.centres
        "#]],
        );
    }

    #[test]
    fn every_failure_has_a_status_and_a_code() {
        let why = || "why".to_owned();
        check(
            vec![
                CommandError::NoQuorum(why()).into(),
                CommandError::Unknown(why()).into(),
                CommandError::Halted(why()).into(),
                CommandError::Invalid(why()).into(),
                ApplyError::Corrupt(why()).into(),
                ApplyError::Io(std::io::Error::other("why")).into(),
                StoreError::Full { free: 1, reserve: 2 }.into(),
                StoreError::Mending.into(),
                StoreError::Closed.into(),
                StoreError::KeyDestroyed(KeyId([0xab; 16])).into(),
                StoreError::KeyUnknown { id: KeyId([0xab; 16]), damaged: 1 }.into(),
                ImagesError::Unavailable(Hash([0xab; 32])).into(),
                ImagesError::Manifest(why()).into(),
                ImagesError::Incomplete { missing: 3 }.into(),
                ImagesError::Store(StoreError::Corrupt(Hash([0xab; 32]))).into(),
                IngestError::Rejected(maillage_dicom::Rejection::NotDicom).into(),
                IngestError::Mismatch("class").into(),
                IngestError::OtherPatient.into(),
                IngestError::Store(StoreError::Full { free: 1, reserve: 2 }).into(),
                IngestError::Internal(why()).into(),
            ],
            expect![[r#"
                503 no-quorum: why
                504 unknown-outcome: why
                500 halted: why
                400 invalid: why
                500 corrupt: state is corrupt: why
                500 internal: state engine: why
                507 storage-full: write: 1 bytes are free and 2 are kept in reserve
                503 busy: write: the index was found damaged and is being made anew
                500 internal: write: the store is closed
                410 key-destroyed: the key of these images was destroyed (key abababababababababababababababab)
                503 key-unknown: the key of these images is not known here (key abababababababababababababababab; 1 damaged entries in the file of pending keys)
                503 images-unavailable: no reachable site holds object abababababababababababababababababababababababababababababababab
                502 images-damaged: the study's manifest is not valid: why
                409 images-incomplete: 3 objects of the study are not here
                500 corrupt: read abababababababababababababababababababababababababababababababab: the stored bytes are damaged
                400 rejected: not a dicom file {"reason":"not_dicom"}
                400 rejected: the data set's SOP class UID is not the one announced {"reason":"uid-mismatch"}
                409 other-patient: the patient id is not the one of the study's other instances {"reason":"other-patient"}
                507 storage-full: write: 1 bytes are free and 2 are kept in reserve {"reason":"disk-full"}
                500 internal: internal failure: why {"reason":"internal"}
            "#]],
        );
    }

    #[test]
    fn the_document_is_problem_json() {
        let response = Problem::no_such_exam("no exam has number 9").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(
            Problem::no_such_exam("no exam has number 9").to_json(),
            json!({
                "type": "urn:maillage:problem:no-such-exam",
                "title": "There is no such exam",
                "status": 404,
                "detail": "no exam has number 9",
                "code": "no-such-exam",
            })
        );
        let unavailable = Problem::from(CommandError::NoQuorum(String::new())).into_response();
        assert_eq!(unavailable.headers()[header::RETRY_AFTER], RETRY_AFTER_S);
    }
}
