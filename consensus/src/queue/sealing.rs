//! The keys of sealed images: brought before what is sealed under them is published, destroyed when it is purged.

use super::Applied;
use crate::ids::{ExamId, KeyId, Secret, SiteId, UidText};
use crate::machine::ApplyError;
use crate::outcome::{Outcome, Refusal};
use crate::state::State;
use crate::study_key::{KeptKey, StudyKey};

/// Keeps a key of the proposing site, for what its publication `sequence` of the study is the first to list.
pub(super) fn keep(state: &mut State<'_, '_>, study: &UidText, id: KeyId, sequence: u64, secret: &Secret) -> Applied {
    let origin = state.site;
    if let Some(known) = state.study_key(id)? {
        return Ok(match &known.what {
            KeptKey::Destroyed { .. } => Refusal::KeyDestroyed.into(),
            KeptKey::Kept(kept) if kept == secret && known.study == *study && known.origin == origin => {
                Outcome::Done.into()
            }
            KeptKey::Kept(_) => Refusal::OtherKey.into(),
        });
    }
    // No purge would destroy it: what it is for was purged, or never is.
    let last_purged = state.last_purged(study.as_str(), origin)?;
    if sequence <= last_purged {
        return Ok(Refusal::PartSuperseded { sequence: last_purged }.into());
    }
    let (kept_at, index, what) = (state.now, state.index, KeptKey::Kept(secret.clone()));
    state.put_study_key(&StudyKey { id, study: study.clone(), origin, sequence, kept_at, index, what });
    Ok(Outcome::Done.into())
}

/// Destroys the keys of a site's publications of a study up to `sequence`, with the exam whose images they were.
/// Those of later ones stay: they seal what was not published.
pub(super) fn destroy(
    state: &mut State<'_, '_>,
    study: &str,
    origin: SiteId,
    sequence: u64,
    exam: ExamId,
) -> Result<Vec<KeyId>, ApplyError> {
    let mut destroyed = Vec::new();
    let mut destruction = state.destruction()?;
    for key in state.study_keys_of(study, origin)? {
        if key.sequence > sequence {
            continue;
        }
        destroyed.push(key.id);
        destruction.brought_at = destruction.brought_at.max(key.index);
        state.put_study_key(&StudyKey { what: KeptKey::Destroyed { exam, at: state.now }, ..key });
    }
    if !destroyed.is_empty() {
        destruction.at = state.index;
        destruction.keys += destroyed.len() as u64;
        state.put_destruction(&destruction);
    }
    Ok(destroyed)
}
