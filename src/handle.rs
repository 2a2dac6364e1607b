//! One request in, one response out: route → access → pull → reply, told in one line when it is over.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, USER_AGENT};
use hyper::{Method, Request};

use crate::access::{self, Access, Verdict};
use crate::listen::{self, Client};
use crate::observe::{Id, Kind, Line, Metrics, Outcome, Subject};
use crate::oci::{Digest, Reference, Registry, Repository};
use crate::pull::{self, Asker, BlobAnswer, Pull};
use crate::reply::{self, Again, Asked, Content, Problem, Response};
use crate::route::{Known, Memo, Route, Routed};
use crate::upstream::{self, Upstreams};

/// What a request needs.
pub struct Handler {
    access: Access,
    upstreams: Upstreams,
    pull: Pull,
    metrics: Metrics,
    routes: Memo,
}

impl Known for Upstreams {
    fn registry(&self, named: &Registry) -> Option<Registry> {
        self.get(named).map(|upstream| upstream.registry().clone())
    }
}

impl Handler {
    /// Puts the parts together.
    pub fn new(access: Access, upstreams: Upstreams, pull: Pull, metrics: Metrics) -> Self {
        Self { access, upstreams, pull, metrics, routes: Memo::new() }
    }

    /// Reads logins and client certificates again; what is wrong is logged, and the old ones stay in use.
    pub fn reload(&self) {
        self.reload_users();
        if let Err(error) = self.upstreams.reload() {
            tracing::error!(%error, "a file of an upstream cannot be read again; the old login or certificate stays");
        }
    }

    /// Reads the list of users again; false, and a line in the log, when the old one stays in use.
    pub fn reload_users(&self) -> bool {
        let read = self.access.reload();
        if let Err(error) = &read {
            tracing::error!(%error, "the htpasswd file cannot be read again; the old users stay");
        }
        read.is_ok()
    }

    /// The list of users, if there is one.
    pub fn users_file(&self) -> Option<PathBuf> {
        self.access.users_file().map(Path::to_owned)
    }

    /// Answers a request. A panic in it ends this request and nothing else.
    pub async fn answer(self: Arc<Self>, client: Client, request: Request<Incoming>) -> Response {
        let started = Instant::now();
        let id = Id::new();
        // The secret is cut off before anything else looks at the path, and before anything of it can be logged.
        let path = request.uri().path();
        let (_, rest) = self.access.strip_secret(path);
        let secret = &path[..path.len().saturating_sub(rest.len())];
        let routed = self.routes.route(request.method(), rest, request.uri().query(), &self.upstreams);
        let answered = AssertUnwindSafe(self.respond(&client, &request, secret, routed.as_ref().map_err(|error| *error)));
        let result = answered.catch_unwind().await.unwrap_or(Err(Problem::Internal));
        let mut response = result.unwrap_or_else(|problem| reply::problem(&problem, id));
        if let Some(namespace) = routed.as_ref().ok().and_then(|routed| routed.namespace.as_ref()) {
            reply::in_namespace(&mut response, namespace);
        }
        let subject = subject(request.method(), routed.as_ref().ok());
        let outcome = response.body().outcome.unwrap_or(Outcome::Local);
        let kind = routed.as_ref().map_or(Kind::Other, Routed::kind);
        let upstream = subject.repository.as_ref().map(|repository| &repository.registry);
        self.metrics.answered(upstream, kind, outcome, started.elapsed());
        let line = Line::new(subject, response.status().as_u16(), outcome, client.addr, id, started, self.metrics.clone());
        let head = *request.method() == Method::HEAD;
        response.map(|body| if head { body.without_bytes() } else { body }.telling(line))
    }

    async fn respond(
        &self,
        client: &Client,
        request: &Request<Incoming>,
        secret: &str,
        routed: Result<&Routed, crate::route::NoRoute>,
    ) -> Result<Response, Problem> {
        listen::check(request).map_err(Problem::Request)?;
        let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let agent = text(USER_AGENT);
        let asker = access::Asker {
            ip: client.addr.ip(),
            certificate: client.certificate,
            secret_path: !secret.is_empty(),
            authorization: text(AUTHORIZATION),
            host: request.uri().authority().map(hyper::http::uri::Authority::as_str).or_else(|| text(HOST)),
            agent,
        };
        let asker = match self.access.judge(asker).await {
            Verdict::Admitted { authenticated } => Asker { authenticated },
            Verdict::Challenge => return Err(Problem::Challenge),
            Verdict::Refused => return Err(Problem::Refused),
            Verdict::Busy => return Err(Problem::Busy),
            Verdict::Limited(after) => return Err(Problem::Limited(after)),
        };
        let routed = routed.map_err(Problem::Route)?;
        let hops = self.upstreams.hops(request.headers()).map_err(|upstream::Loop| Problem::Pull(pull::Error::Loop))?;
        let pull = self.pull.behind(hops);
        let asked = Asked::new(request.method(), request.version(), request.headers()).in_namespace(routed.namespace.as_ref());
        let invited = !asker.authenticated && is_by_name(routed) && self.access.may_challenge(agent);
        if invited && routed.route == Route::Ping {
            return Err(Problem::Challenge);
        }
        let served = serve(&pull, asker, routed, secret, &asked).await;
        served.map_err(|error| {
            if invited && error.is_absence() && agent.is_some_and(access::asks_no_ping) { Problem::Challenge } else { Problem::Pull(error) }
        })
    }
}

