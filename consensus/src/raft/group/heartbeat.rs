//! Whether the disk still answers: a few bytes written and synced, again and again.
//!
//! The log tells a stall only while something is written to it: an idle leader would go on leading without a
//! disk, and nobody would know before the next command waits for it. It is also by its name that the file is
//! opened each time: a log whose directory is gone still takes writes, into files that no restart finds.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use maillage_host::Disk;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::raft::halt::Halt;

/// Between two beats. A stall is noticed this much late at most.
const BEAT: Duration = Duration::from_secs(2);
/// Its file: the number of beats of this process, which nobody reads.
const FILE: &str = "raft/heartbeat";
const DIRECTORY: &str = "raft";

/// The time since the beat under way began.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat(Mutex<Option<Instant>>);

impl Heartbeat {
    /// How long the beat under way has taken so far.
    pub(super) fn stalled_for(&self) -> Duration {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Beats until `stop`, or until the disk fails, which ends the replica.
    pub(super) async fn run(&self, disk: &Disk, halt: &Halt, stop: &CancellationToken) {
        for count in 0u64.. {
            self.set(Some(Instant::now()));
            let Some(beaten) = stop.run_until_cancelled(beat(disk, count)).await else { return };
            self.set(None);
            match beaten {
                Ok(()) => {}
                Err(error) if is_of_the_moment(&error) => tracing::warn!(%error, "the disk took no heartbeat"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return halt.halt(format!("the data directory is gone: {error}"));
                }
                Err(error) => return halt.halt(format!("the disk cannot be written: {error}")),
            }
            if stop.run_until_cancelled(sleep(BEAT)).await.is_none() {
                return;
            }
        }
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

async fn beat(disk: &Disk, count: u64) -> io::Result<()> {
    let file = if count == 0 {
        let file = disk.create(FILE).await?;
        disk.sync_dir(DIRECTORY).await?;
        file
    } else {
        disk.open(FILE).await?
    };
    file.write_at(0, vec![Bytes::copy_from_slice(&count.to_le_bytes())], true).await
}

/// Want of room or of descriptors: the log's own file and room may be all right, and it decides by itself.
fn is_of_the_moment(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::testing::CrashDisk;

    #[tokio::test(start_paused = true)]
    async fn a_stalled_disk_is_seen_in_virtual_time_and_one_that_fails_ends_the_replica() {
        let (platter, halt, stop) = (CrashDisk::new(1), Halt::default(), CancellationToken::new());
        let (disk, heart) = (platter.handle(), std::sync::Arc::new(Heartbeat::default()));
        disk.create_dir(DIRECTORY).await.expect("a directory");
        let beating = {
            let (disk, heart, halt, stop) = (disk.clone(), heart.clone(), halt.clone(), stop.clone());
            maillage_host::spawn(async move { heart.run(&disk, &halt, &stop).await })
        };
        sleep(BEAT * 10).await;
        assert!(heart.stalled_for() < BEAT, "a disk that answers");
        platter.stall();
        sleep(BEAT + Duration::from_secs(20)).await;
        assert!(heart.stalled_for() >= Duration::from_secs(20), "{:?}", heart.stalled_for());
        assert_eq!(halt.reason(), None, "who waits decides");
        stop.cancel();
        beating.await.expect("a stop is not held up by a stalled disk");

        platter.crash();
        let disk = platter.handle();
        disk.create_dir(DIRECTORY).await.expect("a directory");
        platter.fail_syncs(true);
        heart.run(&disk, &halt, &CancellationToken::new()).await;
        assert!(halt.reason().is_some_and(|why| why.contains("the disk cannot be written")), "{:?}", halt.reason());
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_is_gone_ends_the_replica() {
        let (platter, halt, stop) = (CrashDisk::new(1), Halt::default(), CancellationToken::new());
        let disk = platter.handle();
        disk.create_dir(DIRECTORY).await.expect("a directory");
        let gone = async {
            sleep(BEAT * 3).await;
            disk.remove_dir(DIRECTORY).await.expect("removed");
        };
        let heart = Heartbeat::default();
        tokio::join!(heart.run(&disk, &halt, &stop), gone);
        assert!(halt.reason().is_some_and(|why| why.contains("is gone")), "{:?}", halt.reason());
    }
}
