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
use maillage_dicom::Uid;
use maillage_store::StoreError;

/// The largest body: a day's largest studies together. One part is bounded by the configuration.
const BODY_BYTES_MAX: u64 = 64 << 30;
/// The most instances in one request; its answer is built in memory.
const PARTS_MAX: usize = 20_000;

/// When to send again what may be taken then, in seconds.
const RETRY_AFTER_S: &str = "60";

/// Failure reasons of parts that are no instance yet, PS3.18 annex I.2.2; those of instances are a C-STORE's.
const OUT_OF_RESOURCES: u16 = 0xA700;
const CANNOT_UNDERSTAND: u16 = 0xC000;
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
    let mut answer = Answer::default();
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
                if answer.parts() == PARTS_MAX {
                    return Err(Problem::too_large(format!("at most {PARTS_MAX} instances are taken at once")));
                }
                let dicom = media.is_none_or(|media| media.essence == "application/dicom");
                part = Part { refused: (!dicom).then_some(CANNOT_UNDERSTAND), ..Part::default() };
            }
            Piece::Content(bytes) => part.add(&bytes, intake.instance_bytes_max),
            Piece::PartEnd => {
                answer.take(&intake, &source, std::mem::take(&mut part)).await;
                // Before more is read: a sender that is faster than it may be waits in TCP.
                pieces.pause(intake.ingest.wait_of(&source)).await;
            }
        }
    }
    answer.respond()
}

fn malformed(error: MultipartError) -> Problem {
    Problem::invalid(format!("body: {error}"))
}

/// The part being read.
#[derive(Debug, Default)]
struct Part {
    bytes: BytesMut,
    /// What came of it, also when none is held.
    len: u64,
    refused: Option<u16>,
}

