//! The server as a whole: opened in the order in which a start can fail, drained in the order in which work can end.
//!
//! Promises: an error at the start leaves nothing behind that runs; a stop lets answers in flight finish within
//! `server.drain`, gives up transfers that nobody waits for any more, and writes the index last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Access, AccessError};
use crate::admin::{Admin, Readiness};
use crate::cache::{Cache, FolderError};
use crate::handle::Handler;
use crate::listen::{BindError, Certificates, Client, Limits, Listener, TlsError};
use crate::observe::Metrics;
use crate::pull::Pull;
use crate::upstream::{BuildError, Upstreams};
use crate::{access, cache, fill, listen, pull, upstream};

mod changes;

use changes::Watched;

/// How long small work may take after the last client is gone: a manifest's write, a blob's fsync. It is waited for three times
/// (what was answered, what is under way, the index), so a stop takes at most `server.drain` and three of these.
const SETTLE: Duration = Duration::from_secs(10);

/// The same for a disk that is known not to answer.
const SETTLE_AWAY: Duration = Duration::from_secs(1);

/// The parts of the configuration that a server is made of.
#[derive(Debug, Clone)]
pub struct Parts {
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
}

/// Waits and limits that no operator needs to set, and tests do.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Of connections.
    pub listen: Limits,
    /// Of upstream requests.
    pub upstream: upstream::Limits,
    /// Of fills.
    pub fill: fill::Limits,
    /// How often certificates and the list of users are looked at for changes.
    pub look: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { listen: Limits::default(), upstream: upstream::Limits::default(), fill: fill::Limits::default(), look: changes::EVERY }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The htpasswd file or a secret path.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A password file or certificate of an upstream.
    #[error(transparent)]
    Upstream(#[from] BuildError),
}

impl StartError {
    /// Whether another process holds the data folder.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Folder(FolderError::Locked(_)))
    }
}

/// A server that has bound its addresses and accepts nothing yet.
pub struct Server {
    registry: Listener,
    admin: Listener,
    handler: Arc<Handler>,
    pull: Pull,
    certificates: Option<Certificates>,
    cache: Cache,
    metrics: Metrics,
    limits: Limits,
    look: Duration,
    work: Work,
    began: Instant,
}

/// The tasks that no request owns.
#[derive(Clone)]
struct Work {
    /// Of everything below.
    tasks: TaskTracker,
    /// Ends the endless ones.
    stop: CancellationToken,
    /// Ends transfers.
    fills: CancellationToken,
}

/// Reads certificates and logins again. Cheap to clone.
#[derive(Clone)]
pub struct Reload {
    handler: Arc<Handler>,
    certificates: Option<Certificates>,
}

impl Server {
    /// Opens everything that can fail. Must be called inside a tokio runtime.
    pub fn open(parts: Parts, tuning: Tuning) -> Result<Self, StartError> {
        let began = Instant::now();
        listen::raise_open_files();
        let metrics = Metrics::new();
        let certificates = parts.server.tls.as_ref().map(Certificates::load).transpose()?;
        let client_ca = parts.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let access = Access::build(&parts.access, client_ca)?;
        let upstreams = Upstreams::build_with(&parts.upstreams, metrics.clone(), tuning.upstream)?;
        let registry = Listener::bind(parts.server.listen, certificates.clone())?;
        let admin = Listener::bind(parts.server.admin, None)?;
        let work = Work { tasks: TaskTracker::new(), stop: CancellationToken::new(), fills: CancellationToken::new() };
        let cache = Cache::open(&parts.cache, metrics.clone(), work.tasks.clone(), work.stop.clone())?;
        let fills = fill::Context {
            cache: cache.clone(),
            metrics: metrics.clone(),
            tasks: work.tasks.clone(),
            stop: work.fills.clone(),
            windows: fill::Windows::new(&tuning.fill),
            limits: tuning.fill,
        };
        let pull = Pull::new(parts.pull, cache.clone(), upstreams.clone(), fills, work.tasks.clone());
        let handler = Arc::new(Handler::new(access, upstreams, pull.clone(), metrics.clone()));
        let limits = Limits { drain: parts.server.drain, ..tuning.listen };
        Ok(Self { registry, admin, handler, pull, certificates, cache, metrics, limits, look: tuning.look, work, began })
    }

