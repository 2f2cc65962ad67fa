//! UIDs made here: of the workitems that no client named, and of events.
//!
//! Both are under `2.25.<mesh>`, the mesh's identity as a UUID (PS3.5 section B.2), so that a UID leads
//! back to its exam without an index and means the same on every node: `….<exam>.<number>` for a
//! workitem, `….0.<index>.<place>` for an event. No exam has the number 0.

use maillage_consensus::event::Cursor;
use maillage_consensus::exam::Workitem;
use maillage_consensus::ids::ExamId;

/// The mesh's UIDs.
#[derive(Debug, Clone)]
pub(crate) struct Uids {
    root: String,
}

impl Uids {
    /// Those of the mesh with this identity.
    pub(crate) fn new(mesh: &[u8; 32]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&mesh[..16]);
        let uuid = uuid::Builder::from_random_bytes(bytes).into_uuid();
        Self { root: format!("2.25.{}", uuid.as_u128()) }
    }

    /// A workitem's SOP Instance UID: its client's, or the one made here.
    pub(crate) fn of(&self, workitem: &Workitem) -> String {
        if workitem.step.uid.is_empty() {
            self.made(workitem.exam, workitem.number)
        } else {
            workitem.step.uid.to_string()
        }
    }

    /// The UID of a workitem that no client named. With 14 digits of exam and 4 of number it has the 64
    /// characters that a UID may have.
    pub(crate) fn made(&self, exam: ExamId, number: u32) -> String {
        format!("{}.{exam}.{number}", self.root)
    }

    /// The workitem that bears a UID made here.
    pub(crate) fn parse(&self, uid: &str) -> Option<(ExamId, u32)> {
        let (exam, number) = uid.strip_prefix(&self.root)?.strip_prefix('.')?.split_once('.')?;
        let found = (ExamId(component(exam)?), u32::try_from(component(number)?).ok()?);
        (found.0.0 > 0).then_some(found)
    }

    /// An event's UID, which carries its cursor.
    pub(crate) fn event(&self, at: Cursor) -> String {
        format!("{}.0.{}.{}", self.root, at.index, at.place)
    }

    /// The cursor in an event's UID, or one that is written as a cursor is.
    pub(crate) fn cursor(&self, text: &str) -> Option<Cursor> {
        let text = match text.strip_prefix(&self.root) {
            Some(rest) => rest.strip_prefix(".0.")?,
            None => text,
        };
        text.parse().ok()
    }
}

/// A component of a UID: digits without a leading zero, so that each UID is written in one way.
fn component(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    (canonical && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use maillage_dicom::Uid;

    use super::*;

    #[test]
    fn a_workitem_and_an_event_are_found_by_the_uid_made_for_them() {
        let uids = Uids::new(&[0xff; 32]);
        let uid = uids.made(ExamId(99_999_999_999_999), 9999);
        assert!(Uid::parse(&uid).is_ok(), "{uid} is {} characters", uid.len());
        assert_eq!(uids.parse(&uid), Some((ExamId(99_999_999_999_999), 9999)));
        let at = Cursor { index: 12_345, place: 7 };
        assert!(Uid::parse(&uids.event(at)).is_ok());
        assert_eq!(uids.cursor(&uids.event(at)), Some(at));
        assert_eq!(uids.cursor("12345.7"), Some(at));
        assert_eq!(uids.parse(&uids.event(at)), None, "an event is no workitem");
    }

    #[test]
    fn no_other_uid_leads_to_a_workitem() {
        let uids = Uids::new(&[1; 32]);
        let root = uids.root.clone();
        for uid in ["1.2.3", &root, &format!("{root}.5"), &format!("{root}.05.1"), &format!("{root}.5.1.1")] {
            assert_eq!(uids.parse(uid), None, "{uid}");
        }
        assert_eq!(Uids::new(&[2; 32]).parse(&uids.made(ExamId(5), 1)), None, "another mesh's");
        assert_eq!(uids.cursor("soon"), None);
    }
}
