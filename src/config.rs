//! What the operator wants: from text in a file and in the environment to one validated [`Config`].
//!
//! Owns every key, its default and its meaning. Promises that a [`Config`] is sound as a whole: unknown keys are refused,
//! and all mistakes are reported together, each with the place it was written in and its key. Knows nothing of what the
//! values are used for: each module owns its own `Config`, this one composes them. Nothing but `main`, `cli` and tests
//! imports it, and no file but this one and those under `config/` says `figment`.
//!
//! A value comes from the first of these that has it:
//!
//! 1. a flag: `--log`
//! 2. the environment: `MILLPOND__CACHE__MAX_SIZE` (see `config/environment.rs`)
//! 3. the profile's part of the file: `[profile.NAME.cache]`
//! 4. the file
//! 5. the built-in table of public registries, and the folders that systemd or the desktop name
//! 6. the default, which stands beside its key below
//!
//! Serde would stop at the first mistake, so the merged tree is read key by key: asking for a key is what makes it known.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::oci::Registry;
use crate::{access, cache, listen, pull, upstream};

mod builtin;
mod environment;
mod layers;
mod report;
mod section;
mod sources;
mod suggest;
#[cfg(test)]
mod tests;
mod values;

pub use report::{Mistake, Mistakes};
pub use sources::{File, Sources};

use report::Line;
use section::{Reader, Section};

/// The most connections that may deliver one blob: more is rude to an upstream, and costs memory for what comes out of order.
pub const PARALLEL_MAX: usize = 16;

/// The least bytes a second that an upstream's blobs may be limited to: 64 of them at once are then still far above what counts
/// as a connection that only pretends to live.
pub const BANDWIDTH_MIN: u64 = 128 << 10;

/// The longest `server.drain`: an orchestrator has long since killed a process that takes more to stop.
pub const DRAIN_MAX: Duration = Duration::from_secs(60 * 60);

/// The longest `cache.tag_ttl` and `cache.max_stale`: ten years of 365.25 days, so that no sum with a time can overflow.
pub const AGE_MAX: Duration = Duration::from_secs(10 * 31_557_600);

/// The fewest `connections` of an upstream: one for blobs, one for all else.
const CONNECTIONS_MIN: usize = 2;

/// The most: more open files than a process has by default.
const CONNECTIONS_MAX: usize = 1024;

/// Everything millpond can be told, valid as a whole.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub server: listen::Config,
    /// Who may pull.
    pub access: access::Config,
    /// What may be held, and where.
    pub cache: cache::Config,
    /// How tags are believed.
    pub pull: pull::Config,
    /// What may be contacted.
    pub upstreams: upstream::Config,
    /// How the log is written.
    pub log: LogFormat,
}

/// `log`: how the log is written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// A valid configuration, and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the modules take.
    pub config: Config,
    title: String,
    lines: Vec<Line>,
}

impl Loaded {
    /// The configuration in effect as `millpond check` prints it: as it would stand in a file, each value with where it came
    /// from, secrets as `***`.
    pub fn effective(&self) -> String {
        report::effective(&self.title, &self.lines)
    }
}

/// Merges the sources and reads every key. Touches the disk only to see that the files that are named can be read.
pub fn load(sources: &Sources) -> Result<Loaded, Mistakes> {
    let mut reader = read(sources);
    let environment = reader.proxies(&sources.env);
    let config = everything(&mut reader.root(), environment);
    reader.look_for_single_underscores(&sources.env);
    let lines = reader.finish()?;
    Ok(Loaded { config, title: layers::title(sources), lines })
}

fn read(sources: &Sources) -> Reader {
    let mut mistakes = Vec::new();
    let merged = layers::merge(sources, &mut mistakes);
    Reader::new(merged, mistakes)
}

fn everything(root: &mut Section, environment: upstream::proxy::Environment) -> Config {
    let log = root.value("log", "auto", values::log);
    let server = server(&mut root.table("server"));
    let access = access(&mut root.table("access"));
    let (cache, pull) = cache(&mut root.table("cache"));
    let upstreams = upstreams(&mut root.table("upstreams"), environment);
    Config { server, access, cache, pull, upstreams, log }
}

fn server(section: &mut Section) -> listen::Config {
    let listen = section.value("listen", "0.0.0.0:5000", values::address);
    let admin = section.value("admin", "127.0.0.1:5001", values::address);
    if collide(listen, admin) && !section.is_mistaken("listen") && !section.is_mistaken("admin") {
        // Whoever wrote one of them wants to hear of that one.
        let written = if section.is_written("admin") { "admin" } else { "listen" };
        section.mistake(written, format!("server.listen ({listen}) and server.admin ({admin}) take the same port; give each its own"));
    }
    let drain = section.value("drain", "30s", |text| values::duration(text, DRAIN_MAX));
    listen::Config { listen, admin, drain, tls: tls(&mut section.table("tls")) }
}

/// Whether the second socket could not be bound beside the first. An unspecified address takes the port of every address.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (any || one.ip() == other.ip())
}

fn tls(section: &mut Section) -> Option<listen::Tls> {
    section.need_each_other("cert", "key");
    section.need("client_ca", "cert");
    let cert = section.optional("cert", values::file);
    let key = section.optional("key", values::file);
    let client_ca = section.optional("client_ca", values::file);
    Some(listen::Tls { cert: cert?, key: key?, client_ca })
}

fn access(section: &mut Section) -> access::Config {
    access::Config {
        networks: section.list("networks", &[], values::network),
        htpasswd: section.optional("htpasswd", values::file),
        secret_paths: section.secrets("secret_paths", values::secret),
        login_hosts: section.list("login_hosts", &[], values::host),
    }
}

