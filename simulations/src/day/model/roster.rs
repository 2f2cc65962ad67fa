//! Who is on duty when and where: enough shifts for the published mean turnaround, and no more.
//!
//! The service publishes a mean turnaround that leaves next to no time for queueing. The roster is found
//! backwards from it: the fewest shifts whose mean wait, by the formula of Allen and Cunneen, fits. What
//! comes out is checked against two figures that were not used: exams per shift, and the shifts that the
//! group's radiologists work.

use super::parameters::Parameters;
use super::{Centre, CentreId, Discipline, Reader};
use crate::day::erlang;
use crate::day::{HORIZON_MS, HOUR_MS};

/// Length of a shift, as the service has it.
pub(super) const SHIFT_HOURS: usize = 12;
/// Hours at which shifts may begin (assumption): day, noon, evening reinforcement, night.
pub(super) const SHIFT_STARTS: [usize; 4] = [8, 12, 16, 20];
/// The last of them.
const NIGHT_START: usize = 20;
/// Nuclear physicians begin in the morning.
const NUCLEAR_START: usize = 8;
/// No roster needs more; a bound on the search.
const SHIFTS_MAX: u32 = 400;
/// Share of an hour's requests that are ready to read within the same hour; the others in the next. Images
/// arrive about three quarters of an hour after the request.
const READY_IN_HOUR: f64 = 0.25;

/// What one hour asks of those on duty, by formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HourLoad {
    /// Exams that become ready.
    pub exams: f64,
    /// Work that they bring: Erlang, that is mean readers busy.
    pub offered: f64,
    /// Radiologists on duty.
    pub on_duty: u32,
    /// Probability that an exam waits at all (Erlang C).
    pub waits: f64,
    /// Mean wait (Allen–Cunneen), in minutes.
    pub wait_min: f64,
}

/// The radiologists' roster, and what formulas say of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Roster {
    /// Shifts by the index of their beginning in 08:00, 12:00, 16:00, 20:00.
    pub shifts: [u32; 4],
    /// Hour by hour.
    pub hours: Vec<HourLoad>,
    /// Mean wait over the day, weighted with the exams, in minutes.
    pub wait_min: f64,
    /// Mean turnaround that the formulas predict, in minutes.
    pub turnaround_min: f64,
    /// Exams for each 12-hour shift.
    pub exams_per_shift: f64,
    /// Nuclear physicians on duty from 08:00 to 20:00.
    pub nuclear: u32,
}

impl Roster {
    /// The roster of such a day.
    pub fn new(parameters: &Parameters, weekend: bool) -> Self {
        let (reading_min, reading_cv) = parameters.reading();
        let exams =
            ready_by_hour(parameters.exams(weekend) * (1.0 - parameters.refused.value), parameters.hours(weekend));
        let allowance = (parameters.turnaround_mean_min.value - reading_min).max(MIN_ALLOWANCE);
        let judge = |shifts: &[u32; 4]| hours_of(shifts, &exams, reading_min, reading_cv);
        let shifts = fewest(allowance, |shifts| cost(&judge(shifts)));
        let hours = judge(&shifts);
        let wait_min = cost(&hours);
        let total: f64 = exams.iter().sum();
        Self {
            shifts,
            wait_min,
            turnaround_min: reading_min + wait_min,
            exams_per_shift: total / f64::from(shifts.iter().sum::<u32>().max(1)),
            nuclear: nuclear_on_duty(parameters, weekend),
            hours,
        }
    }

    /// The readers at their centres, from the midnight before the day to the end of the run.
    pub(super) fn readers(&self, centres: &[Centre]) -> Vec<Reader> {
        let mut readers = Vec::new();
        let everywhere: Vec<usize> = (0..centres.len()).collect();
        let nuclear: Vec<usize> = everywhere.iter().copied().filter(|at| centres[*at].nuclear).collect();
        // The night before is still on duty at midnight, the morning after before the run ends.
        for day in [-1, 0, 1] {
            // Nights go where the seats are; what is left goes first to centres that would else stay dark.
            let mut dark = everywhere.clone();
            for (start, count) in SHIFT_STARTS.into_iter().zip(self.shifts).rev() {
                for _ in 0..count {
                    let among = if start == NIGHT_START || dark.is_empty() { &everywhere } else { &dark };
                    let seated = seat(&mut readers, centres, among, Discipline::Radiology, (day, start));
                    dark.retain(|at| Some(*at) != seated);
                }
            }
            for _ in 0..self.nuclear {
                seat(&mut readers, centres, &nuclear, Discipline::NuclearMedicine, (day, NUCLEAR_START));
            }
        }
        readers
    }
}

/// The fewest shifts whose cost is within `allowance`: added one by one, each where it saves most, and all
/// moved to where they save more before another is added.
fn fewest(allowance: f64, cost: impl Fn(&[u32; 4]) -> f64) -> [u32; 4] {
    let mut shifts = [0; 4];
    while cost(&shifts) > allowance && shifts.iter().sum::<u32>() < SHIFTS_MAX {
        let one_more = (0..shifts.len()).map(|to| moved(shifts, None, Some(to)));
        shifts = settled(cheapest(one_more, &cost).unwrap_or(shifts), &cost);
    }
    shifts
}

