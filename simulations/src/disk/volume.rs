//! One volume: files, names, and what of each is durable.
//!
//! Two copies of everything: what the node sees (through the page cache) and what the platter holds,
//! with the changes between the two in order. A process that is killed loses nothing of the cache; a
//! power cut leaves, per file, nothing, all, a torn prefix, or a lottery of sectors, and per directory
//! a prefix of the changed names. After a failed fsync the kernel calls the pages clean, so the next
//! fsync succeeds; the node sees what the platter holds as soon as it starts again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::marks::Marks;
use super::pages::Pages;
use crate::rng::Rng;

/// What a disk writes whole or not at all, bytes.
const SECTOR: usize = 512;

/// How a node's life ends, as its disk sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The machine goes on; so does its page cache.
    Killed,
    /// The machine stops.
    PowerCut,
}

/// What an ending did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told {
    pub(crate) lost: u64,
    pub(crate) torn: u64,
    pub(crate) kept: u64,
    pub(crate) names_lost: u64,
}

/// One change of a file's content.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { at: usize, bytes: Bytes },
    Length(usize),
}

struct Pending {
    number: u64,
    since: Duration,
    change: Change,
}

#[derive(Default)]
struct Content {
    seen: Pages,
    durable: Pages,
    pending: Vec<Pending>,
    /// Whether an fsync failed: what is seen will be what is durable when the node starts again.
    failed: bool,
}

enum NameOp {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

impl NameOp {
    fn directory(&self) -> &str {
        let (Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path)) = self;
        parent(path)
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(directory, _)| directory)
}

/// See the module.
#[derive(Default)]
pub(super) struct Volume {
    contents: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    directories: BTreeSet<String>,
    name_ops: Vec<(u64, NameOp)>,
    next_inode: u64,
    changes: u64,
}

impl Volume {
    pub(super) fn open(&mut self, path: &str, create: bool) -> io::Result<u64> {
        if let Some(inode) = self.names.get(path) {
            return Ok(*inode);
        }
        if !create || (parent(path) != "." && !self.directories.contains(parent(path))) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.next_inode += 1;
        self.contents.insert(self.next_inode, Content::default());
        self.names.insert(path.to_owned(), self.next_inode);
        self.note(NameOp::Link(path.to_owned(), self.next_inode));
        Ok(self.next_inode)
    }

    fn note(&mut self, op: NameOp) {
        self.changes += 1;
        self.name_ops.push((self.changes, op));
    }

    /// Flips one bit of the durable bytes `what`, where a file under `directory` holds them.
    pub(super) fn rot(&mut self, directory: &str, what: &[u8], bit: usize) -> bool {
        let sought = Marks::new([what]);
        for (_, inode) in self.names.iter().filter(|(path, _)| path.contains(directory)) {
            let Some(content) = self.contents.get_mut(inode) else { continue };
            let mut first = None;
            sought.any_in(&content.durable, |_, at| {
                first = Some(at);
                false
            });
            let Some(at) = first.map(|at| at + bit / 8) else { continue };
            for bytes in [&mut content.durable, &mut content.seen] {
                bytes.flip(at, 1 << (bit % 8));
            }
            return true;
        }
        false
    }

    /// A file that holds one of `marks`, synced or not.
    pub(super) fn find(&self, marks: &BTreeSet<Bytes>) -> Option<String> {
        let sought = Marks::new(marks.iter().map(|mark| &mark[..]));
        let is_in = |pages: &Pages| sought.any_in(pages, |_, _| true);
        let holds = |inode: &u64| {
            self.contents.get(inode).is_some_and(|content| is_in(&content.durable) || is_in(&content.seen))
        };
        self.names.iter().find(|&(_, inode)| holds(inode)).map(|(path, _)| path.clone())
    }

