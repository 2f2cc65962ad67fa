//! Limits of senders: what a site refuses for a rate or a quota it refuses in the words of the documents, and of what is
//! over a quota it keeps nothing; who has no limit is never refused for one; nobody is let beyond a quota, or refused
//! while there is room in it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::cluster::Cluster;
use crate::plan::DAY_MIB;
use crate::world::{Owner, World, lock};

/// A quota, bytes.
const QUOTA: u64 = DAY_MIB << 20;
/// What is said of a rate and of a quota in the comment of a C-STORE's status.
const OF_RATE: &str = "ahead of its rate";
const OF_QUOTA: &str = "quota of the day";

/// What a sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Taken,
    OverRate,
    /// … or, by STOW-RS, its rate.
    OverQuota,
    /// Refused for something else.
    Other,
}

impl Told {
    /// By whether it was stored, and what else the answer says.
    pub(crate) fn of(stored: bool, answer: &str) -> Self {
        if stored {
            Self::Taken
        } else if answer.contains(OF_RATE) {
            Self::OverRate
        } else if answer.contains(OF_QUOTA) || answer.starts_with("429 ") {
            Self::OverQuota
        } else {
            Self::Other
        }
    }
}

/// Whether an answer refuses as a limit is to: A700, and by STOW-RS 429 with that.
pub(crate) fn is_documented(answer: &str) -> bool {
    answer.starts_with("a700 ") || (answer.starts_with("429 ") && answer.ends_with(" a700"))
}

/// What a node has counted of a sender's day, as far as the sender can tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    /// Of which life of the node: it forgets.
    life: Option<Owner>,
    /// The day and the bytes, at least and at most; none when they are not known.
    counted: Option<(u64, u64, u64)>,
}

impl Used {
    /// Whether so many bytes more have room on a day; none when that cannot be told.
    pub(crate) fn has_room(&self, life: Owner, day: u64, bytes: u64) -> Option<bool> {
        if self.life != Some(life) {
            return Some(bytes <= QUOTA);
        }
        let (of, least, most) = self.counted?;
        let (least, most) = if of == day { (least, most) } else { (0, 0) };
        if most + bytes <= QUOTA { Some(true) } else { (least + bytes > QUOTA).then_some(false) }
    }

    /// So many bytes were taken, and certainly counted, or may have been.
    pub(crate) fn took(&mut self, life: Owner, day: u64, bytes: u64, certainly: bool) {
        if self.life != Some(life) {
            (self.life, self.counted) = (Some(life), Some((day, 0, 0)));
        }
        self.counted = match self.counted {
            Some((of, least, most)) if of == day => {
                Some((day, if certainly { least + bytes } else { least }, most + bytes))
            }
            // With the first bytes of another day those of the one before are forgotten.
            Some(_) if certainly => Some((day, bytes, bytes)),
            _ => None,
        };
    }

    /// Nobody can tell what a life of the node has counted.
    pub(crate) fn lose(&mut self, life: Owner) {
        (self.life, self.counted) = (Some(life), None);
    }
}

/// See the module.
pub(crate) struct Senders {
    world: Arc<World>,
    /// What was refused for a rate, by SOP Instance UID.
    refused: Mutex<BTreeSet<String>>,
}

impl Senders {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, refused: Mutex::default() }
    }

    /// What a hospital sent to `slot` was refused.
    pub(crate) fn refused(&self, cluster: &Cluster, slot: u32, sop_instance: &str, answer: &str) {
        let has_rate = cluster.plan.limits.is_some_and(|limits| limits.slot == slot);
        match Told::of(false, answer) {
            Told::OverRate if has_rate && is_documented(answer) => {
                self.world.sometimes("a hospital was held to its rate");
                lock(&self.refused).insert(sop_instance.to_owned());
            }
            Told::OverRate | Told::OverQuota => {
                let detail =
                    format!("slot {slot} refuses {sop_instance} for a limit that it has not, or not so: {answer}");
                self.world.violation("senders", detail);
            }
            Told::Taken | Told::Other => {}
        }
    }

    /// … was taken.
    pub(crate) fn taken(&self, sop_instance: &str) {
        if lock(&self.refused).remove(sop_instance) {
            self.world.sometimes("what was refused for a rate was taken later");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Owner = Owner { slot: 1, incarnation: 1 };
    const NEXT: Owner = Owner { slot: 1, incarnation: 2 };

    #[test]
    fn a_day_is_used_up_once_it_certainly_is_and_a_new_life_or_day_begins_again() {
        let half = QUOTA / 2;
        let mut used = Used::default();
        assert_eq!(used.has_room(LIFE, 5, QUOTA), Some(true));
        used.took(LIFE, 5, half, true);
        assert_eq!([half, half + 1].map(|bytes| used.has_room(LIFE, 5, bytes)), [Some(true), Some(false)]);
        // An answer that never came.
        used.took(LIFE, 5, half, false);
        assert_eq!([1, half, half + 1].map(|bytes| used.has_room(LIFE, 5, bytes)), [None, None, Some(false)]);
        assert_eq!([used.has_room(LIFE, 6, QUOTA), used.has_room(NEXT, 5, QUOTA)], [Some(true); 2]);
        used.took(LIFE, 6, QUOTA, true);
        assert_eq!([used.has_room(LIFE, 6, 1), used.has_room(LIFE, 5, 1)], [Some(false), Some(true)]);
        // On which day its node counts now is not known.
        used.took(LIFE, 5, 1, false);
        assert_eq!([used.has_room(LIFE, 5, 1), used.has_room(LIFE, 6, 1)], [None; 2]);
        used.lose(LIFE);
        assert_eq!([used.has_room(LIFE, 7, 1), used.has_room(NEXT, 7, 1)], [None, Some(true)]);
        used.took(NEXT, 7, 1, false);
        assert_eq!([1, QUOTA].map(|bytes| used.has_room(NEXT, 7, bytes)), [Some(true), None]);
    }

    #[test]
    fn a_limit_is_told_from_other_refusals_and_has_its_status() {
        for (answer, told, is_right) in [
            ("a700 the sender is too far ahead of its rate", Told::OverRate, true),
            ("a700 the sender's quota of the day is used up", Told::OverQuota, true),
            ("c000 the sender's quota of the day is used up", Told::OverQuota, false),
            ("429 Too Many Requests a700", Told::OverQuota, true),
            ("429 Too Many Requests c000", Told::OverQuota, false),
            ("507 Insufficient Storage a700", Told::Other, false),
            ("a700 write: the store is closed", Told::Other, true),
        ] {
            assert_eq!((Told::of(false, answer), is_documented(answer)), (told, is_right), "{answer}");
        }
        assert_eq!(Told::of(true, "0000 "), Told::Taken);
    }
}
