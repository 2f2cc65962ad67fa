//! Storage commitment: the word of the mesh that a sender may delete its own images.
//!
//! A sender names instances under a Transaction UID (PS3.4 annex J, PS3.18 section 13). The transaction
//! is durable here before it is answered, and is judged from the replicated state: an instance is safe
//! when holders in two distinct zones have reported the fsync behind a publication that lists it, with
//! the very bytes that are here. Whoever is told "safe" deletes, so whatever cannot be known is not said:
//! without a quorum nothing becomes safe, and after the time-out what is still pending has failed.
//!
//! ```text
//! N-ACTION, POST -> book (durable) -> acknowledged -> judge, at every change of the state
//!                                                       \-> settled (durable) -> report, GET
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use maillage_dicom::dimse::scp::EventLine;
use maillage_dicom::{AeTitle, Uid};
use maillage_host::{Clock, Disk, UnixMillis};
use tokio::sync::watch;

mod asked;
mod book;
mod dimse;
mod judge;
mod record;
mod report;
mod round;

pub(crate) use asked::verdicts;
use book::Book;
pub(crate) use dimse::Desk;
pub(crate) use judge::{Coverage, Verdict};
pub(crate) use record::{Reference, Requester, Settled, Transaction, reason};
pub(crate) use report::{Teller, run as report};
pub(crate) use round::run;

/// The most instances of one transaction: some ten of the longest CT studies.
pub(crate) const REFERENCES_MAX: usize = 20_000;

/// Why a transaction was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// It names nothing.
    #[error("no instance is referenced")]
    Empty,
    /// It names more than [`REFERENCES_MAX`].
    #[error("at most {REFERENCES_MAX} instances are taken in one transaction")]
    TooMany,
    /// The Transaction UID stands for another request.
    #[error("the transaction UID is already in use")]
    Duplicate,
    /// As many are remembered as may be.
    #[error("too many transactions are pending")]
    Full,
    /// It could not be made durable.
    #[error("the transaction cannot be recorded: {0}")]
    NotDurable(String),
}

/// The transactions of this node. Clones share them.
#[derive(Clone)]
pub(crate) struct Commitments(Arc<Shared>);

struct Shared {
    book: tokio::sync::Mutex<Book>,
    /// What `book` holds, for whoever only looks: never held across a write to the disk.
    seen: Mutex<BTreeMap<Uid, Transaction>>,
    /// Associations on which results may be told, with the transfer syntax of their contexts.
    lines: Mutex<BTreeMap<Uid, (EventLine, Uid)>>,
    clock: Clock,
    /// Rises with every change of any transaction.
    changes: watch::Sender<u64>,
}

impl std::fmt::Debug for Commitments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Commitments")
    }
}

