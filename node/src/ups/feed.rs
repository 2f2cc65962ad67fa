//! What one subscriber is to be told, from the replicated log and in its order: the same at every node.
//!
//! A feed looks at events from a cursor on and keeps what it has seen; whoever holds it, a WebSocket or the
//! sender of N-EVENT-REPORTs, takes page after page and says itself how far it has got.

use std::collections::BTreeSet;

use maillage_consensus::command::Subscription;
use maillage_consensus::event::Cursor;
use maillage_consensus::exam::Text8;
use maillage_consensus::ids::ExamId;
use maillage_consensus::machine::ApplyError;

use super::dataset::Dataset;
use super::describe::Scene;
use super::report;
use crate::node::Node;

/// Events read at once.
const PAGE: usize = 256;

/// Why no feed begins.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    /// What came after the cursor is no longer kept.
    #[error("events since then are no longer kept: search the worklist anew")]
    Forgotten,
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] ApplyError),
}

/// A subscriber's events.
#[derive(Debug)]
pub(crate) struct Feed {
    node: Node,
    aet: Text8,
    scene: Scene,
    /// The last event that was looked at.
    at: Cursor,
    /// Subscriptions to single workitems whose state was told: the workitem, and where it began.
    greeted: BTreeSet<(ExamId, u32, u64)>,
}

/// Some reports.
#[derive(Debug)]
pub(crate) struct Page {
    /// In the order of what happened.
    pub(crate) reports: Vec<Dataset>,
    /// The log index of which, and of all before it, every report is in this page or an earlier one.
    pub(crate) through: u64,
    /// Whether there may be more at once.
    pub(crate) more: bool,
}

impl Feed {
    /// The subscriber's events after `after`, else all since its first subscription began, as far as they
    /// are kept.
    ///
    /// # Errors
    /// See [`FeedError`].
    pub(crate) fn new(node: &Node, aet: Text8, scene: Scene, after: Option<Cursor>) -> Result<Self, FeedError> {
        let applied = *node.changes().borrow();
        let (subscriptions, forgotten) = node.read(|view| Ok((view.subscriptions()?, view.forgotten()?)))?;
        let own = subscriptions.into_iter().filter(|subscription| subscription.aet == aet);
        let since = own.clone().map(|subscription| subscription.since).min();
        let greeted = own.filter(|subscription| after.is_some_and(|after| after.index >= subscription.since));
        let greeted = greeted.filter_map(|own| own.workitem.map(|(exam, number)| (exam, number, own.since)));
        let greeted = greeted.collect();
        let at = match after {
            Some(after) if after < forgotten => return Err(FeedError::Forgotten),
            Some(after) => after,
            None => forgotten.max(Cursor { index: since.unwrap_or(applied), place: u16::MAX }),
        };
        Ok(Self { node: node.clone(), aet, scene, at, greeted })
    }

    /// The next reports.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) fn next_page(&mut self) -> Result<Page, ApplyError> {
        let Self { node, aet, scene, at, greeted } = self;
        node.read(|view| {
            let mut subscriptions = view.subscriptions()?;
            subscriptions.retain(|subscription: &Subscription| subscription.aet == *aet);
            let mut reports = Vec::new();
            for subscription in &subscriptions {
                let Some((exam, number)) = subscription.workitem else { continue };
                if greeted.insert((exam, number, subscription.since))
                    && let Some((exam, workitem)) = view.exam(exam)?.zip(view.workitem(exam, number)?)
                {
                    reports.push(report::initial(scene, &exam, &workitem));
                }
            }
            let events = view.events(*at, PAGE)?;
            for (cursor, event) in &events {
                reports.extend(report::report(view, scene, &subscriptions, *cursor, event)?);
                *at = *cursor;
            }
            let more = events.len() == PAGE;
            // The rest of the last entry's events may be in the next page. A subscription whose state was told
            // began at its own entry, which bears no event.
            let told = subscriptions.iter().map(|subscription| subscription.since).max().unwrap_or(0);
            let through = if more { at.index.saturating_sub(1) } else { at.index.max(told) };
            Ok(Page { reports, through, more })
        })
    }
}
