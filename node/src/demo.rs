//! `maillage demo`: the main job, end to end, on real processes.
//!
//! A mesh of centres and the cloud starts on this machine, a CT study comes in at one centre, that
//! centre and the cloud are killed, and the exam is claimed, read and reported elsewhere. Every step
//! is checked: a demonstration that cannot fail shows nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use maillage_dicom::dimse::scu::{Association, ScuTimeouts};
use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::{AeTitle, Uid, part10};
use serde_json::json;
use tokio::time::{Instant, sleep};

mod http;
mod site;

use site::Site;

/// A step that takes longer than this has failed.
const STEP_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at whether something has happened.
const LOOK: Duration = Duration::from_millis(100);
/// Sites of the demonstration, the cloud last; as many as `--nodes` says.
const CENTRES: [&str; 15] = [
    "paris", "lyon", "nantes", "toulouse", "lille", "brest", "nice", "metz", "rouen", "dijon", "tours", "caen", "pau",
    "reims", "albi",
];
const ACCESSION: &str = "DEMO-0001";
const PATIENT: &str = "DEMO-PATIENT-1";
const REPORT: &str = "CT of the head without contrast. No intracranial bleeding. No fracture.";

/// What to demonstrate.
#[derive(Debug, Clone)]
pub(crate) struct DemoArgs {
    /// Sites, the cloud included: 4 to 16.
    pub(crate) nodes: usize,
    /// Slices of the study.
    pub(crate) slices: u32,
    /// Whether to end after the last step instead of staying up.
    pub(crate) exit: bool,
    /// Where to keep the sites' data; a directory of its own, removed at the end, when absent.
    pub(crate) keep: Option<PathBuf>,
}

/// Runs the demonstration.
///
/// # Errors
/// When a step did not show what it must.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    ensure!((4..=CENTRES.len() + 1).contains(&args.nodes), "--nodes must be 4 to {}", CENTRES.len() + 1);
    ensure!((1..=5000).contains(&args.slices), "--slices must be 1 to 5000");
    let root = site::Root::new(args.keep.clone())?;
    let mut demo = Demo { sites: Vec::new(), root, started: Instant::now(), step: 0 };
    let result = demo.all(&args).await;
    if let Err(error) = &result {
        println!("  FAILED after {:.1} s: {error:#}", demo.started.elapsed().as_secs_f64());
        println!("  the sites' logs are in {}", demo.root.path().display());
        demo.root.keep();
        return result;
    }
    if args.exit {
        return Ok(());
    }
    demo.invite();
    tokio::signal::ctrl_c().await?;
    println!("stopping");
    for site in &mut demo.sites {
        site.stop().await?;
    }
    Ok(())
}

struct Demo {
    sites: Vec<Site>,
    root: site::Root,
    started: Instant,
    step: usize,
}

/// A study's data sets by SOP instance, as BLAKE3 hashes.
type Hashes = BTreeMap<String, blake3::Hash>;

impl Demo {
    async fn all(&mut self, args: &DemoArgs) -> anyhow::Result<()> {
        println!(
            "Maillage demonstration: {} sites on this machine, data in {}",
            args.nodes,
            self.root.path().display()
        );
        self.start_mesh(args.nodes).await?;
        let cloud = self.sites.len() - 1;
        let receiver = 1;
        let exam = self.request(0).await?;
        let sent = self.send_study(receiver, args.slices).await?;
        self.wait_for_copies(0, exam).await?;
        self.kill(&[receiver, cloud]).await?;
        let reader = self.claim_and_refuse(exam, receiver).await?;
        self.read_and_compare(reader, exam, &sent).await?;
        self.report(reader, exam).await?;
        self.restart(&[receiver, cloud], exam, &sent).await?;
        println!("done in {:.1} s: every step was checked", self.started.elapsed().as_secs_f64());
        Ok(())
    }

    fn say(&mut self, since: Instant, text: &str) {
        self.step += 1;
        println!("{:>3}. {:>7.2} s  {text}", self.step, since.elapsed().as_secs_f64());
    }

    async fn start_mesh(&mut self, nodes: usize) -> anyhow::Result<()> {
        let since = Instant::now();
        for name in CENTRES.into_iter().take(nodes - 1).chain(["cloud"]) {
            let mut site = Site::prepare(self.root.path(), name).await?;
            match self.sites.first() {
                None => site.run_to_end(&["init", "--mesh", "demonstration"]).await?,
                Some(founder) => {
                    let made = founder.run_json(&["token", "create", "--lifetime", "10m"]).await?;
                    let token = made["token"].as_str().context("the token")?;
                    site.run_to_end(&["join", token]).await?
                }
            };
            site.start()?;
            site.wait_ready().await?;
            self.sites.push(site);
        }
        let voters = if nodes >= 5 { 5 } else { 3 };
        let founder = &self.sites[0];
        until("every site votes or follows, in session", async || {
            let status = founder.get("/api/v1/status").await?;
            let in_session = status["peers"]
                .as_array()
                .map_or(0, |peers| peers.iter().filter(|peer| peer["session_open"] == json!(true)).count());
            Ok((status["quorum"]["voters"] == json!(voters) && in_session == nodes).then_some(()))
        })
        .await?;
        self.say(since, &format!("{nodes} sites are one mesh: {voters} vote, all hold the queue"));
        Ok(())
    }

