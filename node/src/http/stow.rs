//! STOW-RS (PS3.18 section 10.5): `POST /dicom-web/studies`, multipart/related of DICOM files.
//!
//! Parts are taken one after another as they arrive; one instance is in memory at a time. Each is
//! durable before the next is read, and the answer tells of each. A body that breaks off is an error
//! that still names nothing as lost: what was stored stays, and a repeat finds duplicates.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRef, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Remote;
use super::app::App;
use super::body::{Pieces, require};
use super::multipart::{MultipartError, PartReader, Piece};
use super::problem::Problem;
use crate::ingest::{Ingest, IngestError, Received, ReceivedAs, Source};
use crate::metrics::Metrics;
use maillage_store::StoreError;

/// The largest body: a day's largest studies together. One part is bounded by the configuration.
const BODY_BYTES_MAX: u64 = 64 << 30;
/// The most instances in one request; its answer is built in memory.
const PARTS_MAX: usize = 20_000;

/// When to send again what there was no room or no quota for, in seconds.
const RETRY_AFTER_S: &str = "60";

/// Failure reasons, PS3.18 table 10.5.1-1 and PS3.4 section GG.4.2.
const OUT_OF_RESOURCES: u16 = 0xA700;
const DOES_NOT_MATCH: u16 = 0xA900;
const CANNOT_UNDERSTAND: u16 = 0xC000;
const PROCESSING_FAILURE: u16 = 0x0110;
/// Warning reason: stored, though other bytes have the same UID (coerced or discarded elements have
/// their own codes; this one says that the data set does not match).
const KEPT_APART: u16 = 0xB007;

/// What STOW-RS takes of a node, a centre or a gateway.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    /// The way in.
    pub(crate) ingest: Ingest,
    /// Where refusals are counted.
    pub(crate) metrics: Metrics,
    /// Uploads in memory at once.
    pub(crate) uploads: Arc<Semaphore>,
    /// The largest instance taken.
    pub(crate) instance_bytes_max: u64,
}

impl FromRef<App> for Intake {
    fn from_ref(app: &App) -> Self {
        Self {
            ingest: app.node.ingest().clone(),
            metrics: app.node.metrics().clone(),
            uploads: Arc::clone(&app.limits.uploads),
            instance_bytes_max: app.instance_bytes_max(),
        }
    }
}

/// Takes in a multipart body of Part 10 files.
pub(crate) async fn store(
    State(intake): State<Intake>,
    extensions: Extensions,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let media = require(&headers, "multipart/related")?;
    if media.parameter("type").is_some_and(|kind| !kind.eq_ignore_ascii_case("application/dicom")) {
        return Err(Problem::media_type("the parts must be application/dicom"));
    }
    let mut reader = PartReader::new(&media).map_err(malformed)?;
    let mut pieces = Pieces::new(&headers, body, BODY_BYTES_MAX)?;
    let place = Arc::clone(&intake.uploads).acquire_owned();
    let _place = place.await.map_err(|_| Problem::busy("the node is stopping"))?;
    let source = Source::Stow(extensions.get::<Remote>().map(|remote| remote.0));
    let mut stored = Answer::default();
    let mut part = Part::default();
    let mut total: u64 = 0;
    loop {
        match reader.next().map_err(malformed)? {
            Piece::End => break,
            Piece::NeedMore => {
                let Some(piece) = pieces.next().await? else {
                    reader.finish().map_err(malformed)?;
                    break;
                };
                total += piece.len() as u64;
                if total > BODY_BYTES_MAX {
                    return Err(Problem::too_large(format!("at most {BODY_BYTES_MAX} bytes are taken here")));
                }
                reader.feed(&piece);
            }
            Piece::Part(media) => {
                if stored.parts() == PARTS_MAX {
                    return Err(Problem::too_large(format!("at most {PARTS_MAX} instances are taken at once")));
                }
                let dicom = media.is_none_or(|media| media.essence == "application/dicom");
                part = Part { bytes: BytesMut::new(), refused: (!dicom).then_some(CANNOT_UNDERSTAND) };
            }
            Piece::Content(bytes) => part.add(&bytes, intake.instance_bytes_max),
            Piece::PartEnd => {
                let part = std::mem::take(&mut part);
                match part.refused {
                    Some(reason) => {
                        intake.metrics.rejected("stow", "part");
                        stored.failed.push(reason);
                    }
                    None => match intake.ingest.receive_file(source.clone(), part.bytes.freeze()).await {
                        Ok(received) => {
                            // Before more is read: a sender that is faster than it may be waits in TCP.
                            pieces.pause(received.wait).await;
                            stored.received.push(received);
                        }
                        Err(error) => {
                            stored.later = Later::of(&error).or(stored.later);
                            stored.failed.push(failure_reason(&error));
                        }
                    },
                }
            }
        }
    }
    stored.respond()
}

