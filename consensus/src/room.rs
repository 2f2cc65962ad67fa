//! The waiting room's order, and who is given which exam.
//!
//! Inside a level of urgency the time left decides. An exam that is past its target rises a level for
//! each further target that passes, so that no flood of urgent exams starves a scheduled one.

use std::collections::VecDeque;

use crate::command::UnixMillisField;
use crate::exam::Priority;
use crate::ids::ExamId;
use crate::keys;
use crate::machine::ApplyError;

/// Places read at once from a level: most claims need the first only.
const PAGE: usize = 8;

/// What the room is read through: a command's transaction, or a view.
pub(crate) trait Places {
    /// Up to `limit` keys of the level that starts with `prefix`, in order, after `after`.
    fn places(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Vec<u8>>, ApplyError>;
}

/// A place in the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) exam: ExamId,
    pub(crate) key: Vec<u8>,
}

/// A walk through the room in the order in which it is to be read at a moment.
pub(crate) struct Room {
    now: UnixMillisField,
    levels: [Level; Priority::ALL.len()],
}

type Rank = (u64, u64, Vec<u8>);

struct Level {
    priority: Priority,
    page: VecDeque<Vec<u8>>,
    after: Option<Vec<u8>>,
    at_end: bool,
}

impl Room {
    /// The room at `now`, from its first place on.
    pub(crate) fn new(now: UnixMillisField) -> Self {
        let level = |priority| Level { priority, page: VecDeque::new(), after: None, at_end: false };
        Self { now, levels: Priority::ALL.map(level) }
    }

    /// The next place.
    pub(crate) fn next(&mut self, places: &impl Places) -> Result<Option<Place>, ApplyError> {
        // The level that stands highest, and how high: its head's level now, when that is due, its place.
        let mut best: Option<(usize, Rank)> = None;
        for (at, level) in self.levels.iter_mut().enumerate() {
            level.fill(places)?;
            let Some(key) = level.page.front() else { continue };
            let due = due_of(key);
            let rank = (level_at(level.priority, UnixMillisField(due), self.now), due, key.clone());
            if best.as_ref().is_none_or(|(_, other)| rank < *other) {
                best = Some((at, rank));
            }
        }
        let Some((at, _)) = best else { return Ok(None) };
        let Some(level) = self.levels.get_mut(at) else { return Ok(None) };
        let Some(key) = level.page.pop_front() else { return Ok(None) };
        level.after = Some(key.clone());
        Ok(keys::trailing_number(&key).map(|id| Place { exam: ExamId(id), key }))
    }
}

impl Level {
    fn fill(&mut self, places: &impl Places) -> Result<(), ApplyError> {
        if self.page.is_empty() && !self.at_end {
            let prefix = keys::waiting_level(self.priority);
            self.page = places.places(&prefix, self.after.as_deref(), PAGE)?.into();
            self.at_end = self.page.len() < PAGE;
        }
        Ok(())
    }
}

fn due_of(key: &[u8]) -> u64 {
    key.get(2..10).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// The level that an exam stands at: its urgency's, or a higher one for each target that has passed since
/// it was due.
pub(crate) fn level_at(priority: Priority, due: UnixMillisField, now: UnixMillisField) -> u64 {
    let late = now.0.saturating_sub(due.0);
    (priority as u64).saturating_sub(late / priority.target_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Keys(Vec<Vec<u8>>);

    impl Places for Keys {
        fn places(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Vec<u8>>, ApplyError> {
            let after = after.unwrap_or(prefix);
            Ok(self.0.iter().filter(|key| key.starts_with(prefix) && &key[..] > after).take(limit).cloned().collect())
        }
    }

    fn order(exams: &[(Priority, u64)], now: u64) -> Vec<u64> {
        let mut keys: Vec<Vec<u8>> = (0..)
            .zip(exams)
            .map(|(id, (priority, due))| keys::waiting(*priority, UnixMillisField(*due), ExamId(id)))
            .collect();
        keys.sort();
        let (places, mut room) = (Keys(keys), Room::new(UnixMillisField(now)));
        std::iter::from_fn(|| room.next(&places).expect("read")).map(|place| place.exam.0).collect()
    }

    #[test]
    fn urgency_decides_and_then_the_time_left() {
        use Priority::{Scheduled, SemiUrgent, Urgent, Vital};
        let exams = [(Scheduled, 100), (Vital, 900), (Urgent, 300), (Urgent, 200), (SemiUrgent, 50)];
        assert_eq!(order(&exams, 0), [1, 3, 2, 4, 0]);
    }

    #[test]
    fn an_exam_that_waits_for_targets_on_end_rises_above_any_flood() {
        const HOUR: u64 = 3_600_000;
        let semi_urgent_since = |late: u64, now: u64| (Priority::SemiUrgent, now - late);
        let now = 1_000 * HOUR;
        let flood = (0..40).map(|n| (Priority::Vital, now + n));
        let position = |late| {
            let exams: Vec<_> = flood.clone().chain([semi_urgent_since(late, now)]).collect();
            order(&exams, now).iter().position(|id| *id == 40)
        };
        assert_eq!(position(7 * HOUR), Some(40), "four hours late: as urgent");
        assert_eq!(position(8 * HOUR), Some(0), "eight: as vital, and due before all of them");
    }
}
