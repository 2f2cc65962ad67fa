//! The journal on a disk that tears, forgets, fills up and fails.

use std::sync::Arc;

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, Prose};

use bytes::BytesMut;

use super::format::{header, record_bytes};
use super::{Bytes, DIRECTORY, Journal, OpenJournalError, Owner, PATH, Record, WriteError};

#[path = "../../../store/tests/store/faulty_disk.rs"]
mod faulty_disk;

use faulty_disk::FaultyDisk;

const OWNER: Owner = Owner { site: 7, mesh: [3; 32] };

fn taken(n: u64) -> Record {
    Record::Taken {
        id: CommandId(uuid::Uuid::from_u128(n.into())),
        exam: ExamId(n),
        user: Name::fitted("dr-a"),
        reason: Line::fitted("cut off"),
        at: UnixMillisField(n),
    }
}

/// Longer than a sector, so that a power cut can tear it.
fn reported(n: u64) -> Record {
    let id = CommandId(uuid::Uuid::from_u128(n.into()));
    let text = Prose::fitted(&format!("{n}: {}", "no fracture. ".repeat(120)));
    Record::Reported { id, key: id, text, signature: Vec::new(), at: UnixMillisField(n) }
}

async fn open(disk: &Arc<FaultyDisk>) -> Result<(Journal, Vec<Record>), OpenJournalError> {
    let (journal, found) = Journal::open(disk.disk(), OWNER).await?;
    Ok((journal, found.records))
}

/// A journal with these records on a new disk.
async fn written(records: &[Record]) -> Arc<FaultyDisk> {
    let disk = FaultyDisk::new();
    let (mut journal, _) = open(&disk).await.expect("a new journal");
    for record in records {
        journal.append(record).await.expect("durable");
    }
    disk
}

async fn bytes_of(disk: &Arc<FaultyDisk>) -> Bytes {
    disk.disk().read(PATH).await.expect("the file")
}

/// A disk whose journal has these bytes.
async fn with(bytes: impl Into<Bytes>) -> Arc<FaultyDisk> {
    let disk = FaultyDisk::new();
    disk.disk().replace(PATH, bytes.into()).await.expect("written");
    disk
}

#[tokio::test]
async fn what_was_appended_is_found_again_and_nothing_makes_no_file() {
    let disk = FaultyDisk::new();
    let (mut journal, found) = open(&disk).await.expect("a new journal");
    assert!(found.is_empty());
    assert!(disk.disk().list(DIRECTORY).await.expect("list").is_empty(), "no file before there is something to keep");
    for n in 0..3 {
        journal.append(&taken(n)).await.expect("durable");
    }
    let (mut journal, found) = open(&disk).await.expect("opens");
    assert_eq!(found, [taken(0), taken(1), taken(2)]);
    assert!(journal.is_suspect(), "what was read need not be what is on the disk");
    assert!(journal.append(&taken(3)).await.is_err());
    journal.rewrite(found).await.expect("written anew");
    journal.append(&taken(3)).await.expect("durable");
    assert_eq!(open(&disk).await.expect("opens").1.len(), 4);
}

#[tokio::test]
async fn what_a_killed_process_left_is_durable_before_more_is_added() {
    let disk = written(&[taken(0)]).await;
    disk.forget_that_names_are_durable();
    let (mut journal, found) = open(&disk).await.expect("opens");
    journal.rewrite(found).await.expect("written anew");
    journal.append(&taken(1)).await.expect("durable");
    disk.cut_power(7);
    assert_eq!(open(&disk).await.expect("opens").1, [taken(0), taken(1)]);
}

#[tokio::test]
async fn a_torn_tail_is_cut_wherever_it_was_torn() {
    let disk = written(&[taken(0), taken(1)]).await;
    let whole = bytes_of(&disk).await;
    let mut torn = BytesMut::from(&whole[..]);
    let at = whole.len();
    torn.extend_from_slice(&record_bytes(at as u64, at as u64, &reported(2), false));
    for end in at..torn.len() {
        let (_, found) = open(&with(Bytes::copy_from_slice(&torn[..end])).await).await.expect("opens");
        assert_eq!(found, [taken(0), taken(1)], "torn at {end}");
    }
    assert_eq!(open(&with(torn.freeze()).await).await.expect("opens").1.len(), 3, "nothing is torn");
}

#[tokio::test]
async fn a_flipped_byte_of_what_was_synced_is_refused_wherever_it_is() {
    let records = [taken(0), reported(0), taken(1)];
    let whole = bytes_of(&written(&records).await).await;
    let ends: Vec<usize> = {
        let mut at = header(&OWNER).len();
        let ends = records.iter().map(|record| {
            at += record_bytes(at as u64, at as u64, record, true).len();
            at
        });
        ends.collect()
    };
    assert_eq!(ends.last(), Some(&whole.len()));
    for flipped in 0..whole.len() {
        let mut bytes = whole.to_vec();
        bytes[flipped] ^= 0x20;
        let opened = open(&with(bytes).await).await;
        // A seal is evidence and no content: without it nothing is lost.
        let in_seal = ends.iter().any(|end| (*end - 8..*end).contains(&flipped));
        match opened {
            Ok((_, found)) => assert!(in_seal && found == records, "byte {flipped}"),
            Err(OpenJournalError::Damaged { at }) => assert!(!in_seal && at <= flipped, "byte {flipped}"),
            Err(other) => panic!("byte {flipped}: {other}"),
        }
    }
}

