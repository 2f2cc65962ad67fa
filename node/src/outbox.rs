//! The outbox: what a site that is cut off from the quorum takes down, durably, and sends afterwards.
//!
//! Two things go in: exams taken by **break glass**, with what was read of them, and **commands** (a
//! report under an ordinary claim, an addendum, a note) that no quorum could decide. Nothing is
//! acknowledged before it is synced to the journal; once a quorum is reached everything is proposed under
//! command ids that stay the same over restarts, so that it takes effect once; what the mesh decides is
//! recorded, shown for a day, and forgotten, unless a person must take note of it.
//!
//! ```text
//! HTTP --Ask--> keep (owns the journal) --watch--> book --> send (proposes, asks `keep` to settle)
//! ```
//! One task owns the journal and writes one record at a time; everybody else reads the book that it
//! publishes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use maillage_consensus::command::{Command, Envelope, UnixMillisField};
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_host::{Clock, Disk};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

mod book;
mod desk;
mod journal;
mod local;
mod record;
mod send;

pub(crate) use book::{Book, Counts, Entry, What, text_of};
pub(crate) use desk::{Ask, Refused};
pub use journal::OpenJournalError;
pub(crate) use journal::Owner;
use journal::{Journal, WriteError};
pub(crate) use local::{Local, images_of};
#[cfg(test)]
pub(crate) use record::Record;
#[cfg(not(test))]
use record::Record;
pub(crate) use record::{End, GlassToken};
pub(crate) use send::run as send;

/// Asks that wait for the journal.
const ASKS_QUEUE: usize = 64;
/// How often what is old is looked for.
const FORGET_EVERY: Duration = Duration::from_mins(10);
/// A journal that is this much longer than what it says is written anew.
const SLACK_BYTES: u64 = 1 << 20;

/// The outbox. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Outbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    asks: mpsc::Sender<(Ask, oneshot::Sender<Result<Entry, Refused>>)>,
    book: watch::Receiver<Arc<Book>>,
    failure: watch::Receiver<Option<WriteError>>,
    keeper: Mutex<Option<Keeper>>,
}

/// Owns the journal.
#[derive(Debug)]
struct Keeper {
    journal: Journal,
    clock: Clock,
    asks: mpsc::Receiver<(Ask, oneshot::Sender<Result<Entry, Refused>>)>,
    book: watch::Sender<Arc<Book>>,
    failure: watch::Sender<Option<WriteError>>,
}

impl Outbox {
    /// Opens the outbox of `owner`.
    ///
    /// # Errors
    /// [`OpenJournalError`].
    pub(crate) async fn open(disk: Disk, owner: Owner, clock: Clock) -> Result<Self, OpenJournalError> {
        let (journal, found) = Journal::open(disk, owner).await?;
        if found.torn > 0 {
            tracing::warn!(bytes = found.torn, "the outbox's last record was torn by a crash: nobody was promised it");
        }
        let book = Book::of(found.records).map_err(|error| OpenJournalError::Foreign(error.to_string()))?;
        let counts = book.counts();
        if counts != Counts::default() {
            tracing::info!(waiting = counts.waiting, unacknowledged = counts.unacknowledged, "outbox opened");
        }
        let (asks, asked) = mpsc::channel(ASKS_QUEUE);
        let (book_tx, book) = watch::channel(Arc::new(book));
        let (failure_tx, failure) = watch::channel(None);
        let keeper = Keeper { journal, clock, asks: asked, book: book_tx, failure: failure_tx };
        Ok(Self(Arc::new(Shared { asks, book, failure, keeper: Mutex::new(Some(keeper)) })))
    }

    /// What it holds now.
    pub(crate) fn book(&self) -> Arc<Book> {
        Arc::clone(&self.0.book.borrow())
    }

    /// Told of every change of the book.
    fn watch(&self) -> watch::Receiver<Arc<Book>> {
        self.0.book.clone()
    }

