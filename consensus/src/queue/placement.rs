//! Where copies may lie: layouts staged and applied, sites drained or full, and copies that are given up.
//!
//! A copy goes only by a command: the mesh decides in one order which copies it still counts on, so that two sites
//! never both give up what only the other has.

use std::collections::BTreeSet;

use super::{Applied, studies};
use crate::ids::{Address, Line, Name, SiteId, UidText};
use crate::machine::ApplyError;
use crate::outcome::{Outcome, Refusal};
use crate::placement::{Change, Contract, Draining, Impossible, Plan};
use crate::state::State;

pub(super) fn stage(state: &mut State<'_, '_>, change: &Change) -> Applied {
    let named = match change {
        Change::Share(share) => BTreeSet::from([share.site]),
        Change::Contract(contract) => contract.sites().collect(),
        // A contract that should never have been can be ended.
        Change::Copies(_) | Change::Zones(_) | Change::EndContract(_) => BTreeSet::new(),
    };
    if let Some(refusal) = no_centres(state, &named)? {
        return Ok(refusal.into());
    }
    let mut placement = state.placement()?;
    let mut staged = placement.staged.take().unwrap_or_else(|| placement.applied.clone());
    if !staged.change(change) {
        return Ok(Refusal::TooMany(Name::fitted("shares or contracts in one layout")).into());
    }
    placement.last += 1;
    staged.version = placement.last;
    placement.staged = Some(staged);
    state.put_placement(&placement);
    Ok(Outcome::Staged { version: placement.last }.into())
}

/// Why these are not all centres. No image is a gateway's: it is the centre's that took it in, and no copy lies at a
/// gateway. A contract that names one would promise what nothing keeps.
fn no_centres(state: &State<'_, '_>, named: &BTreeSet<SiteId>) -> Result<Option<Refusal>, ApplyError> {
    for site in named {
        match state.site(*site)? {
            None => return Ok(Some(Refusal::NoSuchSite)),
            Some(site) if site.is_gateway() => return Ok(Some(Refusal::NotACentre(site.description.name))),
            Some(_) => {}
        }
    }
    Ok(None)
}

/// Applies what is staged, if it is what its author has seen, its contracts are centres', and images could still lie as
/// they have to; with a reason also if they could not.
pub(super) fn apply(state: &mut State<'_, '_>, version: u64, force: &Line) -> Applied {
    let mut placement = state.placement()?;
    let Some(staged) = placement.staged.take().filter(|staged| staged.version == version) else {
        return Ok(not_staged(state)?.into());
    };
    let named = staged.contracts.iter().flat_map(Contract::sites).collect();
    if let Some(refusal) = no_centres(state, &named)? {
        return Ok(refusal.into());
    }
    let (now, then) = (state.plan()?, state.plan_of(staged.clone())?);
    if let Some(refusal) = impossible(&now, &then).filter(|_| force.is_empty()) {
        return Ok(refusal.into());
    }
    placement.applied = staged;
    state.put_placement(&placement);
    state.judge_all()?;
    Ok(Outcome::Done.into())
}

/// Drops what is staged.
pub(super) fn revert(state: &mut State<'_, '_>, version: u64) -> Applied {
    let mut placement = state.placement()?;
    if placement.staged.take().is_none_or(|staged| staged.version != version) {
        return Ok(not_staged(state)?.into());
    }
    state.put_placement(&placement);
    Ok(Outcome::Done.into())
}

fn not_staged(state: &State<'_, '_>) -> Result<Refusal, ApplyError> {
    let staged = state.placement()?.staged.map_or(0, |staged| staged.version);
    Ok(Refusal::OtherLayout { staged })
}

/// What becomes impossible from one plan to another, or more so than it was.
fn impossible(now: &Plan, then: &Plan) -> Option<Refusal> {
    let before = now.impossible();
    let is_worse = |after: &Impossible| {
        before.iter().find(|before| before.origin == after.origin).is_none_or(|before| {
            let short = |one: &Impossible| {
                (one.copies.saturating_sub(one.copies_possible), one.zones.saturating_sub(one.zones_possible))
            };
            let ((copies, zones), (copies_before, zones_before)) = (short(after), short(before));
            copies > copies_before || zones > zones_before
        })
    };
    let after = then.impossible().into_iter().find(is_worse)?;
    let name = then.ground(after.origin).map(|ground| ground.name.clone()).unwrap_or_default();
    let few = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
    Some(Refusal::PlacementImpossible {
        origin: name,
        copies: few(after.copies),
        copies_possible: few(after.copies_possible),
        zones: few(after.zones),
        zones_possible: few(after.zones_possible),
    })
}

/// A site's copies go elsewhere, and it is given no more.
pub(super) fn drain(state: &mut State<'_, '_>, site: SiteId, reason: &Line, force: bool) -> Applied {
    if state.site(site)?.is_none() {
        return Ok(Refusal::NoSuchSite.into());
    }
    if force && reason.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("the reason")).into());
    }
    let mut standing = state.standing(site)?;
    if standing.draining.is_some() {
        return Ok(Refusal::DoneAlready.into());
    }
    let now = state.plan()?;
    standing.draining = Some(Draining { at: state.now, reason: reason.clone(), user: state.user.clone() });
    state.put_standing(&standing);
    // The refusal takes the writes back.
    if let Some(refusal) = impossible(&now, &state.plan()?).filter(|_| !force) {
        return Ok(refusal.into());
    }
    state.judge_all()?;
    Ok(Outcome::Done.into())
}

/// … and it is given copies again.
pub(super) fn undrain(state: &mut State<'_, '_>, site: SiteId) -> Applied {
    if state.site(site)?.is_none() {
        return Ok(Refusal::NoSuchSite.into());
    }
    let mut standing = state.standing(site)?;
    if standing.draining.take().is_none() {
        return Ok(Refusal::DoneAlready.into());
    }
    state.put_standing(&standing);
    state.judge_all()?;
    Ok(Outcome::Done.into())
}

/// The proposing site has no room for more copies, or has again.
pub(super) fn report_room(state: &mut State<'_, '_>, full: bool) -> Applied {
    let mut standing = state.standing(state.site)?;
    if standing.full_since.is_some() != full {
        standing.full_since = full.then_some(state.now);
        state.put_standing(&standing);
    }
    Ok(Outcome::Done.into())
}

/// The proposing site is rid of its copy of a part, if the mesh does without: only after this may its bytes go.
pub(super) fn give_up(state: &mut State<'_, '_>, uid: &UidText, manifest: &Address) -> Applied {
    let Some(before) = state.study(uid.as_str())? else {
        return Ok(Refusal::NoSuchPart.into());
    };
    let mut study = before.clone();
    let Some(held) = study.parts.iter_mut().find(|held| held.part.manifest == *manifest) else {
        return Ok(Refusal::NoSuchPart.into());
    };
    let site = state.site;
    if held.holders.binary_search(&site).is_err() {
        return Ok(Refusal::DoneAlready.into());
    }
    // Those stay where they were received; elsewhere they go another way.
    if state.exam(held.exam)?.is_some_and(|exam| exam.is_confined()) {
        return Ok(Refusal::ConsentRefused.into());
    }
    if !state.plan()?.spares(held, site) {
        return Ok(Refusal::CopyNeeded.into());
    }
    held.holders.retain(|holder| *holder != site);
    // With a publication go all before it.
    held.earlier.iter_mut().for_each(|earlier| earlier.holders.retain(|holder| *holder != site));
    studies::forget_needless(state, held)?;
    state.put_study(Some(&before), &study)?;
    Ok(Outcome::Done.into())
}
