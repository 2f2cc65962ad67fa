//! What is known of an exam beyond its request: consent, regulation, who may read it, and where first.

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::exam::{Exam, ExamState, Priority, Text8};
use crate::ids::{Line, Name, SiteId};
use crate::record::Record;

/// What the patient said of the transfer of the images to another site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consent {
    /// Nothing was declared: the images came before the request.
    #[default]
    Undeclared,
    /// The requester declares that the patient consents.
    Declared,
    /// An absolute emergency excuses its absence.
    Emergency,
    /// The patient refuses: no image leaves the site that received it.
    Refused,
}

/// Which physicians read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Specialty {
    /// Radiologists.
    #[default]
    Radiology,
    /// Nuclear physicians: PET and scintigraphy.
    NuclearMedicine,
}

impl Specialty {
    /// The specialty that reads a modality (0008,0060): PT and NM are nuclear medicine's.
    pub fn of_modality(modality: &str) -> Self {
        if matches!(modality, "PT" | "NM") { Self::NuclearMedicine } else { Self::Radiology }
    }
}

/// What a request says beyond [`crate::exam::Request`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Order {
    /// Consent to the transfer.
    pub consent: Consent,
    /// Who reads it; none: by its modality.
    pub specialty: Option<Specialty>,
    /// The expertise that a rare case needs, such as `paediatric-neuro`; empty for none.
    pub expertise: Text8,
    /// Whether a regulator has to validate it before it is read.
    pub regulate: bool,
    /// The clinical question.
    pub question: Line,
}

/// A place in the widening order of the readers' charter: territory first, then department and
/// region, the nation last. An empty level is not known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// The hospitals' group (in France, a *groupement hospitalier de territoire*).
    pub territory: Name,
    /// The department.
    pub department: Name,
    /// The region.
    pub region: Name,
}

impl Place {
    /// How far two places are from each other: 0 the same territory, 1 department, 2 region, 3 nation.
    pub fn distance(&self, other: &Self) -> u8 {
        let same = |a: &Name, b: &Name| !a.is_empty() && a == b;
        if same(&self.territory, &other.territory) {
            0
        } else if same(&self.department, &other.department) {
            1
        } else if same(&self.region, &other.region) {
            2
        } else {
            3
        }
    }

    /// Whether nothing is known of it.
    pub fn is_unknown(&self) -> bool {
        self.territory.is_empty() && self.department.is_empty() && self.region.is_empty()
    }
}

/// A partner hospital, by the name that its requests bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hospital {
    /// Its name, as in Institution Name (0008,0080).
    pub name: Line,
    /// Its number in the register of establishments (FINESS), or empty.
    pub finess: Text8,
    /// Where it is.
    pub place: Place,
    /// The sites whose contract covers it; empty for all.
    pub sites: Vec<SiteId>,
    /// Whether its requests need a regulator, whatever they say themselves.
    pub regulate: bool,
    /// For how long its images are kept, when it is not as the mesh's policy says.
    pub retention: Vec<Keep>,
}

impl Record for Hospital {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "hospital";
}

/// For how long the images of a modality are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The modality (0008,0060); empty for all that no other rule names.
    pub modality: Text8,
    /// Milliseconds from the final report, or from the reception of what was never to be read.
    pub ms: u64,
}

/// What a site is for the queue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Situation {
    /// Where it is.
    pub place: Place,
}

impl Record for Situation {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "situation";
}

/// What the mesh has agreed on for its waiting room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// For which share of its target, in thousandths, an exam is kept for readers of its territory, of
    /// its department, of its region, while any of them is in session.
    pub kept_for: [u16; 3],
    /// For which share of its target, in thousandths, it is kept for experts, if it needs one.
    pub kept_for_experts: u16,
    /// Milliseconds after which an unacknowledged critical result escalates again.
    pub critical_ms: u64,
    /// For how long images are kept, where their hospital says nothing else; 90 days without any rule.
    pub retention: Vec<Keep>,
    /// For how many milliseconds after their reception images are kept of which the report is still to be
    /// written or delivered: longer than any other rule, since somebody may still wait for it.
    pub unread_ms: u64,
}

