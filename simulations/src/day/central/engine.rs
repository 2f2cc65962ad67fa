//! The events of the central server's waiting room.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use maillage_consensus::exam::Priority;

use crate::day::MINUTE_MS;
use crate::day::model::{CentreId, Day, Discipline, ReaderId, minutes_ms};
use crate::day::record::{Claim, Ended, Record};
use crate::day::scenario::{Harm, Scenario, Turn};

/// What happens; at one instant in this order, so that a claim given back finds readers who just came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Turn(usize),
    ShiftBegins(usize),
    ShiftEnds(usize),
    Ready(usize),
    /// A reading ends, unless it was stopped: then the reader's count of readings is another.
    Read {
        reader: usize,
        reading: u64,
    },
    /// Somebody gives back the claims of a centre that has been away since its `absence`-th failure.
    GiveBack {
        centre: usize,
        absence: u64,
    },
}

/// What a reader's hands hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    exam: usize,
    /// Which of the exam's claims.
    claim: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Away,
    /// Free since then.
    Free(u64),
    Reading(Held),
    /// Has read, and can't reach the server.
    Holding(Held),
    /// Sits in a centre that is lost.
    Stopped(Option<Held>),
}

#[derive(Debug, Clone, Copy, Default)]
struct Centre {
    /// Failures that stop its machines.
    lost: u32,
    /// Failures that cut it from the server.
    cut: u32,
    /// How often it has gone away.
    absences: u64,
}

impl Centre {
    fn is_away(self) -> bool {
        self.lost > 0 || self.cut > 0
    }
}

/// See the module.
pub(super) struct Engine<'a> {
    day: &'a Day,
    records: &'a mut [Record],
    turns: Vec<Turn>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    waiting: BTreeSet<(Discipline, Priority, u64, usize)>,
    doing: Vec<Doing>,
    readings: Vec<u64>,
    centres: Vec<Centre>,
    clouds_lost: u32,
    return_ms: u64,
}

impl<'a> Engine<'a> {
    /// An engine whose readers will claim what the records say is ready.
    pub(super) fn new(day: &'a Day, scenario: &Scenario, records: &'a mut [Record]) -> Self {
        let turns = scenario.turns();
        let mut events = BinaryHeap::new();
        events.extend(turns.iter().enumerate().map(|(at, turn)| Reverse((turn.at_ms, Event::Turn(at)))));
        let ready = records.iter().enumerate().filter_map(|(at, record)| Some((record.ready_ms?, Event::Ready(at))));
        events.extend(ready.map(Reverse));
        for (at, reader) in day.readers.iter().enumerate() {
            events.push(Reverse((reader.from_ms, Event::ShiftBegins(at))));
            events.push(Reverse((reader.until_ms, Event::ShiftEnds(at))));
        }
        Self {
            day,
            records,
            turns,
            events,
            waiting: BTreeSet::new(),
            doing: vec![Doing::Away; day.readers.len()],
            readings: vec![0; day.readers.len()],
            centres: vec![Centre::default(); day.centres.len()],
            clouds_lost: 0,
            return_ms: minutes_ms(day.parameters.central_return_min.value),
        }
    }

    /// Plays until `until_ms`.
    pub(super) fn play(mut self, until_ms: u64) {
        while let Some(Reverse((now, event))) = self.events.pop() {
            if now > until_ms {
                return;
            }
            self.happens(now, event);
            // Readers choose once everything of this instant is known.
            if self.events.peek().is_none_or(|Reverse((next, _))| *next > now) {
                self.claim(now);
            }
        }
    }

    fn happens(&mut self, now: u64, event: Event) {
        match event {
            Event::Turn(at) => self.turn(now, self.turns[at]),
            Event::ShiftBegins(reader) => {
                let lost = self.centres[self.centre_of(reader)].lost > 0;
                self.doing[reader] = if lost { Doing::Stopped(None) } else { Doing::Free(now) };
            }
            Event::ShiftEnds(reader) => {
                if matches!(self.doing[reader], Doing::Free(_) | Doing::Stopped(None)) {
                    self.doing[reader] = Doing::Away;
                }
            }
            Event::Ready(exam) => self.wait(exam),
            Event::Read { reader, reading } => {
                if let Doing::Reading(held) = self.doing[reader]
                    && self.readings[reader] == reading
                {
                    self.doing[reader] = Doing::Holding(held);
                    self.report(now, reader);
                }
            }
            Event::GiveBack { centre, absence } => self.give_back(now, centre, absence),
        }
    }

    fn turn(&mut self, now: u64, turn: Turn) {
        let change = |count: &mut u32| *count = if turn.begins { *count + 1 } else { count.saturating_sub(1) };
        let before = self.centres.clone();
        match turn.harm {
            Harm::CloudLost => change(&mut self.clouds_lost),
            Harm::CentreLost(CentreId(at)) => change(&mut self.centres[at].lost),
            Harm::CentreCut(CentreId(at)) => change(&mut self.centres[at].cut),
            Harm::TerritoryCut(territory) => {
                let inside = self.day.centres.iter().zip(&mut self.centres).filter(|(c, _)| c.territory == territory);
                inside.for_each(|(_, centre)| change(&mut centre.cut));
            }
        }
        for (centre, before) in before.into_iter().enumerate() {
            if !before.is_away() && self.centres[centre].is_away() {
                self.centres[centre].absences += 1;
                let absence = self.centres[centre].absences;
                self.events.push(Reverse((now + self.return_ms, Event::GiveBack { centre, absence })));
            }
            match (before.lost > 0, self.centres[centre].lost > 0) {
                (false, true) => self.each_reader(centre, |engine, reader| engine.stop(reader)),
                (true, false) => self.each_reader(centre, |engine, reader| engine.resume(now, reader)),
                _ => {}
            }
        }
        // Whoever can reach the server again hands in what was read meanwhile.
        (0..self.doing.len()).for_each(|reader| self.report(now, reader));
    }

