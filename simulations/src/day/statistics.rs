//! Exact statistics of durations: no sketch, no bucket; a day has a thousand exams.

/// What is said of a set of durations, each in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Half took no longer.
    pub p50_ms: u64,
    /// Nine in ten took no longer.
    pub p90_ms: u64,
    /// Ninety-nine in a hundred took no longer.
    pub p99_ms: u64,
    /// None took longer.
    pub max_ms: u64,
}

impl Summary {
    /// Of the durations, in any order; `None` of none.
    pub fn of(mut durations: Vec<u64>) -> Option<Self> {
        durations.sort_unstable();
        let max_ms = *durations.last()?;
        let sum: u64 = durations.iter().sum();
        Some(Self {
            count: durations.len(),
            mean_ms: sum as f64 / durations.len() as f64,
            p50_ms: percentile(&durations, 50),
            p90_ms: percentile(&durations, 90),
            p99_ms: percentile(&durations, 99),
            max_ms,
        })
    }
}

/// The nearest-rank percentile of sorted values: the smallest that at least `percent` in a hundred do not
/// exceed. It is always one of the values. 0 of none.
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

/// The mean; `None` of none.
pub fn mean(values: impl IntoIterator<Item = u64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0_u64, 0_u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::{Summary, percentile};

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!([50, 90, 99, 100].map(|percent| percentile(&values, percent)), [100, 180, 198, 200]);
        // Wikipedia's worked example of the nearest-rank method.
        assert_eq!([5, 30, 40, 50, 100].map(|p| percentile(&[15, 20, 35, 40, 50], p)), [15, 20, 20, 35, 50]);
        assert_eq!(percentile(&[7], 1), 7);
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn a_summary_takes_values_in_any_order() {
        let summary = Summary::of(vec![30, 10, 20, 100]).unwrap();
        assert_eq!((summary.count, summary.p50_ms, summary.p90_ms, summary.max_ms), (4, 20, 100, 100));
        assert!((summary.mean_ms - 40.0).abs() < f64::EPSILON);
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
