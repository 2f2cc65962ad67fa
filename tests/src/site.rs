//! One site: a directory, a configuration, and a process that is started, asked, stopped and killed.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the harness prepares and reads the files of the nodes from outside"
)]

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as StdCommand, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::http::Http;
use crate::port;
use crate::run::Ran;
use crate::settings::{Addresses, Settings};
use crate::wait::{until, until_within};

/// Lines of a log that a failed test prints.
const LOG_LINES_SHOWN: usize = 60;

/// A site.
#[derive(Debug)]
pub struct Site {
    name: String,
    binary: PathBuf,
    config: PathBuf,
    data_dir: PathBuf,
    log: PathBuf,
    addresses: Addresses,
    /// What its process finds in its environment.
    environment: Vec<(&'static str, PathBuf)>,
    child: Option<Child>,
}

impl Site {
    /// A site of this name under `root`: ports chosen, configuration written, nothing run.
    ///
    /// # Panics
    /// When its files cannot be written.
    pub fn prepare(binary: &Path, root: &Path, name: &str, settings: &Settings) -> Self {
        let site = Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            config: root.join(format!("{name}.toml")),
            data_dir: root.join(name),
            log: root.join(format!("{name}.log")),
            addresses: Addresses { http: port::free(), dicom: port::free(), mesh: port::free() },
            environment: Vec::new(),
            child: None,
        };
        site.configure(settings);
        site
    }

    /// Writes the configuration anew; it counts from the next start.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, settings: &Settings) {
        let text = settings.toml(&self.name, &self.data_dir, self.addresses);
        fs::write(&self.config, text).expect("write the configuration");
    }

    /// Moves the site's mesh port: another may then listen where it did.
    ///
    /// # Panics
    /// When the configuration cannot be written.
    pub fn listen_at(&mut self, mesh: SocketAddr, settings: &Settings) {
        self.addresses.mesh = mesh;
        self.configure(settings);
    }

    /// Lets its process, from its next start on, have a wall clock that [`Site::set_clock`] sets; its
    /// monotonic clock stays true. Whether there is what that takes: Debian's package `faketime`.
    ///
    /// # Panics
    /// When the clock cannot be written.
    pub fn with_own_clock(&mut self) -> bool {
        let library = PathBuf::from("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1");
        let there = library.exists();
        if there {
            self.set_clock(0);
            self.environment = vec![
                ("LD_PRELOAD", library),
                ("FAKETIME_TIMESTAMP_FILE", self.clock()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
                ("NO_FAKE_STAT", "1".into()),
                ("FAKETIME_CACHE_DURATION", "1".into()),
            ];
        }
        there
    }

    /// Sets its own clock so many seconds from the true time.
    ///
    /// # Panics
    /// When the clock cannot be written.
    pub fn set_clock(&self, offset_s: i64) {
        let new = self.clock().with_extension("new");
        fs::write(&new, format!("{offset_s:+}s\n")).expect("write the clock");
        fs::rename(new, self.clock()).expect("set the clock");
    }

    fn clock(&self) -> PathBuf {
        self.config.with_extension("clock")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its HTTP side.
    pub fn http(&self) -> Http {
        Http(self.addresses.http)
    }

    /// Its DICOM port.
    pub fn dicom(&self) -> SocketAddr {
        self.addresses.dicom
    }

    /// Its UDP port.
    pub fn mesh(&self) -> SocketAddr {
        self.addresses.mesh
    }

    /// A command of this site, yet to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(&self.config).args(arguments);
        // What the machine's environment says must not change what a test means.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MAILLAGE") {
                command.env_remove(name);
            }
        }
        command.env("USER", "dr-test");
        command
    }

    /// Runs a command of this site to its end.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        Ran::to_end(&mut self.command(arguments)).await
    }

    /// What a command of this site prints with `-o json`, which must be done and print only that.
    ///
    /// # Panics
    /// When it fails or prints anything else.
    pub async fn run_json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(arguments);
        self.run(&all).await.ended(0).json()
    }

    /// Starts the process; its log is appended to.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("open the log");
        let mut command = StdCommand::new(&self.binary);
        command.arg("-c").arg(&self.config).arg("serve").stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.child = Some(command.spawn().expect("start a site"));
    }

    /// Waits until the site serves.
    ///
    /// # Panics
    /// When it ends instead, or takes too long.
    pub async fn ready(&mut self) {
        let (name, http) = (self.name.clone(), self.http());
        let child = self.child.as_mut().expect("a running site");
        until(&format!("{name} is ready"), async || {
            if let Some(status) = child.try_wait().expect("ask for the process") {
                panic!("{name} ended: {status}");
            }
            let answer = http.send(&hyper::Method::GET, "/readyz", &[], "").await;
            answer.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    /// `kill -9`, and waits until the process is gone.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running site");
        child.kill().expect("kill a site");
        child.wait().expect("wait for a killed site");
    }

    /// SIGTERM: the exit code, and how long the end took.
    ///
    /// # Panics
    /// When it does not end within 30 s, or by a signal.
    pub async fn terminate(&mut self) -> (i32, Duration) {
        self.signal(Signal::TERM);
        let since = Instant::now();
        let mut child = self.child.take().expect("a running site");
        loop {
            if let Some(status) = child.try_wait().expect("ask for the process") {
                let code = status.code().unwrap_or_else(|| panic!("{} was ended by a signal: {status}", self.name));
                return (code, since.elapsed());
            }
            if since.elapsed() > Duration::from_secs(30) {
                self.child = Some(child);
                panic!("{} does not end on SIGTERM", self.name);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the process ends by itself: its exit code.
    ///
    /// # Panics
    /// When it does not end within `limit`, or ends by a signal.
    pub async fn ends(&mut self, limit: Duration) -> i32 {
        let (name, child) = (self.name.clone(), self.child.as_mut().expect("a running site"));
        let what = format!("{name} ends");
        let status = until_within(limit, &what, async || child.try_wait().expect("ask for the process")).await;
        self.child = None;
        status.code().unwrap_or_else(|| panic!("{name} was ended by a signal: {status}"))
    }

    /// Sends a signal: STOP freezes the process, CONT lets it go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("send a signal");
    }

    /// Whether a process was started and not stopped.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running site").id()
    }

    /// The most memory that the process ever had resident, in bytes.
    ///
    /// # Panics
    /// Where there is no `/proc`.
    pub fn memory_peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("read /proc");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
        kib << 10
    }

    /// Everything that the site logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) fn print_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("--- {} (last {LOG_LINES_SHOWN} of {} lines)", self.name, lines.len());
        for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
            eprintln!("{line}");
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A frozen process dies of this too. One that is gone already is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
