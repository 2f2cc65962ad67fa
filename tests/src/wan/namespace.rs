//! A site's network namespace, and the one thread of this process that lives in it.
//!
//! Sockets and child processes belong to the namespace of the thread that makes them. So each site has
//! a thread with a runtime of its own: a future that is [run](Namespace::run) there speaks to the
//! site's loopback, and a command [spawned](Namespace::spawn) there is a process of the site.

#![expect(clippy::disallowed_types, reason = "test harness: opens the namespace, and runs in no simulation")]

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::tun;

/// How the namespaces are called, before our process id and the site's number.
const PREFIX: &str = "maillage-wan";
/// A thread that has not entered its namespace by then never will.
const ENTER_WITHIN: Duration = Duration::from_secs(10);

/// A namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    runtime: Handle,
    // Dropped, the thread ends.
    _end: oneshot::Sender<()>,
}

impl Namespace {
    /// A namespace of its own for site `number`, with loopback up.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn new(number: usize) -> io::Result<Self> {
        let name = format!("{PREFIX}-{}-{number}", std::process::id());
        ip(&["netns", "add", &name])?;
        let made = Self::enter(&name);
        if made.is_err() {
            let _ = ip(&["netns", "delete", &name]);
        }
        made
    }

    fn enter(name: &str) -> io::Result<Self> {
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        // Without IPv6 the devices are silent until somebody sends.
        let quiet = ["netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"];
        let _ = ip(&quiet);
        let (told, tell) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let path = format!("/run/netns/{name}");
        std::thread::Builder::new().name(name.to_owned()).spawn(move || live(&path, &told, ended))?;
        let runtime = tell.recv_timeout(ENTER_WITHIN).map_err(io::Error::other)??;
        Ok(Self { name: name.to_owned(), runtime, _end: end })
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a future in the namespace: its sockets are the site's. Dropping what is returned lets it go on.
    ///
    /// # Errors
    /// When it panicked, or the namespace is being taken down.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
        self.runtime.spawn(work).await.map_err(io::Error::other)
    }

    /// Starts a process in the namespace.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(async move { command.spawn() }).await?
    }

    /// Its end of the network: a device with this address and all of the network behind it. Without a
    /// router that reads it, what is sent is lost.
    pub(super) fn open_tun(&self, address: Ipv4Addr) -> io::Result<OwnedFd> {
        let (told, tell) = mpsc::channel();
        self.runtime.spawn(async move { drop(told.send(tun::open())) });
        let device = tell.recv_timeout(ENTER_WITHIN).map_err(io::Error::other)??;
        ip(&["-n", &self.name, "address", "add", &format!("{address}/24"), "dev", tun::NAME])?;
        // The queue before the router must never be the one that drops.
        let settings = ["link", "set", "dev", tun::NAME, "mtu", "1500", "txqueuelen", "20000", "up"];
        ip(&[&["-n", self.name.as_str()][..], &settings[..]].concat())?;
        Ok(device)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        take_down(&self.name);
    }
}

/// The thread: enters, runs what it is given until its owner is gone.
fn live(path: &str, told: &mpsc::Sender<io::Result<Handle>>, ended: oneshot::Receiver<()>) {
    let entered = || {
        let there = File::open(path)?;
        move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    match entered() {
        Ok(runtime) => {
            let _ = told.send(Ok(runtime.handle().clone()));
            let _ = runtime.block_on(ended);
        }
        Err(error) => drop(told.send(Err(error))),
    }
}

/// Removes namespaces that an earlier process of ours left behind, and what still runs in them.
pub fn sweep() {
    let Ok(listed) = output(Command::new("ip").args(["netns", "list"])) else { return };
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !std::path::Path::new("/proc").join(pid).exists()) {
            take_down(name);
        }
    }
}

fn take_down(name: &str) {
    let pids = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid != own) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = ip(&["netns", "delete", name]);
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

fn output(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}", said.trim())))
}
