//! An engine whose errors are looked at: that it is damaged is remembered, whoever met the damage.

use std::error::Error;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use maillage_host::engine::Reader;
use maillage_host::{Batch, Engine};

use crate::store::is_damage;

/// The engine of an index.
#[derive(Debug)]
pub(super) struct Watched {
    engine: Arc<dyn Engine>,
    is_damaged: AtomicBool,
}

impl Watched {
    pub(super) fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, is_damaged: AtomicBool::new(false) }
    }

    /// Whether anything said so since it was opened.
    pub(super) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    fn watch<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if outcome.as_ref().is_err_and(tells_damage) {
            self.is_damaged.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

/// Whether an engine's error is of its files, rather than of the machine (room, descriptors, memory).
fn tells_damage(error: &io::Error) -> bool {
    let mut next = Some(error as &(dyn Error + 'static));
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.raw_os_error().is_some()
        {
            return is_damage(error);
        }
        next = error.source();
    }
    true
}

impl Reader for Watched {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.watch(self.engine.get(key))
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.watch(self.engine.scan(from, to, each))
    }
}

impl Engine for Watched {
    fn commit(&self, batch: Batch) -> io::Result<()> {
        self.watch(self.engine.commit(batch))
    }

    fn persist(&self) -> io::Result<()> {
        self.watch(self.engine.persist())
    }

    fn view(&self) -> Box<dyn Reader> {
        self.engine.view()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_room_or_of_descriptors_is_no_damage() {
        // ENOENT, EIO; EMFILE, ENOSPC.
        for (number, expected) in [(2, true), (5, true), (24, false), (28, false)] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(tells_damage(&error), expected, "{error}");
            let wrapped = io::Error::other(Wrapped(error));
            assert_eq!(tells_damage(&wrapped), expected, "{wrapped}");
        }
        assert!(tells_damage(&io::Error::other("a checksum does not match")));
        assert!(tells_damage(&io::ErrorKind::UnexpectedEof.into()));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the engine: {0}")]
    struct Wrapped(#[source] io::Error);
}