fn cache(section: &mut Section) -> (cache::Config, pull::Config) {
    if !section.has("dir") {
        // The layer of folders had none to offer.
        section.mistake(
            "dir",
            "there is none: neither STATE_DIRECTORY, XDG_CACHE_HOME nor HOME names a folder; write where the data shall be".into(),
        );
    }
    let cache = cache::Config {
        dir: section.optional("dir", values::folder).unwrap_or_default(),
        max_size: section.value("max_size", "50GiB", values::max_size),
        memory: section.value("memory", "64MiB", values::size),
        patrol: section.value("patrol", "4MiB", values::rate),
        disk_patience: section.value("disk_patience", "10s", values::patience),
        tag_life: Duration::ZERO,
    };
    let pull = pull::Config {
        tag_ttl: section.value("tag_ttl", "1m", |text| values::duration(text, AGE_MAX)),
        tag_ttl_low: section.value("tag_ttl_low", "6h", |text| values::duration(text, AGE_MAX)),
        max_stale: section.value("max_stale", "30d", |text| values::duration(text, AGE_MAX)),
        offline: section.flag("offline", false),
    };
    (cache::Config { tag_life: pull.tag_ttl + pull.max_stale, ..cache }, pull)
}

fn upstreams(section: &mut Section, environment: upstream::proxy::Environment) -> upstream::Config {
    let mut config = upstream::Config { environment, ..upstream::Config::default() };
    for name in section.names() {
        match Registry::parse(&name) {
            Ok(registry) => {
                let settings = upstream(&registry, &mut section.table(&name), &config.environment);
                config.upstreams.insert(registry, settings);
            }
            Err(invalid) => section.refuse(&name, &invalid.to_string()),
        }
    }
    config
}

fn upstream(registry: &Registry, section: &mut Section, environment: &upstream::proxy::Environment) -> upstream::Settings {
    let its_own_host = format!("https://{registry}");
    let endpoints = section.list("endpoints", &[&its_own_host], values::endpoint);
    if endpoints.is_empty() && !section.is_mistaken("endpoints") {
        section.mistake("endpoints", format!("is empty; write for example [\"{its_own_host}\"]"));
    }
    let settings = upstream::Settings {
        credentials: credentials(section),
        accounts: BTreeMap::new(),
        anonymous: section.flag("anonymous", false),
        private: section.value("private", "authenticated", values::private),
        auth_hosts: section.list("auth_hosts", &[], values::host),
        ca_file: section.optional("ca_file", values::file),
        client_certificate: client_certificate(section),
        proxy: proxy(section, &endpoints, environment),
        repositories: upstream::Repositories {
            allow: section.list("allow", &[], upstream::Pattern::parse),
            deny: section.list("deny", &[], upstream::Pattern::parse),
        },
        connections: section.count("connections", upstream::CONNECTIONS, CONNECTIONS_MIN..=CONNECTIONS_MAX),
        endpoints,
        parallel: section.count("parallel", upstream::PARALLEL, 1..=PARALLEL_MAX),
        bandwidth: section.optional("bandwidth", values::bandwidth),
        search: section.optional("search", values::search).flatten(),
    };
    // A table of its own, after the keys of this one: that is how a file is written.
    upstream::Settings { accounts: accounts(&mut section.table("accounts")), ..settings }
}

fn accounts(section: &mut Section) -> BTreeMap<String, upstream::Credentials> {
    let mut accounts = BTreeMap::new();
    for (n, name) in section.names().into_iter().enumerate() {
        if n >= upstream::ACCOUNTS_MAX - 1 {
            let most = upstream::ACCOUNTS_MAX - 1;
            section.refuse(
                &name,
                &format!("is one account too many; there may be {most} beside username, for each is asked before a refusal is believed"),
            );
            continue;
        }
        if let Err(what) = values::account(&name) {
            section.refuse(&name, &what);
            continue;
        }
        let mut account = section.table(&name);
        let missing = !account.has("username") && !account.has("docker_config");
        match credentials(&mut account) {
            Some(credentials) => drop(accounts.insert(name, credentials)),
            None if missing => account.mistake("username", "is missing; write username and password_file, or docker_config".to_owned()),
            None => {}
        }
    }
    accounts
}

fn credentials(section: &mut Section) -> Option<upstream::Credentials> {
    if section.has("docker_config") {
        for key in ["username", "password_file"] {
            section.refuse(key, "cannot stand beside docker_config, which has the login");
        }
    }
    section.need_each_other("username", "password_file");
    let username = section.optional("username", values::username);
    let password_file = section.optional("password_file", values::file);
    let config = section.optional("docker_config", values::file).map(|config| upstream::Credentials::Docker { config });
    let password = username.zip(password_file);
    config.or(password.map(|(username, password_file)| upstream::Credentials::Password { username, password_file }))
}

fn client_certificate(section: &mut Section) -> Option<upstream::ClientCertificate> {
    section.need_each_other("client_cert", "client_key");
    let cert = section.optional("client_cert", values::file);
    let key = section.optional("client_key", values::file);
    cert.zip(key).map(|(cert, key)| upstream::ClientCertificate { cert, key })
}

/// Where nobody wrote one, `check` says which the environment names for the first endpoint.
fn proxy(section: &mut Section, endpoints: &[url::Url], environment: &upstream::proxy::Environment) -> upstream::Via {
    if !section.has("proxy")
        && let Some((proxy, variable)) = endpoints.first().and_then(|url| environment.proxy_of(url))
    {
        section.note("proxy", &proxy.shown(), environment::origin(variable));
    }
    let shown = |via: &upstream::Via| match via {
        upstream::Via::Proxy(proxy) => proxy.shown(),
        upstream::Via::Direct | upstream::Via::Environment => "none".to_owned(),
    };
    section.masked("proxy", shown, values::proxy).unwrap_or_default()
}
