//! Reads of the replicated state: what worklists, status pages and reconcilers ask.
//!
//! A view is a local read. Whether it is fresh is the Raft layer's to say: call
//! `Group::linearize` first, or show the age.

use std::io;
use std::ops::Bound;

use maillage_host::engine::{Reader, scan_prefix};

use crate::command::UnixMillisField;
use crate::exam::{Exam, ExamState, Report, Workitem};
use crate::ids::{ExamId, PeerKey, SiteId};
use crate::keys;
use crate::machine::ApplyError;
use crate::mesh::{Counts, JoinToken, Mesh, Site, Study};
use crate::record::Record;

/// Typed reads over an engine or one of its frozen views.
pub struct View<'a>(&'a dyn Reader);

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("View")
    }
}

impl<'a> View<'a> {
    /// Reads through `reader`.
    pub fn new(reader: &'a dyn Reader) -> Self {
        Self(reader)
    }

    fn read<R: Record>(&self, key: &[u8]) -> Result<Option<R>, ApplyError> {
        self.0.get(key)?.map(|bytes| R::decode(&bytes)).transpose()
    }

    fn all<R: Record>(&self, prefix: &[u8], limit: usize) -> Result<Vec<R>, ApplyError> {
        scan_prefix(self.0, prefix, limit)?.iter().map(|(_, bytes)| R::decode(bytes)).collect()
    }

    /// The mesh, once founded.
    ///
    /// # Errors
    /// [`ApplyError`] here and below: the engine failed or holds a record it cannot read.
    pub fn mesh(&self) -> Result<Option<Mesh>, ApplyError> {
        self.read(&keys::MESH)
    }

    /// The state's clock: the latest stamp of any command.
    pub fn clock(&self) -> Result<UnixMillisField, ApplyError> {
        let bytes = self.0.get(&keys::CLOCK)?.unwrap_or_default();
        Ok(UnixMillisField(bytes.try_into().map(u64::from_be_bytes).unwrap_or(0)))
    }

    /// All sites, in ascending order.
    pub fn sites(&self) -> Result<Vec<Site>, ApplyError> {
        self.all(&keys::SITES, usize::MAX)
    }

    /// One site.
    pub fn site(&self, id: SiteId) -> Result<Option<Site>, ApplyError> {
        self.read(&keys::site(id))
    }

    /// The site with this identity.
    pub fn site_of(&self, key: &PeerKey) -> Result<Option<SiteId>, ApplyError> {
        let bytes = self.0.get(&keys::peer(key))?;
        Ok(bytes.and_then(|bytes| keys::trailing_number(&bytes)).map(SiteId))
    }

    /// All join tokens, used and expired ones included.
    pub fn tokens(&self) -> Result<Vec<JoinToken>, ApplyError> {
        self.all(&keys::TOKENS, usize::MAX)
    }

    /// One exam.
    pub fn exam(&self, id: ExamId) -> Result<Option<Exam>, ApplyError> {
        self.read(&keys::exam(id))
    }

    /// Up to `limit` exams of the waiting room, in the order in which they are to be read.
    pub fn waiting(&self, limit: usize) -> Result<Vec<Exam>, ApplyError> {
        let floor = self.0.get(&keys::WAITING_FLOOR)?.unwrap_or_else(|| keys::WAITING.to_vec());
        let mut ids = Vec::new();
        if limit > 0 {
            let end = [keys::WAITING[0] + 1];
            self.0.scan(Bound::Included(floor.as_slice()), Bound::Excluded(&end), &mut |key, _| {
                ids.extend(keys::trailing_number(key).map(ExamId));
                ids.len() < limit
            })?;
        }
        let exams: Result<Vec<_>, _> = ids.into_iter().map(|id| self.exam(id)).collect();
        Ok(exams?.into_iter().flatten().collect())
    }

    /// Up to `limit` claimed exams, by site.
    pub fn claimed(&self, limit: usize) -> Result<Vec<Exam>, ApplyError> {
        self.indexed(&keys::CLAIMS, limit)
    }

    /// Up to `limit` exams claimed at one site.
    pub fn claimed_at(&self, site: SiteId, limit: usize) -> Result<Vec<Exam>, ApplyError> {
        self.indexed(&keys::claims_of(site), limit)
    }

