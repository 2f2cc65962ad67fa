//! A snapshot of the whole state: written from a view, and installed by a learner.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write};
use std::ops::Bound;
use std::path::Path;

use maillage_host::Engine;
use maillage_host::engine::Reader;

/// What a snapshot has of one table.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Table {
    pub(super) rows: u64,
    /// Of keys and values.
    pub(super) bytes: u64,
}

/// What was in a snapshot: a table for each first byte of a key.
pub(super) type Tables = Vec<Table>;

/// Each pair as two lengths and two strings of bytes, all hashed by BLAKE3 as the mesh's own snapshots are; synced.
/// Without a path all is read and hashed, and nothing kept.
pub(super) fn dump(view: &dyn Reader, path: Option<&Path>) -> io::Result<Tables> {
    let file = path.map(File::create).transpose()?;
    let mut out = BufWriter::with_capacity(1 << 20, Hashed { hasher: blake3::Hasher::new(), file });
    let (mut tables, mut failure) = (vec![Table::default(); 256], None);
    view.scan(Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
        if let Some(table) = key.first().and_then(|tag| tables.get_mut(usize::from(*tag))) {
            table.rows += 1;
            table.bytes += (key.len() + value.len()) as u64;
        }
        let written = (|| {
            out.write_all(&length_of(key)?)?;
            out.write_all(&length_of(value)?)?;
            out.write_all(key)?;
            out.write_all(value)
        })();
        failure = written.err();
        failure.is_none()
    })?;
    failure.map_or(Ok(()), Err)?;
    out.flush()?;
    if let Some(file) = &out.get_ref().file {
        file.sync_all()?;
    }
    Ok(tables)
}

struct Hashed {
    hasher: blake3::Hasher,
    file: Option<File>,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.as_mut().map_or(Ok(bytes.len()), |file| file.write(bytes))?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

fn length_of(bytes: &[u8]) -> io::Result<[u8; 4]> {
    u32::try_from(bytes.len()).map(u32::to_le_bytes).map_err(io::Error::other)
}

/// Reads what [`dump`] wrote into an empty engine, as a learner does.
pub(super) fn install(path: &Path, engine: &dyn Engine) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    engine.ingest(&mut |take| {
        let (mut lengths, mut key, mut value) = ([0_u8; 8], Vec::new(), Vec::new());
        loop {
            match file.read_exact(&mut lengths) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let length =
                |at: usize| u32::from_le_bytes([lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]);
            key.resize(length(0) as usize, 0);
            value.resize(length(4) as usize, 0);
            file.read_exact(&mut key)?;
            file.read_exact(&mut value)?;
            take(&key, &value)?;
        }
    })
}
