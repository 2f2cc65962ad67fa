//! Where transactions are kept: a file each, named by the hash of its Transaction UID.
//!
//! A file each, since a result of twenty thousand instances changes as a whole, and since a damaged one
//! then costs one transaction. `Disk::replace` gives the old or the new one after a crash.

use std::collections::BTreeMap;
use std::io;

use maillage_dicom::Uid;
use maillage_host::Disk;

use super::record::Transaction;

/// Where they lie in the data directory.
const DIRECTORY: &str = "commitment";
/// How a transaction's file ends …
const SUFFIX: &str = ".transaction";
/// … and one that could not be read, kept for whoever looks into it.
const DAMAGED: &str = "damaged";
/// The most transactions remembered: a hundred hospitals with a hundred examinations each in the week
/// for which results are kept, and as many again.
const TRANSACTIONS_MAX: usize = 20_000;
/// The most instances of all of them, which bounds memory: some 150 bytes each.
const REFERENCES_ALL_MAX: usize = 2_000_000;

/// The files.
#[derive(Debug)]
pub(super) struct Book {
    disk: Disk,
    made: bool,
}

impl Book {
    /// Reads what there is.
    ///
    /// # Errors
    /// When the disk fails; a damaged file is set aside.
    pub(super) async fn open(disk: Disk) -> io::Result<(Self, Vec<Transaction>)> {
        let names = disk.list(DIRECTORY).await?;
        let mut transactions = Vec::new();
        for name in names.iter().filter(|name| name.ends_with(SUFFIX)) {
            let path = format!("{DIRECTORY}/{name}");
            match Transaction::decode(&disk.read(&path).await?) {
                Ok(transaction) if path_of(&transaction.uid) == path => transactions.push(transaction),
                Ok(_) => tracing::error!(path, "a storage commitment under another's name: left out"),
                Err(error) => {
                    tracing::error!(path, %error, "a storage commitment is lost: its sender will not be told");
                    disk.rename(&path, &format!("{path}.{DAMAGED}")).await?;
                }
            }
        }
        Ok((Self { disk, made: !names.is_empty() }, transactions))
    }

    /// Makes a transaction durable as it is.
    ///
    /// # Errors
    /// When the disk fails: the file is then the old one or the new.
    pub(super) async fn write(&mut self, transaction: &Transaction) -> io::Result<()> {
        if !self.made {
            self.disk.create_dir(DIRECTORY).await?;
            self.made = true;
        }
        let bytes = transaction.encode().map_err(io::Error::other)?;
        self.disk.replace(&path_of(&transaction.uid), bytes).await
    }

    /// Removes a transaction. After a crash it may be back.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) async fn remove(&mut self, uid: &Uid) -> io::Result<()> {
        self.disk.remove(&path_of(uid)).await
    }
}

/// Which transactions must be forgotten to make room for one of so many references: the oldest of which
/// nobody waits for anything. `None` when there is no room even then.
pub(super) fn room_for(known: &BTreeMap<Uid, Transaction>, references: usize) -> Option<Vec<Uid>> {
    room_within(known, references, TRANSACTIONS_MAX, REFERENCES_ALL_MAX)
}

fn room_within(known: &BTreeMap<Uid, Transaction>, references: usize, most: usize, sum: usize) -> Option<Vec<Uid>> {
    let mut count = known.len() + 1;
    let mut all = known.values().map(|one| one.references.len()).sum::<usize>() + references;
    let fits = |count: usize, all: usize| count <= most && all <= sum;
    if fits(count, all) {
        return Some(Vec::new());
    }
    let mut ended: Vec<&Transaction> = known.values().filter(|one| one.is_told()).collect();
    ended.sort_by_key(|one| one.asked_at);
    let mut forgotten = Vec::new();
    for one in ended {
        (count, all) = (count - 1, all - one.references.len());
        forgotten.push(one.uid.clone());
        if fits(count, all) {
            return Some(forgotten);
        }
    }
    None
}

fn path_of(uid: &Uid) -> String {
    format!("{DIRECTORY}/{}{SUFFIX}", blake3::hash(uid.as_str().as_bytes()).to_hex())
}

#[cfg(test)]
mod tests {
    use maillage_consensus::command::UnixMillisField;
    use maillage_host::UnixMillis;

    use super::*;
    use crate::commitment::{Reference, Requester, Settled};

    #[test]
    fn the_oldest_ended_ones_make_room_and_pending_ones_never_do() {
        let uid = |text: &str| Uid::parse(text).expect("a uid");
        let reference = || Reference { sop_class: uid("1.5"), sop_instance: uid("1.6") };
        let one = |n: u64, ended: bool| {
            let references = (0..10).map(|_| reference()).collect();
            let mut one = Transaction::new(uid(&format!("1.{n}")), Requester::Web, references, UnixMillis(100 - n));
            one.settled = ended.then(|| Settled { at: UnixMillisField(1), failed: Vec::new() });
            (one.uid.clone(), one)
        };
        let known = BTreeMap::from([one(1, true), one(2, true), one(3, false)]);
        assert_eq!(room_within(&known, 10, 4, 40), Some(vec![]));
        assert_eq!(room_within(&known, 10, 3, 99), Some(vec![uid("1.2")]), "the oldest ended one");
        assert_eq!(room_within(&known, 20, 9, 30), Some(vec![uid("1.2"), uid("1.1")]));
        assert_eq!(room_within(&known, 21, 9, 30), None);
    }
}