    /// Whether files under `directory` hold each of `marks`, and would after a power cut at this instant.
    pub(super) fn keeps(&self, directory: &str, marks: &[Bytes]) -> bool {
        let sought = Marks::new(marks.iter().map(|mark| &mark[..]));
        let mut left: BTreeSet<usize> = (0..marks.len()).collect();
        let is_durable = |(path, inode): &(&String, &u64)| self.durable_names.get(*path) == Some(*inode);
        // The newest first: most of what is asked for came lately.
        let files = self.names.iter().rev().filter(|(path, _)| path.contains(directory)).filter(is_durable);
        let mut contents = files.filter_map(|(_, inode)| self.contents.get(inode));
        left.is_empty()
            || contents.any(|content| {
                sought.any_in(&content.durable, |which, at| {
                    if content.seen.holds(at, &marks[which]) {
                        left.remove(&which);
                    }
                    left.is_empty()
                })
            })
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let inode = self.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.names.insert(to.to_owned(), inode);
        self.note(NameOp::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &str) {
        if self.names.remove(path).is_some() {
            self.note(NameOp::Unlink(path.to_owned()));
        }
    }

    pub(super) fn remove_dir(&mut self, path: &str) {
        let prefix = format!("{path}/");
        let gone: Vec<String> = self.names.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
        self.directories.retain(|directory| directory != path && !directory.starts_with(&prefix));
    }

    pub(super) fn create_dir(&mut self, path: &str) {
        let mut at = String::new();
        for part in path.split('/') {
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(part);
            self.directories.insert(at.clone());
        }
    }

    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let prefix = if path == "." { String::new() } else { format!("{path}/") };
        let below = self.names.keys().chain(&self.directories).filter_map(|name| name.strip_prefix(&prefix));
        let names: BTreeSet<String> =
            below.filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned).collect();
        names.into_iter().collect()
    }

    /// The number of changes so far: what a sync that begins now covers.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn directory_ops(&self) -> u64 {
        self.changes
    }

    pub(super) fn sync_dir(&mut self, path: &str, upto: u64) {
        let ops = std::mem::take(&mut self.name_ops);
        for (number, op) in ops {
            if number <= upto && op.directory() == path {
                self.make_durable(op);
            } else {
                self.name_ops.push((number, op));
            }
        }
        self.forget_unnamed();
    }

    fn make_durable(&mut self, op: NameOp) {
        match op {
            NameOp::Link(path, inode) => {
                self.durable_names.insert(path, inode);
            }
            NameOp::Unlink(path) => {
                self.durable_names.remove(&path);
            }
            NameOp::Rename(from, to) => {
                if let Some(inode) = self.durable_names.remove(&from) {
                    self.durable_names.insert(to, inode);
                }
            }
        }
    }

    fn forget_unnamed(&mut self) {
        let used: BTreeSet<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        let linked: BTreeSet<u64> = self
            .name_ops
            .iter()
            .filter_map(|(_, op)| if let NameOp::Link(_, inode) = op { Some(*inode) } else { None })
            .collect();
        // A file that is still open keeps its content in truth; nobody here reads an unlinked file.
        self.contents.retain(|inode, _| used.contains(inode) || linked.contains(inode));
    }

    // ---- contents

    pub(super) fn read(&self, inode: u64, at: usize, len: usize) -> Bytes {
        self.contents.get(&inode).map_or_else(Bytes::new, |content| content.seen.read(at, len))
    }

    pub(super) fn len(&self, inode: u64) -> u64 {
        self.contents.get(&inode).map_or(0, |content| content.seen.len() as u64)
    }

    pub(super) fn used(&self) -> u64 {
        self.contents.values().map(|content| content.seen.len() as u64).sum()
    }

    /// Bytes of the files under a directory.
    pub(super) fn bytes_under(&self, directory: &str) -> u64 {
        let files = self.names.iter().filter(|(path, _)| path.starts_with(directory));
        files.map(|(_, inode)| self.len(*inode)).sum()
    }

    /// Bytes by which a write up to `end` makes the file longer.
    pub(super) fn growth(&self, inode: u64, end: usize) -> u64 {
        (end as u64).saturating_sub(self.len(inode))
    }

    pub(super) fn change(&mut self, inode: u64, change: Change, now: Duration) {
        self.changes += 1;
        let number = self.changes;
        if let Some(content) = self.contents.get_mut(&inode) {
            apply(&mut content.seen, &change);
            content.pending.push(Pending { number, since: now, change });
        }
    }

    pub(super) fn sync(&mut self, inode: u64, upto: u64) {
        self.flush(inode, |pending| pending.number <= upto);
    }

    /// What an idle cache does by itself with changes older than `before`.
    pub(super) fn write_back(&mut self, inode: u64, before: Duration) {
        self.flush(inode, |pending| pending.since < before);
    }

    fn flush(&mut self, inode: u64, covers: impl Fn(&Pending) -> bool) {
        let Some(Content { durable, pending, .. }) = self.contents.get_mut(&inode) else { return };
        pending.retain(|pending| {
            if covers(pending) {
                apply(durable, &pending.change);
            }
            !covers(pending)
        });
    }

    /// An fsync that fails: some of what it covered reached the platter, the rest never will.
    pub(super) fn fail_sync(&mut self, inode: u64, upto: u64, rng: &mut Rng) {
        let Some(content) = self.contents.get_mut(&inode) else { return };
        content.failed = true;
        let (covered, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut content.pending).into_iter().partition(|pending| pending.number <= upto);
        content.pending = later;
        let mut told = Told::default();
        for pending in covered {
            lottery(&mut content.durable, &pending.change, rng, &mut told);
        }
    }

    // ---- endings

    pub(super) fn end(&mut self, ending: Ending, rng: &mut Rng) -> Told {
        let mut told = Told::default();
        if ending == Ending::PowerCut {
            self.draw_names(rng, &mut told);
        }
        for content in self.contents.values_mut() {
            if ending == Ending::PowerCut {
                draw(content, rng, &mut told);
            }
            if std::mem::take(&mut content.failed) || ending == Ending::PowerCut {
                // Pages that an fsync failed to write are dropped with what was written over them.
                content.pending.clear();
                content.seen.clone_from(&content.durable);
            }
        }
        self.forget_unnamed();
        told
    }

    /// Of each directory's changed names a prefix survives.
    fn draw_names(&mut self, rng: &mut Rng, told: &mut Told) {
        let mut left: BTreeMap<String, u64> = BTreeMap::new();
        for (_, op) in &self.name_ops {
            *left.entry(op.directory().to_owned()).or_default() += 1;
        }
        for survive in left.values_mut() {
            *survive = rng.below(*survive + 1);
        }
        for (_, op) in std::mem::take(&mut self.name_ops) {
            let survive = left.entry(op.directory().to_owned()).or_default();
            if *survive > 0 {
                *survive -= 1;
                self.make_durable(op);
            } else {
                told.names_lost += 1;
            }
        }
        self.names.clone_from(&self.durable_names);
    }
}

