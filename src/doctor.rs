//! `millpond doctor`: how each client of this machine is told of the mirror, whether it is, and what is wrong if it does not work.
//!
//! Reads the clients' files and asks the running mirror as they would; where that fails it asks the registry itself, to say why. Changes
//! nothing, anywhere. What it finds is one sentence each, for a person who has to act on it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::Method;
use rustls::RootCertStore;

use crate::oci::{Digest, Manifest, Name, Reference, Registry, Tag};
use crate::upstream::Upstreams;

mod clients;
mod wire;

pub use clients::Client;
use wire::Answer;

/// Free bytes of the data folder's file system below which nothing of any size can be kept: some layers.
const FREE_BYTES_MIN: u64 = 256 << 20;

/// No clock is right that says less than when this was written (2025-01-01), in seconds since 1970.
const BUILT: Duration = Duration::from_secs(1_735_689_600);

/// The mirror, as its configuration says it is.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Where it listens.
    pub listen: SocketAddr,
    /// It speaks TLS.
    pub tls: bool,
    /// By what name clients call it.
    pub host: String,
    /// And at which port.
    pub port: u16,
    /// The first secret path.
    pub secret: Option<String>,
    /// It has users with passwords.
    pub has_users: bool,
    /// It asks no upstream.
    pub offline: bool,
    /// The data folder.
    pub data: PathBuf,
}

/// What to look at.
#[derive(Debug, Clone)]
pub struct Examination {
    /// These clients; none is all that are found.
    pub clients: Vec<Client>,
    /// Where the clients' files are: `/`.
    pub root: PathBuf,
    /// An image of Docker Hub, small.
    pub image: (Name, Tag),
}

/// What came of it.
#[derive(Debug)]
pub struct Findings {
    /// For a terminal.
    pub text: String,
    /// How many things are wrong.
    pub wrong: usize,
}

impl Subject {
    /// By which name or address it is reached from this machine, unless somebody says another.
    pub fn host_of(listen: SocketAddr) -> String {
        match listen.ip() {
            ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
            ip => ip.to_string(),
        }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }

    /// The URL of the mirror, as settings hold it.
    fn mirror(&self) -> String {
        let secret = self.secret.as_ref().map(|secret| format!("/{secret}")).unwrap_or_default();
        format!("{}://{}{secret}", if self.tls { "https" } else { "http" }, self.authority())
    }

    fn connect_to(&self) -> String {
        self.authority()
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }
}

/// Looks at everything.
pub async fn examine(subject: &Subject, examination: &Examination, upstreams: &Upstreams) -> Findings {
    let (mut text, mut wrong) = (String::new(), 0);
    let mut complain = |text: &mut String, sentence: &str| {
        wrong += 1;
        let _ = writeln!(text, "  WRONG: {sentence}");
    };
    let _ = writeln!(text, "millpond at {}", subject.mirror());
    for sentence in of_machine(subject) {
        complain(&mut text, &sentence);
    }
    let found = || Client::ALL.into_iter().filter(|client| client.is_there(&examination.root)).collect::<Vec<_>>();
    let clients = if examination.clients.is_empty() { found() } else { examination.clients.clone() };
    if clients.is_empty() {
        let _ = writeln!(text, "  no client was found on this machine; name one with --client to see its lines");
    }
    // The mirror is tried all the same.
    let tried = if clients.is_empty() { vec![Client::Docker] } else { clients.clone() };
    for client in tried {
        let _ = writeln!(text, "\n{}", client.name());
        if clients.contains(&client) {
            text.push_str(&settings(subject, client, &examination.root));
        }
        let trial = Trial { subject, client, image: &examination.image, roots: wire::roots(&examination.root, &client.trusts(subject)) };
        match trial.run(upstreams).await {
            Ok(outcome) => {
                let _ = writeln!(text, "  works: {outcome}");
            }
            Err(sentence) => complain(&mut text, &sentence),
        }
    }
    Findings { text, wrong }
}

/// The lines for a client, and whether they are there.
fn settings(subject: &Subject, client: Client, root: &Path) -> String {
    let mut text = String::new();
    let file = client.file();
    if client.has(root, subject) {
        let _ = writeln!(text, "  its settings name this mirror");
    } else {
        let _ = writeln!(text, "  its settings do not name this mirror; write into /{file}:");
        for line in client.lines(subject).lines() {
            let _ = writeln!(text, "    {line}");
        }
        if let Some(also) = client.also(root) {
            let _ = writeln!(text, "  {also}");
        }
    }
    if subject.secret.is_some() && !client.takes_path() {
        let _ = writeln!(text, "  it takes no secret path: admit it by network or let it log in");
    }
    text
}

/// What is wrong without asking anybody.
fn of_machine(subject: &Subject) -> Vec<String> {
    let mut wrong = Vec::new();
    if SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() < BUILT {
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        wrong.push(format!("this machine's clock says {now}: no certificate is valid then; set it"));
    }
    // It may not be there before the first start.
    let folder = subject.data.ancestors().find(|folder| folder.is_dir());
    if let Some(Ok(stat)) = folder.map(rustix::fs::statvfs) {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < FREE_BYTES_MIN {
            let mib = free >> 20;
            wrong.push(format!(
                "the disk of {} is full ({mib} MiB left): what is pulled is passed through and not kept; make room",
                subject.data.display()
            ));
        }
    }
    wrong
}

