//! The embedded key-value engine: ordered bytes to bytes, atomic batches, consistent views.
//!
//! Two stores stand on it: the replicated state and the local chunk index. For both, something else
//! is the truth (the Raft log; the pack files), so a commit is atomic but **not** synced: after a
//! power cut the engine may be a whole number of batches behind, never torn, and what it lacks is
//! replayed. [`Engine::persist`] is the checkpoint that lets the truth be trimmed.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::Arc;

mod fjall_engine;
mod memory;

pub use fjall_engine::FjallHome;
pub use memory::MemoryHome;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Changes applied together or not at all. A later change of a key wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Batch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.push((key.into(), Some(value.into())));
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.0.push((key.into(), None));
    }
}

/// What reads of an engine and of a frozen view share.
pub trait Reader: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Pairs in key order within the bounds, until `each` returns `false`.
    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()>;
}

/// What takes the pairs of [`Engine::ingest`], one after the other.
pub type Take<'a> = dyn FnMut(&[u8], &[u8]) -> io::Result<()> + 'a;

/// Checks that `key` is behind the `last` one, and notes it.
fn ascends(last: &mut Option<Vec<u8>>, key: &[u8]) -> io::Result<()> {
    match last {
        Some(before) if key <= before.as_slice() => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "keys to be ingested are not in ascending order"));
        }
        Some(before) => {
            before.clear();
            before.extend_from_slice(key);
        }
        None => *last = Some(key.to_vec()),
    }
    Ok(())
}

/// An open engine.
pub trait Engine: Reader + 'static {
    /// Applies a batch atomically; durable after the next [`Engine::persist`].
    fn commit(&self, batch: Batch) -> io::Result<()>;
    /// Adds the pairs that `fill` gives it, in ascending order of keys, all or none: far cheaper than commits for
    /// what fills an engine. Durable as a commit is.
    ///
    /// # Errors
    /// The engine's, that of `fill`, and [`io::ErrorKind::InvalidData`] for a key that is not behind the one before.
    fn ingest(&self, fill: &mut dyn FnMut(&mut Take<'_>) -> io::Result<()>) -> io::Result<()> {
        let (mut batch, mut last) = (Batch::default(), None);
        fill(&mut |key, value| {
            ascends(&mut last, key)?;
            batch.put(key, value);
            Ok(())
        })?;
        self.commit(batch)
    }
    /// Makes every earlier commit durable. Blocks for an fsync.
    fn persist(&self) -> io::Result<()>;
    /// Drops what was overwritten or removed from the engine's files, as far as it can. Blocks, and may read and
    /// write all that is there.
    fn compact(&self) -> io::Result<()> {
        Ok(())
    }
    /// A consistent view of this moment, in constant time, that later commits do not change.
    fn view(&self) -> Box<dyn Reader>;
}

/// Where one engine lives, and how its whole content is replaced.
pub trait EngineHome: Send + Sync + 'static {
    /// Opens the current engine, creating an empty one at first.
    fn open(&self) -> io::Result<Arc<dyn Engine>>;
    /// Builds a new engine with `fill`, makes it durable, then makes it the current one in one
    /// step: a crash leaves the old whole or the new whole. Blocks. The old engine's files go once its last clone and
    /// view are dropped: with the next [`EngineHome::tidy`], [`Engine::compact`] of the new one, or opening.
    fn replace(&self, fill: &mut dyn FnMut(&dyn Engine) -> io::Result<()>) -> io::Result<Arc<dyn Engine>>;
    /// Removes the files of engines that were replaced and that nobody reads any more. Blocks.
    fn tidy(&self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for dyn Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl fmt::Debug for dyn EngineHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineHome")
    }
}

/// All pairs whose key starts with `prefix`, in key order, at most `limit`.
pub fn scan_prefix(reader: &dyn Reader, prefix: &[u8], limit: usize) -> io::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    if limit == 0 {
        return Ok(pairs);
    }
    scan_within(reader, prefix, Bound::Unbounded, &mut |key, value| {
        pairs.push((key.to_vec(), value.to_vec()));
        pairs.len() < limit
    })?;
    Ok(pairs)
}

/// Pairs whose key starts with `prefix`, from `from` on, in key order, until `each` returns `false`.
///
/// The engine is told where the prefix ends: to find the first key behind it, a log-structured one would walk
/// over every removed key on the way, as many as were not compacted away yet.
pub fn scan_within(
    reader: &dyn Reader,
    prefix: &[u8],
    from: Bound<&[u8]>,
    each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> io::Result<()> {
    let end = end_of(prefix);
    let from = match from {
        Bound::Included(first) | Bound::Excluded(first) if first >= prefix => {
            if end.as_deref().is_some_and(|end| first >= end) {
                return Ok(());
            }
            from
        }
        _ => Bound::Included(prefix),
    };
    reader.scan(from, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded), each)
}

