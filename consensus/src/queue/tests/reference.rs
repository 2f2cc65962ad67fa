//! The queue's rules, said a second time and plainly: who may do what with an exam, and what it is then.

use super::*;

/// An exam as the reference knows it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) id: ExamId,
    pub(super) state: ExamState,
    pub(super) priority: Priority,
    /// A regulator's word is required, and not given.
    pub(super) unregulated: bool,
    pub(super) consent: Consent,
    /// Only Paris may read it.
    pub(super) contracted: bool,
    pub(super) images_at: Option<u64>,
    pub(super) ready_at: Option<u64>,
    /// Sites that received its images.
    pub(super) origins: Vec<SiteId>,
    pub(super) holder: Option<(SiteId, FencingToken)>,
    pub(super) tokens: Vec<FencingToken>,
    /// Where its last claim ended without a report, and when.
    pub(super) given_back: Option<(SiteId, u64)>,
    pub(super) reports: u32,
    pub(super) standing: Option<u32>,
    pub(super) remarks: u32,
    pub(super) is_read_twice: bool,
    /// The last critical result, when it escalates, and whether somebody was told.
    pub(super) critical: Option<(u32, u64, bool)>,
    /// The last second opinion asked for, and whether it was given.
    pub(super) opinion: Option<(u32, bool)>,
}

/// What a command is to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Done,
    Refused,
    /// A claim of that exam.
    Granted(ExamId),
    NothingWaiting,
    /// Refused, and the text kept under that number.
    Draft(u32),
    Report(u32),
    Remark(u32),
    /// Written into the books: whether it is a second read.
    Mended(bool),
}

use ExamState::{
    Acquiring, Cancelled, Claimed, Delivered, FollowedUp, Reading, Receiving, Refused, Reported, Requested, Validated,
    Waiting,
};

impl Known {
    pub(super) fn new(id: ExamId, priority: Priority) -> Self {
        Self {
            id,
            state: Requested,
            priority,
            unregulated: false,
            consent: Consent::Undeclared,
            contracted: false,
            images_at: None,
            ready_at: None,
            origins: Vec::new(),
            holder: None,
            tokens: Vec::new(),
            given_back: None,
            reports: 0,
            standing: None,
            remarks: 0,
            is_read_twice: false,
            critical: None,
            opinion: None,
        }
    }

    fn is_emergency(&self) -> bool {
        self.priority == Priority::Vital || self.consent == Consent::Emergency
    }

    fn is_before_the_room(&self) -> bool {
        matches!(self.state, Requested | Validated | Acquiring | Receiving)
    }

    pub(super) fn is_off(&self) -> bool {
        matches!(self.state, Cancelled | Refused)
    }

    pub(super) fn is_read(&self) -> bool {
        matches!(self.state, Reported | Delivered | FollowedUp)
    }

    /// Whether contract and consent let a site read it.
    pub(super) fn may_be_read_at(&self, site: SiteId) -> bool {
        (!self.contracted || site == PARIS) && (self.consent != Consent::Refused || self.origins.contains(&site))
    }

    /// All its images are there.
    pub(super) fn images(&mut self, at: u64) {
        if !self.is_before_the_room() {
            return;
        }
        let came = *self.images_at.get_or_insert(at);
        if self.unregulated && !self.is_emergency() {
            self.state = Receiving;
        } else {
            (self.state, self.ready_at) = (Waiting, Some(came.max(at)));
        }
    }

    pub(super) fn regulate(&mut self, verdict: bool) -> Expected {
        self.state = match (self.state, verdict) {
            (Requested, true) => Validated,
            (Acquiring | Receiving, true) => self.state,
            (Requested | Validated | Receiving, false) => Refused,
            _ => return Expected::Refused,
        };
        self.unregulated = false;
        if let (Receiving | Acquiring | Validated, Some(at)) = (self.state, self.images_at) {
            (self.state, self.ready_at) = (Waiting, Some(at));
        }
        Expected::Done
    }

    pub(super) fn acquire(&mut self) -> Expected {
        let may = matches!(self.state, Requested | Validated) && (!self.unregulated || self.is_emergency());
        self.step(may, Acquiring)
    }

    pub(super) fn arrive(&mut self) -> Expected {
        let may = self.is_before_the_room();
        self.step(may, Receiving)
    }

    fn step(&mut self, may: bool, to: ExamState) -> Expected {
        if !may {
            return Expected::Refused;
        }
        self.state = to;
        Expected::Done
    }

    pub(super) fn cancel(&mut self) -> Expected {
        let may = self.is_before_the_room() || self.state == Waiting;
        self.step(may, Cancelled)
    }

    pub(super) fn prioritise(&mut self, priority: Priority) -> Expected {
        if self.is_off() || self.is_read() {
            return Expected::Refused;
        }
        self.priority = priority;
        if let (None, Some(at)) = (self.ready_at, self.images_at) {
            self.images(at);
        }
        Expected::Done
    }

