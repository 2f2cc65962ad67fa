//! The state's part in placement: layouts, who takes copies, and what each study counts as.
//!
//! How a study was counted is kept beside it, so that it is taken out of the counts as it was put in, whatever the
//! layout or the patient's consent has become since.

use std::collections::BTreeSet;

use super::State;
use crate::ids::{ExamId, SiteId};
use crate::keys;
use crate::machine::ApplyError;
use crate::mesh::Study;
use crate::placement::{Layout, Placement, Plan, Standing};
use crate::record::Record as _;

/// Studies judged anew from one read.
const JUDGED_AT_ONCE: usize = 512;

/// What a study counts as: one byte, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counted {
    /// A part is on fewer than two sites.
    below_two: bool,
    /// … on fewer than wanted, or in one zone though two could have it.
    below_wanted: bool,
    /// A part stays where it was received, so that none of this is expected of it.
    confined: bool,
}

impl Counted {
    fn byte(self) -> u8 {
        u8::from(self.below_two) | u8::from(self.below_wanted) << 1 | u8::from(self.confined) << 2
    }

    fn of_byte(byte: u8) -> Self {
        Self { below_two: byte & 1 != 0, below_wanted: byte & 2 != 0, confined: byte & 4 != 0 }
    }

    /// As every study was counted before there were layouts.
    fn plainly(study: &Study, wanted: usize) -> Self {
        Self { below_two: study.copies() < 2, below_wanted: study.copies() < wanted, confined: false }
    }

    /// A study by `plan`, or plainly: its parts that stay where they were received are expected nowhere else.
    fn of(mut study: Study, confined: &[ExamId], plan: Option<&Plan>, wanted: usize) -> Self {
        let parts = study.parts.len();
        study.parts.retain(|held| !confined.contains(&held.exam));
        let is = match plan {
            _ if study.parts.is_empty() => Self::default(),
            None => Self::plainly(&study, wanted),
            Some(plan) => {
                let below_wanted = study.parts.iter().any(|held| plan.is_short(held));
                Self { below_wanted, ..Self::plainly(&study, wanted) }
            }
        };
        Self { confined: study.parts.len() < parts, ..is }
    }
}

impl State<'_, '_> {
    pub(crate) fn placement(&self) -> Result<Placement, ApplyError> {
        Ok(self.read(&keys::PLACEMENT)?.unwrap_or_default())
    }

    pub(crate) fn put_placement(&mut self, placement: &Placement) {
        self.write(keys::PLACEMENT.to_vec(), placement);
    }

    pub(crate) fn standing(&self, site: SiteId) -> Result<Standing, ApplyError> {
        Ok(self.read(&keys::standing(site))?.unwrap_or_else(|| Standing::usual(site)))
    }

    pub(crate) fn put_standing(&mut self, standing: &Standing) {
        self.write(keys::standing(standing.site), standing);
    }

    fn standings(&self) -> Result<Vec<Standing>, ApplyError> {
        let pairs = self.transaction.scan_prefix(&keys::STANDINGS, usize::MAX)?;
        pairs.iter().map(|(_, bytes)| Standing::decode(bytes)).collect()
    }

    /// The applied layout over the sites as they are.
    pub(crate) fn plan(&self) -> Result<Plan, ApplyError> {
        self.plan_of(self.placement()?.applied)
    }

    /// Another layout over them.
    pub(crate) fn plan_of(&self, layout: Layout) -> Result<Plan, ApplyError> {
        let mut sites = Vec::new();
        for site in self.sites()?.into_iter().filter(|site| !site.is_gateway()) {
            let place = self.situation(site.id)?.place;
            sites.push((site, place));
        }
        Ok(Plan::new(layout, self.wanted()?, sites, &self.standings()?))
    }

    fn wanted(&self) -> Result<u8, ApplyError> {
        Ok(self.mesh()?.map_or(1, |mesh| mesh.copies))
    }

    /// The plan by which studies are judged; none where nothing was ever applied nor drained: all count alike.
    fn judge(&self) -> Result<Option<Plan>, ApplyError> {
        let is_plain = self.format < 2
            || (self.transaction.get(&keys::PLACEMENT)?.is_none()
                && self.transaction.scan_prefix(&keys::STANDINGS, 1)?.is_empty());
        if is_plain { Ok(None) } else { self.plan().map(Some) }
    }