fn apply(to: &mut Pages, change: &Change) {
    match change {
        Change::Length(len) => to.resize(*len),
        Change::Write { at, bytes } => to.write(*at, bytes),
    }
}

/// What a power cut makes of one file's unsynced changes.
fn draw(content: &mut Content, rng: &mut Rng, told: &mut Told) {
    let pending = std::mem::take(&mut content.pending);
    let mode = rng.below(4);
    let survive = rng.index(pending.len() + 1);
    for (at, pending) in pending.into_iter().enumerate() {
        match mode {
            0 => told.lost += 1,
            1 => {
                told.kept += 1;
                apply(&mut content.durable, &pending.change);
            }
            2 if at < survive => {
                told.kept += 1;
                apply(&mut content.durable, &pending.change);
            }
            2 if at > survive => told.lost += 1,
            _ => lottery(&mut content.durable, &pending.change, rng, told),
        }
    }
}

/// Each sector of a change reaches the platter or not.
fn lottery(durable: &mut Pages, change: &Change, rng: &mut Rng, told: &mut Told) {
    let Change::Write { at, bytes } = change else {
        if rng.chance(0.5) {
            apply(durable, change);
        }
        return;
    };
    let mut from = 0;
    while from < bytes.len() {
        let sector_end = (at + from) / SECTOR * SECTOR + SECTOR - at;
        let to = sector_end.min(bytes.len());
        if rng.chance(0.5) {
            apply(durable, &Change::Write { at: at + from, bytes: bytes.slice(from..to) });
        } else {
            told.torn += 1;
        }
        from = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(volume: &mut Volume, inode: u64, at: usize, content: &'static [u8]) {
        volume.change(inode, Change::Write { at, bytes: Bytes::from_static(content) }, Duration::ZERO);
    }

    #[test]
    fn what_was_synced_with_its_name_survives_every_power_cut() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut volume = Volume::default();
            volume.create_dir("a/b");
            let inode = volume.open("a/b/c", true).expect("create");
            write(&mut volume, inode, 0, b"durable");
            let upto = volume.changes();
            write(&mut volume, inode, 7, b" not");
            volume.sync(inode, upto);
            volume.sync_dir("a/b", upto);
            volume.end(Ending::PowerCut, &mut rng);
            let inode = volume.open("a/b/c", false).expect("the name is durable");
            let content = volume.read(inode, 0, 100);
            assert!(content.starts_with(b"durable"), "seed {seed}");
            assert!([7, 11].contains(&content.len()));
        }
    }

    #[test]
    fn what_was_not_synced_is_sometimes_lost_sometimes_kept() {
        let outcome = |seed, sync_name: bool| {
            let mut volume = Volume::default();
            let inode = volume.open("f", true).expect("create");
            write(&mut volume, inode, 0, b"x");
            let upto = volume.changes();
            volume.sync(inode, upto);
            if sync_name {
                volume.sync_dir(".", upto);
                write(&mut volume, inode, 0, b"y");
            }
            volume.end(Ending::PowerCut, &mut Rng::new(seed));
            volume.open("f", false).ok().map(|inode| volume.read(inode, 0, 1))
        };
        let names: BTreeSet<_> = (0..50).map(|seed| outcome(seed, false).is_some()).collect();
        assert_eq!(names.len(), 2, "an unsynced name may vanish, and may not");
        let contents: BTreeSet<_> = (0..50).map(|seed| outcome(seed, true)).collect();
        assert_eq!(contents.len(), 2, "an unsynced write may vanish, and may not");
    }

    #[test]
    fn a_killed_process_loses_nothing_but_what_an_fsync_failed_to_write() {
        let mut rng = Rng::new(3);
        let mut volume = Volume::default();
        let inode = volume.open("f", true).expect("create");
        write(&mut volume, inode, 0, b"cached");
        volume.end(Ending::Killed, &mut rng);
        assert_eq!(volume.read(inode, 0, 6), "cached");
        volume.fail_sync(inode, 0, &mut rng);
        volume.end(Ending::Killed, &mut rng);
        assert_ne!(volume.read(inode, 0, 6), "cached", "the pages are gone");
    }

    #[test]
    fn what_is_kept_for_good_is_synced_named_and_not_written_over() {
        let mut volume = Volume::default();
        volume.create_dir("packs");
        let inode = volume.open("packs/1", true).expect("create");
        write(&mut volume, inode, 0, b"first second");
        let keeps = |volume: &Volume, mark: &'static [u8]| volume.keeps("packs/", &[Bytes::from_static(mark)]);
        assert!(!keeps(&volume, b"second"), "not synced");
        volume.sync(inode, u64::MAX);
        assert!(!keeps(&volume, b"second"), "its name is not");
        volume.sync_dir("packs", u64::MAX);
        assert!(keeps(&volume, b"second") && keeps(&volume, b"first"));
        assert!(!volume.keeps("packs/", &[Bytes::from_static(b"first"), Bytes::from_static(b"third")]), "not all");
        write(&mut volume, inode, 0, b"zeros");
        assert!(keeps(&volume, b"second") && !keeps(&volume, b"first"), "written over");
    }

    /// [`Volume::find`] and [`Volume::keeps`], by looking into each whole file for each mark.
    fn searched(volume: &Volume, directory: &str, marks: &BTreeSet<Bytes>) -> (Option<String>, bool) {
        let has = |mark: &Bytes, bytes: &[u8]| bytes.windows(mark.len()).any(|window| window == &mark[..]);
        let all = |pages: &Pages| pages.read(0, usize::MAX);
        let found = volume.names.iter().find(|&(_, inode)| {
            let content = &volume.contents[inode];
            marks.iter().any(|mark| has(mark, &all(&content.durable)) || has(mark, &all(&content.seen)))
        });
        let keeps = |mark: &Bytes| {
            volume.names.iter().any(|(path, inode)| {
                let (durable, seen) = (all(&volume.contents[inode].durable), all(&volume.contents[inode].seen));
                let is_at = |at: usize, bytes: &[u8]| bytes.get(at..at + mark.len()) == Some(&mark[..]);
                path.contains(directory)
                    && volume.durable_names.get(path) == Some(inode)
                    && (0..durable.len()).any(|at| is_at(at, &durable) && is_at(at, &seen))
            })
        };
        (found.map(|(path, _)| path.clone()), marks.iter().all(keeps))
    }

    /// Writes, syncs, holes, and now and then an end of the node's life.
    fn worked(rng: &mut Rng) -> (Volume, Vec<Bytes>) {
        let (mut volume, mut written) = (Volume::default(), Vec::new());
        volume.create_dir("packs");
        for _ in 0..40 {
            let path = ["packs/1", "packs/2", "packs/3", "other"][rng.index(4)];
            let Ok(inode) = volume.open(path, true) else { continue };
            let at = rng.index(8_000);
            let change = if rng.chance(0.9) {
                let mut drawn = vec![0_u8; 100 + rng.index(3_000)];
                rng.fill(&mut drawn);
                let bytes = Bytes::from(drawn);
                written.push(bytes.clone());
                Change::Write { at, bytes }
            } else {
                Change::Length(at)
            };
            volume.change(inode, change, Duration::ZERO);
            match rng.index(12) {
                0..=3 => volume.sync(inode, u64::MAX),
                4..=7 => volume.sync_dir(parent(path), u64::MAX),
                8 => volume.fail_sync(inode, u64::MAX, rng),
                9 => {
                    volume.end(Ending::PowerCut, rng);
                }
                10 => {
                    volume.end(Ending::Killed, rng);
                }
                _ => {}
            }
        }
        (volume, written)
    }

    #[test]
    fn marks_are_found_as_if_each_file_were_searched_for_each() {
        let (mut found, mut kept) = ([0; 2], [0; 2]);
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let (volume, written) = worked(&mut rng);
            for _ in 0..8 {
                let mut marks = BTreeSet::new();
                for _ in 0..rng.between(1, 3) {
                    let Some(bytes) = rng.pick(&written).cloned() else { continue };
                    let len = rng.index(bytes.len()) + 1;
                    marks.insert(bytes.slice(bytes.len() - len..));
                }
                let directory = ["packs/", ""][rng.index(2)];
                let expected = searched(&volume, directory, &marks);
                let listed: Vec<Bytes> = marks.iter().cloned().collect();
                assert_eq!((volume.find(&marks), volume.keeps(directory, &listed)), expected, "seed {seed}");
                found[usize::from(expected.0.is_some())] += 1;
                kept[usize::from(expected.1)] += 1;
            }
        }
        assert!(found.iter().chain(&kept).all(|times| *times > 0), "{found:?} {kept:?}");
    }

    #[test]
    fn what_rots_is_where_the_bytes_are_first() {
        let mut volume = Volume::default();
        let inode = volume.open("f", true).expect("create");
        write(&mut volume, inode, 0, b"some bytes and the bytes");
        assert!(!volume.rot("f", b"bytes", 0), "not synced");
        volume.sync(inode, u64::MAX);
        assert!(volume.rot("f", b"bytes", 9));
        assert_eq!(volume.read(inode, 0, 100), "some b{tes and the bytes");
        assert!(!volume.rot("g", b"bytes", 0));
    }

    #[test]
    fn a_rename_is_whole_or_not_at_all() {
        for seed in 0..50 {
            let mut volume = Volume::default();
            for (path, content) in [("old", b"1"), ("new", b"2")] {
                let inode = volume.open(path, true).expect("create");
                write(&mut volume, inode, 0, content);
                volume.sync(inode, u64::MAX);
            }
            volume.sync_dir(".", u64::MAX);
            volume.rename("new", "old").expect("rename");
            volume.end(Ending::PowerCut, &mut Rng::new(seed));
            let inode = volume.open("old", false).expect("never neither");
            assert!([&b"1"[..], b"2"].contains(&&volume.read(inode, 0, 1)[..]));
        }
    }
}