impl Commitments {
    /// What the disk remembers. A file that is damaged is logged, set aside and does not stop the node.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) async fn open(disk: Disk, clock: Clock) -> std::io::Result<Self> {
        let (book, transactions) = Book::open(disk).await?;
        let seen = transactions.into_iter().map(|one| (one.uid.clone(), one)).collect();
        let shared = Shared {
            book: tokio::sync::Mutex::new(book),
            seen: Mutex::new(seen),
            lines: Mutex::default(),
            clock,
            changes: watch::Sender::new(0),
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Takes a transaction. When this returns, it is durable. The same request again is the same
    /// transaction: its sender may have lost the answer.
    ///
    /// # Errors
    /// [`RequestError`]; nothing was taken then.
    pub(crate) async fn request(
        &self,
        uid: Uid,
        by: Requester,
        references: Vec<Reference>,
    ) -> Result<(), RequestError> {
        match references.len() {
            0 => return Err(RequestError::Empty),
            len if len > REFERENCES_MAX => return Err(RequestError::TooMany),
            _ => {}
        }
        let mut book = self.0.book.lock().await;
        if let Some(known) = self.get(&uid) {
            let same = known.by == by && known.references == references;
            return if same { Ok(()) } else { Err(RequestError::Duplicate) };
        }
        let transaction = Transaction::new(uid, by, references, self.now());
        let forgotten = {
            let seen = self.seen();
            book::room_for(&seen, transaction.references.len()).ok_or(RequestError::Full)?
        };
        for old in &forgotten {
            self.forget(&mut book, old).await.map_err(not_durable)?;
        }
        book.write(&transaction).await.map_err(not_durable)?;
        self.seen().insert(transaction.uid.clone(), transaction);
        self.changed();
        Ok(())
    }

    /// A transaction as it stands.
    pub(crate) fn get(&self, uid: &Uid) -> Option<Transaction> {
        self.seen().get(uid).cloned()
    }

    /// A transaction once it is settled, or as it stands after `patience`; `None` when it is not known.
    pub(crate) async fn settled_within(&self, uid: &Uid, patience: Duration) -> Option<Transaction> {
        let mut changes = self.changes();
        let settled = changes.wait_for(|_| self.seen().get(uid).is_none_or(|one| one.settled.is_some()));
        // Late: the caller is shown what there is.
        let _ = tokio::time::timeout(patience, settled).await;
        self.get(uid)
    }

    /// Told at every change of a transaction.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Remembers the association on which a transaction is asked for. Whoever asks again for what is settled long
    /// since is told at once.
    fn keep_line(&self, uid: &Uid, line: EventLine, transfer_syntax: Uid) {
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|_, (line, _)| !line.is_closed());
        lines.insert(uid.clone(), (line, transfer_syntax));
        drop(lines);
        self.changed();
    }

    /// Whether a transaction was asked for on an association that is still open, and not yet tried.
    fn has_line(&self, uid: &Uid) -> bool {
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(uid).is_some_and(|(line, _)| !line.is_closed())
    }

    /// The association on which a transaction was asked for, once, if it is still open.
    fn take_line(&self, uid: &Uid) -> Option<(EventLine, Uid)> {
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.remove(uid).filter(|(line, _)| !line.is_closed())
    }

    /// Transactions for which `wanted` says so, in the order of their UIDs.
    pub(crate) fn select(&self, wanted: impl Fn(&Transaction) -> bool) -> Vec<Transaction> {
        self.seen().values().filter(|one| wanted(one)).cloned().collect()
    }

    /// Those whose requesters are still to be told what was found, with the requesters' titles.
    fn untold(&self) -> BTreeMap<Uid, AeTitle> {
        let seen = self.seen();
        let untold = seen.values().filter(|one| one.settled.is_some() && !one.is_told());
        untold
            .filter_map(|one| match &one.by {
                Requester::Dimse { calling, .. } => Some((one.uid.clone(), calling.clone())),
                Requester::Web => None,
            })
            .collect()
    }

    /// Changes a transaction, durably first. One that was forgotten meanwhile stays so.
    pub(crate) async fn change(&self, uid: &Uid, change: impl FnOnce(&mut Transaction)) -> std::io::Result<()> {
        let mut book = self.0.book.lock().await;
        let Some(mut transaction) = self.get(uid) else { return Ok(()) };
        change(&mut transaction);
        book.write(&transaction).await?;
        self.seen().insert(uid.clone(), transaction);
        self.changed();
        Ok(())
    }

    /// Forgets transactions whose result has been kept for long enough.
    pub(crate) async fn forget_old(&self) -> std::io::Result<()> {
        let now = self.now();
        let old = self.select(|one| one.is_over_at(now));
        let mut book = self.0.book.lock().await;
        for one in old {
            self.forget(&mut book, &one.uid).await?;
        }
        Ok(())
    }

    async fn forget(&self, book: &mut Book, uid: &Uid) -> std::io::Result<()> {
        book.remove(uid).await?;
        self.seen().remove(uid);
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<Uid, Transaction>> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> UnixMillis {
        self.0.clock.now()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }
}

fn not_durable(error: std::io::Error) -> RequestError {
    RequestError::NotDurable(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
