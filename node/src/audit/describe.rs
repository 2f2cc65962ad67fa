//! An audit entry with what it names only by number: its site's name, its exam's patient and studies.

use std::collections::BTreeMap;

use maillage_consensus::View;
use maillage_consensus::audit::{Entry, Link};
use maillage_consensus::ids::{Line, Name, SiteId, UidText};
use maillage_consensus::machine::ApplyError;

/// The sites' names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(BTreeMap<SiteId, Name>);

impl Names {
    /// Of all sites of the mesh.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(crate) fn read(view: &View<'_>) -> Result<Self, ApplyError> {
        Ok(Self(view.sites()?.into_iter().map(|site| (site.id, site.description.name)).collect()))
    }

    /// A site's name, or its number.
    pub(crate) fn of(&self, site: SiteId) -> String {
        self.0.get(&site).map_or_else(|| format!("site {site}"), ToString::to_string)
    }
}

/// What an entry's exam is, as the standards' audit messages want it said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Subject {
    /// The accession number; empty when none.
    pub(crate) accession: Line,
    /// The patient's identifier and its issuer; empty when unknown. Never the name.
    pub(crate) patient: (Line, Line),
    /// Its studies.
    pub(crate) studies: Vec<UidText>,
}

/// An entry with its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    /// The entry and its place in the chain.
    pub(crate) link: Link,
    /// Its site's name.
    pub(crate) site: String,
    /// What its exam is, as known now; nothing for an entry without one.
    pub(crate) subject: Subject,
}

impl Described {
    /// Adds to `link` what `view` knows.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub(crate) fn new(view: &View<'_>, names: &Names, link: Link) -> Result<Self, ApplyError> {
        let exam = link.entry.exam.map(|exam| view.exam(exam)).transpose()?.flatten();
        let subject = exam.map_or_else(Subject::default, |exam| Subject {
            accession: exam.request.accession,
            patient: (exam.request.patient.id, exam.request.patient.issuer),
            studies: exam.studies,
        });
        Ok(Self { site: names.of(link.entry.site), subject, link })
    }

    /// The entry.
    pub(crate) fn entry(&self) -> &Entry {
        &self.link.entry
    }

    /// Whether what was asked was done.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.entry().outcome.as_str(), "done" | "nothing waiting")
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use maillage_consensus::audit::chain;
    use maillage_consensus::command::UnixMillisField;
    use maillage_consensus::ids::{CommandId, ExamId};

    use super::*;

    /// An entry of this index and kind.
    pub(crate) fn entry(index: u64, kind: &str) -> Entry {
        Entry {
            index,
            at: UnixMillisField(1_767_323_045_678 + index),
            site: SiteId(7),
            user: Name::fitted("dr-a"),
            id: CommandId(uuid::Uuid::from_u128(index.into())),
            kind: Name::fitted(kind),
            exam: Some(ExamId(12)),
            why: Line::fitted("a <reason> & \"more\""),
            outcome: Line::fitted("done"),
            command: [3; 32],
            writes: [4; 32],
        }
    }

    /// A trail of so many entries, rightly chained, with gaps where Raft had entries of its own.
    pub(crate) fn trail(entries: u64) -> Vec<Link> {
        let mut before = [0; 32];
        let link = |n: u64| {
            let entry = entry(2 + n + n / 5, "claim-take");
            before = chain(&before, &entry);
            Link { entry, chain: before }
        };
        (0..entries).map(link).collect()
    }

    /// An entry of this kind with all that can be known of it.
    pub(crate) fn described(kind: &str) -> Described {
        let entry = entry(41, kind);
        let subject = Subject {
            accession: Line::fitted("A1"),
            patient: (Line::fitted("P&1"), Line::fitted("HOSP")),
            studies: vec![UidText::fitted("1.2.3")],
        };
        Described { link: Link { chain: [5; 32], entry }, site: "lyon".to_owned(), subject }
    }
}
