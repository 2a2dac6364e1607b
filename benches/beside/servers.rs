//! The servers that are compared: how each is configured, started and ended. Each runs as a process of its own with a fresh
//! folder, on a free port of loopback, with the settings that are best for this work.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::tls::{self, Tls};
use crate::{http, pause, proc};

/// How long a server may take to listen, and to end.
const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(10);

/// Everything that runs, for whoever must end it in a hurry.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// What a server is made of.
#[derive(Clone, Debug)]
pub enum Kind {
    Millpond(PathBuf),
    Nginx(PathBuf),
    Registry(PathBuf),
    Limit,
}

#[derive(Clone, Debug)]
pub struct Subject {
    pub name: String,
    pub kind: Kind,
}

/// What all subjects of a work have in common.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    /// Where the servers' folders are made.
    pub dir: &'a Path,
    /// What the upstream holds: the limit serves it as it is.
    pub source: &'a Path,
    pub upstream: u16,
    /// Whether everybody writes a line a request.
    pub log: bool,
    /// Whether the limit has to fetch what it serves.
    pub is_cold: bool,
    pub tls: Option<&'a Tls>,
}

/// One that listens. Dropped, it is ended, and its folder is gone.
pub struct Server {
    pub name: String,
    pub port: u16,
    /// How clients speak to it, if that is TLS.
    pub tls: Option<Arc<ClientConfig>>,
    child: Child,
    /// Removed when this is dropped.
    dir: TempDir,
}

/// What bytes go over.
pub trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

impl Subject {
    /// The line of the table's foot that says which one this is.
    pub fn version(&self) -> String {
        let (program, argument) = match &self.kind {
            Kind::Millpond(path) | Kind::Registry(path) => (path, "--version"),
            Kind::Nginx(path) => (path, "-v"),
            Kind::Limit => return "limit: the system calls of this work alone, in `benches/beside/limit.rs`".to_owned(),
        };
        format!("{}: {} ({})", self.name, proc::said(Command::new(program).arg(argument)), program.display())
    }

    /// Starts it, and waits until it listens.
    pub fn start(&self, setting: &Setting) -> io::Result<Server> {
        let dir = tempfile::Builder::new().prefix(&format!("{}-", self.name)).tempdir_in(setting.dir)?;
        let mut known = None;
        let (mut command, said) = match &self.kind {
            Kind::Millpond(program) => (millpond(program, dir.path(), setting)?, "://127.0.0.1:"),
            Kind::Registry(program) => (registry(program, dir.path(), setting)?, "listening on 127.0.0.1:"),
            Kind::Limit => (limit(dir.path(), setting)?, "listening on 127.0.0.1:"),
            Kind::Nginx(program) => {
                let port = free_port()?;
                known = Some(port);
                (nginx(program, dir.path(), setting, port)?, "")
            }
        };
        let log = File::create(dir.path().join("log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        running().push(child.id());
        let tls = setting.tls.map(|tls| Arc::clone(&tls.client));
        let mut server = Server { name: self.name.clone(), port: 0, tls, child, dir };
        server.port = server.listens(said, known)?;
        Ok(server)
    }
}

impl Server {
    /// Its processes.
    pub fn pids(&self) -> Vec<u32> {
        proc::family(self.child.id())
    }

    pub fn cpu(&self) -> io::Result<f64> {
        proc::cpu(&self.pids())
    }

    pub fn memory(&self) -> io::Result<f64> {
        proc::memory(&self.pids())
    }

    /// A connection as its clients make them.
    pub fn connect(&self) -> io::Result<Box<dyn Wire>> {
        Ok(match &self.tls {
            Some(client) => Box::new(tls::connect(client, self.port)?),
            None => Box::new(http::connect(self.port)?),
        })
    }

    /// The most memory that it has until it is `over`.
    pub fn greatest_memory(&self, over: &AtomicBool) -> f64 {
        let mut most: f64 = 0.0;
        while !over.load(Ordering::Relaxed) {
            most = most.max(self.memory().unwrap_or(0.0));
            pause(Duration::from_millis(20));
        }
        most
    }

    /// Waits until it does nothing any more: what follows a fill is not charged to what comes next.
    pub fn settle(&self) -> io::Result<()> {
        let (began, mut quiet, mut before) = (Instant::now(), 0, self.cpu()?);
        while quiet < 3 && began.elapsed() < END {
            pause(Duration::from_millis(50));
            let now = self.cpu()?;
            quiet = if now > before { 0 } else { quiet + 1 };
            before = now;
        }
        Ok(())
    }

    /// The port that it says, or the one that it was given once somebody answers there.
    fn listens(&mut self, said: &str, known: Option<u16>) -> io::Result<u16> {
        let began = Instant::now();
        while began.elapsed() < START {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("{} ended at once, {status}: {log}", self.name)));
            }
            match known {
                Some(port) if http::connect(port).is_ok() => return Ok(port),
                Some(_) => {}
                None => {
                    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
                    let port = log.split_once(said).map(|(_, rest)| digits(rest));
                    // A digit less would be another port: the line must have gone on.
                    if let Some(port) =
                        port.filter(|port| log.contains(&format!("{said}{port}\n")) || port.len() == 5 || log.ends_with('\n'))
                    {
                        return port.parse().map_err(io::Error::other);
                    }
                }
            }
            pause(Duration::from_millis(5));
        }
        Err(io::Error::other(format!("{} does not listen", self.name)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let family = self.pids();
        signal(self.child.id(), Signal::TERM);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > END {
                for pid in &family {
                    signal(*pid, Signal::KILL);
                }
                let _ = self.child.wait();
            }
            pause(Duration::from_millis(5));
        }
        running().retain(|pid| *pid != self.child.id());
    }
}

