//! WADO-RS (PS3.18 section 10.4): studies, series and instances, in the transfer syntax in which they
//! were received, wherever in the mesh their chunks are.
//!
//! A producer task sends one instance after another into a short channel, so memory is bounded
//! whatever the study's size. Its first piece is awaited before the answer's status is chosen: what
//! fails by then is a problem. What fails later breaks the connection off, within a declared length
//! and without the closing boundary, so that no client takes a part of a study for the whole.

use std::collections::BTreeSet;
use std::io;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::app::{App, try_place};
use super::extract::{UrlPath, parse_uid};
use super::multipart::PartWriter;
use super::negotiate::{Framing, negotiate};
use super::problem::Problem;
use crate::images::{ImagesError, InstanceRef, StudyImages};
use crate::node::Node;

/// Pieces of at most 1 MiB between the producer and a client's socket.
const PIECES_AHEAD: usize = 4;

/// What is asked for, by UID.
#[derive(Debug)]
struct Wanted {
    study: String,
    series: Option<String>,
    instance: Option<String>,
}

/// `GET /dicom-web/studies/{study}`
pub(super) async fn study(
    State(app): State<App>,
    UrlPath(study): UrlPath<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    retrieve(app, Wanted { study, series: None, instance: None }, &headers).await
}

/// `GET /dicom-web/studies/{study}/series/{series}`
pub(super) async fn series(
    State(app): State<App>,
    UrlPath((study, series)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    retrieve(app, Wanted { study, series: Some(series), instance: None }, &headers).await
}

/// `GET /dicom-web/studies/{study}/series/{series}/instances/{instance}`
pub(super) async fn instance(
    State(app): State<App>,
    UrlPath((study, series, instance)): UrlPath<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    retrieve(app, Wanted { study, series: Some(series), instance: Some(instance) }, &headers).await
}

async fn retrieve(app: App, wanted: Wanted, headers: &HeaderMap) -> Result<Response, Problem> {
    wanted.check()?;
    let place = try_place(&app.limits.retrievals, "retrievals")?;
    let Some(StudyImages { instances, missing }) = app.node.images().study(&wanted.study).await? else {
        return Err(Problem::no_such_study("the mesh knows no such images"));
    };
    let instances: Vec<InstanceRef> = instances.into_iter().filter(|instance| wanted.matches(instance)).collect();
    if instances.is_empty() && missing > 0 {
        return Err(Problem::unreachable(format!("{missing} instances of the study are on no site that answers")));
    }
    if instances.is_empty() {
        return Err(Problem::no_such_study("the mesh knows no such images"));
    }
    let stored: BTreeSet<String> = instances.iter().map(|instance| instance.transfer_syntax.clone()).collect();
    let accept = accept_of(headers)?;
    let framing = negotiate(accept.as_deref(), wanted.instance.is_some() && instances.len() == 1, &stored)
        .map_err(|refused| Problem::not_acceptable(refused.to_string()))?;
    let mut answer = respond(app.node, instances, framing, place).await?;
    if missing > 0 {
        // The rest of a study is better than none of it, as long as nobody takes it for the whole.
        let warning = format!("299 maillage \"{missing} instances of this study are on no site that answers\"");
        if let Ok(warning) = HeaderValue::from_str(&warning) {
            answer.headers_mut().insert(header::WARNING, warning);
        }
    }
    Ok(answer)
}

impl Wanted {
    fn check(&self) -> Result<(), Problem> {
        parse_uid("study", &self.study)?;
        self.series.as_deref().map(|uid| parse_uid("series", uid)).transpose()?;
        self.instance.as_deref().map(|uid| parse_uid("instance", uid)).transpose()?;
        Ok(())
    }

    fn matches(&self, instance: &InstanceRef) -> bool {
        self.series.as_ref().is_none_or(|series| *series == instance.series)
            && self.instance.as_ref().is_none_or(|uid| *uid == instance.sop_instance)
    }
}

/// All `Accept` lines as one.
fn accept_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let lines: Result<Vec<&str>, _> = headers.get_all(header::ACCEPT).iter().map(HeaderValue::to_str).collect();
    let lines = lines.map_err(|_| Problem::not_acceptable("the accept header is malformed"))?;
    Ok((!lines.is_empty()).then(|| lines.join(",")))
}

