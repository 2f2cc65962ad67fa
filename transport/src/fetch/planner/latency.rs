//! The times of the newest answers, for the percentile beyond which one is overdue.

use std::collections::VecDeque;
use std::time::Duration;

/// Answers remembered: enough for a 95th percentile, few enough to follow a changing network.
const REMEMBERED: usize = 64;

/// Fewer say nothing of a percentile.
const ENOUGH: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Latency {
    newest: VecDeque<Duration>,
    p95: Option<Duration>,
}

impl Latency {
    pub(super) fn add(&mut self, took: Duration) {
        if self.newest.len() == REMEMBERED {
            self.newest.pop_front();
        }
        self.newest.push_back(took);
        if self.newest.len() >= ENOUGH {
            let mut sorted: Vec<Duration> = self.newest.iter().copied().collect();
            sorted.sort_unstable();
            self.p95 = sorted.get(sorted.len() * 95 / 100).copied();
        }
    }

    pub(super) fn p95(&self) -> Option<Duration> {
        self.p95
    }
}
