//! How fast and how much each sender may send: by its calling AE title on the DICOM port, by its address
//! for STOW-RS.
//!
//! Nothing is limited unless the configuration says so: an emergency's images are not what to save on. A
//! rate counts all that comes, taken or not. It delays answers, so that the sender waits in TCP and no memory
//! grows; what one answer cannot wait for stays owed, and who owes more than the next could wait for is refused
//! until that is paid: a longer silence would look like a dead node. A quota refuses what is new once a UTC
//! day's bytes are used up; what is here already costs nothing, so that a sender which was cut in mid-study can
//! always send it again. Counted since the node started: a restart forgives.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use maillage_host::UnixMillis;
use tokio::time::Instant;

use crate::config::{Config, SenderLimit};

/// Senders that are counted apart; those beyond share one count. AE titles are what a caller says, so
/// where anybody may call they are any number.
const SENDERS_MAX: usize = 4096;
/// What a sender may be ahead of its rate before an answer waits: single images go at once.
const BURST: Duration = Duration::from_secs(1);
/// The longest that one answer waits, below the time-outs of senders (30 s and more); who owes more than that
/// afterwards is refused.
const WAIT_MAX: Duration = Duration::from_secs(15);
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sender {
    /// A calling AE title.
    Title(String),
    /// The address of an HTTP client.
    Address(IpAddr),
    /// All whom there is no room to count apart.
    Others,
}

/// What one sender may do; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Limit {
    bytes_per_second: Option<u64>,
    bytes_per_day: Option<u64>,
}

/// What one sender has done.
#[derive(Debug, Clone, Copy)]
struct Used {
    /// When it has paid by its rate for all that it sent.
    paid_at: Instant,
    day: u64,
    bytes_of_day: u64,
}

/// Counts senders against their limits.
#[derive(Debug)]
pub(crate) struct Senders {
    anybody: Limit,
    named: Vec<SenderLimit>,
    used: Mutex<BTreeMap<Sender, Used>>,
}

/// Holds an answer up for as long as its sender has earned: the timer makes a millisecond and more of no time at all.
pub(crate) async fn pause(wait: Duration) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

impl Senders {
    /// By the configuration.
    pub(crate) fn new(config: &Config) -> Self {
        let ingest = &config.ingest;
        let anybody = limit(ingest.rate_kib_s, ingest.day_mib);
        Self { anybody, named: ingest.senders.clone(), used: Mutex::default() }
    }

    /// Whether a sender's day has no room for `bytes` more that are new.
    pub(crate) fn is_used_up(&self, sender: &Sender, bytes: u64, now: UnixMillis) -> bool {
        let Some(quota) = self.limit_of(sender).bytes_per_day else { return false };
        let used = self.used();
        let of_today = used.get(&key(&used, sender)).filter(|used| used.day == now.0 / DAY_MS);
        of_today.map_or(0, |used| used.bytes_of_day).saturating_add(bytes) > quota
    }

    /// Counts what came against its sender's rate. False when the sender is so far ahead of it that this is to be
    /// refused: it is not counted then, or who sends it again at once would never be let in.
    pub(crate) fn may_send(&self, sender: &Sender, bytes: u64, now: UnixMillis) -> bool {
        let Some(rate) = self.limit_of(sender).bytes_per_second else { return true };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.change(sender, now, |used, moment| {
            let may = used.paid_at <= moment + BURST + WAIT_MAX;
            if may {
                used.paid_at = used.paid_at.max(moment) + cost;
            }
            may
        })
    }

    /// Counts what was new here and is kept against its sender's day.
    pub(crate) fn keep(&self, sender: &Sender, bytes: u64, now: UnixMillis) {
        if self.limit_of(sender).bytes_per_day.is_some() {
            self.change(sender, now, |used, _| used.bytes_of_day = used.bytes_of_day.saturating_add(bytes));
        }
    }

    /// How long a sender is to wait for its next answer.
    pub(crate) fn wait_of(&self, sender: &Sender) -> Duration {
        if self.limit_of(sender).bytes_per_second.is_none() {
            return Duration::ZERO;
        }
        let used = self.used();
        let paid_at = used.get(&key(&used, sender)).map(|used| used.paid_at);
        let owed = paid_at.map_or(Duration::ZERO, |paid_at| paid_at.saturating_duration_since(Instant::now()));
        owed.saturating_sub(BURST).min(WAIT_MAX)
    }

    /// Changes what is counted of a sender.
    fn change<T>(&self, sender: &Sender, now: UnixMillis, change: impl FnOnce(&mut Used, Instant) -> T) -> T {
        let (moment, day) = (Instant::now(), now.0 / DAY_MS);
        let mut used = self.used();
        if used.len() >= SENDERS_MAX {
            used.retain(|_, used| used.paid_at > moment || used.day == day && used.bytes_of_day > 0);
        }
        let key = key(&used, sender);
        let used = used.entry(key).or_insert(Used { paid_at: moment, day, bytes_of_day: 0 });
        if used.day != day {
            (used.day, used.bytes_of_day) = (day, 0);
        }
        change(used, moment)
    }

