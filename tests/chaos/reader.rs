//! Readers: claim, fetch the images, report or release; some die without a word. Their colleagues give
//! back what the dead had claimed, and watch.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::client::{Client, Door};
use crate::history::{Act, Told, Violation};
use crate::images::{Fetched, fetch};
use crate::world::{GLANCE, Phase, World};

/// Part of the claims that take an exam of the list instead of the next.
const BY_HAND: f64 = 0.3;
/// Part of the exams that are given back unread.
const GIVEN_BACK: f64 = 0.1;
/// Part of these whose reader writes the report all the same.
const WRITTEN_ALL_THE_SAME: f64 = 0.4;
/// Part of the exams whose reader's workstation dies.
const DIES: f64 = 0.05;
/// Tries at the images before the reader reads without them, as with a telephone at hand.
const FETCHES: usize = 3;
/// How long somebody reads, in milliseconds.
const READING_MS: std::ops::Range<u64> = 300..2500;
/// How long a dead workstation stays unnoticed.
const NOTICED_AFTER: Duration = Duration::from_secs(5);

/// A seat at a site, and the readers who sit there one after the other.
pub(crate) async fn run(world: Arc<World>, site: usize, seat: usize) {
    let mut shift = 0;
    while !world.is_over() {
        let client = Client::new(&world, site, format!("dr-{site}-{seat}-{shift}"));
        work(client).await;
        shift += 1;
        sleep(Duration::from_secs(2)).await;
    }
}

/// One reader's shift: until the workstation dies or the run is over.
async fn work(mut client: Client) {
    let world = Arc::clone(&client.world);
    while !world.is_over() {
        client.leave_lost();
        sleep(Duration::from_millis(client.draw.within(100..1200))).await;
        let choice = if client.draw.chance(BY_HAND) { waiting(&mut client).await } else { None };
        let user = json!({ "user": client.user });
        let (path, act) = match choice {
            Some(exam) => (format!("/api/v1/exams/{exam}/claim"), Act::Claim { exam: Some(exam) }),
            None => ("/api/v1/claims/next".to_owned(), Act::Claim { exam: None }),
        };
        if choice.is_some() && dies(&mut client) {
            let after = Duration::from_millis(client.draw.within(1..80));
            return client.ask_and_die(act, &path, &user, after).await;
        }
        let Some((told, answer)) = client.command(act, &Door::http(path, user)).await else { return };
        match told {
            Told::Granted { exam, token } => {
                if !read(&mut client, exam, token, &answer).await {
                    return;
                }
            }
            // Nothing to do: the list is looked at again after a while.
            _ => sleep(Duration::from_millis(client.draw.within(300..1500))).await,
        }
    }
}

fn dies(client: &mut Client) -> bool {
    client.world.phase() == Phase::Faults && client.draw.chance(DIES)
}

/// An exam of the site's list.
async fn waiting(client: &mut Client) -> Option<u64> {
    let list = client.site().get(GLANCE, "/api/v1/exams?state=waiting&limit=50").await?;
    let ids: Vec<u64> = list["exams"].as_array()?.iter().filter_map(|exam| exam["id"].as_u64()).collect();
    client.draw.pick(&ids).copied()
}

/// Reads a claimed exam. False when the workstation died.
async fn read(client: &mut Client, exam: u64, token: u64, granted: &Value) -> bool {
    if dies(client) {
        client.world.bury(client.user.clone());
        return false;
    }
    look_at_images(client, exam, &granted["exam"]).await;
    sleep(Duration::from_millis(client.draw.within(READING_MS))).await;
    let (user, command) = (client.user.clone(), client.draw.bits());
    let text = format!("Nothing acute. {user} {command:016x}");
    let report =
        Door::http(format!("/api/v1/exams/{exam}/report"), json!({ "user": user, "token": token, "text": text }));
    let act = Act::Report { exam, token, text };
    if client.world.phase() == Phase::Faults && client.draw.chance(GIVEN_BACK) {
        let body = json!({ "user": user, "token": token, "reason": "not mine" });
        let door = Door::http(format!("/api/v1/exams/{exam}/release"), body);
        if client.command(Act::Release { exam, token }, &door).await.is_none() {
            return false;
        }
        if !client.draw.chance(WRITTEN_ALL_THE_SAME) {
            return true;
        }
    }
    client.command(act, &report).await.is_some()
}

/// Fetches what the exam shows, and compares it.
async fn look_at_images(client: &mut Client, exam: u64, shown: &Value) {
    let world = Arc::clone(&client.world);
    // A grant may be told before this site's copy has the exam.
    let Some(case) = shown["accession"].as_str().and_then(|accession| world.case(accession)) else { return };
    let studies = shown["studies"].as_array().cloned().unwrap_or_default();
    if let Some(other) = studies.iter().find(|study| **study != json!(case.slices.study)) {
        let what = format!("exam {exam} shows {other}, which is not its own");
        world.history.violation(Violation::new("no foreign images", what));
    }
    if studies.is_empty() {
        return;
    }
    for _ in 0..FETCHES {
        match fetch(&world, client.site(), &case).await {
            Fetched::Whole(instances) => {
                world.history.event("studies read", &json!([case.slices.study, instances]));
                return;
            }
            Fetched::Not(why) => {
                world.history.event("retrievals without images", &json!([client.site().name, case.slices.study, why]));
            }
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// A colleague: gives back what dead workstations had claimed.
pub(crate) async fn run_colleague(world: Arc<World>) {
    let mut client = Client::new(&world, 0, "colleague".to_owned());
    while !world.is_over() {
        sleep(NOTICED_AFTER).await;
        client.walk();
        let Some(list) = client.site().get(GLANCE, "/api/v1/exams?state=claimed&limit=1000&fresh=true").await else {
            continue;
        };
        for exam in list["exams"].as_array().map_or(&[][..], Vec::as_slice) {
            let claim = &exam["claim"];
            let held = exam["id"].as_u64().zip(claim["token"].as_u64()).zip(claim["user"].as_str());
            let Some(((exam, token), _)) = held.filter(|(_, user)| world.is_dead(user)) else { continue };
            let body = json!({ "user": "colleague", "token": token, "reason": "the workstation died" });
            let door = Door::http(format!("/api/v1/exams/{exam}/release"), body);
            if client.command(Act::Release { exam, token }, &door).await.is_none() {
                return;
            }
        }
    }
}

/// Somebody who looks at exams, here and there, and insists on the present state.
pub(crate) async fn run_observer(world: Arc<World>, site: usize) {
    let mut client = Client::new(&world, site, format!("observer-{site}"));
    while !world.is_over() {
        sleep(Duration::from_millis(client.draw.within(800..2500))).await;
        client.leave_lost();
        // What is being read changes most.
        let states = ["claimed", "waiting", "requested"];
        let state = client.draw.pick(&states).copied().unwrap_or("claimed");
        let Some(list) = client.site().get(GLANCE, &format!("/api/v1/exams?state={state}&limit=100")).await else {
            continue;
        };
        let ids = list["exams"].as_array().map_or(&[][..], Vec::as_slice).iter();
        let ids: Vec<u64> = ids.filter_map(|exam| exam["id"].as_u64()).collect();
        if let Some(exam) = client.draw.pick(&ids).copied() {
            client.look(exam).await;
        }
    }
}
