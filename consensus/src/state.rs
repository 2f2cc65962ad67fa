//! Typed access to the replicated state for the commands being applied.
//!
//! The indexes (waiting room, claims of a site, counts, under-replicated studies) are kept here, in
//! the one place that writes exams and studies, so that no command can forget them.

use crate::audit::Attestation;
use crate::command::{Envelope, Subscription, UnixMillisField};
use crate::event::{Cursor, EVENTS_KEPT_MS, Event, Happened};
use crate::exam::{Exam, ExamState, Priority, Report, Workitem, WorkitemKind, WorkitemState};
use crate::ids::{Address, ExamId, KeyId, Name, PeerKey, SiteId, UidText};
use crate::keys;
use crate::life;
use crate::machine::ApplyError;
use crate::mesh::{Counts, JoinToken, Mesh, Site, Study, Tombstone};
use crate::order::{Hospital, Policy, Situation};
use crate::record::Record;
use crate::remark::{Remark, What};
use crate::room::Places;
use crate::statistics::Turnaround;
use crate::study_key::{Destruction, KeptKey, StudyKey};
use crate::transaction::Transaction;

mod placement;

/// Events forgotten per command, at most.
const FORGET_PER_COMMAND: usize = 8;

/// The state as one command sees it.
pub(crate) struct State<'s, 'a> {
    pub(crate) transaction: &'s mut Transaction<'a>,
    /// The command's log index: the source of every new number.
    pub(crate) index: u64,
    /// The state's clock: never behind an earlier command's.
    pub(crate) now: UnixMillisField,
    /// The mesh's format: what is kept is kept in its words.
    pub(crate) format: u8,
    /// Whose command it is, for its events.
    pub(crate) site: SiteId,
    /// … and whose hand.
    pub(crate) user: Name,
    /// What happened, in order.
    pub(crate) events: Vec<Event>,
}

impl<'s, 'a> State<'s, 'a> {
    /// What the command `envelope` at `index` sees and changes.
    pub(crate) fn new(
        transaction: &'s mut Transaction<'a>,
        index: u64,
        now: UnixMillisField,
        envelope: &Envelope,
    ) -> Result<Self, ApplyError> {
        let (site, user) = (envelope.site, envelope.user.clone());
        let mut state = Self { transaction, index, now, format: 1, site, user, events: Vec::new() };
        state.format = state.mesh()?.map_or(1, |mesh| mesh.format);
        Ok(state)
    }

    /// Keeps what happened, in a mesh whose format has events.
    pub(crate) fn finish(mut self) -> Result<(), ApplyError> {
        if self.format < 2 { Ok(()) } else { self.keep_events() }
    }

    /// Notes that something happened to an exam.
    pub(crate) fn happened(&mut self, exam: ExamId, what: Happened) {
        self.events.push(Event { at: self.now, user: self.user.clone(), site: self.site, exam, what });
    }

    /// Keeps what happened, and forgets what happened too long ago.
    fn keep_events(&mut self) -> Result<(), ApplyError> {
        let events = std::mem::take(&mut self.events);
        for (place, event) in (0_u16..).zip(events) {
            self.write(keys::event(Cursor { index: self.index, place }), &event);
        }
        let cursor = self.transaction.get(&keys::EVENT_CURSOR)?.unwrap_or_else(|| keys::EVENTS.to_vec());
        for (key, bytes) in self.transaction.scan_prefix_after(&keys::EVENTS, &cursor, FORGET_PER_COMMAND)? {
            if self.now.0.saturating_sub(Event::decode(&bytes)?.at.0) <= EVENTS_KEPT_MS {
                break;
            }
            self.transaction.put(keys::EVENT_CURSOR, key.clone());
            self.transaction.remove(key);
        }
        Ok(())
    }

    pub(crate) fn read<R: Record>(&self, key: &[u8]) -> Result<Option<R>, ApplyError> {
        self.transaction.get(key)?.map(|bytes| R::decode(&bytes)).transpose()
    }

    fn write<R: Record>(&mut self, key: Vec<u8>, record: &R) {
        let bytes = record.encode(self.format);
        self.transaction.put(key, bytes);
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
        match self.read::<Exam>(&keys::exam(id))? {
            Some(exam) if self.format >= 2 => exam.with_standing_report(|number| self.report(id, number)).map(Some),
            exam => Ok(exam),
        }
    }

