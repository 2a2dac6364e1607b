//! One request in, one response out: route → access → pull → reply, told in one line when it is over.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request};

use crate::access::{self, Access, Verdict};
use crate::listen::{self, Client};
use crate::observe::{Kind, Line, Metrics, Outcome, Subject};
use crate::oci::{Digest, Registry, Repository};
use crate::pull::{self, Asker, BlobAnswer, Pull};
use crate::reply::{self, Again, Asked, Content, Problem, Response};
use crate::route::{Known, Route, Routed, route};
use crate::upstream::{self, Upstreams};

/// What a request needs.
pub struct Handler {
    access: Access,
    upstreams: Upstreams,
    pull: Pull,
    metrics: Metrics,
}

impl Known for Upstreams {
    fn registry(&self, named: &Registry) -> Option<Registry> {
        self.get(named).map(|upstream| upstream.registry().clone())
    }
}

impl Handler {
    /// Puts the parts together.
    pub fn new(access: Access, upstreams: Upstreams, pull: Pull, metrics: Metrics) -> Self {
        Self { access, upstreams, pull, metrics }
    }

    /// Reads logins and client certificates again; what is wrong is logged, and the old ones stay in use.
    pub fn reload(&self) {
        if let Err(error) = self.access.reload() {
            tracing::error!(%error, "the htpasswd file cannot be read again; the old users stay");
        }
        if let Err(error) = self.upstreams.reload() {
            tracing::error!(%error, "a file of an upstream cannot be read again; the old login or certificate stays");
        }
    }

    /// Answers a request. A panic in it ends this request and nothing else.
    pub async fn answer(self: Arc<Self>, client: Client, request: Request<Incoming>) -> Response {
        let started = Instant::now();
        let id = format!("{:016x}", fastrand::u64(..));
        // The secret is cut off before anything else looks at the path, and before anything of it can be logged.
        let path = request.uri().path();
        let (_, rest) = self.access.strip_secret(path);
        let secret = &path[..path.len().saturating_sub(rest.len())];
        let routed = route(request.method(), rest, request.uri().query(), &self.upstreams);
        let answered = AssertUnwindSafe(self.respond(&client, &request, secret, routed.as_ref().map_err(|error| *error)));
        let result = answered.catch_unwind().await.unwrap_or(Err(Problem::Internal));
        let mut response = result.unwrap_or_else(|problem| reply::problem(&problem, &id));
        if let Some(namespace) = routed.as_ref().ok().and_then(|routed| routed.namespace.as_ref()) {
            reply::in_namespace(&mut response, namespace);
        }
        let subject = subject(request.method(), routed.as_ref().ok());
        let outcome = response.extensions().get::<Outcome>().copied().unwrap_or(Outcome::Local);
        let kind = routed.as_ref().map_or(Kind::Other, Routed::kind);
        self.metrics.answered(&subject.upstream, kind, outcome, started.elapsed());
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
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let asker = access::Asker { ip: client.addr.ip(), certificate: client.certificate, secret_path: !secret.is_empty(), authorization };
        let asker = match self.access.judge(asker).await {
            Verdict::Admitted { authenticated } => Asker { authenticated },
            Verdict::Challenge => return Err(Problem::Challenge),
            Verdict::Refused => return Err(Problem::Refused),
            Verdict::Busy => return Err(Problem::Busy),
        };
        let routed = routed.map_err(Problem::Route)?;
        let hops = self.upstreams.hops(request.headers()).map_err(|upstream::Loop| Problem::Pull(pull::Error::Loop))?;
        let pull = self.pull.behind(hops);
        let asked = Asked::new(request.method(), request.version(), request.headers());
        serve(&pull, asker, routed, secret, &asked).await.map_err(Problem::Pull)
    }
}

/// What is asked for, from whoever has it.
async fn serve(pull: &Pull, asker: Asker, routed: &Routed, secret: &str, asked: &Asked) -> Result<Response, pull::Error> {
    Ok(match &routed.route {
        Route::Ping => reply::ping(),
        Route::Manifest(repository, reference) => {
            let answer = pull.manifest(asker, repository, reference, asked.head).await?;
            reply::manifest(answer, matches!(reference, crate::oci::Reference::Tag(_)), asked)
        }
        Route::Blob(repository, digest) => {
            let answer = pull.blob(asker, repository, digest, asked.from(), asked.head).await?;
            let again = again(pull, asker, repository, digest);
            reply::blob(answer, digest, asked).await?.map(|body| body.or_again(again))
        }
        Route::Tags { repository, n, last } => {
            let answer = pull.tags(asker, repository, *n, last.as_deref()).await?;
            // The link must lead back by the way the client came.
            let base = format!("{secret}{}", routed.base(repository));
            reply::tags(&answer, repository.name.as_str(), &base, routed.namespace.as_ref())
        }
        Route::Referrers { repository, digest, artifact_types } => {
            reply::referrers(pull.referrers(asker, repository, digest, artifact_types).await?)
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

fn subject(method: &Method, routed: Option<&Routed>) -> Subject {
    let route = routed.map(|routed| &routed.route);
    let repository = route.and_then(Route::repository);
    let reference = match route {
        Some(Route::Manifest(_, reference)) => reference.to_string(),
        Some(Route::Blob(_, digest) | Route::Referrers { digest, .. }) => digest.to_string(),
        Some(Route::Tags { .. } | Route::Ping) | None => String::new(),
    };
    Subject {
        method: method.to_string(),
        upstream: repository.map(|repository| repository.registry.to_string()).unwrap_or_default(),
        repository: repository.map(|repository| repository.name.to_string()).unwrap_or_default(),
        reference,
    }
}
