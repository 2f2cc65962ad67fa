//! Distributions over the world's random stream.

use crate::rng::Rng;

/// The nearest whole number; what is negative or no number is 0.
pub(crate) fn whole(value: f64) -> u64 {
    /// Beyond this, neighbouring whole numbers are one floating-point number.
    const EXACT_MAX: f64 = 9e15;
    #[expect(clippy::cast_possible_truncation, reason = "clamped to what fits, rounded on purpose")]
    let whole = value.round().clamp(0.0, EXACT_MAX) as u64;
    whole
}

/// Minutes as milliseconds.
pub(crate) fn minutes_ms(minutes: f64) -> u64 {
    whole(minutes * 60_000.0)
}

/// A log-normal value with this mean and coefficient of variation: never negative, skewed to the long side,
/// as times of human work are.
pub(super) fn lognormal(rng: &mut Rng, mean: f64, cv: f64) -> f64 {
    let variance = (1.0 + cv * cv).ln();
    (mean.ln() - variance / 2.0 + variance.sqrt() * normal(rng)).exp()
}

/// A standard normal value, after Box and Muller.
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.fraction()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.fraction()).cos()
}

/// An index, each as likely as its weight.
pub(super) fn weighted(rng: &mut Rng, weights: impl IntoIterator<Item = f64> + Clone) -> usize {
    let total: f64 = weights.clone().into_iter().sum();
    let mut left = rng.fraction() * total;
    let mut last = 0;
    for (index, weight) in weights.into_iter().enumerate() {
        if weight > 0.0 {
            last = index;
        }
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    // Rounding may leave a rest: it belongs to the last that can be drawn at all.
    last
}

/// The times of a Poisson process over one day, in ms, whose rate follows the weights of the 24 hours and
/// whose expected count is `per_day`. Drawn by thinning (Lewis and Shedler 1979).
pub(super) fn arrivals(rng: &mut Rng, per_day: f64, hours: &[f64; 24]) -> Vec<u64> {
    let total: f64 = hours.iter().sum();
    let peak = hours.iter().copied().fold(0.0, f64::max);
    if per_day <= 0.0 || peak <= 0.0 {
        return Vec::new();
    }
    let per_hour_max = per_day * peak / total;
    let (mut at_hours, mut times) = (0.0, Vec::new());
    loop {
        at_hours += -(1.0 - rng.fraction()).ln() / per_hour_max;
        let Some(weight) = usize::try_from(whole(f64::floor(at_hours))).ok().and_then(|hour| hours.get(hour)) else {
            return times;
        };
        if rng.chance(weight / peak) {
            // Rounding must not push a request past midnight.
            times.push(whole(at_hours * 3_600_000.0).min(super::super::DAY_MS - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{arrivals, lognormal, weighted};
    use crate::rng::Rng;

    #[test]
    fn lognormal_times_have_their_mean_and_spread() {
        let mut rng = Rng::new(3);
        let values: Vec<f64> = (0..40_000).map(|_| lognormal(&mut rng, 16.0, 0.6)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean - 16.0).abs() < 0.2, "mean {mean}");
        assert!((variance.sqrt() / mean - 0.6).abs() < 0.03, "cv {}", variance.sqrt() / mean);
    }

    #[test]
    fn weights_are_followed_and_zero_is_never_drawn() {
        let mut rng = Rng::new(4);
        let mut counts = [0; 4];
        for _ in 0..10_000 {
            counts[weighted(&mut rng, [1.0, 0.0, 3.0, 0.0])] += 1;
        }
        assert_eq!((counts[1], counts[3]), (0, 0));
        assert!((2_300..2_700).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn arrivals_follow_the_hours() {
        let mut hours = [1.0; 24];
        hours[20] = 5.0;
        hours[3] = 0.0;
        let times = arrivals(&mut Rng::new(5), 27_000.0, &hours);
        let in_hour = |hour: u64| times.iter().filter(|at| **at / 3_600_000 == hour).count();
        assert!(times.is_sorted());
        assert_eq!(in_hour(3), 0);
        assert!((900..1_100).contains(&in_hour(0)), "{}", in_hour(0));
        assert!((4_700..5_300).contains(&in_hour(20)), "{}", in_hour(20));
    }
}
