//! Since when what is in the spool is there, by the mesh's time.
//!
//! A purge reaches what a gateway received before it, and nothing that came later. When that was cannot be told by the
//! gateway's own clock, which may be decades wrong after a night without power. So the gateway asks: a centre that
//! a quorum has just confirmed says what the mesh's clock reads, and all that was here before the question was here by
//! then. What no answer covers, as while the line is down, is taken for new: nothing that was acknowledged goes by a guess.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use maillage_host::{Clock, Disk, UnixMillis};
use tokio::time::Instant;

use crate::checked;

/// Where they are kept: a restart forgets none.
const FILE: &str = "spool-marks";
/// What the file begins with.
const MAGIC: &[u8; 4] = b"MGWM";
const VERSION: u8 = 1;
/// As many are kept. One that is left out is stood in for by the next.
const MARKS_MAX: usize = 4_096;
/// Of an instance that no mark covers: later than any purge.
const UNKNOWN: u64 = u64::MAX;

/// The clock by which a gateway stamps what it receives: never behind what it has said before, whatever becomes of the
/// machine's. It goes on by the monotonic clock where that has fallen back.
#[derive(Debug)]
pub(super) struct Stamps {
    machine: Clock,
    /// What it read, and when.
    floor: Mutex<(UnixMillis, Instant)>,
}

impl Stamps {
    pub(super) fn new(machine: Clock) -> Self {
        Self { machine, floor: Mutex::new((UnixMillis(0), Instant::now())) }
    }

