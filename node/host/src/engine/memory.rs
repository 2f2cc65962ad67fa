//! An engine in memory, for the simulator: after a crash it is empty, which is an engine that is
//! all its batches behind, the hardest case that [`Engine`] allows.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{Batch, Engine, EngineHome, Reader};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Where an in-memory engine lives.
#[derive(Debug, Default)]
pub struct MemoryHome {
    current: Mutex<Option<Arc<MemoryEngine>>>,
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
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}

#[derive(Debug, Default)]
struct MemoryEngine(RwLock<Arc<Map>>);

impl MemoryEngine {
    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reader for MemoryEngine {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.map().get(key).cloned())
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        scan(&self.map(), from, to, each);
        Ok(())
    }
}

impl Engine for MemoryEngine {
    fn commit(&self, batch: Batch) -> io::Result<()> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Copied only while a view still holds the old map.
        let map = Arc::make_mut(&mut map);
        for (key, value) in batch.0 {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn persist(&self) -> io::Result<()> {
        Ok(())
    }

    fn view(&self) -> Box<dyn Reader> {
        Box::new(MemoryView(self.map()))
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
