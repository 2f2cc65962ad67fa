//! A site: a namespace, a small disk of its own, and a `maillage` process that may be killed, frozen,
//! starved and lied to about the time.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use maillage_tests::http::{Answer, NoAnswer, control};
use maillage_tests::wan::{Namespace, address};
use maillage_tests::{Http, settings::Addresses, settings::Settings};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

/// Names of sites, in the order in which they join.
const NAMES: [&str; 12] =
    ["paris", "lyon", "nantes", "lille", "brest", "nice", "metz", "dijon", "rouen", "tours", "nimes", "pau"];
/// The most sites of a run, those that replace lost ones included.
pub(crate) const SITES_MAX: usize = NAMES.len();
/// Free space below which a site refuses images.
pub(crate) const RESERVE_MIB: u64 = 64;
/// A command that takes longer hangs on what the faults did.
const COMMAND_DEADLINE: Duration = Duration::from_secs(40);
/// Where Debian's package `faketime` has its library.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The library that lies about the time, if this machine has it.
pub(crate) fn faketime() -> Option<&'static Path> {
    Some(Path::new(FAKETIME)).filter(|path| path.exists())
}

/// What a site is doing.
#[derive(Debug)]
enum Life {
    /// Not a member yet.
    Absent,
    Running(Child),
    /// Ended by us.
    Down,
    /// Its disk is gone.
    Lost,
}

/// How the disks and clocks of all sites are made.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) binary: PathBuf,
    /// Where configurations, logs and mount points are.
    pub(crate) root: PathBuf,
    /// Size of each site's disk in memory; `None`: a directory of the disk that `root` is on.
    pub(crate) disk_mib: Option<u64>,
    /// Whether clocks can be set.
    pub(crate) clocks: bool,
}

/// A site.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) number: usize,
    pub(crate) name: &'static str,
    machine: Machine,
    namespace: Arc<Namespace>,
    life: Mutex<Life>,
    /// Its number in the mesh, 0 until it is known.
    id: AtomicU64,
    /// Held by whoever does something to the process: two faults at once must not start it twice.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