/// The first key behind all that start with `prefix`; none when there can be no such key.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    //! One conformance suite for every engine.
    use super::*;

    fn conforms(home: &dyn EngineHome) {
        let engine = home.open().expect("open");
        let mut batch = Batch::default();
        for (key, value) in [("a1", "x"), ("a2", "y"), ("b1", "z")] {
            batch.put(key, value);
        }
        batch.put("a2", "yy");
        engine.commit(batch).expect("commit");
        let view = engine.view();
        let mut batch = Batch::default();
        batch.remove("a1");
        batch.put("a3", "w");
        engine.commit(batch).expect("commit");
        engine.persist().expect("persist");
        engine.compact().expect("compact");

        assert_eq!(engine.get(b"a1").expect("get"), None);
        assert_eq!(engine.get(b"a2").expect("get").as_deref(), Some(&b"yy"[..]), "the later change wins");
        assert_eq!(view.get(b"a1").expect("get").as_deref(), Some(&b"x"[..]), "a view does not move");
        let keys = |reader: &dyn Reader, limit| -> Vec<Vec<u8>> {
            scan_prefix(reader, b"a", limit).expect("scan").into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(&*engine, 9), [b"a2".to_vec(), b"a3".to_vec()]);
        assert_eq!(keys(&*engine, 1), [b"a2".to_vec()]);
        assert_eq!(keys(&*view, 9), [b"a1".to_vec(), b"a2".to_vec()]);

        let within = |prefix: &[u8], from: Bound<&[u8]>| {
            let mut keys = Vec::new();
            let scanned = scan_within(&*engine, prefix, from, &mut |key, _| {
                keys.push(String::from_utf8_lossy(key).into_owned());
                true
            });
            scanned.map(|()| keys).expect("scan")
        };
        assert_eq!(within(b"a", Bound::Unbounded), ["a2", "a3"]);
        assert_eq!(within(b"a", Bound::Included(b"")), ["a2", "a3"], "a prefix begins where it begins");
        assert_eq!(within(b"a", Bound::Excluded(b"a2")), ["a3"]);
        assert_eq!(within(b"a", Bound::Included(b"b")), [""; 0], "nothing of a prefix is behind its end");
        assert_eq!(within(b"", Bound::Unbounded), ["a2", "a3", "b1"]);
        assert_eq!(within(b"\xff", Bound::Unbounded), [""; 0]);

        let replaced = home.replace(&mut |fresh| {
            let refused = fresh.ingest(&mut |take| {
                take(b"m", b"0")?;
                take(b"m", b"1")
            });
            assert_eq!(refused.expect_err("refused").kind(), io::ErrorKind::InvalidData, "a key twice");
            let failed = fresh.ingest(&mut |take| {
                take(b"m", b"0")?;
                Err(io::Error::other("the source failed"))
            });
            failed.expect_err("failed");
            assert_eq!(fresh.get(b"m")?, None, "all or nothing");
            fresh.ingest(&mut |take| {
                take(b"k", b"0")?;
                take(b"n", b"0")
            })?;
            let mut batch = Batch::default();
            batch.put("n", "1");
            fresh.commit(batch)
        });
        let replaced = replaced.expect("replace");
        assert_eq!(replaced.get(b"a2").expect("get"), None, "nothing of the old content is left");
        assert_eq!(replaced.get(b"n").expect("get").as_deref(), Some(&b"1"[..]));
        drop((engine, view, replaced));
        let again = home.open().expect("open again");
        assert_eq!(again.get(b"n").expect("get").as_deref(), Some(&b"1"[..]), "the replacement is current");
        assert_eq!(again.get(b"k").expect("get").as_deref(), Some(&b"0"[..]), "with what it ingested");
    }

    #[test]
    fn memory_conforms() {
        conforms(&MemoryHome::default());
    }

    #[test]
    fn fjall_conforms() {
        let root = std::env::temp_dir().join(format!("maillage-engine-{}", std::process::id()));
        conforms(&FjallHome::new(root.clone(), 8 << 20));
        #[expect(clippy::disallowed_methods, reason = "a test cleans up after itself")]
        std::fs::remove_dir_all(root).expect("clean up");
    }
}