    pub(super) fn take(&mut self, site: SiteId, in_session: bool) -> Expected {
        let may = self.state == Waiting && self.may_be_read_at(site) && in_session;
        if may { Expected::Granted(self.id) } else { Expected::Refused }
    }

    pub(super) fn take_over(&mut self, site: SiteId, in_session: bool, now: u64) -> Expected {
        if self.holder.is_none() || !self.may_be_read_at(site) || !in_session {
            return Expected::Refused;
        }
        self.lose(now);
        Expected::Granted(self.id)
    }

    /// The claim ends without a report.
    pub(super) fn lose(&mut self, now: u64) {
        if let Some((site, _)) = self.holder.take() {
            (self.state, self.given_back) = (Waiting, Some((site, now)));
        }
    }

    pub(super) fn granted(&mut self, site: SiteId, token: FencingToken) {
        (self.state, self.holder) = (Claimed, Some((site, token)));
        self.tokens.push(token);
    }

    fn is_held_by(&self, token: FencingToken) -> bool {
        self.holder.is_some_and(|(_, held)| held == token)
    }

    pub(super) fn open(&mut self, token: FencingToken) -> Expected {
        let may = self.is_held_by(token);
        self.step(may, Reading)
    }

    pub(super) fn release(&mut self, token: FencingToken, now: u64) -> Expected {
        if !self.is_held_by(token) {
            return Expected::Refused;
        }
        self.lose(now);
        Expected::Done
    }

    pub(super) fn report(&mut self, token: FencingToken, is_final: bool, format: u8) -> Expected {
        if !self.is_held_by(token) {
            if !self.tokens.contains(&token) {
                return Expected::Refused;
            }
            self.reports += 1;
            return Expected::Draft(self.reports);
        }
        self.reports += 1;
        if format >= 2 || is_final {
            self.standing = Some(self.reports);
        }
        if is_final {
            (self.state, self.holder) = (Reported, None);
        } else {
            self.state = Reading;
        }
        Expected::Report(self.reports)
    }

    pub(super) fn addend(&mut self) -> Expected {
        if !self.is_read() {
            return Expected::Refused;
        }
        self.reports += 1;
        (self.state, self.standing) = (Reported, Some(self.reports));
        Expected::Report(self.reports)
    }

    pub(super) fn deliver(&mut self, report: u32) -> Expected {
        let may = self.state == Reported && self.standing == Some(report);
        self.step(may, Delivered)
    }

    pub(super) fn remark(&mut self, may: bool) -> Expected {
        if !may {
            return Expected::Refused;
        }
        self.remarks += 1;
        Expected::Remark(self.remarks)
    }

    pub(super) fn follow_up(&mut self) -> Expected {
        let may = self.state == Delivered;
        if may {
            self.state = FollowedUp;
        }
        self.remark(may)
    }

    /// What a site read by break glass, with its report or still reading.
    pub(super) fn mend(&mut self, site: SiteId, in_session: bool, has_report: bool, now: u64) -> Expected {
        if !has_report && !self.may_be_read_at(site) {
            return Expected::Refused;
        }
        let theirs = self.holder.is_some_and(|(held, _)| held == site);
        let joins_the_room = self.is_before_the_room();
        if !(joins_the_room || self.state == Waiting || theirs) {
            self.is_read_twice |= !self.is_off();
            self.reports += u32::from(has_report);
            return Expected::Mended(true);
        }
        if !has_report && !theirs && !in_session {
            return Expected::Refused;
        }
        if joins_the_room {
            self.images_at.get_or_insert(now);
            (self.state, self.ready_at) = (Waiting, Some(now));
        }
        if has_report {
            self.reports += 1;
            (self.state, self.standing, self.holder) = (Reported, Some(self.reports), None);
        }
        Expected::Mended(false)
    }

    /// When it is due.
    pub(super) fn due(&self) -> u64 {
        self.ready_at.map_or(u64::MAX, |at| at + self.priority.target_ms())
    }

    /// Its place in the room: its level, which rises with each target that passes, then when it is due.
    pub(super) fn rank(&self, now: u64, with_levels: bool) -> (u64, u64, Priority, ExamId) {
        let passed = now.saturating_sub(self.due()) / self.priority.target_ms();
        let level = (self.priority as u64).saturating_sub(if with_levels { passed } else { 0 });
        (level, self.due(), self.priority, self.id)
    }
}

/// The exam that a reader at `site` is given: the first in the room that they may read, and one that they
/// have just given back only when there is no other.
pub(super) fn next(exams: &[Known], site: SiteId, now: u64, with_levels: bool) -> Option<ExamId> {
    const JUST_NOW_MS: u64 = 10 * 60_000;
    let is_given_back = |exam: &Known| exam.given_back.is_some_and(|(by, at)| by == site && now - at < JUST_NOW_MS);
    let may = exams.iter().filter(|exam| exam.state == Waiting && exam.may_be_read_at(site));
    may.min_by_key(|exam| (is_given_back(exam), exam.rank(now, with_levels))).map(|exam| exam.id)
}