    /// Replaces `before` (none for a new exam) by `after`, with every index.
    pub(crate) fn put_exam(&mut self, before: Option<&Exam>, after: &Exam) -> Result<(), ApplyError> {
        let mut counts = self.counts()?;
        if let Some(exam) = before {
            self.unindex(exam);
            *counts.of(exam.state) -= 1;
            counts.unsolicited -= u64::from(exam.unsolicited.is_some());
            counts.more.critical_open -= u64::from(exam.course.critical_open > 0);
            counts.more.legal_holds -= u64::from(exam.course.legal_hold.is_some());
        }
        self.index(after)?;
        let place = |exam: &Exam| (exam.state == ExamState::Waiting).then_some(exam.request.priority);
        if let Some(left) = before.and_then(place).filter(|level| self.format >= 2 && place(after) != Some(*level)) {
            self.raise_level_floor(left)?;
        }
        *counts.of(after.state) += 1;
        counts.unsolicited += u64::from(after.unsolicited.is_some());
        counts.more.critical_open += u64::from(after.course.critical_open > 0);
        counts.more.legal_holds += u64::from(after.course.legal_hold.is_some());
        self.write(keys::COUNTS.to_vec(), &counts);
        self.write(keys::exam(after.id), after);
        let from = before.map(|exam| exam.state);
        debug_assert!(
            from.is_none_or(|from| from == after.state || life::leads(from, after.state)),
            "no step leads from {from:?} to {:?}",
            after.state
        );
        if from != Some(after.state) {
            self.happened(after.id, Happened::Exam { from, to: after.state });
        }
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
        if Self::is_to_regulate(exam) {
            self.transaction.remove(keys::awaiting_regulation(exam.id));
        }
    }