/// The same number of shifts, moved one by one while that saves anything.
fn settled(mut shifts: [u32; 4], cost: impl Fn(&[u32; 4]) -> f64) -> [u32; 4] {
    loop {
        let moves =
            (0..16).filter(|pair| shifts[pair / 4] > 0).map(|pair| moved(shifts, Some(pair / 4), Some(pair % 4)));
        match cheapest(moves, &cost) {
            Some(better) if cost(&better) < cost(&shifts) => shifts = better,
            _ => return shifts,
        }
    }
}

fn cheapest(choices: impl Iterator<Item = [u32; 4]>, cost: impl Fn(&[u32; 4]) -> f64) -> Option<[u32; 4]> {
    choices.map(|shifts| (cost(&shifts), shifts)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, shifts)| shifts)
}

fn moved(mut shifts: [u32; 4], from: Option<usize>, to: Option<usize>) -> [u32; 4] {
    if let Some(from) = from {
        shifts[from] -= 1;
    }
    if let Some(to) = to {
        shifts[to] += 1;
    }
    shifts
}

/// When a kind mix takes longer to read than the turnaround allows at all, the roster is made for this wait.
const MIN_ALLOWANCE: f64 = 0.25;

/// Puts one more reader where the most seats a reader are free (D'Hondt), if any seat is; says where.
fn seat(
    readers: &mut Vec<Reader>,
    centres: &[Centre],
    among: &[usize],
    discipline: Discipline,
    shift: (i64, usize),
) -> Option<usize> {
    let hour_ms = i64::try_from(HOUR_MS).unwrap_or(i64::MAX);
    let from = (shift.0 * 24 + i64::try_from(shift.1).unwrap_or(0)) * hour_ms;
    let until = from + i64::try_from(SHIFT_HOURS).unwrap_or(0) * hour_ms;
    // Negative times lie before the day; `try_from` clips them at midnight.
    let (from_ms, until_ms) = (u64::try_from(from).unwrap_or(0), u64::try_from(until).unwrap_or(0));
    if until_ms == 0 || from_ms >= HORIZON_MS {
        return None;
    }
    let taken = |at: usize| {
        let here = readers.iter().filter(|reader| reader.centre == CentreId(at));
        u32::try_from(here.filter(|reader| reader.from_ms < until_ms && from_ms < reader.until_ms).count()).unwrap_or(0)
    };
    let free = among.iter().copied().filter(|at| taken(*at) < centres[*at].seats);
    let best = free.max_by(|a, b| {
        let share = |at: usize| f64::from(centres[at].seats) / f64::from(taken(at) + 1);
        share(*a).total_cmp(&share(*b)).then(b.cmp(a))
    });
    readers.extend(best.map(|at| Reader { centre: CentreId(at), discipline, from_ms, until_ms }));
    best
}

fn ready_by_hour(per_day: f64, hours: &[f64; 24]) -> Vec<f64> {
    let total: f64 = hours.iter().sum();
    let requests = |hour: usize| per_day * hours[hour % 24] / total;
    (0..24).map(|hour| READY_IN_HOUR * requests(hour) + (1.0 - READY_IN_HOUR) * requests(hour + 23)).collect()
}

fn on_duty(shifts: &[u32; 4], hour: usize) -> u32 {
    let on = SHIFT_STARTS.into_iter().zip(shifts).filter(|(start, _)| (hour + 24 - start) % 24 < SHIFT_HOURS);
    on.map(|(_, count)| count).sum()
}

fn hours_of(shifts: &[u32; 4], exams: &[f64], reading_min: f64, reading_cv: f64) -> Vec<HourLoad> {
    let load = |(hour, exams): (usize, &f64)| {
        let (on_duty, offered) = (on_duty(shifts, hour), exams * reading_min / 60.0);
        HourLoad {
            exams: *exams,
            offered,
            on_duty,
            waits: erlang::probability_of_waiting(on_duty, offered),
            wait_min: erlang::mean_wait(on_duty, exams / 60.0, reading_min, reading_cv),
        }
    };
    exams.iter().enumerate().map(load).collect()
}

/// The mean wait in minutes. An hour that can't cope counts by how many readers it lacks, beyond any
/// finite wait, so that the search mends it first.
fn cost(hours: &[HourLoad]) -> f64 {
    /// Minutes: more than any wait that the formula gives in a stable hour worth having.
    const HOPELESS: f64 = 100_000.0;
    let wait = |hour: &HourLoad| {
        let lacking = hour.offered - f64::from(hour.on_duty) + 1.0;
        if hour.wait_min.is_finite() { hour.wait_min } else { HOPELESS * lacking }
    };
    let exams: f64 = hours.iter().map(|hour| hour.exams).sum();
    if exams <= 0.0 { 0.0 } else { hours.iter().map(|hour| hour.exams * wait(hour)).sum::<f64>() / exams }
}