    /// Why it takes nothing more, if the last thing could not be written.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.failure.borrow().as_ref().map(ToString::to_string)
    }

    /// Asks for something; durable when it returns.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Entry, Refused> {
        let (answer_tx, answer) = oneshot::channel();
        self.0.asks.send((ask, answer_tx)).await.map_err(|_| Refused::Stopping)?;
        answer.await.map_err(|_| Refused::Stopping)?
    }

    /// Queues a command of this site, durably.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) async fn queue(
        &self,
        site: SiteId,
        id: CommandId,
        user: Name,
        command: Command,
    ) -> Result<Entry, Refused> {
        let envelope = Envelope { id, at: UnixMillisField::default(), site, user, command };
        self.ask(Ask::Queue(Box::new(envelope))).await
    }

    /// Serves what is asked until `shutdown`. A second call does nothing.
    pub(crate) async fn keep(self, shutdown: CancellationToken) {
        let keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut keeper) = keeper else { return };
        // What was read at the start need not be what is on the disk: see the journal.
        let _ = keeper.mend().await;
        let mut tick = tokio::time::interval(FORGET_EVERY);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => keeper.forget().await,
                asked = keeper.asks.recv() => {
                    let Some((ask, answer)) = asked else { return };
                    let result = keeper.serve(ask).await;
                    // Whoever asked may have gone; what was written stands.
                    let _ = answer.send(result);
                }
            }
        }
    }
}

impl Keeper {
    async fn serve(&mut self, ask: Ask) -> Result<Entry, Refused> {
        let book = Arc::clone(&self.book.borrow());
        let dropped = match &ask {
            Ask::Drop { id } => book.get(*id).cloned(),
            _ => None,
        };
        let settles = matches!(ask, Ask::Settle { .. });
        let decision = desk::decide(&book, ask, self.clock.now().into())?;
        let Some(record) = decision.write else {
            return book.get(decision.id).cloned().ok_or(Refused::NoSuchEntry);
        };
        let written = self.write(&record).await;
        match &written {
            // What the mesh decided is true whether or not it can be written here: without the record it
            // is asked again after a restart, under the same command id.
            Err(error) if settles => tracing::warn!(%error, "an outcome is not recorded in the outbox"),
            Err(error) => return Err(error.clone().into()),
            Ok(()) => {}
        }
        let mut after = (*book).clone();
        after.apply(record).map_err(|_| Refused::NoSuchEntry)?;
        let entry = after.get(decision.id).cloned().or(dropped);
        self.book.send_replace(Arc::new(after));
        entry.ok_or(Refused::NoSuchEntry)
    }

    async fn write(&mut self, record: &Record) -> Result<(), WriteError> {
        let written = match self.mend().await {
            Ok(()) => self.journal.append(record).await,
            Err(error) => Err(error),
        };
        self.failure.send_replace(written.as_ref().err().cloned());
        written
    }

    /// Writes the journal anew if it cannot be relied on.
    async fn mend(&mut self) -> Result<(), WriteError> {
        if !self.journal.is_suspect() {
            return Ok(());
        }
        let records = self.book.borrow().records();
        self.rewrite(records).await
    }

    /// Writes the journal anew, and says for all to see if that fails.
    async fn rewrite(&mut self, records: Vec<Record>) -> Result<(), WriteError> {
        let written = self.journal.rewrite(records).await;
        if let Err(error) = &written {
            tracing::error!(%error, "the outbox's journal cannot be written: nothing is taken down");
        }
        self.failure.send_replace(written.as_ref().err().cloned());
        written
    }

    /// Forgets what is old. Writes the journal anew if that makes it small, or if it cannot be relied on.
    async fn forget(&mut self) {
        let mut book = (**self.book.borrow()).clone();
        let old = book.forgettable(self.clock.now().into());
        for id in &old {
            // It was found there just now.
            let _ = book.apply(Record::Dropped { id: *id });
        }
        let records = book.records();
        let said: usize = records.iter().map(|record| postcard::to_stdvec(record).map_or(0, |bytes| bytes.len())).sum();
        let is_small = self.journal.len() <= said as u64 * 2 + SLACK_BYTES;
        if old.is_empty() && is_small && !self.journal.is_suspect() {
            return;
        }
        if self.rewrite(records).await.is_ok() {
            self.book.send_replace(Arc::new(book));
        }
    }
}

#[cfg(test)]
mod tests;
