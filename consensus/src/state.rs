//! Typed access to the replicated state for the commands being applied.
//!
//! The indexes (waiting room, claims of a site, counts, under-replicated studies) are kept here, in
//! the one place that writes exams and studies, so that no command can forget them.

use crate::command::UnixMillisField;
use crate::exam::{Exam, ExamState, Report, Workitem};
use crate::ids::{ExamId, PeerKey, SiteId};
use crate::keys;
use crate::machine::ApplyError;
use crate::mesh::{Counts, JoinToken, Mesh, Site, Study};
use crate::record::Record;
use crate::transaction::Transaction;

/// The state as one command sees it.
pub(crate) struct State<'s, 'a> {
    pub(crate) transaction: &'s mut Transaction<'a>,
    /// The command's log index: the source of every new number.
    pub(crate) index: u64,
    /// The state's clock: never behind an earlier command's.
    pub(crate) now: UnixMillisField,
}

impl State<'_, '_> {
    pub(crate) fn read<R: Record>(&self, key: &[u8]) -> Result<Option<R>, ApplyError> {
        self.transaction.get(key)?.map(|bytes| R::decode(&bytes)).transpose()
    }

    fn write<R: Record>(&mut self, key: Vec<u8>, record: &R) {
        self.transaction.put(key, record.encode());
    }

    pub(crate) fn mesh(&self) -> Result<Option<Mesh>, ApplyError> {
        self.read(&keys::MESH)
    }

    pub(crate) fn put_mesh(&mut self, mesh: &Mesh) {
        self.write(keys::MESH.to_vec(), mesh);
    }

    pub(crate) fn site(&self, id: SiteId) -> Result<Option<Site>, ApplyError> {
        self.read(&keys::site(id))
    }

    pub(crate) fn sites(&self) -> Result<Vec<Site>, ApplyError> {
        let pairs = self.transaction.scan_prefix(&keys::SITES, usize::MAX)?;
        pairs.iter().map(|(_, bytes)| Site::decode(bytes)).collect()
    }

    pub(crate) fn site_of(&self, key: &PeerKey) -> Result<Option<SiteId>, ApplyError> {
        let bytes = self.transaction.get(&keys::peer(key))?;
        Ok(bytes.and_then(|bytes| keys::trailing_number(&bytes)).map(SiteId))
    }

    pub(crate) fn put_site(&mut self, site: &Site) {
        self.transaction.put(keys::peer(&site.description.key), site.id.0.to_be_bytes());
        self.write(keys::site(site.id), site);
    }

    pub(crate) fn token(&self, key: &PeerKey) -> Result<Option<JoinToken>, ApplyError> {
        self.read(&keys::token(key))
    }

    pub(crate) fn put_token(&mut self, token: &JoinToken) {
        self.write(keys::token(&token.key), token);
    }

    pub(crate) fn exam(&self, id: ExamId) -> Result<Option<Exam>, ApplyError> {
        self.read(&keys::exam(id))
    }

    /// Replaces `before` (none for a new exam) by `after`, with every index.
    pub(crate) fn put_exam(&mut self, before: Option<&Exam>, after: &Exam) -> Result<(), ApplyError> {
        let mut counts = self.counts()?;
        if let Some(exam) = before {
            self.unindex(exam);
            *count_of(&mut counts, exam.state) -= 1;
            counts.unsolicited -= u64::from(exam.unsolicited.is_some());
        }
        self.index(after)?;
        *count_of(&mut counts, after.state) += 1;
        counts.unsolicited += u64::from(after.unsolicited.is_some());
        self.write(keys::COUNTS.to_vec(), &counts);
        self.write(keys::exam(after.id), after);
        Ok(())
    }

    fn unindex(&mut self, exam: &Exam) {
        if let (ExamState::Waiting, Some(due_at)) = (exam.state, exam.due_at) {
            self.transaction.remove(keys::waiting(exam.request.priority, due_at, exam.id));
        }
        if let Some(claim) = &exam.claim {
            self.transaction.remove(keys::claim(claim.site, exam.id));
        }
        if let Some(at) = exam.ended_at {
            self.transaction.remove(keys::ended(at, exam.id));
        }
        if !exam.request.accession.is_empty() {
            self.transaction.remove(keys::accession(exam.request.accession.as_str(), exam.id));
        }
    }

    fn index(&mut self, exam: &Exam) -> Result<(), ApplyError> {
        if let (ExamState::Waiting, Some(due_at)) = (exam.state, exam.due_at) {
            let place = keys::waiting(exam.request.priority, due_at, exam.id);
            if place < self.waiting_floor()? {
                self.transaction.put(keys::WAITING_FLOOR, place.clone());
            }
            self.transaction.put(place, []);
        }
        if let Some(claim) = &exam.claim {
            self.transaction.put(keys::claim(claim.site, exam.id), []);
        }
        if let Some(at) = exam.ended_at {
            self.transaction.put(keys::ended(at, exam.id), []);
        }
        if !exam.request.accession.is_empty() {
            self.transaction.put(keys::accession(exam.request.accession.as_str(), exam.id), []);
        }
        Ok(())
    }

