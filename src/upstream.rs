//! Ask a registry for a manifest, a blob, tags.
//!
//! Owns everything between a question and a registry's answer, in this order: which endpoint (`tries`), whether it may be
//! asked now (`health`), as whom (`accounts`, `quota`, `turn`), with what credentials (`login`, `docker`, `auth`), through which redirects (`redirect`, `targets`), over which connection
//! (`wire`, `connect`), through which proxy (`proxy`, `tunnel`), how often and for how long (`budget`). Promises that only configured hosts are contacted and
//! those public ones that they redirect to, that a credential reaches no host but the one it is for, that every call
//! ends within its limit and may be dropped at any time, and that what comes back has been checked as far as it can be
//! without its digest. Knows nothing of the cache, the disk, replies, or what a caller makes of an error.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hyper::header::{HeaderMap, HeaderValue};
use tokio::sync::Semaphore;
use url::Url;

use crate::oci::{Name, Registry};

mod accounts;
mod address;
mod answers;
mod ask;
mod auth;
mod budget;
mod build;
pub mod challenge;
mod connect;
mod docker;
mod endpoint;
mod error;
mod flow;
pub mod headers;
mod health;
mod hops;
mod known;
mod login;
mod patterns;
mod pem;
pub mod proxy;
mod quota;
mod redirect;
mod resolve;
mod search;
mod speed;
mod spot;
mod targets;
#[cfg(test)]
mod tests;
mod token;
mod tries;
mod tunnel;
mod turn;
mod wide;
mod wire;

pub use accounts::{ACCOUNTS_MAX, ANONYMOUS, DEFAULT_ACCOUNT};
pub use answers::{Announced, Asked, BlobBody, Fetched, ReferrersPage, Sight, TagPage, What};
pub use budget::Limits;
pub use build::{BuildError, Mistake};
pub use error::{Error, Flaw, Phase, ProxyFault, Refusal, Why};
pub use hops::{Hops, Loop};
pub use known::{builtin, canonical};
pub use patterns::{Pattern, Repositories};
pub use proxy::{Proxy, Via};
pub use quota::Pulls;
pub use search::{Hit, RESULTS_MAX, Results};
pub use wide::{Wide, WideLimits};

/// `connections` where nobody says: more than a crowd of cold pulls needs, and no registry calls it an attack.
pub const CONNECTIONS: usize = 128;

/// Connections for one blob, unless the operator says otherwise: as many as a browser opens to a host, less two.
pub const PARALLEL: usize = 4;

/// The `[upstreams]` table: what may be contacted, and how. The built-in table is merged under the operator's.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// One entry an upstream, by the name that `?ns=` and the path call it.
    pub upstreams: BTreeMap<Registry, Settings>,
    /// The proxies that the environment names, for upstreams that say nothing of one.
    pub environment: proxy::Environment,
}

/// One upstream.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Base URLs (http or https, a path prefix is kept), tried in order of health.
    pub endpoints: Vec<Url>,
    /// What millpond logs in with; nothing is anonymous.
    pub credentials: Option<Credentials>,
    /// More logins, by a name for the log and the metrics. Each has a budget of its own.
    pub accounts: BTreeMap<String, Credentials>,
    /// Whether what these logins are for may also be asked for without one.
    pub anonymous: bool,
    /// Who may have what only these credentials can see.
    pub private: Private,
    /// Hosts besides the endpoints' own that may issue tokens.
    pub auth_hosts: Vec<String>,
    /// PEM certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Who millpond is, to the hosts of the endpoints.
    pub client_certificate: Option<ClientCertificate>,
    /// How it is reached.
    pub proxy: Via,
    /// Which of its repositories are served.
    pub repositories: Repositories,
    /// The most requests to it at once, at least 2.
    pub connections: usize,
    /// How many connections may deliver one blob.
    pub parallel: usize,
    /// Bytes a second that all blobs together may come with.
    pub bandwidth: Option<u64>,
    /// Who answers `/v1/search`; nobody without it.
    pub search: Option<Url>,
}

