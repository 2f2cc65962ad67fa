//! Images are those that were sent, byte for byte, and none that was acknowledged is missing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Comparison {
    /// What must never come, whatever fails.
    pub(crate) wrong: Vec<String>,
    /// Instances that were acknowledged and did not come.
    pub(crate) missing: Vec<String>,
}

/// Compares what a retrieval of a study gave with what was sent and what of it was acknowledged.
/// An instance that was sent and never acknowledged may be there.
pub(crate) fn compare(
    sent: &BTreeMap<String, Bytes>,
    acknowledged: &BTreeSet<String>,
    got: &[(String, Bytes)],
) -> Comparison {
    let mut found = Vec::new();
    let mut came = BTreeSet::new();
    for (uid, dataset) in got {
        if !came.insert(uid) {
            found.push(format!("instance {uid} came twice"));
        }
        match sent.get(uid) {
            None => found.push(format!("instance {uid} is not of this study")),
            Some(own) if own != dataset => found.push(format!("the bytes of {uid} are not those that were sent")),
            Some(_) => {}
        }
    }
    let missing = acknowledged.iter().filter(|uid| !came.contains(uid)).cloned().collect();
    Comparison { wrong: found, missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_altered_foreign_and_doubled_instances_are_found() {
        let image = |uid: &str, bytes: &'static [u8]| (uid.to_owned(), Bytes::from_static(bytes));
        let sent = BTreeMap::from([image("1", b"one"), image("2", b"two"), image("3", b"three")]);
        let acknowledged = BTreeSet::from(["1".to_owned(), "2".to_owned()]);
        let check = |got: &[(String, Bytes)]| {
            let found = compare(&sent, &acknowledged, got);
            (found.wrong.len(), found.missing.len())
        };
        assert_eq!(check(&[image("1", b"one"), image("2", b"two")]), (0, 0));
        assert_eq!(
            check(&[image("1", b"one"), image("2", b"two"), image("3", b"three")]),
            (0, 0),
            "sent, not acknowledged"
        );
        assert_eq!(check(&[image("1", b"one")]), (0, 1), "lost");
        assert_eq!(check(&[image("1", b"one"), image("2", b"twa")]), (1, 0), "altered");
        assert_eq!(check(&[image("1", b"one"), image("2", b"two"), image("9", b"nine")]), (1, 0), "foreign");
        assert_eq!(check(&[image("1", b"one"), image("1", b"one"), image("2", b"two")]), (1, 0), "doubled");
    }
}
