//! Reads of the replicated state: what worklists, status pages and reconcilers ask.
//!
//! A view is a local read. Whether it is fresh is the Raft layer's to say: call
//! `Group::linearize` first, or show the age.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;

use maillage_host::engine::{Reader, scan_prefix, scan_within};

use crate::audit::{Attestation, Link};
use crate::command::{Subscription, UnixMillisField};
use crate::event::{Cursor, Event};
use crate::exam::{Exam, ExamState, Report, Workitem};
use crate::ids::{Address, ExamId, KeyId, PeerKey, SiteId};
use crate::keys;
use crate::machine::ApplyError;
use crate::mesh::{Counts, HeldPart, JoinToken, Mesh, Site, Study, Tombstone};
use crate::order::{Hospital, Policy, Situation};
use crate::placement::{Layout, Placement, Plan, Standing};
use crate::record::Record;
use crate::remark::Remark;
use crate::room::{Places, Room};
use crate::statistics::Turnaround;
use crate::study_key::{Destruction, StudyKey};

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

    /// A hash of all that is kept of sites and join tokens: whether either changed, without decoding them.
    pub fn members_hash(&self) -> Result<[u8; 32], ApplyError> {
        let mut hasher = blake3::Hasher::new();
        for prefix in [keys::SITES, keys::TOKENS] {
            scan_within(self.0, &prefix, Bound::Unbounded, &mut |key, value| {
                for part in [key, value] {
                    hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
                }
                true
            })?;
        }
        Ok(hasher.finalize().into())
    }

    /// One exam.
    pub fn exam(&self, id: ExamId) -> Result<Option<Exam>, ApplyError> {
        self.read::<Exam>(&keys::exam(id))?.map(|exam| self.whole(exam)).transpose()
    }

    fn whole(&self, exam: Exam) -> Result<Exam, ApplyError> {
        let id = exam.id;
        exam.with_standing_report(|number| self.read(&keys::report(id, number)))
    }

    /// Up to `limit` exams of the waiting room, in the order in which they are to be read at `now`.
    pub fn waiting(&self, now: UnixMillisField, limit: usize) -> Result<Vec<Exam>, ApplyError> {
        let (mut room, mut exams) = (Room::new(now), Vec::new());
        while exams.len() < limit {
            let Some(place) = room.next(self)? else { break };
            exams.extend(self.exam(place.exam)?);
        }
        Ok(exams)
    }

    /// What is left of an exam's purged parts.
    pub fn tombstones(&self, exam: ExamId) -> Result<Vec<Tombstone>, ApplyError> {
        self.all(&keys::tombstones_of(exam), usize::MAX)
    }

    /// Up to `limit` purged parts that a site has not confirmed, behind `after`; and where the next begin, if
    /// there may be more.
    pub fn purges_of(
        &self,
        site: SiteId,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<Tombstone>, Option<Vec<u8>>), ApplyError> {
        let prefix = keys::purges_of(site);
        let (mut found, mut last) = (Vec::new(), None);
        scan_within(self.0, &prefix, after.map_or(Bound::Unbounded, Bound::Excluded), &mut |key, _| {
            let goes_on = found.len() < limit;
            if goes_on {
                found.extend(keys::tombstone_of(key));
                last = Some(key.to_vec());
            }
            goes_on
        })?;
        let mut tombstones = Vec::new();
        for key in &found {
            tombstones.extend(self.read::<Tombstone>(key)?);
        }
        Ok((tombstones, last.filter(|_| found.len() == limit)))
    }

    /// A key under which images are sealed, or what is left of it.
    pub fn study_key(&self, id: KeyId) -> Result<Option<StudyKey>, ApplyError> {
        self.read(&keys::study_key(id))
    }

    /// The keys of a site's part of a study that are not destroyed.
    pub fn study_keys_of(&self, study: &str, origin: SiteId) -> Result<Vec<StudyKey>, ApplyError> {
        let listed = scan_prefix(self.0, &keys::study_keys_of(study, origin), usize::MAX)?;
        let ids = listed.iter().filter_map(|(key, _)| keys::trailing_key_id(key));
        ids.filter_map(|id| self.study_key(id).transpose()).collect()
    }

    /// What keys were destroyed.
    pub fn destruction(&self) -> Result<Destruction, ApplyError> {
        Ok(self.read(&keys::DESTRUCTION)?.unwrap_or_default())
    }

    /// Whether a site has still to purge something of a study, and the highest number under which it had
    /// published what was purged of it; 0 for none.
    pub fn purged_of(&self, site: SiteId, study: &str) -> Result<(bool, u64), ApplyError> {
        let pending = !scan_prefix(self.0, &keys::purges_of_study(site, study), 1)?.is_empty();
        let last = self.0.get(&keys::last_purged(study, site))?;
        Ok((pending, last.and_then(|bytes| keys::trailing_number(&bytes)).unwrap_or(0)))
    }

    /// When something of a study was last purged; none if nothing ever was.
    pub fn purged_at(&self, study: &str) -> Result<Option<UnixMillisField>, ApplyError> {
        let at = self.0.get(&keys::purged_at(study))?;
        Ok(at.and_then(|bytes| keys::trailing_number(&bytes)).map(UnixMillisField))
    }

    /// The same, if the mesh has nothing more of what it knew of the study then, whatever it may have got of it since.
    pub fn purged_whole_at(&self, study: &str) -> Result<Option<UnixMillisField>, ApplyError> {
        let Some(purged_at) = self.purged_at(study)? else { return Ok(None) };
        for held in self.study(study)?.iter().flat_map(|study| &study.parts) {
            // A part may have gone from exam to exam, and its keys are no younger than it. What is not sealed has none.
            let keys = self.study_keys_of(study, held.origin)?;
            let is_later = self.exam(held.exam)?.is_some_and(|exam| exam.added_at > purged_at);
            if !is_later || keys.is_empty() || keys.iter().any(|key| key.kept_at <= purged_at) {
                return Ok(None);
            }
        }
        Ok(Some(purged_at))
    }

    /// When an exam's images are to go by the rules of today, if nothing holds them.
    pub fn retained_until(&self, exam: &Exam) -> Result<UnixMillisField, ApplyError> {
        let hospital = self.hospital(exam.request.hospital.as_str())?;
        Ok(self.policy()?.retained_until(hospital.as_ref(), exam))
    }

    /// When an exam's images are likely to go by the rules of today: see [`Policy::expected_until`].
    pub fn expected_until(&self, exam: &Exam, now: UnixMillisField) -> Result<UnixMillisField, ApplyError> {
        let hospital = self.hospital(exam.request.hospital.as_str())?;
        Ok(self.policy()?.expected_until(hospital.as_ref(), exam, now))
    }

    /// Up to `limit` exams whose request waits for a regulator, first come first.
    pub fn to_regulate(&self, limit: usize) -> Result<Vec<Exam>, ApplyError> {
        self.indexed(&keys::REGULATION, limit)
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
        failure.map_or(Ok(()), Err)?;
        exams.into_iter().map(|exam| self.whole(exam)).collect()
    }

    /// Up to `limit` exams that `keep` wants, in ascending order from `after` on (exclusive), of at most
    /// `scan_max` that are looked at; and where to go on from, if it did not come to the end.
    pub fn exams_where(
        &self,
        after: Option<ExamId>,
        scan_max: usize,
        limit: usize,
        keep: &dyn Fn(&Exam) -> bool,
    ) -> Result<(Vec<Exam>, Option<ExamId>), ApplyError> {
        let from = keys::exam(after.unwrap_or(ExamId(0)));
        let end = [keys::EXAMS[0] + 1];
        let (mut exams, mut seen, mut next) = (Vec::new(), 0, None);
        let mut failure = None;
        self.0.scan(Bound::Excluded(from.as_slice()), Bound::Excluded(&end), &mut |_, bytes| {
            let exam = match Exam::decode(bytes) {
                Ok(exam) => exam,
                Err(error) => {
                    failure = Some(error);
                    return false;
                }
            };
            seen += 1;
            let id = exam.id;
            if keep(&exam) {
                exams.push(exam);
            }
            let goes_on = exams.len() < limit && seen < scan_max;
            if !goes_on {
                next = Some(id);
            }
            goes_on
        })?;
        failure.map_or(Ok(()), Err)?;
        let exams = exams.into_iter().map(|exam| self.whole(exam)).collect::<Result<_, _>>()?;
        Ok((exams, next))
    }

    /// Up to `limit` exams with a number below `before`, the newest first.
    pub fn exams_back(&self, before: ExamId, limit: usize) -> Result<Vec<Exam>, ApplyError> {
        // Exams are some of the log's entries: a window several times as wide holds enough, mostly.
        let exams = back(before.0, limit, limit as u64 * 8 + 16, |from| {
            self.page(&keys::exam(ExamId(from.saturating_sub(1))), &keys::exam(before), usize::MAX)
        })?;
        exams.into_iter().map(|exam: Exam| self.whole(exam)).collect()
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

    /// One workitem.
    pub fn workitem(&self, exam: ExamId, number: u32) -> Result<Option<Workitem>, ApplyError> {
        self.read(&keys::workitem(exam, number))
    }

    /// The workitem that a client gave this UID.
    pub fn workitem_named(&self, uid: &str) -> Result<Option<(ExamId, u32)>, ApplyError> {
        let Some(bytes) = self.0.get(&keys::workitem_uid(uid))? else { return Ok(None) };
        let corrupt = || ApplyError::Corrupt("workitem index".into());
        let (exam, number) = bytes.split_first_chunk::<8>().ok_or_else(corrupt)?;
        let number = number.try_into().map_err(|_| corrupt())?;
        Ok(Some((ExamId(u64::from_be_bytes(*exam)), u32::from_be_bytes(number))))
    }

    /// What was said of an exam, first to last.
    pub fn remarks(&self, exam: ExamId) -> Result<Vec<Remark>, ApplyError> {
        self.all(&keys::remarks_of(exam), usize::MAX)
    }

    /// Up to `limit` critical results that nobody has acknowledged: exam, remark, when it escalates.
    pub fn criticals(&self, limit: usize) -> Result<Vec<(ExamId, u32, UnixMillisField)>, ApplyError> {
        let number = |key: &[u8], from: usize| Some(u64::from_be_bytes(key.get(from..from + 8)?.try_into().ok()?));
        let pairs = scan_prefix(self.0, &keys::CRITICALS, limit)?;
        Ok(pairs
            .iter()
            .filter_map(|(key, _)| {
                let remark = u32::from_be_bytes(key.get(17..21)?.try_into().ok()?);
                Some((ExamId(number(key, 9)?), remark, UnixMillisField(number(key, 1)?)))
            })
            .collect())
    }

    /// Up to `limit` events after a cursor, in order.
    pub fn events(&self, after: Cursor, limit: usize) -> Result<Vec<(Cursor, Event)>, ApplyError> {
        let (from, end) = (keys::event(after), [keys::EVENTS[0] + 1]);
        let mut events = Vec::new();
        let mut failure = None;
        if limit > 0 {
            self.0.scan(Bound::Excluded(from.as_slice()), Bound::Excluded(&end), &mut |key, bytes| {
                match (keys::cursor_of(key), Event::decode(bytes)) {
                    (Some(cursor), Ok(event)) => events.push((cursor, event)),
                    (None, _) => failure = Some(ApplyError::Corrupt("event index".into())),
                    (_, Err(error)) => failure = Some(error),
                }
                failure.is_none() && events.len() < limit
            })?;
        }
        failure.map_or(Ok(events), Err)
    }

    /// The last event that was forgotten: a client that asks for what came before it has missed some.
    pub fn forgotten(&self) -> Result<Cursor, ApplyError> {
        let key = self.0.get(&keys::EVENT_CURSOR)?;
        Ok(key.as_deref().and_then(keys::cursor_of).unwrap_or_default())
    }

    /// Up to `limit` entries of the audit trail with an index after `after`.
    pub fn audit(&self, after: u64, limit: usize) -> Result<Vec<Link>, ApplyError> {
        self.page(&keys::audit(after), &[keys::AUDIT[0] + 1], limit)
    }

    /// One entry of the audit trail.
    pub fn audit_entry(&self, index: u64) -> Result<Option<Link>, ApplyError> {
        self.read(&keys::audit(index))
    }

    /// The audit chain's value now; zeros before its first entry.
    pub fn audit_chain(&self) -> Result<Address, ApplyError> {
        let bytes = self.0.get(&keys::CHAIN)?.unwrap_or_else(|| vec![0; 32]);
        bytes.try_into().map_err(|_| ApplyError::Corrupt("audit chain".into()))
    }

    /// Up to `limit` entries of the audit trail, the newest first, with an index before `before`, which is
    /// best at most one past the newest: what lies between is looked through.
    pub fn audit_back(&self, before: u64, limit: usize) -> Result<Vec<Link>, ApplyError> {
        // Indexes are dense but for Raft's own entries: a window twice as wide holds enough, mostly.
        back(before, limit, limit as u64 * 2 + 16, |from| {
            self.page(&keys::audit(from.saturating_sub(1)), &keys::audit(before), usize::MAX)
        })
    }

    /// What the sites said of their audit chains, as this replica compared them with its own.
    pub fn attestations(&self) -> Result<Vec<Attestation>, ApplyError> {
        self.all(&keys::ATTESTATIONS, usize::MAX)
    }

    /// What one site said last of its audit chain.
    pub fn attestation(&self, site: SiteId) -> Result<Option<Attestation>, ApplyError> {
        self.read(&keys::attestation(site))
    }

    /// The format at which the mesh runs.
    pub fn format(&self) -> Result<u8, ApplyError> {
        Ok(self.mesh()?.map_or(1, |mesh| mesh.format))
    }

    /// A partner hospital.
    pub fn hospital(&self, name: &str) -> Result<Option<Hospital>, ApplyError> {
        self.read(&keys::hospital(name))
    }

    /// All partner hospitals, in no order of meaning.
    pub fn hospitals(&self) -> Result<Vec<Hospital>, ApplyError> {
        self.all(&keys::HOSPITALS, usize::MAX)
    }

    /// Where a site is.
    pub fn situation(&self, site: SiteId) -> Result<Situation, ApplyError> {
        Ok(self.read(&keys::situation(site))?.unwrap_or_default())
    }

    /// What the mesh has agreed on for its waiting room.
    pub fn policy(&self) -> Result<Policy, ApplyError> {
        Ok(self.read(&keys::POLICY)?.unwrap_or_default())
    }

    /// All subscriptions to workitems' events.
    pub fn subscriptions(&self) -> Result<Vec<Subscription>, ApplyError> {
        self.all(&keys::SUBSCRIPTIONS, usize::MAX)
    }

    /// The times of final reports signed from `from` on, before `to`, in that order, each given to `each`.
    pub fn turnarounds(
        &self,
        from: UnixMillisField,
        to: UnixMillisField,
        each: &mut dyn FnMut(Turnaround),
    ) -> Result<(), ApplyError> {
        let (from, to) = (keys::turnarounds_from(from), keys::turnarounds_from(to));
        let mut failure = None;
        self.0.scan(Bound::Included(from.as_slice()), Bound::Excluded(&to), &mut |_, bytes| {
            match Turnaround::decode(bytes) {
                Ok(turnaround) => each(turnaround),
                Err(error) => failure = Some(error),
            }
            failure.is_none()
        })?;
        failure.map_or(Ok(()), Err)
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

    /// The layout that holds, and the one that is staged.
    pub fn placement(&self) -> Result<Placement, ApplyError> {
        Ok(self.read(&keys::PLACEMENT)?.unwrap_or_default())
    }

    /// The sites that take no copies, or took none once.
    pub fn standings(&self) -> Result<Vec<Standing>, ApplyError> {
        self.all(&keys::STANDINGS, usize::MAX)
    }

    /// The applied layout over the sites as they are.
    pub fn plan(&self) -> Result<Plan, ApplyError> {
        self.plan_of(self.placement()?.applied)
    }

    /// Another layout over them.
    pub fn plan_of(&self, layout: Layout) -> Result<Plan, ApplyError> {
        self.plan_over(layout, self.sites()?)
    }

    /// Another layout over the sites of this view, which the caller has read already.
    pub fn plan_over(&self, layout: Layout, sites: Vec<Site>) -> Result<Plan, ApplyError> {
        let mut placed = Vec::new();
        for site in sites.into_iter().filter(|site| !site.is_gateway()) {
            let place = self.situation(site.id)?.place;
            placed.push((site, place));
        }
        let copies = self.mesh()?.map_or(1, |mesh| mesh.copies);
        Ok(Plan::new(layout, copies, placed, &self.standings()?))
    }

    /// Whether a site may have a part's images: those of a patient who refuses the transfer stay where they
    /// were received.
    pub fn may_hold(&self, site: SiteId, held: &HeldPart) -> Result<bool, ApplyError> {
        Ok(held.origin == site || !self.exam(held.exam)?.is_some_and(|exam| exam.is_confined()))
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

    /// The studies behind `after` and up to `last` of which a part must not leave the site that received it; none
    /// without a `last`.
    pub fn confined(&self, after: Option<&str>, last: Option<&str>) -> Result<BTreeSet<String>, ApplyError> {
        let Some(last) = last.map(keys::counted) else { return Ok(BTreeSet::new()) };
        let from = after.map_or_else(|| keys::COUNTED.to_vec(), keys::counted);
        let mut confined = BTreeSet::new();
        self.0.scan(Bound::Excluded(from.as_slice()), Bound::Included(last.as_slice()), &mut |key, counted| {
            if counted.first().is_some_and(|byte| byte & keys::COUNTED_CONFINED != 0) {
                confined.insert(String::from_utf8_lossy(&key[1..]).into_owned());
            }
            true
        })?;
        Ok(confined)
    }

    /// Up to `limit` studies, after `after`, of which images are at sites where they must not be; each with
    /// the manifests that the site which received them has verified since.
    pub fn strayed(&self, after: Option<&str>, limit: usize) -> Result<Vec<(Study, Vec<Address>)>, ApplyError> {
        let from = after.map_or_else(|| keys::STRAYED.to_vec(), keys::strayed);
        let (end, mut found) = ([keys::STRAYED[0] + 1], Vec::new());
        if limit > 0 {
            self.0.scan(Bound::Excluded(from.as_slice()), Bound::Excluded(&end), &mut |key, vouched| {
                found.push((String::from_utf8_lossy(&key[1..]).into_owned(), vouched.to_vec()));
                found.len() < limit
            })?;
        }
        let mut strayed = Vec::with_capacity(found.len());
        for (uid, vouched) in found {
            let study = self.study(&uid)?.ok_or_else(|| ApplyError::Corrupt("list of strayed studies".into()))?;
            strayed.push((study, vouched.as_chunks().0.to_vec()));
        }
        Ok(strayed)
    }

    /// How many exams and studies are in which state.
    pub fn counts(&self) -> Result<Counts, ApplyError> {
        Ok(self.read(&keys::COUNTS)?.unwrap_or_default())
    }
}

/// The last `limit` records before the number `before`, the last first. `window` reads those from a number
/// on, in ascending order; it is asked for a span of `width`, and for wider ones until there are enough.
fn back<R>(
    before: u64,
    limit: usize,
    mut width: u64,
    window: impl Fn(u64) -> Result<Vec<R>, ApplyError>,
) -> Result<Vec<R>, ApplyError> {
    loop {
        let from = before.saturating_sub(width);
        let mut records = window(from)?;
        // Nothing has the number 0.
        if records.len() >= limit || from <= 1 {
            records.reverse();
            records.truncate(limit);
            return Ok(records);
        }
        width = width.saturating_mul(4);
    }
}

impl Places for View<'_> {
    fn places(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Vec<u8>>, ApplyError> {
        let floor = self.0.get(&keys::floor_of_level(prefix))?;
        let from = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(floor.as_deref().unwrap_or(prefix)),
        };
        let mut places = Vec::new();
        scan_within(self.0, prefix, from, &mut |key, _| {
            places.push(key.to_vec());
            places.len() < limit
        })?;
        Ok(places)
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
