//! An engine in memory, for the simulator: after a crash it has what was persisted, and nothing of what was committed
//! since, the hardest case that [`Engine`] allows.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::{Batch, Engine, EngineHome, Reader};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Where an in-memory engine lives.
#[derive(Debug, Default)]
pub struct MemoryHome {
    current: Mutex<Option<Arc<MemoryEngine>>>,
}

impl MemoryHome {
    /// What is left of it after a crash. Who still has its engine changes nothing of that; this home is empty
    /// from now on, so that an engine that nobody has is not copied.
    #[must_use]
    pub fn crashed(&self) -> Self {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).take();
        let content = match current.map(Arc::try_unwrap) {
            None => Content::default(),
            Some(Ok(engine)) => engine.0.into_inner().unwrap_or_else(PoisonError::into_inner),
            Some(Err(shared)) => shared.content().clone(),
        };
        let engine = MemoryEngine(RwLock::new(content.persisted()));
        Self { current: Mutex::new(Some(Arc::new(engine))) }
    }

    /// Damages what is here: all that is read or written from now on is `InvalidData`, after a crash, too, until it is
    /// replaced.
    pub fn spoil(&self) {
        if let Some(engine) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            engine.0.write().unwrap_or_else(PoisonError::into_inner).is_spoiled = true;
        }
    }
}

impl EngineHome for MemoryHome {
    fn open(&self) -> io::Result<Arc<dyn Engine>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let engine: &Arc<MemoryEngine> = current.get_or_insert_with(Arc::default);
        Ok(Arc::<MemoryEngine>::clone(engine))
    }

    fn replace(&self, fill: &mut dyn FnMut(&dyn Engine) -> io::Result<()>) -> io::Result<Arc<dyn Engine>> {
        let fresh = Arc::<MemoryEngine>::default();
        fill(&*fresh)?;
        fresh.persist()?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}

#[derive(Debug, Default)]
struct MemoryEngine(RwLock<Content>);

#[derive(Debug, Clone, Default)]
struct Content {
    map: Arc<Map>,
    undo: Undo,
    is_spoiled: bool,
}

/// What was before under the keys that were written since the last persist.
type Undo = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl Content {
    fn sound(&self) -> io::Result<()> {
        if self.is_spoiled { Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")) } else { Ok(()) }
    }

    fn persisted(mut self) -> Self {
        if !self.undo.is_empty() {
            let map = Arc::make_mut(&mut self.map);
            for (key, value) in std::mem::take(&mut self.undo) {
                match value {
                    Some(value) => map.insert(key, value),
                    None => map.remove(&key),
                };
            }
        }
        self
    }
}

impl MemoryEngine {
    fn content(&self) -> RwLockReadGuard<'_, Content> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(&self) -> io::Result<Arc<Map>> {
        let content = self.content();
        content.sound().map(|()| Arc::clone(&content.map))
    }
}

impl Reader for MemoryEngine {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.map()?.get(key).cloned())
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        scan(&*self.map()?, from, to, each);
        Ok(())
    }
}

impl Engine for MemoryEngine {
    fn commit(&self, batch: Batch) -> io::Result<()> {
        let mut content = self.0.write().unwrap_or_else(PoisonError::into_inner);
        content.sound()?;
        let Content { map, undo, .. } = &mut *content;
        // Copied only while a view still holds the old map.
        let map = Arc::make_mut(map);
        for (key, value) in batch.0 {
            let before = match value {
                Some(value) => map.insert(key.clone(), value),
                None => map.remove(&key),
            };
            undo.entry(key).or_insert(before);
        }
        Ok(())
    }

    fn persist(&self) -> io::Result<()> {
        let mut content = self.0.write().unwrap_or_else(PoisonError::into_inner);
        content.sound()?;
        content.undo.clear();
        Ok(())
    }

    fn view(&self) -> Box<dyn Reader> {
        Box::new(MemoryView(Arc::clone(&self.content().map)))
    }
}

struct MemoryView(Arc<Map>);

impl Reader for MemoryView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        scan(&self.0, from, to, each);
        Ok(())
    }
}

fn scan(map: &Map, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
    // `BTreeMap::range` panics on an empty range; an empty answer is the right one here.
    if let (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) = (from, to)
        && a >= b
        && !(a == b && matches!((from, to), (Bound::Included(_), Bound::Included(_))))
    {
        return;
    }
    for (key, value) in map.range::<[u8], _>((from, to)) {
        if !each(key, value) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_stays_so_until_it_is_replaced() {
        let home = MemoryHome::default();
        let engine = home.open().expect("open");
        engine.commit(Batch(vec![(b"a".to_vec(), Some(b"1".to_vec()))])).expect("commit");
        home.spoil();
        assert_eq!(engine.get(b"a").unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(engine.commit(Batch(Vec::new())).is_err() && engine.persist().is_err());
        drop(engine);
        let crashed = home.crashed();
        let engine = crashed.open().expect("open");
        assert!(engine.scan(Bound::Unbounded, Bound::Unbounded, &mut |_, _| true).is_err());
        let fresh = crashed.replace(&mut |_| Ok(())).expect("replaced");
        assert_eq!(fresh.get(b"a").expect("read"), None);
    }

    #[test]
    fn a_crash_takes_what_was_not_persisted_and_nothing_else() {
        let home = MemoryHome::default();
        let write = |engine: &dyn Engine, pairs: &[(&str, Option<&str>)]| {
            let owned = |text: &str| text.as_bytes().to_vec();
            let changes = pairs.iter().map(|(key, value)| (owned(key), value.map(owned))).collect();
            engine.commit(Batch(changes)).expect("commit");
        };
        let all = |home: &MemoryHome| {
            let engine = home.open().expect("open");
            let pairs = crate::engine::scan_prefix(&*engine, b"", usize::MAX).expect("scan");
            pairs
                .into_iter()
                .map(|pair| String::from_utf8([pair.0, pair.1].concat()).expect("text"))
                .collect::<Vec<_>>()
        };
        let engine = home.open().expect("open");
        write(&*engine, &[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]);
        engine.persist().expect("persist");
        write(&*engine, &[("a", Some("2")), ("b", None), ("d", Some("1"))]);
        write(&*engine, &[("a", None), ("b", Some("3")), ("d", None), ("e", Some("1"))]);
        assert_eq!(all(&home), ["b3", "c1", "e1"]);
        let crashed = home.crashed();
        assert_eq!(all(&crashed), ["a1", "b1", "c1"]);
        assert_eq!(all(&home), [""; 0]);
        // A task of before the crash that still writes is not heard.
        engine.persist().expect("persist");
        assert_eq!(all(&crashed), ["a1", "b1", "c1"]);
        // One that nobody has any more.
        write(&*crashed.open().expect("open"), &[("a", Some("4")), ("b", None), ("f", Some("1"))]);
        let crashed = crashed.crashed();
        assert_eq!(all(&crashed), ["a1", "b1", "c1"]);
        assert_eq!(all(&crashed.crashed()), ["a1", "b1", "c1"]);
    }
}
