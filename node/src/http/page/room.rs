//! What the page shows, gathered from one consistent view of the state.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::command::UnixMillisField;
use maillage_consensus::ids::{Name, SiteId};

use crate::http::app::App;
use crate::http::problem::Problem;
use crate::http::status::{MeshStatus, Quorum, Reach};
use crate::http::summary::{ExamSummary, Summaries};
use crate::outbox::{Book, Entry};

/// Waiting exams shown. Nobody looks further down; the button takes the first.
const WAITING_MAX: usize = 200;
/// Claimed exams shown: more than a group has readers on duty.
const READING_MAX: usize = 100;
/// Exams that ended lately shown.
const RECENT_MAX: usize = 15;

/// The waiting room as one reader sees it.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// Who looks, if they said so.
    pub(super) reader: Option<Name>,
    /// This site.
    pub(super) site: SiteId,
    /// This site's name.
    pub(super) site_name: String,
    /// The index of the log up to which the state was applied here, or a little less.
    pub(super) applied: u64,
    /// When it was gathered.
    pub(super) now: UnixMillisField,
    /// Exams to be read, the first first.
    pub(super) waiting: Vec<ExamSummary>,
    /// How many wait in all.
    pub(super) waiting_total: u64,
    /// Exams being read, then those that ended lately.
    pub(super) reading: Vec<ExamSummary>,
    /// The mesh.
    pub(super) mesh: MeshLines,
    /// What was done here without the mesh.
    pub(super) book: Arc<Book>,
}

/// The mesh in a few lines.
#[derive(Debug, Clone)]
pub(super) struct MeshLines {
    /// Whether this site has not heard a quorum for too long.
    pub(super) cut_off: bool,
    /// When it last heard one.
    pub(super) heard_at: Option<UnixMillisField>,
    /// The leader's name.
    pub(super) leader: Option<String>,
    /// Who must agree.
    pub(super) quorum: Quorum,
    /// Studies on fewer than two sites.
    pub(super) below_two: u64,
    /// The sites.
    pub(super) sites: Vec<SiteLine>,
}

/// A site in one line.
#[derive(Debug, Clone)]
pub(super) struct SiteLine {
    pub(super) name: Name,
    pub(super) zone: Name,
    pub(super) role: &'static str,
    pub(super) reach: Reach,
    pub(super) rtt: Option<Duration>,
}

impl Room {
    /// The room as `reader` sees it now, as old as the state here is.
    ///
    /// # Errors
    /// The state or the store cannot be read.
    pub(super) async fn gather(app: &App, reader: Option<Name>) -> Result<Self, Problem> {
        let storage = app.node.store().stats().await?;
        let (node, site) = (&app.node, app.node.site());
        let applied = node.group().applied();
        let room = node.read(|view| {
            let status = MeshStatus::gather(node, view, storage)?;
            let summaries = Summaries::new(view, site)?;
            let waiting = summaries.of_all(view.waiting(status.now, WAITING_MAX)?)?;
            let mut reading = summaries.of_all(view.claimed(READING_MAX)?)?;
            // One's own come first: they are what one came for.
            reading.sort_by_key(|summary| !is_own(summary, reader.as_ref(), site));
            let ended = view.ended(RECENT_MAX)?.into_iter().filter(|exam| exam.state.is_reported());
            reading.extend(summaries.of_all(ended.collect())?);
            Ok(Self {
                site,
                applied,
                site_name: summaries.name(site).to_string(),
                now: status.now,
                waiting,
                waiting_total: status.counts.waiting,
                reading,
                mesh: mesh_lines(&status),
                book: node.outbox().book(),
                reader,
            })
        })?;
        Ok(room)
    }

    /// Whether the reader holds this exam, here.
    pub(super) fn owns(&self, summary: &ExamSummary) -> bool {
        is_own(summary, self.reader.as_ref(), self.site)
    }

    /// What was done here to this exam without the mesh.
    pub(super) fn glass(&self, summary: &ExamSummary) -> Option<&Entry> {
        self.book.glass_of(summary.exam.id).map(|(entry, _)| entry)
    }

    /// The reader's own break-glass claim of this exam.
    pub(super) fn own_glass(&self, summary: &ExamSummary) -> Option<&Entry> {
        self.glass(summary).filter(|entry| entry.is_held() && Some(&entry.user) == self.reader.as_ref())
    }

    /// Whether the reader holds any exam here, by whatever claim.
    pub(super) fn owns_any(&self) -> bool {
        let holds = |summary: &ExamSummary| self.owns(summary) || self.own_glass(summary).is_some();
        self.reading.iter().chain(&self.waiting).any(holds)
    }
}

fn is_own(summary: &ExamSummary, reader: Option<&Name>, site: SiteId) -> bool {
    summary.exam.claim.as_ref().is_some_and(|claim| claim.site == site && Some(&claim.user) == reader)
}

fn mesh_lines(status: &MeshStatus) -> MeshLines {
    let sites = status.sites.iter().map(|row| SiteLine {
        name: row.site.description.name.clone(),
        zone: row.site.description.zone.clone(),
        role: row.role,
        reach: row.reach,
        rtt: row.peer.as_ref().and_then(|peer| peer.rtt),
    });
    MeshLines {
        cut_off: status.cut_off(),
        heard_at: status.heard_at(),
        leader: status.leader(),
        quorum: status.quorum,
        below_two: status.counts.studies_below_two,
        sites: sites.collect(),
    }
}
