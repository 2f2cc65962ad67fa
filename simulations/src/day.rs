//! A day of the service: what is asked of it, what goes wrong, what came of it, and the page that shows it.
//!
//! `model` draws a day (hospitals, centres, readers, exams) from published figures and a seed, before
//! anything runs, so that every run is given exactly the same work. `scenario` says what fails when. `drive`
//! plays the day on the simulated mesh and fills a `record::Run`; `central` plays the same day on one
//! central server, as today's systems have it. `figures` reduces runs to numbers, `report` to a page.
//!
//! Times are milliseconds since the midnight that begins the day; they run past 24 h, because what was
//! asked for late in the evening is read in the night that follows.

pub mod central;
pub mod drive;
pub mod erlang;
pub mod figures;
pub mod model;
pub mod record;
pub mod report;
pub mod scenario;
pub mod statistics;

/// One minute, in the unit of all times here.
pub const MINUTE_MS: u64 = 60_000;
/// One hour.
pub const HOUR_MS: u64 = 60 * MINUTE_MS;
/// The day itself: requests are drawn in it.
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// How long a run goes on: the night shift that began at 20:00 ends twelve hours after the day, and until
/// then it reads what is left.
pub const HORIZON_MS: u64 = 36 * HOUR_MS;
