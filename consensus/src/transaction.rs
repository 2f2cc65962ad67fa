//! Reads of the engine overlaid with the writes of the commands being applied.
//!
//! Several committed entries are applied in one engine batch; each must see what those before it
//! wrote. A transaction is that overlay. [`Transaction::mark`] and [`Transaction::roll_back`] let a
//! command that is refused half-way leave nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Bound;

use maillage_host::Batch;
use maillage_host::engine::{Pair, Reader, scan_within};

/// An overlay of uncommitted writes over an engine.
pub struct Transaction<'a> {
    base: &'a dyn Reader,
    writes: BTreeMap<Vec<u8>, Written>,
    /// What each write replaced in `writes`, newest last, for [`Transaction::roll_back`].
    undo: Vec<(Vec<u8>, Option<Written>)>,
}

/// A pending write of one key: its value, or none when it is removed.
type Written = Option<Vec<u8>>;

/// A point to roll back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl<'a> Transaction<'a> {
    /// An empty overlay over `base`.
    pub fn new(base: &'a dyn Reader) -> Self {
        Self { base, writes: BTreeMap::new(), undo: Vec::new() }
    }

    /// The value of `key` as the commands so far left it.
    ///
    /// # Errors
    /// The engine's.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.write(key.into(), Some(value.into()));
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.write(key.into(), None);
    }

    fn write(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let replaced = self.writes.insert(key.clone(), value);
        self.undo.push((key, replaced));
    }

    /// Pairs whose key starts with `prefix`, in key order, at most `limit`.
    ///
    /// # Errors
    /// The engine's.
    pub fn scan_prefix(&self, prefix: &[u8], limit: usize) -> io::Result<Vec<Pair>> {
        self.scan(prefix, Bound::Included(prefix), limit)
    }

    /// As [`Transaction::scan_prefix`], only keys after `after`.
    ///
    /// # Errors
    /// The engine's.
    pub fn scan_prefix_after(&self, prefix: &[u8], after: &[u8], limit: usize) -> io::Result<Vec<Pair>> {
        self.scan(prefix, Bound::Excluded(after), limit)
    }

    /// As [`Transaction::scan_prefix`], only `from` and keys after it.
    ///
    /// # Errors
    /// The engine's.
    pub fn scan_prefix_from(&self, prefix: &[u8], from: &[u8], limit: usize) -> io::Result<Vec<Pair>> {
        self.scan(prefix, Bound::Included(from), limit)
    }

    fn scan(&self, prefix: &[u8], from: Bound<&[u8]>, limit: usize) -> io::Result<Vec<Pair>> {
        let mut pairs = Vec::new();
        let mut pending = self
            .writes
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        if limit == 0 {
            return Ok(pairs);
        }
        scan_within(self.base, prefix, from, &mut |key, value| {
            while let Some((written, value)) = pending.next_if(|(written, _)| written.as_slice() < key) {
                if let Some(value) = value {
                    pairs.push((written.clone(), value.clone()));
                }
            }
            match pending.next_if(|(written, _)| written.as_slice() == key) {
                Some((_, Some(value))) => pairs.push((key.to_vec(), value.clone())),
                Some((_, None)) => {}
                None => pairs.push((key.to_vec(), value.to_vec())),
            }
            pairs.len() < limit
        })?;
        for (written, value) in pending {
            if pairs.len() >= limit {
                break;
            }
            if let Some(value) = value {
                pairs.push((written.clone(), value.clone()));
            }
        }
        pairs.truncate(limit);
        Ok(pairs)
    }

    /// The state of the overlay now.
    pub fn mark(&self) -> Mark {
        Mark(self.undo.len())
    }

    /// Undoes every write since `mark`.
    pub fn roll_back(&mut self, mark: Mark) {
        while self.undo.len() > mark.0 {
            let Some((key, replaced)) = self.undo.pop() else { break };
            match replaced {
                Some(value) => self.writes.insert(key, value),
                None => self.writes.remove(&key),
            };
        }
    }

    /// BLAKE3 of what was written since `mark`: each key once, in key order, with the value it has now.
    pub fn digest_since(&self, mark: Mark) -> [u8; 32] {
        let since = self.undo.get(mark.0..).unwrap_or_default();
        let keys: BTreeSet<&[u8]> = since.iter().map(|(key, _)| key.as_slice()).collect();
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for key in keys {
            add(key);
            match self.writes.get(key).and_then(Option::as_ref) {
                Some(value) => add(value),
                None => add(b"removed"),
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// The writes as one atomic batch, in key order.
    pub fn into_batch(self) -> Batch {
        Batch(self.writes.into_iter().collect())
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("writes", &self.writes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use maillage_host::EngineHome as _;
    use maillage_host::engine::MemoryHome;

    use super::*;

    /// Fails where it is asked for more than the keys that begin with `a`: a real engine would walk over every
    /// removed key from there to the first that is left.
    struct OnlyA(std::sync::Arc<dyn maillage_host::Engine>);

    impl Reader for OnlyA {
        fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
            self.0.get(key)
        }

        fn scan(
            &self,
            from: Bound<&[u8]>,
            to: Bound<&[u8]>,
            each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> io::Result<()> {
            assert_eq!(to, Bound::Excluded(&b"b"[..]), "asked for what is behind the prefix");
            self.0.scan(from, to, each)
        }
    }

    #[test]
    fn a_prefix_is_looked_for_no_further_than_its_end() {
        let engine = MemoryHome::default().open().expect("open");
        let mut batch = Batch::default();
        batch.put("a1", "base");
        batch.put("b1", "base");
        engine.commit(batch).expect("commit");
        let bounded = OnlyA(engine);
        let mut transaction = Transaction::new(&bounded);
        transaction.put("a2", "new");
        let keys = |pairs: Vec<Pair>| pairs.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(transaction.scan_prefix(b"a", 9).expect("scan")), [b"a1", b"a2"]);
        assert_eq!(keys(transaction.scan_prefix_after(b"a", b"a1", 9).expect("scan")), [b"a2"]);
        assert_eq!(keys(transaction.scan_prefix_from(b"a", b"b", 9).expect("scan")), [[0_u8; 2]; 0]);
    }

    #[test]
    fn an_overlay_reads_as_the_engine_would_after_the_commit() {
        let engine = MemoryHome::default().open().expect("open");
        let mut batch = Batch::default();
        for key in ["a1", "a3", "a5", "b1"] {
            batch.put(key, "base");
        }
        engine.commit(batch).expect("commit");

        let mut transaction = Transaction::new(&*engine);
        transaction.put("a2", "new");
        transaction.remove("a3");
        transaction.put("a5", "changed");
        transaction.put("a6", "new");
        let before = transaction.mark();
        transaction.put("a1", "undone");
        transaction.put("a7", "undone");
        transaction.remove("a2");
        transaction.roll_back(before);

        let seen = transaction.scan_prefix(b"a", usize::MAX).expect("scan");
        assert_eq!(transaction.scan_prefix(b"a", 2).expect("scan"), seen[..2]);
        assert_eq!(transaction.scan_prefix_after(b"a", b"a2", 9).expect("scan"), seen[2..]);
        assert_eq!(transaction.scan_prefix_from(b"a", b"a2", 9).expect("scan"), seen[1..]);
        assert_eq!(transaction.get(b"a3").expect("get"), None);
        engine.commit(transaction.into_batch()).expect("commit");
        let after = maillage_host::engine::scan_prefix(&*engine, b"a", usize::MAX).expect("scan");
        assert_eq!(seen, after);
        let keys: Vec<_> = after.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
        assert_eq!(keys, [(&b"a1"[..], &b"base"[..]), (b"a2", b"new"), (b"a5", b"changed"), (b"a6", b"new")]);
    }
}