    /// Whether enough sites have a part, all of them in one zone: others may have to have it, too, by where they are.
    fn lies_in_one_zone(&self, study: &Study) -> Result<bool, ApplyError> {
        if self.format < 2 || study.copies() < usize::from(self.wanted()?).max(2) {
            return Ok(false);
        }
        for held in &study.parts {
            let mut zones = BTreeSet::new();
            for site in &held.holders {
                zones.extend(self.site(*site)?.map(|site| site.description.zone));
            }
            if zones.len() < 2 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Counts a study as it now is; `before` is what it was, `after` none when it is forgotten.
    pub(super) fn count_study(&mut self, before: Option<&Study>, after: Option<&Study>) -> Result<(), ApplyError> {
        let (was, mut plan) = (self.counted(before)?, self.judge()?);
        if let (None, Some(study)) = (&plan, after)
            && self.lies_in_one_zone(study)?
        {
            plan = Some(self.plan()?);
        }
        let is = match after {
            Some(study) => Counted::of(study.clone(), &self.confined(study)?, plan.as_ref(), self.wanted()?.into()),
            None => Counted::default(),
        };
        self.count(before, after, was, is)
    }

    /// The exams of a study whose images stay where they were received.
    fn confined(&self, study: &Study) -> Result<Vec<ExamId>, ApplyError> {
        let mut confined = Vec::new();
        for held in study.parts.iter().filter(|_| self.format >= 2) {
            if self.exam(held.exam)?.is_some_and(|exam| exam.is_confined()) {
                confined.push(held.exam);
            }
        }
        Ok(confined)
    }

    /// Judges every study anew: what is wanted of it has changed.
    pub(crate) fn judge_all(&mut self) -> Result<(), ApplyError> {
        let plan = if self.format < 2 { None } else { Some(self.plan()?) };
        let wanted = self.wanted()?.into();
        let mut after = keys::STUDIES.to_vec();
        loop {
            let page = self.transaction.scan_prefix_after(&keys::STUDIES, &after, JUDGED_AT_ONCE)?;
            for (_, bytes) in &page {
                let study = Study::decode(bytes)?;
                let was = self.counted(Some(&study))?;
                // Exams are many times as large as what is asked of them here.
                let confined = if was.confined { self.confined(&study)? } else { Vec::new() };
                let is = Counted::of(study.clone(), &confined, plan.as_ref(), wanted);
                if is != was {
                    self.count(Some(&study), Some(&study), was, is)?;
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == JUDGED_AT_ONCE => after.clone_from(key),
                _ => return Ok(()),
            }
        }
    }

    /// How a study is counted now.
    fn counted(&self, study: Option<&Study>) -> Result<Counted, ApplyError> {
        let Some(study) = study else { return Ok(Counted::default()) };
        match self.transaction.get(&keys::counted(study.uid.as_str()))?.as_deref() {
            Some([byte]) => Ok(Counted::of_byte(*byte)),
            Some(_) => Err(ApplyError::Corrupt("how a study is counted".into())),
            None => Ok(Counted::plainly(study, usize::from(self.wanted()?))),
        }
    }

    fn count(
        &mut self,
        before: Option<&Study>,
        after: Option<&Study>,
        was: Counted,
        is: Counted,
    ) -> Result<(), ApplyError> {
        let Some(study) = after.or(before) else { return Ok(()) };
        let (below_wanted, counted) = (keys::below_wanted(study.uid.as_str()), keys::counted(study.uid.as_str()));
        let mut counts = self.counts()?;
        for (count, was, is) in [
            (&mut counts.studies, before.is_some(), after.is_some()),
            (&mut counts.studies_below_two, was.below_two, is.below_two),
            (&mut counts.studies_below_wanted, was.below_wanted, is.below_wanted),
            (&mut counts.more.studies_confined, was.confined, is.confined),
        ] {
            *count += u64::from(is);
            *count -= u64::from(was);
        }
        self.write(keys::COUNTS.to_vec(), &counts);
        if is.below_wanted {
            self.transaction.put(below_wanted, []);
        } else {
            self.transaction.remove(below_wanted);
        }
        if self.format >= 2 {
            match after {
                Some(_) => self.transaction.put(counted, [is.byte()]),
                None => self.transaction.remove(counted),
            }
        }
        Ok(())
    }
}
