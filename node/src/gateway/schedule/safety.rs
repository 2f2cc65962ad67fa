//! What is asked of, sent again, and dropped, by what the mesh says is safe.

use std::time::Duration;

use maillage_host::UnixMillis;
use tokio::time::Instant;

use super::{Key, PURGED, Schedule, State, UNKNOWN};

/// What was sent to a centre that is gone since, and is not safe, is sent to another after this long: a reader
/// waits for it. A restart is shorter.
pub(super) const RESEND: Duration = Duration::from_secs(4);
/// The same where the centre is there, and should have seen to it. It goes to another, if one answers.
pub(super) const RESEND_PRESENT: Duration = Duration::from_secs(600);
/// The first question whether an instance is safe comes after this long, each next after twice as long …
pub(super) const ASK: Duration = Duration::from_secs(1);
/// … but no longer than this.
const ASK_MAX: Duration = Duration::from_secs(30);
/// Of what is safe, or no centre takes, it is asked this often whether it has been purged: that lies here as well.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(3600);

impl Schedule {
    /// Up to `limit` instances of which to ask whether they are safe, with the centre that has each, first sent
    /// first.
    pub(crate) fn to_ask(&self, now: Instant, limit: usize) -> Vec<(Key, u64)> {
        let due = self.entries.iter().filter_map(|(key, entry)| match entry.state {
            State::Pushed { centre, ask_at, .. } if ask_at <= now => Some((entry.order, key, centre)),
            _ => None,
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        due.into_iter().take(limit).map(|(_, key, centre)| (key.clone(), centre)).collect()
    }

    /// Up to `limit` instances that are safe, or that no centre takes, of which to ask whether they have been purged,
    /// first come first.
    pub(crate) fn to_ask_again(&self, now: Instant, limit: usize) -> Vec<Key> {
        let due = self.entries.iter().filter_map(|(key, entry)| {
            let since = match entry.state {
                State::Safe(since) => Some(since),
                State::Rejected => None,
                State::Waiting(_) | State::InFlight(_) | State::Pushed { .. } => return None,
            };
            let last = since.max(entry.asked_again);
            last.is_none_or(|last| now.duration_since(last) >= ASK_AGAIN).then_some((entry.order, key))
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        due.into_iter().take(limit).map(|(_, key)| key.clone()).collect()
    }

    /// A centre said whether an instance has been purged.
    pub(crate) fn asked_again(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.asked_again = Some(now);
        }
    }

    /// The mesh has purged an instance that came then; false if it came again since. It is not sent any more, whatever still
    /// keeps it here.
    pub(crate) fn purged(&mut self, key: &Key, received_at: UnixMillis) -> bool {
        if self.entries.get(key).is_none_or(|entry| entry.spooled.received_at > received_at) {
            return false;
        }
        self.stand_aside(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.state = State::Rejected;
            PURGED.clone_into(&mut entry.reason);
        }
        true
    }

    /// Other bytes lie under an instance's UID: it is not offered to be dropped, until something under the UID is gone.
    pub(crate) fn contested(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.contested = true;
        }
    }

    /// An instance is safe.
    pub(crate) fn safe(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key)
            && matches!(entry.state, State::Pushed { .. })
        {
            entry.state = State::Safe(now);
        }
    }

    /// An instance is not safe. It is sent again when whoever took it is gone, or should have seen to it.
    pub(crate) fn not_safe(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match &mut entry.state {
            State::Pushed { centre: UNKNOWN, .. } => {
                entry.state = State::Waiting(now);
                self.queue.insert((now, entry.order, key.clone()));
            }
            State::Pushed { ask_at, asked, .. } => {
                *ask_at = now + ASK.saturating_mul(1 << (*asked).min(10)).min(ASK_MAX);
                *asked += 1;
            }
            // It was, and is no more: the mesh has lost a copy, and may have to be given it again.
            State::Safe(_) => {
                entry.state = State::Waiting(now);
                self.queue.insert((now, entry.order, key.clone()));
            }
            State::Waiting(_) | State::InFlight(_) | State::Rejected => {}
        }
    }

    /// A centre said what is safe.
    pub(crate) fn judged(&mut self, now: Instant) {
        self.judged_at = Some(now);
    }

    /// Sends again what is not safe and whose centre is gone, or has had it for very long. How many.
    pub(crate) fn resend(&mut self, now: Instant) -> usize {
        let mut again = Vec::new();
        let somebody_takes = self.taker_count() > 0;
        for (key, entry) in &self.entries {
            let State::Pushed { centre, at, .. } = entry.state else { continue };
            let gone_since = match self.centres.get(&centre) {
                // Not while it is being asked: most of what was left is safe.
                _ if centre == UNKNOWN => Some(self.judged_at.map_or(at, |judged_at| judged_at.max(at))),
                Some(known) if known.up_since.is_some() => None,
                Some(known) => known.down_since.map(|since| since.max(at)),
                None => Some(at),
            };
            let is_due = match gone_since {
                Some(since) => now.duration_since(since) >= RESEND && somebody_takes,
                None => now.duration_since(at) >= RESEND_PRESENT,
            };
            if is_due {
                again.push((key.clone(), gone_since.is_none().then_some(centre)));
            }
        }
        for (key, stale_at) in &again {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.state = State::Waiting(now);
                entry.stale_at = *stale_at;
                self.queue.insert((now, entry.order, key.clone()));
            }
        }
        again.len()
    }

    /// Up to `limit` safe instances, those that have been so for longest first, that may go: since `keep`, or,
    /// while more than `bytes_max` bytes are here, all. None that is contested.
    pub(crate) fn to_drop(&self, now: Instant, keep: Duration, bytes_max: u64, limit: usize) -> Vec<Key> {
        let safe = self.entries.iter().filter_map(|(key, entry)| match entry.state {
            State::Safe(since) if !entry.contested => Some((since, entry.order, key, entry.spooled.bytes)),
            _ => None,
        });
        let mut safe: Vec<_> = safe.collect();
        safe.sort_unstable();
        let (mut bytes, mut going) = (self.bytes, Vec::new());
        for (since, _, key, len) in safe {
            if going.len() == limit || (now.duration_since(since) < keep && bytes <= bytes_max) {
                break;
            }
            bytes -= len;
            going.push(key.clone());
        }
        going
    }
}
