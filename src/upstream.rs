//! Ask a registry for a manifest, a blob, tags.
//!
//! Owns everything between a question and a registry's answer, in this order: which endpoint (`tries`), whether it may be
//! asked now (`health`), with what credentials (`auth`), through which redirects (`redirect`), over which connection
//! (`wire`, `connect`), how often and for how long (`budget`). Promises that only configured hosts are contacted and
//! those public ones that they redirect to, that a credential reaches no host but the one it is for, that every call
//! ends within its limit and may be dropped at any time, and that what comes back has been checked as far as it can be
//! without its digest. Knows nothing of the cache, the disk, replies, or what a caller makes of an error.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Semaphore;
use url::Url;

use crate::oci::Registry;

mod address;
mod answers;
mod ask;
mod auth;
mod budget;
mod build;
pub mod challenge;
mod connect;
mod endpoint;
mod error;
mod flow;
pub mod headers;
mod health;
mod known;
mod login;
mod redirect;
mod resolve;
mod search;
mod speed;
mod spot;
#[cfg(test)]
mod tests;
mod token;
mod tries;
mod wide;
mod wire;

pub use answers::{Announced, Asked, BlobBody, Fetched, ReferrersPage, Sight, TagPage, What};
pub use budget::Limits;
pub use build::{BuildError, Mistake};
pub use error::{Error, Flaw, Phase, Refusal, Why};
pub use known::{builtin, canonical};
pub use wide::{Wide, WideLimits};

/// Connections for one blob, unless the operator says otherwise: as many as a browser opens to a host, less two.
pub const PARALLEL: usize = 4;
pub use search::{Hit, RESULTS_MAX, Results};

/// The `[upstreams]` table: what may be contacted, and how. The built-in table is merged under the operator's.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// One entry an upstream, by the name that `?ns=` and the path call it.
    pub upstreams: BTreeMap<Registry, Settings>,
}

/// One upstream.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Base URLs (http or https, a path prefix is kept), tried in order of health.
    pub endpoints: Vec<Url>,
    /// What millpond logs in with; nothing is anonymous.
    pub credentials: Option<Credentials>,
    /// Who may have what only these credentials can see.
    pub private: Private,
    /// Hosts besides the endpoints' own that may issue tokens.
    pub auth_hosts: Vec<String>,
    /// PEM certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How many connections may deliver one blob.
    pub parallel: usize,
    /// Bytes a second that all blobs together may come with.
    pub bandwidth: Option<u64>,
    /// Who answers `/v1/search`; nobody without it.
    pub search: Option<Url>,
}

/// A login; the password stays in its file, which is read again on SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The file that holds the password; white space around it is dropped.
    pub password_file: PathBuf,
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
pub struct Upstreams(Arc<BTreeMap<Registry, Upstream>>);

/// One upstream, ready to be asked. Cheap to clone; all clones share connections, tokens and what is known of the
/// endpoints' health.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    registry: Registry,
    private: Private,
    endpoints: Vec<endpoint::Endpoint>,
    login: Option<login::Login>,
    auth: auth::Auth,
    auth_hosts: Vec<auth::AuthHost>,
    wire: Arc<wire::Wire>,
    search: Option<Url>,
    searches: Arc<Semaphore>,
    blobs: Arc<Semaphore>,
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

    /// How many endpoints it has.
    pub fn endpoints(&self) -> usize {
        self.0.endpoints.len()
    }

    /// Who may have what only the credentials can see.
    pub fn private(&self) -> Private {
        self.0.private
    }

    /// Whether millpond logs in there: if not, whatever it gets anybody could have got.
    pub fn has_credentials(&self) -> bool {
        self.0.login.is_some()
    }
}