/// What is asked for, from whoever has it.
///
/// A future like this is made, moved and dropped for each request, so it is kept small: here and below, what a hit of a manifest or
/// a blob does not need is waited for on the heap.
async fn serve(pull: &Pull, asker: Asker, routed: &Routed, secret: &str, asked: &Asked) -> Result<Response, pull::Error> {
    Ok(match &routed.route {
        Route::Ping => reply::ping(),
        Route::SearchPing => reply::search_ping(),
        Route::Search { term, n, page } => reply::search(&Box::pin(pull.search(asker, term, *n, *page)).await, term, *n, *page),
        Route::Catalog { registry, n, last } => {
            let answer = Box::pin(pull.catalog(asker, registry.as_ref(), *n, last.as_deref())).await?;
            let prefix = routed.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
            reply::catalog(&answer, *n, &format!("{secret}{prefix}"), routed.namespace.as_ref())
        }
        Route::Manifest(repository, reference) => {
            let answer = pull.manifest(asker, repository, reference, asked.head).await?;
            reply::manifest(answer, matches!(reference, Reference::Tag(_)), asked)
        }
        Route::Blob(repository, digest) => {
            let answer = pull.blob(asker, repository, digest, asked.from(), asked.head).await?;
            // What is in memory needs nothing of the disk.
            let again = (!matches!(answer.content, BlobAnswer::Memory(_))).then(|| again(pull, asker, repository, digest));
            let response = reply::blob(answer, digest, asked).await?;
            match again {
                Some(again) => response.map(|body| body.or_again(again)),
                None => response,
            }
        }
        Route::Tags { repository, n, last } => {
            let answer = Box::pin(pull.tags(asker, repository, *n, last.as_deref())).await?;
            // The link must lead back by the way the client came.
            let base = format!("{secret}{}", routed.base(repository));
            reply::tags(&answer, repository.name.as_str(), &base, routed.namespace.as_ref())
        }
        Route::Referrers { repository, digest, artifact_types } => {
            reply::referrers(Box::pin(pull.referrers(asker, repository, digest, artifact_types)).await?)
        }
    })
}

/// How a body asks for its blob anew when the disk fails it.
fn again(pull: &Pull, asker: Asker, repository: &Repository, digest: &Digest) -> Again {
    let (pull, repository, digest) = (pull.clone(), repository.clone(), *digest);
    Arc::new(move |at| {
        let (pull, repository) = (pull.clone(), repository.clone());
        Box::pin(async move {
            match pull.blob(asker, &repository, &digest, at, false).await.ok()?.content {
                BlobAnswer::Memory(bytes) => Some(Content::Memory(bytes)),
                BlobAnswer::Whole(blob) => Some(Content::Whole(blob)),
                BlobAnswer::Growing(growing) => Some(Content::Growing(growing)),
                BlobAnswer::Size(_) => None,
            }
        })
    })
}

/// Whether a client that asks like this was told this mirror's own name by its user (`docker pull mirror:5000/team/app`), as far as can be
/// seen: what says which registry it stands for was written into the settings of a mirror.
fn is_by_name(routed: &Routed) -> bool {
    routed.namespace.is_none() && routed.prefix.is_none()
}

fn subject(method: &Method, routed: Option<&Routed>) -> Subject {
    let route = routed.map(|routed| &routed.route);
    let reference = match route {
        Some(Route::Manifest(_, reference)) => Some(reference.clone()),
        Some(Route::Blob(_, digest) | Route::Referrers { digest, .. }) => Some(Reference::Digest(*digest)),
        // What people look for is theirs.
        Some(Route::Tags { .. } | Route::Ping | Route::SearchPing | Route::Search { .. } | Route::Catalog { .. }) | None => None,
    };
    Subject { method: method.clone(), repository: route.and_then(Route::repository).cloned(), reference }
}