    fn each_reader(&mut self, centre: usize, act: impl Fn(&mut Self, usize)) {
        (0..self.doing.len()).filter(|reader| self.day.readers[*reader].centre.0 == centre).for_each(|r| act(self, r));
    }

    /// The power went: what was read and not handed in is gone as well.
    fn stop(&mut self, reader: usize) {
        self.doing[reader] = match self.doing[reader] {
            Doing::Away => Doing::Away,
            Doing::Reading(held) | Doing::Holding(held) => Doing::Stopped(Some(held)),
            Doing::Free(_) | Doing::Stopped(None) => Doing::Stopped(None),
            Doing::Stopped(held) => Doing::Stopped(held),
        };
    }

    /// The power is back: whoever still has a claim reads again from the beginning.
    fn resume(&mut self, now: u64, reader: usize) {
        let Doing::Stopped(held) = self.doing[reader] else { return };
        match held.filter(|held| self.is_open(*held)) {
            Some(held) => self.read(now, reader, held),
            None => self.free(now, reader),
        }
    }

    fn give_back(&mut self, now: u64, centre: usize, absence: u64) {
        if !self.centres[centre].is_away() || self.centres[centre].absences != absence {
            return;
        }
        if self.clouds_lost > 0 {
            // Nobody can, before the server is back.
            self.events.push(Reverse((now + MINUTE_MS, Event::GiveBack { centre, absence })));
            return;
        }
        for reader in 0..self.doing.len() {
            let (Doing::Reading(held) | Doing::Holding(held) | Doing::Stopped(Some(held))) = self.doing[reader] else {
                continue;
            };
            if self.centre_of(reader) == centre && self.is_open(held) {
                self.records[held.exam].claims[held.claim].ended = Some((now, Ended::Returned));
                self.wait(held.exam);
            }
        }
    }

    /// Hands in a reading, if the server can be reached.
    fn report(&mut self, now: u64, reader: usize) {
        let Doing::Holding(held) = self.doing[reader] else { return };
        if !self.reaches_server(reader) {
            return;
        }
        let is_open = self.is_open(held);
        let record = &mut self.records[held.exam];
        let claim = &mut record.claims[held.claim];
        if is_open {
            claim.ended = Some((now, Ended::Reported));
            record.reported_ms = Some(now);
        } else {
            claim.late_report_ms = Some(now);
        }
        self.free(now, reader);
    }

    /// Every exam that waits goes to whoever has been free longest, as long as there is one.
    fn claim(&mut self, now: u64) {
        let mut free: BTreeMap<Discipline, BTreeSet<(u64, usize)>> = BTreeMap::new();
        for (reader, doing) in self.doing.iter().enumerate() {
            if let Doing::Free(since) = doing
                && self.reaches_server(reader)
            {
                free.entry(self.day.readers[reader].discipline).or_default().insert((*since, reader));
            }
        }
        for (discipline, readers) in free {
            for (_, reader) in readers {
                let Some(next) = self.waiting.iter().find(|waiting| waiting.0 == discipline).copied() else { break };
                self.waiting.remove(&next);
                let exam = next.3;
                let centre = self.day.readers[reader].centre;
                let claim =
                    Claim { reader: ReaderId(reader), centre, claimed_ms: now, ended: None, late_report_ms: None };
                self.records[exam].claims.push(claim);
                let held = Held { exam, claim: self.records[exam].claims.len() - 1 };
                self.read(now, reader, held);
            }
        }
    }

    fn read(&mut self, now: u64, reader: usize, held: Held) {
        self.doing[reader] = Doing::Reading(held);
        self.readings[reader] += 1;
        let event = Event::Read { reader, reading: self.readings[reader] };
        self.events.push(Reverse((now + self.day.exams[held.exam].reading_ms, event)));
    }

    fn free(&mut self, now: u64, reader: usize) {
        self.doing[reader] = if now < self.day.readers[reader].until_ms { Doing::Free(now) } else { Doing::Away };
    }

    fn wait(&mut self, exam: usize) {
        let drawn = &self.day.exams[exam];
        let ready_ms = self.records[exam].ready_ms.unwrap_or(0);
        self.waiting.insert((drawn.discipline, drawn.priority, ready_ms, exam));
    }

    fn is_open(&self, held: Held) -> bool {
        self.records[held.exam].claims[held.claim].ended.is_none()
    }

    fn centre_of(&self, reader: usize) -> usize {
        self.day.readers[reader].centre.0
    }

    fn reaches_server(&self, reader: usize) -> bool {
        self.clouds_lost == 0 && !self.centres[self.centre_of(reader)].is_away()
    }
}
