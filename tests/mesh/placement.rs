//! Copies lie where the layout says: contracts are kept, an applied layout moves them, a drained site is emptied, a
//! full one is passed over; and what is missing is counted and listed.

#![expect(clippy::disallowed_methods, reason = "tests look for bytes in a site's files, and change its configuration")]

use std::fs;
use std::time::Duration;

use maillage_tests::{Mesh, Settings, Site, Slices, until, until_within};
use serde_json::{Value, json};

use crate::binary;
use crate::life::list;
use crate::purge::is_in;

/// Four sites in zones of their own, which give surplus copies up at once.
async fn four(copies: u8) -> Mesh {
    let settings =
        |_| Settings { copies, lines: vec![("[storage]", "surplus_grace_s = 1".to_owned())], ..Settings::default() };
    Mesh::start(binary(), 4, settings).await
}

async fn located(site: &Site, study: &Slices) -> Option<Value> {
    let shown = site.http().get(&format!("/api/v1/placement/studies/{}", study.study)).await;
    (shown.status == 200).then(|| shown.json()["parts"][0].clone())
}

fn names(part: &Value, key: &str) -> Vec<String> {
    let mut names: Vec<String> =
        list(part, key).iter().map(|site| site.as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}

/// Waits until exactly those hold a study that should, and returns who.
async fn placed(site: &Site, study: &Slices, good: impl Fn(&[String]) -> bool) -> Vec<String> {
    // Each copy that moves is a few commands, and a machine that is busy elects now and then.
    until_within(Duration::from_secs(120), "the copies lie where they should", async || {
        let part = located(site, study).await?;
        let holders = names(&part, "holders");
        (holders == names(&part, "should") && good(&holders)).then_some(holders)
    })
    .await
}

fn numbered<'m>(mesh: &'m Mesh, name: &str) -> &'m Site {
    mesh.sites.iter().find(|site| site.name() == name).expect("a site of this name")
}

async fn counts(site: &Site) -> Value {
    site.run_json(&["chunks", "stats"]).await["mesh"].clone()
}

#[tokio::test]
async fn a_drained_site_is_emptied_once_others_have_its_copies() {
    let mesh = four(2).await;
    let paris = &mesh.sites[0];
    let studies: Vec<Slices> = (0..4).map(|n| Slices::new(&format!("A{n}"), "P1", 3)).collect();
    for study in &studies {
        study.send(paris.dicom()).await;
    }
    let mut holders = Vec::new();
    for study in &studies {
        holders.push(placed(paris, study, |holders| holders.len() == 2).await);
    }
    let drained = holders[0].iter().find(|name| *name != "paris").expect("another holds it").clone();
    let emptied = numbered(&mesh, &drained);
    assert!(is_in(emptied.data_dir(), &studies[0]).is_some(), "the search finds what is there");
    let before = counts(paris).await;
    assert_eq!((&before["parts"], &before["copies"], &before["under"]), (&json!(4), &json!(8), &json!(0)), "{before}");

    paris.run(&["drain", &drained, "--reason", "new disks", "--user", "ann"]).await.ended(0);
    paris.run(&["drain", &drained]).await.ended(6);
    for study in &studies {
        placed(paris, study, |holders| holders.len() == 2 && !holders.contains(&drained)).await;
        until("its bytes are gone", async || is_in(emptied.data_dir(), study).is_none().then_some(())).await;
        study.is_whole_at(emptied.http()).await;
    }
    let after = counts(paris).await;
    assert_eq!((&after["copies"], &after["under"], &after["over"]), (&json!(8), &json!(0), &json!(0)), "{after}");
    let shown = emptied.run_json(&["placement", "show"]).await;
    let row = |shown: &Value| {
        let sites = list(&shown["applied"], "sites").iter();
        sites.clone().find(|site| site["name"] == json!(drained)).expect("the site").clone()
    };
    assert_eq!((&row(&shown)["takes"], &row(&shown)["draining_reason"]), (&json!(false), &json!("new disks")));

    // What it receives itself goes to two others, and it counts on none of its own.
    let own = Slices::new("A9", "P9", 3);
    own.send(emptied.dicom()).await;
    placed(paris, &own, |holders| holders.len() == 2 && !holders.contains(&drained)).await;

    emptied.run(&["undrain"]).await.ended(0);
    assert_eq!(row(&emptied.run_json(&["placement", "show"]).await)["takes"], json!(true));
    // The other three drained, all that comes must go there.
    let others = ["lyon", "nantes", "lille"].into_iter().filter(|name| *name != drained);
    for (n, other) in others.enumerate() {
        let force: &[&str] = if n == 0 { &[] } else { &["--force", "--reason", "a test"] };
        paris.run(&[&["drain", other], force].concat()).await.ended(0);
    }
    let last = Slices::new("A10", "P10", 3);
    last.send(paris.dicom()).await;
    let whole = placed(paris, &last, |holders| holders.len() == 2).await;
    assert!(whole.contains(&drained), "{whole:?}");
    paris.run(&["drain", "paris"]).await.ended(5).complains_of(&["zones"]);
}