/// Two PEM files, read again on SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate with its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A login; the password stays in its file, which is read again when it changed and on SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A password of its own.
    Password {
        /// The user.
        username: String,
        /// The file that holds the password; white space around it is dropped.
        password_file: PathBuf,
    },
    /// What Docker has for the registry's name.
    Docker {
        /// Its `config.json`.
        config: PathBuf,
    },
}

impl Settings {
    /// These endpoints, asked as anybody.
    pub fn of(endpoints: Vec<Url>) -> Self {
        Self {
            endpoints,
            credentials: None,
            accounts: BTreeMap::new(),
            anonymous: false,
            private: Private::default(),
            auth_hosts: Vec::new(),
            ca_file: None,
            client_certificate: None,
            proxy: Via::default(),
            repositories: Repositories::default(),
            connections: CONNECTIONS,
            parallel: PARALLEL,
            bandwidth: None,
            search: None,
        }
    }
}

/// `private`: who may have what only millpond's own credentials can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Private {
    /// Clients that authenticated.
    #[default]
    Authenticated,
    /// Whoever reaches the port.
    Anyone,
}

/// All upstreams. Cheap to clone.
#[derive(Clone)]
pub struct Upstreams(Arc<BTreeMap<Registry, Upstream>>, hops::Hop);

/// One upstream, ready to be asked. Cheap to clone; all clones share connections, tokens and what is known of the
/// endpoints' health. Each says through which mirrors the requests came that it asks on behalf of.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>, HeaderValue);

struct Inner {
    registry: Registry,
    private: Private,
    endpoints: Vec<endpoint::Endpoint>,
    accounts: accounts::Accounts,
    targets: targets::Targets,
    identity: Option<Arc<pem::Identity>>,
    repositories: Repositories,
    auth: auth::Auth,
    auth_hosts: Vec<auth::AuthHost>,
    wire: Arc<wire::Wire>,
    hop: hops::Hop,
    search: Option<Url>,
    searches: Arc<Semaphore>,
    blobs: Arc<Semaphore>,
    /// How many permits that has when all are free.
    blobs_max: usize,
    metadata: Arc<Semaphore>,
    throttle: Option<Arc<flow::Throttle>>,
    parallel: usize,
    habits: wide::Habits,
    ahead: wide::Ahead,
    /// It answered 405 to the HEAD of a manifest once, and is spared the next.
    headless: AtomicBool,
}

impl Upstreams {
    /// The upstream of a name or an alias; nothing, if it is not configured: then nothing may be contacted.
    pub fn get(&self, registry: &Registry) -> Option<&Upstream> {
        self.0.get(&canonical(registry))
    }

    /// The mirrors that a request with these headers came through, unless this is one of them.
    pub fn hops(&self, headers: &HeaderMap) -> Result<Hops, Loop> {
        self.1.before(headers)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Upstream> {
        self.0.values()
    }

    /// The configured registries.
    pub fn registries(&self) -> impl Iterator<Item = &Registry> {
        self.0.keys()
    }
}

impl Upstream {
    /// What it is called.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The same, asked on behalf of a request that came through these mirrors.
    #[must_use]
    pub fn behind(&self, hops: &Hops) -> Self {
        Self(Arc::clone(&self.0), self.0.hop.via(hops))
    }

    /// How many endpoints it has.
    pub fn endpoints(&self) -> usize {
        self.0.endpoints.len()
    }

    /// Whether the operator lets this repository be served.
    pub fn admits(&self, name: &Name) -> bool {
        self.0.repositories.admits(name)
    }

    /// Who may have what only the credentials can see.
    pub fn private(&self) -> Private {
        self.0.private
    }

    /// How many pulls it still grants, as far as is known, to all accounts together.
    pub fn pulls(&self) -> Pulls {
        self.0.accounts.pulls()
    }

    /// Whether millpond logs in there: if not, whatever it gets anybody could have got.
    pub fn has_credentials(&self) -> bool {
        self.0.accounts.have_login()
    }
}
