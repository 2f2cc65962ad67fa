//! What is asked of exams of years ago: that each is found by every index and says what it should, and how long
//! that takes when nothing of it is in any cache of ours.

use anyhow::{Context as _, ensure};
use maillage_consensus::View;
use maillage_consensus::audit::chain;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::study_key::KeptKey;
use maillage_host::engine::Reader;
use std::time::Instant;

use super::copies::Copies;
use super::identity;
use super::lives::{COMMANDS, STEP_MS};

/// Whose figures are asked for.
const MONTH_MS: u64 = 30 * 24 * 3_600_000;
/// Entries of the trail that are verified, in pages of as many as the interface gives.
const VERIFIED: u64 = 100_000;
const TRAIL_PAGE: usize = 1_000;

/// The exam with the number `n`, found by its accession number, with its report, its step, its images and their key.
pub(super) fn look_up(reader: &dyn Reader, copies: &Copies, n: u64) -> anyhow::Result<()> {
    let view = View::new(reader);
    let [exam] = <[_; 1]>::try_from(view.exams_with_accession(identity::accession(n).as_str())?)
        .ok()
        .context("not one exam of this accession number")?;
    ensure!(exam.id == copies.id(n) && exam.request == identity::request(n)?, "another exam");
    let [report] = <[_; 1]>::try_from(view.reports(exam.id)?).ok().context("not one report")?;
    ensure!(
        exam.course.report == Some(report.number) && report.signed.signature == identity::signature(n),
        "its report"
    );
    ensure!(view.workitem(exam.id, exam.workitem)?.is_some_and(|step| step.at == report.at), "its workitem");
    let uid = exam.studies.first().context("no study")?;
    let study = view.study(uid.as_str())?.context("its study")?;
    let part = study.parts.first().context("no part")?;
    ensure!(part.exam == exam.id && part.part.manifest == identity::manifest(n), "its images");
    let [key] = <[_; 1]>::try_from(view.study_keys_of(uid.as_str(), part.origin)?).ok().context("not one key")?;
    ensure!(key.id == identity::key_id(n) && key.what == KeptKey::Kept(identity::secret(n)), "its key");
    Ok(())
}

/// Seconds for all reports of a month in the middle of the copies, or of half their time; and how many there are.
pub(super) fn month(reader: &dyn Reader, copies: &Copies) -> anyhow::Result<(f64, u64)> {
    let (view, numbers) = (View::new(reader), copies.numbers());
    let middle = view.exam(copies.id(numbers.start + (numbers.end - numbers.start) / 2))?.context("no exam")?;
    let all = (numbers.end - numbers.start) * COMMANDS * STEP_MS;
    let (from, period) = (middle.added_at.0, MONTH_MS.min(all / 4));
    let (since, mut reports) = (Instant::now(), 0_u64);
    view.turnarounds(UnixMillisField(from), UnixMillisField(from + period), &mut |_| reports += 1)?;
    let taken = since.elapsed().as_secs_f64();
    let expected = period / (COMMANDS * STEP_MS);
    ensure!(reports.abs_diff(expected) <= 1, "{reports} reports in a month of {expected}");
    Ok((taken, reports))
}

/// Verifies a piece of the trail in the middle of the copies, and its end, which was lived; entries a second.
pub(super) fn trail(reader: &dyn Reader, copies: &Copies, last: u64) -> anyhow::Result<f64> {
    let numbers = copies.numbers();
    let middle = copies.id(numbers.start + (numbers.end - numbers.start) / 2).0;
    let (view, since) = (View::new(reader), Instant::now());
    let mut verified = 0;
    for from in [middle, last.saturating_sub(VERIFIED / 2)] {
        let mut before = view.audit_entry(from)?.context("no entry")?;
        let end = (from + VERIFIED / 2).min(last);
        while before.entry.index < end {
            for link in view.audit(before.entry.index, TRAIL_PAGE)? {
                ensure!(link.entry.index == before.entry.index + 1, "an entry is missing");
                ensure!(link.chain == chain(&before.chain, &link.entry), "the chain breaks at {}", link.entry.index);
                before = link;
                verified += 1;
            }
        }
    }
    Ok(f64::from(verified) / since.elapsed().as_secs_f64())
}
