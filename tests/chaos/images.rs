//! Images over the network, both ways: C-STORE to a site's DICOM port, WADO-RS from its HTTP port.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use maillage_tests::multipart::{find, text};
use maillage_tests::study::{ACCEPT, associate, store};
use serde_json::json;
use tokio::time::timeout;

use crate::checks::images::compare;
use crate::history::Violation;
use crate::site::{DICOM, Site};
use crate::world::{Case, World};

/// A study that is not stored by then is sent again.
const SEND_LIMIT: Duration = Duration::from_secs(40);
/// A retrieval may need other sites, some of them dead.
const FETCH_LIMIT: Duration = Duration::from_secs(25);
/// Where a Part 10 file's data set begins, beyond the group length: PS3.10 section 7.1.
const META_START: usize = 144;
const CHECK: &str = "images are those that were sent";

/// How a sender is cut off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// After so many instances.
    pub(crate) after: usize,
    /// With an A-ABORT, or without a word.
    pub(crate) politely: bool,
}

/// Sends what is not in `skip` over one association; what was acknowledged is noted in the case, and
/// returned.
pub(crate) async fn send(
    world: &Arc<World>,
    site: &Site,
    case: &Arc<Case>,
    skip: BTreeSet<String>,
    cut: Option<Cut>,
) -> BTreeSet<String> {
    let acknowledged = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let (seen, case, world) = (Arc::clone(&acknowledged), Arc::clone(case), Arc::clone(world));
    let name = site.name;
    let work = async move {
        let Ok(mut association) = associate(DICOM.into(), "CHAOS-CT", "MAILLAGE").await else { return };
        for (n, (uid, dataset)) in case.slices.instances.iter().filter(|(uid, _)| !skip.contains(*uid)).enumerate() {
            if let Some(cut) = cut.filter(|cut| cut.after == n) {
                world.history.event("senders cut in mid-study", &json!([name, case.slices.study, n]));
                if cut.politely {
                    association.abort().await;
                }
                return;
            }
            let status = match store(&mut association, uid, dataset.clone()).await {
                Ok(status) => status,
                Err(error) => {
                    world.history.event("instances without an answer", &json!([name, uid, error.to_string()]));
                    return;
                }
            };
            if !status.is_stored() {
                world.history.event("instances refused", &json!([name, uid, status.code(), status.comment()]));
                return;
            }
            world.history.event("instances acknowledged", &json!([name, uid]));
            case.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
        }
        let _ = association.release().await;
    };
    let _ = site.inside(timeout(SEND_LIMIT, work)).await;
    let acknowledged = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
    acknowledged.clone()
}

/// What a retrieval gave.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// So many instances, none of which is wrong, and all that were acknowledged before.
    Whole(usize),
    /// Less than that, or nothing, and why.
    Not(String),
}

/// Retrieves a study at a site and compares it with what was sent. What is wrong goes to the history as a
/// violation; what is missing is the caller's to judge.
pub(crate) async fn fetch(world: &World, site: &Site, case: &Case) -> Fetched {
    let path = case.slices.path();
    let headers = vec![("accept", ACCEPT.to_owned())];
    // What is acknowledged later may be missing.
    let acknowledged = case.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answer = match site.http(FETCH_LIMIT, hyper::Method::GET, path, headers, String::new()).await {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return Fetched::Not(format!("{} {}", answer.status, answer.text())),
        Err(error) => return Fetched::Not(error.0),
    };
    let wrong = |what: String| {
        world.history.violation(Violation::new(CHECK, format!("at {}: {}: {what}", site.name, case.slices.study)));
    };
    let Some(parts) = answer.try_parts() else {
        wrong("a whole answer is no multipart".to_owned());
        return Fetched::Not("broken".to_owned());
    };
    let got: Option<Vec<(String, Bytes)>> = parts.iter().map(|part| instance(&part.body)).collect();
    let Some(got) = got else {
        wrong("a part is no DICOM file".to_owned());
        return Fetched::Not("broken".to_owned());
    };
    let found = compare(&case.slices.instances, &acknowledged, &got);
    let is_right = found.wrong.is_empty();
    found.wrong.into_iter().for_each(wrong);
    let warned = answer.header("warning");
    if !is_right || !found.missing.is_empty() {
        return Fetched::Not(format!("{:?} did not come; {warned}", found.missing));
    }
    if !warned.is_empty() {
        world.history.event("whole studies with a warning", &json!([site.name, case.slices.study, warned]));
    }
    Fetched::Whole(got.len())
}

/// The SOP Instance UID and the data set of a Part 10 file.
fn instance(file: &Bytes) -> Option<(String, Bytes)> {
    let length: [u8; 4] = file.get(140..META_START)?.try_into().ok()?;
    let start = META_START.checked_add(usize::try_from(u32::from_le_bytes(length)).ok()?)?;
    if file.get(128..138)? != b"DICM\x02\0\0\0UL" || start > file.len() {
        return None;
    }
    let dataset = file.slice(start..);
    find(&dataset, b"\x08\0\x18\0UI").map(|_| (text(&dataset, 0x0008, 0x0018, "UI"), dataset))
}