    /// Exams that bear an accession number, in ascending order.
    pub(crate) fn exams_with_accession(&self, accession: &str) -> Result<Vec<Exam>, ApplyError> {
        let mut exams = Vec::new();
        for (key, _) in self.transaction.scan_prefix(&keys::accessions_of(accession), usize::MAX)? {
            if let Some(id) = keys::trailing_number(&key) {
                exams.extend(self.exam(ExamId(id))?);
            }
        }
        Ok(exams)
    }

    /// Up to `limit` places of the waiting room, first due first: all, or those after `after`.
    pub(crate) fn waiting(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Vec<u8>>, ApplyError> {
        let pairs = match after {
            Some(after) => self.transaction.scan_prefix_after(&keys::WAITING, after, limit)?,
            None => self.transaction.scan_prefix_from(&keys::WAITING, &self.waiting_floor()?, limit)?,
        };
        Ok(pairs.into_iter().map(|(key, _)| key).collect())
    }

    fn waiting_floor(&self) -> Result<Vec<u8>, ApplyError> {
        Ok(self.transaction.get(&keys::WAITING_FLOOR)?.unwrap_or_else(|| keys::WAITING.to_vec()))
    }

    /// Notes that no place before `first` is taken.
    pub(crate) fn raise_waiting_floor(&mut self, first: &[u8]) -> Result<(), ApplyError> {
        if self.waiting_floor()?.as_slice() < first {
            self.transaction.put(keys::WAITING_FLOOR, first);
        }
        Ok(())
    }

    /// Exams claimed at a site.
    pub(crate) fn claimed_at(&self, site: SiteId) -> Result<Vec<ExamId>, ApplyError> {
        let pairs = self.transaction.scan_prefix(&keys::claims_of(site), usize::MAX)?;
        Ok(pairs.iter().filter_map(|(key, _)| keys::trailing_number(key)).map(ExamId).collect())
    }

    pub(crate) fn workitem(&self, exam: ExamId, number: u32) -> Result<Option<Workitem>, ApplyError> {
        self.read(&keys::workitem(exam, number))
    }

    pub(crate) fn put_workitem(&mut self, workitem: &Workitem) {
        self.write(keys::workitem(workitem.exam, workitem.number), workitem);
    }

    pub(crate) fn put_report(&mut self, report: &Report) {
        self.write(keys::report(report.exam, report.number), report);
    }

    pub(crate) fn study(&self, uid: &str) -> Result<Option<Study>, ApplyError> {
        self.read(&keys::study(uid))
    }

    /// Replaces a study, with the count of those that lack copies.
    pub(crate) fn put_study(&mut self, before: Option<&Study>, after: &Study) -> Result<(), ApplyError> {
        let wanted = self.mesh()?.map_or(1, |mesh| usize::from(mesh.copies));
        let mut counts = self.counts()?;
        match before {
            None => counts.studies += 1,
            Some(study) => {
                counts.studies_below_two -= u64::from(study.copies() < 2);
                counts.studies_below_wanted -= u64::from(study.copies() < wanted);
            }
        }
        counts.studies_below_two += u64::from(after.copies() < 2);
        counts.studies_below_wanted += u64::from(after.copies() < wanted);
        let uid = after.uid.as_str();
        if after.copies() < wanted {
            self.transaction.put(keys::below_wanted(uid), []);
        } else {
            self.transaction.remove(keys::below_wanted(uid));
        }
        self.write(keys::COUNTS.to_vec(), &counts);
        self.write(keys::study(uid), after);
        Ok(())
    }

    /// Counts a copy that is no more.
    pub(crate) fn count_lost_copy(&mut self) -> Result<(), ApplyError> {
        let mut counts = self.counts()?;
        counts.copies_lost += 1;
        self.write(keys::COUNTS.to_vec(), &counts);
        Ok(())
    }

    pub(crate) fn counts(&self) -> Result<Counts, ApplyError> {
        Ok(self.read(&keys::COUNTS)?.unwrap_or_default())
    }
}

fn count_of(counts: &mut Counts, state: ExamState) -> &mut u64 {
    match state {
        ExamState::Requested => &mut counts.requested,
        ExamState::Waiting => &mut counts.waiting,
        ExamState::Claimed => &mut counts.claimed,
        ExamState::Reported => &mut counts.reported,
        ExamState::Cancelled => &mut counts.cancelled,
    }
}