impl Site {
    /// A site that is no member yet. Mounts its disk.
    pub(crate) fn prepare(number: usize, namespace: Arc<Namespace>, machine: &Machine) -> anyhow::Result<Self> {
        let site = Self {
            number,
            name: NAMES.get(number).context("too many sites")?,
            machine: machine.clone(),
            namespace,
            life: Mutex::new(Life::Absent),
            id: AtomicU64::new(0),
            turn: tokio::sync::Mutex::new(()),
        };
        fs::create_dir_all(site.volume())?;
        if let Some(mib) = machine.disk_mib {
            let size = format!("size={mib}m,mode=0700");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "chaos"]).arg(site.volume()))?;
        }
        site.configure()?;
        site.set_clock(0)?;
        Ok(site)
    }

    fn configure(&self) -> anyhow::Result<()> {
        // Snapshots, ends of sessions and new copies must all come within minutes.
        let settings = Settings {
            session_ttl_s: 6,
            snapshot_every: 400,
            keep_log: 100,
            quiet_seconds: 2,
            copies: 3,
            ..Settings::default()
        };
        let mesh = (address(self.number), 7400).into();
        let at = Addresses { http: HTTP.into(), dicom: DICOM.into(), mesh };
        let text = settings.toml(self.name, &self.data_dir(), at);
        let text = text.replace("[storage]\n", "[storage]\nplacement_grace_s = 20\n");
        Ok(fs::write(self.config(), text)?)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> PathBuf {
        self.machine.root.join(format!("{}.toml", self.name))
    }

    /// Its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.machine.root.join(format!("{}.log", self.name))
    }

    fn clock(&self) -> PathBuf {
        self.machine.root.join(format!("{}.clock", self.name))
    }

    /// Its disk.
    fn volume(&self) -> PathBuf {
        self.machine.root.join(self.name)
    }

    fn data_dir(&self) -> PathBuf {
        self.volume().join("data")
    }

    /// Its number in the mesh, once known.
    pub(crate) fn id(&self) -> Option<u64> {
        Some(self.id.load(Ordering::Relaxed)).filter(|id| *id > 0)
    }

    /// Remembers its number in the mesh.
    pub(crate) fn set_id(&self, id: u64) {
        self.id.store(id, Ordering::Relaxed);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.machine.binary);
        command.arg("-c").arg(self.config()).args(arguments).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MAILLAGE") {
                command.env_remove(name);
            }
        }
        command.env("USER", "dr-chaos");
        command
    }

    /// Runs a command of this site: its exit code, and what it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
        let what = format!("{} {}", self.name, arguments.first().unwrap_or(&""));
        let mut command = tokio::process::Command::from(self.command(arguments));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let ended = self.namespace.run(async move { timeout(COMMAND_DEADLINE, command.output()).await });
        let output = ended.await?.with_context(|| format!("{what} does not end"))??;
        let said = if output.status.success() { output.stdout } else { output.stderr };
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Speaks HTTP with the site from inside its namespace; within `limit`, or no answer.
    pub(crate) async fn http(
        &self,
        limit: Duration,
        method: hyper::Method,
        path: String,
        headers: Vec<(&'static str, String)>,
        body: String,
    ) -> Result<Answer, NoAnswer> {
        let work = async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let asked = Http(HTTP.into()).send(&method, &path, &headers, body);
            timeout(limit, asked).await.unwrap_or_else(|_| Err(NoAnswer("no answer in time".to_owned())))
        };
        self.inside(work).await.unwrap_or_else(|error| Err(NoAnswer(error.to_string())))
    }

    /// GET of JSON, on the unix socket, where claims are shown with their tokens; `None` without it.
    pub(crate) async fn get(&self, limit: Duration, path: &str) -> Option<serde_json::Value> {
        let socket = self.data_dir().join("control.sock");
        let answer = timeout(limit, control(&socket, path)).await.ok()?.ok()?;
        if answer.status == 200 { serde_json::from_slice(&answer.body).ok() } else { None }
    }

    /// Runs something in the site's namespace.
    pub(crate) async fn inside<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        Ok(self.namespace.run(work).await?)
    }

    /// Starts the process.
    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        ensure!(!self.is_running(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = self.command(&["serve"]);
        command.stdout(log.try_clone()?).stderr(log);
        if let Some(library) = faketime().filter(|_| self.machine.clocks) {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.clock());
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
            command.env("FAKETIME_CACHE_DURATION", "1");
        }
        let child = self.namespace.spawn(command).await?;
        *self.life() = Life::Running(child);
        Ok(())
    }

    /// Whether a process was started and is not known to have ended.
    pub(crate) fn is_running(&self) -> bool {
        matches!(*self.life(), Life::Running(_))
    }

    /// Whether it is a member that has its disk.
    pub(crate) fn is_living(&self) -> bool {
        matches!(*self.life(), Life::Running(_) | Life::Down)
    }

    /// Whether its disk is gone for good.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(*self.life(), Life::Lost)
    }

    /// Whether it was never a member.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(*self.life(), Life::Absent)
    }

    /// How the process ended by itself, if it did; from then on it is down.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        let mut life = self.life();
        let Life::Running(child) = &mut *life else { return None };
        let status = child.try_wait().ok().flatten()?;
        *life = Life::Down;
        Some(status)
    }

    /// `kill -9`. Nothing when it does not run.
    pub(crate) fn kill(&self) {
        let mut life = self.life();
        if let Life::Running(child) = &mut *life {
            let _ = child.kill();
            let _ = child.wait();
            *life = Life::Down;
        }
    }

    /// STOP freezes the process, CONT lets it go on.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Life::Running(child) = &*self.life()
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it and removes its disk.
    pub(crate) fn lose(&self) {
        self.kill();
        *self.life() = Life::Lost;
        self.unmount();
        let _ = fs::remove_dir_all(self.data_dir());
    }

    /// Sets its clock so many seconds from the true time.
    pub(crate) fn set_clock(&self, offset_s: i64) -> anyhow::Result<()> {
        let new = self.clock().with_extension("new");
        fs::write(&new, format!("{offset_s:+}s\n"))?;
        Ok(fs::rename(new, self.clock())?)
    }

    /// Fills its disk until so much is free.
    pub(crate) fn fill(&self, leave_mib: u64) -> anyhow::Result<()> {
        let volume = rustix::fs::statvfs(self.volume())?;
        let bytes = (volume.f_bavail * volume.f_frsize).saturating_sub(leave_mib << 20);
        if bytes > 0 {
            let file = File::create(self.ballast())?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).context("fill the disk")?;
        }
        Ok(())
    }

    /// Gives back what [`Site::fill`] took.
    pub(crate) fn empty(&self) {
        let _ = fs::remove_file(self.ballast());
    }

    /// MiB in use on its disk, if that is its own.
    pub(crate) fn used_mib(&self) -> Option<u64> {
        self.machine.disk_mib?;
        let volume = rustix::fs::statvfs(self.volume()).ok()?;
        Some((volume.f_blocks.saturating_sub(volume.f_bfree) * volume.f_frsize) >> 20)
    }

    fn ballast(&self) -> PathBuf {
        self.volume().join("ballast")
    }

    fn unmount(&self) {
        if self.machine.disk_mib.is_some() {
            let _ = run(Command::new("umount").arg("-l").arg(self.volume()));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
        self.unmount();
    }
}

/// Where every site serves HTTP, in its own namespace.
pub(crate) const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 7480);
/// Where every site takes images, in its own namespace.
pub(crate) const DICOM: ([u8; 4], u16) = ([127, 0, 0, 1], 11112);

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
