//! Sending what is spooled: the schedule says what and where, this does it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use maillage_consensus::ids::{Name, UidText};
use maillage_host::UnixMillis;
use maillage_store::{InstanceManifest, StoreError};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::ask::{AskError, answer, ask, open};
use super::schedule::{Key, Spooled};
use super::wire::{Ask, Kept, Offer, Reply};

/// With nothing to do, the schedule is looked at again after this long at the latest.
const IDLE: Duration = Duration::from_secs(1);
/// All of the spool is looked at no more often than this: there may be an outage's images in it.
const LOOK: Duration = Duration::from_millis(250);
/// Studies whose sender is done and that are not through yet; the hint is worth no more memory.
const DONE_MAX: usize = 10_000;

/// What became of an offer.
#[derive(Debug)]
enum Sent {
    /// It is durable there.
    Stored(Kept),
    /// It is not taken.
    Rejected(String),
    /// Not now.
    NotNow(String),
    /// It was purged since it came here, which was then.
    Purged(UnixMillis),
    /// Nothing is known.
    Lost(AskError),
    /// It cannot be read here, and is for whoever can mend it.
    Damaged(StoreError),
    /// It cannot be read here just now.
    Unread(StoreError),
}

impl From<AskError> for Sent {
    fn from(error: AskError) -> Self {
        Self::Lost(error)
    }
}

impl From<StoreError> for Sent {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt(_)
            | StoreError::Missing(_)
            | StoreError::Contradictory(_)
            | StoreError::KeyDestroyed(_)
            | StoreError::KeyUnknown { .. }
            | StoreError::Attributes(_)
            | StoreError::Manifest(_) => Self::Damaged(error),
            // The machine: descriptors or memory that it has none of left come back, and a damaged index is made anew.
            _ => Self::Unread(error),
        }
    }
}

/// Sends until `shutdown`. `done` tells of studies whose sender is done.
pub(super) async fn run(gateway: Gateway, mut done: mpsc::UnboundedReceiver<String>, shutdown: CancellationToken) {
    let mut sending: FuturesUnordered<BoxFuture<'_, (Key, u64, Sent)>> = FuturesUnordered::new();
    let mut over: BTreeSet<String> = BTreeSet::new();
    let mut hints: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    let mut look_at = Instant::now();
    loop {
        let now = Instant::now();
        if now >= look_at {
            look_at = now + LOOK;
            let again = gateway.schedule().resend(now);
            if again > 0 {
                tracing::warn!(instances = again, "sent again: who took them is gone, or has not made them safe");
            }
            for study in through(&gateway, &mut over) {
                hints.push(Box::pin(hint(&gateway, study)));
            }
        }
        while let Some((key, centre)) = gateway.take_next() {
            let gateway = &gateway;
            sending.push(Box::pin(async move {
                let spooled = gateway.schedule().get(&key).map(|(spooled, _)| spooled.clone());
                let sent = match spooled {
                    Some(spooled) => push(gateway, &key, &spooled, centre).await,
                    None => Sent::Purged(UnixMillis::default()),
                };
                (key, centre, sent)
            }));
        }
        let wake = gateway.schedule().wake_at(now).unwrap_or(now + IDLE).min(now + IDLE);
        let wake = if over.is_empty() { wake } else { wake.min(look_at) };
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some((key, centre, sent)) = sending.next() => gateway.sent(&key, centre, sent).await,
            Some(()) = hints.next() => {}
            Some(study) = done.recv() => if over.len() < DONE_MAX {
                over.insert(study);
            },
            () = gateway.0.stir.notified() => {}
            () = sleep_until(wake) => {}
        }
    }
}

/// The studies whose sender is done, and of which nothing is left to send.
fn through(gateway: &Gateway, over: &mut BTreeSet<String>) -> Vec<String> {
    let schedule = gateway.schedule();
    if schedule.current().is_none() {
        return Vec::new();
    }
    let open = schedule.open_of(over);
    over.extract_if(.., |study| !open.contains(study)).collect()
}

/// Passes on that a study's sender is done. Nothing depends on it but how soon the study is published.
async fn hint(gateway: &Gateway, study: String) {
    let (Some(centre), Ok(study)) = (gateway.schedule().current(), UidText::filled(study)) else { return };
    if let Err(error) = ask(gateway.lines(), centre, &Ask::SenderDone { study }).await {
        tracing::debug!(centre, %error, "the end of a study was not passed on");
    }
}

impl Gateway {
    fn take_next(&self) -> Option<(Key, u64)> {
        self.schedule().next(Instant::now())
    }