    fn index(&mut self, exam: &Exam) -> Result<(), ApplyError> {
        if let (ExamState::Waiting, Some(due_at)) = (exam.state, exam.due_at) {
            let place = keys::waiting(exam.request.priority, due_at, exam.id);
            if place < self.waiting_floor()? {
                self.transaction.put(keys::WAITING_FLOOR, place.clone());
            }
            let level = keys::waiting_floor(exam.request.priority);
            if self.transaction.get(&level)?.is_some_and(|floor| place < floor) {
                self.transaction.put(level, place.clone());
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
        if Self::is_to_regulate(exam) {
            self.transaction.put(keys::awaiting_regulation(exam.id), []);
        }
        Ok(())
    }

    fn is_to_regulate(exam: &Exam) -> bool {
        use ExamState::{Acquiring, Receiving, Requested};
        exam.awaits_regulation() && matches!(exam.state, Requested | Acquiring | Receiving)
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

    /// Notes where a level of urgency begins now that a place of it was left, however that came.
    fn raise_level_floor(&mut self, priority: Priority) -> Result<(), ApplyError> {
        let key = keys::waiting_floor(priority);
        let first = self.places(&keys::waiting_level(priority), None, 1)?.pop();
        let first = first.unwrap_or_else(|| vec![keys::WAITING[0], priority as u8 + 1]);
        if self.transaction.get(&key)?.is_none_or(|floor| floor < first) {
            self.transaction.put(key, first);
        }
        Ok(())
    }

    /// Exams claimed at a site.
    pub(crate) fn claimed_at(&self, site: SiteId) -> Result<Vec<ExamId>, ApplyError> {
        let pairs = self.transaction.scan_prefix(&keys::claims_of(site), usize::MAX)?;
        Ok(pairs.iter().filter_map(|(key, _)| keys::trailing_number(key)).map(ExamId).collect())
    }

    /// Workitems other than readings that are performed at a site.
    pub(crate) fn performed_at(&self, site: SiteId) -> Result<Vec<(ExamId, u32)>, ApplyError> {
        let pairs = self.transaction.scan_prefix(&keys::performed_at(site), usize::MAX)?;
        Ok(pairs.iter().filter_map(|(key, _)| keys::workitem_of(key)).collect())
    }

    pub(crate) fn workitem(&self, exam: ExamId, number: u32) -> Result<Option<Workitem>, ApplyError> {
        self.read(&keys::workitem(exam, number))
    }

    pub(crate) fn put_workitem(&mut self, workitem: &Workitem) -> Result<(), ApplyError> {
        let before = self.workitem(workitem.exam, workitem.number)?;
        // A reading's performer is its exam's claim, which has an index of its own.
        let performed = |workitem: &Workitem| {
            let claim = workitem.performer.as_ref()?;
            let is_other = workitem.step.kind != WorkitemKind::Read && workitem.state == WorkitemState::InProgress;
            is_other.then(|| keys::performed(claim.site, workitem.exam, workitem.number))
        };
        if let Some(key) = before.as_ref().and_then(performed) {
            self.transaction.remove(key);
        }
        if let Some(key) = performed(workitem) {
            self.transaction.put(key, []);
        }
        if before.map(|before| before.state) != Some(workitem.state) {
            let (number, kind, uid) = (workitem.number, workitem.step.kind, workitem.step.uid.clone());
            let (state, reason) = (workitem.state, workitem.reason.clone());
            self.happened(workitem.exam, Happened::Workitem { number, kind, uid, state, reason });
        }
        self.write(keys::workitem(workitem.exam, workitem.number), workitem);
        Ok(())
    }

    /// Makes a workitem known by the UID that a client gives it.
    pub(crate) fn name_workitem(&mut self, workitem: &Workitem, uid: &UidText) {
        let of = [workitem.exam.0.to_be_bytes().as_slice(), &workitem.number.to_be_bytes()].concat();
        self.transaction.put(keys::workitem_uid(uid.as_str()), of);
    }

    /// Whether a client has given this UID to a workitem.
    pub(crate) fn has_workitem_uid(&self, uid: &str) -> Result<bool, ApplyError> {
        Ok(self.transaction.get(&keys::workitem_uid(uid))?.is_some())
    }

    pub(crate) fn put_report(&mut self, report: &Report) {
        self.write(keys::report(report.exam, report.number), report);
        self.happened(report.exam, Happened::Report { number: report.number });
    }

    pub(crate) fn report(&self, exam: ExamId, number: u32) -> Result<Option<Report>, ApplyError> {
        self.read(&keys::report(exam, number))
    }

    pub(crate) fn remark(&self, exam: ExamId, number: u32) -> Result<Option<Remark>, ApplyError> {
        self.read(&keys::remark(exam, number))
    }

    /// Keeps a remark, with the list of critical results that nobody has acknowledged.
    pub(crate) fn put_remark(&mut self, before: Option<&Remark>, after: &Remark) {
        let open = |remark: &Remark| match &remark.what {
            What::Critical(critical) if critical.told.is_none() => {
                Some(keys::critical(critical.due_at, remark.exam, remark.number))
            }
            _ => None,
        };
        if let Some(key) = before.and_then(open) {
            self.transaction.remove(key);
        }
        if let Some(key) = open(after) {
            self.transaction.put(key, []);
        }
        self.write(keys::remark(after.exam, after.number), after);
        self.happened(after.exam, Happened::Remark { number: after.number });
    }

    pub(crate) fn put_turnaround(&mut self, turnaround: &Turnaround) {
        self.write(keys::turnaround(turnaround.reported_at, turnaround.exam), turnaround);
    }

    pub(crate) fn hospital(&self, name: &str) -> Result<Option<Hospital>, ApplyError> {
        self.read(&keys::hospital(name))
    }

    pub(crate) fn put_hospital(&mut self, hospital: &Hospital) {
        self.write(keys::hospital(hospital.name.as_str()), hospital);
    }

    pub(crate) fn situation(&self, site: SiteId) -> Result<Situation, ApplyError> {
        Ok(self.read(&keys::situation(site))?.unwrap_or_default())
    }

    pub(crate) fn put_situation(&mut self, site: SiteId, situation: &Situation) {
        self.write(keys::situation(site), situation);
    }

    pub(crate) fn policy(&self) -> Result<Policy, ApplyError> {
        Ok(self.read(&keys::POLICY)?.unwrap_or_default())
    }

    pub(crate) fn put_policy(&mut self, policy: &Policy) {
        self.write(keys::POLICY.to_vec(), policy);
    }

    pub(crate) fn subscription(
        &self,
        aet: &str,
        workitem: Option<(ExamId, u32)>,
    ) -> Result<Option<Subscription>, ApplyError> {
        self.read(&keys::subscription(aet, workitem))
    }

    /// How many subscriptions there are, counted up to `limit`.
    pub(crate) fn subscriptions(&self, limit: usize) -> Result<usize, ApplyError> {
        Ok(self.transaction.scan_prefix(&keys::SUBSCRIPTIONS, limit)?.len())
    }

    pub(crate) fn put_subscription(&mut self, subscription: &Subscription) {
        self.write(keys::subscription(subscription.aet.as_str(), subscription.workitem), subscription);
    }

    pub(crate) fn remove_subscription(&mut self, aet: &str, workitem: Option<(ExamId, u32)>) {
        self.transaction.remove(keys::subscription(aet, workitem));
    }

    /// The audit chain's value after an entry that this state has.
    pub(crate) fn chain_at(&self, index: u64) -> Result<Option<[u8; 32]>, ApplyError> {
        Ok(self.read::<crate::audit::Link>(&keys::audit(index))?.map(|link| link.chain))
    }

    pub(crate) fn put_attestation(&mut self, attestation: &Attestation) {
        self.write(keys::attestation(attestation.site), attestation);
    }

    pub(crate) fn study(&self, uid: &str) -> Result<Option<Study>, ApplyError> {
        self.read(&keys::study(uid))
    }

    /// Replaces a study, with the count of those that lack copies.
    pub(crate) fn put_study(&mut self, before: Option<&Study>, after: &Study) -> Result<(), ApplyError> {
        self.count_study(before, Some(after))?;
        self.write(keys::study(after.uid.as_str()), after);
        self.note_strayed(after)
    }

    /// Judges a study by the consent that its patient now gives.
    pub(crate) fn note_consent(&mut self, study: &Study) -> Result<(), ApplyError> {
        if self.format >= 2 {
            self.count_study(Some(study), Some(study))?;
        }
        self.note_strayed(study)
    }

    /// Keeps the list of studies of which images are where they must not be.
    fn note_strayed(&mut self, study: &Study) -> Result<(), ApplyError> {
        if self.format < 2 {
            return Ok(());
        }
        let key = keys::strayed(study.uid.as_str());
        let mut strayed = false;
        for held in study.parts.iter().filter(|held| held.is_elsewhere()) {
            strayed |= self.read::<Exam>(&keys::exam(held.exam))?.is_some_and(|exam| exam.is_confined());
        }
        match (strayed, self.transaction.get(&key)?) {
            (true, None) => self.transaction.put(key, []),
            (false, Some(_)) => self.transaction.remove(key),
            _ => {}
        }
        Ok(())
    }

    /// Keeps whether the receiving site has verified what it holds of a study that strayed: without that,
    /// nobody gives up a copy.
    pub(crate) fn vouch(&mut self, study: &str, manifest: &Address, holds: bool) -> Result<(), ApplyError> {
        let key = keys::strayed(study);
        let Some(vouched) = self.transaction.get(&key)? else { return Ok(()) };
        let others = vouched.chunks(manifest.len()).filter(|other| other != manifest);
        let mut kept: Vec<u8> = others.flatten().copied().collect();
        if holds {
            kept.extend_from_slice(manifest);
        }
        self.transaction.put(key, kept);
        Ok(())
    }

    /// Forgets a study of which no part is left.
    pub(crate) fn remove_study(&mut self, before: &Study) -> Result<(), ApplyError> {
        self.count_study(Some(before), None)?;
        self.transaction.remove(keys::study(before.uid.as_str()));
        Ok(())
    }

    pub(crate) fn tombstone(
        &self,
        exam: ExamId,
        study: &str,
        manifest: &Address,
    ) -> Result<Option<Tombstone>, ApplyError> {
        for (_, bytes) in self.transaction.scan_prefix(&keys::tombstones_of(exam), usize::MAX)? {
            let tombstone = Tombstone::decode(&bytes)?;
            if tombstone.study.as_str() == study && tombstone.manifest == *manifest {
                return Ok(Some(tombstone));
            }
        }
        Ok(None)
    }

    /// Keeps a tombstone, with the lists of what each site has to confirm.
    pub(crate) fn put_tombstone(&mut self, before: Option<&Tombstone>, after: &Tombstone) -> Result<(), ApplyError> {
        let mut counts = self.counts()?;
        let of = |tombstone: &Tombstone, site: SiteId| {
            keys::purge(site, tombstone.study.as_str(), tombstone.exam, tombstone.origin)
        };
        if before.is_none() {
            self.transaction.put(keys::purged_at(after.study.as_str()), after.at.0.to_be_bytes());
        }
        for site in before.iter().flat_map(|before| &before.pending) {
            self.transaction.remove(of(after, *site));
            counts.more.purges_pending -= 1;
        }
        for site in &after.pending {
            self.transaction.put(of(after, *site), []);
            counts.more.purges_pending += 1;
        }
        let last = keys::last_purged(after.study.as_str(), after.origin);
        if self.last_purged(after.study.as_str(), after.origin)? < after.sequence {
            self.transaction.put(last, after.sequence.to_be_bytes());
        }
        self.write(keys::COUNTS.to_vec(), &counts);
        self.write(keys::tombstone(after.exam, after.study.as_str(), after.origin), after);
        Ok(())
    }

    pub(crate) fn study_key(&self, id: KeyId) -> Result<Option<StudyKey>, ApplyError> {
        self.read(&keys::study_key(id))
    }

    /// The keys of a site's part of a study that are not destroyed.
    pub(crate) fn study_keys_of(&self, study: &str, origin: SiteId) -> Result<Vec<StudyKey>, ApplyError> {
        let mut found = Vec::new();
        for (key, _) in self.transaction.scan_prefix(&keys::study_keys_of(study, origin), usize::MAX)? {
            if let Some(id) = keys::trailing_key_id(&key) {
                found.extend(self.study_key(id)?);
            }
        }
        Ok(found)
    }

    /// Keeps a key, or that it was destroyed.
    pub(crate) fn put_study_key(&mut self, key: &StudyKey) {
        let listed = keys::study_key_of(key.study.as_str(), key.origin, key.id);
        match key.what {
            KeptKey::Kept(_) => self.transaction.put(listed, []),
            KeptKey::Destroyed { .. } => self.transaction.remove(listed),
        }
        self.write(keys::study_key(key.id), key);
    }

    pub(crate) fn destruction(&self) -> Result<Destruction, ApplyError> {
        Ok(self.read(&keys::DESTRUCTION)?.unwrap_or_default())
    }

    pub(crate) fn put_destruction(&mut self, destruction: &Destruction) {
        self.write(keys::DESTRUCTION.to_vec(), destruction);
    }

    /// The highest number under which a site published a study that was purged; 0 for none.
    pub(crate) fn last_purged(&self, study: &str, origin: SiteId) -> Result<u64, ApplyError> {
        let bytes = self.transaction.get(&keys::last_purged(study, origin))?;
        Ok(bytes.and_then(|bytes| keys::trailing_number(&bytes)).unwrap_or(0))
    }

    /// Whether a site has still to purge something of a study.
    pub(crate) fn has_to_purge(&self, site: SiteId, study: &str) -> Result<bool, ApplyError> {
        Ok(!self.transaction.scan_prefix(&keys::purges_of_study(site, study), 1)?.is_empty())
    }

    /// Counts a copy that is no more.
    pub(crate) fn count_lost_copy(&mut self) -> Result<(), ApplyError> {
        let mut counts = self.counts()?;
        if self.format < 2 {
            return Ok(());
        }
        counts.more.copies_lost += 1;
        self.write(keys::COUNTS.to_vec(), &counts);
        Ok(())
    }

    pub(crate) fn counts(&self) -> Result<Counts, ApplyError> {
        Ok(self.read(&keys::COUNTS)?.unwrap_or_default())
    }
}

impl Places for State<'_, '_> {
    fn places(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<Vec<u8>>, ApplyError> {
        let pairs = match after {
            Some(after) => self.transaction.scan_prefix_after(prefix, after, limit)?,
            None => {
                let floor = self.transaction.get(&keys::floor_of_level(prefix))?;
                self.transaction.scan_prefix_from(prefix, floor.as_deref().unwrap_or(prefix), limit)?
            }
        };
        Ok(pairs.into_iter().map(|(key, _)| key).collect())
    }
}