#[tokio::test]
async fn rot_is_told_from_a_torn_tail_behind_it() {
    // A crash tore the last write, and what had been synced before it rots: the bad record's own seal calls
    // it synced, or, without that, what was written after it does.
    for (synced, keeps_its_seal) in [(1, true), (2, true), (2, false)] {
        let records: Vec<Record> = (0..synced).map(taken).collect();
        let whole = bytes_of(&written(&records).await).await;
        let mut bytes = whole.to_vec();
        bytes.extend_from_slice(&record_bytes(whole.len() as u64, whole.len() as u64, &reported(2), false)[..100]);
        let first = header(&OWNER).len();
        bytes[first + RECORD_BODY] ^= 1;
        if !keeps_its_seal {
            let end = first + record_bytes(first as u64, first as u64, &taken(0), true).len();
            bytes[end - 8..end].fill(0);
        }
        let opened = open(&with(bytes).await).await;
        assert!(matches!(opened, Err(OpenJournalError::Damaged { at }) if at == first), "{synced} {keeps_its_seal}");
    }
}

/// Where a record's content begins.
const RECORD_BODY: usize = 20;

#[tokio::test]
async fn another_sites_journal_and_one_of_a_later_version_are_refused() {
    let whole = bytes_of(&written(&[taken(0)]).await).await;
    let other = Journal::open(with(whole.clone()).await.disk(), Owner { site: 8, ..OWNER }).await;
    assert!(matches!(other, Err(OpenJournalError::Foreign(why)) if why == "another site's"));
    let mut later = whole.to_vec();
    later[8] = 2;
    let crc = crc32fast::hash(&later[..49]).to_be_bytes();
    later[49..53].copy_from_slice(&crc);
    let later = open(&with(later).await).await;
    assert!(matches!(later, Err(OpenJournalError::Foreign(why)) if why.starts_with("of version 2")));
}

#[tokio::test]
async fn a_failed_sync_is_told_and_nothing_more_is_taken_until_the_file_is_written_anew() {
    let disk = written(&[taken(0)]).await;
    let (mut journal, found) = open(&disk).await.expect("opens");
    journal.rewrite(found).await.expect("written anew");
    disk.faults.lock().expect("faults").fail_sync_in = 1;
    assert!(matches!(journal.append(&reported(0)).await, Err(WriteError::Failed(_))));
    assert!(journal.is_suspect());
    assert!(journal.append(&taken(1)).await.is_err(), "a disk that lost one write is believed no other");
    journal.rewrite([taken(0)]).await.expect("a new file");
    journal.append(&taken(1)).await.expect("durable");
    disk.cut_power(1);
    assert_eq!(open(&disk).await.expect("opens").1, [taken(0), taken(1)]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_room_that_comes_back_is_used() {
    let disk = written(&[taken(0)]).await;
    let (mut journal, found) = open(&disk).await.expect("opens");
    journal.rewrite(found).await.expect("written anew");
    disk.faults.lock().expect("faults").capacity = Some(disk.used() + 200);
    assert_eq!(journal.append(&reported(0)).await, Err(WriteError::Full));
    journal.append(&taken(1)).await.expect("a short one fits");
    disk.faults.lock().expect("faults").capacity = None;
    journal.append(&reported(0)).await.expect("durable");
    disk.cut_power(5);
    assert_eq!(open(&disk).await.expect("opens").1, [taken(0), taken(1), reported(0)]);
}

/// Appends and compacts, with the power cut in the middle of a write, torn by many seeds: whatever was
/// acknowledged is found again, and nothing that was never asked for.
#[tokio::test]
async fn no_power_cut_loses_what_was_acknowledged() {
    let mut torn = 0;
    for seed in 0..400 {
        let disk = FaultyDisk::new();
        let (mut acknowledged, mut perhaps) = (Vec::new(), None);
        for life in 0..4 {
            let (mut journal, found) = open(&disk).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(found.starts_with(&acknowledged), "seed {seed}, life {life}: an acknowledged record is gone");
            let beyond = &found[acknowledged.len()..];
            assert!(beyond.is_empty() || beyond == [perhaps.clone().expect("a write that was cut")], "seed {seed}");
            torn += usize::from(beyond.is_empty() && perhaps.is_some());
            acknowledged.clone_from(&found);
            journal.rewrite(found).await.expect("written anew");
            for n in 0..(seed / 7 + life) % 4 {
                if (seed + n) % 3 == 0 {
                    journal.rewrite(acknowledged.clone()).await.expect("written anew");
                }
                let record = if n % 2 == 0 { reported(seed * 100 + life * 10 + n) } else { taken(n) };
                journal.append(&record).await.expect("durable");
                acknowledged.push(record);
            }
            // The write that the power cut interrupts.
            let last = reported(seed * 100 + life * 10 + 9);
            let file = disk.disk().open(PATH).await.expect("the file");
            let bytes = record_bytes(journal.len(), journal.len(), &last, false);
            file.write_at(journal.len(), vec![bytes], false).await.expect("written, not synced");
            perhaps = Some(last);
            disk.cut_power(seed * 31 + life);
        }
    }
    assert!(torn > 400, "the cuts tear: {torn}");
}
