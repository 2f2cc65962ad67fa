//! Which slot is which place, and how far they are from each other.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::day::model::{CentreId, Day};
use crate::net::Quality;

/// Where the territories are, in km east and north of Lyon, in the order of `places::TERRITORIES`.
const PLACES_KM: [(f64, f64); 7] =
    [(0.0, 0.0), (-190.0, 345.0), (45.0, -275.0), (-400.0, -100.0), (-500.0, 260.0), (-130.0, 540.0), (200.0, 310.0)];
/// One way within a territory: access lines more than distance.
const NEAR: Duration = Duration::from_millis(3);
/// Light takes 5 µs a km in fibre, which goes half as far again as the crow flies.
const MICROS_PER_KM: f64 = 7.5;
/// What is not on the mainland, whatever its real distance: the most that a mesh of these timings is made for.
const OVERSEAS: Duration = Duration::from_millis(20);
/// The territory of the cloud's data centre.
const CLOUD: usize = 1;
/// What a centre's line carries, in bytes a second: 100 Mb/s.
const BYTES_PER_SECOND: u64 = 12_500_000;

/// The slot of a centre.
pub(super) fn slot(centre: CentreId) -> u32 {
    u32::try_from(centre.0 + 1).unwrap_or(u32::MAX)
}

/// The slot of the cloud, which is the last.
pub(super) fn cloud(day: &Day) -> u32 {
    u32::try_from(day.centres.len() + 1).unwrap_or(u32::MAX)
}

/// The territory of a slot.
pub(super) fn territory(day: &Day, slot: u32) -> usize {
    let centre = usize::try_from(slot).ok().and_then(|slot| day.centres.get(slot.checked_sub(1)?));
    centre.map_or(CLOUD, |centre| centre.territory.0)
}

fn latency(a: usize, b: usize) -> Duration {
    match (PLACES_KM.get(a), PLACES_KM.get(b)) {
        (Some(a), Some(b)) => NEAR + Duration::from_secs_f64((a.0 - b.0).hypot(a.1 - b.1) * MICROS_PER_KM / 1e6),
        _ if a == b => NEAR,
        _ => OVERSEAS,
    }
}

/// Gives every link its length.
pub(super) fn lay(cluster: &Cluster, day: &Day) {
    for a in 1..=cloud(day) {
        for b in 1..a {
            let latency = latency(territory(day, a), territory(day, b));
            let quality = Quality { latency, jitter: latency / 10, bytes_per_second: BYTES_PER_SECOND };
            cluster.fabric.set_quality(a, b, quality);
            cluster.fabric.set_quality(b, a, quality);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{cloud, latency, territory};
    use crate::day::model::{Day, Parameters};

    #[test]
    fn links_take_a_few_to_twenty_milliseconds() {
        let day = Day::draw(&Parameters::default(), 1, false);
        let all = || 1..=cloud(&day);
        for (a, b) in all().flat_map(|a| all().map(move |b| (a, b))) {
            let one_way = latency(territory(&day, a), territory(&day, b));
            assert!((3..=20).contains(&one_way.as_millis()), "{a} to {b}: {one_way:?}");
        }
        assert!(latency(5, 2) > latency(1, 5) && latency(0, 0) < latency(0, 1), "farther takes longer");
        assert_eq!(latency(7, 0), Duration::from_millis(20));
    }
}