    async fn request(&mut self, at: usize) -> anyhow::Result<u64> {
        let since = Instant::now();
        let exam = json!({
            "accession": ACCESSION,
            "patient": { "id": PATIENT, "name": "PHANTOM^HEAD", "birth_date": "19700101", "sex": "O" },
            "modality": "CT",
            "description": "CT head without contrast",
            "hospital": "Demonstration hospital",
            "priority": "vital",
        });
        let added = self.sites[at].post("/api/v1/exams", &exam).await?;
        let id = added["id"].as_u64().context("the exam's number")?;
        let name = self.sites[at].name().to_owned();
        self.say(since, &format!("exam {id} is requested at {name}, vital, awaiting its images"));
        Ok(id)
    }

    async fn send_study(&mut self, to: usize, slices: u32) -> anyhow::Result<Hashes> {
        let phantom = CtPhantom {
            slices,
            patient_id: PATIENT.to_owned(),
            patient_name: "PHANTOM^HEAD".to_owned(),
            accession_number: ACCESSION.to_owned(),
            ..CtPhantom::default()
        };
        let since = Instant::now();
        let mut hashes = Hashes::new();
        let mut instances = Vec::new();
        for n in 0..slices {
            let (sop_instance, dataset) = phantom.slice(n);
            hashes.insert(sop_instance.to_string(), blake3::hash(&dataset));
            instances.push((sop_instance, dataset));
        }
        self.say(since, &format!("a CT phantom is made: {slices} slices of 512 x 512, 16 bits, with noise"));

        let since = Instant::now();
        let site = &self.sites[to];
        let contexts = [(CtPhantom::SOP_CLASS, vec![CtPhantom::TRANSFER_SYNTAX])];
        let (calling, called) = (AeTitle::parse("DEMO-CT")?, AeTitle::parse("MAILLAGE")?);
        let timeouts = ScuTimeouts::default();
        let mut association = Association::connect(site.dicom(), &calling, &called, &contexts, timeouts).await?;
        let mut bytes = 0;
        for (sop_instance, dataset) in instances {
            bytes += dataset.len();
            let status =
                association.store(&CtPhantom::SOP_CLASS, &sop_instance, &CtPhantom::TRANSFER_SYNTAX, dataset).await?;
            ensure!(status.is_stored(), "the centre refused an instance: {status:?}");
        }
        association.release().await?;
        let (megabytes, seconds) = (bytes as f64 / 1e6, since.elapsed().as_secs_f64());
        let name = self.sites[to].name().to_owned();
        let rate = megabytes / seconds;
        self.say(
            since,
            &format!(
                "{megabytes:.0} MB are sent to {name} by C-STORE, each durable before its answer ({rate:.0} MB/s)"
            ),
        );
        Ok(hashes)
    }

    async fn wait_for_copies(&mut self, at: usize, exam: u64) -> anyhow::Result<()> {
        let since = Instant::now();
        let site = &self.sites[at];
        let copies = until("the study is on three sites", async || {
            let exam = site.get(&format!("/api/v1/exams/{exam}")).await?;
            let copies = exam["copies"].as_u64().unwrap_or(0);
            Ok((exam["state"] == json!("waiting") && copies >= 3).then_some(copies))
        })
        .await?;
        self.say(since, &format!("the exam is in the waiting room, its images are on {copies} sites"));
        Ok(())
    }

    async fn kill(&mut self, which: &[usize]) -> anyhow::Result<()> {
        let since = Instant::now();
        let mut names = Vec::new();
        for &n in which {
            self.sites[n].kill().await?;
            names.push(self.sites[n].name().to_owned());
        }
        self.say(since, &format!("{} are killed (kill -9)", names.join(" and ")));
        Ok(())
    }