    fn floor(&self) -> MutexGuard<'_, (UnixMillis, Instant)> {
        self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time now.
    pub(super) fn now(&self) -> UnixMillis {
        let mut floor = self.floor();
        let passed = u64::try_from(floor.1.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (least, now) = (UnixMillis(floor.0.0.saturating_add(passed)), self.machine.now());
        if now > least {
            *floor = (now, Instant::now());
        }
        now.max(least)
    }

    /// Something has been stamped so by an earlier process: from now on nothing is stamped sooner.
    pub(super) fn reach(&self, stamp: UnixMillis) {
        if self.now() < stamp {
            *self.floor() = (stamp, Instant::now());
        }
    }
}

/// What is known of the mesh's time: pairs of a stamp and of what the mesh's clock read after all that had been stamped
/// sooner was here, both in milliseconds since 1970, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Marks(Vec<(u64, u64)>);

impl Marks {
    /// What the last process kept. What is damaged is as good as nothing, and done away with: what comes now could be stamped
    /// as if it had been here by then.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) async fn open(disk: &Disk) -> io::Result<Self> {
        let bytes = match disk.read(FILE).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read?,
        };
        match checked::decode(MAGIC, VERSION, &bytes) {
            Ok(marks) => Ok(Self(marks)),
            Err(error) => {
                tracing::warn!(%error, FILE, "when the spool came is not known: what was purged since may come back");
                let none = Self::default();
                Self::save(disk, none.file()?).await?;
                Ok(none)
            }
        }
    }

    pub(super) async fn save(disk: &Disk, file: Bytes) -> io::Result<()> {
        disk.replace(FILE, file).await
    }

    /// What to save.
    pub(super) fn file(&self) -> io::Result<Bytes> {
        checked::encode(MAGIC, VERSION, &self.0).map_err(io::Error::other)
    }

    /// The stamp of the last.
    pub(super) fn last(&self) -> Option<UnixMillis> {
        self.0.last().map(|(stamp, _)| UnixMillis(*stamp))
    }

    /// Whether what is stamped so is known to have been here at some time of the mesh.
    pub(super) fn cover(&self, stamp: UnixMillis) -> bool {
        self.last().is_some_and(|last| stamp < last)
    }

    /// When what is stamped so was here at the latest, by the mesh's clock; `u64::MAX` while that is not known.
    pub(super) fn here_by(&self, stamp: UnixMillis) -> u64 {
        self.0.get(self.next(stamp)).map_or(UNKNOWN, |(_, at)| *at)
    }

    /// The place of the first that covers a stamp.
    fn next(&self, stamp: UnixMillis) -> usize {
        self.0.partition_point(|(mark, _)| *mark <= stamp.0)
    }

    /// All that was stamped before `stamp` was here when the mesh's clock read `at`. Of the marks, those stay that tell
    /// something of one of `spooled`, which is stamped so.
    pub(super) fn add(&mut self, stamp: UnixMillis, at: u64, spooled: impl Iterator<Item = UnixMillis>) {
        if self.last().is_some_and(|last| stamp <= last) {
            return;
        }
        self.0.push((stamp.0, at));
        let mut tells = vec![false; self.0.len()];
        // The last tells of what is being taken up just now.
        let places = spooled.map(|stamp| self.next(stamp)).chain([self.0.len() - 1]);
        places.for_each(|place| tells.get_mut(place).into_iter().for_each(|tells| *tells = true));
        let mut tells = tells.into_iter();
        self.0.retain(|_| tells.next().unwrap_or(true));
        if self.0.len() > MARKS_MAX {
            let mut place = 0;
            self.0.retain(|_| {
                place += 1;
                place > MARKS_MAX / 2 || place % 2 == 0
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stamps_never_go_back() {
        let machine = Arc::new(AtomicU64::new(5_000));
        let read = Arc::clone(&machine);
        let stamps = Stamps::new(Clock::from_fn(move || UnixMillis(read.load(Ordering::SeqCst))));
        assert_eq!(stamps.now(), UnixMillis(5_000));
        machine.store(9_000, Ordering::SeqCst);
        assert_eq!(stamps.now(), UnixMillis(9_000));
        machine.store(0, Ordering::SeqCst);
        assert_eq!(stamps.now(), UnixMillis(9_000));
        tokio::time::sleep(Duration::from_millis(70)).await;
        assert_eq!(stamps.now(), UnixMillis(9_070), "it goes on all the same");
        stamps.reach(UnixMillis(8_000));
        assert_eq!(stamps.now(), UnixMillis(9_070));
        stamps.reach(UnixMillis(20_000));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(stamps.now(), UnixMillis(20_005));
        machine.store(30_000, Ordering::SeqCst);
        assert_eq!(stamps.now(), UnixMillis(30_000), "the machine's, once that is right again");
    }

    fn marks(spooled: &[u64]) -> Marks {
        let mut marks = Marks::default();
        for (stamp, at) in [(10, 1_000), (20, 1_010), (30, 1_020), (40, 1_030)] {
            marks.add(UnixMillis(stamp), at, spooled.iter().map(|stamp| UnixMillis(*stamp)));
        }
        marks
    }

    #[test]
    fn what_is_covered_was_here_by_the_first_mark_behind_it() {
        let marks = marks(&[5, 10, 15, 25, 39]);
        for (stamp, by) in [(5, 1_000), (9, 1_000), (10, 1_010), (29, 1_020), (39, 1_030), (40, UNKNOWN)] {
            assert_eq!(marks.here_by(UnixMillis(stamp)), by, "{stamp}");
            assert_eq!(marks.cover(UnixMillis(stamp)), by != UNKNOWN, "{stamp}");
        }
        assert_eq!(Marks::default().here_by(UnixMillis(0)), UNKNOWN);
    }

    #[test]
    fn marks_that_tell_of_nothing_go_and_what_they_told_is_never_told_sooner() {
        assert_eq!(marks(&[12]).0, [(20, 1_010), (40, 1_030)]);
        assert_eq!(marks(&[]).0, [(40, 1_030)]);
        let (mut many, all) = (Marks::default(), 3 * MARKS_MAX as u64);
        for stamp in 1..=all {
            many.add(UnixMillis(stamp), 10 * stamp, (0..stamp).map(UnixMillis));
            if stamp % 1_000 != 0 {
                continue;
            }
            assert!(many.0.len() <= MARKS_MAX);
            for spooled in 0..stamp {
                assert!(many.here_by(UnixMillis(spooled)) >= 10 * (spooled + 1));
            }
        }
        assert_eq!(many.here_by(UnixMillis(all - 1)), 10 * all);
    }

    #[tokio::test]
    async fn a_restart_forgets_none_and_damage_tells_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Disk::real(directory.path());
        assert_eq!(Marks::open(&disk).await.expect("none"), Marks::default());
        let marks = marks(&[5, 15]);
        let file = marks.file().expect("a file");
        let body = file.get(5 + checked::HASH_LEN..).expect("a body");
        expect_test::expect!["030ae80714f207288608"].assert_eq(&data_encoding::HEXLOWER.encode(body));
        Marks::save(&disk, file).await.expect("saved");
        assert_eq!(Marks::open(&disk).await.expect("read"), marks);
        let whole = disk.read(FILE).await.expect("a file").to_vec();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            for damaged in [&damaged[..], &whole[..at]] {
                disk.replace(FILE, Bytes::copy_from_slice(damaged)).await.expect("replaced");
                assert_eq!(Marks::open(&disk).await.expect("none"), Marks::default(), "{at}");
                assert_ne!(disk.read(FILE).await.expect("a file")[..], *damaged, "nobody reads it later, either");
            }
        }
    }
}
