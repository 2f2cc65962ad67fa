//! Copies as they are beside copies as they should be: counted, listed, and what a staged layout would move.
//!
//! The replicated counts know every holder that said so; here only those count that are there, or away for less
//! than the grace. A look goes over every study, some at a time, and lets others go first in between.

use std::collections::{BTreeMap, BTreeSet};

use maillage_consensus::ids::SiteId;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::HeldPart;

use super::STUDIES_PER_ROUND;
use super::choice::Choice;
use crate::node::Node;

/// How many copies there are, and how many are missing or too many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Parts of studies.
    pub(crate) parts: u64,
    /// Their bytes, once.
    pub(crate) bytes: u64,
    /// Copies of them.
    pub(crate) copies: u64,
    /// … and their bytes.
    pub(crate) copies_bytes: u64,
    /// Parts with fewer copies than wanted, and their bytes.
    pub(crate) under: u64,
    pub(crate) under_bytes: u64,
    /// Parts on one site that is there, or on none.
    pub(crate) under_two: u64,
    /// Copies beyond those wanted, those that must not be where they are included, and their bytes.
    pub(crate) over: u64,
    pub(crate) over_bytes: u64,
    /// Parts that stay where they were received: nothing is missed of them.
    pub(crate) confined: u64,
}

/// A part beside what is wanted of it.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) held: HeldPart,
    /// Copies wanted.
    pub(crate) wanted: usize,
    /// Holders that count: there, and where the layout lets them hold.
    pub(crate) counted: Vec<SiteId>,
    /// Sites that should hold it.
    pub(crate) should: BTreeSet<SiteId>,
    /// Whether it stays where it was received.
    pub(crate) confined: bool,
}

impl Look {
    /// Whether it has fewer copies than wanted.
    pub(crate) fn is_under(&self) -> bool {
        !self.confined && self.counted.len() < self.wanted
    }
}

/// What a staged layout would move to and from a site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    pub(crate) parts_gained: u64,
    pub(crate) bytes_gained: u64,
    pub(crate) parts_lost: u64,
    pub(crate) bytes_lost: u64,
}

/// Counts all.
pub(crate) async fn take(node: &Node) -> Result<Census, ApplyError> {
    let mut census = Census::default();
    let choice = node.read(|view| Choice::now(node, view))?;
    each(node, &choice, None, &mut |look| {
        let bytes = look.held.part.bytes;
        let holders = look.held.holders.len() as u64;
        census.parts += 1;
        census.bytes += bytes;
        census.copies += holders;
        census.copies_bytes += bytes.saturating_mul(holders);
        if look.confined {
            census.confined += 1;
            return true;
        }
        if look.is_under() {
            census.under += 1;
            census.under_bytes += bytes;
        }
        census.under_two += u64::from(look.counted.len() < 2);
        // While some are missing, none is too many.
        let over = if look.should.is_subset(&look.counted.iter().copied().collect()) {
            look.held.holders.iter().filter(|site| !look.should.contains(site)).count() as u64
        } else {
            0
        };
        census.over += over;
        census.over_bytes += bytes.saturating_mul(over);
        true
    })
    .await?;
    Ok(census)
}

/// Up to `limit` parts with too few copies, of the studies behind `after`; and the study to go on behind, if there
/// may be more. A study's parts stay together.
pub(crate) async fn under(
    node: &Node,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<Look>, Option<String>), ApplyError> {
    let choice = node.read(|view| Choice::now(node, view))?;
    let (mut found, mut next): (Vec<Look>, Option<String>) = (Vec::new(), None);
    each(node, &choice, after, &mut |look| {
        let is_new = found.last().is_none_or(|last| last.held.part.study != look.held.part.study);
        if found.len() >= limit && is_new && look.is_under() {
            next = found.last().map(|last| last.held.part.study.to_string());
            return false;
        }
        if look.is_under() {
            found.push(look);
        }
        true
    })
    .await?;
    Ok((found, next))
}

/// The parts of one study; none when it is not known.
pub(crate) fn locate(node: &Node, study: &str) -> Result<Option<Vec<Look>>, ApplyError> {
    node.read(|view| {
        let choice = Choice::now(node, view)?;
        let Some(study) = view.study(study)? else { return Ok(None) };
        let mut looks = Vec::new();
        for held in study.parts {
            let confined = view.exam(held.exam)?.is_some_and(|exam| exam.is_confined());
            looks.push(look(&choice, held, confined));
        }
        Ok(Some(looks))
    })
}

/// What each site would gain and lose by a layout.
pub(crate) async fn moves(node: &Node, choice: &Choice) -> Result<BTreeMap<SiteId, Moves>, ApplyError> {
    let mut moves: BTreeMap<SiteId, Moves> = BTreeMap::new();
    each(node, choice, None, &mut |look| {
        if look.confined {
            return true;
        }
        let (bytes, holders) = (look.held.part.bytes, &look.held.holders);
        for site in look.should.iter().filter(|site| !holders.contains(site)) {
            let moves = moves.entry(*site).or_default();
            moves.parts_gained += 1;
            moves.bytes_gained += bytes;
        }
        let goes = |site: &&SiteId| choice.is_out_of_place(&look.held, **site) || choice.is_beyond(&look.held, **site);
        for site in holders.iter().filter(goes) {
            let moves = moves.entry(*site).or_default();
            moves.parts_lost += 1;
            moves.bytes_lost += bytes;
        }
        true
    })
    .await?;
    Ok(moves)
}

fn look(choice: &Choice, held: HeldPart, confined: bool) -> Look {
    let (wanted, should) = (choice.plan().copies(held.origin), choice.holders(&held));
    let counted = choice.plan().counted(&held).into_iter().filter(|site| choice.is_there(*site)).collect();
    Look { wanted, counted, should, confined, held }
}

/// Looks at each part behind the study `after`, until `see` says no.
async fn each(
    node: &Node,
    choice: &Choice,
    after: Option<&str>,
    see: &mut (dyn FnMut(Look) -> bool + Send),
) -> Result<(), ApplyError> {
    let mut after = after.map(str::to_owned);
    loop {
        let page = node.read(|view| {
            let studies = view.studies(after.as_deref(), STUDIES_PER_ROUND)?;
            let counted = view.confined(after.as_deref(), studies.last().map(|study| study.uid.as_str()))?;
            let mut parts = Vec::new();
            for study in &studies {
                let may_be = counted.contains(study.uid.as_str());
                for held in &study.parts {
                    // Exams are large: only those of which the state says so are read.
                    let confined = may_be && view.exam(held.exam)?.is_some_and(|exam| exam.is_confined());
                    parts.push((held.clone(), confined));
                }
            }
            let next = studies.last().filter(|_| studies.len() == STUDIES_PER_ROUND);
            Ok((parts, next.map(|study| study.uid.to_string())))
        })?;
        let (parts, next) = page;
        for (held, confined) in parts {
            if !see(look(choice, held, confined)) {
                return Ok(());
            }
        }
        after = match next {
            Some(next) => Some(next),
            None => return Ok(()),
        };
        tokio::task::yield_now().await;
    }
}