/// For how long images are kept by default: the service's three months.
pub const RETENTION_MS: u64 = 90 * 24 * 3_600_000;
/// … and by default when their exam is not over.
const UNREAD_MS: u64 = 2 * RETENTION_MS;

impl Default for Policy {
    fn default() -> Self {
        Self {
            kept_for: [100, 200, 300],
            kept_for_experts: 250,
            critical_ms: 15 * 60_000,
            retention: Vec::new(),
            unread_ms: UNREAD_MS,
        }
    }
}

impl Record for Policy {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "policy";
}

/// Who asks for the next exam.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reader {
    /// What they read; empty for radiology.
    pub specialties: Vec<Specialty>,
    /// What they are experts of.
    pub expertise: Vec<Text8>,
    /// Only these modalities; empty for any.
    pub modalities: Vec<Text8>,
}

impl Reader {
    /// Whether this reader reads what the exam is.
    pub fn reads(&self, exam: &Exam) -> bool {
        let specialty = exam.specialty();
        let theirs = if self.specialties.is_empty() {
            specialty == Specialty::Radiology
        } else {
            self.specialties.contains(&specialty)
        };
        theirs && (self.modalities.is_empty() || self.modalities.contains(&exam.request.modality))
    }
}

impl Policy {
    /// When the images of an exam are to go, if nothing holds them.
    pub fn retained_until(&self, hospital: Option<&Hospital>, exam: &Exam) -> UnixMillisField {
        let (usual, received_at) = (self.kept_ms(hospital, exam), received_at(exam));
        // A cancellation ends nothing that the images would be kept for.
        let (since, ms) = match exam.ended_at {
            Some(ended_at) if matches!(exam.state, ExamState::Delivered | ExamState::FollowedUp) => (ended_at, usual),
            _ if exam.state.is_off() => (received_at, usual),
            reported_at => (reported_at.unwrap_or(received_at), usual.max(self.unread_ms)),
        };
        UnixMillisField(since.0.saturating_add(ms))
    }

    /// When the images of an exam are likely to go: as if at `now` it were over, unless it is. Nothing may be decided
    /// by it.
    pub fn expected_until(&self, hospital: Option<&Hospital>, exam: &Exam, now: UnixMillisField) -> UnixMillisField {
        let since = if exam.state.is_off() { received_at(exam) } else { exam.ended_at.unwrap_or(now) };
        UnixMillisField(since.0.saturating_add(self.kept_ms(hospital, exam)))
    }

    /// For how long the images of an exam are kept once it is over.
    fn kept_ms(&self, hospital: Option<&Hospital>, exam: &Exam) -> u64 {
        let of = |rules: &[Keep]| {
            let named = rules.iter().find(|keep| keep.modality == exam.request.modality);
            named.or_else(|| rules.iter().find(|keep| keep.modality.is_empty())).map(|keep| keep.ms)
        };
        let kept = hospital.and_then(|hospital| of(&hospital.retention)).or_else(|| of(&self.retention));
        kept.unwrap_or(RETENTION_MS)
    }

    /// Whether an exam that has been waiting since `ready` is still kept from a reader at `distance`.
    pub fn keeps(&self, priority: Priority, ready: UnixMillisField, now: UnixMillisField, distance: u8) -> bool {
        // A life at stake is kept from nobody.
        if priority == Priority::Vital || distance == 0 {
            return false;
        }
        let share = self.kept_for.get(usize::from(distance) - 1).copied().unwrap_or_default();
        self.within(share, priority, ready, now)
    }

    /// Whether an exam that needs an expert is still kept from others.
    pub fn keeps_for_experts(&self, priority: Priority, ready: UnixMillisField, now: UnixMillisField) -> bool {
        priority != Priority::Vital && self.within(self.kept_for_experts, priority, ready, now)
    }

    fn within(&self, thousandths: u16, priority: Priority, ready: UnixMillisField, now: UnixMillisField) -> bool {
        let kept = priority.target_ms().saturating_mul(u64::from(thousandths)) / 1000;
        now.0.saturating_sub(ready.0) < kept
    }
}

fn received_at(exam: &Exam) -> UnixMillisField {
    exam.course.images_at.or(exam.ready_at).unwrap_or(exam.added_at)
}