    /// The limit of the first entry that names the sender, else that of anybody.
    fn limit_of(&self, sender: &Sender) -> Limit {
        let names = |entry: &&SenderLimit| match sender {
            Sender::Title(title) => entry.ae_title.as_ref().is_some_and(|named| named.as_str() == title),
            Sender::Address(address) => entry.address.as_ref().is_some_and(|network| network.contains(*address)),
            Sender::Others => false,
        };
        let named = self.named.iter().find(names);
        named.map_or(self.anybody, |entry| limit(entry.rate_kib_s, entry.day_mib))
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<Sender, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limit(rate_kib_s: u64, day_mib: u64) -> Limit {
    let some = |value: u64, shift: u32| (value > 0).then(|| value.saturating_mul(1 << shift));
    Limit { bytes_per_second: some(rate_kib_s, 10), bytes_per_day: some(day_mib, 20) }
}

fn key(used: &BTreeMap<Sender, Used>, sender: &Sender) -> Sender {
    let counted = used.len() < SENDERS_MAX || used.contains_key(sender);
    if counted { sender.clone() } else { Sender::Others }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn senders(toml: &str) -> Senders {
        let settings = crate::config::Settings::from_toml(toml).expect("good settings");
        Senders::new(settings.config())
    }

    fn title(text: &str) -> Sender {
        Sender::Title(text.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_over_its_rate_waits_and_the_others_do_not() {
        let senders = senders("[ingest]\nsenders = [{ ae_title = \"CT1\", rate_kib_s = 100 }]\n");
        let sent = |who: &str, kib: u64| {
            assert!(senders.may_send(&title(who), kib * KIB, UnixMillis(0)));
            senders.wait_of(&title(who))
        };
        assert_eq!(sent("CT1", 100), Duration::ZERO, "a burst of a second");
        assert_eq!(sent("CT1", 200), Duration::from_secs(2));
        assert_eq!(sent("MR1", 1 << 20), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(sent("CT1", 50), Duration::ZERO, "its debt is paid");
        assert_eq!(sent("CT1", 1 << 20), WAIT_MAX, "no answer waits longer than senders do");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_whatever_one_answer_can_wait_for_and_who_tries_again_is_let_in() {
        const RATE_KIB_S: u64 = 100;
        let senders = senders(&format!("[ingest]\nrate_kib_s = {RATE_KIB_S}\n"));
        // In seconds of the rate, and by how many associations at once: what answers can wait for, and more than that.
        for (seconds, at_once, is_refused) in
            [(2, 1, false), (14, 1, false), (20, 1, true), (500, 1, true), (5, 8, true)]
        {
            let (sender, begin) = (title(&format!("{seconds} {at_once}")), Instant::now());
            let (mut taken_kib, mut refused) = (0, 0);
            while begin.elapsed() < Duration::from_secs(20_000) {
                for _ in 0..at_once {
                    let kib = seconds * RATE_KIB_S;
                    if senders.may_send(&sender, kib * KIB, UnixMillis(0)) {
                        taken_kib += kib;
                    } else {
                        refused += 1;
                    }
                }
                let wait = senders.wait_of(&sender);
                assert!(wait <= WAIT_MAX);
                // One that need not wait takes a moment to send the next.
                tokio::time::sleep(wait.max(Duration::from_millis(10))).await;
            }
            let (took, ahead) = (begin.elapsed().as_secs(), BURST + WAIT_MAX);
            let most = RATE_KIB_S * (took + 1 + ahead.as_secs() + seconds);
            assert!(taken_kib <= most, "{taken_kib} KiB in {took} s are more than {most}");
            assert!(taken_kib >= RATE_KIB_S * took / 20 * 19, "{taken_kib} KiB in {took} s: it is kept out");
            assert_eq!(refused > 0, is_refused, "of {seconds} s by {at_once}");
        }
    }

    #[test]
    fn a_quota_counts_what_is_new_and_begins_again_each_day() {
        let senders = senders("[ingest]\nday_mib = 10\nsenders = [{ address = \"10.1.0.0/16\", day_mib = 1 }]\n");
        let address = |text: &str| Sender::Address(text.parse().expect("an address"));
        let now = UnixMillis(5 * DAY_MS + 7);
        let (limited, other) = (address("10.1.2.3"), address("10.2.2.3"));
        assert!(!senders.is_used_up(&limited, MIB, now) && senders.is_used_up(&limited, MIB + 1, now));
        assert!(senders.may_send(&limited, 9 * MIB, now));
        assert!(!senders.is_used_up(&limited, MIB, now), "duplicates cost nothing");
        senders.keep(&limited, MIB, now);
        assert!(senders.is_used_up(&limited, 1, now));
        assert!(!senders.is_used_up(&other, 10 * MIB, now), "another's quota is its own");
        assert!(!senders.is_used_up(&limited, MIB, UnixMillis(6 * DAY_MS)));
    }

    #[test]
    fn any_number_of_titles_takes_bounded_memory() {
        let senders = senders("[ingest]\nday_mib = 1\n");
        for n in 0..2 * SENDERS_MAX {
            senders.keep(&title(&n.to_string()), KIB, UnixMillis(0));
        }
        assert!(senders.used().len() <= SENDERS_MAX + 1);
        assert!(!senders.is_used_up(&title("0"), MIB - KIB, UnixMillis(0)), "who was there is still counted apart");
        assert!(senders.is_used_up(&title("new"), MIB - KIB, UnixMillis(0)), "the others share one count");
    }
}
