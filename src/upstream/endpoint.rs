//! One base URL of an upstream, and what is known of it by now: its health, and how it wants to be asked.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::Response;
use hyper::body::Incoming;
use url::Url;

use super::auth::TokenService;
use super::error::{Error, Why, is_passing};
use super::health::{Health, Pass};
use super::redirect::host_of;
use super::speed::Speed;
use super::wire::Wire;

/// A place where an upstream's content can be asked for.
pub(super) struct Endpoint {
    /// Scheme, host, port and a path prefix.
    pub(super) base: Url,
    /// What errors call it.
    pub(super) host: String,
    /// What the metric and the log call it.
    pub(super) label: String,
    pub(super) health: Health,
    pub(super) speed: Speed,
    // std: held for a clone, never across an await.
    scheme: Mutex<Option<Scheme>>,
}

/// How an endpoint wants to be told who is asking.
#[derive(Clone)]
pub(super) enum Scheme {
    /// With a token of this service.
    Bearer(Arc<TokenService>),
    /// With user and password.
    Basic,
}

impl Endpoint {
    pub(super) fn new(base: &Url, wire: &Wire) -> Self {
        let host = host_of(base);
        let label = base.as_str().trim_end_matches('/').to_owned();
        let health = Health::new(&wire.upstream, host.clone(), Some(label.clone()), &wire.metrics, &wire.limits);
        Self { base: base.clone(), host, label, health, speed: Speed::default(), scheme: Mutex::default() }
    }

    /// The URL of `/v2/<path>` there.
    pub(super) fn url(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/v2/{path}", self.base.path().trim_end_matches('/')));
        url.set_query(query.filter(|query| !query.is_empty()));
        url
    }

    /// What its last challenge asked for: the next repository's token is fetched without provoking a 401 first.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        self.scheme.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn remember(&self, scheme: &Scheme) {
        *self.scheme.lock().unwrap_or_else(PoisonError::into_inner) = Some(scheme.clone());
    }

    /// Takes from an answer, or from its absence, what it says about the endpoint.
    pub(super) fn note(&self, sent: &Result<Response<Incoming>, Error>, pass: Option<Pass<'_>>) {
        let failure = match sent {
            Ok(response) => {
                let status = response.status().as_u16();
                is_passing(status).then(|| Error::Unavailable { host: self.host.clone(), why: Why::Status(status) })
            }
            Err(error) => Some(error.clone()),
        };
        match (pass, failure) {
            (Some(pass), Some(error)) => pass.failed(&error),
            (Some(pass), None) => pass.answered(),
            (None, _) => {}
        }
    }
}
