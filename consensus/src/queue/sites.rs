//! The mesh's membership: founding, join tokens, sessions.

use super::{Applied, claims, workitems};
use crate::command::{FORMAT, SiteDescription, UnixMillisField};
use crate::ids::{Address, Line, Name, PeerKey, SiteId};
use crate::mesh::{JoinToken, Mesh, Site, SiteRole};
use crate::outcome::{Outcome, Refusal};
use crate::state::State;

/// The longest life of a join token: a week.
const TOKEN_LIFETIME_MAX_MS: u64 = 7 * 24 * 3_600_000;

pub(super) fn found(
    state: &mut State<'_, '_>,
    id: &Address,
    name: &Name,
    copies: u8,
    founder: &SiteDescription,
    format: u8,
) -> Applied {
    if state.mesh()?.is_some() {
        return Ok(Refusal::MeshState(Name::fitted("the mesh is founded already")).into());
    }
    let format = format.clamp(1, FORMAT);
    state.format = format;
    state.put_mesh(&Mesh { id: *id, name: name.clone(), copies: copies.max(1), founded_at: state.now, format });
    add_site(state, SiteId(1), founder, SiteRole::Centre);
    Ok(Outcome::Founded.into())
}

fn add_site(state: &mut State<'_, '_>, id: SiteId, description: &SiteDescription, role: SiteRole) {
    let mut description = description.clone();
    if role.is_gateway() {
        // Whatever it says: no copy is placed at a gateway.
        description.weight = 0;
    }
    let site = Site {
        id,
        description,
        joined_at: state.now,
        sessions: 0,
        session_open: false,
        away_since: Some(state.now),
        role,
    };
    state.put_site(&site);
}

pub(super) fn create_token(state: &mut State<'_, '_>, key: &PeerKey, lifetime_ms: u64, role: SiteRole) -> Applied {
    let lifetime_ms = lifetime_ms.min(TOKEN_LIFETIME_MAX_MS);
    let token = JoinToken {
        key: key.clone(),
        created_at: state.now,
        expires_at: UnixMillisField(state.now.0.saturating_add(lifetime_ms)),
        used_by: None,
        revoked: false,
        role,
    };
    state.put_token(&token);
    Ok(Outcome::Done.into())
}

pub(super) fn revoke_token(state: &mut State<'_, '_>, key: &PeerKey) -> Applied {
    let Some(mut token) = state.token(key)? else {
        return Ok(Refusal::TokenUnknown.into());
    };
    token.revoked = true;
    state.put_token(&token);
    Ok(Outcome::Done.into())
}

/// A site joins, as what its token is for: a gateway's token makes no voter, nor the other way round.
pub(super) fn join(state: &mut State<'_, '_>, key: &PeerKey, joiner: &SiteDescription, as_gateway: bool) -> Applied {
    let Some(mut token) = state.token(key)? else {
        return Ok(Refusal::TokenUnknown.into());
    };
    if let Some(site) = token.used_by {
        // The joiner whose first answer was lost asks again, under another command id.
        let same = state.site(site)?.is_some_and(|member| member.description.key == joiner.key);
        return Ok(if same { Outcome::Joined { site }.into() } else { Refusal::TokenUsed.into() });
    }
    if token.revoked {
        return Ok(Refusal::TokenRevoked.into());
    }
    if !token.is_valid_at(state.now) {
        return Ok(Refusal::TokenExpired.into());
    }
    if token.role.is_gateway() != as_gateway {
        return Ok(Refusal::TokenRole { gateway: token.role.is_gateway() }.into());
    }
    let taken = state.sites()?.iter().any(|site| site.description.name == joiner.name);
    if taken || state.site_of(&joiner.key)?.is_some() {
        return Ok(Refusal::NameTaken.into());
    }
    let site = SiteId(state.index);
    token.used_by = Some(site);
    state.put_token(&token);
    add_site(state, site, joiner, token.role);
    Ok(Outcome::Joined { site }.into())
}

/// The hospitals whose reports a gateway is given.
pub(super) fn set_gateway(state: &mut State<'_, '_>, gateway: SiteId, hospitals: &[Line]) -> Applied {
    let Some(mut site) = state.site(gateway)?.filter(Site::is_gateway) else {
        return Ok(Refusal::NotAGateway.into());
    };
    site.role = SiteRole::Gateway { hospitals: hospitals.to_vec() };
    state.put_site(&site);
    Ok(Outcome::Done.into())
}

pub(super) fn describe(state: &mut State<'_, '_>, id: SiteId, description: &SiteDescription) -> Applied {
    let Some(mut site) = state.site(id)? else {
        return Ok(Refusal::NotAMember.into());
    };
    // A site cannot give itself another identity, nor another's name.
    let others = state.sites()?;
    let taken = others.iter().any(|other| other.id != id && other.description.name == description.name);
    if taken || site.description.key != description.key {
        return Ok(Refusal::NameTaken.into());
    }
    site.description = description.clone();
    state.put_site(&site);
    Ok(Outcome::Done.into())
}

pub(super) fn open_session(state: &mut State<'_, '_>, id: SiteId) -> Applied {
    let Some(mut site) = state.site(id)? else {
        return Ok(Refusal::NotAMember.into());
    };
    if !site.session_open {
        site.sessions += 1;
        site.session_open = true;
        site.away_since = None;
        state.put_site(&site);
    }
    Ok(Outcome::SessionOpened { session: site.sessions }.into())
}

pub(super) fn expire_session(state: &mut State<'_, '_>, id: SiteId, session: u64) -> Applied {
    let Some(mut site) = state.site(id)? else {
        return Ok(Refusal::NotAMember.into());
    };
    if !site.session_open || site.sessions != session {
        return Ok(Refusal::SessionOver.into());
    }
    site.session_open = false;
    site.away_since = Some(state.now);
    let reason = Line::fitted(&format!("the session of {} ended", site.description.name));
    state.put_site(&site);
    let mut freed = 0;
    for exam in state.claimed_at(id)? {
        if let Some(exam) = state.exam(exam)? {
            claims::lose(state, &exam, &reason)?;
            freed += 1;
        }
    }
    for (exam, number) in state.performed_at(id)? {
        workitems::lose(state, exam, number, &reason)?;
    }
    Ok(Outcome::SessionExpired { freed }.into())
}