#[tokio::test]
async fn a_contract_is_obeyed_and_an_applied_layout_moves_copies() {
    let mesh = four(3).await;
    let (paris, lille) = (&mesh.sites[0], &mesh.sites[3]);
    let studies: Vec<Slices> = (0..4).map(|n| Slices::new(&format!("A{n}"), "P1", 3)).collect();
    for study in &studies {
        study.send(paris.dicom()).await;
    }
    let mut at_lille = 0;
    for study in &studies {
        let holders = placed(paris, study, |holders| holders.len() == 3).await;
        at_lille += usize::from(holders.contains(&"lille".to_owned()));
    }
    let contract = ["placement", "set", "contract", "site:paris", "--all-but", "lille", "--user", "dpo"];
    assert_eq!(paris.run_json(&contract).await["version"], json!(1));
    let shown = paris.run_json(&["placement", "show"]).await;
    assert_eq!((&shown["applied"]["version"], &shown["staged"]["version"]), (&json!(0), &json!(1)));
    let diff = numbered(&mesh, "lyon").run_json(&["placement", "diff"]).await;
    let lost: u64 = list(&diff, "sites").iter().filter_map(|site| site["parts_lost"].as_u64()).sum();
    assert_eq!((lost, &diff["impossible"]), (at_lille as u64, &json!([])), "{diff}");
    // Somebody stages more in between.
    paris.run(&["placement", "set", "site", "nantes", "--weight", "500"]).await.ended(0);
    paris.run(&["placement", "apply", "--version", "1"]).await.ended(6).complains_of(&["version 2"]);
    lille.run(&["placement", "apply", "--version", "2", "--user", "dpo"]).await.ended(0);
    for study in &studies {
        placed(paris, study, |holders| holders == ["lyon", "nantes", "paris"]).await;
        until("its bytes are gone", async || is_in(lille.data_dir(), study).is_none().then_some(())).await;
    }
    let new = Slices::new("A9", "P9", 3);
    new.send(paris.dicom()).await;
    placed(paris, &new, |holders| holders == ["lyon", "nantes", "paris"]).await;
    // It is read there, and not kept.
    new.is_whole_at(lille.http()).await;
    let refused = lille.run(&["study", "fetch", &new.study]).await;
    assert_ne!(refused.code, 0);
    refused.complains_of(&["layout"]);
    assert_eq!(is_in(lille.data_dir(), &new), None);

    // What would leave too few zones is applied only with a reason.
    let staged = paris.run_json(&["placement", "set", "contract", "site:paris", "--nobody"]).await;
    let version = staged["version"].to_string();
    paris.run(&["placement", "apply", "--version", &version]).await.ended(5).complains_of(&["paris", "1 zones of 2"]);
    let diff = paris.run_json(&["placement", "diff"]).await;
    assert_eq!(diff["impossible"][0]["origin"], json!("paris"), "{diff}");
    paris.run(&["placement", "revert", "--version", &version]).await.ended(0);
    paris.run(&["placement", "diff"]).await.ended(1);
    let trail = paris.http().json("/api/v1/audit?after=0&limit=1000").await;
    let kinds = ["stage-placement", "apply-placement", "revert-placement", "give-up"];
    for kind in kinds {
        assert!(list(&trail, "entries").iter().any(|entry| entry["kind"] == json!(kind)), "{kind}");
    }
}

/// Sets a site's reserve anew and starts it with that.
async fn with_reserve(site: &mut Site, mib: u64) {
    site.terminate().await;
    let text = fs::read_to_string(site.config()).expect("read the configuration");
    let lines = text
        .lines()
        .map(|line| if line.starts_with("reserve_mib") { format!("reserve_mib = {mib}") } else { line.to_owned() });
    fs::write(site.config(), lines.collect::<Vec<_>>().join("\n")).expect("write the configuration");
    site.start();
    site.ready().await;
}

#[tokio::test]
async fn a_full_site_is_passed_over_until_it_has_room() {
    let mut mesh = four(3).await;
    // More than any disk has.
    with_reserve(&mut mesh.sites[3], 1 << 40).await;
    let takes = async |mesh: &Mesh, wanted: bool| {
        until("the mesh knows whether there is room", async || {
            let shown = mesh.sites[0].http().json("/api/v1/placement").await;
            let site = list(&shown["applied"], "sites").iter().find(|site| site["name"] == json!("lille"))?.clone();
            (site["takes"] == json!(wanted)).then_some(())
        })
        .await;
    };
    takes(&mesh, false).await;
    let paris = &mesh.sites[0];
    for n in 0..3 {
        let study = Slices::new(&format!("A{n}"), "P1", 2);
        study.send(paris.dicom()).await;
        placed(paris, &study, |holders| holders == ["lyon", "nantes", "paris"]).await;
    }
    // One site fewer, and nowhere to go: counted and listed.
    let fourth = Slices::new("A9", "P9", 2);
    paris.run(&["placement", "set", "copies", "4"]).await.ended(0);
    paris.run(&["placement", "apply", "--version", "1"]).await.ended(0);
    fourth.send(paris.dicom()).await;
    until("too few copies are listed", async || {
        let under = paris.run_json(&["placement", "under"]).await;
        (list(&under, "parts").len() == 4).then_some(())
    })
    .await;
    let first = paris.run_json(&["placement", "under", "--limit", "3"]).await;
    let next = first["next"].as_str().expect("more").to_owned();
    let rest = paris.run_json(&["placement", "under", "--limit", "3", "--after", &next]).await;
    assert_eq!((list(&first, "parts").len(), list(&rest, "parts").len(), &rest["next"]), (3, 1, &Value::Null));
    assert_eq!(counts(paris).await["under"], json!(4));
    assert_eq!(paris.http().json("/api/v1/status").await["storage"]["under_wanted"], json!(4));
    with_reserve(&mut mesh.sites[3], 64).await;
    takes(&mesh, true).await;
    placed(&mesh.sites[0], &fourth, |holders| holders.len() == 4).await;
    until("nothing is missing", async || (counts(&mesh.sites[0]).await["under"] == json!(0)).then_some(())).await;
}
