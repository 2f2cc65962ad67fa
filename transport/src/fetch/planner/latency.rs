//! The times of the newest answers, for the percentile beyond which one is overdue.

use std::collections::VecDeque;
use std::time::Duration;

/// Answers remembered: enough for a 95th percentile, few enough to follow a changing network.
const REMEMBERED: usize = 64;

/// Fewer say nothing of a percentile.
const ENOUGH: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Latency(VecDeque<Duration>);

impl Latency {
    pub(super) fn add(&mut self, took: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    pub(super) fn p95(&self) -> Option<Duration> {
        if self.0.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 95 / 100).copied()
    }
}
