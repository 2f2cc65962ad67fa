//! What the mesh agrees on about itself: its format, its partners, its policy, and whether its replicas
//! still agree.

use super::Applied;
use crate::audit::Attestation;
use crate::command::FORMAT;
use crate::ids::{Address, Name, SiteId};
use crate::order::{Hospital, Place, Policy, Situation};
use crate::outcome::{Outcome, Refusal};
use crate::state::State;

/// One format at a time, and never back.
pub(super) fn raise_format(state: &mut State<'_, '_>, to: u8) -> Applied {
    let Some(mut mesh) = state.mesh()? else {
        return Ok(Refusal::MeshState(Name::fitted("the mesh is not founded yet")).into());
    };
    if to != mesh.format + 1 || to > FORMAT {
        return Ok(Refusal::Format { format: mesh.format }.into());
    }
    mesh.format = to;
    state.format = to;
    state.put_mesh(&mesh);
    Ok(Outcome::Done.into())
}

/// Compares a site's audit chain with this replica's own. The one command whose effect differs between
/// replicas that differ already: that is what it is for.
pub(super) fn attest(state: &mut State<'_, '_>, site: SiteId, index: u64, chain: &Address) -> Applied {
    let agrees = state.chain_at(index)?.map(|own| own == *chain);
    state.put_attestation(&Attestation { site, index, agrees, at: state.now });
    Ok(Outcome::Done.into())
}

pub(super) fn set_hospital(state: &mut State<'_, '_>, hospital: &Hospital) -> Applied {
    if hospital.name.is_empty() {
        return Ok(Refusal::Missing(Name::fitted("the hospital's name")).into());
    }
    state.put_hospital(hospital);
    Ok(Outcome::Done.into())
}

pub(super) fn situate(state: &mut State<'_, '_>, site: SiteId, place: &Place) -> Applied {
    state.put_situation(site, &Situation { place: place.clone() });
    Ok(Outcome::Done.into())
}

pub(super) fn set_policy(state: &mut State<'_, '_>, policy: &Policy) -> Applied {
    state.put_policy(policy);
    Ok(Outcome::Done.into())
}