fn malformed(error: MultipartError) -> Problem {
    Problem::invalid(format!("body: {error}"))
}

/// The part being read.
#[derive(Debug, Default)]
struct Part {
    bytes: BytesMut,
    refused: Option<u16>,
}

impl Part {
    /// Adds bytes, or lets go of all of them once they are too many.
    fn add(&mut self, bytes: &[u8], limit: u64) {
        if self.refused.is_some() {
            return;
        }
        if (self.bytes.len() + bytes.len()) as u64 > limit {
            *self = Self { bytes: BytesMut::new(), refused: Some(OUT_OF_RESOURCES) };
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

fn failure_reason(error: &IngestError) -> u16 {
    match error {
        IngestError::Rejected(_) => CANNOT_UNDERSTAND,
        IngestError::Mismatch(_) | IngestError::OtherPatient => DOES_NOT_MATCH,
        IngestError::Quota | IngestError::Store(StoreError::Full { .. }) => OUT_OF_RESOURCES,
        IngestError::Store(_) | IngestError::Internal(_) => PROCESSING_FAILURE,
    }
}

/// Why a sender should come back later with what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Later {
    /// There is no room.
    NoRoom,
    /// Its quota is used up.
    Quota,
}

impl Later {
    fn of(error: &IngestError) -> Option<Self> {
        match error {
            IngestError::Quota => Some(Self::Quota),
            IngestError::Store(StoreError::Full { .. }) => Some(Self::NoRoom),
            _ => None,
        }
    }

    /// RFC 9110 section 15.6 and RFC 4918 section 11.5; RFC 6585 section 4.
    fn status(self) -> StatusCode {
        match self {
            Self::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            Self::Quota => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// What the sender is told.
#[derive(Debug, Default)]
struct Answer {
    received: Vec<Received>,
    failed: Vec<u16>,
    /// Of those that failed, the last that may yet succeed.
    later: Option<Later>,
}

impl Answer {
    fn parts(&self) -> usize {
        self.received.len() + self.failed.len()
    }

    /// 200 when all are stored, 202 when some failed or were kept apart. When none is stored, 507 or 429 if
    /// they may be sent again later, else 409. `Retry-After` goes with all that may.
    fn respond(self) -> Result<Response, Problem> {
        if self.parts() == 0 {
            return Err(Problem::invalid("the body holds no part"));
        }
        let status = if self.received.is_empty() {
            self.later.map_or(StatusCode::CONFLICT, Later::status)
        } else if self.failed.is_empty() && self.received.iter().all(|one| one.outcome != ReceivedAs::Conflict) {
            StatusCode::OK
        } else {
            StatusCode::ACCEPTED
        };
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/dicom+json"))];
        let mut response = (status, kind, self.to_json().to_string()).into_response();
        if self.later.is_some() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        Ok(response)
    }

    /// The Store Instances Response, PS3.18 annex I.2, in the DICOM JSON model of annex F. Instances
    /// that could not be read have no UID: they stand in Other Failures (0008,119A).
    fn to_json(&self) -> Value {
        let element = |vr: &str, value: Value| json!({ "vr": vr, "Value": [value] });
        let items: Vec<Value> = self
            .received
            .iter()
            .map(|one| {
                let mut item = json!({
                    "00081150": element("UI", json!(one.sop_class)),
                    "00081155": element("UI", json!(one.sop_instance)),
                    "00081190": element("UR", json!(format!(
                        "/dicom-web/studies/{}/series/{}/instances/{}",
                        one.study, one.series, one.sop_instance
                    ))),
                });
                if one.outcome == ReceivedAs::Conflict {
                    item["00081196"] = element("US", json!(KEPT_APART));
                }
                item
            })
            .collect();
        let failures: Vec<Value> =
            self.failed.iter().map(|reason| json!({ "00081197": element("US", json!(reason)) })).collect();
        let mut answer = json!({});
        if let Some(first) = self.received.first()
            && self.received.iter().all(|one| one.study == first.study)
        {
            answer["00081190"] = element("UR", json!(format!("/dicom-web/studies/{}", first.study)));
        }
        if !items.is_empty() {
            answer["00081199"] = json!({ "vr": "SQ", "Value": items });
        }
        if !failures.is_empty() {
            answer["0008119A"] = json!({ "vr": "SQ", "Value": failures });
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn received(outcome: ReceivedAs) -> Received {
        let uid = |text: &str| text.to_owned();
        Received {
            study: uid("1.2"),
            series: uid("1.3"),
            sop_instance: uid("1.4"),
            sop_class: uid("1.5"),
            outcome,
            wait: Duration::ZERO,
        }
    }

    #[test]
    fn the_answer_tells_of_each_instance() {
        let answer = Answer { received: vec![received(ReceivedAs::New)], failed: vec![CANNOT_UNDERSTAND], later: None };
        assert_eq!(
            answer.to_json(),
            json!({
                "00081190": { "vr": "UR", "Value": ["/dicom-web/studies/1.2"] },
                "00081199": { "vr": "SQ", "Value": [{
                    "00081150": { "vr": "UI", "Value": ["1.5"] },
                    "00081155": { "vr": "UI", "Value": ["1.4"] },
                    "00081190": { "vr": "UR", "Value": ["/dicom-web/studies/1.2/series/1.3/instances/1.4"] },
                }] },
                "0008119A": { "vr": "SQ", "Value": [{ "00081197": { "vr": "US", "Value": [0xC000] } }] },
            })
        );
    }

    #[test]
    fn the_status_tells_whether_all_some_or_none_is_stored() {
        let status = |received: Vec<ReceivedAs>, failed: &[u16]| {
            let received = received.into_iter().map(self::received).collect();
            Answer { received, failed: failed.to_vec(), later: None }.respond().map(|answer| answer.status().as_u16())
        };
        assert_eq!(status(vec![ReceivedAs::New, ReceivedAs::Duplicate], &[]), Ok(200));
        assert_eq!(status(vec![ReceivedAs::New], &[PROCESSING_FAILURE]), Ok(202));
        assert_eq!(status(vec![ReceivedAs::Conflict], &[]), Ok(202));
        assert_eq!(status(vec![], &[PROCESSING_FAILURE]), Ok(409));
        assert_eq!(status(vec![], &[]).expect_err("no part").status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn what_may_succeed_later_says_when() {
        let answer = |received: Vec<Received>, later| {
            let answer = Answer { received, failed: vec![OUT_OF_RESOURCES], later: Some(later) }.respond();
            let answer = answer.expect("an answer");
            (answer.status().as_u16(), answer.headers().contains_key(header::RETRY_AFTER))
        };
        assert_eq!(answer(vec![], Later::NoRoom), (507, true));
        assert_eq!(answer(vec![], Later::Quota), (429, true));
        assert_eq!(answer(vec![received(ReceivedAs::New)], Later::NoRoom), (202, true));
    }

    #[test]
    fn a_part_that_is_too_large_holds_no_memory() {
        let mut part = Part::default();
        part.add(&[0; 600], 1000);
        part.add(&[0; 600], 1000);
        part.add(&[0; 600], 1000);
        assert_eq!((part.bytes.len(), part.refused), (0, Some(OUT_OF_RESOURCES)));
    }
}