/// One pull of a small image, as a client does it.
struct Trial<'t> {
    subject: &'t Subject,
    client: Client,
    image: &'t (Name, Tag),
    roots: Arc<RootCertStore>,
}

impl Trial<'_> {
    /// What was pulled, or one sentence.
    async fn run(&self, upstreams: &Upstreams) -> Result<String, String> {
        let (name, tag) = self.image;
        if self.client.pings() {
            let ping = self.ask(Method::GET, "/v2/").await?;
            if ![200, 401].contains(&ping.status) {
                return Err(self.explain(&ping, upstreams).await);
            }
        }
        if self.client.heads() {
            self.content(Method::HEAD, &format!("manifests/{tag}"), upstreams).await?;
        }
        let mut manifest = self.content(Method::GET, &format!("manifests/{tag}"), upstreams).await?;
        let mut outcome = manifest.header("cache-status").unwrap_or_default().to_owned();
        let unusable = |_| format!("the manifest of {name}:{tag} cannot be understood");
        let mut parsed = Manifest::parse(&manifest.body, manifest.header("content-type")).map_err(unusable)?;
        if let Some(child) = parsed.manifests.first() {
            manifest = self.content(Method::GET, &format!("manifests/{}", child.digest), upstreams).await?;
            parsed = Manifest::parse(&manifest.body, manifest.header("content-type")).map_err(unusable)?;
        }
        // The configuration is named first, and is small.
        if let Some(blob) = parsed.blobs.first() {
            let answer = self.content(Method::GET, &format!("blobs/{}", blob.digest), upstreams).await?;
            let arrived = Digest::sha256_of(&answer.body);
            if arrived != blob.digest {
                return Err(format!("the mirror handed over {arrived} for {}: something between changes what passes", blob.digest));
            }
            outcome = answer.header("cache-status").map_or(outcome, str::to_owned);
        }
        Ok(format!("{name}:{tag} came through it ({outcome})"))
    }

    async fn content(&self, method: Method, what: &str, upstreams: &Upstreams) -> Result<Answer, String> {
        let (prefix, query) = self.client.layout();
        let answer = self.ask(method, &format!("/v2/{prefix}{}/{what}{query}", self.image.0)).await?;
        if answer.status == 200 { Ok(answer) } else { Err(self.explain(&answer, upstreams).await) }
    }

    async fn ask(&self, method: Method, target: &str) -> Result<Answer, String> {
        let secret = self.subject.secret.as_ref().filter(|_| self.client.takes_path());
        let target = secret.map_or_else(|| target.to_owned(), |secret| format!("/{secret}{target}"));
        let answer = wire::ask(self.subject, &self.roots, method, &target, self.client.agent()).await?;
        if !answer.header("cache-status").is_some_and(|status| status.starts_with("millpond")) {
            let who = answer.header("server").map(|server| format!(" (it says it is {server:.60})")).unwrap_or_default();
            let at = self.subject.authority();
            return Err(format!(
                "something else than millpond answers at {at}{who}: end it, or give millpond another address (server.listen)"
            ));
        }
        Ok(answer)
    }

    /// Why the mirror did not give it.
    async fn explain(&self, answer: &Answer, upstreams: &Upstreams) -> String {
        match answer.status {
            401 if self.client == Client::Docker => {
                return "the mirror asks for a password, which a Docker daemon cannot send to a mirror: admit its address (access.networks) or \
                        give it a secret path (access.secret_paths)"
                    .to_owned();
            }
            401 => {
                return format!(
                    "the mirror asks for a password: log in to {}, or admit this address (access.networks)",
                    self.subject.authority()
                );
            }
            403 if self.subject.has_users => return "the mirror does not serve this address".to_owned(),
            403 => {
                return "the mirror does not serve this machine's address, or the registry refuses its login: see access.networks"
                    .to_owned();
            }
            _ => {}
        }
        let (name, tag) = self.image;
        if self.subject.offline {
            return format!("{name}:{tag} is not held, and the mirror is told to ask nobody (cache.offline)");
        }
        let Some(upstream) = upstreams.get(&Registry::docker_hub()) else { return "docker.io is no upstream of this mirror".to_owned() };
        match upstream.head_manifest(name, &Reference::Tag(tag.clone())).await {
            Ok(_) => {
                let status = answer.status;
                format!(
                    "the mirror answers {status} for {name}:{tag}, though the registry has it and can be reached from here: see the log of the running millpond"
                )
            }
            Err(error) => {
                let why = error.to_string();
                let hint =
                    ["expired", "not valid yet", "notvalidyet", "not yet valid"].iter().any(|word| why.to_lowercase().contains(word));
                let clock = if hint {
                    format!("; this machine's clock says {}", humantime::format_rfc3339_seconds(SystemTime::now()))
                } else {
                    String::new()
                };
                format!("the mirror runs, but the registry does not give {name}:{tag}: {why}{clock}")
            }
        }
    }
}
