//! I3 and I8 as a viewer sees them: what a node gives of a study is what was sent, of that patient, byte
//! for byte, wherever the chunks are, and in the end all of it.

use std::time::Duration;

use axum::http::{Method, StatusCode};

use crate::cluster::{Cluster, Running};
use crate::workload::dicom::parts;
use crate::workload::http;

/// A viewer that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after the faults every study must be whole at every node.
const WHOLE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Retrieves a study by WADO-RS at the node of `running`. With `all`, whatever was acknowledged must be
/// there; returns what is not.
pub(crate) async fn look(cluster: &Cluster, running: &Running, study: &str, all: bool) -> Option<String> {
    // Before the question: more may be acknowledged while it is answered.
    let wanted = cluster.watch.instances.of_study(study);
    let request = http::request(Method::GET, &format!("/dicom-web/studies/{study}"), None, None);
    let Some(answered) = http::ask(cluster, running, PATIENCE, request).await else {
        return all.then(|| "no answer".to_owned());
    };
    if answered.status != StatusCode::OK {
        cluster.world.sometimes("images could not be had for now");
        return all.then(|| format!("{} {}", answered.status, answered.json()));
    }
    let files = match parts(&answered.content_type, &answered.body) {
        Ok(files) => files,
        Err(_) if answered.warning || !all => {
            // Its source died in mid-stream: a client sees that the body is not whole.
            cluster.world.sometimes("a retrieval broke off");
            return Some("it broke off".to_owned());
        }
        Err(error) => return Some(error),
    };
    cluster.world.sometimes("a study was retrieved");
    let known = cluster.watch.instances.of_study(study);
    for (sop_instance, data_set) in &files {
        match known.get(sop_instance) {
            Some(sent) if sent == data_set => {}
            Some(_) => {
                let detail = format!("{:?} gives other bytes than were sent as {sop_instance}", running.owner);
                cluster.world.violation("I3", detail);
            }
            // Stored, and its acknowledgement lost on the way: it was sent all the same.
            None if cluster.watch.instances.was_offered(study, sop_instance, data_set) => {}
            None => {
                let detail = format!("{:?} shows {sop_instance} in study {study}", running.owner);
                cluster.world.violation("I8", detail);
            }
        }
    }
    let given: std::collections::BTreeSet<&String> = files.iter().map(|(sop_instance, _)| sop_instance).collect();
    let missing: Vec<&String> = wanted.keys().filter(|sop_instance| !given.contains(sop_instance)).collect();
    (!missing.is_empty()).then(|| format!("{} of {} instances are missing", missing.len(), wanted.len()))
}

/// Waits until every node gives every study whole; a violation when that takes too long.
pub(crate) async fn everything_is_there(cluster: &Cluster) {
    let deadline = cluster.world.now() + WHOLE;
    for study in cluster.watch.instances.studies() {
        for slot in cluster.slots() {
            if !is_there(cluster, slot, &study, deadline).await {
                return;
            }
        }
    }
}

/// Waits until the node of `slot` gives a study whole, unless it may be lost; a violation, and `false`, when it does not
/// until `deadline`.
pub(crate) async fn is_there(cluster: &Cluster, slot: u32, study: &str, deadline: Duration) -> bool {
    loop {
        let missing = match cluster.running(slot) {
            Some(running) => look(cluster, &running, study, true).await,
            None => Some("the node is down".to_owned()),
        };
        let Some(missing) = missing else { return true };
        if cluster.may_have_rotted(study) {
            cluster.world.sometimes("an image rotted where its only copy was wanted");
            return true;
        }
        if cluster.world.now() > deadline {
            if cluster.may_be_lost(study) {
                cluster.world.sometimes("an image was lost where its only copy was wanted");
                return true;
            }
            let detail = format!("long after the last work, slot {slot} lacks of study {study}: {missing}");
            cluster.world.violation("I3", detail);
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}
