//! What is likely to be read here, by the state: what is claimed here, the head of the room, and their priors.

use std::collections::BTreeSet;

use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::Exam;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::HeldPart;
use maillage_consensus::order::Reader;
use maillage_store::Hash;

use super::priors::Priors;
use crate::node::Node;

/// Waiting exams that are looked at: the room holds tens.
const ROOM_MAX: usize = 128;
/// … and of which the images are brought: two for each of a centre's seats, as the room is everybody's.
const HEAD_MAX: usize = 16;
/// Claims of one site.
const CLAIMED_MAX: usize = 64;

/// A part of a study that is likely to be read here, and is no copy of this site's.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) held: HeldPart,
}

impl Wish {
    pub(super) fn manifest(&self) -> Hash {
        Hash(self.held.part.manifest)
    }

    /// At most: coded pixels take less.
    pub(super) fn bytes(&self) -> u64 {
        self.held.part.bytes
    }
}

/// What is wished for, the most likely first: an exam, then its priors.
pub(super) fn wishes(node: &Node, readers: &[Reader], priors: &Priors) -> Result<Vec<Wish>, ApplyError> {
    node.read(|view| {
        let mut exams = view.claimed_at(node.site(), CLAIMED_MAX)?;
        exams.extend(head(node, view, readers)?);
        let (mut seen, mut wishes) = (BTreeSet::new(), Vec::new());
        for exam in exams {
            let earlier = priors.of(view, &exam)?;
            for exam in std::iter::once(exam).chain(earlier) {
                add_parts(node, view, &exam, &mut seen, &mut wishes)?;
            }
        }
        Ok(wishes)
    })
}

/// Whether a part may leave the site that received it, and lie here by the layout.
pub(super) fn may_lie_here(node: &Node, view: &View<'_>, held: &HeldPart) -> Result<bool, ApplyError> {
    Ok(view.may_hold(node.site(), held)? && view.plan()?.allows(held.origin, node.site()))
}

fn add_parts(
    node: &Node,
    view: &View<'_>,
    exam: &Exam,
    seen: &mut BTreeSet<[u8; 32]>,
    wishes: &mut Vec<Wish>,
) -> Result<(), ApplyError> {
    for uid in &exam.studies {
        for held in view.study(uid.as_str())?.into_iter().flat_map(|study| study.parts) {
            let is_here = held.origin == node.site() || held.holders.contains(&node.site());
            // What the patient refuses to have transferred is never brought, nor what is another exam's.
            if held.exam == exam.id && !is_here && may_lie_here(node, view, &held)? && seen.insert(held.part.manifest) {
                wishes.push(Wish { held });
            }
        }
    }
    Ok(())
}

/// The exams that this site's readers are given next: those that are theirs to read now, then those that are kept for
/// readers who are nearer or know more, for as long as they are.
fn head(node: &Node, view: &View<'_>, readers: &[Reader]) -> Result<Vec<Exam>, ApplyError> {
    let now = UnixMillisField(node.state_time(view)?.0);
    let place = view.situation(node.site())?.place;
    let policy = view.policy()?;
    let (mut theirs, mut kept) = (Vec::new(), Vec::new());
    for exam in view.waiting(now, ROOM_MAX)? {
        let hospital = view.hospital(exam.request.hospital.as_str())?;
        let contract = hospital.as_ref().map(|hospital| &hospital.sites);
        let is_contracted = contract.is_none_or(|sites| sites.is_empty() || sites.contains(&node.site()));
        let mut able = readers.iter().filter(|reader| reader.reads(&exam)).peekable();
        if !is_contracted || able.peek().is_none() {
            continue;
        }
        let ready = exam.ready_at.unwrap_or(exam.added_at);
        let needs = &exam.course.order.expertise;
        let knows = needs.is_empty() || able.any(|reader| reader.expertise.contains(needs));
        let is_for_experts = !knows && policy.keeps_for_experts(exam.request.priority, ready, now);
        let is_for_nearer = hospital.is_some_and(|hospital| {
            let distance = hospital.place.distance(&place);
            !hospital.place.is_unknown() && policy.keeps(exam.request.priority, ready, now, distance)
        });
        if is_for_experts || is_for_nearer { kept.push(exam) } else { theirs.push(exam) }
    }
    theirs.extend(kept);
    theirs.truncate(HEAD_MAX);
    Ok(theirs)
}