    /// Up to `limit` exams that ended, newest first.
    pub fn ended(&self, limit: usize) -> Result<Vec<Exam>, ApplyError> {
        self.indexed(&keys::ENDED, limit)
    }

    fn indexed(&self, prefix: &[u8], limit: usize) -> Result<Vec<Exam>, ApplyError> {
        let mut exams = Vec::new();
        for (key, _) in scan_prefix(self.0, prefix, limit)? {
            if let Some(id) = keys::trailing_number(&key) {
                exams.extend(self.exam(ExamId(id))?);
            }
        }
        Ok(exams)
    }

    /// Up to `limit` exams in ascending order from `after` on (exclusive), of one state or any.
    pub fn exams(
        &self,
        after: Option<ExamId>,
        state: Option<ExamState>,
        limit: usize,
    ) -> Result<Vec<Exam>, ApplyError> {
        let from = keys::exam(after.unwrap_or(ExamId(0)));
        let end = [keys::EXAMS[0] + 1];
        let mut exams = Vec::new();
        let mut failure = None;
        self.0.scan(Bound::Excluded(from.as_slice()), Bound::Excluded(&end), &mut |_, bytes| {
            match Exam::decode(bytes) {
                Ok(exam) if state.is_none_or(|state| state == exam.state) => exams.push(exam),
                Ok(_) => {}
                Err(error) => {
                    failure = Some(error);
                    return false;
                }
            }
            exams.len() < limit
        })?;
        failure.map_or(Ok(exams), Err)
    }

    /// Exams with an accession number.
    pub fn exams_with_accession(&self, accession: &str) -> Result<Vec<Exam>, ApplyError> {
        self.indexed(&keys::accessions_of(accession), usize::MAX)
    }

    /// An exam's workitems, first to last.
    pub fn workitems(&self, exam: ExamId) -> Result<Vec<Workitem>, ApplyError> {
        self.all(&keys::workitems_of(exam), usize::MAX)
    }

    /// An exam's reports, drafts under lost claims included.
    pub fn reports(&self, exam: ExamId) -> Result<Vec<Report>, ApplyError> {
        self.all(&keys::reports_of(exam), usize::MAX)
    }

    /// One study.
    pub fn study(&self, uid: &str) -> Result<Option<Study>, ApplyError> {
        self.read(&keys::study(uid))
    }

    /// Up to `limit` studies in UID order after `after`.
    pub fn studies(&self, after: Option<&str>, limit: usize) -> Result<Vec<Study>, ApplyError> {
        let from = after.map_or_else(|| keys::STUDIES.to_vec(), keys::study);
        self.page(&from, &[keys::STUDIES[0] + 1], limit)
    }

    fn page<R: Record>(&self, after: &[u8], end: &[u8], limit: usize) -> Result<Vec<R>, ApplyError> {
        let mut records: Vec<Result<R, ApplyError>> = Vec::new();
        if limit == 0 {
            return Ok(Vec::new());
        }
        self.0.scan(Bound::Excluded(after), Bound::Excluded(end), &mut |_, bytes| {
            records.push(R::decode(bytes));
            records.len() < limit
        })?;
        records.into_iter().collect()
    }

    /// UIDs of up to `limit` studies, after `after`, with a part on fewer sites than wanted.
    pub fn studies_below_wanted(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ApplyError> {
        let from = after.map_or_else(|| keys::BELOW_WANTED.to_vec(), keys::below_wanted);
        let mut uids = Vec::new();
        if limit == 0 {
            return Ok(uids);
        }
        let end = [keys::BELOW_WANTED[0] + 1];
        self.0.scan(Bound::Excluded(from.as_slice()), Bound::Excluded(&end), &mut |key, _| {
            uids.push(String::from_utf8_lossy(&key[1..]).into_owned());
            uids.len() < limit
        })?;
        Ok(uids)
    }

    /// How many exams and studies are in which state.
    pub fn counts(&self) -> Result<Counts, ApplyError> {
        Ok(self.read(&keys::COUNTS)?.unwrap_or_default())
    }
}

impl From<ApplyError> for io::Error {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}