    /// Notes what became of an instance.
    async fn sent(&self, key: &Key, centre: u64, sent: Sent) {
        let now = Instant::now();
        let outcome = match sent {
            Sent::Stored(Kept::New) => "new",
            Sent::Stored(Kept::Duplicate) => "duplicate",
            Sent::Stored(Kept::Conflict) | Sent::Rejected(_) => "rejected",
            Sent::NotNow(_) => "not-now",
            Sent::Purged(_) => "purged",
            Sent::Lost(_) => "lost",
            Sent::Damaged(_) => "damaged",
            Sent::Unread(_) => "unread",
        };
        self.metrics().gateway().pushed(outcome);
        match sent {
            Sent::Stored(Kept::New | Kept::Duplicate) => self.schedule().stored(key, centre, now),
            Sent::Stored(Kept::Conflict) => self.set_apart(key, Some(centre), "uid-conflict"),
            Sent::Rejected(reason) => self.set_apart(key, Some(centre), &reason),
            Sent::NotNow(why) => {
                tracing::debug!(centre, why, "a centre does not take an instance now");
                self.schedule().not_now(key, centre, now);
            }
            Sent::Lost(error) => {
                tracing::info!(centre, %error, "an instance goes to another centre");
                self.schedule().lost(key, centre, now);
            }
            Sent::Damaged(error) => {
                tracing::error!(%error, "an instance of the spool is damaged");
                self.set_apart(key, None, "damaged");
            }
            Sent::Unread(error) => {
                tracing::warn!(%error, "an instance of the spool cannot be read just now");
                self.schedule().unread(key, now);
            }
            Sent::Purged(received_at) => {
                // Set apart first: whatever happens to the disk, it is not sent.
                if !self.schedule().purged(key, received_at) {
                    return self.schedule().came_again(key, centre, now);
                }
                if let Err(error) = self.drop_instances(std::slice::from_ref(key)).await {
                    tracing::error!(%error, "what was purged is still in the spool");
                }
            }
        }
    }

    fn set_apart(&self, key: &Key, centre: Option<u64>, reason: &str) {
        tracing::warn!(centre, reason, "no centre takes an instance: it stays in the spool");
        self.schedule().rejected(key, centre, reason);
    }
}

/// Offers an instance to a centre, and sends it if it is wanted.
async fn push(gateway: &Gateway, key: &Key, spooled: &Spooled, centre: u64) -> Sent {
    let manifest = match gateway.store().instance_manifest(spooled.manifest).await {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return StoreError::Missing(spooled.manifest).into(),
        Err(error) => return error.into(),
    };
    let offer = Ask::Offer(Offer {
        study: UidText::fitted(&manifest.study_uid),
        sop_instance: UidText::fitted(&manifest.sop_instance),
        sop_class: UidText::fitted(&manifest.sop_class),
        transfer_syntax: UidText::fitted(&manifest.transfer_syntax),
        dataset: key.dataset.0,
        bytes: manifest.total_len,
        source: Name::fitted(&spooled.source),
        here_by: gateway.marks().here_by(spooled.received_at),
        foreign_preamble: manifest.flags.foreign_preamble,
    });
    let mut line = match open(gateway.lines(), centre, &offer).await {
        Ok(line) => line,
        Err(error) => return error.into(),
    };
    match answer(&mut line.reader).await {
        Ok(Reply::Send) => {}
        Ok(reply) => return of_reply(reply, spooled),
        Err(error) => return error.into(),
    }
    let (mut writer, mut reader) = (line.writer, line.reader);
    let writing = write_data_set(gateway, &manifest, &mut writer);
    let mut answering = std::pin::pin!(answer(&mut reader));
    let mut writing = std::pin::pin!(writing);
    let mut written = false;
    // A centre that has seen enough says so before the end.
    loop {
        tokio::select! {
            biased;
            reply = answering.as_mut() => return match reply {
                Ok(reply) => of_reply(reply, spooled),
                Err(error) => error.into(),
            },
            result = writing.as_mut(), if !written => match result {
                // A line that breaks is told by the silence at its other end.
                Ok(()) | Err(WriteError::Line) => written = true,
                Err(WriteError::Store(error)) => return error.into(),
            },
        }
    }
}

fn of_reply(reply: Reply, spooled: &Spooled) -> Sent {
    match reply {
        Reply::Have => Sent::Stored(Kept::Duplicate),
        Reply::Stored(kept) => Sent::Stored(kept),
        Reply::Rejected { reason } => Sent::Rejected(reason.to_string()),
        Reply::NotNow { why } => Sent::NotNow(why.to_string()),
        Reply::Purged => Sent::Purged(spooled.received_at),
        _ => Sent::Lost(AskError::Unexpected),
    }
}

enum WriteError {
    Line,
    Store(StoreError),
}

/// Sends the data set as it came, each piece verified as it is read.
async fn write_data_set(
    gateway: &Gateway,
    manifest: &InstanceManifest,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), WriteError> {
    let mut pieces = std::pin::pin!(gateway.store().read_instance(manifest));
    while let Some(piece) = pieces.next().await {
        writer.write_all(&piece.map_err(WriteError::Store)?).await.map_err(|_| WriteError::Line)?;
    }
    writer.shutdown().await.map_err(|_| WriteError::Line)
}