async fn respond(
    node: Node,
    instances: Vec<InstanceRef>,
    framing: Framing,
    place: OwnedSemaphorePermit,
) -> Result<Response, Problem> {
    let writer = PartWriter::new();
    let len = body_len(&node, &instances, framing, &writer);
    let content_type = match (framing, instances.first()) {
        (Framing::Single, Some(only)) => format!("application/dicom; transfer-syntax={}", only.transfer_syntax),
        _ => writer.content_type(),
    };
    let (pieces, mut produced) = mpsc::channel(PIECES_AHEAD);
    maillage_host::spawn(async move {
        let _place = place;
        produce(&node, &instances, framing, &writer, &pieces).await;
    });
    let first = match produced.recv().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return Err(error.into()),
        None => return Err(Problem::internal("nothing was produced")),
    };
    let rest = ReceiverStream::new(produced).map(|piece| {
        piece.map_err(|error| {
            tracing::warn!(%error, "retrieval broken off");
            io::Error::other(error)
        })
    });
    let body = Body::from_stream(futures::stream::once(std::future::ready(Ok(first))).chain(rest));
    // Every UID in it was checked when its manifest was decoded.
    let content_type = HeaderValue::from_str(&content_type).map_err(|_| Problem::internal("content type"))?;
    let headers = [(header::CONTENT_TYPE, content_type), (header::CONTENT_LENGTH, HeaderValue::from(len))];
    Ok((headers, body).into_response())
}

/// The body's exact length: a client that gets less knows that it was cut.
fn body_len(node: &Node, instances: &[InstanceRef], framing: Framing, writer: &PartWriter) -> u64 {
    let part = |(number, instance): (usize, &InstanceRef)| {
        let len = node.images().part10_len(instance);
        match framing {
            Framing::Single => len,
            Framing::Multipart => len + writer.opening(number == 0, &instance.transfer_syntax, len).len() as u64,
        }
    };
    let closing = if framing == Framing::Multipart { writer.closing().len() as u64 } else { 0 };
    instances.iter().enumerate().map(part).sum::<u64>() + closing
}

type Pieces = mpsc::Sender<Result<Bytes, ImagesError>>;

/// Sends everything, until the first error or until the client leaves.
async fn produce(node: &Node, instances: &[InstanceRef], framing: Framing, writer: &PartWriter, pieces: &Pieces) {
    for (number, instance) in instances.iter().enumerate() {
        let images = node.images();
        let opening = match framing {
            Framing::Multipart => writer.opening(number == 0, &instance.transfer_syntax, images.part10_len(instance)),
            Framing::Single => Bytes::new(),
        };
        if send_instance(opening, images.stream(instance), pieces).await.is_none() {
            return;
        }
    }
    if framing == Framing::Multipart {
        // A client that left needs no closing.
        let _ = pieces.send(Ok(writer.closing())).await;
    }
}

/// Sends `opening` and a file; `None` when it failed or the client left. Nothing is sent before the
/// file's second piece is there: the first is a header made here, and only chunks prove that the
/// images can be had.
async fn send_instance(
    opening: Bytes,
    file: impl Stream<Item = Result<Bytes, ImagesError>>,
    pieces: &Pieces,
) -> Option<()> {
    let mut file = std::pin::pin!(file);
    let mut beginning = BytesMut::from(opening);
    let mut next = file.next().await;
    if let Some(Ok(header)) = &next {
        beginning.extend_from_slice(header);
        next = file.next().await;
    }
    let mut piece = Ok(beginning.freeze());
    while let Some(following) = next {
        if following.is_err() {
            // An error takes the place of what was held back.
            piece = following;
            break;
        }
        pieces.send(std::mem::replace(&mut piece, following)).await.ok()?;
        next = file.next().await;
    }
    let whole = piece.is_ok();
    pieces.send(piece).await.ok()?;
    whole.then_some(())
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use maillage_store::Hash;

    use super::*;

    async fn sent(file: Vec<Result<&'static str, ()>>) -> (Vec<String>, bool) {
        let file = file.into_iter().map(|piece| match piece {
            Ok(text) => Ok(Bytes::from(text)),
            Err(()) => Err(ImagesError::Unavailable(Hash([1; 32]))),
        });
        let (pieces, mut produced) = mpsc::channel(99);
        let whole = send_instance(Bytes::from("--b "), stream::iter(file), &pieces).await.is_some();
        drop(pieces);
        let mut sent = Vec::new();
        while let Some(piece) = produced.recv().await {
            sent.push(piece.map_or("error".to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned()));
        }
        (sent, whole)
    }

    #[tokio::test]
    async fn nothing_is_sent_before_the_first_chunk_is_there() {
        assert_eq!(
            sent(vec![Ok("head "), Ok("one"), Ok("two")]).await,
            (vec!["--b head ".into(), "one".into(), "two".into()], true)
        );
        assert_eq!(sent(vec![Ok("head "), Err(())]).await, (vec!["error".into()], false));
        assert_eq!(sent(vec![Err(())]).await, (vec!["error".into()], false));
        assert_eq!(sent(vec![Ok("head ")]).await, (vec!["--b head ".into()], true), "an empty data set");
    }

    #[tokio::test]
    async fn a_failure_in_mid_file_ends_it_with_the_error() {
        let (sent, whole) = sent(vec![Ok("head "), Ok("one"), Err(()), Ok("two")]).await;
        assert_eq!(sent, ["--b head ", "error"]);
        assert!(!whole);
    }
}
