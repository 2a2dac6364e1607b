//! Programs that the tests start, and their end.
//!
//! Promises: every program is ended by its own process id, also after a panic and (by `setpriv --pdeathsig`) when the test process itself is
//! killed; a client that hangs is a failed test, not a hung one; nothing started here can reach a registry that is not on loopback.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a daemon may take until it says that it is ready: ten times what the slowest needs on a busy laptop.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a daemon may take to end after SIGTERM before it is killed. dockerd gives its own containerd 15 s.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long one client command may take, in seconds: 300 MB through unoptimised code on a machine that also compiles.
const CLIENT_LIMIT: &str = "150";
/// Lines of a daemon's log that a failing test shows.
const SHOWN_LINES: usize = 15;

/// Whether this machine cannot run the test: says in one line what is missing, and panics instead when `CI=true`.
pub(crate) fn lacks(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = tools.iter().find(|tool| !std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    if let Some(tool) = missing {
        skip(&format!("{tool} is not installed (see .ci/install)"));
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        skip("container daemons need root");
        return true;
    }
    false
}

/// Says why a test does not run here; where tests must run (`CI=true`) that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot test here: {why}");
    eprintln!("skipped: {why}");
}

/// A client's command, with a deadline and with every way to the outside closed: HTTP(S) to anything but loopback goes to a proxy that is a closed port.
pub(crate) fn client(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", CLIENT_LIMIT]).arg(program);
    shut_in(&mut command);
    command
}

/// Runs a command to its end and gives back its standard output; panics with all it said when it fails.
pub(crate) fn run(command: &mut Command) -> String {
    attempt(command).unwrap_or_else(|said| panic!("{command:?} failed:\n{said}"))
}

/// Runs a command to its end: its standard output, or on failure all it said.
pub(crate) fn attempt(command: &mut Command) -> Result<String, String> {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() { Ok(stdout.into_owned()) } else { Err(format!("{}\n{stdout}{stderr}", out.status)) }
}

/// A folder in the system's temporary folder. At its end every process that names it on its command line (a shim, a containerd
/// whose dockerd was killed) is killed, then it is removed.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    /// Short, since a Unix socket's path has at most 107 bytes and containerd adds 40.
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("mp-").tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file into the folder, with the folders above it, and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The path of something in the folder, as text for a command line.
    pub(crate) fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mark = self.0.path().to_str().unwrap().as_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
            let names_us = std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.windows(mark.len()).any(|part| part == mark));
            if names_us {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// A running daemon and what it logged. Dropping it ends it.
pub(crate) struct Daemon {
    name: String,
    pid: Pid,
    ended: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>, // the lines, and whether more can follow
    more: Condvar,
}

impl Daemon {
    /// Starts `program`; `arguments` adds what it needs. It dies with the thread that started it.
    pub(crate) fn start(program: &str, arguments: impl FnOnce(&mut Command)) -> Self {
        Self::spawn(program, &[program], arguments)
    }

    /// The same in a mount namespace of its own, so that whatever it mounts is gone with it.
    pub(crate) fn start_with_own_mounts(program: &str, arguments: impl FnOnce(&mut Command)) -> Self {
        Self::spawn(program, &["unshare", "--mount", program], arguments)
    }

    fn spawn(program: &str, words: &[&str], arguments: impl FnOnce(&mut Command)) -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").args(words).stdin(Stdio::null());
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        shut_in(&mut command);
        arguments(&mut command);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        drop(command); // it holds the pipe's writing end, and the log ends with the last of those

        let log = Arc::new(Log::default());
        let pid = Pid::from_child(&child);
        let (tell, ended) = channel();
        thread::spawn({
            let log = Arc::clone(&log);
            move || log.follow(reader)
        });
        thread::spawn(move || tell.send(child.wait().unwrap()));
        Self { name: program.rsplit('/').next().unwrap_or(program).to_owned(), pid, ended, status: None, log }
    }

    /// Waits for a line of the log that `wanted` makes something of.
    pub(crate) fn await_line<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> T {
        self.log.wait(wanted).unwrap_or_else(|| panic!("{} did not get ready; it said:\n{}", self.name, self.log.tail()))
    }

    /// SIGTERM, then SIGKILL when it takes too long. How it ended; the second call tells the same.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let _ = kill_process(self.pid, Signal::TERM);
        let status = match self.ended.recv_timeout(STOP_LIMIT) {
            Err(RecvTimeoutError::Timeout) => {
                let _ = kill_process(self.pid, Signal::KILL);
                self.ended.recv().unwrap()
            }
            status => status.unwrap(),
        };
        *self.status.insert(status)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            eprintln!("--- the end of what {} said\n{}", self.name, self.log.tail());
        }
    }
}

impl Log {
    fn follow(&self, from: impl Read) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            self.lines.lock().unwrap().0.push(String::from_utf8_lossy(&line).trim_end().to_owned());
            self.more.notify_all();
            line.clear();
        }
        self.lines.lock().unwrap().1 = true;
        self.more.notify_all();
    }

    fn wait<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + START_LIMIT;
        let mut seen = 0;
        let mut log = self.lines.lock().unwrap();
        loop {
            if let Some(found) = log.0[seen..].iter().find_map(|line| wanted(line)) {
                return Some(found);
            }
            seen = log.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if log.1 || left.is_zero() {
                return None;
            }
            log = self.more.wait_timeout(log, left).unwrap().0;
        }
    }

    fn tail(&self) -> String {
        let log = self.lines.lock().unwrap();
        log.0[log.0.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

/// Port 1 answers nobody: what is not on loopback fails at once instead of waiting for a name that may or may not resolve.
fn shut_in(command: &mut Command) {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        command.env(name, "http://127.0.0.1:1");
    }
    for name in ["NO_PROXY", "no_proxy"] {
        command.env(name, "127.0.0.1,localhost");
    }
    for name in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "CONTAINERD_ADDRESS", "CONTAINER_HOST", "REGISTRY_AUTH_FILE"] {
        command.env_remove(name);
    }
}