    /// Where the registry API listens.
    pub fn addr(&self) -> SocketAddr {
        self.registry.addr()
    }

    /// Where `/healthz`, `/readyz` and `/metrics` listen.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// Whether the registry API speaks TLS.
    pub fn has_tls(&self) -> bool {
        self.certificates.is_some()
    }

    /// What SIGHUP calls.
    pub fn reload(&self) -> Reload {
        Reload { handler: self.handler.clone(), certificates: self.certificates.clone() }
    }

    /// The counters of this server.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// What it holds.
    pub fn cache(&self) -> Cache {
        self.cache.clone()
    }

    /// Serves until `stop`, then drains. Returns when everything is written.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let watched = self.reload().watched();
        let Self { registry, admin, handler, pull, cache, metrics, limits, look, work, began, .. } = self;
        work.tasks.spawn(changes::watch(watched, look, work.stop.clone()));
        metrics.started(began.elapsed());
        let readiness = Readiness::starting();
        let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
        let service = move |client: Client, request: Request<Incoming>| handler.clone().answer(client, request);
        let registry = tokio::spawn(registry.serve(service, limits, closing.clone()));
        let page = Admin::new(metrics, readiness.clone());
        let pages = move |_: Client, request: Request<Incoming>| {
            let page = page.clone();
            async move { page.answer(&request) }
        };
        let admin = tokio::spawn(admin.serve(pages, limits, closed.clone()));
        readiness.ready();
        tell_systemd(&[sd_notify::NotifyState::Ready]);

        stop.await;
        tracing::info!("stopping: answers in flight may finish");
        tell_systemd(&[sd_notify::NotifyState::Stopping]);
        readiness.not_ready("draining");
        closing.cancel();
        match registry.await {
            Ok(drained) if drained.cut > 0 => tracing::warn!(cut = drained.cut, "server.drain is over: connections were cut"),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the registry listener died"),
        }
        // Whoever wanted them is gone; what was not committed is fetched again.
        work.fills.cancel();
        // Manifests may wait until the start has counted what is held: that goes on for so long.
        let settle = || if cache.is_away() { SETTLE_AWAY } else { SETTLE };
        let _ = tokio::time::timeout(settle(), pull.kept()).await;
        work.stop.cancel();
        work.tasks.close();
        let done = tokio::time::timeout(settle(), work.tasks.wait()).await.is_ok();
        if !done {
            tracing::warn!("work on the disk does not end; it is left to the operating system");
        }
        let settle = settle();
        let close = tokio::task::spawn_blocking(move || cache.close(done));
        if !matches!(tokio::time::timeout(settle, close).await, Ok(Ok(()))) {
            tracing::error!("the index was not closed; the next start holds it against the files");
        }
        closed.cancel();
        if let Err(error) = admin.await {
            tracing::error!(%error, "the admin listener died");
        }
    }
}

impl Reload {
    /// Reads certificates and logins again; what is wrong is logged, and the old ones stay in use.
    pub fn now(&self) {
        self.certificates();
        self.handler.reload();
        tracing::info!("certificates and logins were read again");
    }

    /// What is read again by itself.
    fn watched(&self) -> Vec<Watched> {
        let files = self.certificates.as_ref().map(Certificates::files).unwrap_or_default();
        let (certificates, users) = (self.clone(), self.clone());
        let certificates = Watched::new(files, move || {
            if certificates.certificates() {
                tracing::info!("the certificate has changed and was read again");
            }
        });
        let users_file = self.handler.users_file().into_iter().collect();
        let users = Watched::new(users_file, move || {
            if users.handler.reload_users() {
                tracing::info!("the htpasswd file has changed and was read again");
            }
        });
        vec![certificates, users]
    }

    fn certificates(&self) -> bool {
        match self.certificates.as_ref().map(Certificates::reload) {
            Some(Err(error)) => {
                tracing::error!(%error, "the certificate cannot be read again; the old one stays");
                false
            }
            _ => true,
        }
    }
}

/// Where there is no systemd this does nothing.
fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