/// Ends everything that runs, at once.
pub fn end_all() {
    for pid in running().drain(..) {
        for pid in proc::family(pid) {
            signal(pid, Signal::KILL);
        }
    }
}

fn running() -> std::sync::MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // Who is gone needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn millpond(program: &Path, dir: &Path, setting: &Setting) -> io::Result<Command> {
    let tls = setting.tls.map(|Tls { cert, key, .. }| format!("tls = {{ cert = \"{}\", key = \"{}\" }}\n", cert.display(), key.display()));
    let config = format!(
        "log = \"json\"\n[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{}[cache]\ndir = \"{}\"\n\
         [upstreams.\"docker.io\"]\nendpoints = [\"http://127.0.0.1:{}\"]\n",
        tls.unwrap_or_default(),
        dir.join("data").display(),
        setting.upstream
    );
    fs::write(dir.join("mirror.toml"), config)?;
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(dir.join("mirror.toml")).env_remove("RUST_LOG");
    if !setting.log {
        command.env("RUST_LOG", "warn");
    }
    Ok(command)
}

fn registry(program: &Path, dir: &Path, setting: &Setting) -> io::Result<Command> {
    let tls = setting.tls.map(|Tls { cert, key, .. }| format!(", tls: {{certificate: {}, key: {}}}", cert.display(), key.display()));
    let config = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog: {{disabled: {}}}\nstorage:\n  filesystem: {{rootdirectory: {}, maxthreads: 1000}}\n  \
         maintenance: {{uploadpurging: {{enabled: false}}}}\n  cache: {{blobdescriptor: inmemory}}\nhttp: {{addr: \"127.0.0.1:0\"{}}}\n\
         proxy: {{remoteurl: \"http://127.0.0.1:{}\"}}\n",
        !setting.log,
        dir.join("data").display(),
        tls.unwrap_or_default(),
        setting.upstream
    );
    fs::write(dir.join("config.yml"), config)?;
    let mut command = Command::new(program);
    command.arg("serve").arg(dir.join("config.yml"));
    Ok(command)
}

fn limit(dir: &Path, setting: &Setting) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("limit").arg(setting.source).arg(dir);
    if setting.is_cold {
        command.arg(setting.upstream.to_string());
    }
    Ok(command)
}

fn nginx(program: &Path, dir: &Path, setting: &Setting, port: u16) -> io::Result<Command> {
    let at = dir.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let log = if setting.log { format!("{at}/access.log combined buffer=64k flush=1s") } else { "off".to_owned() };
    // With tcp_nopush each range waits 44 ms for its last segment, and large bodies are no faster.
    let tls = setting.tls.map(|Tls { cert, key, .. }| {
        let (cert, key) = (cert.display(), key.display());
        format!("ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:tls:16m; ssl_session_timeout 1h;")
    });
    let ssl = if tls.is_some() { " ssl" } else { "" };
    let config = format!(
        "{user} daemon off; worker_processes auto; worker_rlimit_nofile 65536; pid {at}/pid; error_log {at}/error.log error;
events {{ worker_connections 16384; }}
http {{
  access_log {log};
  sendfile on; tcp_nopush off; tcp_nodelay on;
  keepalive_timeout 300s; keepalive_requests 1000000000; reset_timedout_connection on;
  open_file_cache max=10000 inactive=300s; open_file_cache_valid 300s;
  client_body_temp_path {at}/body; fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
  proxy_temp_path {at}/temp;
  proxy_cache_path {at}/cache levels=1:2 keys_zone=held:64m max_size=100g inactive=30d use_temp_path=off;
  upstream registry {{ server 127.0.0.1:{upstream}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096{ssl}; {tls}
    location / {{
      proxy_pass http://registry; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_read_timeout 1h; proxy_buffer_size 16k; proxy_buffers 16 256k; proxy_busy_buffers_size 1m; proxy_temp_file_write_size 1m;
      proxy_cache held; proxy_cache_key $uri; proxy_cache_valid 200 1h;
      proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;
    }}
  }}
}}
",
        upstream = setting.upstream,
        tls = tls.unwrap_or_default()
    );
    fs::write(dir.join("nginx.conf"), config)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(dir).arg("-e").arg(dir.join("error.log")).arg("-c").arg(dir.join("nginx.conf"));
    Ok(command)
}

/// Where a program is: in `PATH`, or where only root looks.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file())
}