    /// The last living centre claims; a second one is told who holds the exam.
    async fn claim_and_refuse(&mut self, exam: u64, not: usize) -> anyhow::Result<usize> {
        let since = Instant::now();
        let reader = (0..self.sites.len() - 1).rev().find(|&n| n != not).context("a centre is left")?;
        let site = &self.sites[reader];
        let grant = until("the exam is claimed", async || {
            let body = json!({ "user": "dr-martin", "modalities": [] });
            match site.post("/api/v1/claims/next", &body).await {
                Ok(grant) if grant["exam"]["id"].as_u64() == Some(exam) => Ok(Some(grant)),
                Ok(other) => bail!("another exam was granted: {other}"),
                // The leader may have been killed: its successor answers in a moment.
                Err(error) if http::is_unavailable(&error) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?;
        let token = grant["token"].as_u64().context("the token")?;
        self.sites[reader].set_token(token);
        let name = self.sites[reader].name().to_owned();
        self.say(since, &format!("dr-martin claims it at {name}, with fencing token {token}"));

        let since = Instant::now();
        let second = (0..self.sites.len() - 1).find(|&n| n != not && n != reader).context("a second centre")?;
        let body = json!({ "user": "dr-petit" });
        let refused = self.sites[second].post(&format!("/api/v1/exams/{exam}/claim"), &body).await;
        let Err(error) = refused else { bail!("a second claim was granted") };
        ensure!(http::status_of(&error) == Some(409), "the second claim failed otherwise: {error:#}");
        let (name, why) = (self.sites[second].name().to_owned(), http::detail_of(&error));
        self.say(since, &format!("dr-petit at {name} is refused: {why}"));
        Ok(reader)
    }

    async fn read_and_compare(&mut self, at: usize, exam: u64, sent: &Hashes) -> anyhow::Result<()> {
        let since = Instant::now();
        let bytes = compare(&self.sites[at], exam, sent).await?;
        let name = self.sites[at].name().to_owned();
        let count = sent.len();
        self.say(
            since,
            &format!(
                "{count} images ({:.0} MB) are read at {name} by WADO-RS, equal byte for byte",
                bytes as f64 / 1e6
            ),
        );
        Ok(())
    }

    async fn report(&mut self, at: usize, exam: u64) -> anyhow::Result<()> {
        let since = Instant::now();
        let token = self.sites[at].token().context("a claim")?;
        let body = json!({ "user": "dr-martin", "token": token, "text": REPORT });
        self.sites[at].post(&format!("/api/v1/exams/{exam}/report"), &body).await?;
        let stale = self.sites[at].post(&format!("/api/v1/exams/{exam}/report"), &body).await;
        ensure!(stale.is_err(), "a report was accepted after the claim had ended");
        self.say(since, "the report is recorded; a second one under the same token is refused");
        Ok(())
    }

    async fn restart(&mut self, which: &[usize], exam: u64, sent: &Hashes) -> anyhow::Result<()> {
        for &n in which {
            let since = Instant::now();
            self.sites[n].start()?;
            self.sites[n].wait_ready().await?;
            let site = &self.sites[n];
            until("the site knows the report", async || {
                let exam = site.get(&format!("/api/v1/exams/{exam}")).await?;
                let text = exam["report_list"][0]["text"].as_str();
                Ok((exam["state"] == json!("reported") && text == Some(REPORT)).then_some(()))
            })
            .await?;
            let name = site.name().to_owned();
            self.say(since, &format!("{name} is started again and has caught up: it has the report"));
        }
        let since = Instant::now();
        let receiver = which[0];
        compare(&self.sites[receiver], exam, sent).await?;
        let name = self.sites[receiver].name().to_owned();
        self.say(since, &format!("{name} still has every image that it acknowledged"));
        Ok(())
    }

    fn invite(&self) {
        println!("\nThe mesh stays up until Ctrl-C. Worklists:");
        for site in &self.sites {
            println!("  {:<9} http://{}/", site.name(), site.http());
        }
        let site = &self.sites[0];
        let command = format!("{} -c {}", site::executable().display(), site.config().display());
        println!("Commands to try, at {}:", site.name());
        for tail in ["status", "exams list", "peers list", "claim next --user dr-you", "study list"] {
            println!("  {command} {tail}");
        }
        println!("  storescu -aec MAILLAGE {} {} FILES…", site.dicom().ip(), site.dicom().port());
    }
}

/// Retrieves the exam's study at a site and compares every data set with what was sent.
async fn compare(site: &Site, exam: u64, sent: &Hashes) -> anyhow::Result<u64> {
    let exam = site.get(&format!("/api/v1/exams/{exam}")).await?;
    let study = exam["studies"][0].as_str().context("the study")?;
    let parts = site.retrieve(&format!("/dicom-web/studies/{study}")).await?;
    ensure!(parts.len() == sent.len(), "{} images came of {} sent", parts.len(), sent.len());
    let mut bytes = 0;
    for part in parts {
        let file = part10::parse(part)?;
        let instance: &Uid = &file.meta.sop_instance;
        let expected = sent.get(instance.as_str()).context("an image came that was not sent")?;
        ensure!(blake3::hash(&file.dataset) == *expected, "an image differs from the one sent");
        bytes += file.dataset.len() as u64;
    }
    Ok(bytes)
}

/// Looks until `look` gives something, for at most [`STEP_DEADLINE`].
async fn until<T>(what: &str, look: impl AsyncFn() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(since.elapsed() < STEP_DEADLINE, "waited {} s: {what}", STEP_DEADLINE.as_secs());
        sleep(LOOK).await;
    }
}
