//! Hospitals: request examinations, send their images, and keep them until two sites have them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_tests::Slices;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::checks::logs::{ID_MARK, NAME_MARK};
use crate::client::{Client, Door};
use crate::history::Act;
use crate::images::{Cut, Fetched, fetch, send};
use crate::site::Site;
use crate::world::{Case, GLANCE, Phase, World};

/// Between two requests of a hospital, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 1200..4500;
/// Part of the requests that come by the command line.
const BY_COMMAND_LINE: f64 = 0.15;
/// Part of the examinations that wait for no images, and have none.
const WITHOUT_IMAGES: f64 = 0.1;
/// Part of the transmissions that are cut off.
const CUT: f64 = 0.2;
/// Sites that must hold an image before its sender may forget it.
const SAFE_COPIES: usize = 2;

/// A hospital beside a site. Returns when all that it requested is safe, or the run is over.
pub(crate) async fn run(world: Arc<World>, site: usize) {
    let mut pace = Client::new(&world, site, format!("hospital-{site}"));
    let (mut cases, mut n) = (JoinSet::new(), 0);
    while world.phase() == Phase::Faults {
        cases.spawn(examine(Arc::clone(&world), site, n));
        n += 1;
        sleep(Duration::from_millis(pace.draw.within(PAUSE_MS))).await;
    }
    while cases.join_next().await.is_some() {}
}

async fn examine(world: Arc<World>, site: usize, n: usize) {
    let mut client = Client::new(&world, site, format!("hospital-{site}-{n}"));
    client.leave_lost();
    let (accession, patient) = (format!("C{site}N{n}"), format!("{ID_MARK}-{site}-{n}"));
    let slices = u32::try_from(client.draw.within(2..7)).unwrap_or(2);
    let name = format!("{NAME_MARK}^NOBODY");
    let slices = Slices::named(&accession, &patient, &name, slices);
    let case = Arc::new(Case { accession, patient, slices, acknowledged: Mutex::default() });
    world.add_case(Arc::clone(&case));
    let awaits_images = !client.draw.chance(WITHOUT_IMAGES);
    if request(&mut client, &case, awaits_images).await.is_none() || !awaits_images {
        return;
    }
    while !world.is_over() {
        transmit(&mut client, &case).await;
        if wait_until_safe(&mut client, &case).await {
            world.history.event("studies safe on two sites", &json!(case.slices.study));
            return;
        }
    }
    world.history.event("studies never safe", &json!(case.slices.study));
}

async fn request(client: &mut Client, case: &Case, awaits_images: bool) -> Option<()> {
    let name = format!("{NAME_MARK}^NOBODY");
    let door = if client.draw.chance(BY_COMMAND_LINE) {
        let words = ["exams", "add", "--patient-id", &case.patient, "--accession", &case.accession];
        let more = ["--patient-name", &name, "--modality", "CT"];
        let mut words: Vec<String> = words.into_iter().chain(more).map(str::to_owned).collect();
        if !awaits_images {
            words.push("--without-images".to_owned());
        }
        Door::CommandLine(words)
    } else {
        let priority = *client.draw.pick(&["vital", "urgent", "semi-urgent", "scheduled"])?;
        Door::http(
            "/api/v1/exams",
            json!({
                "accession": case.accession,
                "patient": { "id": case.patient, "name": name, "birth_date": "19700101", "sex": "O" },
                "modality": "CT",
                "priority": priority,
                "awaits_images": awaits_images,
            }),
        )
    };
    let act = Act::Add { accession: case.accession.clone(), awaits_images };
    client.command(act, &door).await.map(drop)
}

/// Sends until one site has acknowledged everything.
async fn transmit(client: &mut Client, case: &Arc<Case>) {
    let world = Arc::clone(&client.world);
    let (mut at, mut acknowledged) = (client.site().number, BTreeSet::new());
    while acknowledged.len() < case.slices.instances.len() && !world.is_over() {
        client.leave_lost();
        if at != client.site().number {
            (at, acknowledged) = (client.site().number, BTreeSet::new());
        }
        // Some senders know what arrived, some begin anew.
        let skip = if client.draw.chance(0.5) { acknowledged.clone() } else { BTreeSet::new() };
        let left = u64::try_from(case.slices.instances.len() - skip.len()).unwrap_or(1);
        let cut = client.draw.chance(CUT).then(|| Cut {
            after: usize::try_from(client.draw.below(left)).unwrap_or(0),
            politely: client.draw.chance(0.5),
        });
        acknowledged.extend(send(&world, client.site(), case, skip, cut).await);
        sleep(Duration::from_millis(client.draw.within(300..2500))).await;
    }
}

/// Waits until the hospital may forget the images: false when it must send them again, because the site
/// that had them is gone.
async fn wait_until_safe(client: &mut Client, case: &Case) -> bool {
    let world = Arc::clone(&client.world);
    while !world.is_over() && client.site().is_living() {
        sleep(Duration::from_millis(client.draw.within(2000..4000))).await;
        if copies(&world, client.site(), case).await.is_some_and(|copies| copies >= SAFE_COPIES)
            && matches!(fetch(&world, client.site(), case).await, Fetched::Whole(_))
        {
            return true;
        }
    }
    false
}

/// Living sites that hold each part of a study, the fewest of any part. A part that only lost sites held
/// does not count: its instances must come from another. `None` when the site does not know the study.
pub(crate) async fn copies(world: &World, site: &Site, case: &Case) -> Option<usize> {
    let shown = site.get(GLANCE, &format!("/api/v1/studies/{}", case.slices.study)).await?;
    let living: BTreeSet<u64> = world.living().iter().filter_map(|site| site.id()).collect();
    let holders = shown["part_list"].as_array()?.iter().map(|part| {
        let holders = part["holders"].as_array().map_or(&[][..], Vec::as_slice).iter();
        holders.filter_map(|holder| holder["site"].as_u64()).filter(|id| living.contains(id)).count()
    });
    holders.filter(|count| *count > 0).min()
}