/// The fewest that keep the mean wait of the busiest hour; one at least, on call.
fn nuclear_on_duty(parameters: &Parameters, weekend: bool) -> u32 {
    let (reading_min, reading_cv) = parameters.nuclear_reading();
    let busiest =
        ready_by_hour(parameters.nuclear(weekend), &parameters.nuclear_hours.value).into_iter().fold(0.0, f64::max);
    let fits = |on_duty: &u32| {
        erlang::mean_wait(*on_duty, busiest / 60.0, reading_min, reading_cv) <= parameters.nuclear_wait_min.value
    };
    (1..=parameters.nuclear_physicians.value).find(fits).unwrap_or(parameters.nuclear_physicians.value)
}

#[cfg(test)]
mod tests {
    use super::{Parameters, Roster};
    use crate::day::model::{Day, Discipline};
    use crate::day::{HORIZON_MS, HOUR_MS};

    #[test]
    fn the_roster_meets_the_published_mean_turnaround_by_erlang_c() {
        let parameters = Parameters::default();
        for weekend in [false, true] {
            let roster = Roster::new(&parameters, weekend);
            assert!((15.0..=16.0).contains(&roster.turnaround_min), "{roster:?}");
            assert!(roster.hours.iter().all(|hour| hour.offered < f64::from(hour.on_duty)), "{roster:?}");
            // One shift less anywhere, and it does not.
            for at in 0..roster.shifts.len() {
                let mut fewer = roster.shifts;
                let Some(count) = fewer[at].checked_sub(1) else { continue };
                fewer[at] = count;
                let (mean, cv) = parameters.reading();
                let exams: Vec<f64> = roster.hours.iter().map(|hour| hour.exams).collect();
                assert!(mean + super::cost(&super::hours_of(&fewer, &exams, mean, cv)) > 16.0, "{fewer:?} would do");
            }
        }
    }

    #[test]
    fn figures_not_used_for_the_roster_agree_with_it() {
        let parameters = Parameters::default();
        for weekend in [false, true] {
            let roster = Roster::new(&parameters, weekend);
            let (from, to) = parameters.exams_per_shift.value;
            // The service's 30 to 50 is a range over shifts; the mean of a quiet roster may touch its foot.
            assert!((from * 0.9..to).contains(&roster.exams_per_shift), "{roster:?}");
            let worked = parameters.radiologists.value * parameters.shifts_per_month.value / 30.4;
            let needed = f64::from(roster.shifts.iter().sum::<u32>());
            assert!((worked * 0.75..worked * 1.25).contains(&needed), "{needed} shifts, the group works {worked}");
        }
    }

    #[test]
    fn every_centre_is_open_and_the_largest_by_night() {
        for weekend in [false, true] {
            let day = Day::draw(&Parameters::default(), 1, weekend);
            let at = |centre: usize| day.readers.iter().filter(move |reader| reader.centre.0 == centre);
            assert!((0..day.centres.len()).all(|centre| at(centre).next().is_some()));
            assert!(at(0).filter(|reader| (reader.from_ms..reader.until_ms).contains(&(2 * HOUR_MS))).count() >= 2);
        }
    }

    #[test]
    fn a_full_centre_gets_no_more_readers() {
        let mut day = Day::draw(&Parameters::default(), 1, false);
        day.centres.truncate(2);
        (day.centres[0].seats, day.centres[1].seats) = (2, 1);
        let mut readers = Vec::new();
        let mut seat = |start| super::seat(&mut readers, &day.centres, &[0, 1], Discipline::Radiology, (0, start));
        assert_eq!([8, 8, 12, 16].map(&mut seat), [Some(0), Some(0), Some(1), None]);
        // Those of 08:00 have left at 20:00.
        assert_eq!([20, 20, 20].map(&mut seat), [Some(0), Some(0), None]);
    }

    #[test]
    fn nobody_sits_on_anothers_seat_and_all_shifts_are_seated() {
        for weekend in [false, true] {
            let day = Day::draw(&Parameters::default(), 1, weekend);
            for hour in 0..HORIZON_MS / HOUR_MS {
                let at = hour * HOUR_MS + 1;
                let on = |reader: &&crate::day::model::Reader| (reader.from_ms..reader.until_ms).contains(&at);
                for (index, centre) in day.centres.iter().enumerate() {
                    let here = day.readers.iter().filter(on).filter(|reader| reader.centre.0 == index).count();
                    assert!(here <= centre.seats as usize, "{} at {hour} h: {here}", centre.name);
                }
                let radiologists =
                    day.readers.iter().filter(on).filter(|r| r.discipline == Discipline::Radiology).count();
                assert_eq!(radiologists, day.roster.hours[usize::try_from(hour % 24).unwrap()].on_duty as usize);
            }
        }
    }
}
