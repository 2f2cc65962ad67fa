//! The controller on simulated lines: what it leaves idle, what it queues, and who is left beside it.

use std::time::Duration;

use super::*;

mod world;

use world::{Line, World};

const MS: Duration = Duration::from_millis(1);
const START: Duration = Duration::from_secs(2);
const RUN: Duration = Duration::from_secs(6);

/// A flow alone on a line, its start behind it.
fn alone(line: Line, congestion: Congestion) -> World {
    let mut world = World::new(line);
    world.flow(Duration::ZERO, congestion, true);
    world.run(START);
    world
}

/// The part of a line that a flow alone makes use of.
fn use_of(line: Line, congestion: Congestion) -> f64 {
    let mut world = alone(line, congestion);
    let bytes = world.run(RUN);
    world.share(bytes[0], RUN)
}

#[test]
fn a_line_that_loses_by_chance_is_full_where_cubic_leaves_it_idle() {
    for loss in [0.005, 0.02] {
        let line = Line { loss, ..Line::wan() };
        let (ours, cubic) = (use_of(line, Congestion::Auto), use_of(line, Congestion::Cubic));
        assert!(ours >= 0.85, "{loss}: {ours}");
        assert!(ours >= 5.0 * cubic, "{loss}: cubic {cubic}");
    }
}

#[test]
fn a_line_whose_delay_varies_is_full() {
    let ours = use_of(Line { jitter: 10 * MS, ..Line::wan() }, Congestion::Auto);
    assert!(ours >= 0.85, "{ours}");
}

#[test]
fn a_line_with_a_shallow_queue_is_full_and_little_is_dropped() {
    for part in [4, 10] {
        let mut world = alone(Line { queue: Line::wan().carries() / part, ..Line::wan() }, Congestion::Auto);
        let bytes = world.run(RUN);
        let (ours, dropped) = (world.share(bytes[0], RUN), world.dropped());
        assert!(ours >= 0.85 && dropped <= 0.02, "a {part}th: {ours}, {dropped} dropped");
    }
}

#[test]
fn all_of_it_together_on_a_slower_line_is_borne() {
    let line = Line { bits_per_s: 20_000_000, loss: 0.005, jitter: 5 * MS, ..Line::wan() };
    let ours = use_of(Line { queue: line.carries() / 2, ..line }, Congestion::Auto);
    assert!(ours >= 0.8, "{ours}");
}

#[test]
fn a_deep_queue_is_not_filled() {
    let mut world = World::new(Line { queue: 10 * Line::wan().carries(), ..Line::wan() });
    world.flow(Duration::ZERO, Congestion::Auto, true);
    let began = world.run(START);
    assert!(world.share(began[0], START) >= 0.75, "{}", world.share(began[0], START));
    assert!(world.most_in_flight() <= 2.5, "the start: {}", world.most_in_flight());
    // Longer than the least round trip lasts.
    world.run(2 * RUN);
    assert!(world.most_in_flight() <= 1.5, "{}", world.most_in_flight());
    assert_eq!(world.dropped(), 0.0);
}

#[test]
fn the_round_trip_is_measured_anew_without_a_burst() {
    // Its jitter never shows the least round trip again.
    let mut world = alone(Line { jitter: 10 * MS, ..Line::wan() }, Congestion::Auto);
    world.run(2 * RUN);
    assert!(world.most_in_flight() <= 2.0, "{}", world.most_in_flight());
    assert_eq!(world.dropped(), 0.0);
}

#[test]
fn a_line_that_becomes_faster_and_slow_again_is_followed() {
    // Over the sea, where the room for timers is a small part of the line's content and finds little by itself.
    let slow = Line { bits_per_s: 20_000_000, delay: 100 * MS, queue: 4 * Line::wan().carries(), ..Line::wan() };
    let mut world = alone(slow, Congestion::Auto);
    world.run(RUN);
    world.change(|line| line.bits_per_s = 100_000_000);
    world.run(START);
    let bytes = world.run(START / 2);
    assert!(world.share(bytes[0], START / 2) >= 0.85, "faster: {}", world.share(bytes[0], START / 2));
    world.change(|line| line.bits_per_s = 20_000_000);
    world.run(RUN);
    let bytes = world.run(RUN);
    assert!(world.share(bytes[0], RUN) >= 0.85, "slow again: {}", world.share(bytes[0], RUN));
}

/// Two flows of which the second begins when the first has the line: their parts, and the most in flight.
fn beside(line: Line, first: Congestion, second: Congestion) -> (f64, f64, f64) {
    let mut world = World::new(line);
    world.flow(Duration::ZERO, first, true);
    world.flow(START, second, true);
    world.run(2 * START);
    let bytes = world.run(2 * RUN);
    (world.share(bytes[0], 2 * RUN), world.share(bytes[1], 2 * RUN), world.most_in_flight())
}

#[test]
fn two_flows_share_a_line() {
    for line in [Line::wan(), Line { loss: 0.005, ..Line::wan() }] {
        let (first, second, in_flight) = beside(line, Congestion::Auto, Congestion::Auto);
        assert!(first + second >= 0.85 && first <= 2.0 * second && second <= 2.0 * first, "{first}, {second}");
        // Also when one of them measures the round trip anew.
        assert!(in_flight <= 2.0, "{in_flight}");
    }
}

#[test]
fn a_rival_that_fills_the_queue_leaves_something_and_is_left_something() {
    let (ours, cubic, _) = beside(Line::wan(), Congestion::Auto, Congestion::Cubic);
    assert!(ours >= 0.2 && cubic >= 0.2, "{ours}, cubic {cubic}");
}

#[test]
fn local_networks_and_connections_without_images_are_cubics() {
    let local = Line { delay: Duration::from_micros(200), queue: 1 << 20, ..Line::wan() };
    for (line, congestion, with_images, by_cubic) in [
        (local, Congestion::Auto, true, true),
        (local, Congestion::Wan, true, false),
        (Line::wan(), Congestion::Auto, true, false),
        (Line::wan(), Congestion::Auto, false, true),
        (Line::wan(), Congestion::Wan, false, true),
    ] {
        let mut world = World::new(line);
        world.flow(Duration::ZERO, congestion, with_images);
        world.run(START);
        let bulk = world.controller().downcast::<Bulk>().expect("ours");
        assert_eq!(bulk.by_cubic(), by_cubic, "{line:?}, {congestion:?}, {with_images}");
        assert_eq!(bulk.window() == bulk.cubic.window(), by_cubic);
    }
    let world = alone(local, Congestion::Cubic);
    assert!(world.controller().downcast::<Cubic>().is_ok());
}

#[test]
fn nothing_through_for_long_begins_anew() {
    let now = tokio::time::Instant::now().into_std();
    let mut model = Model::new(now, 1200);
    for n in 1..100_u64 {
        model.sent(n);
        model.acked(now + MS * 50, now, 1200, false);
        model.end_acks(now + MS * 50, 0, false, Some(n));
    }
    model.lost(1200, true);
    assert_eq!(model.window(), 8 * 1200);
    assert_eq!(model.least_rtt(), Some(MS * 50), "a long line stays one");
}

#[test]
fn a_round_ends_with_the_acknowledgement_of_what_was_sent_in_it() {
    let now = tokio::time::Instant::now().into_std();
    let mut model = Model::new(now, 1200);
    for packet in 1..=10 {
        model.sent(packet);
    }
    for n in 1..=10 {
        model.acked(now + MS * 50, now, 1200, false);
        model.end_acks(now + MS * 50, 0, false, Some(n));
    }
    assert_eq!(model.rounds_seen(), 1, "nothing was sent since the first acknowledgement");
}