impl Part {
    /// Adds bytes, or lets go of all of them once they are too many.
    fn add(&mut self, bytes: &[u8], limit: u64) {
        self.len += bytes.len() as u64;
        if self.refused.is_some() {
            return;
        }
        if self.len > limit {
            (self.bytes, self.refused) = (BytesMut::new(), Some(OUT_OF_RESOURCES));
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

/// Why a sender should come back later with what failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Later {
    /// There is no room.
    NoRoom,
    /// It has sent what it may for now.
    TooMuch,
    /// It cannot be stored here now.
    Unavailable,
}

impl Later {
    fn of(error: &IngestError) -> Option<Self> {
        error.is_transient().then_some(match error {
            IngestError::Quota | IngestError::Rate => Self::TooMuch,
            IngestError::Store(StoreError::Full { .. }) => Self::NoRoom,
            _ => Self::Unavailable,
        })
    }

    /// RFC 4918 section 11.5, RFC 6585 section 4, RFC 9110 section 15.6.4.
    fn status(self) -> StatusCode {
        match self {
            Self::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            Self::TooMuch => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// An instance that is not stored, or a part that is none.
#[derive(Debug)]
struct Failure {
    /// Its SOP Class and SOP Instance UID, if they could be read.
    named: Option<(Uid, Uid)>,
    reason: u16,
}

/// What the sender is told.
#[derive(Debug, Default)]
struct Answer {
    received: Vec<Received>,
    failed: Vec<Failure>,
    /// Of those that failed, the last that may yet succeed.
    later: Option<Later>,
}

impl Answer {
    /// Takes in a part that is there.
    async fn take(&mut self, intake: &Intake, source: &Source, part: Part) {
        if let Some(reason) = part.refused {
            intake.metrics.rejected("stow", "part");
            intake.ingest.passed_over(source, part.len);
            self.failed.push(Failure { named: None, reason });
            return;
        }
        match intake.ingest.open(source, part.bytes.freeze()) {
            Ok((announced, dataset)) => {
                let named = (announced.sop_class.clone(), announced.sop_instance.clone());
                match intake.ingest.receive(source.clone(), announced, dataset).await {
                    Ok(received) => self.received.push(received),
                    Err(error) => self.refuse(Some(named), &error),
                }
            }
            Err(error) => self.refuse(None, &error),
        }
    }

    fn refuse(&mut self, named: Option<(Uid, Uid)>, error: &IngestError) {
        self.later = Later::of(error).or(self.later);
        self.failed.push(Failure { named, reason: error.status().code() });
    }

    fn parts(&self) -> usize {
        self.received.len() + self.failed.len()
    }

    /// 200 when all are stored, 202 when some failed or were kept apart. When none is stored, 507, 429 or 503 if
    /// any may be sent again later, else 409. `Retry-After` goes with all that may.
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

    /// The Store Instances Response, PS3.18 annex I.2, in the DICOM JSON model of annex F. What failed stands in the
    /// Failed SOP Sequence (0008,1198), or without a UID that could be read in Other Failures (0008,119A).
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
        let (mut failed, mut others) = (Vec::new(), Vec::new());
        for Failure { named, reason } in &self.failed {
            let mut item = json!({ "00081197": element("US", json!(reason)) });
            if let Some((sop_class, sop_instance)) = named {
                item["00081150"] = element("UI", json!(sop_class.as_str()));
                item["00081155"] = element("UI", json!(sop_instance.as_str()));
                failed.push(item);
            } else {
                others.push(item);
            }
        }
        let mut answer = json!({});
        if let Some(first) = self.received.first()
            && self.received.iter().all(|one| one.study == first.study)
        {
            answer["00081190"] = element("UR", json!(format!("/dicom-web/studies/{}", first.study)));
        }
        for (sequence, items) in [("00081198", failed), ("00081199", items), ("0008119A", others)] {
            if !items.is_empty() {
                answer[sequence] = json!({ "vr": "SQ", "Value": items });
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::body::to_bytes;
    use maillage_dicom::Rejection;
    use maillage_dicom::part10::{FileMeta, header as file_header};
    use maillage_dicom::phantom::CtPhantom;
    use maillage_host::engine::MemoryHome;
    use maillage_host::{Clock, Disk};
    use maillage_store::{Refusal, Store, StoreConfig};
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::Settings;
    use crate::senders::Senders;

    fn received(outcome: ReceivedAs) -> Received {
        let uid = |text: &str| text.to_owned();
        Received { study: uid("1.2"), series: uid("1.3"), sop_instance: uid("1.4"), sop_class: uid("1.5"), outcome }
    }

    fn named() -> Option<(Uid, Uid)> {
        let uid = |text: &str| Uid::parse(text).expect("a uid");
        Some((uid("1.5"), uid("1.6")))
    }

    fn answer(received: Vec<Received>, failed: &[IngestError]) -> Answer {
        let mut answer = Answer { received, ..Answer::default() };
        for error in failed {
            answer.refuse(named(), error);
        }
        answer
    }

    #[test]
    fn the_answer_tells_of_each_instance() {
        let mut answer = answer(vec![received(ReceivedAs::New)], &[IngestError::Store(StoreError::Closed)]);
        answer.refuse(None, &IngestError::Rejected(Rejection::NotDicom));
        assert_eq!(
            answer.to_json(),
            json!({
                "00081190": { "vr": "UR", "Value": ["/dicom-web/studies/1.2"] },
                "00081198": { "vr": "SQ", "Value": [{
                    "00081150": { "vr": "UI", "Value": ["1.5"] },
                    "00081155": { "vr": "UI", "Value": ["1.6"] },
                    "00081197": { "vr": "US", "Value": [0xA700] },
                }] },
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
        let status = |received: Vec<ReceivedAs>, failed: &[IngestError]| {
            let received = received.into_iter().map(self::received).collect();
            answer(received, failed).respond().map(|answer| answer.status().as_u16())
        };
        assert_eq!(status(vec![ReceivedAs::New, ReceivedAs::Duplicate], &[]), Ok(200));
        assert_eq!(status(vec![ReceivedAs::New], &[IngestError::OtherPatient]), Ok(202));
        assert_eq!(status(vec![ReceivedAs::Conflict], &[]), Ok(202));
        assert_eq!(status(vec![], &[IngestError::OtherPatient]), Ok(409));
        assert_eq!(status(vec![], &[]).expect_err("no part").status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn what_is_not_the_bytes_fault_may_be_sent_again_and_what_is_may_not() {
        let told = |received: &[Received], error: IngestError| {
            let (reason, comment) = (error.status().code(), error.to_string());
            let response = answer(received.to_vec(), &[error]).respond().expect("an answer");
            let (status, again) = (response.status().as_u16(), response.headers().contains_key(header::RETRY_AFTER));
            (status, again, reason, comment)
        };
        let failed = || Arc::new(io::Error::from(io::ErrorKind::StorageFull));
        for (error, alone) in [
            (IngestError::Quota, 429),
            (IngestError::Rate, 429),
            (IngestError::Store(StoreError::Full { free: 1, reserve: 2 }), 507),
            (IngestError::Store(StoreError::Failed("a write".into())), 503),
            (IngestError::Store(StoreError::Closed), 503),
            (IngestError::Store(StoreError::Landed), 503),
            (IngestError::Store(StoreError::Keys(failed())), 503),
            (IngestError::Store(StoreError::Index(failed())), 503),
            (IngestError::Store(StoreError::Read(failed())), 503),
            (IngestError::Internal("why".to_owned()), 503),
        ] {
            let (status, again, reason, comment) = told(&[], error);
            assert_eq!((status, again, reason), (alone, true, 0xA700), "{comment}");
        }
        let some = [received(ReceivedAs::New)];
        let partly = told(&some, IngestError::Store(StoreError::Closed));
        assert_eq!((partly.0, partly.1, partly.2), (202, true, 0xA700));
        for (error, why) in [
            (IngestError::Rejected(Rejection::NotDicom), 0xC000),
            (IngestError::Store(StoreError::Refused(Refusal::Source)), 0xC000),
            (IngestError::Mismatch("class"), 0xA900),
            (IngestError::OtherPatient, 0xA900),
        ] {
            let (status, again, reason, comment) = told(&[], error);
            assert_eq!((status, again, reason), (409, false, why), "{comment}");
        }
        let both = [IngestError::Store(StoreError::Closed), IngestError::OtherPatient];
        let both = answer(Vec::new(), &both).respond().expect("an answer");
        assert_eq!(both.status(), StatusCode::SERVICE_UNAVAILABLE, "one of them may be taken later");
    }

    #[tokio::test]
    async fn a_store_that_writes_no_more_names_what_is_to_be_sent_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (disk, clock) = (Disk::real(directory.path()), Clock::system());
        let config = StoreConfig { reserve_bytes: 1 << 20, ..StoreConfig::default() };
        let store = Store::open(disk, "", Arc::<MemoryHome>::default(), clock.clone(), config).await.expect("it opens");
        let settings = Settings::from_toml("[node]\nname = \"a\"\n").expect("settings");
        let (metrics, senders) = (Metrics::new(), Senders::new(&settings.into_config()));
        let (gather, _told) = mpsc::unbounded_channel();
        let (patient, may_seal) = (Box::new(|_: &str| None), Box::new(|| true));
        let ingest = Ingest::new(store.clone(), clock, metrics.clone(), senders, gather, patient, may_seal);
        store.close().await.expect("closed");
        let intake = Intake { ingest, metrics, uploads: Arc::new(Semaphore::new(1)), instance_bytes_max: 1 << 20 };

        let (sop_instance, dataset) = CtPhantom { slices: 1, ..CtPhantom::default() }.slice(0);
        let meta = FileMeta {
            sop_class: CtPhantom::SOP_CLASS,
            sop_instance: sop_instance.clone(),
            transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
            source_ae: None,
        };
        let mut body = b"--b\r\nContent-Type: application/dicom\r\n\r\n".to_vec();
        body.extend_from_slice(&file_header(&meta));
        body.extend_from_slice(&dataset);
        body.extend_from_slice(b"\r\n--b--\r\n");
        let kind = HeaderValue::from_static("multipart/related; type=\"application/dicom\"; boundary=b");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
        let response = super::store(State(intake), Extensions::new(), headers, Body::from(body)).await;
        let response = response.expect("an answer");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], RETRY_AFTER_S);
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let failed = &body["00081198"]["Value"][0];
        assert_eq!(failed["00081155"]["Value"], json!([sop_instance.as_str()]), "{body}");
        assert_eq!(failed["00081197"]["Value"], json!([0xA700]));
        assert_eq!(body.get("00081199"), None);
    }

    #[test]
    fn a_part_that_is_too_large_holds_no_memory() {
        let mut part = Part::default();
        part.add(&[0; 600], 1000);
        part.add(&[0; 600], 1000);
        part.add(&[0; 600], 1000);
        assert_eq!((part.bytes.len(), part.len, part.refused), (0, 1800, Some(OUT_OF_RESOURCES)));
    }
}
